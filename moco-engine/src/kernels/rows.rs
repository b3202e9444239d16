//! The loops over pixels (rows of `c` channels) that batch normalisation and its neighbours are made of.
//!
//! Each processes whole rows of one block, vectorised over channels. Sums run in f32 over one block only; who calls
//! adds the blocks up in f64.

use super::element::Element;
use super::simd::multiversion;

multiversion! {
    /// Per channel, of `d = z − first row`: `sums[..c] = Σ d`, `sums[c..] = Σ d²`. Shifting by a value of the block keeps
    /// the variance accurate where the mean is large against it.
    pub(super) fn shifted_sums<T: Element>(z: &[T], c: usize, sums: &mut [f32]) {
        sums.fill(0.0);
        let (sum, square) = sums.split_at_mut(c);
        let (sum, square, shift) = (&mut sum[..c], &mut square[..c], &z[..c]);
        for row in z.chunks_exact(c) {
            for j in 0..c {
                let d = row[j].widen() - shift[j].widen();
                sum[j] += d;
                square[j] += d * d;
            }
        }
    }
}

/// `y = act(z · scale + shift)` over rows; in place without `z`.
pub(super) fn affine<T: Element>(z: Option<&[T]>, scale: &[f32], shift: &[f32], relu: bool, y: &mut [T]) {
    match (z, relu) {
        (Some(z), true) => affine_relu(z, scale, shift, y),
        (Some(z), false) => affine_plain(z, scale, shift, y),
        (None, true) => affine_relu_in_place(scale, shift, y),
        (None, false) => affine_plain_in_place(scale, shift, y),
    }
}

multiversion! {
    fn affine_relu<T: Element>(z: &[T], scale: &[f32], shift: &[f32], y: &mut [T]) {
        let c = scale.len();
        let shift = &shift[..c];
        for (z, y) in z.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
            for j in 0..c {
                y[j] = T::narrow(clamp(z[j].widen() * scale[j] + shift[j]));
            }
        }
    }
}

multiversion! {
    fn affine_plain<T: Element>(z: &[T], scale: &[f32], shift: &[f32], y: &mut [T]) {
        let c = scale.len();
        let shift = &shift[..c];
        for (z, y) in z.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
            for j in 0..c {
                y[j] = T::narrow(z[j].widen() * scale[j] + shift[j]);
            }
        }
    }
}

multiversion! {
    fn affine_relu_in_place<T: Element>(scale: &[f32], shift: &[f32], y: &mut [T]) {
        let c = scale.len();
        let shift = &shift[..c];
        for y in y.chunks_exact_mut(c) {
            for j in 0..c {
                y[j] = T::narrow(clamp(y[j].widen() * scale[j] + shift[j]));
            }
        }
    }
}

multiversion! {
    fn affine_plain_in_place<T: Element>(scale: &[f32], shift: &[f32], y: &mut [T]) {
        let c = scale.len();
        let shift = &shift[..c];
        for y in y.chunks_exact_mut(c) {
            for j in 0..c {
                y[j] = T::narrow(y[j].widen() * scale[j] + shift[j]);
            }
        }
    }
}

multiversion! {
    /// `y = act(z · scale + shift + r)` over rows; in place without `z`.
    pub(super) fn affine_add<T: Element>(
        z: Option<&[T]>, scale: &[f32], shift: &[f32], r: &[T], relu: bool, y: &mut [T],
    ) {
        let c = scale.len();
        let shift = &shift[..c];
        let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
        if let Some(z) = z {
            for ((z, r), y) in z.chunks_exact(c).zip(r.chunks_exact(c)).zip(y.chunks_exact_mut(c)) {
                for j in 0..c {
                    y[j] = T::narrow(at_least(z[j].widen() * scale[j] + shift[j] + r[j].widen(), floor));
                }
            }
        } else {
            for (r, y) in r.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
                for j in 0..c {
                    y[j] = T::narrow(at_least(y[j].widen() * scale[j] + shift[j] + r[j].widen(), floor));
                }
            }
        }
    }
}

