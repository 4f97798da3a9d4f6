//! Macros of mdoc(7), which say what words are in place of how they look.

use super::{Next, Page, arguments, title};

/// Longest name of a page that is put in where it is meant.
const MAX_NAME_BYTES: usize = 128;

/// What is known of a page in mdoc(7).
#[derive(Default)]
pub(super) struct Mdoc {
    /// What the page is about: `.Nm` alone.
    name: String,
    /// Open lists: whether their items have tags.
    lists: Vec<bool>,
}

/// Macros whose words stand in quotes or brackets to the end of the line, with those that open and close them over several lines.
const ENCLOSURES: [Enclosure; 9] = [
    ("Op", "Oo", "Oc", "[", "]"),
    ("Pq", "Po", "Pc", "(", ")"),
    ("Dq", "Do", "Dc", "“", "”"),
    ("Qq", "Qo", "Qc", "\"", "\""),
    ("Sq", "So", "Sc", "‘", "’"),
    ("Ql", "", "", "‘", "’"),
    ("Bq", "Bo", "Bc", "[", "]"),
    ("Brq", "Bro", "Brc", "{", "}"),
    ("Aq", "Ao", "Ac", "<", ">"),
];

/// Macros that can stand among the words of another one, beside the enclosures; most only choose a font.
const CALLABLE: &[&str] = &[
    "Ad", "An", "Ap", "Ar", "At", "Bsx", "Bx", "Cd", "Cm", "Dv", "Dx", "Em", "Er", "Ev", "Fa", "Fl", "Fn", "Fo", "Fc", "Ft",
    "Fx", "Ic", "In", "Li", "Lk", "Ms", "Mt", "Nm", "No", "Ns", "Nx", "Ox", "Pa", "Pf", "St", "Sx", "Sy", "Ta", "Tn", "Ux", "Va",
    "Vt", "Xo", "Xc", "Xr", "Nd",
];

type Enclosure = (&'static str, &'static str, &'static str, &'static str, &'static str);

fn enclosure(name: &str) -> Option<&'static Enclosure> {
    ENCLOSURES.iter().find(|(to_the_end, opens, closes, ..)| [to_the_end, opens, closes].contains(&&name))
}

fn is_callable(name: &str) -> bool {
    !name.is_empty() && (CALLABLE.contains(&name) || enclosure(name).is_some())
}

impl Page {
    /// One line of mdoc(7). Requests of roff that are not known here print nothing.
    pub(super) fn mdoc_macro(&mut self, name: &str, rest: &str) {
        match name {
            "Dt" => {
                let words = self.arguments(rest);
                self.title = self.title.take().or_else(|| title(&words));
            }
            "Sh" | "Ss" => {
                let words = self.inline(rest);
                self.heading(if name == "Sh" { "h1" } else { "h2" }, &words);
                self.mdoc.lists.clear();
            }
            "Pp" | "Lp" => self.paragraph(true),
            "Bl" => {
                let plain = ["-bullet", "-dash", "-hyphen", "-enum", "-item"];
                if !self.mdoc.lists.is_empty() {
                    self.indent();
                }
                self.mdoc.lists.push(!rest.split(' ').any(|word| plain.contains(&word)));
                self.begin_list();
            }
            "El" => {
                self.mdoc.lists.pop();
                self.end_display();
                self.end_list();
                if !self.mdoc.lists.is_empty() {
                    self.outdent();
                }
            }
            "It" => {
                let tag = self.inline(rest);
                let has_tag = self.mdoc.lists.last() == Some(&true);
                self.item(if has_tag { &tag } else { "" });
            }
            "Bd" if rest.contains("-literal") || rest.contains("-unfilled") => self.begin_display(),
            "Ed" => self.end_display(),
            "Dl" | "D1" => {
                let words = self.inline(rest);
                self.writer.begin("p", None);
                self.emit(&words, false);
                self.writer.begin("p", None);
            }
            "Ex" | "Rv" => {
                let about = rest.split_whitespace().nth(1).unwrap_or(&self.mdoc.name).to_owned();
                let words = if name == "Ex" {
                    format!("The {about} utility exits 0 on success, and >0 if an error occurs.")
                } else {
                    format!(
                        "The {about} function returns the value 0 if successful; otherwise the value -1 is returned and errno is set."
                    )
                };
                if self.strings.spend(words.len()) {
                    self.emit(&words, false);
                }
            }
            // Each call begins a line.
            "Nm" if self.in_synopsis && self.next == Next::Words && !self.display => {
                self.writer.begin("br", None);
                let words = self.inline(&format!("Nm {rest}"));
                self.emit(&words, false);
            }
            name if is_callable(name) || name.starts_with('%') => {
                let words = self.inline(&format!("{name} {rest}"));
                let joined = rest.trim_end().ends_with(" Ns") || words.ends_with(['[', '(', '“', '‘', '{', '<']);
                self.emit(&words, joined);
            }
            _ => {}
        }
    }

