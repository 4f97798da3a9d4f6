//! Readers: every kind of document becomes one form, a title and text.

use super::{
    IngestError, Source,
    child::{self, refused},
    formats::{Format, Parsed, decode, html},
    media::{MediaType, media_type},
    one_line, outline, shortened,
};

/// Longest title kept, in characters.
pub(crate) const MAX_TITLE_CHARS: usize = 160;

/// Front matter is looked for in this many bytes from the start.
const MAX_FRONT_MATTER_BYTES: usize = 64 * 1024;

/// How the text of a [`Reading`] is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// CommonMark with tables: headings make sections. From a PDF, form feeds part pages.
    Markdown,
    /// Paragraphs between blank lines; form feeds part pages, as `pdftotext` writes them.
    Plain,
}

/// A document that has been read.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The sender's title, else the document's own (front matter, `<title>`, first heading), else the file's name.
    pub title: String,
    /// The text, lines ended by `\n`.
    pub text: String,
    /// Whether the text has Markdown's structure.
    pub form: Form,
    /// What the source was.
    pub media_type: MediaType,
    /// Something its owner should know, such as a guessed encoding.
    pub note: Option<String>,
}

/// Reads a document: media type, decoding, conversion, title.
///
/// # Errors
/// [`IngestError::Binary`], [`IngestError::Convert`], [`IngestError::Empty`], and what the readers find wrong.
pub fn read(source: &Source) -> Result<Reading, IngestError> {
    let media_type = media_type(source)?;
    let (own_title, text, form, note) = match media_type {
        MediaType::PlainText | MediaType::Markdown | MediaType::Html => read_text(source, media_type)?,
        MediaType::Pdf | MediaType::Epub => {
            let format = if media_type == MediaType::Pdf { Format::Pdf } else { Format::Epub };
            let Parsed { title, text, note } = child::read(&source.id, format, &source.bytes)?;
            (title, text, Form::Markdown, note)
        }
    };
    if text.trim().is_empty() {
        return Err(IngestError::Empty { id: source.id.clone() });
    }
    let title = given_title(source)
        .or_else(|| own_title.map(|title| one_line(&title)).filter(|title| !title.is_empty()))
        .or_else(|| (form == Form::Markdown).then(|| outline::first_heading(&text)).flatten())
        .unwrap_or_else(|| name_of(source));
    Ok(Reading { title: shortened(&title, MAX_TITLE_CHARS).into_owned(), text, form, media_type, note })
}

/// The title that the sender gave, as it is kept.
pub(super) fn given_title(source: &Source) -> Option<String> {
    let title = one_line(source.title.as_deref()?);
    (!title.is_empty()).then(|| shortened(&title, MAX_TITLE_CHARS).into_owned())
}

/// What is text as it stands: title, text, form and note.
fn read_text(source: &Source, media_type: MediaType) -> Result<(Option<String>, String, Form, Option<String>), IngestError> {
    let (decoded, note) = decode(&source.bytes);
    let decoded = unix_lines(&decoded);
    Ok(match media_type {
        MediaType::Markdown => {
            let (title, body) = front_matter(&decoded);
            (title, body.to_owned(), Form::Markdown, note)
        }
        MediaType::Html => {
            let page = html::to_markdown(&decoded).map_err(|fault| refused(&source.id, fault))?;
            (page.title, page.text, Form::Markdown, note)
        }
        _ => (None, decoded, Form::Plain, note),
    })
}

/// One kind of line end, and no zero characters.
fn unix_lines(text: &str) -> String {
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

/// The last part of the name, or of the id, without its extension.
fn name_of(source: &Source) -> String {
    let name = if source.name.trim().is_empty() { &source.id } else { &source.name };
    let last = name.rsplit(['/', '\\']).next().unwrap_or(name);
    let stem = last.rsplit_once('.').map_or(last, |(stem, _)| if stem.is_empty() { last } else { stem });
    one_line(stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(name: &str, text: &str) -> Reading {
        read(&source(name, text)).unwrap()
    }

    fn source(name: &str, text: &str) -> Source {
        Source { id: format!("folder/{name}"), name: name.into(), bytes: text.into(), ..Source::default() }
    }

    #[test]
    fn titles_come_from_the_best_source() {
        assert_eq!(reading("a.md", "---\nlang: en\ntitle: \"The pump\"\n---\n# Other\n").title, "The pump");
        assert_eq!(reading("a.md", "+++\ntitle = 'The pump'\n+++\ntext\n").title, "The pump");
        assert_eq!(reading("a.md", "intro\n\n# The *big*\tpump #\n").title, "The big pump");
        assert_eq!(reading("a.md", "The pump\n========\ntext").title, "The pump");
        assert_eq!(reading("Pump manual.v2.txt", "# no heading here").title, "Pump manual.v2");
        assert_eq!(reading("a.html", "<title>The\n pump</title><h1>Other</h1><p>x").title, "The pump");
        assert_eq!(reading("a.html", "<h1>Other</h1><p>x").title, "Other");
        let given = Source { title: Some(" Mine ".into()), ..source("a.md", "# Own") };
        assert_eq!(read(&given).unwrap().title, "Mine");
        assert_eq!(reading("a.md", &format!("# {}", "x".repeat(500))).title.chars().count(), MAX_TITLE_CHARS + 1);
    }

    #[test]
    fn front_matter_is_not_text() {
        assert_eq!(reading("a.md", "---\r\ntitle: x\r\n---\r\nbody\r\n").text, "body\n");
        assert_eq!(reading("a.md", "---\nno end\n").text, "---\nno end\n");
    }

    #[test]
    fn nothing_to_read_is_an_error() {
        for (name, text) in [("a.txt", " \n\t"), ("a.html", "<script>x</script><nav>menu</nav>"), ("a.md", "")] {
            assert!(matches!(read(&source(name, text)), Err(IngestError::Empty { .. })), "{name}");
        }
    }

    #[test]
    fn a_guessed_encoding_is_said() {
        let latin = Source { bytes: b"f\xFCnf".to_vec(), ..source("a.txt", "") };
        let reading = read(&latin).unwrap();
        assert_eq!(reading.text, "fünf");
        assert!(reading.note.is_some());
    }
}
