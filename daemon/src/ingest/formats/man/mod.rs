//! Manual pages become Markdown: roff with the macros of man(7) or mdoc(7), line by line.
//!
//! roff is a programming language; a page uses little of it. Headings, paragraphs, tagged items, displays, tables, strings and
//! escapes are understood, of conditions which way a terminal goes; fonts, motions and the macros' own definitions are passed over.
//! What is found is told to the writer of the HTML reader. One pass, no recursion, output in proportion to the input.

mod escapes;
mod mdoc;

use std::{borrow::Cow, collections::HashSet, io::Read};

use flate2::read::MultiGzDecoder;

use self::{escapes::Strings, mdoc::Mdoc};
use super::{Fault, Parsed, html};

/// Most bytes of a page that comes compressed.
const MAX_PAGE_BYTES: usize = 32 << 20;

/// Bytes from the start in which a page shows what it is: some begin with a licence.
const HEAD_BYTES: usize = 64 * 1024;

/// Deepest indentation that is followed.
const MAX_DEPTH: usize = 8;

/// Whether a file, compressed or not, says in its first lines that it is a manual page.
pub(crate) fn is_man_page(bytes: &[u8]) -> bool {
    const FIRST: [&[u8]; 6] = [b".TH ", b".Dd", b".Dt ", b".SH ", b".Sh ", b".so "];
    let mut head = Vec::new();
    let unpacked = if is_gzip(bytes) {
        // What could be unpacked before an error tells enough.
        let _ = MultiGzDecoder::new(bytes).take(HEAD_BYTES as u64).read_to_end(&mut head);
        &head
    } else {
        &bytes[..bytes.len().min(HEAD_BYTES)]
    };
    unpacked.split(|&byte| byte == b'\n').any(|line| FIRST.iter().any(|first| line.starts_with(first)))
}

/// A page's bytes, unpacked if need be.
pub(crate) fn unpack(bytes: &[u8]) -> Result<Cow<'_, [u8]>, Fault> {
    if !is_gzip(bytes) {
        return Ok(bytes.into());
    }
    let mut page = Vec::new();
    let read = MultiGzDecoder::new(bytes).take(MAX_PAGE_BYTES as u64 + 1).read_to_end(&mut page);
    read.map_err(|error| Fault::Damaged(format!("its compression is damaged ({error})")))?;
    if page.len() > MAX_PAGE_BYTES {
        return Err(Fault::Damaged(format!("it unpacks to more than {} MiB", MAX_PAGE_BYTES >> 20)));
    }
    Ok(page.into())
}

fn is_gzip(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1F, 0x8B])
}

/// Converts a page; its title is its name and section, such as `ls(1)`.
pub(crate) fn to_markdown(roff: &str) -> Parsed {
    let mut page = Page::new(roff.len());
    let mut joined = String::new();
    for line in roff.lines() {
        // A backslash at the end goes on in the next line.
        match line.strip_suffix('\\').filter(|line| !line.ends_with('\\')) {
            Some(begun) => joined.push_str(begun),
            None if joined.is_empty() => page.line(line),
            None => {
                joined.push_str(line);
                page.line(&std::mem::take(&mut joined));
            }
        }
    }
    page.line(&joined);
    page.end_display();
    Parsed { title: page.title, ..page.writer.finish() }
}

struct Page {
    writer: html::Writer,
    title: Option<String>,
    strings: Strings,
    mdoc: Mdoc,
    /// Macros that the page defines itself: of what they do only their words are known.
    own_macros: HashSet<String>,
    /// The line that ends what is being passed over.
    skip_to: Option<String>,
    /// Open braces of a branch that is not taken.
    skip_braces: usize,
    /// Whether `.el` is taken.
    otherwise: bool,
    /// By depth of indentation: whether a list is open.
    lists: Vec<bool>,
    /// What the next words are.
    next: Next,
    /// Lines stay as they are.
    display: bool,
    /// Under the heading where each call of a program begins a line.
    in_synopsis: bool,
    table: Option<Table>,
}

