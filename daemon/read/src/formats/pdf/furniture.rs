//! Removes running heads, feet and page numbers.
//!
//! A line at the edge of a page goes if the pages around repeat it. A heading or a table can recur at one height as well, so a
//! doubtful line stays: only lines that white separates from the text go, and only from the edge inwards.

use std::collections::{HashMap, HashSet};

use super::{
    Look,
    bookmarks::Bookmark,
    headings::bare,
    rows::{Row, Sheet},
};

/// Rows at either end of a page that can be running heads or feet.
const ENDS: usize = 3;

/// Largest distance from the top and the bottom, as a share of the page's height.
const ZONE: f32 = 0.16;

/// Largest share of the page's height above the text.
const MARGIN: f32 = 0.07;

/// Fewest pages with a running head.
const REPEATED: usize = 3;

/// Fewest pages whose outermost lines tell that their place is one of running heads.
const PLACED: usize = 5;

/// Most words of a running head.
const MAX_WORDS: usize = 16;

/// Pages from one running head to the next of its run, at most: right-hand pages, with a first page of a chapter between.
const STRIDE: usize = 4;

/// Size of a heading, relative to the text.
const LARGE: f32 = 1.15;

/// A line at the edge of a page.
struct Line {
    page: usize,
    /// Its index among the rows of the page.
    row: usize,
    top: bool,
    /// Its height on the page: heights that differ by a point or two are the same.
    place: i32,
    /// Its words, with `#` for numbers.
    pattern: String,
    numbers: Vec<i64>,
    /// Whether its first or last number stands as page numbers do: alone, behind a gap, or beside a word such as `page`.
    numbered: bool,
    face: Face,
}

/// The type of a line beside that of the text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Face {
    Text,
    /// Bold amid text that is not.
    Bold,
    Large,
}

/// Removes running heads, feet and page numbers from the pages.
pub(super) fn remove(sheets: &mut [Sheet], look: &Look, outline: &[Bookmark]) {
    let lines: Vec<Line> = sheets.iter().enumerate().flat_map(|(page, sheet)| lines(page, sheet, look)).collect();
    let (running, counted) = running(sheets, &lines);
    let mut titles: HashMap<usize, HashSet<String>> = HashMap::new();
    for Bookmark { title, page, .. } in outline {
        titles.entry(*page).or_default().insert(bare(title));
    }
    let mut gone: Vec<Vec<bool>> = sheets.iter().map(|sheet| vec![false; sheet.rows.len()]).collect();
    for (line, _) in lines.iter().zip(&running).filter(|(_, running)| **running) {
        gone[line.page][line.row] = true;
    }
    // A line with the number of its page is no title.
    for (line, _) in lines.iter().zip(&counted).filter(|(_, counted)| !**counted) {
        if gone[line.page][line.row]
            && titles.get(&line.page).is_some_and(|titles| is_title(&sheets[line.page], line.row, titles, &gone[line.page]))
        {
            gone[line.page][line.row] = false;
        }
    }
    let mut numbered: Vec<Vec<bool>> = sheets.iter().map(|sheet| vec![false; sheet.rows.len()]).collect();
    for (line, counted) in lines.iter().zip(counted) {
        numbered[line.page][line.row] = counted;
    }
    for (page, sheet) in sheets.iter().enumerate() {
        edges(sheet, look.size, &numbered[page], &mut gone[page]);
    }
    // A document that would be empty consists of something else.
    let nothing_left = gone.iter().flatten().all(|&gone| gone);
    if nothing_left && !sheets.iter().any(|sheet| sheet.pictured) {
        return;
    }
    for (sheet, gone) in sheets.iter_mut().zip(&gone) {
        let mut gone = gone.iter();
        sheet.rows.retain(|_| !gone.next().is_some_and(|&gone| gone));
    }
}

