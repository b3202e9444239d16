//! From f32 to int8: ranges of all activations over a user's images, and how close int8 comes on other images.

mod accuracy;
mod histogram;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use moco_image::{Limits, ReadOptions};
use moco_models::calibration::{CALIBRATION_VERSION, Calibration};
use moco_models::onnx::{InputSize, observed_nodes, observing_model};

use self::histogram::Histogram;
use crate::folder::Reader;
use crate::pool::{Model, Pool};
use crate::{Backbone, Error, Extractor, ExtractorOptions, Input, Precision, Result};

/// Options of [`calibrate`].
#[derive(Clone, Debug)]
pub struct CalibrationOptions {
    /// Images to observe, taken evenly from the list; never more than two thirds of it, so that some are left to
    /// measure on.
    pub images: usize,
    /// Images to measure the accuracy on, taken evenly from the others; 0 = do not measure.
    pub held_out: usize,
    /// Features to measure; none = `pooled`. The ranges serve all taps.
    pub taps: Vec<String>,
    /// Images worked on at the same time; 0 = the machine's cores. The result does not depend on it.
    pub threads: usize,
    /// The ONNX Runtime library; none = searched.
    pub ort_library: Option<PathBuf>,
    /// Limits for images that are decoded.
    pub limits: Limits,
}

impl Default for CalibrationOptions {
    fn default() -> CalibrationOptions {
        CalibrationOptions {
            images: 128,
            held_out: 64,
            taps: Vec::new(),
            threads: 0,
            ort_library: None,
            limits: Limits::default(),
        }
    }
}

/// What [`calibrate`] found.
#[derive(Debug)]
pub struct Calibrated {
    /// For [`Precision::Int8`], or to be written to a file.
    pub calibration: Calibration,
    /// Images that could not be used, with the reason.
    pub skipped: Vec<(PathBuf, Error)>,
}

/// Observes a backbone's activations in f32 over some of the images and chooses for each the range of least squared
/// error in 8 bits; then measures int8 features against f32 features on others. `on_progress` gets the number of images
/// done and their total, in the caller's thread.
///
/// # Errors
/// [`Error::Input`] if no image can be used, [`Error::Model`] for a network that cannot run in 8 bits or computes
/// values that are not finite; as [`Extractor::new`].
pub fn calibrate(
    backbone: &Backbone,
    files: &[PathBuf],
    options: &CalibrationOptions,
    on_progress: &mut dyn FnMut(usize, usize),
) -> Result<Calibrated> {
    if options.images == 0 {
        return Err(Error::Input("a calibration needs at least one image".into()));
    }
    let taps = backbone.choose_taps(&options.taps)?;
    let (observed, held_out) = choose(files, options.images, options.held_out);
    let total = observed.len() + held_out.len();
    let mut skipped = Vec::new();

    let ranges = observe(backbone, &observed, options, &mut skipped, &mut |n| on_progress(n, total))?;
    let n_used = observed.len() - skipped.len();
    let mut calibration = Calibration {
        moco_calibration: CALIBRATION_VERSION,
        backbone_sha256: backbone.file().sha256(),
        arch: backbone.card().arch.name.clone(),
        images: n_used,
        method: "least squared error; the image: all values".into(),
        tool_version: concat!("moco-infer ", env!("CARGO_PKG_VERSION")).into(),
        accuracy: None,
        ranges,
    };
    if !held_out.is_empty() {
        let extractor = |precision| {
            let (taps, threads) = (taps.clone(), options.threads);
            let (ort_library, limits) = (options.ort_library.clone(), options.limits);
            Extractor::new(
                backbone,
                &ExtractorOptions { taps, threads, ort_library, limits, precision, ..ExtractorOptions::default() },
            )
        };
        let (exact, int8) = (extractor(Precision::F32)?, extractor(Precision::Int8(Arc::new(calibration.clone())))?);
        let done = observed.len();
        calibration.accuracy =
            accuracy::measure(&exact, &int8, &held_out, &mut skipped, &mut |n| on_progress(done + n, total))?;
    }
    Ok(Calibrated { calibration, skipped })
}

/// Images to observe and images to measure on, both spread evenly over the list: a list sorted by class or date must
/// not put one class or one day into the calibration.
fn choose(files: &[PathBuf], images: usize, held_out: usize) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let images = images.min((2 * files.len()).div_ceil(3));
    let chosen = spread(files.len(), images);
    let rest: Vec<usize> = (0..files.len()).filter(|i| chosen.binary_search(i).is_err()).collect();
    let held_out = spread(rest.len(), held_out.min(rest.len()));
    let files_of = |indices: Vec<usize>| indices.into_iter().map(|i| files[i].clone()).collect();
    (files_of(chosen), files_of(held_out.into_iter().map(|i| rest[i]).collect()))
}

