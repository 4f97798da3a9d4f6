//! Text that needs little conversion: plain text, and Markdown with its front matter.

use std::borrow::Cow;

use super::{Fault, Parsed};

/// A `data:` URL of more bytes is a picture or the like, not an example of one.
const MAX_DATA_URL_BYTES: usize = 64;

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

/// A text without the contents of pictures in it, which are base64.
pub(super) fn without_data_urls(text: &str) -> Cow<'_, str> {
    const SCHEME: &str = "data:";
    if !text.contains(";base64,") && !text.contains("data:image/") {
        return text.into();
    }
    let (mut out, mut rest) = (String::with_capacity(text.len() / 4), text);
    while let Some(at) = rest.find(SCHEME) {
        let (before, url) = rest.split_at(at);
        let end = url.find(|char: char| char.is_whitespace() || "\"'()<>`".contains(char)).unwrap_or(url.len());
        let is_data = url[..end].contains(";base64,") || (url.starts_with("data:image/") && end > MAX_DATA_URL_BYTES);
        out.push_str(before);
        if !is_data {
            out.push_str(&url[..end]);
        }
        rest = &url[end..];
    }
    out.push_str(rest);
    out.into()
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
