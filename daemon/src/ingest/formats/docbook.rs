//! `DocBook` 4 and 5 becomes Markdown: its elements are told to the writer of the HTML reader under HTML's names.
//!
//! As there, no tree is built: beside the text there is a stack of the names of open elements, which says what a `<title>` is the
//! title of. Entities that the document declares itself are put in; files beside it are not read.

use std::{cell::RefCell, collections::HashMap};

use html5ever::tokenizer::{Tag, TagKind, Token, TokenSink, TokenSinkResult};

use super::{Fault, Parsed, html, one_line};

/// Bytes from the start in which the document's type and its entities stand.
const MAX_PROLOG_BYTES: usize = 64 * 1024;

/// Longest text of an entity, and most bytes that entities add to a document.
const MAX_ENTITY_BYTES: usize = 1024;
const MAX_ADDED_BYTES: usize = 4 << 20;

/// Elements a document can be made of.
const ROOTS: &[&str] = &[
    "book",
    "article",
    "chapter",
    "section",
    "refentry",
    "part",
    "appendix",
    "preface",
    "set",
    "reference",
    "sect1",
    "glossary",
    "topic",
    "refsect1",
];

/// Whether the root of an XML file, given by its beginning, is one of `DocBook`'s.
pub(crate) fn is_docbook(head: &str) -> bool {
    let prolog = Prolog::new(head);
    let root = &head[prolog.end..];
    let name = root.strip_prefix('<').unwrap_or("").split(|char: char| char.is_whitespace() || matches!(char, '>' | '/')).next();
    let name = name.unwrap_or("").rsplit(':').next().unwrap_or("").to_ascii_lowercase();
    let tag = root.split('>').next().unwrap_or("");
    // A part of a document in a file of its own has no type; these names are `DocBook`'s alone.
    matches!(name.as_str(), "refentry" | "sect1" | "refsect1")
        || ROOTS.contains(&name.as_str())
            && (prolog.doctype.to_ascii_lowercase().contains("docbook") || tag.contains("docbook.org/ns/docbook"))
}

/// Converts a document; its title is that of its root.
pub(crate) fn to_markdown(xml: &str) -> Result<Parsed, Fault> {
    let prolog = Prolog::new(xml);
    let body = prolog.put_in(&xml[prolog.end..]);
    let sink = html::tokenize(&body, Sink(RefCell::default()))?;
    let Reader { writer, title, elsewhere, .. } = sink.0.into_inner();
    let note = elsewhere.then(|| "parts of it stand in other files (xi:include), which were not read".into());
    Ok(Parsed { title: title.map(|title| one_line(&title)).filter(|title| !title.is_empty()), note, ..writer.finish() })
}

/// What stands before the root.
struct Prolog<'a> {
    doctype: &'a str,
    /// Where the root begins.
    end: usize,
}

impl<'a> Prolog<'a> {
    fn new(xml: &'a str) -> Self {
        let mut prolog = Self { doctype: "", end: 0 };
        loop {
            let rest = &xml[prolog.end..];
            let blank = rest.len() - rest.trim_start().len();
            let rest = rest.trim_start();
            let length = if rest.starts_with("<?") {
                rest.find("?>").map(|at| at + 2)
            } else if rest.starts_with("<!--") {
                rest.find("-->").map(|at| at + 3)
            } else if rest.get(..9).is_some_and(|word| word.eq_ignore_ascii_case("<!DOCTYPE")) {
                let plain = rest.find('>').unwrap_or(rest.len());
                let subset = rest[..plain].find('[').and_then(|open| Some(open + rest[open..].find("]>")? + 2));
                let length = subset.or(Some((plain + 1).min(rest.len())));
                prolog.doctype = &rest[..length.unwrap_or(0)];
                length
            } else {
                None
            };
            prolog.end += blank;
            match length {
                Some(length) if prolog.end < MAX_PROLOG_BYTES => prolog.end += length,
                _ => return prolog,
            }
        }
    }

