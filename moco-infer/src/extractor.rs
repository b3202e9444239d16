//! Features of images in memory.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use moco_image::{Axis, ImageFile, Limits, Raster, ReadOptions};
use moco_models::calibration::Calibration;
use moco_models::onnx::{InputSize, Int8, int8_model, model_with_external_data};

use crate::backbone::dims;
use crate::pool::{Model, Pool, weight_bits};
use crate::{Backbone, Error, Input, Result, TimeSpent};

/// Options of an [`Extractor`].
#[derive(Clone, Debug, Default)]
pub struct ExtractorOptions {
    /// Features to extract, in this order; none = `pooled`.
    pub taps: Vec<String>,
    /// Images a session takes at once; 0 = a size that keeps one core's caches warm. Results do not depend on it.
    pub batch: usize,
    /// Images worked on at the same time; 0 = the machine's cores.
    pub threads: usize,
    /// The ONNX Runtime library; none = searched, see the crate's README.
    pub ort_library: Option<PathBuf>,
    /// Limits for images that are decoded here.
    pub limits: Limits,
    /// Along which axis volumes are cut into images.
    pub axis: Axis,
    /// Arithmetic of the network.
    pub precision: Precision,
}

/// Arithmetic of the network. Images, features and everything behind the last feature map are f32 either way.
#[derive(Clone, Debug, Default)]
pub enum Precision {
    /// What the backbone was trained in.
    #[default]
    F32,
    /// 8-bit integers, some three times faster where the processor has instructions for them, over ranges found by
    /// [`crate::calibrate()`]. On x86 processors without VNNI the weights have 7 bits, so features differ a little
    /// between processors.
    Int8(Arc<Calibration>),
}

/// Features of one tap for a number of images.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// The tap.
    pub tap: String,
    /// `[images, channels]` for a vector, `[images, channels, height, width]` for a map.
    pub shape: Vec<usize>,
    /// Row-major values.
    pub data: Vec<f32>,
}

impl Features {
    /// The values as an array.
    ///
    /// # Errors
    /// [`Error::Input`] if the public fields were changed so that they no longer agree.
    pub fn array(&self) -> Result<ndarray::ArrayViewD<'_, f32>> {
        ndarray::ArrayViewD::from_shape(&self.shape[..], &self.data)
            .map_err(|e| Error::Input(format!("{} values as {:?}: {e}", self.data.len(), self.shape)))
    }
}

/// Turns images into features. Cheap to clone; shared by any number of threads, which then share its sessions.
#[derive(Clone)]
pub struct Extractor {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) backbone: Backbone,
    pub(crate) taps: Vec<String>,
    pub(crate) batch: usize,
    pub(crate) threads: usize,
    pub(crate) limits: Limits,
    pub(crate) axis: Axis,
    pub(crate) pool: Pool,
}

/// Two images keep the weights of a layer in use twice while their activations still fit a core's cache.
const DEFAULT_BATCH: usize = 2;

impl Extractor {
    /// Loads ONNX Runtime if it is not loaded yet, and the backbone into it.
    ///
    /// # Errors
    /// [`Error::Runtime`] where ONNX Runtime was searched in vain, [`Error::Model`] and [`Error::Input`] for taps that
    /// do not exist, and for a calibration that belongs to another backbone, [`Error::Session`] if the runtime refuses the model.
    pub fn new(backbone: &Backbone, options: &ExtractorOptions) -> Result<Extractor> {
        let taps = backbone.choose_taps(&options.taps)?;
        let threads = if options.threads == 0 { cores() } else { options.threads };
        if threads > 1024 || options.batch > 1 << 16 {
            return Err(Error::Input(format!(
                "{threads} threads and batches of {}: at most 1024 and 65536 are allowed",
                options.batch
            )));
        }
        let batch = if options.batch == 0 { DEFAULT_BATCH } else { options.batch };
        let names: Vec<&str> = taps.iter().map(String::as_str).collect();
        let size = InputSize { batch: None, image: backbone.fixed_input_size() };
        let model = match &options.precision {
            Precision::F32 => Model::External(model_with_external_data(backbone.file(), &names, size)?),
            Precision::Int8(calibration) => {
                let int8 = Int8 { calibration, weight_bits: weight_bits() };
                Model::SelfContained(int8_model(backbone.file(), &names, size, &int8)?)
            }
        };
        let pool = Pool::new(backbone, model, &taps, threads, options.ort_library.as_deref())?;
        let inner = Inner {
            backbone: backbone.clone(),
            taps,
            batch,
            threads,
            limits: options.limits,
            axis: options.axis,
            pool,
        };
        Ok(Extractor { inner: Arc::new(inner) })
    }

