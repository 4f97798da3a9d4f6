//! Text that needs little conversion: plain text, and Markdown with its front matter.

use std::{borrow::Cow, collections::HashSet};

use super::{Fault, Parsed, html};

/// A `data:` URL of more bytes is a picture or the like, not an example of one.
const MAX_DATA_URL_BYTES: usize = 64;

/// Front matter is looked for in this many bytes from the start.
const MAX_FRONT_MATTER_BYTES: usize = 64 * 1024;

/// Plain text.
#[allow(clippy::unnecessary_wraps, reason = "the signature of all readers")]
pub(super) fn plain(text: &str) -> Result<Parsed, Fault> {
    Ok(Parsed { title: None, text: joined_words(&without_data_urls(text)), note: None })
}

/// Markdown: the title of the front matter, and the text behind it.
#[allow(clippy::unnecessary_wraps, reason = "the signature of all readers")]
pub(super) fn markdown(text: &str) -> Result<Parsed, Fault> {
    let (title, body) = front_matter(text);
    Ok(Parsed { title, text: with_markdown_tables(&without_data_urls(body)), note: None })
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
    if !text.contains(['\r', '\0', SOFT_HYPHEN]) {
        return text.to_owned();
    }
    text.replace("\r\n", "\n").replace('\r', "\n").replace("\u{AD}\n", "").replace(['\0', SOFT_HYPHEN], "")
}

/// Shown only where a line ends.
const SOFT_HYPHEN: char = '\u{AD}';

/// Words behind which a hyphen at the end of the line before stands for the rest of a word: `Strom- und Wasser`.
const CONJUNCTIONS: [&str; 24] = [
    "und", "oder", "bzw", "sowie", "wie", "als", "bis", "and", "or", "to", "et", "ou", "y", "o", "e", "i", "en", "of", "och",
    "eller", "og", "ed", "и", "или",
];

/// Most different words remembered.
const MAX_WORDS: usize = 500_000;

/// Plain text whose words are whole again where a line end divided them. Text in columns stays as it is.
fn joined_words(text: &str) -> String {
    let divides = |line: &str| {
        let word = line.strip_suffix('-').unwrap_or_default();
        word.ends_with(char::is_alphabetic) && !in_columns(line)
    };
    if !text.lines().any(divides) {
        return text.to_owned();
    }
    let core = |word: &str| word.trim_matches(|char: char| !char.is_alphanumeric()).to_lowercase();
    let words: HashSet<String> =
        text.split_whitespace().map(core).filter(|word| word.chars().count() > 3).take(MAX_WORDS).collect();
    let mut out = String::with_capacity(text.len());
    let mut lines = text.split_inclusive('\n').peekable();
    while let Some(line) = lines.next() {
        let body = line.trim_end_matches('\n');
        let next = lines.peek().map_or("", |next| next.trim_end_matches('\n'));
        let first = next.split_whitespace().next().unwrap_or("");
        let is_word = divides(body) && first.starts_with(char::is_alphabetic) && !in_columns(next);
        if !is_word || CONJUNCTIONS.contains(&core(first).as_str()) {
            out.push_str(line);
            continue;
        }
        let last = body.split_whitespace().next_back().unwrap_or("").trim_end_matches('-');
        let whole = words.contains(&core(&format!("{last}{first}")));
        let hyphenated = words.contains(&core(&format!("{last}-{first}")));
        // A capital begins a word of its own: `Nord-Süd-Verbindung`.
        let keeps = !whole && (hyphenated || first.starts_with(char::is_uppercase) || last.contains('-'));
        out.push_str(if keeps { body } else { &body[..body.len() - 1] });
        // The next line goes on without its indentation.
        if let Some(next) = lines.peek() {
            let indented = next.len() - next.trim_start().len();
            if indented > 0 {
                let rest = &next[indented..];
                out.push_str(rest);
                lines.next();
            }
        }
    }
    out
}

fn in_columns(line: &str) -> bool {
    line.trim().contains("   ") || line.trim().contains('\t')
}

