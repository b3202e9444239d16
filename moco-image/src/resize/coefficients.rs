//! The filter's weights for one direction, in PIL's fixed point.

use super::Filter;

/// Bits after the point: 32 − 8 for the pixel − 2 for overshoot of the cubic.
pub(crate) const PRECISION_BITS: u32 = 32 - 8 - 2;

/// For each output position the first input position, and `taps` weights (the tail of which may be 0).
#[derive(Debug, Default)]
pub(crate) struct Coefficients {
    first: Vec<usize>,
    count: Vec<usize>,
    weights: Vec<i32>, // [outputs, taps]
    taps: usize,
    widest: usize,
    exact: Vec<f64>,
}

impl Coefficients {
    /// Weights that bring `input` positions to `output`, for the outputs `from..from + len` only.
    /// Follows normalize_coeffs_8bpc of libImaging/Resample.c.
    pub fn compute(&mut self, input: usize, output: usize, from: usize, len: usize, filter: Filter) {
        let scale = (input as f64 / output as f64).max(1.0);
        self.taps = ((filter.support() * scale).ceil() as usize) * 2 + 1;
        self.first.clear();
        self.count.clear();
        self.weights.clear();
        self.weights.resize(len * self.taps, 0);
        let one = (1u32 << PRECISION_BITS) as f64;
        for i in 0..len {
            let first = weights(input, output, from + i, filter, &mut self.exact);
            for (weight, &exact) in self.weights[i * self.taps..].iter_mut().zip(&self.exact) {
                *weight = if exact < 0.0 { (-0.5 + exact * one) as i32 } else { (0.5 + exact * one) as i32 };
            }
            self.first.push(first);
            self.count.push(self.exact.len());
        }
        self.widest = self.count.iter().copied().max().unwrap_or(0);
    }

    /// Number of outputs.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.first.len()
    }

    /// First input position of output `i` and its weights.
    #[inline(always)]
    pub fn at(&self, i: usize) -> (usize, &[i32]) {
        let start = i * self.taps;
        (self.first[i], &self.weights[start..start + self.count[i]])
    }

    /// As [`Coefficients::at`], with as many weights for each output, of which the last may be 0.
    #[inline(always)]
    pub fn padded(&self, i: usize) -> (usize, &[i32]) {
        let start = i * self.taps;
        (self.first[i], &self.weights[start..start + self.widest])
    }

    /// The most weights an output has.
    pub fn widest(&self) -> usize {
        self.widest
    }

    /// The input positions that all outputs together read.
    pub fn span(&self) -> (usize, usize) {
        let last = self.first.len() - 1;
        (self.first[0], self.first[last] + self.count[last])
    }
}

/// Weights of output `i`, which add up to 1, and the first input they belong to.
/// Follows precompute_coeffs of libImaging/Resample.c step by step, in double precision.
pub(super) fn weights(input: usize, output: usize, i: usize, filter: Filter, weights: &mut Vec<f64>) -> usize {
    let scale = input as f64 / output as f64;
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    let inverse = 1.0 / filter_scale;
    let center = (i as f64 + 0.5) * scale;
    let first = (center - support + 0.5).max(0.0) as usize;
    let end = ((center + support + 0.5) as usize).min(input);
    weights.clear();
    weights.extend((first..end).map(|x| filter.weight((x as f64 - center + 0.5) * inverse)));
    let sum: f64 = weights.iter().sum();
    if sum != 0.0 {
        weights.iter_mut().for_each(|weight| *weight /= sum);
    }
    first
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Filter::Bilinear => (1.0 - x).max(0.0),
            Filter::Bicubic => {
                const A: f64 = -0.5;
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
        }
    }
}
