//! The loops over pixels (rows of `c` channels) that batch normalisation and its neighbours are made of.
//!
//! Each processes whole rows of one block, vectorised over channels. Sums run in f32 over one block only; who calls
//! adds the blocks up in f64.

use super::simd::multiversion;

multiversion! {
    /// Per channel, of `d = z − first row`: `sums[..c] = Σ d`, `sums[c..] = Σ d²`. Shifting by a value of the block keeps
    /// the variance accurate where the mean is large against it.
    pub(super) fn shifted_sums(z: &[f32], c: usize, sums: &mut [f32]) {
        sums.fill(0.0);
        let (sum, square) = sums.split_at_mut(c);
        let (sum, square, shift) = (&mut sum[..c], &mut square[..c], &z[..c]);
        for row in z.chunks_exact(c) {
            for j in 0..c {
                let d = row[j] - shift[j];
                sum[j] += d;
                square[j] += d * d;
            }
        }
    }
}

/// `y = act(z · scale + shift)` over rows; in place without `z`.
pub(super) fn affine(z: Option<&[f32]>, scale: &[f32], shift: &[f32], relu: bool, y: &mut [f32]) {
    match (z, relu) {
        (Some(z), true) => affine_relu(z, scale, shift, y),
        (Some(z), false) => affine_plain(z, scale, shift, y),
        (None, true) => affine_relu_in_place(scale, shift, y),
        (None, false) => affine_plain_in_place(scale, shift, y),
    }
}

multiversion! {
    fn affine_relu(z: &[f32], scale: &[f32], shift: &[f32], y: &mut [f32]) {
        let c = scale.len();
        let shift = &shift[..c];
        for (z, y) in z.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
            for j in 0..c {
                y[j] = clamp(z[j] * scale[j] + shift[j]);
            }
        }
    }
}

multiversion! {
    fn affine_plain(z: &[f32], scale: &[f32], shift: &[f32], y: &mut [f32]) {
        let c = scale.len();
        let shift = &shift[..c];
        for (z, y) in z.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
            for j in 0..c {
                y[j] = z[j] * scale[j] + shift[j];
            }
        }
    }
}

multiversion! {
    fn affine_relu_in_place(scale: &[f32], shift: &[f32], y: &mut [f32]) {
        let c = scale.len();
        let shift = &shift[..c];
        for y in y.chunks_exact_mut(c) {
            for j in 0..c {
                y[j] = clamp(y[j] * scale[j] + shift[j]);
            }
        }
    }
}

multiversion! {
    fn affine_plain_in_place(scale: &[f32], shift: &[f32], y: &mut [f32]) {
        let c = scale.len();
        let shift = &shift[..c];
        for y in y.chunks_exact_mut(c) {
            for j in 0..c {
                y[j] = y[j] * scale[j] + shift[j];
            }
        }
    }
}

multiversion! {
    /// `y = act(z · scale + shift + r)` over rows; in place without `z`.
    pub(super) fn affine_add(z: Option<&[f32]>, scale: &[f32], shift: &[f32], r: &[f32], relu: bool, y: &mut [f32]) {
        let c = scale.len();
        let shift = &shift[..c];
        let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
        if let Some(z) = z {
            for ((z, r), y) in z.chunks_exact(c).zip(r.chunks_exact(c)).zip(y.chunks_exact_mut(c)) {
                for j in 0..c {
                    y[j] = at_least(z[j] * scale[j] + shift[j] + r[j], floor);
                }
            }
        } else {
            for (r, y) in r.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
                for j in 0..c {
                    y[j] = at_least(y[j] * scale[j] + shift[j] + r[j], floor);
                }
            }
        }
    }
}

multiversion! {
    /// `y = act(z · scale + shift + z2 · scale2 + shift2)` over rows, with `affine = [scale, shift, scale2, shift2]`;
    /// in place without `z`.
    pub(super) fn affine_add_affine(z: Option<&[f32]>, affine: [&[f32]; 4], z2: &[f32], relu: bool, y: &mut [f32]) {
        let c = affine[0].len();
        let [scale, shift, scale2, shift2] = affine.map(|v| &v[..c]);
        let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
        if let Some(z) = z {
            for ((z, z2), y) in z.chunks_exact(c).zip(z2.chunks_exact(c)).zip(y.chunks_exact_mut(c)) {
                for j in 0..c {
                    y[j] = at_least(z[j] * scale[j] + shift[j] + (z2[j] * scale2[j] + shift2[j]), floor);
                }
            }
        } else {
            for (z2, y) in z2.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
                for j in 0..c {
                    y[j] = at_least(y[j] * scale[j] + shift[j] + (z2[j] * scale2[j] + shift2[j]), floor);
                }
            }
        }
    }
}