/// The lines of a page that can be running heads or feet.
fn lines(page: usize, sheet: &Sheet, look: &Look) -> Vec<Line> {
    let count = sheet.rows.len();
    let heads = (0..count.min(ENDS)).filter(|&at| sheet.rows[at].y < ZONE * sheet.height).map(|at| (at, true));
    let feet =
        (count.saturating_sub(ENDS)..count).filter(|&at| sheet.rows[at].y > (1.0 - ZONE) * sheet.height).map(|at| (at, false));
    let short = |&(at, _): &(usize, bool)| sheet.rows[at].words.len() <= MAX_WORDS;
    heads.chain(feet).filter(short).map(|(at, top)| line(page, sheet, at, top, look)).collect()
}

fn line(page: usize, sheet: &Sheet, at: usize, top: bool, look: &Look) -> Line {
    let row = &sheet.rows[at];
    let (mut pattern, mut numbers) = (String::new(), Vec::new());
    let mut free = Vec::new();
    for word in &row.words {
        let text = sheet.word(word).to_lowercase();
        let of_word = numbers_of(&text);
        // A dash or a bar beside a number is part of it.
        free.push(!of_word.is_empty() || !text.contains(char::is_alphanumeric));
        if !pattern.is_empty() {
            pattern.push(' ');
        }
        if of_word.is_empty() {
            pattern.push_str(&text);
        } else {
            pattern.push('#');
        }
        numbers.extend(of_word);
    }
    Line {
        page,
        row: at,
        top,
        place: (row.y / 3.0).round() as i32,
        pattern,
        numbers,
        numbered: is_numbered(sheet, row, &free),
        face: if row.size > LARGE * look.size {
            Face::Large
        } else if !look.bold && row.words.iter().all(|word| word.style.bold) {
            Face::Bold
        } else {
            Face::Text
        },
    }
}

/// The numbers of a word that is nothing else: `17`, `3-17`, `17/90`, `xiv`; none of `E-17`.
fn numbers_of(word: &str) -> Vec<i64> {
    let parts = || word.split(|char: char| !char.is_alphanumeric()).filter(|part| !part.is_empty());
    let digits = |part: &str| part.len() <= 6 && part.bytes().all(|byte| byte.is_ascii_digit());
    if parts().all(digits) { parts().filter_map(|part| part.parse().ok()).collect() } else { roman(word).into_iter().collect() }
}

/// The value of a Roman numeral below 100 in small letters.
fn roman(word: &str) -> Option<i64> {
    const ONES: [&str; 10] = ["", "i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix"];
    const TENS: [&str; 10] = ["", "x", "xx", "xxx", "xl", "l", "lx", "lxx", "lxxx", "xc"];
    let word = word.trim_matches(|char: char| !char.is_alphanumeric());
    let ones = word.trim_start_matches(['x', 'l', 'c']);
    let value = |split: usize| {
        let (tens, ones) = (word.get(..split)?, word.get(split..)?);
        let at = |table: &[&str], part: &str| table.iter().position(|&known| known == part);
        Some(at(&TENS, tens)? * 10 + at(&ONES, ones)?)
    };
    (!word.is_empty()).then(|| value(word.len() - ones.len())).flatten().map(|value| value as i64)
}

/// Whether the first or last word of a row is a page number by its place. `free` tells which words are numbers.
fn is_numbered(sheet: &Sheet, row: &Row, free: &[bool]) -> bool {
    const GAP: f32 = 1.5;
    const NAMES: [&str; 14] =
        ["page", "seite", "s", "p", "pg", "pagina", "página", "sivu", "sida", "side", "strona", "strana", "стр", "oldal"];
    let words = &row.words;
    let apart = |left: usize| words[left + 1].x0 - words[left].x1 > GAP * row.size;
    let (first, last) = (free.first() == Some(&true), free.last() == Some(&true));
    let all = free.iter().all(|&free| free);
    let count = words.len();
    let named = words.iter().any(|word| {
        let word = sheet.word(word).to_lowercase();
        NAMES.contains(&word.trim_matches(|char: char| !char.is_alphabetic()))
    });
    all || (first || last) && named || first && apart(0) || last && apart(count - 2)
}

