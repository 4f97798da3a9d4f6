//! The inner loops of the dense search, picked at run time for the processor.
//!
//! Two loops, over int8 rows and over packed sign bits. All arithmetic is in integers: every kernel gives the same numbers, and
//! the choice of one only changes the speed.
#![allow(unsafe_code, reason = "vector instructions")]

/// Rows per block of packed signs, and per call of [`Kernel::dots`].
pub(in super::super) const BLOCK: usize = 32;
/// Largest magnitude of a query's code. 12 bits lose nothing against int8 rows. A sum over 8,192 dimensions of 127 x 2047
/// still fits an i32.
pub(super) const QUERY_MAX: f32 = 2047.0;
/// Dimensions whose signs share a table of 16 sums.
const GROUP: usize = 4;
/// Table entries that are added up in a byte before they go into a wider sum. This limits an entry to 31, which is still far
/// finer than the information in a sign.
const RUN: usize = 8;
/// Bytes that come into the cache at once. The value matters for speed only.
const LINE: usize = 64;
/// Distance in bytes by which signs are prefetched: 4 to 8 KiB did equally well.
#[cfg(target_arch = "x86_64")]
const SIGNS_AHEAD: usize = 6 << 10;

/// A set of loops that this processor can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    /// Plain Rust.
    Portable,
    /// 256-bit `pmaddwd` and `pshufb`. The same in 512 bits measured no faster for the products and 7 % for the signs.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// `smlal` and `tbl`, on every aarch64.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// `sdot` instead of `smlal`: Cortex-A55, A76 and later.
    #[cfg(target_arch = "aarch64")]
    DotProduct,
}

/// A question's vector as the kernels read it.
#[derive(Clone, Debug)]
pub(super) struct Codes {
    /// Codes of 12 bits.
    codes: Vec<i16>,
    /// The same codes as `32 * high + low`, for `sdot`, which multiplies bytes.
    #[cfg_attr(not(target_arch = "aarch64"), allow(dead_code))]
    planes: [Vec<i8>; 2],
}

impl Codes {
    pub(super) fn new(codes: Vec<i16>) -> Codes {
        let high = codes.iter().map(|code| (code >> 5) as i8).collect();
        let low = codes.iter().map(|code| (code & 31) as i8).collect();
        Codes { codes, planes: [high, low] }
    }

    pub(super) fn len(&self) -> usize {
        self.codes.len()
    }
}

/// Bytes of a block of signs: 16 for each group of 4 dimensions, groups rounded up to even.
pub(super) fn block_bytes(dimensions: usize) -> usize {
    groups(dimensions) * 16
}

/// Groups of four dimensions, rounded up to even: AVX2 takes two at a time.
pub(super) fn groups(dimensions: usize) -> usize {
    dimensions.div_ceil(GROUP).next_multiple_of(2)
}

/// Sets the sign of a dimension of a row within its block. Byte `i` of a group's 16 bytes holds four signs of row `i` in its
/// low half, and of row `i + 16` in its high half. One shuffle then looks up sixteen rows.
pub(super) fn set_sign(block: &mut [u8], row: usize, dimension: usize) {
    let shift = dimension % GROUP + if row < 16 { 0 } else { 4 };
    block[dimension / GROUP * 16 + row % 16] |= 1 << shift;
}

/// Tables for [`Kernel::sign_sums`]: for each group the contribution of each combination of four signs, shifted to be positive
/// and scaled to small whole numbers. Returns the tables and the value of one step in them. A row's sum times that value is
/// about the sum over all dimensions of `query * sign`, plus the sum of the magnitudes of `query`.
pub(super) fn sign_tables(query: &[f32]) -> (Vec<u8>, f32) {
    let groups = groups(query.len());
    let magnitude = |values: &[f32]| values.iter().map(|value| value.abs()).sum::<f32>();
    let widest = query.chunks(GROUP).fold(0.0f32, |widest, values| widest.max(2.0 * magnitude(values)));
    // The sum over a run has to stay below 2^8, the sum over all groups below 2^16.
    let largest = (usize::from(u8::MAX) / RUN).min(usize::from(u16::MAX) / groups.max(1)) as f32;
    let step = if widest > 0.0 { widest / largest } else { 1.0 };
    let mut tables = vec![0; groups * 16];
    for (values, table) in query.chunks(GROUP).zip(tables.chunks_exact_mut(16)) {
        let mut sums = [magnitude(values) - values.iter().sum::<f32>(); 16];
        for (at, value) in values.iter().enumerate() {
            (0..16).filter(|signs| signs >> at & 1 == 1).for_each(|signs| sums[signs] += 2.0 * value);
        }
        // A half is rounded down, so that no entry exceeds `largest`.
        table.iter_mut().zip(sums).for_each(|(entry, sum)| *entry = (sum / step + 0.499) as u8);
    }
    (tables, step)
}