    /// The backbone.
    pub fn backbone(&self) -> &Backbone {
        &self.inner.backbone
    }

    /// The taps, in the order of the results.
    pub fn taps(&self) -> &[String] {
        &self.inner.taps
    }

    /// What the threads spent their time on since the extractor was made.
    pub fn time_spent(&self) -> TimeSpent {
        self.inner.pool.clock().spent()
    }

    /// Features of decoded images (8-bit ones, or rasters of any depth), one [`Features`] a tap. Images may differ in
    /// size; where the card's rule does not
    /// make them equal, vectors are still fine, while maps must come out in one size.
    ///
    /// # Errors
    /// [`Error::ImageAt`] for an image that the card's rule does not accept, [`Error::Input`] for maps of different
    /// sizes, [`Error::Session`].
    pub fn extract<I: Input>(&self, images: &[I]) -> Result<Vec<Features>> {
        let inner = &*self.inner;
        let size = |(index, image)| inner.input_size(image).map_err(|source| Error::ImageAt { index, source });
        let sizes: Vec<_> = images.iter().enumerate().map(size).collect::<Result<_>>()?;
        let shapes = inner.common_shapes(&sizes)?;
        let mut features: Vec<Features> = inner
            .taps
            .iter()
            .zip(shapes)
            .map(|(tap, shape)| Features {
                tap: tap.clone(),
                data: Vec::with_capacity(images.len() * shape.iter().product::<usize>()),
                shape: [vec![images.len()], shape].concat(),
            })
            .collect();
        let batches = batches(&sizes, inner.batch, inner.threads);
        let results = inner.in_parallel(batches.len(), |b| {
            let range = batches[b].clone();
            let images: Vec<&I> = images[range.clone()].iter().collect();
            inner.pool.with(|worker| worker.run(&images, sizes[range.start]))
        });
        for batch in results {
            for (features, values) in features.iter_mut().zip(batch?) {
                features.data.extend_from_slice(&values);
            }
        }
        Ok(features)
    }

    /// Features of encoded images (files of one image, of any format that is read), as [`Extractor::extract`].
    ///
    /// # Errors
    /// As [`Extractor::extract`]; [`Error::ImageAt`] for bytes that cannot be decoded.
    pub fn extract_encoded(&self, images: &[&[u8]]) -> Result<Vec<Features>> {
        let inner = &*self.inner;
        let options = inner.read_options();
        let read = |bytes: &[u8]| match ImageFile::open(bytes.to_vec(), &options)? {
            file if file.frames() > 1 => Err(moco_image::Error::Shape(format!(
                "{} images in one file: extract them one by one as rasters",
                file.frames()
            ))),
            file => file.read(0),
        };
        let images = inner.in_parallel(images.len(), |i| inner.pool.clock().decode.measure(|| read(images[i])));
        let numbered = images.into_iter().enumerate();
        let images: Result<Vec<Raster>> =
            numbered.map(|(index, image)| image.map_err(|source| Error::ImageAt { index, source })).collect();
        self.extract(&images?)
    }
}

impl Inner {
    /// Height and width after preprocessing of an image that the card's rule accepts.
    pub(crate) fn input_size(&self, image: &impl Input) -> moco_image::Result<(usize, usize)> {
        let rule = self.backbone.rule();
        image.check(rule)?;
        rule.output_size(image.size())
    }

