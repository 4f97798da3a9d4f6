//! Separated values to Markdown: the separator is found, and every row says its columns.

use super::{Fault, Parsed, office::write_rows, one_line};

/// Bytes from the start in which the separator is looked for.
const SAMPLE_BYTES: usize = 32 * 1024;

/// Reads a table whose separator may be a comma, a semicolon, a tab or a bar.
#[allow(clippy::unnecessary_wraps, reason = "the signature of all readers")]
pub(super) fn to_markdown(text: &str) -> Result<Parsed, Fault> {
    // Excel names the separator in a line of its own.
    let named = text.strip_prefix("sep=").and_then(|rest| {
        let (first, rest) = rest.split_once('\n')?;
        Some((u8::try_from(first.chars().next()?).ok()?, rest))
    });
    let (separator, text) = named.unwrap_or_else(|| (separator(text), text));
    let rows: Vec<Vec<String>> = records(text, separator).collect();
    let mut markdown = String::new();
    write_rows(&rows, &mut markdown);
    Ok(Parsed { title: None, text: markdown, note: None })
}

fn records(text: &str, separator: u8) -> impl Iterator<Item = Vec<String>> {
    let mut reader =
        csv::ReaderBuilder::new().delimiter(separator).has_headers(false).flexible(true).from_reader(text.as_bytes());
    let mut record = csv::StringRecord::new();
    // Text in memory, of any number of fields, has no errors.
    std::iter::from_fn(move || reader.read_record(&mut record).unwrap_or(false).then(|| record.iter().map(one_line).collect()))
}

/// The separator that gives most rows the same number of columns, more than one.
fn separator(text: &str) -> u8 {
    let sample = &text[..text.floor_char_boundary(SAMPLE_BYTES)];
    let score = |separator: u8| {
        let mut widths: Vec<usize> = records(sample, separator).map(|row| row.len()).collect();
        widths.sort_unstable();
        let usual = widths.get(widths.len() / 2).copied().unwrap_or(0);
        if usual < 2 {
            0
        } else {
            widths.iter().filter(|width| **width == usual).count() * 100 / widths.len() * 10 + usual.min(9)
        }
    };
    *b",;\t|".iter().max_by_key(|separator| score(**separator)).filter(|separator| score(**separator) > 0).unwrap_or(&b',')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn markdown(text: &str) -> String {
        to_markdown(text).unwrap().text
    }

    #[test]
    fn separators_quotes_and_heads_are_found() {
        let given = crate::formats::example("office/small-semicolon.csv");
        let reading = crate::read(crate::Original { id: "faults.csv", bytes: &given, ..crate::Original::default() }).unwrap();
        assert_eq!(
            reading.text.trim_end(),
            "| Fehlercode | Bedeutung | Abhilfe |\n|---|---|---|\n| E-17 | Wasserdruck zu niedrig; Pumpe steht | Auffüllen auf 1,5 bar |\n\
             | E-18 | Fühler defekt | Fühler ersetzen |"
        );
        assert!(markdown("a,b\n\"x, \"\"y\"\"\nz\",2\n").contains("| x, \"y\" z | 2 |"));
        assert!(markdown("a\tb\nx, y\t2\n").contains("| x, y | 2 |"));
        assert!(markdown("sep=|\na|b;c\n1|2\n").contains("| a | b;c |"));
        assert_eq!(markdown("one line, with a comma"), "|  |  |\n|---|---|\n| one line | with a comma |\n\n");
        assert_eq!(markdown(""), "");
    }
}
