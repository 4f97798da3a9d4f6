//! The vectors of a chunk's statements, beside the chunk: quotes are chosen without the encoder.
//!
//! Layout, little-endian: version u8 (the caller's, for its rules of statements), dimensions u16, then per statement: scale
//! f32, codes of 4 bits, two in a byte, the first in the low half. 4 bits choose the same sentences as 8 or 32.

/// Codes lie in -7..=7 and are kept with 8 added.
const LARGEST: f32 = 7.0;
const ZERO: i8 = 8;

/// The vectors of a chunk's statements.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StatementVectors {
    /// Version of the rules that made the statements.
    pub version: u8,
    /// Vectors of length 1 or nearly so, in the order of the statements; none: nothing is kept.
    pub vectors: Vec<Vec<f32>>,
}

/// Encodes vectors of `dimensions` numbers each.
pub(super) fn encode(statements: &StatementVectors, dimensions: usize) -> Vec<u8> {
    let mut bytes = vec![statements.version];
    bytes.extend_from_slice(&(dimensions as u16).to_le_bytes());
    for vector in &statements.vectors {
        let scale = vector.iter().fold(0.0f32, |largest, value| largest.max(value.abs())) / LARGEST;
        let code = |value: &f32| if scale == 0.0 { ZERO as u8 } else { ((value / scale).round() as i8 + ZERO) as u8 };
        bytes.extend_from_slice(&scale.to_le_bytes());
        bytes.extend(vector.chunks(2).map(|pair| code(&pair[0]) | pair.get(1).map_or(0, code) << 4));
    }
    bytes
}

/// Reads them back; `None` when the bytes are not such vectors.
pub(super) fn decode(bytes: &[u8]) -> Option<StatementVectors> {
    let (&version, rest) = bytes.split_first()?;
    let (dimensions, rest) = rest.split_first_chunk()?;
    let dimensions = usize::from(u16::from_le_bytes(*dimensions));
    let each = rest.chunks(size_of::<f32>() + dimensions.div_ceil(2));
    let vector = |bytes: &[u8]| {
        let (scale, codes) = bytes.split_first_chunk()?;
        let scale = f32::from_le_bytes(*scale);
        let value = |code: u8| f32::from(code as i8 - ZERO) * scale;
        let mut values: Vec<f32> = codes.iter().flat_map(|pair| [value(pair & 15), value(pair >> 4)]).collect();
        (values.len() >= dimensions).then(|| values.truncate(dimensions))?;
        Some(values)
    };
    Some(StatementVectors { version, vectors: each.map(vector).collect::<Option<_>>()? })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn vectors_come_back_within_half_a_step() {
        for vectors in [vec![vec![0.6, -0.8, 0.01], vec![0.0, 0.0, 0.0]], vec![vec![1.0, 0.0], vec![-0.3, 0.9]], vec![]] {
            let dimensions = vectors.first().map_or(3, Vec::len);
            let kept = StatementVectors { version: 3, vectors };
            let bytes = encode(&kept, dimensions);
            assert_eq!(bytes.len(), 3 + kept.vectors.len() * (4 + dimensions.div_ceil(2)));
            let back = decode(&bytes).unwrap();
            assert_eq!((back.version, back.vectors.len()), (3, kept.vectors.len()));
            for (kept, back) in kept.vectors.iter().flatten().zip(back.vectors.iter().flatten()) {
                assert!((kept - back).abs() <= 0.9 / 14.0 + 1e-6, "{kept} {back}");
            }
        }
    }

    #[test]
    fn cut_bytes_are_none_or_fewer_vectors() {
        let bytes = encode(&StatementVectors { version: 1, vectors: vec![vec![0.5; 5]; 2] }, 5);
        let lengths: Vec<_> = (0..=bytes.len()).map(|cut| decode(&bytes[..cut]).map(|kept| kept.vectors.len())).collect();
        assert!(
            lengths
                .iter()
                .enumerate()
                .all(|(cut, found)| *found == [(3, 0), (10, 1), (17, 2)].iter().find(|e| e.0 == cut).map(|e| e.1))
        );
        assert!(decode(&[1, 0, 0, 9]).is_none_or(|kept| kept.vectors.iter().all(Vec::is_empty)));
    }
}
