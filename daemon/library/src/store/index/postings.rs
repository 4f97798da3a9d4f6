//! Packed postings of a term by rising row. Each row has its distance to the row before, shifted left by one (LEB128). The
//! lowest bit says that the term stands once in the body and nowhere else; otherwise both counts follow as bytes.

use super::super::row::Counts;

/// Occurrences of one term in one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Posting {
    /// The row.
    pub row: u32,
    /// Occurrences in document title and headings, at most 255.
    pub head: u8,
    /// Occurrences in the body, at most 255.
    pub body: u8,
}

const ONCE: Counts = Counts { head: 0, body: 1 };

/// Postings being written.
#[derive(Debug, Default)]
pub(super) struct Packed {
    pub(super) bytes: Vec<u8>,
    /// Rows that hold the term.
    pub(super) count: u32,
    next_row: u32,
}

impl Packed {
    /// Appends a row, which is higher than all before.
    pub(super) fn push(&mut self, row: u32, counts: Counts) {
        let mut number = u64::from(row - self.next_row) << 1 | u64::from(counts == ONCE);
        let mut bytes = [0u8; 7];
        let mut used = 0;
        while number >= 0x80 {
            bytes[used] = number as u8 | 0x80;
            number >>= 7;
            used += 1;
        }
        bytes[used] = number as u8;
        used += 1;
        if counts != ONCE {
            bytes[used..used + 2].copy_from_slice(&[counts.head, counts.body]);
            used += 2;
        }
        if self.bytes.capacity() - self.bytes.len() < used {
            // Most terms are rare: the buffer grows by an eighth, not by half.
            self.bytes.reserve_exact(used.max(self.bytes.len() / 8));
        }
        self.bytes.extend_from_slice(&bytes[..used]);
        self.next_row = row + 1;
        self.count += 1;
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        (self.count, self.next_row) = (0, 0);
    }
}

/// Reads packed postings; ends early if the bytes make no sense.
#[derive(Clone, Debug)]
pub(super) struct Unpacked<'a> {
    bytes: &'a [u8],
    next_row: u64,
    /// Number of rows in the index.
    rows: u32,
    /// Added to each row.
    offset: u32,
}

impl<'a> Unpacked<'a> {
    pub(super) fn new(bytes: &'a [u8], rows: u32, offset: u32) -> Unpacked<'a> {
        Unpacked { bytes, next_row: 0, rows, offset }
    }
}

impl Iterator for Unpacked<'_> {
    type Item = Posting;

    #[inline]
    fn next(&mut self) -> Option<Posting> {
        let (mut number, mut shift) = (0u64, 0);
        loop {
            let (&byte, rest) = self.bytes.split_first()?;
            self.bytes = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
            shift += 7;
            if shift > 35 {
                return None;
            }
        }
        let counts = if number & 1 == 1 {
            ONCE
        } else {
            let (&[head, body], rest) = self.bytes.split_first_chunk()?;
            self.bytes = rest;
            Counts { head, body }
        };
        let row = self.next_row + (number >> 1);
        self.next_row = row + 1;
        (row < u64::from(self.rows)).then(|| Posting { row: row as u32 + self.offset, head: counts.head, body: counts.body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postings_come_back_over_long_distances() {
        let mut packed = Packed::default();
        let rows = [0, 1, 5, 70, 71, 9000, 2_000_000, u32::MAX - 1];
        let counts = [ONCE, Counts { head: 1, body: 0 }, Counts { head: 255, body: 255 }];
        for (at, row) in rows.into_iter().enumerate() {
            packed.push(row, counts[at % 3]);
        }
        let found: Vec<(u32, u8, u8)> = Unpacked::new(&packed.bytes, u32::MAX, 0).map(|p| (p.row, p.head, p.body)).collect();
        let expected: Vec<(u32, u8, u8)> =
            rows.into_iter().enumerate().map(|(at, row)| (row, counts[at % 3].head, counts[at % 3].body)).collect();
        assert_eq!(found, expected);
        assert_eq!(packed.count, 8);
    }

    #[test]
    fn nonsense_ends_early() {
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..2000 {
            let bytes: Vec<u8> = (0..random.usize(0..40)).map(|_| random.u8(..)).collect();
            assert!(Unpacked::new(&bytes, 1000, 7).all(|posting| (7..1007).contains(&posting.row)));
        }
    }
}
