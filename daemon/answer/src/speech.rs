//! An answer for the ear, and the steps of an answer.

use crate::languages::Words;
use crate::marks;
use wire::Citation;

/// Most sources that speech names: a listener remembers few.
const MOST_SOURCES: usize = 2;

/// An answer as it is spoken: sentences without marks and Markdown, then its sources in words. Empty for an empty answer.
pub(super) fn speech(answer: &str, citations: &[Citation], words: &Words) -> String {
    let mut spoken = String::new();
    for line in lines(answer) {
        let runs_on = line.item.is_none() && line.text.starts_with(char::is_lowercase);
        if !spoken.is_empty() {
            if !runs_on {
                end_sentence(&mut spoken);
            }
            spoken.push(' ');
        }
        if let Some(Item::Number(number)) = line.item {
            spoken = format!("{spoken}{number}: ");
        }
        spoken.push_str(&line.text);
    }
    if spoken.is_empty() {
        return spoken;
    }
    end_sentence(&mut spoken);
    for source in sources(answer, citations) {
        spoken.push(' ');
        spoken.push_str(&in_words(source, words));
    }
    spoken
}

/// The steps of an answer that is a procedure: its numbered items, or else its bullets, without number, bullet and marks.
///
/// Empty with fewer than two steps, and when a number is missing: a procedure with a gap must not look whole.
pub(super) fn steps(answer: &str) -> Vec<String> {
    let lines = lines(answer);
    let numbered = lines.iter().find_map(|line| line.item).is_some_and(|item| item != Item::Bullet);
    let (mut steps, mut numbers): (Vec<String>, Vec<u32>) = (Vec::new(), Vec::new());
    let mut open = false;
    for line in lines {
        match line.item {
            Some(Item::Number(number)) if numbered => {
                numbers.push(number);
                steps.push(line.text);
                open = true;
            }
            Some(Item::Bullet) if !numbered => {
                steps.push(line.text);
                open = true;
            }
            item => {
                let runs_on = line.text.starts_with(char::is_lowercase);
                open = open && (item.is_some() || line.indented || runs_on);
                if let (Some(step), true) = (steps.last_mut(), open) {
                    if !runs_on {
                        end_sentence(step);
                    }
                    step.push(' ');
                    step.push_str(&line.text);
                }
            }
        }
    }
    // Markdown may number every item with 1.
    let whole = numbers.windows(2).all(|pair| pair[1] == pair[0] + 1) || numbers.iter().all(|number| *number == 1);
    if steps.len() > 1 && whole { steps } else { Vec::new() }
}

/// The beginning of a list item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    Number(u32),
    Bullet,
}

/// A line of an answer.
struct Line {
    /// Whether it begins with a blank, as the second line of an item does.
    indented: bool,
    item: Option<Item>,
    /// Its words; never empty.
    text: String,
}

/// The lines that say something. Rules, fences, and the line under a table's head say nothing.
fn lines(answer: &str) -> Vec<Line> {
    let lines = answer.lines().filter(|line| line.contains(char::is_alphanumeric));
    let lines = lines.filter(|line| !line.trim_start().starts_with("```")).map(|line| {
        let indented = line.starts_with(char::is_whitespace);
        let line = line.trim_start_matches(|c: char| c.is_whitespace() || c == '>');
        let (item, words) = item_of(line.trim_start_matches('#').trim_start());
        Line { indented, item, text: plain(&cells(words)) }
    });
    // A line may be nothing but marks.
    lines.filter(|line| !line.text.is_empty()).collect()
}

/// A line's number or bullet, and the rest of it.
fn item_of(line: &str) -> (Option<Item>, &str) {
    let unclosed = line.strip_prefix('(').unwrap_or(line);
    let digits = unclosed.bytes().take_while(u8::is_ascii_digit).count();
    let (item, rest) = if (1..=3).contains(&digits) {
        let closing: &[char] = if unclosed.len() < line.len() { &[')'] } else { &['.', ')'] };
        (unclosed[..digits].parse().ok().map(Item::Number), unclosed[digits..].strip_prefix(closing))
    } else {
        (Some(Item::Bullet), line.strip_prefix(['-', '*', '+', '•', '–', '·', '‣', '▪']))
    };
    match rest {
        Some(rest) if rest.starts_with(char::is_whitespace) => (item, rest.trim_start()),
        _ => (None, line),
    }
}

/// The cells of a table row, separated by semicolons; any other line as it is.
fn cells(line: &str) -> String {
    if !line.contains('|') {
        return line.to_owned();
    }
    line.split('|').map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>().join("; ")
}

