//! What values a feature map takes, and the range whose 256 levels represent them best.

use moco_models::onnx::grid;

/// Bins on each side of zero: at least sixteen for each of the 256 levels, of which a ReLU leaves half.
const HALF: usize = 8192;

/// Smallest bin width is 2^this; below, values are as good as zero.
const SMALLEST: i32 = -100;

/// Counts of values in bins of a power of two. Where values are too large the bins are merged in pairs, so that the
/// result depends neither on the order of the values nor on how they are split among threads.
#[derive(Clone)]
pub(super) struct Histogram {
    exponent: i32,
    bins: Vec<u64>,
    low: f32,
    high: f32,
}

impl Histogram {
    pub(super) fn new() -> Histogram {
        Histogram { exponent: SMALLEST, bins: vec![0; 2 * HALF], low: 0.0, high: 0.0 }
    }

    /// Counts values; false, and nothing is counted, if one of them is not finite.
    pub(super) fn add(&mut self, values: &[f32]) -> bool {
        let (low, high) = values.iter().fold((0.0, 0.0), |(l, h): (f32, f32), v| (l.min(*v), h.max(*v)));
        // NaN survives no comparison, but every product.
        let sum: f32 = values.iter().map(|v| v * 0.0).sum();
        if !sum.is_finite() {
            return false;
        }
        self.cover(low, high);
        let per_width = 2f64.powi(-self.exponent) as f32;
        for value in values {
            self.bins[((value * per_width).floor() as i32 + HALF as i32) as usize] += 1;
        }
        true
    }

    /// Adds what another histogram counted.
    pub(super) fn merge(&mut self, mut other: Histogram) {
        self.cover(other.low, other.high);
        other.cover(self.low, self.high);
        self.bins.iter_mut().zip(&other.bins).for_each(|(a, b)| *a += b);
    }

    /// The whole range, zero included.
    pub(super) fn extremes(&self) -> [f32; 2] {
        [self.low, self.high]
    }

    /// The range with the smallest mean squared error over its 256 levels: clipping a few large values may cost less
    /// than coarser levels for all others. Both ends shrink together first, then each on its own.
    pub(super) fn best_range(&self) -> [f32; 2] {
        let width = 2f64.powi(self.exponent);
        let filled = self.bins.iter().enumerate().filter(|(_, n)| **n > 0);
        let counts: Vec<(f64, f64)> =
            filled.map(|(i, n)| ((i as f64 - HALF as f64 + 0.5) * width, *n as f64)).collect();
        let mut best = (squared_error(&counts, self.extremes()), self.extremes());
        let mut consider = |range: [f32; 2]| {
            let error = squared_error(&counts, range);
            if error < best.0 {
                best = (error, range);
            }
            best.1
        };
        for step in 20..STEPS {
            let share = step as f32 / STEPS as f32;
            consider([self.low * share, self.high * share]);
        }
        if self.low < 0.0 && self.high > 0.0 {
            let (low, high) = (self.low, self.high);
            let mut range = consider(self.extremes());
            for step in 20..=STEPS {
                range = consider([low * step as f32 / STEPS as f32, range[1]]);
            }
            for step in 20..=STEPS {
                range = consider([range[0], high * step as f32 / STEPS as f32]);
            }
        }
        best.1
    }

    /// Merges bins until values from `low` to `high` have one.
    fn cover(&mut self, low: f32, high: f32) {
        (self.low, self.high) = (self.low.min(low), self.high.max(high));
        let largest = f64::from(self.high.max(-self.low));
        let mut exponent = self.exponent;
        while largest >= HALF as f64 * 2f64.powi(exponent) {
            exponent += 1;
        }
        let shift = (exponent - self.exponent) as u32;
        if shift == 0 {
            return;
        }
        let mut merged = vec![0; 2 * HALF];
        for (i, n) in self.bins.iter().enumerate().filter(|(_, n)| **n > 0) {
            let place = i as i64 - HALF as i64;
            merged[((place >> shift.min(63)) + HALF as i64) as usize] += n;
        }
        (self.exponent, self.bins) = (exponent, merged);
    }
}

/// Candidates for each end of a range.
const STEPS: usize = 128;

fn squared_error(counts: &[(f64, f64)], range: [f32; 2]) -> f64 {
    let (scale, zero) = grid(range);
    let (scale, zero) = (f64::from(scale), f64::from(zero));
    let error = |value: f64| ((value / scale).round() + zero).clamp(0.0, 255.0).mul_add(scale, -zero * scale) - value;
    counts.iter().map(|(value, n)| error(*value).powi(2) * n).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bell-shaped values with a few far away.
    fn values(n: usize) -> Vec<f32> {
        let unit = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7) as f32 % 1000.0 / 1000.0;
        (0..n).map(|i| (0..6).map(|k| unit(6 * i + k)).sum::<f32>() - 3.0).chain([9.0]).collect()
    }

    #[test]
    fn neither_order_nor_threads_change_the_result() {
        let values = values(5000);
        let mut whole = Histogram::new();
        assert!(whole.add(&values));
        let mut parts = Histogram::new();
        for chunk in values.chunks(700).rev() {
            let mut part = Histogram::new();
            assert!(part.add(chunk));
            parts.merge(part);
        }
        assert_eq!((whole.exponent, &whole.bins), (parts.exponent, &parts.bins));
        assert_eq!(whole.bins.iter().sum::<u64>(), 5001);
        assert_eq!(whole.best_range(), parts.best_range());
    }

    #[test]
    fn one_outlier_is_clipped_and_levels_serve_the_rest() {
        let mut histogram = Histogram::new();
        histogram.add(&values(1_000_000));
        let [low, high] = histogram.best_range();
        assert_eq!(histogram.extremes()[1], 9.0);
        assert!(high < 5.0 && low < -1.5, "{low} … {high}");
    }

    #[test]
    fn values_that_fill_their_range_keep_it() {
        let mut histogram = Histogram::new();
        histogram.add(&(0..=2000).map(|i| i as f32 / 1000.0).collect::<Vec<_>>());
        let [low, high] = histogram.best_range();
        assert!(low == 0.0 && high > 1.95, "{low} … {high}");
    }

    #[test]
    fn zeros_have_an_empty_range_and_nan_is_refused() {
        let mut histogram = Histogram::new();
        assert!(histogram.add(&[0.0; 8]));
        assert_eq!(histogram.best_range(), [0.0, 0.0]);
        assert!(!histogram.add(&[1.0, f32::NAN]) && !histogram.add(&[f32::INFINITY]));
        assert_eq!(histogram.bins.iter().sum::<u64>(), 8);
    }
}