    /// `body` with the entities of the document's own, which are not looked for in one another.
    fn put_in(&self, body: &str) -> String {
        let declared = self.doctype.split("<!ENTITY").skip(1).filter_map(|entity| {
            let (name, value) = entity.trim_start().split_once(char::is_whitespace)?;
            let value = value.trim_start();
            let quote = value.chars().next().filter(|char| matches!(char, '"' | '\''))?;
            let value = value[1..].split(quote).next()?;
            (value.len() <= MAX_ENTITY_BYTES).then_some((name, value))
        });
        let entities: HashMap<&str, &str> = declared.collect();
        let mut parts = body.split('&');
        let mut text = String::with_capacity(body.len());
        text.push_str(parts.next().unwrap_or(""));
        let mut left = MAX_ADDED_BYTES;
        for part in parts {
            // No name is that long; looking further would read the rest anew at each ampersand.
            let name = part.bytes().take(64).position(|byte| byte == b';').map_or("", |end| &part[..end]);
            match entities.get(name).filter(|value| value.len() <= left) {
                Some(value) => {
                    left -= value.len();
                    text.push_str(value);
                    text.push_str(&part[name.len() + 1..]);
                }
                None => {
                    text.push('&');
                    text.push_str(part);
                }
            }
        }
        text
    }
}

struct Sink(RefCell<Reader>);

impl TokenSink for Sink {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        let mut reader = self.0.borrow_mut();
        match token {
            Token::CharacterTokens(text) => reader.words(&text),
            Token::TagToken(tag) => {
                let name = tag.name.rsplit(':').next().unwrap_or("");
                if tag.kind == TagKind::StartTag {
                    reader.elsewhere |= &*tag.name == "xi:include";
                    reader.open(name, &tag);
                }
                if tag.kind == TagKind::EndTag || tag.self_closing {
                    reader.close(name);
                }
            }
            _ => {}
        }
        TokenSinkResult::Continue
    }

    /// XML has CDATA everywhere.
    fn adjusted_current_node_present_but_not_in_html_namespace(&self) -> bool {
        true
    }
}

#[derive(Default)]
struct Reader {
    writer: html::Writer,
    /// Open elements: what the element is, and what HTML calls it.
    open: Vec<(String, &'static str)>,
    /// How many of them are sections.
    depth: usize,
    title: Option<String>,
    /// Inside the root's title.
    in_title: bool,
    /// Stands before the next words: what kind of note they are.
    announced: &'static str,
    elsewhere: bool,
}

impl Reader {
    fn words(&mut self, words: &str) {
        if self.in_title
            && let Some(title) = &mut self.title
            && title.len() < 4096
        {
            title.push_str(words);
        }
        // Blanks between keys and menus are for who reads the XML.
        if words.trim().is_empty() && self.open.last().is_some_and(|(name, _)| matches!(name.as_str(), "menuchoice" | "keycombo"))
        {
            return;
        }
        if !self.announced.is_empty() && !words.trim().is_empty() {
            self.writer.words(std::mem::take(&mut self.announced));
        }
        self.writer.words(words);
    }

    fn open(&mut self, name: &str, tag: &Tag) {
        // Both look near by only: time stays in proportion to the document.
        let parent = self.open.iter().rev().take(4).map(|(name, _)| name.as_str()).find(|name| !is_info(name)).unwrap_or("");
        let in_info = self.open.last().is_some_and(|(name, _)| is_info(name));
        self.depth += usize::from(is_section(name));
        let html = match name {
            "title" if is_section(parent) => {
                self.in_title = self.title.is_none();
                self.title.get_or_insert_default();
                ["h1", "h2", "h3", "h4", "h5", "h6"][self.depth.clamp(1, 6) - 1]
            }
            "title" if parent.ends_with("table") => "caption",
            "title" if note_kind(parent).is_some() => "p",
            // They announce what follows.
            "title" => "dt",
            _ if in_info && !matches!(name, "abstract" | "subtitle") && !is_info(name) => "template",
            "listitem" if parent == "varlistentry" => "dd",
            "entry" if self.open.iter().rev().take(8).any(|(name, _)| name == "thead") => "th",
            "footnote" => "small",
            // A footnote stands within the sentence.
            "para" | "simpara" if parent == "footnote" => "span",
            name => html_name(name),
        };
        if let Some(kind) = note_kind(name) {
            self.announced = kind;
        }
        match name {
            "refpurpose" => self.writer.words(" – "),
            "footnote" => self.writer.words(" ("),
            "quote" => self.writer.words("“"),
            "guimenuitem" | "guisubmenu" | "guimenu" if parent == "menuchoice" => self.writer.join(" > "),
            "keycap" | "keysym" if parent == "keycombo" => self.writer.join("+"),
            _ => {}
        }
        self.writer.begin(html, (name == "entry").then(|| attribute(tag, "morerows")).flatten());
        self.open.push((name.to_owned(), html));
    }

