//! Features of a data set, by the training engine: what inference through ONNX Runtime must reproduce.

use std::ops::ControlFlow;

use moco_engine::{Mode, PlanConfig};
use moco_image::{Layout, PreprocessRule, Raster, Scratch, preprocess_raster};
use moco_models::{Graph, Weights};
use rayon::prelude::*;

use super::network::Open;
use crate::compute::Compute;
use crate::data::{Dataset, ReadBuffers};
use crate::{Error, Result};

/// Features of the images of a data set that could be read.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureSet {
    /// [n, dim], row-major.
    pub data: Vec<f32>,
    /// Values a row.
    pub dim: usize,
    /// Class of each row; empty if the set has no labels.
    pub labels: Vec<usize>,
    /// Index in the data set of each row.
    pub indices: Vec<usize>,
    /// Name and reason of each image that was left out.
    pub skipped: Vec<(String, String)>,
}

impl FeatureSet {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// One row.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.dim..(i + 1) * self.dim]
    }
}

/// How features are taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Extraction {
    /// Name of the features; maps are flattened in the order height, width, channels.
    pub tap: String,
    /// Images at once; does not change the result.
    pub batch: usize,
    /// Images that may be unreadable before it is an error.
    pub max_skipped: usize,
    /// Where to compute.
    pub compute: Compute,
}

impl Extraction {
    /// Of a tap, 64 images at once, up to 100 unreadable ones, on the CPU in f32.
    pub fn of(tap: impl Into<String>) -> Extraction {
        Extraction { tap: tap.into(), batch: 64, max_skipped: 100, compute: Compute::default() }
    }
}

