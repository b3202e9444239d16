//! What a feature map is stored as: f32, or bf16 of which arithmetic sees only f32.

use half::bf16;

/// A stored value of a feature map. Everything computes in f32: a value is widened when it is read and rounded once when
/// the result is written.
///
/// Matrix products read *words* of 32 bits: one f32, or two bf16 that are neighbours in the inner dimension of the
/// product (the operands of one lane of `vdpbf16ps`).
pub trait Element: bytemuck::Pod + PartialEq + PartialOrd + std::fmt::Debug + Send + Sync + 'static {
    /// Values of a word.
    const PER_WORD: usize;
    /// 1.
    const ONE: Self;
    /// −∞.
    const NEG_INFINITY: Self;

    /// The value, exactly.
    fn widen(self) -> f32;
    /// The nearest value, ties to even; NaN stays NaN.
    fn narrow(value: f32) -> Self;
    /// A word of two values that are neighbours in the inner dimension; f32, whose words hold one, ignores the second.
    fn word(first: f32, second: f32) -> u32;

    /// [`Element::word`] of stored values.
    fn pair(first: Self, second: Self) -> u32;

    /// Sixteen values.
    ///
    /// # Safety
    /// The CPU has AVX-512F, and the values exist.
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "vectors of values")]
    unsafe fn load_512(at: *const Self) -> std::arch::x86_64::__m512;
    /// Writes sixteen values.
    ///
    /// # Safety
    /// As [`Element::load_512`].
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "vectors of values")]
    unsafe fn store_512(at: *mut Self, values: std::arch::x86_64::__m512);
    /// [`Element::store_512`] with the CPU's own rounding, which takes subnormal values for 0.
    ///
    /// # Safety
    /// As [`Element::load_512`], and the CPU has AVX512-BF16.
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "vectors of values")]
    unsafe fn store_512_native(at: *mut Self, values: std::arch::x86_64::__m512);
    /// Eight values.
    ///
    /// # Safety
    /// The CPU has AVX2, and the values exist.
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "vectors of values")]
    unsafe fn load_256(at: *const Self) -> std::arch::x86_64::__m256;
    /// Writes eight values.
    ///
    /// # Safety
    /// As [`Element::load_256`].
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "vectors of values")]
    unsafe fn store_256(at: *mut Self, values: std::arch::x86_64::__m256);
}

impl Element for f32 {
    const PER_WORD: usize = 1;
    const ONE: f32 = 1.0;
    const NEG_INFINITY: f32 = f32::NEG_INFINITY;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(value: f32) -> f32 {
        value
    }

    #[inline(always)]
    fn word(first: f32, _second: f32) -> u32 {
        first.to_bits()
    }