/// Prefetches bytes that are read soon, so that they arrive together. The hint affects nothing but speed: the address may be
/// invalid, and the bytes of a mapped file are not read for it.
#[inline]
pub(super) fn prefetch(bytes: *const u8, count: usize) {
    for line in (0..count).step_by(LINE).map(|at| bytes.wrapping_add(at)) {
        // SAFETY: the instruction does nothing at an address that cannot be read.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(line.cast::<i8>());
        }
        // SAFETY: as above. The intrinsic is not stable.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            std::arch::asm!("prfm pldl1keep, [{}]", in(reg) line, options(readonly, nostack, preserves_flags));
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let _ = line;
    }
}

impl Kernel {
    /// The fastest kernel of this processor.
    pub(super) fn detect() -> Kernel {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                return Kernel::Avx2;
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                return Kernel::DotProduct;
            }
            if std::arch::is_aarch64_feature_detected!("neon") {
                return Kernel::Neon;
            }
        }
        #[allow(unreachable_code)]
        Kernel::Portable
    }

    /// All kernels of this processor, for tests and measurements.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Kernel> {
        #[allow(unused_mut)]
        let mut all = vec![Kernel::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(is_x86_feature_detected!("avx2").then_some(Kernel::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        {
            all.push(Kernel::Neon);
            all.extend(std::arch::is_aarch64_feature_detected!("dotprod").then_some(Kernel::DotProduct));
        }
        all
    }

    /// Writes to `out` the integer products of the query with consecutive rows of int8 codes, one per row.
    pub(super) fn dots(self, rows: &[i8], query: &Codes, out: &mut [i32]) {
        debug_assert_eq!(rows.len(), query.len() * out.len());
        let rows = rows.chunks_exact(query.len().max(1));
        match self {
            Kernel::Portable => rows.zip(out).for_each(|(row, out)| *out = portable::dot(row, &query.codes)),
            // SAFETY: these kernels exist only after `detect` or `all` found their instructions.
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => rows.zip(out).for_each(|(row, out)| *out = unsafe { x86::dot_avx2(row, &query.codes) }),
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Kernel::Neon => rows.zip(out).for_each(|(row, out)| *out = unsafe { arm::dot_neon(row, &query.codes) }),
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Kernel::DotProduct => rows.zip(out).for_each(|(row, out)| *out = unsafe { arm::dot_product(row, query) }),
        }
    }

    /// For each of the 32 rows of a block of signs the sum of its table entries, and the highest of the sums. No entry exceeds
    /// 255 / 8 (after the "fast scan" of Andre, Kermarrec and Le Scouarnec, 2015). `block` and `tables` have 16 bytes per
    /// group.
    pub(super) fn sign_sums(self, block: &[u8], tables: &[u8]) -> ([u16; BLOCK], u16) {
        assert_eq!(block.len(), tables.len());
        assert_eq!(block.len() % 32, 0);
        match self {
            Kernel::Portable => portable::sign_sums(block, tables),
            // SAFETY: these kernels exist only after `detect` or `all` found their instructions; both slices have the same
            // length, a multiple of 32.
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => unsafe { x86::sign_sums_avx2(block, tables) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Kernel::Neon | Kernel::DotProduct => unsafe { arm::sign_sums_neon(block, tables) },
        }
    }
}

/// The highest of the sums, inlined to use the caller's instructions.
#[inline]
fn highest(sums: &[u16; BLOCK]) -> u16 {
    sums.iter().fold(0, |highest, sum| highest.max(*sum))
}

mod portable {
    use super::{BLOCK, highest};

    pub(super) fn dot(row: &[i8], query: &[i16]) -> i32 {
        row.iter().zip(query).map(|(&code, &value)| i32::from(code) * i32::from(value)).sum()
    }

    pub(super) fn sign_sums(block: &[u8], tables: &[u8]) -> ([u16; BLOCK], u16) {
        let mut sums = [0u16; BLOCK];
        for (signs, table) in block.chunks_exact(16).zip(tables.chunks_exact(16)) {
            for (at, byte) in signs.iter().enumerate() {
                sums[at] += u16::from(table[usize::from(byte & 15)]);
                sums[at + 16] += u16::from(table[usize::from(byte >> 4)]);
            }
        }
        let highest = highest(&sums);
        (sums, highest)
    }
}

// Loads and stores are unaligned; the intrinsics are many.
#[allow(clippy::wildcard_imports, clippy::cast_ptr_alignment, clippy::needless_range_loop)]
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{BLOCK, RUN, SIGNS_AHEAD, highest, portable, prefetch};

    #[target_feature(enable = "avx2")]
    pub(super) fn dot_avx2(row: &[i8], query: &[i16]) -> i32 {
        let mut sums = [_mm256_setzero_si256(); 2];
        let (rows, queries) = (row.chunks_exact(32), query.chunks_exact(32));
        let rest = portable::dot(rows.remainder(), queries.remainder());
        for (row, query) in rows.zip(queries) {
            for half in 0..2 {
                // SAFETY: both chunks have 32 elements; a half is 16 bytes of codes and 32 bytes of the query.
                let (codes, values) = unsafe {
                    (
                        _mm_loadu_si128(row.as_ptr().cast::<__m128i>().add(half)),
                        _mm256_loadu_si256(query.as_ptr().cast::<__m256i>().add(half)),
                    )
                };
                sums[half] = _mm256_add_epi32(sums[half], _mm256_madd_epi16(_mm256_cvtepi8_epi16(codes), values));
            }
        }
        let sum = _mm256_add_epi32(sums[0], sums[1]);
        let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
        let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b01_00_11_10>(sum));
        let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b10_11_00_01>(sum));
        _mm_cvtsi128_si32(sum) + rest
    }

    /// Sums in bytes of up to [`RUN`] pairs of groups. Inlined, so that a whole run needs no loop.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn run_avx2(signs: &[u8], tables: &[u8]) -> [__m256i; 2] {
        let low = _mm256_set1_epi8(15);
        let mut bytes = [_mm256_setzero_si256(); 2];
        for (signs, table) in signs.chunks_exact(32).zip(tables.chunks_exact(32)) {
            // SAFETY: both chunks have 32 bytes.
            let (signs, table) = unsafe {
                (_mm256_loadu_si256(signs.as_ptr().cast::<__m256i>()), _mm256_loadu_si256(table.as_ptr().cast::<__m256i>()))
            };
            let halves = [_mm256_and_si256(signs, low), _mm256_and_si256(_mm256_srli_epi16::<4>(signs), low)];
            for half in 0..2 {
                bytes[half] = _mm256_add_epi8(bytes[half], _mm256_shuffle_epi8(table, halves[half]));
            }
        }
        bytes
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn sign_sums_avx2(block: &[u8], tables: &[u8]) -> ([u16; BLOCK], u16) {
        const BYTES: usize = 32 * RUN;
        // Sums of whole words and of their upper bytes. The lower bytes are the difference, modulo 2^16.
        let mut words = [_mm256_setzero_si256(); 2];
        let mut uppers = [_mm256_setzero_si256(); 2];
        let mut widen = |bytes: [__m256i; 2]| {
            for half in 0..2 {
                words[half] = _mm256_add_epi16(words[half], bytes[half]);
                uppers[half] = _mm256_add_epi16(uppers[half], _mm256_srli_epi16::<8>(bytes[half]));
            }
        };
        let (runs, rest) = block.as_chunks::<BYTES>();
        let (runs_of_tables, rest_of_tables) = tables.as_chunks::<BYTES>();
        for (signs, tables) in runs.iter().zip(runs_of_tables) {
            // Measured: the next page's signs arrive more slowly than these are added up.
            prefetch(signs.as_ptr().wrapping_add(SIGNS_AHEAD), BYTES);
            widen(run_avx2(signs, tables));
        }
        widen(run_avx2(rest, rest_of_tables));
        let mut sums = [0u16; BLOCK];
        for half in 0..2 {
            let lowers = _mm256_sub_epi16(words[half], _mm256_slli_epi16::<8>(uppers[half]));
            // The two lanes hold alternating groups.
            let [even, odd] = [lowers, uppers[half]]
                .map(|sums| _mm_add_epi16(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums)));
            let out = sums[16 * half..].as_mut_ptr().cast::<__m128i>();
            // SAFETY: each half has 16 sums of two bytes: two vectors.
            unsafe {
                _mm_storeu_si128(out, _mm_unpacklo_epi16(even, odd));
                _mm_storeu_si128(out.add(1), _mm_unpackhi_epi16(even, odd));
            }
        }
        let highest = highest(&sums);
        (sums, highest)
    }
}

