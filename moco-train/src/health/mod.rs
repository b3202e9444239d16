//! Is it working? Judged from the training itself, without labels: the loss against chance, the (K + 1)-way accuracy,
//! and the spread, the effective rank and the similarities of the embeddings.

mod spectrum;
mod verdict;

use serde::{Deserialize, Serialize};

use crate::objective::StepReport;

pub use spectrum::{effective_rank, feature_std};
pub(crate) use verdict::SUSPICIOUS_ACCURACY;
pub use verdict::{Level, judge};

/// Embeddings kept for the statistics; RankMe (arXiv:2210.02885) needs a few times the dimension.
const MOST_ROWS: usize = 2048;

/// What can be said about the features without labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HealthReport {
    /// Steps done.
    pub step: u64,
    /// Epochs done, with the fraction.
    pub epoch: f64,
    /// Mean loss of one direction since the last report, in nats.
    pub loss: f64,
    /// Loss of guessing: ln(K + 1).
    pub chance: f64,
    /// Mean accuracy of K + 1 since the last report.
    pub acc1: f64,
    /// The same with running instead of batch statistics, when accuracy was so high that it was worth asking.
    pub acc1_running_stats: Option<f64>,
    /// Standard deviation of the embeddings' entries over images, averaged over the dimensions.
    pub feature_std: f64,
    /// The same for embeddings spread evenly over the sphere: 1/√d.
    pub ideal_std: f64,
    /// RankMe: exp of the entropy of the normalised singular values; 1 to d.
    pub effective_rank: f64,
    /// d.
    pub dim: usize,
    /// Embeddings that were looked at.
    pub rows: usize,
    /// Mean similarity of a query and its key.
    pub pos_sim: f64,
    /// Mean similarity of a query and the queue.
    pub neg_sim: f64,
    /// Share of (query, negative) pairs that show the same image.
    pub same_image_share: f64,
    /// How serious it is.
    pub level: Level,
    /// One sentence.
    pub verdict: String,
    /// What to look at, each with advice.
    pub warnings: Vec<String>,
}

/// What a report needs beside the embeddings.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// Steps done.
    pub step: u64,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Directions that are summed in the loss: 2 when symmetric.
    pub directions: usize,
    /// Keys in the queue.
    pub queue: usize,
    /// Images in the data set.
    pub images: usize,
    /// Share of (query, negative) pairs that show the same image.
    pub same_image_share: f64,
    /// Whether these pairs are left out of the loss.
    pub masked: bool,
    /// Accuracy with running statistics, if it was measured.
    pub acc1_running_stats: Option<f64>,
}

/// Gathers steps until the next report. Saved with a checkpoint, so that a resumed run reports the same.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HealthTracker {
    dim: usize,
    steps: u64,
    loss: f64,
    accuracy: f64,
    positive: f64,
    negative: f64,
    /// The newest embeddings, as a ring [rows, dim].
    #[serde(skip)]
    rows: Vec<f32>,
    next: usize,
}

impl HealthTracker {
    /// For embeddings of `dim`.
    pub fn new(dim: usize) -> HealthTracker {
        HealthTracker { dim, ..HealthTracker::default() }
    }

    /// Takes a step in, with its query embeddings [n, dim].
    pub fn add(&mut self, report: &StepReport, embeddings: &[f32]) {
        self.steps += 1;
        self.loss += report.loss;
        self.accuracy += report.accuracy;
        self.positive += report.positive_similarity;
        self.negative += report.negative_similarity;
        for row in embeddings.chunks_exact(self.dim) {
            if self.rows.len() < MOST_ROWS * self.dim {
                self.rows.extend_from_slice(row);
            } else {
                self.rows[self.next * self.dim..][..self.dim].copy_from_slice(row);
                self.next = (self.next + 1) % MOST_ROWS;
            }
        }
    }

    /// Mean accuracy since the last report.
    pub fn accuracy(&self) -> f64 {
        self.accuracy / self.steps.max(1) as f64
    }

    /// Reports and starts over; nothing without a step.
    pub fn report(&mut self, context: &Context) -> Option<HealthReport> {
        if self.steps == 0 {
            return None;
        }
        let mean = |sum: f64| sum / self.steps as f64;
        let mut report = HealthReport {
            step: context.step,
            epoch: context.step as f64 / context.steps_per_epoch as f64,
            loss: mean(self.loss) / context.directions as f64,
            chance: ((context.queue + 1) as f64).ln(),
            acc1: mean(self.accuracy),
            acc1_running_stats: context.acc1_running_stats,
            feature_std: feature_std(&self.rows, self.dim),
            ideal_std: 1.0 / (self.dim as f64).sqrt(),
            effective_rank: effective_rank(&self.rows, self.dim),
            dim: self.dim,
            rows: self.rows.len() / self.dim,
            pos_sim: mean(self.positive),
            neg_sim: mean(self.negative),
            same_image_share: context.same_image_share,
            level: Level::Good,
            verdict: String::new(),
            warnings: vec![],
        };
        (report.level, report.verdict, report.warnings) = judge(&report, context);
        *self = HealthTracker::new(self.dim);
        Some(report)
    }