/// A text of the library as an answer: its lines without Markdown, with the signs of their lists.
pub(super) fn readable(text: &str) -> String {
    let line = |line: &str| {
        // A star is a list mark here, no emphasis.
        let (item, words) = item_of(line.trim_start());
        let indent_and_mark = &line[..line.len() - words.len()];
        let words = plain(words);
        if item.is_some() || !words.is_empty() { format!("{indent_and_mark}{words}") } else { String::new() }
    };
    let said = text.lines().filter(|line| !line.trim_start().starts_with("```"));
    said.map(line).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

/// The words of a line: without marks, emphasis, code ticks and the addresses of links.
fn plain(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        let mut taken = c.len_utf8();
        match c {
            '`' => {}
            '\\' if rest[1..].starts_with(|next: char| next.is_ascii_punctuation()) => {
                out.push_str(&rest[1..2]);
                taken = 2;
            }
            '!' if link(&rest[1..]).is_some() => {}
            '[' => match link(rest) {
                Some((words, length)) => {
                    out.push_str(words);
                    taken = length;
                }
                None => out.push('['),
            },
            '*' | '_' | '~' => {
                let run = rest.len() - rest.trim_start_matches(c).len();
                // A sign without a partner is no emphasis: `*.log`.
                let alone = line.matches(c).count() == run;
                if alone || !is_emphasis(c, run, out.chars().next_back(), rest[run..].chars().next()) {
                    out.push_str(&rest[..run]);
                }
                taken = run;
            }
            _ => out.push(c),
        }
        rest = &rest[taken..];
    }
    marks::removed(&out).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A Markdown link at the beginning of a text: its words, and its length in bytes.
fn link(text: &str) -> Option<(&str, usize)> {
    let close = text.strip_prefix('[')?.find(']')? + 1;
    let end = text[close + 1..].strip_prefix('(')?.find(')')? + close + 2;
    Some((&text[1..close], end + 1))
}

/// Whether a run of `*`, `_` or `~` is emphasis. It is not between blanks (`2 * 3`) nor inside a word or number (`max_chars`,
/// `2*3`), and one `~` means "about".
fn is_emphasis(c: char, run: usize, before: Option<char>, after: Option<char>) -> bool {
    let blank = |side: Option<char>| side.is_none_or(char::is_whitespace);
    let inner = |side: Option<char>| side.is_some_and(char::is_alphanumeric);
    let digit = |side: Option<char>| side.is_some_and(char::is_numeric);
    let alone = blank(before) && blank(after);
    let inside = inner(before) && inner(after) && (run == 1 || c == '_' || (digit(before) && digit(after)));
    !(alone || inside || (c == '~' && run == 1))
}

/// Ends a text with a full stop, unless it has some other end.
fn end_sentence(text: &mut String) {
    let words = text.trim_end_matches(['"', '\'', ')', ']', '”', '’', '»', '」']);
    let Some(last) = words.chars().next_back() else { return };
    if ".!?…:;,。！？；：、，؟।".contains(last) {
        return;
    }
    // Kana, and the Chinese characters.
    let full_width = matches!(last, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}');
    text.push(if full_width { '。' } else { '.' });
}

/// The citations that the answer marks, or else the first one; each document once.
fn sources<'a>(answer: &str, citations: &'a [Citation]) -> Vec<&'a Citation> {
    let marked = wire::marks::numbers(answer).into_iter();
    let mut sources: Vec<&Citation> = Vec::new();
    for citation in marked.filter_map(|n| citations.iter().find(|citation| citation.n == n)) {
        if sources.len() < MOST_SOURCES && sources.iter().all(|source| source.document != citation.document) {
            sources.push(citation);
        }
    }
    if sources.is_empty() {
        sources.extend(citations.first());
    }
    sources
}

