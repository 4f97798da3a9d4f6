//! The search index file: its header and the places of its sections. The target writes right checksums, so that the code behind them is reached.
#![no_main]

use library::store::sections::{SectionKind, Sections};

/// 16 bytes, then 11 sections of 24, then the checksum of both.
const CHECKED: usize = 16 + 11 * 24;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    if bytes.len() >= CHECKED + 4 {
        bytes[..8].copy_from_slice(&u64::from_be_bytes(*b"VADEMIDX").to_ne_bytes());
        bytes[8..16].copy_from_slice(&(2_u64 | 11 << 32).to_ne_bytes());
        for kind in 0..11 {
            let at = 16 + kind * 24;
            let number = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
            // Small numbers reach more code than large ones.
            let (offset, length) =
                if bytes[at + 20] & 1 == 0 { (number(at) % 16 * 64, number(at + 8) % 512) } else { (number(at), number(at + 8)) };
            let end = offset.saturating_add(length).min(bytes.len() as u64) as usize;
            let sum = crc32fast::hash(bytes.get(offset as usize..end).unwrap_or_default());
            bytes[at..at + 8].copy_from_slice(&offset.to_ne_bytes());
            bytes[at + 8..at + 16].copy_from_slice(&length.to_ne_bytes());
            bytes[at + 16..at + 20].copy_from_slice(&sum.to_ne_bytes());
        }
        let sum = crc32fast::hash(&bytes[..CHECKED]);
        bytes[CHECKED..CHECKED + 4].copy_from_slice(&sum.to_ne_bytes());
    }
    let path = std::env::temp_dir().join(format!("vademecum-fuzz-{}", std::process::id()));
    std::fs::write(&path, &bytes).expect("a temporary file");
    if let Ok(sections) = Sections::open(&path) {
        for kind in [SectionKind::Shape, SectionKind::Scales, SectionKind::Codes, SectionKind::TermIndex, SectionKind::Postings] {
            sections.read_at_random(kind);
            let elements: &[u32] = sections.get(kind);
            std::hint::black_box(elements.iter().fold(0_u32, |sum, element| sum.wrapping_add(*element)));
        }
    }
});
