//! A look at a data set before a run: what is there, what is broken, how fast it decodes.

use std::collections::BTreeMap;
use std::time::Instant;

use moco_image::Image;

use super::{Corrupt, Dataset, DatasetKind, Error, FileKind, ReadBuffers, Result};

/// How many looked-at images have a size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizeBucket {
    /// Shorter side from this …
    pub from: usize,
    /// … up to but not including this.
    pub to: usize,
    /// Images.
    pub count: usize,
}

/// What [`summarise`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Kind of data set.
    pub kind: DatasetKind,
    /// Images.
    pub images: usize,
    /// Classes; 0 without labels.
    pub classes: usize,
    /// Images of the smallest and largest class; `None` without labels.
    pub class_sizes: Option<(usize, usize)>,
    /// Channels of every loaded image.
    pub channels: usize,
    /// Kinds of files, by a look at their headers, and images of each.
    pub kinds: Vec<(FileKind, usize)>,
    /// How many images were looked at (decoded).
    pub looked_at: usize,
    /// Smallest and largest width seen.
    pub width: (usize, usize),
    /// Smallest and largest height seen.
    pub height: (usize, usize),
    /// Histogram of the shorter sides seen, by powers of two.
    pub sizes: Vec<SizeBucket>,
    /// Unreadable images among those looked at.
    pub corrupt: Vec<Corrupt>,
    /// Images that one thread reads and decodes a second.
    pub decode_rate: f64,
    /// Mean decoded bytes an image, for the cache's budget.
    pub decoded_bytes: f64,
}

/// Decodes up to `sample` images spread evenly over the set (all of them if there are fewer), for at most `seconds`.
///
/// # Errors
/// Only what makes the whole set unusable; broken images are in the summary.
pub fn summarise(dataset: &Dataset, sample: usize, seconds: f64) -> Result<Summary> {
    let looks = dataset.len().min(sample.max(1));
    let (mut image, mut buffers) = (Image::default(), ReadBuffers::default());
    let mut corrupt = Vec::new();
    let (mut width, mut height) = ((usize::MAX, 0), (usize::MAX, 0));
    let (mut looked_at, mut bytes) = (0, 0);
    let mut counts = BTreeMap::new(); // ⌊log₂ of the shorter side⌋ → images
    let begin = Instant::now();
    for look in 0..looks {
        if looked_at > 0 && begin.elapsed().as_secs_f64() > seconds {
            break;
        }
        let index = look * dataset.len() / looks;
        looked_at += 1;
        if let Err(error) = dataset.load_into(index, &mut buffers, &mut image) {
            let (name, reason) = match error {
                Error::Image { name, source } => (name, source.to_string()),
                other => (dataset.name(index), other.to_string()),
            };
            corrupt.push(Corrupt { index, name, reason });
            continue;
        }
        width = (width.0.min(image.width()), width.1.max(image.width()));
        height = (height.0.min(image.height()), height.1.max(image.height()));
        *counts.entry(image.width().min(image.height()).ilog2()).or_insert(0) += 1;
        bytes += image.data().len();
    }
    let readable = looked_at - corrupt.len();
    let span = |(low, high): (usize, usize)| if readable == 0 { (0, 0) } else { (low, high) };
    Ok(Summary {
        kind: dataset.kind(),
        images: dataset.len(),
        classes: dataset.class_names().len(),
        class_sizes: class_sizes(dataset),
        channels: dataset.channels(),
        kinds: dataset.kinds().to_vec(),
        looked_at,
        width: span(width),
        height: span(height),
        sizes: counts.into_iter().map(|(log, count)| SizeBucket { from: 1 << log, to: 2 << log, count }).collect(),
        corrupt,
        decode_rate: looked_at as f64 / begin.elapsed().as_secs_f64().max(1e-9),
        decoded_bytes: bytes as f64 / readable.max(1) as f64,
    })
}

fn class_sizes(dataset: &Dataset) -> Option<(usize, usize)> {
    let mut sizes = vec![0usize; dataset.class_names().len()];
    (0..dataset.len()).filter_map(|i| dataset.label(i)).for_each(|label| sizes[label] += 1);
    Some((*sizes.iter().min()?, *sizes.iter().max()?))
}
