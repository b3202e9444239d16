//! Optimisers whose learning rate and weight decay differ between parts of the parameters; the norm of a gradient.

use std::ops::Range;

use rayon::prelude::*;

use crate::{Error, Result};

/// Values per piece of work; the pieces, and so the results, do not depend on the number of threads.
const PIECE: usize = 1 << 14;

/// Parameters that are updated alike. What no group of an update covers stays as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamGroup {
    /// Which of the flat parameters. Groups follow each other and do not overlap.
    pub range: Range<usize>,
    /// Learning rate.
    pub lr: f32,
    /// Weight decay.
    pub weight_decay: f32,
}

/// Numbers of one step of SGD that all groups share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdStep {
    /// Momentum.
    pub momentum: f32,
    /// Whether the step looks ahead: it follows `d + momentum · v` instead of `v`.
    pub nesterov: bool,
}

/// Numbers of one step of AdamW that all groups share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Which step it is, from 1: both averages start at 0 and are corrected for it.
    pub step: u64,
    /// Weights of the old averages of the gradient and of its square; PyTorch's default is 0.9, 0.999.
    pub betas: [f32; 2],
    /// Added to the root of the mean square; PyTorch's default is 1e-8.
    pub eps: f32,
}

/// One step of `torch.optim.SGD` (no dampening) on each group, in place: `d = g + weight_decay · p`,
/// `v = momentum · v + d`, `p = p − lr · v`, or `p − lr · (d + momentum · v)` with Nesterov's look ahead. `velocity` starts at
/// 0, which makes PyTorch's special first step (`v = d`) the general one.
///
/// # Errors
/// [`Error::Length`] if the three lengths differ, [`Error::Config`] for groups that overlap, run backwards or past the end.
pub fn sgd_groups(
    params: &mut [f32],
    gradients: &[f32],
    velocity: &mut [f32],
    step: &SgdStep,
    groups: &[ParamGroup],
) -> Result<()> {
    Error::check_len("gradients", params.len(), gradients.len())?;
    Error::check_len("velocities", params.len(), velocity.len())?;
    check_groups(groups, params.len())?;
    let momentum = step.momentum;
    for ParamGroup { range, lr, weight_decay } in groups.iter().cloned() {
        params[range.clone()]
            .par_chunks_mut(PIECE)
            .zip(gradients[range.clone()].par_chunks(PIECE))
            .zip(velocity[range].par_chunks_mut(PIECE))
            .for_each(|((params, gradients), velocity)| {
                for ((p, g), v) in params.iter_mut().zip(gradients).zip(velocity) {
                    let d = *g + weight_decay * *p;
                    *v = momentum * *v + d;
                    let along = if step.nesterov { d + momentum * *v } else { *v };
                    *p -= lr * along;
                }
            });
    }
    Ok(())
}

/// One step of `torch.optim.AdamW` (arXiv:1711.05101; no AMSGrad) on each group, in place: `p = p · (1 − lr · weight_decay)`,
/// `m = β₁ m + (1 − β₁) g`, `v = β₂ v + (1 − β₂) g²`, `p = p − lr · m̂ / (√v̂ + ε)` with `m̂ = m / (1 − β₁ᵗ)`,
/// `v̂ = v / (1 − β₂ᵗ)`. `first` (m) and `second` (v) start at 0.
///
/// # Errors
/// As [`sgd_groups`], and [`Error::Config`] for step 0.
pub fn adamw_groups(
    params: &mut [f32],
    gradients: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    step: &AdamWStep,
    groups: &[ParamGroup],
) -> Result<()> {
    Error::check_len("gradients", params.len(), gradients.len())?;
    Error::check_len("means of the gradients", params.len(), first.len())?;
    Error::check_len("mean squares of the gradients", params.len(), second.len())?;
    check_groups(groups, params.len())?;
    let correction = step.correction()?;
    let [beta1, beta2] = step.betas;
    let [new1, new2] = step.betas.map(|beta| (1.0 - f64::from(beta)) as f32);
    for ParamGroup { range, lr, weight_decay } in groups.iter().cloned() {
        let rate = (f64::from(lr) / correction[0]) as f32;
        let kept = (1.0 - f64::from(lr) * f64::from(weight_decay)) as f32;
        let root = correction[1].sqrt() as f32;
        params[range.clone()]
            .par_chunks_mut(PIECE)
            .zip(gradients[range.clone()].par_chunks(PIECE))
            .zip(first[range.clone()].par_chunks_mut(PIECE))
            .zip(second[range].par_chunks_mut(PIECE))
            .for_each(|(((params, gradients), first), second)| {
                for (((p, g), m), v) in params.iter_mut().zip(gradients).zip(first).zip(second) {
                    *m = beta1 * *m + new1 * *g;
                    *v = beta2 * *v + new2 * *g * *g;
                    *p = *p * kept - rate * (*m / (v.sqrt() / root + step.eps));
                }
            });
    }
    Ok(())
}

