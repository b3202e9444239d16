//! Counter-based random numbers: what a sample gets depends on (seed, epoch, index, view) only, never on the thread
//! that drew it or on what was drawn before.

/// A stream of random numbers fixed by its key: number `i` is the splitmix64 finaliser of `key + (i+1)·γ`.
#[derive(Debug, Clone)]
pub struct Rng {
    key: u64,
    counter: u64,
}

const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

impl Rng {
    /// The stream of a seed and a purpose (any number; streams of different purposes are independent).
    pub fn new(seed: u64, stream: u64) -> Self {
        Self::keyed(&[seed, stream])
    }

    /// The stream of one view (0, 1, …) of the image `index` in the epoch `epoch`.
    pub fn for_sample(seed: u64, epoch: u64, index: u64, view: u64) -> Self {
        Self::keyed(&[seed, epoch, index, view])
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.counter += 1;
        finalise(self.key.wrapping_add(self.counter.wrapping_mul(GAMMA)))
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in [low, high); `low` when the two are equal.
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// Uniform among 0, …, n−1, without bias; 0 when `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        // Lemire, arXiv:1805.10941: reject the few products whose low half falls short.
        let n = n as u64;
        let threshold = if n == 0 { 0 } else { n.wrapping_neg() % n };
        loop {
            let product = u128::from(self.next_u64()) * u128::from(n);
            if product as u64 >= threshold {
                return (product >> 64) as usize;
            }
        }
    }

    /// Standard normal (Box–Muller, one value a call).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Puts `items` in a random order (Fisher–Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    fn keyed(parts: &[u64]) -> Self {
        let key = parts.iter().fold(0x6D6F_636F_u64, |key, &part| finalise(finalise(key ^ part).wrapping_add(GAMMA)));
        Self { key, counter: 0 }
    }
}

fn finalise(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_key_gives_the_same_stream_and_any_other_key_another() {
        let draw = |s, e, i, v| Rng::for_sample(s, e, i, v).next_u64();
        assert_eq!(draw(1, 2, 3, 0), draw(1, 2, 3, 0));
        let all = [draw(1, 2, 3, 0), draw(1, 2, 3, 1), draw(1, 3, 2, 0), draw(2, 1, 3, 0), draw(1, 2, 4, 0)];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn unit_is_uniform_over_neighbouring_keys() {
        // First draws of 20 000 consecutive images: mean 1/2 ± 5σ, each tenth holds a tenth.
        let first: Vec<f64> = (0..20_000).map(|i| Rng::for_sample(0, 0, i, 0).unit()).collect();
        let mean = first.iter().sum::<f64>() / first.len() as f64;
        assert!((mean - 0.5).abs() < 5.0 * (1.0f64 / 12.0 / 20_000.0).sqrt(), "{mean}");
        for tenth in 0..10 {
            let n = first.iter().filter(|&&u| (u * 10.0) as usize == tenth).count() as f64;
            assert!((n - 2000.0).abs() < 5.0 * (20_000.0f64 * 0.09).sqrt(), "{tenth}: {n}");
        }
    }

    #[test]
    fn shuffle_is_a_permutation_and_below_covers_its_range() {
        let mut rng = Rng::new(3, 4);
        let mut items: Vec<usize> = (0..97).collect();
        rng.shuffle(&mut items);
        assert_ne!(items, (0..97).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..97).collect::<Vec<_>>());
        let seen: std::collections::BTreeSet<usize> = (0..200).map(|_| rng.below(5)).collect();
        assert_eq!(seen, (0..5).collect());
        assert_eq!((rng.below(1), rng.below(0)), (0, 0));
    }

    #[test]
    fn normal_has_mean_0_and_variance_1() {
        let mut rng = Rng::new(1, 1);
        let values: Vec<f64> = (0..50_000).map(|_| rng.normal()).collect();
        let mean = values.iter().sum::<f64>() / 5e4;
        let variance = values.iter().map(|v| v * v).sum::<f64>() / 5e4;
        assert!(mean.abs() < 0.025 && (variance - 1.0).abs() < 0.04, "{mean} {variance}");
    }
}