#[derive(PartialEq, Eq)]
enum Next {
    Words,
    /// The tag of an item; a further tag of the same.
    Tag,
    OtherTag,
    /// A heading of that level.
    Heading(&'static str),
}

/// A table of tbl(1), while it is being read.
#[expect(clippy::struct_excessive_bools, reason = "each is a question of its own about where in the table a line stands")]
struct Table {
    separator: char,
    /// Lines that say how it looks are still to come.
    in_format: bool,
    /// How many of these have been read.
    formats: usize,
    /// The next row is the first of several formats: it heads the columns.
    head: bool,
    has_rows: bool,
    /// Inside a cell of several lines.
    in_cell: bool,
}

impl Page {
    fn new(bytes: usize) -> Self {
        Self {
            writer: html::Writer::default(),
            title: None,
            strings: Strings::new(bytes),
            mdoc: Mdoc::default(),
            own_macros: HashSet::new(),
            skip_to: None,
            skip_braces: 0,
            otherwise: false,
            lists: vec![false],
            next: Next::Words,
            display: false,
            in_synopsis: false,
            table: None,
        }
    }

    fn line(&mut self, mut line: &str) {
        if let Some(end) = &self.skip_to {
            if line.strip_prefix('.').is_some_and(|rest| rest.trim() == end) {
                self.skip_to = None;
            }
            return;
        }
        if self.skip_braces > 0 {
            self.skip_braces = (self.skip_braces + line.matches("\\{").count()).saturating_sub(line.matches("\\}").count());
            return;
        }
        // A condition is followed by another line, which may be one too.
        for _ in 0..MAX_DEPTH {
            let Some(control) = line.strip_prefix(['.', '\'']) else { break };
            let control = without_comment(control.trim_start());
            let name_ends = control.find(|char: char| char.is_whitespace() || char == '\\').unwrap_or(control.len());
            let (name, rest) = control.split_at(name_ends);
            let holds = match name {
                "if" | "ie" => {
                    let (condition, _) = split_condition(rest);
                    let holds = matches!(condition, "n" | "!t" | "\\n(.g" | "\\n[.g]" | "1");
                    self.otherwise = !holds;
                    holds
                }
                "el" => self.otherwise,
                _ => return self.request(name, rest.trim_start()),
            };
            let branch = if name == "el" { rest } else { split_condition(rest).1 }.trim_start();
            if !holds {
                self.skip_braces = branch.matches("\\{").count().saturating_sub(branch.matches("\\}").count());
                return;
            }
            line = branch.strip_prefix("\\{").unwrap_or(branch).trim_start();
            if line.is_empty() {
                return;
            }
        }
        self.text(line);
    }

    fn text(&mut self, line: &str) {
        if self.table.is_some() {
            return self.table_line(line);
        }
        let line = without_comment(line);
        if line.trim().is_empty() && !self.display {
            return self.paragraph(false);
        }
        if line.starts_with(' ') && self.next == Next::Words && !self.display {
            self.writer.begin("br", None);
        }
        let text = self.strings.decode(line);
        self.emit(&text, line.ends_with("\\c"));
    }

    /// Writes the words of one line.
    fn emit(&mut self, text: &str, joined: bool) {
        match std::mem::replace(&mut self.next, Next::Words) {
            Next::Heading(level) => return self.heading(level, text),
            Next::Tag => return self.item(text),
            Next::OtherTag => self.writer.words(&format!("{}: ", text.trim())),
            Next::Words => self.writer.words(text),
        }
        if !joined {
            self.writer.words(if self.display { "\n" } else { " " });
        }
    }

    fn heading(&mut self, level: &'static str, text: &str) {
        self.end_display();
        self.lists = vec![false];
        self.in_synopsis = text.trim().eq_ignore_ascii_case("synopsis");
        self.writer.begin(level, None);
        self.writer.words(text);
        self.writer.close(level);
    }

    /// A paragraph, `inside` the open item or after the list.
    fn paragraph(&mut self, inside: bool) {
        if self.display {
            return self.writer.words("\n");
        }
        self.next = Next::Words;
        if !inside {
            self.end_list();
        }
        self.writer.begin("p", None);
    }

    /// An item of a list, with what it is called.
    fn item(&mut self, tag: &str) {
        self.end_display();
        self.begin_list();
        self.writer.begin("li", None);
        let tag = tag.trim();
        let is_mark = tag.chars().count() == 1 && !tag.contains(char::is_alphanumeric) || tag == "o";
        let is_number = tag.len() > 1 && tag.trim_matches(['.', '(', ')', '[', ']']).parse::<u8>().is_ok();
        if !tag.is_empty() && !is_mark && !is_number {
            self.writer.words(&format!("{}: ", tag.trim_end_matches(':')));
        }
    }