/// L2 norm of the groups' parts of a gradient, summed in f64 in an order of its own.
///
/// # Errors
/// [`Error::Config`] for groups that overlap, run backwards or past the end.
pub fn gradient_norm(gradients: &[f32], groups: &[ParamGroup]) -> Result<f64> {
    check_groups(groups, gradients.len())?;
    let mut total = 0.0;
    for group in groups {
        // A tree over pieces: whichever thread sums, always the same pairs meet.
        total += square_sum(&gradients[group.range.clone()]);
    }
    Ok(total.sqrt())
}

/// Multiplies the groups' parts of `values`.
///
/// # Errors
/// [`Error::Config`] for groups that overlap, run backwards or past the end.
pub fn scale_groups(values: &mut [f32], factor: f32, groups: &[ParamGroup]) -> Result<()> {
    check_groups(groups, values.len())?;
    for group in groups {
        values[group.range.clone()]
            .par_chunks_mut(PIECE)
            .for_each(|values| values.iter_mut().for_each(|v| *v *= factor));
    }
    Ok(())
}

/// What `clip_grad_norm_` of PyTorch multiplies gradients of this norm by, if it is less than 1. A norm that is not finite
/// asks for nothing: whoever clips learns of it from the norm.
pub fn clip_factor(norm: f64, max_norm: f32) -> Option<f32> {
    let factor = f64::from(max_norm) / (norm + 1e-6);
    (norm.is_finite() && factor < 1.0).then_some(factor as f32)
}

impl AdamWStep {
    /// `1 − βᵗ` of both averages.
    ///
    /// # Errors
    /// [`Error::Config`] for step 0, where both are 0.
    pub(crate) fn correction(&self) -> Result<[f64; 2]> {
        if self.step == 0 {
            return Err(Error::Config("AdamW counts its steps from 1, got step 0".into()));
        }
        Ok(self.betas.map(|beta| 1.0 - f64::from(beta).powf(self.step as f64)))
    }
}

/// Groups in order, without overlap, within `len` parameters.
pub(crate) fn check_groups(groups: &[ParamGroup], len: usize) -> Result<()> {
    let mut end = 0;
    for ParamGroup { range, .. } in groups {
        if range.start < end || range.end < range.start || range.end > len {
            return Err(Error::Config(format!(
                "parameter groups follow each other within 0..{len} and do not overlap; got {range:?} after {end}"
            )));
        }
        end = range.end;
    }
    Ok(())
}