    /// The words of a line, with the macros among them.
    fn inline(&mut self, rest: &str) -> String {
        let words: Vec<(String, bool)> =
            arguments(rest).into_iter().map(|(word, quoted)| (self.strings.decode(&word), quoted)).collect();
        let is_mark = |word: &str| matches!(word, "." | "," | ":" | ";" | ")" | "]" | "?" | "!");
        let is_macro = |(word, quoted): &(String, bool)| !quoted && is_callable(word);
        let trailing = words.iter().rev().take_while(|(word, quoted)| !quoted && is_mark(word)).count();
        let (words, marks) = words.split_at(words.len() - trailing);
        let mut line = Line::default();
        let mut closers = Vec::new();
        let mut at = 0;
        while let Some(word) = words.get(at) {
            at += 1;
            if !is_macro(word) {
                line.push(&word.0, is_mark(&word.0));
                continue;
            }
            let count = words[at..].iter().take_while(|word| !is_macro(word)).count();
            let given: Vec<&str> = words[at..at + count].iter().map(|(word, _)| word.as_str()).collect();
            match enclosure(&word.0) {
                Some(&(_, _, closes, _, right)) if word.0 == closes => line.push(right, true),
                Some(&(to_the_end, _, _, left, right)) => {
                    line.push(left, false);
                    line.joined = true;
                    if word.0 == to_the_end {
                        closers.push(right);
                    }
                }
                None => at += self.call(&word.0, &given, &mut line),
            }
        }
        for closer in closers.iter().rev() {
            line.push(closer, true);
        }
        for (mark, _) in marks {
            line.push(mark, true);
        }
        line.text
    }

    /// Writes what a macro makes of its words; how many of them it has used up.
    fn call(&mut self, name: &str, given: &[&str], line: &mut Line) -> usize {
        let first = given.first().copied().unwrap_or("");
        match name {
            "Fl" => {
                let is_mark = |word: &&&str| matches!(**word, "." | "," | ":" | ";" | ")" | "]" | "|");
                let flags = given.iter().take_while(|word| !is_mark(word)).count();
                for flag in &given[..flags] {
                    line.push(&format!("-{flag}"), false);
                }
                if flags == 0 {
                    line.push("-", false);
                    line.joined = given.is_empty();
                }
                flags
            }
            "Nm" if given.is_empty() || first.len() == 1 && !first.contains(char::is_alphanumeric) => {
                if self.strings.spend(self.mdoc.name.len()) {
                    line.push(&self.mdoc.name, false);
                }
                0
            }
            "Nm" => {
                if self.mdoc.name.is_empty() && first.len() <= MAX_NAME_BYTES {
                    first.clone_into(&mut self.mdoc.name);
                }
                0
            }
            "Ar" if given.is_empty() => {
                line.push("file ...", false);
                0
            }
            "Xr" if given.len() > 1 => {
                line.push(&format!("{first}({})", given[1]), false);
                2
            }
            "Fn" | "Fo" if !given.is_empty() => {
                let end = if name == "Fn" { ")" } else { "" };
                line.push(&format!("{first}({}{end}", given[1..].join(", ")), false);
                given.len()
            }
            "Fc" => {
                line.push(")", true);
                0
            }
            "In" => {
                line.push(&format!("#include <{first}>"), false);
                given.len().min(1)
            }
            "Ns" => {
                line.joined = true;
                0
            }
            "Ap" => {
                line.push("'", true);
                line.joined = true;
                0
            }
            "Pf" if !given.is_empty() => {
                line.push(first, false);
                line.joined = true;
                1
            }
            "Nd" | "Ta" => {
                line.push("–", false);
                0
            }
            "Ux" | "At" => {
                line.push("UNIX", false);
                0
            }
            "Bx" | "Fx" | "Nx" | "Ox" | "Dx" | "Bsx" => {
                let systems = [
                    ("Bx", "BSD"),
                    ("Fx", "FreeBSD"),
                    ("Nx", "NetBSD"),
                    ("Ox", "OpenBSD"),
                    ("Dx", "DragonFly"),
                    ("Bsx", "BSD/OS"),
                ];
                line.push(systems.iter().find(|(of, _)| *of == name).map_or("", |(_, system)| system), false);
                0
            }
            _ => 0,
        }
    }
}

/// A line being put together.
#[derive(Default)]
struct Line {
    text: String,
    /// The next word follows without a blank.
    joined: bool,
}

impl Line {
    fn push(&mut self, word: &str, closes: bool) {
        if !self.text.is_empty() && !closes && !std::mem::take(&mut self.joined) {
            self.text.push(' ');
        }
        self.joined = matches!(word, "(" | "[");
        self.text.push_str(word);
    }
}