    fn close(&mut self, name: &str) {
        // What is closed out of order is looked for near by, so that time stays in proportion to the document.
        let Some(near) = self.open.iter().rev().take(16).position(|(open, _)| open == name) else { return };
        for (name, html) in self.open.drain(self.open.len() - 1 - near..).rev() {
            match name.as_str() {
                "footnote" => self.writer.words(")"),
                "quote" => self.writer.words("”"),
                "title" => self.in_title = false,
                _ => {}
            }
            self.depth -= usize::from(is_section(&name));
            self.writer.close(html);
        }
    }
}

fn attribute(tag: &Tag, name: &str) -> Option<usize> {
    tag.attrs.iter().find(|attribute| &*attribute.name.local == name)?.value.parse().ok()
}

/// Elements whose title is a heading.
fn is_section(name: &str) -> bool {
    ROOTS.contains(&name)
        || matches!(
            name,
            "sect2"
                | "sect3"
                | "sect4"
                | "sect5"
                | "simplesect"
                | "refsection"
                | "refsect2"
                | "refsect3"
                | "refsynopsisdiv"
                | "bibliography"
        )
}

/// Elements that hold what is said about a part: its title is wanted, its authors are not.
fn is_info(name: &str) -> bool {
    name == "info" || name.ends_with("info") && !matches!(name, "classsynopsisinfo" | "funcsynopsisinfo" | "screeninfo")
}

/// What the words of a note begin with.
fn note_kind(name: &str) -> Option<&'static str> {
    Some(match name {
        "note" => "Note: ",
        "warning" => "Warning: ",
        "caution" => "Caution: ",
        "important" => "Important: ",
        "tip" => "Tip: ",
        "danger" => "Danger: ",
        _ => return None,
    })
}