/// Which of the lines are running heads or feet, and which of these have a number that goes up with the pages.
fn running(sheets: &[Sheet], lines: &[Line]) -> (Vec<bool>, Vec<bool>) {
    let written = sheets.iter().filter(|sheet| sheet.rows.len() > 1).count();
    let (mut running, mut counted) = (vec![false; lines.len()], vec![false; lines.len()]);
    let mut alike: HashMap<(bool, i32, &str), Vec<usize>> = HashMap::new();
    let mut places: HashMap<(bool, i32), Vec<usize>> = HashMap::new();
    for (at, line) in lines.iter().enumerate() {
        alike.entry((line.top, line.place, &line.pattern)).or_default().push(at);
        let sheet = &sheets[line.page];
        let outermost = line.row == if line.top { 0 } else { sheet.rows.len() - 1 };
        if outermost && sheet.rows.len() > 1 {
            places.entry((line.top, line.place)).or_default().push(at);
        }
    }
    // A place where most pages have a running head makes one of a line that is in doubt.
    let mut of_place = vec![false; lines.len()];
    for group in places.values().filter(|group| group.len() >= PLACED && group.len() * 2 > written) {
        let (steady, repeated) = (steady(lines, group), repeats(lines, group));
        if repeated * 2 >= group.len() || steady.iter().filter(|&&counts| counts).count() * 5 >= group.len() * 3 {
            for (&at, counts) in group.iter().zip(steady) {
                let line = &lines[at];
                counted[at] |= counts;
                of_place[at] = line.face != Face::Large
                    && (repeated * 2 >= group.len() || counts && (!line.top || line.face != Face::Bold || line.numbered));
            }
        }
    }
    for group in alike.values() {
        for run in group.chunk_by(|&a, &b| lines[b].page - lines[a].page <= STRIDE).filter(|run| run.len() >= REPEATED) {
            for (&at, counts) in run.iter().zip(steady(lines, run)) {
                let line = &lines[at];
                counted[at] |= counts;
                running[at] |= counts && line.face != Face::Large && (line.numbered || !(line.top && line.face == Face::Bold));
            }
            for same in run.chunk_by(|&a, &b| lines[a].numbers == lines[b].numbers).filter(|same| same.len() >= REPEATED) {
                for &at in same {
                    let line = &lines[at];
                    // A heading can recur, too. A running head in large type is on most pages, and outside of the text.
                    let sheet = &sheets[line.page];
                    let outside = sheet.rows[line.row].y < MARGIN * sheet.height;
                    let heading = line.top && (line.face == Face::Large || line.face == Face::Bold && !of_place[at]);
                    running[at] |= !heading || outside && same.len() > REPEATED && same.len() * 2 > written;
                }
            }
        }
    }
    for (at, line) in lines.iter().enumerate() {
        let number = written >= REPEATED && is_page_number(&sheets[line.page], &sheets[line.page].rows[line.row]);
        running[at] |= of_place[at] || number;
    }
    (running, counted)
}

/// Which lines have a number that goes up with the pages.
fn steady(lines: &[Line], group: &[usize]) -> Vec<bool> {
    let mut counts = vec![false; group.len()];
    for from_end in [false, true] {
        let number = |at: usize| {
            let numbers = &lines[at].numbers;
            if from_end { numbers.last() } else { numbers.first() }.copied()
        };
        // A chapter can begin a count of its own.
        let mut steps: HashMap<i64, usize> = HashMap::new();
        for &at in group {
            if let Some(number) = number(at) {
                *steps.entry(number - lines[at].page as i64).or_default() += 1;
            }
        }
        for (&at, counts) in group.iter().zip(&mut counts) {
            let known = number(at).and_then(|number| steps.get(&(number - lines[at].page as i64)));
            *counts |= known.is_some_and(|&count| count >= REPEATED);
        }
    }
    counts
}