    fn begin_list(&mut self) {
        if let Some(open) = self.lists.last_mut()
            && !std::mem::replace(open, true)
        {
            self.writer.begin("ul", None);
        }
    }

    fn end_list(&mut self) {
        if let Some(open) = self.lists.last_mut()
            && std::mem::take(open)
        {
            self.writer.close("ul");
        }
    }

    fn indent(&mut self) {
        self.end_display();
        if self.lists.len() < MAX_DEPTH {
            self.lists.push(false);
        }
    }

    fn outdent(&mut self) {
        self.end_display();
        self.end_list();
        if self.lists.len() > 1 {
            self.lists.pop();
        }
    }

    fn begin_display(&mut self) {
        if !std::mem::replace(&mut self.display, true) {
            self.writer.begin("pre", None);
        }
    }

    fn end_display(&mut self) {
        if std::mem::take(&mut self.display) {
            self.writer.close("pre");
        }
    }

    /// Requests of roff and macros of man(7); what is none of them may be one of mdoc(7).
    fn request(&mut self, name: &str, rest: &str) {
        let is_begun = self.next != Next::Words && self.next != Next::Tag;
        match name {
            "de" | "de1" | "am" | "ig" => {
                let mut words = rest.split_whitespace();
                let named = if name == "ig" { None } else { words.next() };
                self.own_macros.extend(named.map(str::to_owned));
                self.skip_to = Some(words.next().unwrap_or(".").to_owned());
            }
            "ds" => self.strings.define(rest),
            "TH" => {
                let words = self.arguments(rest);
                if self.title.is_none() {
                    self.title = title(&words);
                }
            }
            "SH" | "SS" => {
                let level = if name == "SH" { "h1" } else { "h2" };
                if rest.is_empty() {
                    self.next = Next::Heading(level);
                } else {
                    let words = self.arguments(rest).join(" ");
                    self.next = Next::Words;
                    self.heading(level, &words);
                }
            }
            "PP" | "P" | "LP" | "HP" => self.paragraph(false),
            "sp" | "Sp" if is_begun => {}
            "sp" | "Sp" => self.paragraph(true),
            "TP" => self.next = Next::Tag,
            "TQ" => self.next = Next::OtherTag,
            "IP" => match self.arguments(rest).into_iter().next().filter(|tag| !tag.trim().is_empty()) {
                Some(tag) => {
                    self.next = Next::Words;
                    self.item(&tag);
                }
                None => self.paragraph(true),
            },
            "RS" => self.indent(),
            "RE" => self.outdent(),
            "br" if self.next == Next::Words && !self.display => self.writer.begin("br", None),
            "nf" | "EX" | "Vb" => self.begin_display(),
            "fi" | "EE" | "Ve" => self.end_display(),
            "B" | "I" | "SM" | "SB" | "R" | "UR" | "MT" | "ME" | "UE" => self.words(rest, " "),
            "BR" | "RB" | "IR" | "RI" | "BI" | "IB" => self.words(rest, ""),
            "SY" => {
                self.writer.begin("br", None);
                self.words(rest, " ");
            }
            "OP" => {
                let words = self.arguments(rest).join(" ");
                self.emit(&format!("[{words}]"), false);
            }
            "MR" => {
                let words = self.arguments(rest);
                let word = |n: usize| words.get(n).map_or("", String::as_str);
                self.emit(&format!("{}({}){}", word(0), word(1), word(2)), false);
            }
            "TS" => {
                self.end_display();
                self.writer.begin("table", None);
                self.table =
                    Some(Table { separator: '\t', in_format: true, formats: 0, head: false, has_rows: false, in_cell: false });
            }
            "T&" => {
                if let Some(table) = &mut self.table {
                    table.in_format = true;
                }
            }
            "TE" => {
                if self.table.take().is_some() {
                    self.writer.close("table");
                }
            }
            // Macros of pages made from POD that are for an index.
            "IX" => {}
            // Numbers alone are measures.
            name if self.own_macros.contains(name) && !rest.contains(char::is_alphabetic) => {}
            name if self.own_macros.contains(name) => self.words(rest, " "),
            name => self.mdoc_macro(name, rest),
        }
    }

