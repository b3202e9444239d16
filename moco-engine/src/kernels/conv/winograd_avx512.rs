//! The input transform of the larger tiles in AVX-512: 36 vectors of a patch do not fit into the registers, and compilers
//! shuffle them badly.
#![expect(unsafe_code, reason = "loads and stores at places that are checked once a tile")]

use std::arch::x86_64::*;
use std::ops::Range;

use super::winograd::{OUTSIDE, Tiles, position_step};
use super::winograd_transforms::{A, A2, B, B2, PRODUCT, Patch, SUM};
use crate::kernels::gemm::tile::{BLOCK, PITCH};
use crate::kernels::gemm::windows::{Norm, Windows};

/// Side of a patch.
const P: usize = 6;
const LANES: usize = 16;

/// As [`transform_input`](super::winograd_transforms::transform_input) for tiles of 4×4 pixels.
///
/// # Panics
/// If `x`, `norm` or `out` are too short.
#[target_feature(enable = "avx512f")]
pub(super) fn transform_input(
    w: &Windows,
    x: &[f32],
    norm: Option<&Norm<'_>>,
    tiles: &Tiles,
    range: Range<usize>,
    out: &mut [u32],
) {
    let step = position_step(range.len());
    let channels = w.channels.next_multiple_of(LANES);
    let last = (channels - 1) / BLOCK * P * P * step + (P * P - 1) * step + (range.len().max(1) - 1) * PITCH;
    assert!(out.len() > last + (channels - 1) % BLOCK, "{} words for {} tiles", out.len(), range.len());
    for (t, tile) in range.enumerate() {
        let patch = Patch::<f32, P>::new(w, x, norm, tiles, tile);
        for &place in patch.places.as_flattened() {
            assert!(place == OUTSIDE || place + w.channels <= patch.pixels.len(), "a pixel of the image");
        }
        let affine = norm.map(|norm| {
            let at = patch.group + w.channel;
            (&norm.scale[at..at + w.channels], &norm.shift[at..at + w.channels], norm.relu)
        });
        for channel in (0..w.channels).step_by(LANES) {
            let lanes = LANES.min(w.channels - channel);
            let mask = (u32::MAX >> (32 - lanes)) as __mmask16;
            let mut rows = [[_mm512_setzero_ps(); P]; P];
            for (row, places) in rows.iter_mut().zip(&patch.places) {
                let mut d = [_mm512_setzero_ps(); P];
                for (d, &place) in d.iter_mut().zip(places) {
                    if place == OUTSIDE {
                        continue;
                    }
                    // SAFETY: `lanes` channels from `channel` on are inside the image by the assertion above, and the
                    // mask leaves out the others.
                    *d = unsafe { _mm512_maskz_loadu_ps(mask, patch.pixels.as_ptr().add(place + channel)) };
                    if let Some((scale, shift, relu)) = affine {
                        // SAFETY: as above, of slices of all channels.
                        let (scale, shift) = unsafe {
                            let at = |values: &[f32]| _mm512_maskz_loadu_ps(mask, values.as_ptr().add(channel));
                            (at(scale), at(shift))
                        };
                        *d = _mm512_add_ps(_mm512_mul_ps(*d, scale), shift);
                        if relu {
                            // The second operand comes out where one is NaN.
                            *d = _mm512_max_ps(_mm512_setzero_ps(), *d);
                        }
                    }
                }
                *row = line(d);
            }
            let base = channel / BLOCK * P * P * step + t * PITCH + channel % BLOCK;
            for j in 0..P {
                let column = line([rows[0][j], rows[1][j], rows[2][j], rows[3][j], rows[4][j], rows[5][j]]);
                for (i, value) in column.into_iter().enumerate() {
                    // SAFETY: the last place of the last tile is inside by the first assertion.
                    unsafe { _mm512_storeu_ps(out.as_mut_ptr().add(base + (P * i + j) * step).cast(), value) };
                }
            }
        }
    }
}

/// `Bᵀ d`.
#[inline]
#[target_feature(enable = "avx512f")]
fn line(d: [__m512; P]) -> [__m512; P] {
    let even = _mm512_fnmadd_ps(_mm512_set1_ps(B2), d[2], d[4]);
    let odd = _mm512_fnmadd_ps(_mm512_set1_ps(B2), d[1], d[3]);
    let even_b = _mm512_fnmadd_ps(_mm512_set1_ps(A2), d[2], d[4]);
    let odd_b = _mm512_fnmadd_ps(_mm512_set1_ps(A2), d[1], d[3]);
    let (product, sum) = (_mm512_set1_ps(PRODUCT), _mm512_set1_ps(SUM));
    [
        _mm512_fmadd_ps(product, d[0], _mm512_fnmadd_ps(sum, d[2], d[4])),
        _mm512_fmadd_ps(_mm512_set1_ps(A), odd, even),
        _mm512_fnmadd_ps(_mm512_set1_ps(A), odd, even),
        _mm512_fmadd_ps(_mm512_set1_ps(B), odd_b, even_b),
        _mm512_fnmadd_ps(_mm512_set1_ps(B), odd_b, even_b),
        _mm512_fmadd_ps(product, d[1], _mm512_fnmadd_ps(sum, d[3], d[5])),
    ]
}
