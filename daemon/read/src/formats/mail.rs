//! Mail (EML) and saved pages (MHTML) to Markdown: the body, the attachments that can be read, and none of the MIME around them.

use mail_parser::{Address, Message, MessageParser, MimeHeaders, PartType};

use super::{Fault, Parsed, Reader, html, markdown, one_line};
use crate::{Original, media::format_of};

/// Deepest nesting of forwarded mails, and most attachments that are read.
const MAX_DEPTH: usize = 4;
const MAX_ATTACHMENTS: usize = 100;

/// Most names in the note on attachments that are not read.
const MAX_NAMED: usize = 5;

/// Most characters of the whole text.
const MAX_TEXT_BYTES: usize = 30 << 20;

/// Bytes from the start in which the header is looked for.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Whether a text begins with the header of a mail that has a MIME type.
pub(super) fn is_mail(bytes: &[u8]) -> bool {
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_HEAD_BYTES)]).to_ascii_lowercase();
    let is_field = |line: &str| {
        line.starts_with([' ', '\t'])
            || line.split_once(':').is_some_and(|(name, _)| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'))
    };
    let header = || head.lines().take_while(|line| !line.is_empty());
    header().all(is_field)
        && header().any(|line| line.starts_with("mime-version:"))
        && header().any(|line| line.starts_with("content-type:"))
}

/// Reads a mail or a saved page.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, Fault> {
    let message = MessageParser::default().parse(bytes).ok_or_else(|| Fault::Damaged("it is not a mail".into()))?;
    let mut letter = Letter::default();
    letter.add(&message, 0)?;
    let note = (!letter.unread.is_empty()).then(|| {
        let more = letter.unread.len().saturating_sub(MAX_NAMED);
        let named = letter.unread[..letter.unread.len() - more].join(", ");
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("attachments not read: {named}{more}")
    });
    Ok(Parsed { title: message.subject().map(one_line), text: letter.text, note })
}

#[derive(Default)]
struct Letter {
    text: String,
    unread: Vec<String>,
    attachments: usize,
}

impl Letter {
    fn add(&mut self, message: &Message, depth: usize) -> Result<(), Fault> {
        let is_page = message.content_type().is_some_and(|kind| kind.c_subtype.as_deref() == Some("related"));
        // A saved page has no sender but the browser.
        let has_sender = message.from().and_then(Address::first).is_some_and(|sender| sender.address().is_some());
        if has_sender && !(is_page && message.to().is_none()) {
            let people = |address: Option<&Address>| {
                let names = address.into_iter().flat_map(Address::iter).take(20);
                names.filter_map(|person| person.name().or_else(|| person.address())).map(one_line).collect::<Vec<_>>().join(", ")
            };
            let mut lines = Vec::new();
            for (name, value) in [
                ("From", people(message.from())),
                ("To", people(message.to())),
                ("Date", message.date().map(mail_parser::DateTime::to_rfc3339).unwrap_or_default()),
            ] {
                if !value.is_empty() {
                    lines.push(format!("{name}: {value}"));
                }
            }
            self.block(&lines.join("\n"));
        }
        for part in message.html_bodies() {
            self.part(&part.body)?;
        }
        for part in message.attachments() {
            self.attachments += 1;
            if self.attachments > MAX_ATTACHMENTS {
                break;
            }
            let name = part.attachment_name().map(one_line).unwrap_or_default();
            match &part.body {
                PartType::Message(inner) if depth < MAX_DEPTH => {
                    let subject = inner.subject().map(one_line).unwrap_or_default();
                    self.heading(&subject);
                    self.add(inner, depth + 1)?;
                }
                body @ (PartType::Text(_) | PartType::Html(_)) => {
                    self.heading(&name);
                    self.part(body)?;
                }
                PartType::Binary(bytes) | PartType::InlineBinary(bytes) => self.attachment(&name, bytes),
                PartType::Message(_) | PartType::Multipart(_) => {}
            }
        }
        Ok(())
    }

