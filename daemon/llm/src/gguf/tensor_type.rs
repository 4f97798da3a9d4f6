//! The storage types of ggml and their block sizes.

use std::fmt;

/// The storage type of a tensor's elements: a ggml type with its block geometry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorType {
    /// ggml's number of the type.
    pub id: u32,
    /// ggml's name in upper case, for instance `Q8_0`.
    pub name: &'static str,
    /// Elements per block.
    pub block: u64,
    /// Bytes per block.
    pub block_bytes: u64,
}

/// `enum ggml_type` with the sizes of its blocks (ggml-common.h of ggml 0.26). Removed types are left out.
const TYPES: [TensorType; 35] = [
    of(0, "F32", 1, 4),
    of(1, "F16", 1, 2),
    of(2, "Q4_0", 32, 18),
    of(3, "Q4_1", 32, 20),
    of(6, "Q5_0", 32, 22),
    of(7, "Q5_1", 32, 24),
    of(8, "Q8_0", 32, 34),
    of(9, "Q8_1", 32, 36),
    of(10, "Q2_K", 256, 84),
    of(11, "Q3_K", 256, 110),
    of(12, "Q4_K", 256, 144),
    of(13, "Q5_K", 256, 176),
    of(14, "Q6_K", 256, 210),
    of(15, "Q8_K", 256, 292),
    of(16, "IQ2_XXS", 256, 66),
    of(17, "IQ2_XS", 256, 74),
    of(18, "IQ3_XXS", 256, 98),
    of(19, "IQ1_S", 256, 50),
    of(20, "IQ4_NL", 32, 18),
    of(21, "IQ3_S", 256, 110),
    of(22, "IQ2_S", 256, 82),
    of(23, "IQ4_XS", 256, 136),
    of(24, "I8", 1, 1),
    of(25, "I16", 1, 2),
    of(26, "I32", 1, 4),
    of(27, "I64", 1, 8),
    of(28, "F64", 1, 8),
    of(29, "IQ1_M", 256, 56),
    of(30, "BF16", 1, 2),
    of(34, "TQ1_0", 256, 54),
    of(35, "TQ2_0", 256, 66),
    of(39, "MXFP4", 32, 17),
    of(40, "NVFP4", 64, 36),
    of(41, "Q1_0", 128, 18),
    of(42, "Q2_0", 64, 18),
];

const fn of(id: u32, name: &'static str, block: u64, block_bytes: u64) -> TensorType {
    TensorType { id, name, block, block_bytes }
}

impl TensorType {
    /// 32-bit floating point.
    pub const F32: TensorType = of(0, "F32", 1, 4);
    /// 16-bit IEEE floating point.
    pub const F16: TensorType = of(1, "F16", 1, 2);
    /// 8-bit integers in blocks of 32 with one f16 scale.
    pub const Q8_0: TensorType = of(8, "Q8_0", 32, 34);

    /// The type of this number, if this version knows it.
    pub fn from_id(id: u32) -> Option<TensorType> {
        TYPES.iter().copied().find(|known| known.id == id)
    }

    /// Bytes of a tensor of these dimensions; `None` when a row is not a whole number of blocks, or on overflow.
    pub fn bytes_of(self, dims: &[u64]) -> Option<u64> {
        let row = *dims.first()?;
        if row % self.block != 0 {
            return None;
        }
        let row_bytes = (row / self.block).checked_mul(self.block_bytes)?;
        dims.iter().skip(1).try_fold(row_bytes, |bytes, n| bytes.checked_mul(*n))
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_agree_with_ggml() {
        for known in TYPES {
            // SAFETY: both functions only read a static table, and every id here is below GGML_TYPE_COUNT.
            let (block, bytes) =
                unsafe { (llama_cpp_sys_2::ggml_blck_size(known.id), llama_cpp_sys_2::ggml_type_size(known.id)) };
            assert_eq!((known.block as i64, known.block_bytes as usize), (block, bytes), "{known}");
        }
    }

    #[test]
    fn rows_must_be_whole_blocks() {
        assert_eq!(TensorType::Q8_0.bytes_of(&[384, 2]), Some(816));
        assert_eq!(TensorType::Q8_0.bytes_of(&[385, 2]), None);
        assert_eq!(TensorType::F32.bytes_of(&[u64::MAX, 2]), None);
    }
}
