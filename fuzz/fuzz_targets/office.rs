//! Office files, RTF and separated values. The first byte chooses the reader. The parts of an archive are reached without a valid
//! archive around them: the target writes one, and spreads the bytes over the parts.
#![no_main]

use read::formats::{CSV, DOCX, ODS, ODT, PPTX, RTF, XLSX};

/// The parts that each reader looks for.
const PARTS: [&[&str]; 4] = [
    &["word/document.xml", "word/_rels/document.xml.rels", "word/styles.xml", "word/numbering.xml", "word/footnotes.xml"],
    &["xl/workbook.xml", "xl/_rels/workbook.xml.rels", "xl/worksheets/sheet1.xml", "xl/sharedStrings.xml", "xl/styles.xml"],
    &["ppt/presentation.xml", "ppt/_rels/presentation.xml.rels", "ppt/slides/slide1.xml", "ppt/slides/_rels/slide1.xml.rels"],
    &["content.xml", "styles.xml", "META-INF/manifest.xml"],
];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, rest)) = bytes.split_first() else { return };
    let archive = |parts: &[&str]| {
        let each = rest.len().div_ceil(parts.len()).max(1);
        stored(parts.iter().copied().zip(rest.chunks(each)))
    };
    let _ = match choice % 12 {
        0 => DOCX.parse(archive(PARTS[0])),
        1 => XLSX.parse(archive(PARTS[1])),
        2 => PPTX.parse(archive(PARTS[2])),
        3 => ODT.parse(archive(PARTS[3])),
        4 => ODS.parse(archive(PARTS[3])),
        5 => RTF.parse([b"{\\rtf1", rest].concat()),
        6 => CSV.parse(rest.to_vec()),
        7 => DOCX.parse(rest.to_vec()),
        8 => XLSX.parse(rest.to_vec()),
        9 => PPTX.parse(rest.to_vec()),
        _ => ODT.parse(rest.to_vec()),
    };
});

/// A ZIP archive of stored files.
fn stored<'a>(files: impl Iterator<Item = (&'a str, &'a [u8])>) -> Vec<u8> {
    let (mut bytes, mut directory, mut count) = (Vec::new(), Vec::new(), 0_u16);
    for (name, content) in files {
        let header = (bytes.len() as u32).to_le_bytes();
        let size = (content.len() as u32).to_le_bytes();
        let name_size = (name.len() as u16).to_le_bytes();
        let common = [&[0; 6][..], &crc32fast::hash(content).to_le_bytes(), &size, &size, &name_size, &[0, 0]].concat();
        bytes.extend([b"PK\x03\x04\x14\0\0\0", &common[..], name.as_bytes(), content].concat());
        let places = [&[0; 10][..], &header].concat();
        directory.extend([b"PK\x01\x02\x14\0\x14\0\0\0", &common[..], &places, name.as_bytes()].concat());
        count += 1;
    }
    let (count, size, place) = (count.to_le_bytes(), (directory.len() as u32).to_le_bytes(), (bytes.len() as u32).to_le_bytes());
    [&bytes[..], &directory, b"PK\x05\x06\0\0\0\0", &count, &count, &size, &place, &[0, 0]].concat()
}
