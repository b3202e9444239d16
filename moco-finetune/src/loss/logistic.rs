//! The logistic function and the losses of one logit by itself.

/// 1 / (1 + e⁻ˣ).
pub(crate) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// ln(1 + eˣ) without overflow.
pub(super) fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Binary cross-entropy of a logit against a target in [0, 1], in nats, and its derivative.
pub(super) fn binary(logit: f64, target: f64) -> (f64, f64) {
    (softplus(logit) - target * logit, sigmoid(logit) - target)
}

/// The focal loss of RetinaNet (arXiv:1708.02002, eq. 5) of a logit, −α_t (1−p_t)^γ ln p_t, and its derivative.
#[derive(Clone, Copy, Debug)]
pub(super) struct Focal {
    /// Weight of presence; that of absence is 1 − α.
    pub(super) alpha: f64,
    /// How fast what is known already stops to count; 0 for cross-entropy.
    pub(super) gamma: f64,
}

impl Focal {
    /// `present`: whether the logit's class is what is there.
    pub(super) fn of(&self, logit: f64, present: bool) -> (f64, f64) {
        let (sign, weight) = if present { (1.0, self.alpha) } else { (-1.0, 1.0 - self.alpha) };
        let (p, rest) = (sigmoid(sign * logit), sigmoid(-sign * logit));
        let minus_ln = softplus(-sign * logit);
        let modulation = power(rest, self.gamma);
        let derivative = -modulation * (self.gamma * p * minus_ln + rest);
        (weight * modulation * minus_ln, sign * weight * derivative)
    }
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
