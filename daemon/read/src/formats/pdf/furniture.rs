//! Removes running heads, feet and page numbers.

use std::collections::HashMap;

use super::rows::{Row, Sheet};

/// Rows at either end of a page that can be running heads or feet.
const ENDS: usize = 3;

/// Largest distance from the top and the bottom, as a share of the page's height.
const ZONE: f32 = 0.16;

/// Times that a line must occur at one height to be a running head.
const REPEATED: usize = 3;

/// Most words of a running head.
const MAX_WORDS: usize = 16;

/// Top or bottom, height of a row, and its text without numbers.
type Key = (bool, i32, String);

/// Removes running heads, feet and page numbers from the pages and returns their number.
pub(super) fn remove(sheets: &mut [Sheet]) -> usize {
    let mut said: HashMap<Key, usize> = HashMap::new();
    let mut apart: HashMap<(bool, i32), usize> = HashMap::new();
    for sheet in sheets.iter() {
        for (index, top) in ends(sheet) {
            *said.entry(key(sheet, &sheet.rows[index], top)).or_default() += 1;
        }
        for top in [true, false] {
            if let Some(row) = outermost(sheet, top) {
                *apart.entry((top, place(row))).or_default() += 1;
            }
        }
    }
    let written = sheets.iter().filter(|sheet| sheet.rows.len() > 1).count();
    let common = |count: usize| count >= 5 && count * 2 > written;
    let mut removed = 0;
    for sheet in sheets.iter_mut() {
        let mut gone = vec![false; sheet.rows.len()];
        for (index, top) in ends(sheet) {
            let row = &sheet.rows[index];
            let repeated = said.get(&key(sheet, row, top)).is_some_and(|&count| count >= REPEATED);
            let number = sheet.rows.len() > 1 && written >= REPEATED && is_page_number(&sheet.line(&row.words));
            gone[index] = repeated || number;
        }
        for top in [true, false] {
            let by_place = outermost(sheet, top).is_some_and(|row| apart.get(&(top, place(row))).copied().is_some_and(common));
            if by_place && let Some(end) = if top { gone.first_mut() } else { gone.last_mut() } {
                *end = true;
            }
        }
        let mut gone = gone.into_iter();
        let before = sheet.rows.len();
        sheet.rows.retain(|_| !gone.next().unwrap_or(false));
        removed += before - sheet.rows.len();
    }
    removed
}

/// Rows that can be running heads (`true`) or feet, by index.
fn ends(sheet: &Sheet) -> Vec<(usize, bool)> {
    let count = sheet.rows.len();
    let short = |row: &Row| row.words.len() <= MAX_WORDS;
    let heads = (0..count.min(ENDS)).filter(|&at| sheet.rows[at].y < ZONE * sheet.height).map(|at| (at, true));
    let feet =
        (count.saturating_sub(ENDS)..count).filter(|&at| sheet.rows[at].y > (1.0 - ZONE) * sheet.height).map(|at| (at, false));
    heads.chain(feet).filter(|&(at, _)| short(&sheet.rows[at])).collect()
}

/// The first or last row of a page, if white space separates it from the rest.
fn outermost(sheet: &Sheet, top: bool) -> Option<&Row> {
    let [first, second, .., before, last] = sheet.rows.as_slice() else { return None };
    let (row, gap) = if top { (first, second.y - first.y) } else { (last, last.y - before.y) };
    let in_zone = if top { row.y < ZONE * sheet.height } else { row.y > (1.0 - ZONE) * sheet.height };
    (in_zone && row.words.len() <= MAX_WORDS && gap > 1.6 * row.size.max(second.size.min(before.size))).then_some(row)
}

/// Heights that differ by a point or two are the same.
fn place(row: &Row) -> i32 {
    (row.y / 3.0).round() as i32
}

fn key(sheet: &Sheet, row: &Row, top: bool) -> Key {
    let mut text: String = sheet.line(&row.words).to_lowercase();
    text.retain(|char| !char.is_whitespace() && !char.is_ascii_digit());
    (top, place(row), text)
}

/// `17`, `xiv`, `- 3 -`, `3-17`, `Page 3 of 9`.
fn is_page_number(line: &str) -> bool {
    let line = line.to_lowercase();
    let mut tokens = line.split(|char: char| !char.is_alphanumeric()).filter(|token| !token.is_empty()).peekable();
    let roman = |token: &str| token.len() <= 6 && token.chars().all(|char| "ivxlc".contains(char));
    let number = |token: &str| token.len() <= 5 && token.chars().all(|char| char.is_ascii_digit());
    tokens.peek().is_some()
        && line.len() <= 24
        && line.chars().any(|char| char.is_ascii_digit() || "ivxlc".contains(char))
        && tokens.all(|token| number(token) || roman(token) || matches!(token, "page" | "of" | "seite" | "von"))
}