/// What HTML calls an element; what has no counterpart is nothing but its words.
fn html_name(name: &str) -> &'static str {
    match name {
        "itemizedlist" | "simplelist" | "calloutlist" => "ul",
        "orderedlist" | "procedure" | "substeps" => "ol",
        "listitem" | "step" | "member" | "callout" => "li",
        "variablelist" | "glosslist" => "dl",
        "term" | "glossterm" | "bridgehead" | "segtitle" => "dt",
        "glossdef" => "dd",
        "programlisting" | "screen" | "literallayout" | "synopsis" | "address" => "pre",
        "table" | "informaltable" => "table",
        "thead" => "thead",
        "row" | "tr" => "tr",
        "entry" | "td" => "td",
        "th" => "th",
        "superscript" => "sup",
        "sbr" => "br",
        "para" | "simpara" | "formalpara" | "cmdsynopsis" | "refnamediv" | "question" | "answer" | "blockquote" | "example"
        | "informalexample" | "figure" | "informalfigure" | "mediaobject" | "caption" | "subtitle" | "abstract"
        | "glossentry" | "varlistentry" | "funcprototype" | "sidebar" | "epigraph" | "attribution" | "title" | "refsect1"
        | "biblioentry" => "div",
        "indexterm" | "xref" | "remark" | "comment" | "refmeta" | "toc" | "index" | "colspec" | "spanspec" | "imagedata"
        | "revhistory" | "titleabbrev" | "mathphrase" | "math" | "svg" => "template",
        _ if is_section(name) => "section",
        _ if note_kind(name).is_some() => "div",
        _ => "span",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "<?xml version='1.0'?>\n<!-- made by hand -->\n<!DOCTYPE book PUBLIC \"-//OASIS//DTD DocBook XML V4.5//EN\" \"x.dtd\" [\n\
        <!ENTITY pump \"<productname>HP-7</productname>\">\n<!ENTITY other SYSTEM 'other.xml'>\n]>\n";

    #[test]
    fn structure_is_kept_and_what_is_said_about_it_is_not() {
        let page = to_markdown(&(HEAD.to_owned()
            + "<book><bookinfo><title>The &pump;</title><author><firstname>Ann</firstname></author></bookinfo>
               <chapter><title>Faults<indexterm><primary>fault</primary></indexterm></title>
               <para>See <xref linkend='x'/>the <emphasis>list</emphasis>, 5 &lt; 6<footnote><para>not less</para></footnote>.</para>
               <warning><title>Voltage</title><para>Keep off.</para></warning>
               <note><para>It hums.</para></note>
               <section><title>Codes</title>
               <itemizedlist><listitem><para>one</para></listitem><listitem><para>two</para></listitem></itemizedlist>
               <variablelist><varlistentry><term>F3</term><listitem><para>10 A</para></listitem></varlistentry></variablelist>
               <procedure><step><para>Choose <menuchoice><guimenu>File</guimenu><guimenuitem>Save</guimenuitem></menuchoice>.</para></step>
               <step><para>Press <keycombo><keycap>Ctrl</keycap><keycap>S</keycap></keycombo>.</para></step></procedure>
               <screen>a = 1\n  b <![CDATA[< 2]]></screen></section></chapter></book>"))
        .unwrap();
        assert_eq!(page.title.as_deref(), Some("The HP-7"));
        assert_eq!(
            page.text,
            "# The HP-7\n\n## Faults\n\nSee the list, 5 < 6 (not less).\n\nWarning: Voltage\n\nKeep off.\n\nNote: It hums.\n\n### Codes\n\n\
             - one\n- two\n\nF3:\n\n10 A\n\n1. Choose File > Save.\n2. Press Ctrl+S.\n\n```\na = 1\n  b < 2\n```\n"
        );
    }

    #[test]
    fn tables_have_heads_captions_and_tall_cells() {
        let text = to_markdown(
            "<article xmlns='http://docbook.org/ns/docbook'><table><title>Fuses</title><tgroup cols='2'><thead><row><entry>Fuse</entry>
             <entry>Amps</entry></row></thead><tbody><row><entry morerows='1'><para>F1</para></entry><entry>10 A</entry></row>
             <row><entry>16 A</entry></row></tbody></tgroup></table></article>",
        );
        assert_eq!(text.unwrap().text, "Fuses:\n\n| Fuse | Amps |\n|---|---|\n| F1 | 10 A |\n| F1 | 16 A |\n");
    }

    #[test]
    fn the_root_tells() {
        assert!(is_docbook(&(HEAD.to_owned() + "<book>")));
        assert!(is_docbook("<d:article xmlns:d=\"http://docbook.org/ns/docbook\" version='5.0'>"));
        for other in
            ["<html>", "<article>", "<book><title>", "<!DOCTYPE html><article>", "", "<?xml", "<!DOCTYPE book [", "words"]
        {
            assert!(!is_docbook(other), "{other}");
        }
    }

    #[test]
    fn hostile_documents_take_neither_stack_nor_time() {
        let laughs = format!("<!DOCTYPE book [<!ENTITY a \"{}\">]><book>{}", "&a;".repeat(300), "&a;".repeat(100_000));
        assert!(to_markdown(&laughs).unwrap().text.len() < 2 * MAX_ADDED_BYTES);
        for tag in
            ["<section>", "<itemizedlist><listitem>", "<table><tgroup><row><entry>", "<a>", "</a>", "<note>", "<?", "&", "<!--"]
        {
            let text = to_markdown(&("<book>".to_owned() + &tag.repeat(200_000) + "word"));
            assert!(text.is_ok(), "{tag}");
            let _ = to_markdown(&tag.repeat(200_000));
        }
    }
}
