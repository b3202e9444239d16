//! The logistic function and the losses of one logit by itself.

/// 1 / (1 + e⁻ˣ).
pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// ln(1 + eˣ) without overflow.
pub(super) fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// xᵞ; the usual exponents without the general function.
pub(super) fn power(x: f64, gamma: f64) -> f64 {
    match gamma {
        2.0 => x * x,
        1.0 => x,
        0.0 => 1.0,
        _ => x.powf(gamma),
    }
}
