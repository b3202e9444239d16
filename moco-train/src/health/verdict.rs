//! Numbers into words: what they mean and what to do.

use serde::{Deserialize, Serialize};

use super::{Context, HealthReport};

/// How serious a report is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Nothing to do.
    Good,
    /// Too early to tell.
    Early,
    /// Look at the warnings.
    Warning,
    /// Go no further without a change.
    Bad,
}

/// An untrained network sends every image almost to the same point; before this many steps that means nothing.
const EARLY_STEPS: u64 = 300;

/// Below this share of an even spread the embeddings are one point.
const COLLAPSED_STD: f64 = 0.1;

/// Below this share of an even spread they are close together.
const NARROW_STD: f64 = 0.4;

/// An effective rank below this share of what is possible is a dimensional collapse (arXiv:2110.09348).
const LOW_RANK: f64 = 0.08;

/// Accuracy from which a shortcut is suspected, and the share of it that must survive without batch statistics.
pub(crate) const SUSPICIOUS_ACCURACY: f64 = 0.95;
const SURVIVING_SHARE: f64 = 0.6;

/// Level, verdict and warnings of a report.
pub fn judge(r: &HealthReport, context: &Context) -> (Level, String, Vec<String>) {
    let mut warnings = vec![];
    let early = context.step < EARLY_STEPS;
    let std_share = r.feature_std / r.ideal_std;
    let most_rank = r.dim.min(r.rows) as f64;
    let mut level = if early { Level::Early } else { Level::Good };
    let mut verdict = if early {
        "too early to tell; the loss usually rises first".to_string()
    } else if r.loss > 0.97 * r.chance {
        format!("hardly better than guessing ({:.2} of {:.2} nats) so far", r.loss, r.chance)
    } else {
        "learning: the embeddings are spread out and positives are found".to_string()
    };

    if !early && std_share < COLLAPSED_STD {
        level = Level::Bad;
        verdict = "collapse: all images get almost the same embedding".into();
        warnings.push(
            "collapse: check that the two views of an image differ (augment.*), that shuffling BN is on \
             (batch_norm.shuffle with batch_norm.count > 1), and that lr and method.key_momentum fit the batch"
                .into(),
        );
    } else if !early && r.effective_rank < (LOW_RANK * most_rank).max(2.0) {
        level = Level::Warning;
        verdict = format!("the embeddings use only about {:.0} of {most_rank:.0} directions", r.effective_rank);
        warnings.push(
            "dimensional collapse: stronger augmentation, a larger queue or a higher temperature usually help; it is \
             normal during the first epochs of a small set"
                .into(),
        );
    } else if !early && std_share < NARROW_STD {
        verdict = format!("learning, but the embeddings fill only {:.0} % of an even spread", 100.0 * std_share);
    }
    if let Some(running) = r.acc1_running_stats
        && r.acc1 >= SUSPICIOUS_ACCURACY
        && running < SURVIVING_SHARE * r.acc1
    {
        level = Level::Bad;
        verdict = "shortcut: the task is solved by batch statistics, not by the images".into();
        warnings.push(format!(
            "batch norm shortcut: accuracy is {:.1} % with batch statistics and {:.1} % without; turn on \
             batch_norm.shuffle with at least 2 groups (`--virtual-ranks 4`)",
            100.0 * r.acc1,
            100.0 * running
        ));
    }
    if context.queue > context.images && !context.masked {
        level = level.max(Level::Warning);
        warnings.push(format!(
            "the queue of {} keys is larger than the {} images: each image is its own negative about {:.1} times ({:.3} % \
             of the negatives now); use `--queue {}` or `--mask-same-image`",
            context.queue,
            context.images,
            context.queue as f64 / context.images as f64,
            100.0 * r.same_image_share,
            context.images / 2
        ));
    }
    (level, verdict, warnings)
}