/// The number of lines that a page nearby repeats.
fn repeats(lines: &[Line], group: &[usize]) -> usize {
    let alike = |a: usize, b: usize| {
        let (a, b) = (&lines[a], &lines[b]);
        a.pattern == b.pattern && (a.numbers == b.numbers || a.numbered && b.numbered) && b.page - a.page <= STRIDE
    };
    let near = |at: usize| {
        let (before, after) = (at.saturating_sub(2)..at, at + 1..(at + 3).min(group.len()));
        before.into_iter().any(|other| alike(group[other], group[at]))
            || after.into_iter().any(|other| alike(group[at], group[other]))
    };
    (0..group.len()).filter(|&at| near(at)).count()
}

/// Whether a row is a title of the outline that the page does not have once more.
fn is_title(sheet: &Sheet, at: usize, titles: &HashSet<String>, gone: &[bool]) -> bool {
    let bare = |row: &Row| bare(&sheet.line(&row.words));
    let title = bare(&sheet.rows[at]);
    let mut others = sheet.rows.iter().zip(gone).filter(|(_, gone)| !**gone);
    !title.is_empty() && titles.contains(&title) && !others.any(|(row, _)| bare(row).starts_with(&title))
}

/// Keeps the lines that are not at an edge, or that nothing separates from the text. `numbered` are those with the page's number.
fn edges(sheet: &Sheet, size: f32, numbered: &[bool], gone: &mut [bool]) {
    let rows = &sheet.rows;
    let count = rows.len();
    let gap = |above: usize| rows[above + 1].y - rows[above].y;
    let mut gaps: Vec<f32> = (1..count).map(|at| gap(at - 1)).collect();
    gaps.sort_by(f32::total_cmp);
    let leading = gaps.get(gaps.len() * 2 / 5).copied().filter(|_| count > 2 * ENDS).unwrap_or(0.0);
    let parted = |above: usize, edge: usize, inner: usize| {
        let larger = rows[edge].size.max(rows[inner].size.min(1.3 * rows[edge].size));
        // Small print beside larger text is no line of it.
        let leading = if rows[edge].size < 0.8 * size { 0.0 } else { leading };
        gap(above) > (1.55 * larger).max(1.2 * leading) && (numbered[edge] || !is_table_head(&rows[edge], &rows[inner]))
    };
    let mut heads = gone.iter().take_while(|&&gone| gone).count();
    while heads > 0 && heads < count && !parted(heads - 1, heads - 1, heads) {
        heads -= 1;
    }
    let mut feet = gone.iter().rev().take_while(|&&gone| gone).count();
    while feet > 0 && feet < count && !parted(count - feet - 1, count - feet, count - feet - 1) {
        feet -= 1;
    }
    for (at, gone) in gone.iter_mut().enumerate() {
        *gone = at < heads || at + feet >= count;
    }
}

/// Whether each cell of a row stands above one of the next row.
fn is_table_head(head: &Row, below: &Row) -> bool {
    const GAP: f32 = 1.2;
    let cells = |row: &Row| -> Vec<(f32, f32)> {
        let parts = row.words.chunk_by(|a, b| b.x0 - a.x1 <= GAP * row.size);
        parts.map(|part| (part[0].x0, part[part.len() - 1].x1)).collect()
    };
    let (head, below) = (cells(head), cells(below));
    head.len() >= 2 && head.len() == below.len() && head.iter().zip(&below).all(|(a, b)| a.0 < b.1 && b.0 < a.1)
}

/// `17`, `xiv`, `- 3 -`, `3-17`, `Page 3 of 9`.
fn is_page_number(sheet: &Sheet, row: &Row) -> bool {
    let line = sheet.line(&row.words).to_lowercase();
    let mut tokens = line.split(|char: char| !char.is_alphanumeric()).filter(|token| !token.is_empty()).peekable();
    let number = |token: &str| token.len() <= 5 && token.chars().all(|char| char.is_ascii_digit());
    let mut numbers = 0;
    let mut is_part = |token: &str| {
        let counts = number(token) || roman(token).is_some();
        numbers += usize::from(counts);
        counts || matches!(token, "page" | "of" | "seite" | "von")
    };
    tokens.peek().is_some() && line.len() <= 24 && sheet.rows.len() > 1 && tokens.all(&mut is_part) && numbers > 0
}
