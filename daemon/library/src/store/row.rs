//! The search row of a chunk: its vector in int8 and its terms with their counts, in one value.
//!
//! Layout, little-endian: dimensions u16, scale f32, codes int8 x dimensions, heading length u16, body length u16 (both in
//! terms), then per distinct term: byte length u8, bytes, count in title and headings u8, count in the body u8.

use std::collections::BTreeMap;

use super::terms::{self, Language};

/// Occurrences of a term in a chunk's title and headings, and in its body; both stop at 255.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) head: u8,
    pub(super) body: u8,
}

/// A search row, borrowed from its stored bytes.
pub(super) struct Row<'a> {
    pub(super) scale: f32,
    /// int8 codes, as bytes.
    pub(super) codes: &'a [u8],
    /// Number of terms in title and headings, and in the body.
    pub(super) lengths: [u16; 2],
    terms: &'a [u8],
}

/// Symmetric int8 quantisation: `value ~ code * scale` with the largest magnitude at 127.
pub(super) fn quantize(vector: &[f32]) -> (f32, Vec<i8>) {
    let largest = vector.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    if largest == 0.0 {
        return (0.0, vec![0; vector.len()]);
    }
    let scale = largest / 127.0;
    let codes = vector.iter().map(|value| (value / scale).round() as i8).collect();
    (scale, codes)
}

/// Encodes the row of a chunk: `vector`, the terms of `head` (title and headings) and those of `body`, in the document's
/// `language`.
pub(super) fn encode(vector: &[f32], head: &str, body: &str, language: Language) -> Vec<u8> {
    let (scale, codes) = quantize(vector);
    let codes: Vec<u8> = codes.iter().map(|&code| code as u8).collect();
    encode_quantized(scale, &codes, head, body, language)
}

/// Encodes a row with terms of its own and the vector of another one.
pub(super) fn encode_anew(row: &Row<'_>, head: &str, body: &str, language: Language) -> Vec<u8> {
    encode_quantized(row.scale, row.codes, head, body, language)
}

fn encode_quantized(scale: f32, codes: &[u8], head: &str, body: &str, language: Language) -> Vec<u8> {
    let mut counts: BTreeMap<String, Counts> = BTreeMap::new();
    let head = terms::analyze(head, language);
    let body = terms::analyze(body, language);
    let lengths = [head.length, body.length].map(|length| length.min(usize::from(u16::MAX)) as u16);
    for term in head.terms {
        let count = counts.entry(term).or_default();
        count.head = count.head.saturating_add(1);
    }
    for term in body.terms {
        let count = counts.entry(term).or_default();
        count.body = count.body.saturating_add(1);
    }
    let mut bytes = Vec::with_capacity(10 + codes.len() + counts.len() * 10);
    bytes.extend_from_slice(&(codes.len() as u16).to_le_bytes());
    bytes.extend_from_slice(&scale.to_le_bytes());
    bytes.extend_from_slice(codes);
    for length in lengths {
        bytes.extend_from_slice(&length.to_le_bytes());
    }
    for (term, count) in counts {
        // `terms` bounds a term at 64 bytes.
        bytes.push(term.len() as u8);
        bytes.extend_from_slice(term.as_bytes());
        bytes.push(count.head);
        bytes.push(count.body);
    }
    bytes
}

/// Reads a row back; `None` when the bytes are no row.
pub(super) fn decode(bytes: &[u8]) -> Option<Row<'_>> {
    let (dimensions, rest) = bytes.split_first_chunk()?;
    let (scale, rest) = rest.split_first_chunk()?;
    let (codes, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*dimensions)))?;
    let (head, rest) = rest.split_first_chunk()?;
    let (body, terms) = rest.split_first_chunk()?;
    Some(Row { scale: f32::from_le_bytes(*scale), codes, lengths: [u16::from_le_bytes(*head), u16::from_le_bytes(*body)], terms })
}

impl<'a> Row<'a> {
    /// Calls `visit` with each distinct term; `None` when the bytes end in the middle of one.
    pub(super) fn for_each_term(&self, mut visit: impl FnMut(&'a str, Counts)) -> Option<()> {
        let mut rest = self.terms;
        while let Some((&length, after)) = rest.split_first() {
            let (term, after) = after.split_at_checked(usize::from(length))?;
            let (&[head, body], after) = after.split_first_chunk()?;
            visit(std::str::from_utf8(term).ok()?, Counts { head, body });
            rest = after;
        }
        Some(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_row_comes_back_as_it_went_in() {
        let vector = [0.6f32, -0.8, 0.0];
        let bytes = encode(&vector, "Pump", "The pump hums; pumps hum. E-42", Language::English);
        let row = decode(&bytes).unwrap();
        for (code, value) in row.codes.iter().zip(vector) {
            assert!((f32::from(*code as i8) * row.scale - value).abs() <= row.scale / 2.0);
        }
        let mut found = Vec::new();
        row.for_each_term(|term, counts| found.push((term.to_owned(), counts))).unwrap();
        assert!(found.contains(&("pump".to_owned(), Counts { head: 1, body: 2 })), "{found:?}");
        assert!(found.contains(&("e-42".to_owned(), Counts { head: 0, body: 1 })));
        assert_eq!(row.lengths[0], 1);
        for cut in 0..bytes.len() {
            // A cut row is an error or ends at a term; it never panics.
            let _ = decode(&bytes[..cut]).and_then(|row| row.for_each_term(|_, _| ()));
        }
    }

    #[test]
    fn a_zero_vector_has_no_scale() {
        assert_eq!(quantize(&[0.0, 0.0]), (0.0, vec![0, 0]));
    }
}
