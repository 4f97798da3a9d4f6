//! PDF to Markdown.
//!
//! A PDF gives the places of characters, not their relations. The stages in between:
//!
//! ```text
//! content   the page's program -> characters with places (fonts and objects are read by hayro-font and hayro-syntax)
//! annotations   values of forms, free text and stamps, drawn upon the page
//! turned    heads of tables and tables that are turned against the page
//! bidi      Arabic and Hebrew in the order of reading
//! rows      characters -> words -> rows on one baseline
//! furniture running heads, feet and page numbers go
//! columns   rows -> flows in the order of reading
//! leaders   tables of contents go
//! tables, blocks   a flow -> paragraphs, items, listings, tables
//! bookmarks, headings   which paragraphs are headings, and of which level
//! damage    what is missing
//! write     Markdown, with a form feed at the end of each page
//! ```
//!
//! This module does not protect itself from hostile files: the child process bounds time and memory (`child`).

mod annotations;
mod bidi;
mod blocks;
mod bookmarks;
mod columns;
mod content;
mod damage;
mod fonts;
mod furniture;
mod headings;
mod leaders;
mod rows;
mod tables;
#[cfg(test)]
mod tests;
mod turned;
mod write;

use std::collections::HashMap;

use hayro_syntax::{DecryptionError, LoadPdfError, Pdf};

use super::{Fault, Parsed, one_line};
use blocks::PageBlock;
use damage::Census;
use headings::Headings;
use rows::Sheet;
use write::MarkdownWriter;

/// Most pages read.
const MAX_PAGES: usize = 20_000;

/// Reads a PDF.
pub(super) fn parse(bytes: Vec<u8>) -> Result<Parsed, Fault> {
    let (is_pdf, cut_off) = (damage::is_pdf(&bytes), damage::is_cut_off(&bytes));
    let pdf = Pdf::new(bytes).map_err(|error| match error {
        LoadPdfError::Decryption(DecryptionError::PasswordProtected) => Fault::Locked,
        LoadPdfError::Decryption(_) => Fault::Damaged("its encryption is damaged or of an unknown kind".into()),
        LoadPdfError::Invalid if !is_pdf => Fault::Damaged("it is not a PDF".into()),
        LoadPdfError::Invalid => Fault::DamagedPdf(format!("the PDF is {}", state(cut_off))),
    })?;
    let count = pdf.pages().len();
    if count == 0 {
        return Err(Fault::DamagedPdf(format!("the PDF is {}: it has no pages", state(cut_off))));
    }
    if count > MAX_PAGES {
        return Err(Fault::Damaged(format!("it has {count} pages, more than the {MAX_PAGES} that are read; split it")));
    }
    let mut fonts = fonts::Fonts::new();
    let mut order = bidi::Order::default();
    let mut sheets: Vec<Sheet> = pdf.pages().iter().map(|page| Sheet::new(content::draw(page, &mut fonts), &mut order)).collect();
    let census = damage::census(&pdf);
    let look = Look::new(&sheets);
    let outline = bookmarks::bookmarks(&pdf);
    furniture::remove(&mut sheets, &look, &outline);
    let note = note(&sheets, &census, cut_off)?;
    let mut headings = Headings::new(&sheets, outline, look.size);
    let title = title(&pdf).or_else(|| title_by_size(&sheets, look.size));
    let mut writer = MarkdownWriter::new(words(&sheets));
    let mut ended = 0;
    for (page, sheet) in sheets.into_iter().enumerate() {
        // Lost pages end with a form feed too, so that later pages keep their numbers.
        (ended..census.places[page]).for_each(|_| writer.page_break());
        ended = census.places[page];
        for block in page_blocks(sheet, look.mono_counts) {
            match block {
                PageBlock::Text(lines) => headings.split(page, lines, &mut writer),
                PageBlock::Code(lines) => writer.code(lines),
                PageBlock::Table(cells, heads) => writer.table(&cells, heads),
            }
        }
    }
    Ok(Parsed { title, text: writer.finish(), note })
}

/// The fault of a damaged file.
fn state(cut_off: bool) -> &'static str {
    if cut_off { "cut off: its end is missing" } else { "damaged" }
}

