//! What the tests of losses share: logits, finite differences, recordings of PyTorch.

use safetensors::{Dtype, SafeTensors};

/// Step of the finite differences; logits are multiples of it, so that moving one by a step is exact in f32.
const STEP: f32 = 1.0 / 1024.0;

/// Reproducible multiples of [`STEP`] in [−3, 3).
pub(crate) fn quantised(name: &str, n: usize) -> Vec<f32> {
    let mut state =
        name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) % 6144) as f32 * STEP - 3.0
    };
    (0..n).map(|_| next()).collect()
}

/// Compares the gradient that `loss` writes with central differences of its value, at up to 64 places.
pub(crate) fn check_gradient(at: &[f32], mut loss: impl FnMut(&[f32], &mut [f32]) -> f64) {
    // What is in the buffer before must not matter.
    let mut gradient = vec![f32::NAN; at.len()];
    loss(at, &mut gradient);
    let largest = gradient.iter().fold(0.0, |a: f32, b| a.max(b.abs()));
    assert!(largest > 0.0 && gradient.iter().all(|g| g.is_finite()), "a gradient to compare");
    let mut scratch = vec![0.0; at.len()];
    let mut moved = at.to_vec();
    for i in (0..at.len()).step_by(at.len().div_ceil(64)) {
        moved[i] = at[i] + STEP;
        let above = loss(&moved, &mut scratch);
        moved[i] = at[i] - STEP;
        let below = loss(&moved, &mut scratch);
        moved[i] = at[i];
        let difference = (above - below) / (2.0 * f64::from(STEP));
        // What remains is the third derivative times STEP² / 6, and the rounding of the gradient to f32.
        let error = (difference - f64::from(gradient[i])).abs();
        assert!(error <= 2e-6 * f64::from(largest), "gradient {i}: {}, but differences give {difference}", gradient[i]);
    }
}

/// A file of `tests/fixtures`.
pub(crate) struct Recording(Vec<u8>);

impl Recording {
    pub(crate) fn open(name: &str) -> Recording {
        let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
        Recording(std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}")))
    }

    /// Shape of a tensor.
    pub(crate) fn shape(&self, name: &str) -> Vec<usize> {
        self.file().tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).shape().to_vec()
    }

    /// A tensor of f32 or f64.
    pub(crate) fn f64(&self, name: &str) -> Vec<f64> {
        let file = self.file();
        let tensor = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        match tensor.dtype() {
            Dtype::F32 => values(tensor.data(), f32::from_le_bytes).map(f64::from).collect(),
            Dtype::F64 => values(tensor.data(), f64::from_le_bytes).collect(),
            Dtype::I32 => values(tensor.data(), i32::from_le_bytes).map(f64::from).collect(),
            other => panic!("{name}: {other:?}"),
        }
    }

    /// A tensor that was f32 when it was recorded.
    pub(crate) fn f32(&self, name: &str) -> Vec<f32> {
        self.f64(name).into_iter().map(|v| v as f32).collect()
    }

    /// A tensor of i32.
    pub(crate) fn i32(&self, name: &str) -> Vec<i32> {
        self.f64(name).into_iter().map(|v| v as i32).collect()
    }

    /// A tensor of i32, none of which is negative.
    pub(crate) fn indices(&self, name: &str) -> Vec<usize> {
        self.i32(name).into_iter().map(|v| usize::try_from(v).expect("not negative")).collect()
    }

    /// Runs a loss and compares it with `<name>.loss`, its gradient with `<name>.gradient`: recordings are f64, losses
    /// here as well, gradients f32.
    pub(crate) fn check(&self, name: &str, loss: impl FnOnce(&mut [f32]) -> f64) {
        let expected = self.f64(&format!("{name}.gradient"));
        let mut gradient = vec![f32::NAN; expected.len()];
        close(&format!("{name}.loss"), loss(&mut gradient), self.f64(&format!("{name}.loss"))[0], 1e-9);
        self.check_gradient(name, &gradient);
    }

    /// Compares with `<name>.gradient`.
    pub(crate) fn check_gradient(&self, name: &str, gradient: &[f32]) {
        let expected = self.f64(&format!("{name}.gradient"));
        assert_eq!(gradient.len(), expected.len(), "{name}");
        let largest = expected.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
        for (i, (got, expected)) in gradient.iter().zip(&expected).enumerate() {
            let error = (f64::from(*got) - expected).abs();
            assert!(error <= 5e-7 * largest, "{name}: gradient {i} is {got}, PyTorch's {expected}");
        }
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).expect("a safetensors file")
    }
}

/// Relative error, or absolute below 1.
pub(crate) fn close(what: &str, got: f64, expected: f64, bound: f64) {
    let error = (got - expected).abs() / expected.abs().max(1.0);
    assert!(error <= bound, "{what}: got {got}, expected {expected}");
}

fn values<const N: usize, T>(bytes: &[u8], of: fn([u8; N]) -> T) -> impl Iterator<Item = T> {
    bytes.chunks_exact(N).map(move |b| of(b.try_into().expect("N bytes")))
}
