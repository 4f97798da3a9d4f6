//! SpreadsheetML: cells as they are shown, as far as dates, percentages and rounding go.

use std::collections::HashMap;

use super::{
    broken, main_part, own_title, relations,
    sheet::{Cells, Sheet, write_sheets},
    too_much,
};
use crate::formats::{
    Fault, Parsed,
    archive::Archive,
    one_line,
    xml::{Token, Xml},
};

/// Most sheets, and most bytes of all shared texts.
const MAX_SHEETS: usize = 1000;
const MAX_SHARED_BYTES: usize = 64 << 20;

pub(super) fn parse(archive: &mut Archive) -> Result<Parsed, Fault> {
    let part = main_part(archive, "xl/workbook.xml");
    let book = archive.text(&part).ok_or_else(|| Fault::Damaged("it is a ZIP archive, but not an XLSX".into()))?;
    let relations = relations(archive, &part);
    let mut part_of = |kind: &str| {
        let relation = relations.values().find(|relation| relation.kind == kind)?;
        archive.text(&relation.target)
    };
    let shared = shared(&part_of("sharedStrings").unwrap_or_default())?;
    let shapes = shapes(&part_of("styles").unwrap_or_default());
    let (mut xml, mut sheets, mut hidden, mut counts_from_1904) = (Xml::new(&book), Vec::new(), 0, false);
    while let Some(token) = xml.next().map_err(broken("workbook"))? {
        let Token::Open(element) = token else { continue };
        match element.name() {
            "workbookPr" => counts_from_1904 = element.get("date1904").is_some_and(|value| value == "1" || value == "true"),
            "sheet" if element.get("state").is_some_and(|state| state != "visible") => hidden += 1,
            "sheet" if sheets.len() < MAX_SHEETS => {
                // `r:id` and `sheetId` differ; `id` is the former without its prefix.
                let target = element.get("id").and_then(|id| relations.get(&id)).map(|relation| relation.target.clone());
                sheets.extend(target.map(|target| (element.get("name").unwrap_or_default(), target)));
            }
            _ => {}
        }
    }
    let mut read = Vec::new();
    let mut damaged = 0;
    for (name, target) in sheets {
        let Some(text) = archive.text(&target) else {
            damaged += 1;
            continue;
        };
        let rows = cells(&text, &shared, &shapes, counts_from_1904)?.into_rows();
        read.push(Sheet { name, rows });
    }
    let notes = [(hidden, "hidden sheets were not read"), (damaged, "damaged sheets were not read")];
    let notes: Vec<String> =
        notes.iter().filter(|(count, _)| *count > 0).map(|(count, words)| format!("{words}: {count}")).collect();
    let note = (!notes.is_empty()).then(|| notes.join("; "));
    Ok(Parsed { title: own_title(archive), note, ..write_sheets(&read) })
}

/// The texts that cells refer to by number.
fn shared(text: &str) -> Result<Vec<String>, Fault> {
    let (mut xml, mut texts, mut bytes) = (Xml::new(text), Vec::new(), 0);
    let (mut open, mut in_text, mut phonetic) = (String::new(), false, false);
    while let Some(token) = xml.next().map_err(broken("sharedStrings"))? {
        match token {
            Token::Open(element) => match element.name() {
                "si" => open.clear(),
                "t" => in_text = !phonetic,
                "rPh" => phonetic = true,
                _ => {}
            },
            Token::Words(words) if in_text => open.push_str(&words),
            Token::Words(_) => {}
            Token::Close(name) => match name.as_str() {
                "si" => {
                    bytes += open.len();
                    if bytes > MAX_SHARED_BYTES {
                        return Err(too_much());
                    }
                    texts.push(one_line(&open));
                }
                "t" => in_text = false,
                "rPh" => phonetic = false,
                _ => {}
            },
        }
    }
    Ok(texts)
}

/// The way a number is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Plain,
    /// With so many decimals.
    Fixed(usize),
    Percent(usize),
    Date,
    Time,
    DateTime,
}