fn page_blocks(mut sheet: Sheet, mono_counts: bool) -> Vec<PageBlock> {
    let (rows, aside) = (std::mem::take(&mut sheet.rows), std::mem::take(&mut sheet.aside));
    let mut flows = columns::flows(rows, &sheet.rules);
    flows.extend(columns::flows(aside, &sheet.rules));
    flows.iter().flat_map(|flow| blocks::blocks(&sheet, flow, mono_counts)).collect()
}

/// A remark for the owner: pages that are damaged or have no text, or text that cannot be decoded.
fn note(sheets: &[Sheet], census: &Census, cut_off: bool) -> Result<Option<String>, Fault> {
    let empty = sheets.iter().filter(|sheet| sheet.rows.is_empty() && sheet.aside.is_empty()).count();
    let scans: Vec<usize> = (0..sheets.len()).filter(|&page| is_scan(&sheets[page])).collect();
    let images = scans.len();
    let words: usize = sheets.iter().map(Sheet::words_count).sum();
    let unknown: usize = sheets.iter().map(|sheet| sheet.unknown).sum();
    let chars: usize = sheets.iter().map(Sheet::chars).sum();
    let lost = lost(sheets, census, cut_off);
    let no_text = empty == sheets.len()
        || images == sheets.len()
        || (words < 3 * sheets.len() && images * 2 > sheets.len())
        || unknown * 2 > chars;
    if no_text {
        // Pages that are images count as read.
        return Err(match lost {
            Some(lost) if images * 2 < sheets.len() => Fault::DamagedPdf(format!("{lost}, and there is no text")),
            _ => Fault::NoText { pages: sheets.len() },
        });
    }
    let mut notes = Vec::new();
    notes.extend(lost.map(|lost| format!("{lost}; {}", super::MEND_PDF)));
    // An image at the beginning or the end is the cover.
    let last = sheets.len() - 1;
    if scans.iter().any(|&page| page > 0 && page < last) || images > 2 {
        let pages: Vec<usize> = scans.iter().map(|&page| census.places[page] + 1).collect();
        notes.push(format!(
            "{images} of {} pages are images without text and were left out (page{} {}); `ocrmypdf` adds the text",
            sheets.len(),
            if images == 1 { "" } else { "s" },
            ranges(&pages),
        ));
    }
    if unknown * 50 > chars {
        notes.push(format!("{unknown} of {chars} characters are in fonts without a mapping to text"));
    }
    Ok((!notes.is_empty()).then(|| notes.join("; ")))
}

/// Whether a page is an image without text. A line at its edge, of a scanner or an archive, makes no text of it.
fn is_scan(sheet: &Sheet) -> bool {
    const MOST_ROWS: usize = 3;
    const EDGE: f32 = 0.1;
    let at_edge = |row: &rows::Row| row.y < EDGE * sheet.height || row.y > (1.0 - EDGE) * sheet.height;
    sheet.pictured && sheet.aside.is_empty() && sheet.rows.len() <= MOST_ROWS && sheet.rows.iter().all(at_edge)
}

/// `3`, `3-5, 9`; many are cut off.
fn ranges(pages: &[usize]) -> String {
    const MOST: usize = 12;
    let runs: Vec<String> = pages
        .chunk_by(|a, b| a + 1 == *b)
        .map(|run| if run.len() == 1 { run[0].to_string() } else { format!("{}-{}", run[0], run[run.len() - 1]) })
        .collect();
    let more = if runs.len() > MOST { ", …" } else { "" };
    format!("{}{more}", runs[..runs.len().min(MOST)].join(", "))
}

/// The pages that cannot be read, and why; `None` if all can.
fn lost(sheets: &[Sheet], census: &Census, cut_off: bool) -> Option<String> {
    let damaged = sheets.iter().filter(|sheet| sheet.damaged).count();
    let found = counted(sheets.len());
    let Some(all) = census.all else {
        let damaged = if damaged > 0 { format!(", {damaged} of them damaged") } else { String::new() };
        return Some(format!("the PDF is {}; {found} found{damaged}, others may be missing", state(cut_off)));
    };
    let lost = damaged + all - sheets.len();
    (lost > 0).then(|| format!("{lost} of {} could not be read, or only in part: the PDF is {}", counted(all), state(cut_off)))
}

