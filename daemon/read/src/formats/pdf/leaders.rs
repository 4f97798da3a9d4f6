//! Removes tables of contents: lines whose dots lead to a page number. They contain no answers, but all the words of questions.

use std::borrow::Cow;

use super::rows::{Row, Sheet};

/// Fewest dots that lead to a number.
const DOTS: usize = 3;

/// Least distance, in ems, of the number from an entry without dots.
const GAP: f32 = 2.0;

/// The rows of a flow without its table of contents. A list whose numbers go up and down is none, for example technical data.
pub(super) fn without_contents<'r>(sheet: &Sheet, rows: &'r [Row]) -> Cow<'r, [Row]> {
    let lines: Vec<String> = rows.iter().map(|row| sheet.line(&row.words)).collect();
    let titled = lines.iter().any(|line| is_title(line));
    let entry = |at: usize| {
        let apart = || titled.then(|| number_apart(sheet, &rows[at])).flatten();
        led_to(&lines[at]).or_else(apart)
    };
    let numbers: Vec<Option<Vec<u32>>> = (0..rows.len()).map(entry).collect();
    let (Some(mut first), Some(mut last)) = (numbers.iter().position(Option::is_some), numbers.iter().rposition(Option::is_some))
    else {
        return rows.into();
    };
    let entries: Vec<&Vec<u32>> = numbers.iter().flatten().collect();
    let falls = entries.windows(2).filter(|pair| pair[1] < pair[0]).count();
    if entries.len() < 2 || falls * 5 > entries.len() - 1 {
        return rows.into();
    }
    // If most lines are entries, the lines between them are first lines of long entries, or names of chapters.
    let mostly = entries.len() * 2 > last - first;
    while mostly && first > 0 && number_apart(sheet, &rows[first - 1]).is_some() {
        first -= 1;
    }
    while mostly && last + 1 < rows.len() && number_apart(sheet, &rows[last + 1]).is_some() {
        last += 1;
    }
    let is_contents = |at: usize| numbers[at].is_some() || mostly && (first..=last).contains(&at);
    (0..rows.len()).filter(|&at| !is_contents(at)).map(|at| rows[at].clone()).collect()
}

/// Whether a line is the title of a table of contents.
pub(super) fn is_title(line: &str) -> bool {
    const TITLES: [&str; 4] = ["contents", "table of contents", "inhalt", "inhaltsverzeichnis"];
    TITLES.iter().any(|title| line.trim().eq_ignore_ascii_case(title))
}

/// The number that dots lead to: `12`, or `3-17` as its parts; none of `xiv`.
fn led_to(line: &str) -> Option<Vec<u32>> {
    let (entry, number) = line.rsplit_once(['.', ' '])?;
    let dots = entry.chars().rev().take_while(|char| matches!(char, '.' | ' ' | '…')).filter(|&char| char != ' ').count();
    if dots >= DOTS { page_number(number) } else { None }
}

/// The number at the end of a row, if a gap separates it from the rest.
fn number_apart(sheet: &Sheet, row: &Row) -> Option<Vec<u32>> {
    let [.., before, last] = row.words.as_slice() else { return None };
    if last.x0 - before.x1 > GAP * row.size { page_number(sheet.word(last)) } else { None }
}

fn page_number(word: &str) -> Option<Vec<u32>> {
    let numbered = (1..=8).contains(&word.len()) && word.chars().all(|char| "0123456789ivxlcIVXLC-".contains(char));
    numbered.then(|| word.split('-').filter_map(|part| part.parse().ok()).collect())
}