/// Markdown whose tables in HTML are tables in Markdown. Code stays as it is, and so does a table that never ends.
fn with_markdown_tables(text: &str) -> String {
    let opens = |line: &str| line.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("<table"));
    if !text.lines().any(|line| opens(line.trim_start())) {
        return text.to_owned();
    }
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let (mut out, mut at, mut fence) = (String::with_capacity(text.len()), 0, None::<&str>);
    // Without an end behind it, no table is looked for again.
    let mut last_end = lines.iter().rposition(|line| line.to_ascii_lowercase().contains("</table>"));
    while at < lines.len() {
        let line = lines[at].trim_start();
        let mark = ["```", "~~~"].into_iter().find(|mark| line.starts_with(mark));
        match (fence, mark) {
            (None, Some(mark)) => fence = Some(mark),
            (Some(open), Some(mark)) if open == mark => fence = None,
            _ => {}
        }
        if fence.is_none() && opens(line) && last_end.is_some_and(|end| end >= at) {
            let mut depth = 0_usize;
            let end = lines[at..].iter().position(|line| {
                let line = line.to_ascii_lowercase();
                depth += line.matches("<table").count();
                depth = depth.saturating_sub(line.matches("</table>").count());
                depth == 0
            });
            match end.map(|end| html::to_markdown(&lines[at..=at + end].concat())) {
                Some(Ok(table)) => {
                    out.extend(["\n", table.text.trim_end(), "\n\n"]);
                    at += end.unwrap_or(0) + 1;
                    continue;
                }
                _ => last_end = None,
            }
        }
        out.push_str(lines[at]);
        at += 1;
    }
    out
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

#[cfg(test)]
mod tests {
    use super::*;

    fn plain_text(text: &str) -> String {
        plain(&unix_lines(text)).unwrap().text
    }

    fn markdown_text(text: &str) -> String {
        markdown(&unix_lines(text)).unwrap().text
    }

    #[test]
    fn words_that_a_line_end_divides_are_whole() {
        let given = String::from_utf8(crate::formats::example("text/hyphen-lines.txt")).unwrap();
        assert_eq!(plain_text(&given), "Die Heizungspumpe und die Ein- und\nAusgabe der Nord-Süd-Verbindung sind in Ordnung.\n"); // typos: ignore
        assert_eq!(plain_text("Strom-\nund Wasser"), "Strom-\nund Wasser");
        assert_eq!(plain_text("well-known; a well-\nknown pump"), "well-known; a well-known pump");
        assert_eq!(plain_text("Hei\u{AD}zung, Pum\u{AD}\npe"), "Heizung, Pumpe");
        assert_eq!(plain_text("   The man-\n   ual of the"), "   The manual of the");
        for kept in ["a   b-\nc", "range 5-\n7", "--flag-\n\nnext", "a -\nb", "tab\tx-\ny"] {
            assert_eq!(plain_text(kept), kept);
        }
    }

    #[test]
    fn pictures_are_no_text() {
        let picture = format!("data:image/png;base64,{}", "iVBORw0KGgo".repeat(1000));
        assert_eq!(
            markdown_text(&format!("a ![lamp]({picture}) b\n\n[1]: {picture}\n<img src=\"{picture}\">")),
            "a ![lamp]() b\n\n[1]: \n<img src=\"\">"
        );
        assert_eq!(plain_text(&format!("x {picture}\ny")), "x \ny");
        for kept in ["data: 5 bytes; base64, and so on", "`data:image/png`", "see data:text/plain;base64"] {
            assert_eq!(markdown_text(kept), kept);
        }
    }

    #[test]
    fn tables_in_html_become_markdown() {
        let table = "<table>\n<tr><th>Code</th><th>Cause</th></tr>\n\n<tr><td>E-17</td><td>low</td></tr>\n</table>";
        assert_eq!(markdown_text(&format!("a\n\n{table}\nb\n")), "a\n\n\n| Code | Cause |\n|---|---|\n| E-17 | low |\n\nb\n");
        let code = format!("```\n{table}\n```\n");
        assert_eq!(markdown_text(&code), code);
        let open = "<table>\n<tr>".repeat(5000);
        assert_eq!(markdown_text(&open), open);
    }
}
