//! Loops over whole rows, with AVX2 where available. The results are bitwise equal either way.

/// Values per step of the vectorized pass.
pub(super) const STEP: usize = 16;
/// Values of one load of [`STEP`]: four loads of 16 source bytes each.
pub(super) const QUARTER: usize = 4;
/// Bytes of one load.
pub(super) const LOAD: usize = 16;

/// The inputs of [`STEP`] values: four loads from the source row, the positions of both neighbors in them, and their
/// weights. Two registers of two loads each: register `r` makes the values of quarters `r` and `r + 2`, because packing
/// two registers takes their lower halves first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// For each value the position of the first neighbor, a zero, that of the second, a zero: 16-bit numbers.
    pub places: [[u8; 2 * LOAD]; 2],
    /// Both weights of each value.
    pub weights: [[[i16; 2]; 2 * QUARTER]; 2],
    /// Start of the load of each quarter.
    pub starts: [u32; 4],
}

/// Whether the machine has AVX2.
pub(super) fn has_avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// The vertical pass: two rows of 15-bit values and their weights to bytes.
pub(super) fn blend(first: &[i16], second: &[i16], weights: [i16; 2], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        // SAFETY: the machine has AVX2.
        return unsafe { blend_avx2(first, second, weights, out) };
    }
    blend_any(first, second, weights, out);
}

#[inline(always)]
fn blend_any(first: &[i16], second: &[i16], [w0, w1]: [i16; 2], out: &mut [u8]) {
    let high = |value: i16, weight: i16| ((i32::from(value) * i32::from(weight)) >> 16) as i16;
    for ((out, &a), &b) in out.iter_mut().zip(first).zip(second) {
        *out = ((high(a, w0) + high(b, w1) + 2) >> 2) as u8;
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn blend_avx2(first: &[i16], second: &[i16], weights: [i16; 2], out: &mut [u8]) {
    blend_any(first, second, weights, out);
}

/// The horizontal pass over one row by the steps of a plan.
///
/// # Panics
/// If the machine lacks AVX2, `out` is not as long as the steps, or a step reaches beyond `row`.
#[cfg(target_arch = "x86_64")]
pub(super) fn columns(row: &[u8], steps: &[Step], out: &mut [i16]) {
    assert!(has_avx2() && out.len() == steps.len() * STEP, "the plan matches the machine and the row");
    // SAFETY: the machine has AVX2.
    unsafe { columns_avx2(row, steps, out) }
}

/// Never called, because plans have no steps without AVX2.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn columns(_row: &[u8], steps: &[Step], _out: &mut [i16]) {
    debug_assert!(steps.is_empty());
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn columns_avx2(row: &[u8], steps: &[Step], out: &mut [i16]) {
    use std::arch::x86_64::{
        __m128i, __m256i, _mm_loadu_si128, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_packs_epi32, _mm256_set_m128i,
        _mm256_shuffle_epi8, _mm256_srai_epi32, _mm256_storeu_si256,
    };
    let load = |start: u32| -> __m128i {
        let bytes: &[u8] = &row[start as usize..start as usize + LOAD];
        // SAFETY: `bytes` has the 16 bytes that are read; no alignment is needed.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    };
    for (step, out) in steps.iter().zip(out.chunks_exact_mut(STEP)) {
        let register = |r: usize| -> __m256i {
            let bytes = _mm256_set_m128i(load(step.starts[r + 2]), load(step.starts[r]));
            // SAFETY: both arrays have the 32 bytes that are read; no alignment is needed.
            let (places, weights) = unsafe {
                (
                    _mm256_loadu_si256(step.places[r].as_ptr().cast()),
                    _mm256_loadu_si256(step.weights[r].as_ptr().cast()),
                )
            };
            _mm256_srai_epi32::<4>(_mm256_madd_epi16(_mm256_shuffle_epi8(bytes, places), weights))
        };
        let values = _mm256_packs_epi32(register(0), register(1));
        // SAFETY: `out` has the 16 values, 32 bytes, that are written; no alignment is needed.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), values) };
    }
}
