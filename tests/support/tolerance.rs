//! How close a result must come to a recording, in one place.
//!
//! The bounds are those of `tests/fixtures/parity/README.md`. References are float64, results float32: a bound is
//! either ten times the error PyTorch's own float32 makes, recorded with the trace, or the floor below.

/// Relative L2 error allowed for the features of a backbone, and for any group of a trace at least.
pub const FEATURES: f64 = 1e-4;
/// Relative L2 error allowed for the gradients of a backbone, all together and for the norm of each.
pub const GRADIENTS: f64 = 1e-3;
/// Times PyTorch's own float32 error that a group of a trace may be off.
pub const TIMES_TORCH: f64 = 10.0;

/// Bound of a trace's group whose recording says what error PyTorch's float32 makes.
pub fn of_trace(torch_float32_error: f64) -> f64 {
    FEATURES.max(TIMES_TORCH * torch_float32_error)
}

/// √(Σ(a−b)² / Σb²) over any number of tensors; `b` is the reference.
#[derive(Clone, Copy, Debug, Default)]
pub struct RelativeL2 {
    difference: f64,
    reference: f64,
}

impl RelativeL2 {
    /// Adds a tensor.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add<T: Copy + Into<f64>>(&mut self, got: &[T], reference: &[f64]) {
        assert_eq!(got.len(), reference.len(), "as many results as recorded values");
        for (got, reference) in got.iter().zip(reference) {
            self.difference += ((*got).into() - reference).powi(2);
            self.reference += reference.powi(2);
        }
    }

    /// The error; against a reference of zeros, the length of the result.
    pub fn value(&self) -> f64 {
        if self.reference == 0.0 { self.difference.sqrt() } else { (self.difference / self.reference).sqrt() }
    }
}

/// The relative L2 error of one tensor.
pub fn relative_l2<T: Copy + Into<f64>>(got: &[T], reference: &[f64]) -> f64 {
    let mut error = RelativeL2::default();
    error.add(got, reference);
    error.value()
}

/// Errors of one file against their bounds: collects them all, then says which are too large.
#[derive(Debug, Default)]
pub struct Findings {
    passed: Vec<String>,
    failed: Vec<String>,
}

impl Findings {
    /// Notes one error; NaN is too large.
    pub fn bound(&mut self, what: &str, error: f64, bound: f64) {
        let line = format!("{what} {error:.1e}/{bound:.0e}");
        if error <= bound { self.passed.push(line) } else { self.failed.push(line) }
    }

    /// Notes whether something that is not a number holds.
    pub fn holds(&mut self, what: &str, holds: bool) {
        if holds { self.passed.push(what.into()) } else { self.failed.push(format!("not so: {what}")) }
    }

    /// One line: every error over its bound.
    ///
    /// # Errors
    /// The errors that are too large; or that nothing was compared.
    pub fn finish(self) -> Result<String, String> {
        match (self.passed.is_empty(), self.failed.is_empty()) {
            (_, false) => Err(format!("off (error/bound): {}", self.failed.join(", "))),
            (true, true) => Err("nothing in it was compared".into()),
            (false, true) => Ok(self.passed.join(", ")),
        }
    }
}

/// The 16 (or fewer) values a recording samples: at flat positions i·L/m, row-major.
pub fn sample<T: Copy>(values: &[T]) -> Vec<T> {
    let m = values.len().min(16);
    (0..m).map(|i| values[i * values.len() / m]).collect()
}

/// L2 norm, summed in f64.
pub fn norm<T: Copy + Into<f64>>(values: &[T]) -> f64 {
    values.iter().map(|v| (*v).into().powi(2)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_and_nothing_at_all_are_failures() {
        let mut findings = Findings::default();
        findings.bound("loss", f64::NAN, 1.0);
        assert!(findings.finish().is_err());
        assert!(Findings::default().finish().is_err());
    }

    #[test]
    fn error_is_relative_to_the_reference() {
        assert_eq!(relative_l2(&[3.0, 0.0], &[0.0, 4.0]), 1.25);
        assert_eq!(relative_l2(&[3.0, 4.0], &[0.0, 0.0]), 5.0);
    }

    #[test]
    fn samples_are_spread_over_the_tensor() {
        let values: Vec<u32> = (0..40).collect();
        assert_eq!(sample(&values)[..4], [0, 2, 5, 7]);
        assert_eq!(sample(&values[..3]), [0, 1, 2]);
    }
}
