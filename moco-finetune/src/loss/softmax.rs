//! Softmax of one row of logits and the cross-entropy of it, shared by the losses that compare classes.

/// Writes the softmax of `logits` and returns the logarithm of its denominator: −ln p of class k is `lse − logits[k]`.
pub(super) fn softmax(logits: &[f32], probabilities: &mut [f64]) -> f64 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let largest = f64::from(largest);
    let mut sum = 0.0;
    for (p, z) in probabilities.iter_mut().zip(logits) {
        *p = (f64::from(*z) - largest).exp();
        sum += *p;
    }
    for p in probabilities.iter_mut() {
        *p /= sum;
    }
    largest + sum.ln()
}

/// Cross-entropy against a label that is smoothed over all classes, each class with its weight.
pub(super) struct Smoothed {
    weights: Vec<f64>,
    weight_sum: f64,
    smoothing: f64,
}

impl Smoothed {
    /// `weights` holds one value a class, or none for 1.
    pub(super) fn new(weights: &[f32], classes: usize, smoothing: f32) -> Smoothed {
        let weights: Vec<f64> = match weights.is_empty() {
            true => vec![1.0; classes],
            false => weights.iter().map(|w| f64::from(*w)).collect(),
        };
        Smoothed { weight_sum: weights.iter().sum(), weights, smoothing: f64::from(smoothing) }
    }

    /// Weight of a class.
    pub(super) fn weight(&self, class: usize) -> f64 {
        self.weights[class]
    }

    /// −Σ_k q_k w_k ln p_k, where q is 1−ε at the label plus ε/classes everywhere.
    pub(super) fn loss(&self, logits: &[f32], lse: f64, label: usize) -> f64 {
        let at_label = self.weights[label] * (lse - f64::from(logits[label]));
        if self.smoothing == 0.0 {
            return at_label;
        }
        let everywhere: f64 = self.weights.iter().zip(logits).map(|(w, z)| w * (lse - f64::from(*z))).sum();
        (1.0 - self.smoothing) * at_label + self.smoothing / self.weights.len() as f64 * everywhere
    }

    /// Derivative of [`Smoothed::loss`] by logit k, where the softmax is `p`.
    pub(super) fn derivative(&self, p: f64, k: usize, label: usize) -> f64 {
        let at_label = self.weights[label] * (p - f64::from(u8::from(k == label)));
        if self.smoothing == 0.0 {
            return at_label;
        }
        let everywhere = p * self.weight_sum - self.weights[k];
        (1.0 - self.smoothing) * at_label + self.smoothing / self.weights.len() as f64 * everywhere
    }
}