/// `1 page`, `2 pages`
fn counted(pages: usize) -> String {
    format!("{pages} page{}", if pages == 1 { "" } else { "s" })
}

/// The look of most of the text.
struct Look {
    /// Its font size.
    size: f32,
    /// Whether text in a monospaced font is special.
    mono_counts: bool,
    /// Whether most text is bold.
    bold: bool,
}

impl Look {
    fn new(sheets: &[Sheet]) -> Self {
        let mut sizes: HashMap<i32, usize> = HashMap::new();
        let (mut mono, mut bold, mut all) = (0, 0, 0);
        for word in sheets.iter().flat_map(|sheet| &sheet.rows).flat_map(|row| &row.words) {
            let length = word.length();
            *sizes.entry((word.size * 4.0).round() as i32).or_default() += length;
            mono += if word.style.mono { length } else { 0 };
            bold += if word.style.bold { length } else { 0 };
            all += length;
        }
        let size = sizes.iter().max_by_key(|&(&size, &count)| (count, size)).map_or(10.0, |(&size, _)| size as f32 / 4.0);
        Self { size, mono_counts: mono * 10 < all * 7, bold: bold * 2 > all }
    }
}

/// Words of the text, which tell whether a hyphen is part of a word.
fn words(sheets: &[Sheet]) -> write::Words {
    let mut words = write::Words::default();
    for sheet in sheets {
        for row in &sheet.rows {
            row.words.iter().for_each(|word| words.add(sheet.word(word)));
        }
    }
    words
}

/// The title from the document's information, unless a program made it up.
fn title(pdf: &Pdf) -> Option<String> {
    let title = one_line(&text_string(pdf.metadata().title.as_deref()?));
    let lower = title.to_lowercase();
    let made_up = ["untitled", "microsoft word", "unknown", "slide 1", "powerpoint"].iter().any(|name| lower.starts_with(name))
        || [".doc", ".docx", ".dvi", ".tex", ".qxd", ".indd", ".fm", ".pdf", ".ps", ".odt", ".xls", ".ppt"]
            .iter()
            .any(|end| lower.ends_with(end));
    (title.chars().filter(|char| char.is_alphabetic()).count() >= 3 && !made_up).then_some(title)
}

/// The largest text on the first page with text, if it is large.
fn title_by_size(sheets: &[Sheet], body: f32) -> Option<String> {
    let sheet = sheets.iter().take(3).find(|sheet| !sheet.rows.is_empty())?;
    let largest = sheet.rows.iter().flat_map(|row| &row.words).filter(|word| word.length() >= 3).map(|word| word.size);
    let largest = largest.fold(0.0, f32::max);
    let large = |row: &rows::Row| row.words.iter().filter(|word| word.size > largest - 0.5).copied().collect::<Vec<_>>();
    let lines = sheet.rows.iter().map(large).skip_while(Vec::is_empty).take_while(|words| !words.is_empty()).take(3);
    let title = one_line(&lines.map(|words| sheet.line(&words)).collect::<Vec<_>>().join(" "));
    let letters = title.chars().filter(|char| char.is_alphabetic()).count();
    (largest > 1.25 * body && letters >= 3 && title.chars().count() <= 120).then_some(title)
}

/// A text string (ISO 32000-2, 7.9.2.2): UTF-16 or UTF-8 by its byte order mark, else `PDFDocEncoding`.
fn text_string(bytes: &[u8]) -> String {
    const HIGH: [char; 33] = [
        '•', '†', '‡', '…', '—', '–', 'ƒ', '⁄', '‹', '›', '−', '‰', '„', '“', '”', '‘', '’', '‚', '™', 'ﬁ', 'ﬂ', 'Ł', 'Œ', 'Š',
        'Ÿ', 'Ž', 'ı', 'ł', 'œ', 'š', 'ž', '\u{9F}', '€',
    ];
    let marked = [&[0xFE, 0xFF][..], &[0xFF, 0xFE], &[0xEF, 0xBB, 0xBF]].iter().any(|mark| bytes.starts_with(mark));
    if marked {
        return super::decode(bytes).0;
    }
    let char = |&byte: &u8| match byte {
        0x80..=0xA0 => HIGH[usize::from(byte - 0x80)],
        _ => char::from(byte),
    };
    bytes.iter().map(char).collect()
}