/// `n` of the numbers below `len`, evenly spread, ascending.
fn spread(len: usize, n: usize) -> Vec<usize> {
    (0..n).map(|i| i * len / n).collect()
}

fn observe(
    backbone: &Backbone,
    files: &[PathBuf],
    options: &CalibrationOptions,
    skipped: &mut Vec<(PathBuf, Error)>,
    on_progress: &mut dyn FnMut(usize),
) -> Result<std::collections::BTreeMap<String, [f32; 2]>> {
    let nodes = observed_nodes(backbone.graph())?;
    let size = InputSize { batch: None, image: backbone.fixed_input_size() };
    let model = Model::External(observing_model(backbone.file(), size)?);
    // Every image brings some dozen megabytes of activations: more threads than cores would only cost memory.
    let threads =
        if options.threads == 0 { crate::extractor::cores() } else { options.threads }.min(files.len()).max(1);
    let pool = Pool::new(backbone, model, &nodes[1..], threads, options.ort_library.as_deref())?;

    let total: Mutex<Vec<Histogram>> = Mutex::new(vec![Histogram::new(); nodes.len()]);
    let next = std::sync::atomic::AtomicUsize::new(0);
    let (sender, receiver) = crossbeam_channel::unbounded::<Result<Option<(usize, Error)>>>();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, total, next, pool, nodes) = (sender.clone(), &total, &next, &pool, &nodes);
            scope.spawn(move || {
                let mut histograms = vec![Histogram::new(); nodes.len()];
                loop {
                    let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(path) = files.get(index) else { break };
                    let result = observe_image(backbone, pool, path, &options.limits, nodes, &mut histograms);
                    let outcome = match result {
                        Ok(()) => Ok(None),
                        Err(error @ (Error::File { .. } | Error::Image(_))) => Ok(Some((index, error))),
                        Err(other) => Err(other),
                    };
                    if sender.send(outcome).is_err() {
                        return;
                    }
                }
                let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                total.iter_mut().zip(histograms).for_each(|(total, own)| total.merge(own));
            });
        }
        drop(sender);
        let mut failed = Vec::new();
        for (done, outcome) in receiver.iter().enumerate() {
            failed.extend(outcome?);
            on_progress(done + 1);
        }
        failed.sort_by_key(|(index, _)| *index);
        skipped.extend(failed.into_iter().map(|(index, error)| (files[index].clone(), error)));
        Ok::<(), Error>(())
    })?;
    if skipped.len() == files.len() {
        let first = skipped.first().map_or("there is none".to_owned(), |(_, error)| format!("the first: {error}"));
        return Err(Error::Input(format!("none of the {} images to calibrate on can be used; {first}", files.len())));
    }
    let histograms = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    let image = std::iter::once(histograms[0].extremes());
    let ranges = image.chain(histograms[1..].iter().map(Histogram::best_range));
    Ok(nodes.into_iter().zip(ranges).collect())
}

/// Counts the values of one image.
fn observe_image(
    backbone: &Backbone,
    pool: &Pool,
    path: &std::path::Path,
    limits: &Limits,
    nodes: &[String],
    histograms: &mut [Histogram],
) -> Result<()> {
    let options = ReadOptions { limits: *limits, ..ReadOptions::default() };
    let image = Reader::default().read(&path.to_owned(), &options)?;
    let rule = backbone.rule();
    let of_file = |source| Error::File { path: path.to_owned(), source };
    image.check(rule).map_err(of_file)?;
    let size = rule.output_size(image.size()).map_err(of_file)?;
    let mut not_finite = None;
    pool.with(|worker| {
        worker.run_with(&[&image], size, |input, outputs| {
            let values = std::iter::once(input).chain(outputs.iter().copied());
            for ((histogram, values), node) in histograms.iter_mut().zip(values).zip(nodes) {
                if !histogram.add(values) && not_finite.is_none() {
                    not_finite = Some(node.clone());
                }
            }
        })
    })?;
    match not_finite {
        Some(node) => Err(Error::Input(format!(
            "{}: the result of node `{node}` is not finite: the backbone is damaged or diverged in training",
            path.display()
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_spread_and_some_are_held_out() {
        let files: Vec<PathBuf> = (0..50).map(|i| PathBuf::from(format!("{i:02}"))).collect();
        let (observed, held_out) = choose(&files, 128, 64);
        assert_eq!((observed.len(), held_out.len()), (34, 16));
        assert!(held_out.iter().all(|f| !observed.contains(f)));
        let (observed, held_out) = choose(&files, 5, 3);
        assert_eq!(observed, ["00", "10", "20", "30", "40"].map(PathBuf::from));
        assert_eq!(held_out, ["01", "17", "34"].map(PathBuf::from));
        let (observed, held_out) = choose(&files[..1], 128, 64);
        assert_eq!((observed.len(), held_out.len()), (1, 0));
    }
}