// Loads and stores are unaligned; the intrinsics are many.
#[allow(clippy::wildcard_imports, clippy::cast_ptr_alignment, clippy::needless_range_loop)]
#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;

    use super::{BLOCK, Codes, RUN, highest, portable};

    #[target_feature(enable = "neon")]
    pub(super) fn dot_neon(row: &[i8], query: &[i16]) -> i32 {
        let mut sums = [vdupq_n_s32(0); 4];
        let (rows, queries) = (row.chunks_exact(16), query.chunks_exact(16));
        let rest = portable::dot(rows.remainder(), queries.remainder());
        for (row, query) in rows.zip(queries) {
            // SAFETY: both chunks have 16 elements.
            let (codes, first, second) =
                unsafe { (vld1q_s8(row.as_ptr()), vld1q_s16(query.as_ptr()), vld1q_s16(query.as_ptr().add(8))) };
            let (lower, upper) = (vmovl_s8(vget_low_s8(codes)), vmovl_high_s8(codes));
            sums[0] = vmlal_s16(sums[0], vget_low_s16(lower), vget_low_s16(first));
            sums[1] = vmlal_high_s16(sums[1], lower, first);
            sums[2] = vmlal_s16(sums[2], vget_low_s16(upper), vget_low_s16(second));
            sums[3] = vmlal_high_s16(sums[3], upper, second);
        }
        vaddvq_s32(vaddq_s32(vaddq_s32(sums[0], sums[1]), vaddq_s32(sums[2], sums[3]))) + rest
    }

    #[target_feature(enable = "neon,dotprod")]
    pub(super) fn dot_product(row: &[i8], query: &Codes) -> i32 {
        let [high, low] = &query.planes;
        let whole = row.len() / 16 * 16;
        let mut sums = [vdupq_n_s32(0); 2];
        for at in (0..whole).step_by(16) {
            // SAFETY: row and planes have the same length, and 16 bytes follow each `at` below `whole`.
            let (codes, high, low) =
                unsafe { (vld1q_s8(row.as_ptr().add(at)), vld1q_s8(high.as_ptr().add(at)), vld1q_s8(low.as_ptr().add(at))) };
            sums[0] = sdot(sums[0], codes, high);
            sums[1] = sdot(sums[1], codes, low);
        }
        32 * vaddvq_s32(sums[0]) + vaddvq_s32(sums[1]) + portable::dot(&row[whole..], &query.codes[whole..])
    }

    /// The intrinsic `vdotq_s32` is not stable in the oldest Rust that this code builds with.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    fn sdot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        // SAFETY: one instruction on registers, which the enabled feature provides.
        unsafe {
            std::arch::asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sum, in(vreg) a, in(vreg) b,
                options(pure, nomem, nostack, preserves_flags));
        }
        sum
    }

    /// Sums in bytes of up to [`RUN`] groups. Inlined, so that a whole run needs no loop.
    #[inline]
    #[target_feature(enable = "neon")]
    fn run_neon(signs: &[u8], tables: &[u8]) -> [uint8x16_t; 2] {
        let low = vdupq_n_u8(15);
        let mut bytes = [vdupq_n_u8(0); 2];
        for (signs, table) in signs.chunks_exact(16).zip(tables.chunks_exact(16)) {
            // SAFETY: both chunks have 16 bytes.
            let (signs, table) = unsafe { (vld1q_u8(signs.as_ptr()), vld1q_u8(table.as_ptr())) };
            bytes[0] = vaddq_u8(bytes[0], vqtbl1q_u8(table, vandq_u8(signs, low)));
            bytes[1] = vaddq_u8(bytes[1], vqtbl1q_u8(table, vshrq_n_u8::<4>(signs)));
        }
        bytes
    }

    #[target_feature(enable = "neon")]
    pub(super) fn sign_sums_neon(block: &[u8], tables: &[u8]) -> ([u16; BLOCK], u16) {
        const BYTES: usize = 16 * RUN;
        let mut parts = [vdupq_n_u16(0); 4];
        let mut widen = |bytes: [uint8x16_t; 2]| {
            for half in 0..2 {
                parts[2 * half] = vaddw_u8(parts[2 * half], vget_low_u8(bytes[half]));
                parts[2 * half + 1] = vaddw_high_u8(parts[2 * half + 1], bytes[half]);
            }
        };
        let (runs, rest) = block.as_chunks::<BYTES>();
        let (runs_of_tables, rest_of_tables) = tables.as_chunks::<BYTES>();
        runs.iter().zip(runs_of_tables).for_each(|(signs, tables)| widen(run_neon(signs, tables)));
        widen(run_neon(rest, rest_of_tables));
        let mut sums = [0u16; BLOCK];
        for (part, out) in parts.into_iter().zip(sums.chunks_exact_mut(8)) {
            // SAFETY: each chunk has eight sums.
            unsafe { vst1q_u16(out.as_mut_ptr(), part) };
        }
        let highest = highest(&sums);
        (sums, highest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_gives_the_same_products() {
        let mut random = fastrand::Rng::with_seed(3);
        for dimensions in [1, 4, 15, 16, 31, 33, 64, 100, 384, 768, 1001, 8192] {
            let extreme = random.bool();
            let mut code = |limit: i16| if extreme { limit } else { random.i16(-limit..=limit) };
            let rows: Vec<i8> = (0..3 * dimensions).map(|_| code(127) as i8).collect();
            let query = Codes::new((0..dimensions).map(|_| code(2047)).collect());
            let mut expected = [0; 3];
            Kernel::Portable.dots(&rows, &query, &mut expected);
            let first: i32 = (0..dimensions).map(|at| i32::from(rows[at]) * i32::from(query.codes[at])).sum();
            assert_eq!(expected[0], first);
            for kernel in Kernel::all() {
                let mut found = [0; 3];
                kernel.dots(&rows, &query, &mut found);
                assert_eq!(found, expected, "{kernel:?} {dimensions}");
            }
        }
    }

    #[test]
    fn every_kernel_gives_the_right_sign_sums() {
        let mut random = fastrand::Rng::with_seed(4);
        for dimensions in [1, 7, 16, 30, 128, 384, 1000, 1024, 4096, 8192] {
            let query: Vec<f32> = (0..dimensions).map(|_| random.f32() - 0.5).collect();
            let signs: Vec<Vec<bool>> = (0..BLOCK).map(|_| (0..dimensions).map(|_| random.bool()).collect()).collect();
            let mut block = vec![0; block_bytes(dimensions)];
            for (row, signs) in signs.iter().enumerate() {
                (0..dimensions).filter(|at| signs[*at]).for_each(|at| set_sign(&mut block, row, at));
            }
            let (tables, step) = sign_tables(&query);
            let magnitude: f32 = query.iter().map(|value| value.abs()).sum();
            let (sums, highest) = Kernel::Portable.sign_sums(&block, &tables);
            for (sum, signs) in sums.iter().zip(&signs) {
                let exact: f32 = query.iter().zip(signs).map(|(value, sign)| if *sign { *value } else { -value }).sum();
                let found = f32::from(*sum) * step - magnitude;
                // Each group may be off by half a step.
                assert!((found - exact).abs() <= 0.51 * step * groups(dimensions) as f32 + 1e-3, "{dimensions}: {found} {exact}");
            }
            assert_eq!(Some(&highest), sums.iter().max());
            // The largest possible entries: sums of bytes and words must not overflow.
            let full = vec![u8::MAX / RUN as u8; tables.len()];
            let most = [groups(dimensions) as u16 * u16::from(full[0]); BLOCK];
            for kernel in Kernel::all() {
                assert_eq!(kernel.sign_sums(&block, &tables), (sums, highest), "{kernel:?} {dimensions}");
                assert_eq!(kernel.sign_sums(&block, &full), (most, most[0]), "{kernel:?} {dimensions}");
            }
        }
    }
}