fn square_sum(values: &[f32]) -> f64 {
    if values.len() <= PIECE {
        return values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
    }
    let (left, right) = values.split_at((values.len() / 2).next_multiple_of(PIECE));
    let (left, right) = rayon::join(|| square_sum(left), || square_sum(right));
    left + right
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(range: Range<usize>, lr: f32, weight_decay: f32) -> ParamGroup {
        ParamGroup { range, lr, weight_decay }
    }

    const GRADIENTS: [[f32; 4]; 3] = [[0.5, 0.25, 1.0, -3.0], [-1.0, 2.0, 0.5, 0.125], [0.75, -0.5, -2.0, 1.0]];

    /// Two groups, the last value in none.
    fn groups() -> [ParamGroup; 2] {
        [group(0..2, 0.1, 0.01), group(2..3, 0.02, 0.0)]
    }

    fn assert_close(got: &[f32], want: &[f32]) {
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            assert!((g - w).abs() < 1e-6, "{i}: {got:?} {want:?}");
        }
    }

    /// ```python
    /// p = [torch.tensor([1., -2.], requires_grad=True), torch.tensor([3.], requires_grad=True)]
    /// o = torch.optim.SGD([dict(params=p[:1], lr=.1, weight_decay=.01), dict(params=p[1:], lr=.02, weight_decay=0.)],
    ///                     momentum=.9, nesterov=NESTEROV)
    /// for g in GRADIENTS: p[0].grad = torch.tensor(g[:2]); p[1].grad = torch.tensor(g[2:3]); o.step()
    /// ```
    #[test]
    fn sgd_matches_torch_group_by_group() {
        for (nesterov, want) in [(false, SGD), (true, NESTEROV)] {
            let (mut params, mut velocity) = ([1.0, -2.0, 3.0, 4.0], [0.0; 4]);
            for gradients in &GRADIENTS {
                let step = SgdStep { momentum: 0.9, nesterov };
                sgd_groups(&mut params, gradients, &mut velocity, &step, &groups()).unwrap();
            }
            assert_close(&params, &want);
            assert_eq!((params[3], velocity[3]), (4.0, 0.0));
        }
    }
    const SGD: [f32; 4] = [0.973_984_8, -2.386_244_8, 2.966_8, 4.0];
    const NESTEROV: [f32; 4] = [0.948_668_5, -2.515_925_6, 2.980_12, 4.0];

    /// The same with `torch.optim.AdamW(…, betas=(.9, .98), eps=1e-6)`.
    #[test]
    fn adamw_matches_torch_group_by_group() {
        let (mut params, mut first, mut second) = ([1.0, -2.0, 3.0, 4.0], [0.0; 4], [0.0; 4]);
        for (i, gradients) in GRADIENTS.iter().enumerate() {
            let step = AdamWStep { step: i as u64 + 1, betas: [0.9, 0.98], eps: 1e-6 };
            adamw_groups(&mut params, gradients, &mut first, &mut second, &step, &groups()).unwrap();
        }
        assert_close(&params, &[0.921_586_9, -2.221_716, 2.965_407, 4.0]);
        assert_eq!((first[3], second[3]), (0.0, 0.0));
    }

    #[test]
    fn one_group_over_everything_is_plain_sgd() {
        let (mut a, mut v) = (vec![0.5f32; 50_000], vec![0.25f32; 50_000]);
        let (mut b, mut w) = (a.clone(), v.clone());
        let gradients: Vec<f32> = (0..50_000).map(|i| (i % 17) as f32 - 8.0).collect();
        super::super::sgd_momentum(&mut a, &gradients, &mut v, 0.03, 0.9, 1e-4);
        let step = SgdStep { momentum: 0.9, nesterov: false };
        sgd_groups(&mut b, &gradients, &mut w, &step, &[group(0..50_000, 0.03, 1e-4)]).unwrap();
        assert!(a == b && v == w);
    }

    #[test]
    fn the_norm_is_exact_whatever_the_threads_and_clipping_follows_torch() {
        let gradients: Vec<f32> = (0..200_003).map(|i| ((i * 7919) % 1013) as f32 / 300.0 - 1.5).collect();
        let groups = [group(0..100_000, 1.0, 0.0), group(150_000..200_003, 1.0, 0.0)];
        let exact: f64 = gradients[..100_000].iter().chain(&gradients[150_000..]).map(|g| f64::from(*g).powi(2)).sum();
        let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let norm = pool(1).install(|| gradient_norm(&gradients, &groups)).unwrap();
        assert_eq!(norm, pool(5).install(|| gradient_norm(&gradients, &groups)).unwrap());
        assert!((norm / exact.sqrt() - 1.0).abs() < 1e-12);
        let mut clipped = gradients.clone();
        scale_groups(&mut clipped, clip_factor(norm, 2.0).unwrap(), &groups).unwrap();
        assert!((gradient_norm(&clipped, &groups).unwrap() - 2.0).abs() < 1e-5);
        assert_eq!(clipped[100_000..150_000], gradients[100_000..150_000]);
        assert_eq!([clip_factor(1.0, 2.0), clip_factor(f64::NAN, 2.0), clip_factor(f64::INFINITY, 2.0)], [None; 3]);
    }

    #[test]
    fn groups_that_make_no_sense_are_refused() {
        let mut params = [0.0; 4];
        let step = SgdStep { momentum: 0.9, nesterov: false };
        for groups in [
            vec![group(0..5, 0.1, 0.0)],
            vec![group(0..3, 0.1, 0.0), group(2..4, 0.1, 0.0)],
            vec![group(Range { start: 3, end: 1 }, 0.1, 0.0)],
        ] {
            let error = sgd_groups(&mut params, &[1.0; 4], &mut [0.0; 4], &step, &groups).unwrap_err();
            assert!(error.to_string().contains("parameter groups"), "{error}");
        }
        assert!(sgd_groups(&mut params, &[1.0; 3], &mut [0.0; 4], &step, &[]).is_err());
        let zeroth = AdamWStep { step: 0, betas: [0.9, 0.999], eps: 1e-8 };
        assert!(adamw_groups(&mut params, &[1.0; 4], &mut [0.0; 4], &mut [0.0; 4], &zeroth, &[]).is_err());
        assert_eq!(params, [0.0; 4]);
    }
}
