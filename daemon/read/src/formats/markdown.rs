//! Pieces of Markdown for the readers.

/// Whether Markdown would take a line of plain words for a heading, a fence, raw HTML or an underline.
pub(super) fn reads_as_markup(line: &str) -> bool {
    line.starts_with(['#', '<'])
        || line.starts_with("```")
        || line.starts_with("~~~")
        || line.chars().all(|char| char == '=')
        || line.chars().all(|char| char == '-')
}

/// A fence longer than any run of backticks inside.
pub(super) fn fence_for(code: &str) -> String {
    let longest = code.split(|char| char != '`').map(str::len).max().unwrap_or(0);
    "`".repeat(3.max(longest + 1))
}

/// Writes a table of cells that are one line each; `heads`: the first row names the columns.
pub(super) fn write_table(rows: &[Vec<String>], heads: bool, text: &mut String) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    if columns == 0 {
        return;
    }
    let (head, rows) = match rows.split_first() {
        Some((head, rows)) if heads => (head.as_slice(), rows),
        _ => (&[][..], rows),
    };
    write_row(head, columns, text);
    text.push('|');
    text.push_str(&"---|".repeat(columns));
    text.push('\n');
    for row in rows {
        write_row(row, columns, text);
    }
}

fn write_row(cells: &[String], columns: usize, text: &mut String) {
    text.push('|');
    for column in 0..columns {
        let cell = cells.get(column).map_or("", String::as_str);
        text.push(' ');
        text.push_str(&cell.replace('|', "\\|"));
        text.push_str(" |");
    }
    text.push('\n');
}