    #[inline(always)]
    fn pair(first: f32, _second: f32) -> u32 {
        first.to_bits()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    #[expect(unsafe_code, reason = "vectors of values")]
    unsafe fn load_512(at: *const f32) -> std::arch::x86_64::__m512 {
        // SAFETY: the caller's promise.
        unsafe { std::arch::x86_64::_mm512_loadu_ps(at) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    #[expect(unsafe_code, reason = "vectors of values")]
    unsafe fn store_512(at: *mut f32, values: std::arch::x86_64::__m512) {
        // SAFETY: the caller's promise.
        unsafe { std::arch::x86_64::_mm512_storeu_ps(at, values) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    #[expect(unsafe_code, reason = "vectors of values")]
    unsafe fn store_512_native(at: *mut f32, values: std::arch::x86_64::__m512) {
        // SAFETY: the caller's promise.
        unsafe { std::arch::x86_64::_mm512_storeu_ps(at, values) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2")]
    #[expect(unsafe_code, reason = "vectors of values")]
    unsafe fn load_256(at: *const f32) -> std::arch::x86_64::__m256 {
        // SAFETY: the caller's promise.
        unsafe { std::arch::x86_64::_mm256_loadu_ps(at) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2")]
    #[expect(unsafe_code, reason = "vectors of values")]
    unsafe fn store_256(at: *mut f32, values: std::arch::x86_64::__m256) {
        // SAFETY: the caller's promise.
        unsafe { std::arch::x86_64::_mm256_storeu_ps(at, values) }
    }
}

impl Element for bf16 {
    const PER_WORD: usize = 2;
    const ONE: bf16 = bf16::ONE;
    const NEG_INFINITY: bf16 = bf16::NEG_INFINITY;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn narrow(value: f32) -> bf16 {
        bf16::from_bits((rounded(value) >> 16) as u16)
    }

    #[inline(always)]
    fn word(first: f32, second: f32) -> u32 {
        (rounded(first) >> 16) | (rounded(second) & 0xFFFF_0000)
    }

    #[inline(always)]
    fn pair(first: bf16, second: bf16) -> u32 {
        u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    #[expect(unsafe_code, reason = "vectors of values")]
    unsafe fn load_512(at: *const bf16) -> std::arch::x86_64::__m512 {
        use std::arch::x86_64::*;
        // SAFETY: the caller's promise.
        let halves = unsafe { _mm256_loadu_si256(at.cast()) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    #[expect(unsafe_code, reason = "vectors of values")]
    unsafe fn store_512(at: *mut bf16, values: std::arch::x86_64::__m512) {
        use std::arch::x86_64::*;
        let bits = _mm512_castps_si512(values);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(values, values);
        let sum = _mm512_mask_mov_epi32(sum, nan, quiet);
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(at.cast(), _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(sum))) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    #[expect(unsafe_code, reason = "vectors of values")]
    unsafe fn store_512_native(at: *mut bf16, values: std::arch::x86_64::__m512) {
        use std::arch::x86_64::*;
        // SAFETY: both types are 256 bits without invalid values, and the place is the caller's promise.
        unsafe { _mm256_storeu_si256(at.cast(), std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values))) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2")]
    #[expect(unsafe_code, reason = "vectors of values")]
    unsafe fn load_256(at: *const bf16) -> std::arch::x86_64::__m256 {
        use std::arch::x86_64::*;
        // SAFETY: the caller's promise.
        let halves = unsafe { _mm_loadu_si128(at.cast()) };
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2")]
    #[expect(unsafe_code, reason = "vectors of values")]
    unsafe fn store_256(at: *mut bf16, values: std::arch::x86_64::__m256) {
        let mut wide = [0.0; 8];
        // SAFETY: the array has eight values, and so has what the caller gave.
        unsafe {
            std::arch::x86_64::_mm256_storeu_ps(wide.as_mut_ptr(), values);
            at.cast::<[bf16; 8]>().write_unaligned(wide.map(Element::narrow));
        }
    }
}

/// Rounds sixteen values; by the CPU itself if `NATIVE`, which takes subnormal values for 0.
#[inline(always)]
pub(crate) fn narrow_16<T: Element, const NATIVE: bool>(values: &[f32; 16]) -> [T; 16] {
    let mut out = [T::ONE; 16];
    #[cfg(target_arch = "x86_64")]
    if NATIVE {
        #[expect(unsafe_code, reason = "vectors of values")]
        // SAFETY: `multiversion_native` sets NATIVE where the CPU has AVX-512F and AVX512-BF16; there are sixteen values.
        unsafe {
            T::store_512_native(out.as_mut_ptr(), f32::load_512(values.as_ptr()));
        }
        return out;
    }
    for (out, value) in out.iter_mut().zip(values) {
        *out = T::narrow(*value);
    }
    out
}

/// Sixteen words of values that are neighbours in the inner dimension, [`Element::word`].
#[inline(always)]
pub(crate) fn words_16<T: Element, const NATIVE: bool>(first: &[f32; 16], second: &[f32; 16]) -> [u32; 16] {
    let mut out = [0; 16];
    if NATIVE {
        let (first, second) = (narrow_16::<T, NATIVE>(first), narrow_16::<T, NATIVE>(second));
        for i in 0..16 {
            out[i] = T::pair(first[i], second[i]);
        }
        return out;
    }
    for i in 0..16 {
        out[i] = T::word(first[i], second[i]);
    }
    out
}

/// The bits of a value whose upper half is its nearest bf16.
#[inline(always)]
fn rounded(value: f32) -> u32 {
    let bits = value.to_bits();
    // A NaN whose upper bits are 0 would become ∞, one whose lower bits are all 1 would overflow.
    if value.is_nan() { bits | 0x0040_0000 } else { bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns() -> impl Iterator<Item = f32> {
        let bits = (0..1u64 << 32).step_by(65_537 * 3).map(|bits| bits as u32);
        let edges = [0x7FFF_FFFF, 0xFFFF_FFFF, 0x7F80_0001, 0x7F7F_FFFF, 0x8000_0000, 1, 0x3F80_8000, 0x3F81_8000];
        bits.chain(edges).map(f32::from_bits)
    }

    #[test]
    fn values_round_to_the_nearest_bf16_as_the_half_crate_does() {
        for value in patterns() {
            let (got, want) = (<bf16 as Element>::narrow(value), bf16::from_f32(value));
            assert!(got == want || got.is_nan() && want.is_nan(), "{value:e} ({:x})", value.to_bits());
            assert_eq!(got.is_nan(), value.is_nan(), "{:x}", value.to_bits());
            assert!(want.is_nan() || got.widen() == want.to_f32());
            assert_eq!(bf16::word(value, 2.0), u32::from(got.to_bits()) | 0x4000_0000);
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn vectors_round_as_single_values_do() {
        let all: Vec<f32> = patterns().collect();
        for values in all.chunks_exact(16) {
            let want: Vec<u16> = values.iter().map(|v| <bf16 as Element>::narrow(*v).to_bits()).collect();
            let mut got = [bf16::ZERO; 16];
            let mut wide = [0.0f32; 16];
            #[expect(unsafe_code, reason = "vectors of values")]
            // SAFETY: the features are looked for, and every array has as many values as are read and written.
            unsafe {
                use std::arch::x86_64::{_mm256_loadu_ps, _mm512_loadu_ps};
                if is_x86_feature_detected!("avx512f") {
                    bf16::store_512(got.as_mut_ptr(), _mm512_loadu_ps(values.as_ptr()));
                    assert_eq!(got.map(bf16::to_bits), want[..], "{values:?}");
                    f32::store_512(wide.as_mut_ptr(), bf16::load_512(got.as_ptr()));
                    assert_eq!(wide.map(f32::to_bits), got.map(|v| v.widen().to_bits()));
                }
                if is_x86_feature_detected!("avx512bf16") {
                    bf16::store_512_native(got.as_mut_ptr(), _mm512_loadu_ps(values.as_ptr()));
                    for ((got, want), value) in got.iter().zip(&want).zip(values) {
                        assert!(got.to_bits() == *want || value.is_subnormal() && got.to_f32() == 0.0, "{value:e}");
                    }
                }
                if is_x86_feature_detected!("avx2") {
                    for half in [0, 8] {
                        bf16::store_256(got[half..].as_mut_ptr(), _mm256_loadu_ps(values[half..].as_ptr()));
                        f32::store_256(wide[half..].as_mut_ptr(), bf16::load_256(got[half..].as_ptr()));
                    }
                    assert_eq!(got.map(bf16::to_bits), want[..], "{values:?}");
                    assert_eq!(wide.map(f32::to_bits), got.map(|v| v.widen().to_bits()));
                }
            }
        }
    }
}
