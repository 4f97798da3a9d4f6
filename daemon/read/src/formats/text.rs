//! Text that needs no conversion: plain text, and Markdown with its front matter.

use super::{Fault, Parsed};

/// Front matter is looked for in this many bytes from the start.
const MAX_FRONT_MATTER_BYTES: usize = 64 * 1024;

/// Plain text.
#[allow(clippy::unnecessary_wraps, reason = "the signature of all readers")]
pub(super) fn plain(text: &str) -> Result<Parsed, Fault> {
    Ok(Parsed { title: None, text: text.to_owned(), note: None })
}

/// Markdown: the title of the front matter, and the text behind it.
#[allow(clippy::unnecessary_wraps, reason = "the signature of all readers")]
pub(super) fn markdown(text: &str) -> Result<Parsed, Fault> {
    let (title, body) = front_matter(text);
    Ok(Parsed { title, text: body.to_owned(), note: None })
}

/// One kind of line end, and no zero characters.
pub(super) fn unix_lines(text: &str) -> String {
    if !text.contains(['\r', '\0']) {
        return text.to_owned();
    }
    text.replace("\r\n", "\n").replace('\r', "\n").replace('\0', "")
}

/// The `title` of YAML (`---`) or TOML (`+++`) front matter, and the text after it.
fn front_matter(text: &str) -> (Option<String>, &str) {
    let Some((fence, separator)) = [("---", ':'), ("+++", '=')]
        .into_iter()
        .find(|(fence, _)| text.strip_prefix(fence).is_some_and(|rest| rest.starts_with('\n')))
    else {
        return (None, text);
    };
    let mut title = None;
    let mut end = fence.len() + 1;
    for line in text[end..].split_inclusive('\n') {
        end += line.len();
        if end > MAX_FRONT_MATTER_BYTES {
            break;
        }
        if line.trim_end() == fence {
            return (title, &text[end..]);
        }
        if let Some((key, value)) = line.split_once(separator)
            && key.trim_end() == "title"
        {
            title = Some(value.trim().trim_matches(['"', '\'']).to_owned());
        }
    }
    // No closing fence: a thematic break, not front matter.
    (None, text)
}