multiversion! {
    /// `y = act(z · scale + shift + z2 · scale2 + shift2)` over rows, with `affine = [scale, shift, scale2, shift2]`;
    /// in place without `z`.
    pub(super) fn affine_add_affine<T: Element>(
        z: Option<&[T]>, affine: [&[f32]; 4], z2: &[T], relu: bool, y: &mut [T],
    ) {
        let c = affine[0].len();
        let [scale, shift, scale2, shift2] = affine.map(|v| &v[..c]);
        let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
        if let Some(z) = z {
            for ((z, z2), y) in z.chunks_exact(c).zip(z2.chunks_exact(c)).zip(y.chunks_exact_mut(c)) {
                for j in 0..c {
                    let other = z2[j].widen() * scale2[j] + shift2[j];
                    y[j] = T::narrow(at_least(z[j].widen() * scale[j] + shift[j] + other, floor));
                }
            }
        } else {
            for (z2, y) in z2.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
                for j in 0..c {
                    let other = z2[j].widen() * scale2[j] + shift2[j];
                    y[j] = T::narrow(at_least(y[j].widen() * scale[j] + shift[j] + other, floor));
                }
            }
        }
    }
}

multiversion! {
    /// `sums[..c] = Σ dy`, `sums[c..] = Σ dy · (z − mean)`.
    pub(super) fn gradient_sums<T: Element>(z: &[T], mean: &[f32], dy: &[T], sums: &mut [f32]) {
        let c = mean.len();
        sums.fill(0.0);
        let (sum, dot) = sums.split_at_mut(c);
        let (sum, dot) = (&mut sum[..c], &mut dot[..c]);
        for (z, dy) in z.chunks_exact(c).zip(dy.chunks_exact(c)) {
            for j in 0..c {
                let g = dy[j].widen();
                sum[j] += g;
                dot[j] += g * (z[j].widen() - mean[j]);
            }
        }
    }
}

multiversion! {
    /// [`gradient_sums`] where `dy` counts only while `z · scale + shift > 0`.
    pub(super) fn gradient_sums_recomputed<T: Element>(
        z: &[T], mean: &[f32], scale: &[f32], shift: &[f32], dy: &[T], sums: &mut [f32],
    ) {
        let c = mean.len();
        sums.fill(0.0);
        let (sum, dot) = sums.split_at_mut(c);
        let (sum, dot) = (&mut sum[..c], &mut dot[..c]);
        let (scale, shift) = (&scale[..c], &shift[..c]);
        for (z, dy) in z.chunks_exact(c).zip(dy.chunks_exact(c)) {
            for j in 0..c {
                let z = z[j].widen();
                let g = if z * scale[j] + shift[j] > 0.0 { dy[j].widen() } else { 0.0 };
                sum[j] += g;
                dot[j] += g * (z - mean[j]);
            }
        }
    }
}

multiversion! {
    /// [`gradient_sums`] after `dy` is set to 0 where `y` is not above 0.
    pub(super) fn gradient_sums_masking<T: Element>(z: &[T], mean: &[f32], y: &[T], dy: &mut [T], sums: &mut [f32]) {
        let c = mean.len();
        sums.fill(0.0);
        let (sum, dot) = sums.split_at_mut(c);
        let (sum, dot) = (&mut sum[..c], &mut dot[..c]);
        for ((z, y), dy) in z.chunks_exact(c).zip(y.chunks_exact(c)).zip(dy.chunks_exact_mut(c)) {
            for j in 0..c {
                let g = if y[j].widen() > 0.0 { dy[j].widen() } else { 0.0 };
                dy[j] = T::narrow(g);
                sum[j] += g;
                dot[j] += g * (z[j].widen() - mean[j]);
            }
        }
    }
}

/// Per-channel numbers of [`norm_gradient`], each of `c` values.
#[derive(Clone, Copy)]
pub(super) struct GradientTerms<'a> {
    pub mean: &'a [f32],
    pub scale: &'a [f32],
    pub shift: &'a [f32],
    /// Factor of `z − mean`.
    pub slope: &'a [f32],
    /// Constant.
    pub offset: &'a [f32],
}