    fn part(&mut self, body: &PartType) -> Result<(), Fault> {
        match body {
            PartType::Html(page) => {
                let page = html::to_markdown(page)?;
                self.block(&page.text);
            }
            PartType::Text(text) => {
                let lines =
                    text.lines().map(|line| if markdown::reads_as_markup(line) { format!("\\{line}") } else { line.to_owned() });
                let text: Vec<String> = lines.collect();
                self.block(&text.join("\n"));
            }
            _ => {}
        }
        if self.text.len() > MAX_TEXT_BYTES {
            return Err(Fault::Damaged("it unfolds into more text than a library holds".into()));
        }
        Ok(())
    }

    /// An attachment of a format that is read becomes a section.
    fn attachment(&mut self, name: &str, bytes: &[u8]) {
        let format = format_of(Original { id: name, name, bytes, ..Original::default() });
        let read = format
            .ok()
            .filter(|format| matches!(format.reader, Reader::Confined(_)) && format.media_type != super::MAIL.media_type);
        let read = read.and_then(|format| format.parse(bytes.to_vec()).ok()).filter(|parsed| !parsed.text.trim().is_empty());
        match read {
            Some(parsed) if self.text.len() + parsed.text.len() <= MAX_TEXT_BYTES => {
                self.heading(name);
                self.block(&parsed.text.replace('\u{0C}', "\n"));
            }
            // Pictures inside a page have no name.
            _ if !name.is_empty() => self.unread.push(name.to_owned()),
            _ => {}
        }
    }

    fn heading(&mut self, words: &str) {
        if !words.is_empty() {
            self.block(&format!("## {words}"));
        }
    }

    fn block(&mut self, text: &str) {
        let text = text.trim();
        if !text.is_empty() {
            self.text.push_str(text);
            self.text.push_str("\n\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::{MAIL, example};

    fn reading(name: &str, bytes: &[u8]) -> crate::Reading {
        crate::read(Original { id: name, bytes, ..Original::default() }).unwrap()
    }

    #[test]
    fn given_mails_and_pages_are_read_without_mime() {
        let mail = reading("a.eml", &example("office/a.eml"));
        assert_eq!(mail.title, "Key");
        assert_eq!(mail.text, "From: a@example.org\nTo: b@example.org\n\nDer Schlüssel liegt im Schrank.\n\n");
        for name in ["saved.mhtml", "page"] {
            let page = reading(name, &example("office/saved.mhtml"));
            assert_eq!((page.title.as_str(), page.format), ("Boiler", &MAIL));
            assert_eq!(page.text, "# Resetting the boiler\n\nHold the red button for seven seconds.\n\n");
        }
    }

    #[test]
    fn attachments_are_read_or_named() {
        let docx = "UEsDBAo=";
        let mail = format!(
            "From: A <a@x.org>\r\nSubject: =?utf-8?Q?Schl=C3=BCssel?=\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n\
             --b\r\nContent-Type: multipart/alternative; boundary=c\r\n\r\n--c\r\nContent-Type: text/plain\r\n\r\nplain\r\n--c\r\n\
             Content-Type: text/html; charset=iso-8859-2\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n<p>Ci=B6nienie</p>\r\n--c--\r\n\
             --b\r\nContent-Type: application/zip\r\nContent-Disposition: attachment; filename=a.docx\r\nContent-Transfer-Encoding: base64\r\n\r\n{docx}\r\n\
             --b\r\nContent-Type: application/rtf\r\nContent-Disposition: attachment; filename=b.rtf\r\n\r\n{{\\rtf1 A note.}}\r\n\
             --b\r\nContent-Type: message/rfc822\r\n\r\nSubject: Inner\r\n\r\ninner text\r\n--b--\r\n"
        );
        let read = reading("a.eml", mail.as_bytes());
        assert_eq!(read.title, "Schlüssel");
        assert_eq!(read.text, "From: A\n\nCiśnienie\n\n## b.rtf\n\nA note.\n\n## Inner\n\ninner text\n\n");
        assert_eq!(read.note.as_deref(), Some("attachments not read: a.docx"));
        for end in 0..mail.len() {
            let _ = parse(&mail.as_bytes()[..end]);
        }
    }

    #[test]
    fn text_about_mail_is_no_mail() {
        assert!(!is_mail(b"MIME-Version: 1.0 is a header.\nContent-Type: another\nA sentence.\n"));
        assert!(is_mail(b"MIME-Version: 1.0\nContent-Type: text/plain\n\nA sentence.\n"));
    }
}