    /// The embeddings it holds, to be saved beside it.
    pub fn rows(&self) -> &[f32] {
        &self.rows
    }

    /// Puts saved embeddings back.
    pub fn set_rows(&mut self, rows: Vec<f32>) {
        self.rows = rows;
    }
}

impl HealthReport {
    /// Several lines for people.
    pub fn text(&self) -> String {
        let running =
            self.acc1_running_stats.map_or(String::new(), |a| format!(" ({:.1} % with running statistics)", 100.0 * a));
        let mut text = format!(
            "health at step {}: {}\n  loss {:.3} of ln(K+1) {:.3}, (K+1)-way accuracy {:.1} %{running}, feature std {:.4} \
             (even spread {:.4}), effective rank {:.1} of {}, similarity of positives {:.3}, of negatives {:.3}",
            self.step,
            self.verdict,
            self.loss,
            self.chance,
            100.0 * self.acc1,
            self.feature_std,
            self.ideal_std,
            self.effective_rank,
            self.dim.min(self.rows),
            self.pos_sim,
            self.neg_sim,
        );
        for warning in &self.warnings {
            text.push_str(&format!("\n  warning: {warning}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moco_image::Rng;

    fn embeddings(n: usize, dim: usize, spread: f64) -> Vec<f32> {
        let mut rng = Rng::new(1, 1);
        let mut rows = vec![];
        for _ in 0..n {
            let row: Vec<f64> = (0..dim).map(|i| if i == 0 { 1.0 } else { 0.0 } + spread * rng.normal()).collect();
            let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
            rows.extend(row.iter().map(|v| (v / norm) as f32));
        }
        rows
    }

    fn context() -> Context {
        Context {
            step: 1000,
            steps_per_epoch: 100,
            directions: 1,
            queue: 4096,
            images: 50_000,
            same_image_share: 0.0,
            masked: false,
            acc1_running_stats: None,
        }
    }

    fn report(step: &StepReport, rows: &[f32], context: &Context) -> HealthReport {
        let mut tracker = HealthTracker::new(32);
        tracker.add(step, rows);
        tracker.report(context).unwrap()
    }

    const GOOD: StepReport =
        StepReport { loss: 5.0, accuracy: 0.5, positive_similarity: 0.8, negative_similarity: 0.05 };

    #[test]
    fn spread_embeddings_are_good_and_equal_ones_collapsed() {
        let good = report(&GOOD, &embeddings(500, 32, 10.0), &context());
        assert_eq!((good.level, good.warnings.len()), (Level::Good, 0), "{}", good.text());
        assert!((good.feature_std / good.ideal_std - 1.0).abs() < 0.05);
        let bad = report(&GOOD, &embeddings(500, 32, 1e-4), &context());
        assert_eq!(bad.level, Level::Bad);
        assert!(bad.text().contains("collapse"), "{}", bad.text());
    }

    #[test]
    fn batch_norm_shortcut_is_told_from_real_success() {
        let step = StepReport { accuracy: 0.99, ..GOOD };
        let rows = embeddings(500, 32, 10.0);
        let of = |running| report(&step, &rows, &Context { acc1_running_stats: Some(running), ..context() });
        assert!(of(0.2).warnings.iter().any(|w| w.contains("batch norm")), "{}", of(0.2).text());
        assert_eq!(of(0.97).level, Level::Good);
    }

    #[test]
    fn a_queue_larger_than_the_set_is_named() {
        let small = Context { images: 1000, same_image_share: 0.001, ..context() };
        let warnings = report(&GOOD, &embeddings(500, 32, 10.0), &small).warnings;
        assert!(warnings.iter().any(|w| w.contains("4096") && w.contains("1000") && w.contains("mask")));
        let masked = report(&GOOD, &embeddings(500, 32, 10.0), &Context { masked: true, ..small }).warnings;
        assert!(masked.is_empty(), "{masked:?}");
    }

    #[test]
    fn tracker_survives_saving() {
        let mut a = HealthTracker::new(32);
        a.add(&GOOD, &embeddings(3000, 32, 1.0));
        let mut b: HealthTracker = serde_json::from_str(&serde_json::to_string(&a).unwrap()).unwrap();
        b.set_rows(a.rows().to_vec());
        assert_eq!(a, b);
        assert_eq!(a.rows().len(), MOST_ROWS * 32);
    }
}