multiversion! {
    /// `sums[..c] = Σ dy`, `sums[c..] = Σ dy · (z − mean)`.
    pub(super) fn gradient_sums(z: &[f32], mean: &[f32], dy: &[f32], sums: &mut [f32]) {
        let c = mean.len();
        sums.fill(0.0);
        let (sum, dot) = sums.split_at_mut(c);
        let (sum, dot) = (&mut sum[..c], &mut dot[..c]);
        for (z, dy) in z.chunks_exact(c).zip(dy.chunks_exact(c)) {
            for j in 0..c {
                sum[j] += dy[j];
                dot[j] += dy[j] * (z[j] - mean[j]);
            }
        }
    }
}

multiversion! {
    /// [`gradient_sums`] where `dy` counts only while `z · scale + shift > 0`.
    pub(super) fn gradient_sums_recomputed(
        z: &[f32], mean: &[f32], scale: &[f32], shift: &[f32], dy: &[f32], sums: &mut [f32],
    ) {
        let c = mean.len();
        sums.fill(0.0);
        let (sum, dot) = sums.split_at_mut(c);
        let (sum, dot) = (&mut sum[..c], &mut dot[..c]);
        let (scale, shift) = (&scale[..c], &shift[..c]);
        for (z, dy) in z.chunks_exact(c).zip(dy.chunks_exact(c)) {
            for j in 0..c {
                let g = if z[j] * scale[j] + shift[j] > 0.0 { dy[j] } else { 0.0 };
                sum[j] += g;
                dot[j] += g * (z[j] - mean[j]);
            }
        }
    }
}

multiversion! {
    /// [`gradient_sums`] after `dy` is set to 0 where `y` is not above 0.
    pub(super) fn gradient_sums_masking(z: &[f32], mean: &[f32], y: &[f32], dy: &mut [f32], sums: &mut [f32]) {
        let c = mean.len();
        sums.fill(0.0);
        let (sum, dot) = sums.split_at_mut(c);
        let (sum, dot) = (&mut sum[..c], &mut dot[..c]);
        for ((z, y), dy) in z.chunks_exact(c).zip(y.chunks_exact(c)).zip(dy.chunks_exact_mut(c)) {
            for j in 0..c {
                let g = if y[j] > 0.0 { dy[j] } else { 0.0 };
                dy[j] = g;
                sum[j] += g;
                dot[j] += g * (z[j] - mean[j]);
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
    pub(super) fn norm_gradient(
        z: &[f32], terms: GradientTerms<'_>, masked: bool, dy: Option<&[f32]>, dz: &mut [f32], accumulate: bool,
    ) {
        let c = terms.mean.len();
        let mean = &terms.mean[..c];
        let (scale, shift) = (&terms.scale[..c], &terms.shift[..c]);
        let (slope, offset) = (&terms.slope[..c], &terms.offset[..c]);
        // A mask that lets everything through, so that one loop serves both.
        let bar = if masked { 0.0 } else { f32::NEG_INFINITY };
        let gradient = |z: f32, dy: f32, j: usize| {
            let g = if z * scale[j] + shift[j] > bar { dy } else { 0.0 };
            g * scale[j] + slope[j] * (z - mean[j]) + offset[j]
        };
        match dy {
            None => {
                for (z, dz) in z.chunks_exact(c).zip(dz.chunks_exact_mut(c)) {
                    for j in 0..c {
                        dz[j] = gradient(z[j], dz[j], j);
                    }
                }
            }
            Some(dy) if accumulate => {
                for ((z, dy), dz) in z.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dz.chunks_exact_mut(c)) {
                    for j in 0..c {
                        dz[j] += gradient(z[j], dy[j], j);
                    }
                }
            }
            Some(dy) => {
                for ((z, dy), dz) in z.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dz.chunks_exact_mut(c)) {
                    for j in 0..c {
                        dz[j] = gradient(z[j], dy[j], j);
                    }
                }
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
fn at_least(x: f32, floor: f32) -> f32 {
    if x < floor { floor } else { x }
}