/// Features of all images by the training engine in evaluation mode (running statistics). Weights are not changed.
/// `progress` gets the number of images done and may end it.
///
/// # Errors
/// [`Error::Invalid`] if the rule makes images of no fixed size or does not fit the network, or if none can be read;
/// [`Error::Engine`] for an unknown tap; [`Error::Data`] for more unreadable images than allowed; [`Error::Cancelled`].
pub fn features(
    graph: &Graph,
    weights: &Weights,
    dataset: &Dataset,
    rule: &PreprocessRule,
    extraction: &Extraction,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<FeatureSet> {
    let (height, width) = fixed_size(rule)?;
    if rule.channels != graph.in_channels() {
        return Err(Error::Invalid(format!(
            "the preprocessing makes {} channels, the network reads {}",
            rule.channels,
            graph.in_channels()
        )));
    }
    let batch = extraction.batch.clamp(1, dataset.len());
    // Only what leads to the tap is computed, and only its weights are needed.
    let kept = graph.keep_taps(&[&extraction.tap])?;
    let weights = weights.restrict(graph, &kept)?;
    let config = PlanConfig::new(batch, height, width, Mode::Eval);
    let mut network = extraction.compute.with(Open { graph: &kept, config, weights, tap: &extraction.tap })?;
    let dim = network.dim();
    collect(dataset, rule, extraction, dim, progress, &mut |images, n, out| network.run(images, n, out))
}

/// The preprocessed pixels themselves as features [height × width × channels]: what any backbone has to beat.
///
/// # Errors
/// As [`features`].
pub fn pixels(
    dataset: &Dataset,
    rule: &PreprocessRule,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<FeatureSet> {
    let (height, width) = fixed_size(rule)?;
    let dim = height * width * rule.channels;
    collect(dataset, rule, &Extraction::of("pixels"), dim, progress, &mut |images, _, out| {
        out.extend_from_slice(images);
        Ok(())
    })
}

fn fixed_size(rule: &PreprocessRule) -> Result<(usize, usize)> {
    rule.validate()?;
    let (a, b) = (rule.output_size((64, 64))?, rule.output_size((64, 128))?);
    if a != b {
        return Err(Error::Invalid(
            "the preprocessing rule makes images of different sizes; evaluation needs one with a crop".into(),
        ));
    }
    Ok(a)
}

/// Images × values to features, appended.
type Encode<'a> = dyn FnMut(&[f32], usize, &mut Vec<f32>) -> Result<()> + 'a;

fn collect(
    dataset: &Dataset,
    rule: &PreprocessRule,
    extraction: &Extraction,
    dim: usize,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    encode: &mut Encode<'_>,
) -> Result<FeatureSet> {
    let (height, width) = fixed_size(rule)?;
    let len = height * width * rule.channels;
    let batch = extraction.batch.clamp(1, dataset.len());
    let mut set = FeatureSet { data: vec![], dim, labels: vec![], indices: vec![], skipped: vec![] };
    set.data.try_reserve_exact(dataset.len() * dim).map_err(|_| {
        Error::Invalid(format!("{} × {dim} features do not fit into memory; take a smaller tap", dataset.len()))
    })?;
    let mut images = vec![0.0; batch * len];
    for start in (0..dataset.len()).step_by(batch) {
        let n = batch.min(dataset.len() - start);
        let read = prepare(dataset, rule, start, &mut images[..n * len], len);
        // Rows of readable images move together.
        let mut good = 0;
        for (i, outcome) in read.into_iter().enumerate() {
            match outcome {
                Ok(()) => {
                    images.copy_within(i * len..(i + 1) * len, good * len);
                    set.indices.push(start + i);
                    set.labels.extend(dataset.label(start + i));
                    good += 1;
                }
                Err(error) => set.skipped.push((dataset.name(start + i), error.to_string())),
            }
        }
        if set.skipped.len() > extraction.max_skipped {
            let (name, reason) = set.skipped.last().expect("more than 0 are listed");
            return Err(Error::Invalid(format!(
                "more than {} images cannot be read; the last is {name}: {reason}",
                extraction.max_skipped
            )));
        }
        if good > 0 {
            encode(&images[..good * len], good, &mut set.data)?;
        }
        if progress(start + n).is_break() {
            return Err(Error::Cancelled);
        }
    }
    if set.is_empty() {
        let first =
            set.skipped.first().map_or(String::new(), |(name, reason)| format!("; the first is {name}: {reason}"));
        return Err(Error::Invalid(format!("none of {} images can be read{first}", dataset.len())));
    }
    Ok(set)
}

fn prepare(dataset: &Dataset, rule: &PreprocessRule, start: usize, images: &mut [f32], len: usize) -> Vec<Result<()>> {
    images
        .par_chunks_mut(len)
        .enumerate()
        .map_init(
            || (ReadBuffers::default(), Raster::default(), Scratch::default()),
            |(buffers, raster, scratch), (i, out)| {
                dataset.load_raster_into(start + i, buffers, raster)?;
                Ok(preprocess_raster(raster, rule, Layout::Nhwc, scratch, out)?)
            },
        )
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use moco_models::arch::{ArchSpec, Stem};
    use moco_models::init::initialise;

    use super::*;
    use crate::data::{DataOptions, Split};

    fn groceries(split: Split) -> Dataset {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/data/groceries");
        Dataset::open(&path, &DataOptions { split, ..DataOptions::default() }).unwrap()
    }

    fn go_on(_: usize) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    #[test]
    fn features_do_not_depend_on_the_batch_and_keep_order_and_labels() {
        let graph = ArchSpec { width: 0.125, stem: Stem::Cifar, ..ArchSpec::new("resnet18") }.build().unwrap();
        let weights = initialise(&graph, 1);
        let (data, rule) = (groceries(Split::Test), PreprocessRule::imagenet(36, 32));
        let of = |batch| {
            let extraction = Extraction { batch, ..Extraction::of("pooled") };
            features(&graph, &weights, &data, &rule, &extraction, &mut go_on).unwrap()
        };
        let (a, b) = (of(64), of(7));
        assert_eq!((a.len(), a.dim, a.labels.len()), (192, 64, 192));
        assert_eq!(a.labels, (0..12).flat_map(|c| [c; 16]).collect::<Vec<_>>());
        assert_eq!(a, b);
    }

    #[test]
    fn pixels_are_what_the_network_would_read() {
        let (data, rule) = (groceries(Split::Test), PreprocessRule::imagenet(36, 32));
        let set = pixels(&data, &rule, &mut go_on).unwrap();
        let mut expected = vec![0.0; 32 * 32 * 3];
        moco_image::preprocess(&data.load(5).unwrap(), &rule, Layout::Nhwc, &mut expected).unwrap();
        assert_eq!(set.row(5), expected);
    }

    #[test]
    fn rules_without_a_size_and_wrong_channels_are_refused_and_cancelling_stops() {
        let graph = ArchSpec { in_channels: 1, width: 0.125, ..ArchSpec::new("resnet18") }.build().unwrap();
        let weights = initialise(&graph, 1);
        let data = groceries(Split::Test);
        let rule = PreprocessRule::imagenet(36, 32);
        let run = |rule: &PreprocessRule| {
            features(&graph, &weights, &data, rule, &Extraction::of("pooled"), &mut go_on).unwrap_err().to_string()
        };
        assert!(run(&rule).contains("reads 1"));
        assert!(run(&PreprocessRule { crop: None, ..rule.clone() }).contains("crop"));
        let cancelled = pixels(&data, &rule, &mut |_| ControlFlow::Break(()));
        assert!(matches!(cancelled, Err(Error::Cancelled)));
    }
}
