//! XML as a stream of elements and words.
//!
//! Names come without their prefix, since each program chooses its prefixes. Nothing recurses, and no tree is built.
//! quick-xml checks that end tags match. An element that is never closed is a fault too, so that a file cut off is noticed.

use std::borrow::Cow;

use html5ever::data::NAMED_ENTITIES;
use quick_xml::{
    Reader,
    events::{BytesStart, Event},
};

/// A fault of the XML itself. The caller knows what the file is called.
#[derive(Debug)]
pub(super) struct NotWellFormed;

/// A part of a file.
#[derive(Debug)]
pub(super) enum Token<'a> {
    Open(Element<'a>),
    /// The name of the element that ends.
    Close(String),
    Words(Cow<'a, str>),
}

/// A start tag. An empty element gives a start tag and an end tag.
#[derive(Debug)]
pub(super) struct Element<'a>(BytesStart<'a>);

impl Element<'_> {
    /// The name without its prefix.
    pub(super) fn name(&self) -> &str {
        self.0.local_name().into_inner()
    }

    /// The name as it is written, for vocabularies whose prefixes are the same everywhere.
    pub(super) fn full_name(&self) -> &str {
        self.0.name().into_inner()
    }

    /// The value of the attribute that is written so, prefix included.
    pub(super) fn get_full(&self, name: &str) -> Option<String> {
        let attribute = self.0.attributes().with_checks(false).flatten().find(|attribute| attribute.key.into_inner() == name)?;
        Some(unescape(&attribute.value))
    }

    /// The value of an attribute, whatever the prefix of its name.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        let attribute = self.0.attributes().with_checks(false).flatten().find(|attribute| {
            attribute.key.local_name().into_inner() == name && attribute.key.as_namespace_binding().is_none()
        })?;
        Some(unescape(&attribute.value))
    }
}

/// Parts of an XML file, in order.
pub(super) struct Xml<'a> {
    reader: Reader<&'a [u8]>,
    depth: usize,
}

impl<'a> Xml<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let mut reader = Reader::from_str(text.trim_start());
        reader.config_mut().expand_empty_elements = true;
        Self { reader, depth: 0 }
    }

    /// The next part; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Token<'a>>, NotWellFormed> {
        loop {
            return Ok(Some(match self.reader.read_event().map_err(|_| NotWellFormed)? {
                Event::Start(start) => {
                    self.depth += 1;
                    Token::Open(Element(start))
                }
                Event::End(end) => {
                    self.depth = self.depth.saturating_sub(1);
                    Token::Close(end.local_name().into_inner().to_owned())
                }
                Event::Text(text) => Token::Words(text.into_inner()),
                Event::CData(text) => Token::Words(text.into_inner()),
                Event::GeneralRef(name) => Token::Words(entity(&name).into()),
                Event::Eof if self.depth > 0 => return Err(NotWellFormed),
                Event::Eof => return Ok(None),
                _ => continue,
            }));
        }
    }
}

/// The characters of a reference. An entity that only the document's type declares stays as it was written.
fn entity(name: &str) -> String {
    character(name).unwrap_or_else(|| format!("&{name};"))
}

/// An attribute's value, its references resolved.
fn unescape(raw: &str) -> String {
    let mut parts = raw.split('&');
    let mut value = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(';').and_then(|(name, rest)| Some((character(name)?, rest))) {
            Some((character, rest)) => value.extend([character.as_str(), rest]),
            None => value.extend(["&", part]),
        }
    }
    value
}

/// The characters of `amp`, `#233` or `#xE9`. The named ones are HTML's, XML's own among them.
pub(super) fn character(reference: &str) -> Option<String> {
    if let Some(number) = reference.strip_prefix('#') {
        let code = match number.strip_prefix(['x', 'X']) {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => number.parse(),
        };
        return char::from_u32(code.ok()?).map(String::from);
    }
    let (first, second) = NAMED_ENTITIES.get(format!("{reference};").as_str())?;
    Some([*first, *second].into_iter().filter(|code| *code != 0).filter_map(char::from_u32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and words, one after the other.
    fn told(text: &str) -> Result<String, NotWellFormed> {
        let (mut xml, mut told) = (Xml::new(text), String::new());
        while let Some(token) = xml.next()? {
            match token {
                Token::Open(element) => {
                    let id = element.get("id").map(|id| format!(" {id}")).unwrap_or_default();
                    told.extend(["<", element.name(), &id, ">"]);
                }
                Token::Close(name) => told.extend(["</", &name, ">"]),
                Token::Words(words) => told += &words,
            }
        }
        Ok(told)
    }

    #[test]
    fn prefixes_go_and_references_are_resolved() {
        let text = "<?xml version='1.0'?><!DOCTYPE a><o:a xmlns:o='x' xmlns:id='y' o:id='1 &lt; &#50;'><o:b/>&amp;&nbsp;&eacute;&#x41;\
            &other;<![CDATA[<c>]]></o:a>";
        assert_eq!(told(text).unwrap(), "<a 1 < 2><b></b>&\u{A0}éA&other;<c></a>");
    }

    #[test]
    fn faults_are_noticed() {
        for text in ["<a>", "<a><b></a></b>", "<a>x</a", "</a>"] {
            assert!(told(text).is_err(), "{text}");
        }
        assert_eq!(told("").unwrap(), "");
    }
}