    /// The words of a macro that sets them in one font or in two by turns.
    fn words(&mut self, rest: &str, between: &str) {
        let words = self.arguments(rest);
        // Without any it is about the next line.
        if !words.is_empty() {
            self.emit(&words.join(between), rest.ends_with("\\c"));
        }
    }

    fn arguments(&mut self, rest: &str) -> Vec<String> {
        arguments(rest).into_iter().map(|(argument, _)| self.strings.decode(&argument)).collect()
    }

    fn table_line(&mut self, line: &str) {
        let Some(table) = &mut self.table else { return };
        if table.in_format {
            if line.trim_end().ends_with(';') && table.formats == 0 {
                let tab = line.split_once("tab").and_then(|(_, rest)| rest.trim_start().strip_prefix('(')?.chars().next());
                table.separator = tab.unwrap_or('\t');
            } else {
                table.formats += 1 + line.matches(',').count();
                table.in_format = !line.trim_end().ends_with('.');
                table.head |= table.formats > 1 && !table.has_rows;
            }
            return;
        }
        let mut line = line;
        if table.in_cell {
            let Some(rest) = line.strip_prefix("T}") else {
                let text = self.strings.decode(line);
                return self.writer.words(&format!("{text} "));
            };
            (table.in_cell, line) = (false, rest.strip_prefix(table.separator).unwrap_or(rest));
            if rest.is_empty() {
                return;
            }
        } else if line.trim_matches(['_', '=', ' ']).is_empty() {
            return;
        } else {
            table.has_rows = true;
            self.writer.begin("tr", None);
        }
        let cell = if std::mem::take(&mut table.head) { "th" } else { "td" };
        for part in line.split(table.separator) {
            self.writer.begin(cell, None);
            table.in_cell = part.trim() == "T{";
            if !table.in_cell {
                let text = self.strings.decode(part);
                self.writer.words(&text);
            }
        }
    }
}

/// `ls(1)` from the words of the line that names a page; most write it in capitals.
fn title(words: &[String]) -> Option<String> {
    let name = words.first().filter(|name| !name.is_empty())?;
    let name = if name.len() > 1 && !name.contains(char::is_lowercase) { name.to_lowercase() } else { name.clone() };
    Some(words.get(1).map_or(name.clone(), |section| format!("{name}({section})")))
}

/// `line` up to `\"` or `\#`.
fn without_comment(line: &str) -> &str {
    let is_comment = |&(at, _): &(usize, &str)| line[..at].bytes().rev().take_while(|&byte| byte == b'\\').count() % 2 == 0;
    let ends = line.match_indices("\\\"").chain(line.match_indices("\\#")).filter(is_comment).map(|(at, _)| at).min();
    &line[..ends.unwrap_or(line.len())]
}

/// A condition, and what is done if it holds.
fn split_condition(rest: &str) -> (&str, &str) {
    let rest = rest.trim_start();
    let ends = rest.find(|char: char| char.is_whitespace()).unwrap_or(rest.len());
    // `.if n\{`
    let ends = rest[..ends].find("\\{").unwrap_or(ends);
    rest.split_at(ends)
}

/// The arguments of a macro, and whether each was quoted.
fn arguments(rest: &str) -> Vec<(String, bool)> {
    let mut all = Vec::new();
    let mut chars = rest.chars().peekable();
    while let Some(&first) = chars.peek() {
        if matches!(first, ' ' | '\t') {
            chars.next();
            continue;
        }
        let quoted = first == '"' && chars.next().is_some();
        let mut argument = String::new();
        while let Some(char) = chars.next() {
            match char {
                '"' if quoted && chars.peek() != Some(&'"') => break,
                '"' if quoted => argument.extend(chars.next()),
                ' ' | '\t' if !quoted => break,
                '\\' => {
                    argument.push(char);
                    argument.extend(chars.next());
                }
                char => argument.push(char),
            }
        }
        all.push((argument, quoted));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(roff: &str) -> String {
        to_markdown(roff).text
    }

    #[test]
    fn a_page_for_man_7() {
        let page = to_markdown(
            r#"'\" t
.\" A licence.
.TH PUMP 1 "2024-01-01" "1.2" "User Commands"
.ie \n(.g .ds Aq \(aq
.el       .ds Aq '
.if t \{\
.ft CW
not for terminals
.\}
.de Sp
.sp 0.4v
..
.SH NAME
pump \- move water
.SH SYNOPSIS
.B pump
[\fB\-v\fR]
.I file ...
.SH "THE OPTIONS"
First line
goes on.\" not this
.PP
Second, \*(Aqquoted\*(Aq.
.TP
.BR \-v ", " \-\-verbose
Say more.
.Sp
Twice: even more.
.TP
\fB\-q\fR
Be
.BR quiet .
.RS
.IP \(bu 2
inner
.RE
.IP \-x
x
.SS Example
.nf
pump -v \e
   a
.fi
.ig
nothing
..
after
"#,
        );
        assert_eq!(page.title.as_deref(), Some("pump(1)"));
        assert_eq!(
            page.text,
            "# NAME\n\npump - move water\n\n# SYNOPSIS\n\npump [-v] file ...\n\n# THE OPTIONS\n\nFirst line goes on.\n\nSecond, 'quoted'.\n\n\
             - -v, --verbose: Say more.\n\n  Twice: even more.\n- -q: Be quiet.\n  - inner\n- -x: x\n\n## Example\n\n\
             ```\npump -v \\\n   a\n```\n\nafter\n"
        );
    }

    #[test]
    fn a_page_for_mdoc_7() {
        let page = to_markdown(
            r#".Dd January 1, 2024
.Dt PUMP 8
.Os
.Sh NAME
.Nm pump
.Nd move water
.Sh SYNOPSIS
.Nm
.Op Fl v
.Oo Fl f Ar file Oc
.Nm
.Fl h
.Sh DESCRIPTION
The
.Nm
utility, see
.Xr valve 5 ,
moves
.Dq much water .
.Pp
Options
.Pq "all of them" :
.Bl -tag -width Ds
.It Fl v , Fl -verbose
Say
.Em more .
.It Ev PUMP Ns = Ns Ar n
Number.
.El
.Bd -literal -offset indent
a  b
.Ed
.Ex -std
"#,
        );
        assert_eq!(page.title.as_deref(), Some("pump(8)"));
        assert_eq!(
            page.text,
            "# NAME\n\npump – move water\n\n# SYNOPSIS\n\npump [-v] [-f file]\npump -h\n\n# DESCRIPTION\n\nThe pump utility, see valve(5), \
             moves “much water”.\n\nOptions (all of them):\n\n- -v, --verbose: Say more.\n- PUMP=n: Number.\n\n```\na  b\n```\n\n\
             The pump utility exits 0 on success, and >0 if an error occurs.\n"
        );
    }

    #[test]
    fn tables_of_tbl_keep_their_rows() {
        let roff = ".TS\nallbox tab(:);\nlb lb\nl l.\nCode:Meaning\n_\nE-1:T{\nno\n.B water\nat all\nT}\nE-2:air\n.TE\nend\n";
        assert_eq!(text(roff), "| Code | Meaning |\n|---|---|\n| E-1 | no water at all |\n| E-2 | air |\n\nend\n");
    }

    #[test]
    fn pages_are_known_by_their_macros_also_compressed() {
        use std::io::Write as _;
        let page = b".\\\" x\n.TH LS 1\n.SH NAME\nls\n";
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(page).unwrap();
        let packed = packed.finish().unwrap();
        assert!(is_man_page(page) && is_man_page(&packed) && !is_man_page(b"12:01 started\n") && !is_man_page(&packed[..12]));
        assert_eq!(unpack(&packed).unwrap(), &page[..]);
        assert!(matches!(unpack(&packed[..20]), Err(Fault::Damaged(_))));
    }

    #[test]
    fn hostile_pages_take_neither_stack_nor_time() {
        let parts = [
            ".if n .if n ",
            ".RS\n",
            ".Bl -tag\n.It x\n",
            ".de\n",
            ".TS\n",
            ".TP\n",
            ".if t \\{\n",
            ".Op Op ",
            "\\*(",
            "\\[",
            "\\\"",
            ".nf\n.SH\n",
            ".SH \"",
            "\\\n",
            ".TS\nl.\nT{\n",
            ".Nm x\n.Nm\n",
            ".Fo a b\n",
        ];
        for part in parts {
            let page = format!(".TH A 1\n{}", part.repeat(200_000));
            assert!(text(&page).len() < 4 * page.len(), "{part:?}");
        }
    }
}