/// A source as a sentence.
fn in_words(source: &Citation, words: &Words) -> String {
    let title = if source.title.trim().is_empty() { &source.document } else { &source.title };
    let title = plain(title);
    let place = source.page.map(|page| words.page.replace("{page}", &page.to_string())).unwrap_or_default();
    // The title last: it may hold braces of its own.
    words.source.replace("{place}", &place).replace("{title}", title.trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::languages::Languages;
    use crate::prompts::LANGUAGES;
    use library::store::terms::Language;

    fn citation(n: usize, document: &str, title: &str, page: Option<u32>) -> Citation {
        Citation { n, document: document.into(), title: title.into(), page, ..Citation::default() }
    }

    fn said(answer: &str, citations: &[Citation], language: Language) -> String {
        speech(answer, citations, Languages::parse(LANGUAGES).expect("parses").of(language))
    }

    fn spoken(answer: &str) -> String {
        said(answer, &[], Language::English)
    }

    #[test]
    fn marks_and_markdown_are_not_spoken() {
        for (answer, expected) in [
            ("Press **reset** [1].", "Press reset."),
            ("## Care\nRinse the *filter* weekly [2][1]", "Care. Rinse the filter weekly."),
            ("See [the manual](https://a.example/x) and ![a drawing](b.png).", "See the manual and a drawing."),
            ("Run `systemctl stop x`:\n```sh\nsystemctl stop x\n```", "Run systemctl stop x: systemctl stop x."),
            ("> Keep it ~~cold~~ warm!", "Keep it cold warm!"),
            ("2 * 3 is 2*3, max_chars and __init__ \\*", "2 * 3 is 2*3, max_chars and init *."),
            ("About ~5 bar, 2**3 and a**b**c", "About ~5 bar, 2**3 and abc."),
            ("He says \"stop\"", "He says \"stop\"."),
            ("[1]", ""),
            (" \n---\n", ""),
        ] {
            assert_eq!(spoken(answer), expected, "{answer:?}");
        }
    }

    #[test]
    fn an_answer_has_no_markdown_but_its_list() {
        for (text, expected) in [
            ("Press **reset** and `E-17` [3] goes.", "Press reset and E-17 goes."),
            ("1. Open *it*\n   - the `case`\n* Wait", "1. Open it\n   - the case\n* Wait"),
            ("```sh\nls *.log\n```", "ls *.log"),
            ("-5 °C to 2*3 max_chars", "-5 °C to 2*3 max_chars"),
        ] {
            assert_eq!(readable(text), expected, "{text:?}");
        }
    }

    #[test]
    fn rows_are_spoken_without_pipes() {
        assert_eq!(spoken("Code: E-17; Meaning: High pressure [1]"), "Code: E-17; Meaning: High pressure.");
        let table = "| Code | Meaning |\n|---|:--:|\n| E-17 | High pressure |\n| E-18 | |";
        assert_eq!(spoken(table), "Code; Meaning. E-17; High pressure. E-18.");
    }

    #[test]
    fn a_line_end_is_a_sentence_end_unless_the_sentence_runs_on() {
        assert_eq!(spoken("Torque: 1.2 Nm\nSpeed: 3 m/s"), "Torque: 1.2 Nm. Speed: 3 m/s.");
        assert_eq!(spoken("Open the valve and\nwait for a minute."), "Open the valve and wait for a minute.");
        assert_eq!(spoken("弁を開く\nしばらく待つ。"), "弁を開く。 しばらく待つ。");
    }

    #[test]
    fn numbers_of_a_list_are_spoken() {
        let list = "To reset it:\n1. Open the case\n2) Press **reset**.\n- wait\n(3) Close it [1]";
        assert_eq!(spoken(list), "To reset it: 1: Open the case. 2: Press reset. wait. 3: Close it.");
        assert_eq!(spoken("17. Oktober\n-5 °C\n(2 bar)"), "17: Oktober. -5 °C. (2 bar)."); // typos: ignore
    }

    #[test]
    fn the_sources_are_spoken_in_words() {
        let pump = citation(1, "pump.pdf", "Heat pump manual", Some(12));
        let fuse = citation(2, "fuse.md", "Fuses {page}.", None);
        let other = citation(3, "other.md", "", Some(3));
        let all = [pump, citation(4, "pump.pdf", "Heat pump manual", Some(30)), fuse, other];
        let english = |answer: &str| said(answer, &all, Language::English);
        assert_eq!(english("Wait [1]."), "Wait. Source: Heat pump manual, page 12.");
        assert_eq!(english("Wait [2]."), "Wait. Source: Fuses {page}.");
        assert_eq!(english(""), "", "nothing said, nothing to prove");
        let german = |answer: &str| said(answer, &all, Language::German);
        assert_eq!(german("Warte."), "Warte. Quelle: Heat pump manual, Seite 12.", "the strongest, when none is marked");
        let two = "Warte. Quelle: Heat pump manual, Seite 30. Quelle: other.md, Seite 3.";
        assert_eq!(german("Warte [4] [1] [3] [2]."), two, "each document once, two at most");
    }

    #[test]
    fn steps_come_without_numbers_and_marks() {
        assert_eq!(
            steps("To reset:\n1. Open the case [1].\n2. Press **reset** [1]\n\nThen call us."),
            ["Open the case.", "Press reset"]
        );
        assert_eq!(steps("- one [1]\n* two\n• three"), ["one", "two", "three"]);
        assert_eq!(steps("3) Open it\n4) Close it"), ["Open it", "Close it"], "the middle of a procedure");
        assert_eq!(steps("1. Open it\n1. Close it"), ["Open it", "Close it"], "numbered by Markdown");
    }

    #[test]
    fn a_step_has_all_its_lines() {
        let list = "1. Open the case\n   Use the key\n   - the small one\n2. Press reset and\nwait\n3. Close it\nDone";
        assert_eq!(steps(list), ["Open the case. Use the key the small one", "Press reset and wait", "Close it"]);
    }

    #[test]
    fn other_answers_have_no_steps() {
        for answer in
            ["", "Press reset [1].", "1. Press reset.", "Torque: 1.2 Nm\nSpeed: 3 m/s", "-5 °C\n-7 °C", "1.5 bar\n2.5 bar"]
        {
            assert!(steps(answer).is_empty(), "{answer:?}");
        }
        assert!(steps("1. Open it\n3. Close it").is_empty(), "the second step is missing");
        assert!(steps("1. Open it\n2. Close it\n1. Call us").is_empty(), "two procedures");
    }
}