    pub(crate) fn read_options(&self) -> ReadOptions {
        ReadOptions { limits: self.limits, axis: self.axis }
    }

    /// Shapes of the taps for an input of `(height, width)`.
    pub(crate) fn shapes(&self, (height, width): (usize, usize)) -> Result<Vec<Vec<usize>>> {
        let graph = self.backbone.graph();
        let shapes = graph.shapes(height, width)?;
        self.taps.iter().map(|tap| Ok(dims(shapes[graph.tap(tap)?.0]))).collect()
    }

    /// The one shape a tap has over all inputs.
    fn common_shapes(&self, sizes: &[(usize, usize)]) -> Result<Vec<Vec<usize>>> {
        let Some(first) = sizes.first() else {
            // No image: channels are known, the size of maps is 0 × 0.
            let zero = |shape: Vec<usize>| if shape.len() == 3 { vec![shape[0], 0, 0] } else { shape };
            return Ok(self.shapes((224, 224))?.into_iter().map(zero).collect());
        };
        let shapes = self.shapes(*first)?;
        for (i, size) in sizes.iter().enumerate().filter(|(_, s)| *s != first) {
            let other = self.shapes(*size)?;
            if let Some(t) = (0..shapes.len()).find(|&t| shapes[t] != other[t]) {
                return Err(Error::Input(format!(
                    "tap `{}` is {:?} for image 0 and {:?} for image {i}: bring images to one size, extract them one by \
                     one, or use a rule with a crop",
                    self.taps[t], shapes[t], other[t]
                )));
            }
        }
        Ok(shapes)
    }

    /// Results of `0..n` in order, worked out on up to `threads` threads; one item stays on the caller's thread.
    fn in_parallel<T: Send>(&self, n: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
        let threads = self.threads.min(n);
        if threads <= 1 {
            return (0..n).map(work).collect();
        }
        let next = AtomicUsize::new(0);
        let (next, work) = (&next, &work);
        let mut results: Vec<Option<T>> = (0..n).map(|_| None).collect();
        std::thread::scope(|scope| {
            let take = move || {
                let claims = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)).filter(|i| *i < n));
                claims.map(|i| (i, work(i))).collect::<Vec<_>>()
            };
            let threads: Vec<_> = (1..threads).map(|_| scope.spawn(take)).collect();
            let mut done = take();
            for thread in threads {
                done.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            for (i, result) in done {
                results[i] = Some(result);
            }
        });
        results.into_iter().map(|r| r.expect("every index below n was claimed once")).collect()
    }
}

/// Threads that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Splits images into runs of equal input size, none longer than `batch`, and enough of them to occupy all threads.
fn batches(sizes: &[(usize, usize)], batch: usize, threads: usize) -> Vec<std::ops::Range<usize>> {
    let longest = batch.min(sizes.len().div_ceil(threads)).max(1);
    let mut batches: Vec<std::ops::Range<usize>> = Vec::new();
    for (i, size) in sizes.iter().enumerate() {
        match batches.last_mut() {
            Some(last) if last.len() < longest && sizes[last.start] == *size => last.end = i + 1,
            _ => batches.push(i..i + 1),
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn shareable<T: Send + Sync>() {}
    const _: () = shareable::<Extractor>();

    #[test]
    fn batches_hold_one_size_and_cover_everything() {
        let sizes = [(4, 4), (4, 4), (4, 4), (5, 4), (4, 4), (4, 4)];
        assert_eq!(batches(&sizes, 2, 1), [0..2, 2..3, 3..4, 4..6]);
        assert_eq!(batches(&sizes, 100, 1), [0..3, 3..4, 4..6]);
        assert_eq!(batches(&[(1, 1); 4], 100, 4), [0..1, 1..2, 2..3, 3..4]);
        assert!(batches(&[], 3, 2).is_empty());
    }
}