/// The shapes of numbers, by the number of a cell's style.
fn shapes(text: &str) -> Vec<Shape> {
    let (mut xml, mut codes, mut shapes) = (Xml::new(text), HashMap::new(), Vec::new());
    let mut in_cells = false;
    while let Ok(Some(token)) = xml.next() {
        match token {
            Token::Open(element) => match element.name() {
                "numFmt" => codes.extend(element.get("numFmtId").zip(element.get("formatCode"))),
                "cellXfs" => in_cells = true,
                "xf" if in_cells => {
                    let id = element.get("numFmtId").unwrap_or_default();
                    shapes.push(codes.get(&id).map_or_else(|| built_in(&id), |code| shape(code)));
                }
                _ => {}
            },
            Token::Close(name) => in_cells &= name != "cellXfs",
            Token::Words(_) => {}
        }
    }
    shapes
}

/// The shapes that have numbers of their own (ECMA-376 part 1, 18.8.30).
fn built_in(id: &str) -> Shape {
    match id.parse::<u32>().unwrap_or(0) {
        2 | 4 | 7 | 8 | 39 | 40 | 44 => Shape::Fixed(2),
        9 => Shape::Percent(0),
        10 => Shape::Percent(2),
        14..=17 | 27..=31 | 34..=36 | 50..=58 => Shape::Date,
        18..=21 | 32..=33 | 45..=47 => Shape::Time,
        22 => Shape::DateTime,
        _ => Shape::Plain,
    }
}

/// The shape that a format's code describes, by its first section.
fn shape(code: &str) -> Shape {
    let (mut letters, mut chars) = (String::new(), code.chars());
    while let Some(char) = chars.next() {
        match char {
            ';' => break,
            '"' => while chars.next().is_some_and(|char| char != '"') {},
            '[' => {
                let inside: String = chars.by_ref().take_while(|char| *char != ']').collect();
                // `[h]:mm` counts hours beyond a day; `[Red]` and `[$-407]` say nothing about the number.
                if matches!(inside.to_lowercase().as_str(), "h" | "hh" | "m" | "mm" | "s" | "ss") {
                    letters.push('h');
                }
            }
            '\\' | '_' | '*' => {
                chars.next();
            }
            char => letters.extend(char.to_lowercase()),
        }
    }
    if letters.contains("general") {
        return Shape::Plain;
    }
    let decimals =
        letters.split_once('.').map_or(0, |(_, after)| after.chars().take_while(|char| matches!(char, '0' | '?')).count());
    let (day, hour) = (letters.contains(['y', 'd']), letters.contains(['h', 's']));
    match (day, hour) {
        (true, true) => Shape::DateTime,
        (true, false) => Shape::Date,
        (false, true) => Shape::Time,
        (false, false) if letters.contains('m') && !letters.contains(['0', '#']) => Shape::Date,
        (false, false) if letters.contains('%') => Shape::Percent(decimals),
        (false, false) if decimals > 0 && !letters.contains(['e', '/']) => Shape::Fixed(decimals),
        (false, false) => Shape::Plain,
    }
}

fn shown(number: f64, shape: Shape, counts_from_1904: bool) -> String {
    let moment = |date: bool, time: bool| {
        let serial = number + if counts_from_1904 { 1462.0 } else { 0.0 };
        if !(0.0..2_958_466.0).contains(&serial) {
            return plain(number);
        }
        let seconds = (serial.fract() * 86_400.0).round() as u64;
        let (days, seconds) = (serial as i64 + (seconds / 86_400) as i64, seconds % 86_400);
        let mut parts = Vec::new();
        if date {
            parts.push(day(days));
        }
        if time {
            let clock = format!("{:02}:{:02}", seconds / 3600, seconds / 60 % 60);
            parts.push(if seconds.is_multiple_of(60) { clock } else { format!("{clock}:{:02}", seconds % 60) });
        }
        parts.join(" ")
    };
    match shape {
        Shape::Plain => plain(number),
        Shape::Fixed(decimals) => format!("{number:.*}", decimals.min(15)),
        Shape::Percent(decimals) => format!("{:.*} %", decimals.min(15), number * 100.0),
        Shape::Date => moment(true, false),
        Shape::Time => moment(false, true),
        Shape::DateTime => moment(true, true),
    }
}

/// A number with the 15 digits that a cell holds.
fn plain(number: f64) -> String {
    format!("{number:.14e}").parse::<f64>().unwrap_or(number).to_string()
}