multiversion! {
    /// `dz (+)= scale · dy + slope · (z − mean) + offset`, with `dy` masked by `z · scale + shift > 0` if `masked`;
    /// without `dy`, `dz` holds it.
    pub(super) fn norm_gradient<T: Element>(
        z: &[T], terms: GradientTerms<'_>, masked: bool, dy: Option<&[T]>, dz: &mut [T], accumulate: bool,
    ) {
        let c = terms.mean.len();
        let mean = &terms.mean[..c];
        let (scale, shift) = (&terms.scale[..c], &terms.shift[..c]);
        let (slope, offset) = (&terms.slope[..c], &terms.offset[..c]);
        // A mask that lets everything through, so that one loop serves both.
        let bar = if masked { 0.0 } else { f32::NEG_INFINITY };
        let gradient = |z: T, dy: T, j: usize| {
            let z = z.widen();
            let g = if z * scale[j] + shift[j] > bar { dy.widen() } else { 0.0 };
            g * scale[j] + slope[j] * (z - mean[j]) + offset[j]
        };
        match dy {
            None => {
                for (z, dz) in z.chunks_exact(c).zip(dz.chunks_exact_mut(c)) {
                    for j in 0..c {
                        dz[j] = T::narrow(gradient(z[j], dz[j], j));
                    }
                }
            }
            Some(dy) if accumulate => {
                for ((z, dy), dz) in z.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dz.chunks_exact_mut(c)) {
                    for j in 0..c {
                        dz[j] = T::narrow(dz[j].widen() + gradient(z[j], dy[j], j));
                    }
                }
            }
            Some(dy) => {
                for ((z, dy), dz) in z.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dz.chunks_exact_mut(c)) {
                    for j in 0..c {
                        dz[j] = T::narrow(gradient(z[j], dy[j], j));
                    }
                }
            }
        }
    }
}

/// `dz (+)= scale · dy`, with `dy` masked by `z · scale + shift > 0` if there is `z`; without `dy`, `dz` holds it.
pub(super) fn affine_gradient<T: Element>(
    z: Option<&[T]>,
    scale: &[f32],
    shift: &[f32],
    dy: Option<&[T]>,
    dz: &mut [T],
    accumulate: bool,
) {
    match (z, dy) {
        (None, None) => scale_in_place(scale, dz),
        (None, Some(dy)) => scale_into(scale, dy, dz, accumulate),
        (Some(z), None) => scale_masked_in_place(z, scale, shift, dz),
        (Some(z), Some(dy)) => scale_masked_into(z, scale, shift, dy, dz, accumulate),
    }
}

multiversion! {
    fn scale_in_place<T: Element>(scale: &[f32], dz: &mut [T]) {
        let c = scale.len();
        for dz in dz.chunks_exact_mut(c) {
            for j in 0..c {
                dz[j] = T::narrow(dz[j].widen() * scale[j]);
            }
        }
    }
}

multiversion! {
    fn scale_into<T: Element>(scale: &[f32], dy: &[T], dz: &mut [T], accumulate: bool) {
        let c = scale.len();
        for (dy, dz) in dy.chunks_exact(c).zip(dz.chunks_exact_mut(c)) {
            for j in 0..c {
                let before = if accumulate { dz[j].widen() } else { 0.0 };
                dz[j] = T::narrow(before + dy[j].widen() * scale[j]);
            }
        }
    }
}

multiversion! {
    fn scale_masked_in_place<T: Element>(z: &[T], scale: &[f32], shift: &[f32], dz: &mut [T]) {
        let c = scale.len();
        let shift = &shift[..c];
        for (z, dz) in z.chunks_exact(c).zip(dz.chunks_exact_mut(c)) {
            for j in 0..c {
                let open = z[j].widen() * scale[j] + shift[j] > 0.0;
                dz[j] = T::narrow(if open { dz[j].widen() * scale[j] } else { 0.0 });
            }
        }
    }
}

multiversion! {
    fn scale_masked_into<T: Element>(
        z: &[T], scale: &[f32], shift: &[f32], dy: &[T], dz: &mut [T], accumulate: bool,
    ) {
        let c = scale.len();
        let shift = &shift[..c];
        for ((z, dy), dz) in z.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dz.chunks_exact_mut(c)) {
            for j in 0..c {
                let before = if accumulate { dz[j].widen() } else { 0.0 };
                let open = z[j].widen() * scale[j] + shift[j] > 0.0;
                dz[j] = T::narrow(before + if open { dy[j].widen() * scale[j] } else { 0.0 });
            }
        }
    }
}

multiversion! {
    /// Per channel, the sum over rows.
    pub(super) fn sums<T: Element>(dy: &[T], sums: &mut [f32]) {
        let c = sums.len();
        sums.fill(0.0);
        for dy in dy.chunks_exact(c) {
            for j in 0..c {
                sums[j] += dy[j].widen();
            }
        }
    }
}

/// max(x, 0) that keeps NaN, as PyTorch's does.
#[inline(always)]
pub(super) fn clamp(x: f32) -> f32 {
    at_least(x, 0.0)
}

#[inline(always)]
pub(super) fn at_least(x: f32, floor: f32) -> f32 {
    if x < floor { floor } else { x }
}