/// A day from its count since 1900, as ISO 8601 (algorithm: <https://howardhinnant.github.io/date_algorithms.html>).
fn day(count: i64) -> String {
    // The count knows a 29 February 1900.
    let days = count - 25_569 + i64::from(count < 60) + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Row and column of `B7`, from 0.
fn place(reference: &str) -> Option<(usize, usize)> {
    let digits = reference.find(|char: char| char.is_ascii_digit())?;
    let (letters, row) = reference.split_at(digits);
    let column = letters.bytes().try_fold(0_usize, |sum, letter| {
        letter
            .is_ascii_alphabetic()
            .then(|| sum.checked_mul(26)?.checked_add(usize::from(letter.to_ascii_uppercase() - b'A') + 1))?
    })?;
    Some((row.parse::<usize>().ok()?.checked_sub(1)?, column.checked_sub(1)?))
}

fn cells(text: &str, shared: &[String], shapes: &[Shape], counts_from_1904: bool) -> Result<Cells, Fault> {
    let (mut xml, mut cells, mut merged) = (Xml::new(text), Cells::default(), Vec::new());
    let (mut row, mut column) = (0_usize, 0_usize);
    let (mut kind, mut shape, mut value, mut in_value) = (String::new(), Shape::Plain, String::new(), false);
    while let Some(token) = xml.next().map_err(broken("sheet"))? {
        match token {
            Token::Open(element) => match element.name() {
                "row" => {
                    if let Some(number) = element.get("r").and_then(|number| number.parse::<usize>().ok()) {
                        row = number.saturating_sub(1);
                    }
                    column = 0;
                }
                "c" => {
                    if let Some(at) = element.get("r").and_then(|reference| place(&reference)) {
                        (row, column) = at;
                    }
                    kind = element.get("t").unwrap_or_default();
                    let style = element.get("s").and_then(|style| style.parse::<usize>().ok()).unwrap_or(0);
                    shape = shapes.get(style).copied().unwrap_or(Shape::Plain);
                    value.clear();
                }
                "v" | "t" => in_value = true,
                "mergeCell" => {
                    let range = element.get("ref").unwrap_or_default();
                    merged.extend(range.split_once(':').and_then(|(first, last)| Some((place(first)?, place(last)?))));
                }
                _ => {}
            },
            Token::Words(words) if in_value => value.push_str(&words),
            Token::Words(_) => {}
            Token::Close(name) => match name.as_str() {
                "v" | "t" => in_value = false,
                "c" => {
                    let words = match kind.as_str() {
                        "s" => value.trim().parse::<usize>().ok().and_then(|at| shared.get(at).cloned()).unwrap_or_default(),
                        "b" => if value.trim() == "1" { "TRUE" } else { "FALSE" }.to_owned(),
                        "" | "n" => match value.trim().parse::<f64>() {
                            Ok(number) if number.is_finite() => shown(number, shape, counts_from_1904),
                            _ => one_line(&value),
                        },
                        _ => one_line(&value),
                    };
                    if !words.is_empty() {
                        cells.put(row, column, words)?;
                    }
                    column = column.saturating_add(1);
                }
                "row" => row = row.saturating_add(1),
                _ => {}
            },
        }
    }
    for ((first, column), (last, _)) in merged {
        cells.merge(first, column, last);
    }
    Ok(cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_as_their_format_says() {
        let shown = |number: f64, code: &str| shown(number, shape(code), false);
        for (number, code, text) in [
            (45_352.0, "dd.mm.yyyy", "2024-03-01"),
            (45_352.562_5, "yyyy\\-mm\\-dd hh:mm", "2024-03-01 13:30"),
            (0.999_999_9, "d/m/yy h:mm", "1900-01-01 00:00"),
            (0.5, "[h]:mm:ss", "12:00"),
            (1.0, "yyyy", "1900-01-01"),
            (0.125, "0.0%", "12.5 %"),
            (0.1 + 0.2, "General", "0.3"),
            (1.5, "0.00\\ \"m\"", "1.50"),
            (1234.5, "#,##0.00 [$€-407];[Red]-#,##0.00", "1234.50"),
            (17.0, "\"day\" 0", "17"),
            (1e300, "yyyy", &1e300_f64.to_string()),
        ] {
            assert_eq!(shown(number, code), text, "{code}");
        }
    }

    #[test]
    fn places_are_read() {
        assert_eq!(place("A1"), Some((0, 0)));
        assert_eq!(place("AB12"), Some((11, 27)));
        for reference in ["", "A", "1", "A0", "Ä1", "ZZZZZZZZZZZZZZZZZZZZZZ1"] {
            assert_eq!(place(reference), None, "{reference}");
        }
    }
}
