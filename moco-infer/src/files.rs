//! Features of image files: decoding and inference overlap on all cores, results arrive in the order of the paths.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam_channel::bounded;
use moco_image::Raster;

use crate::extractor::Inner;
use crate::folder::Reader;
use crate::{Error, Extractor, Features, ImagePlace, Result};

/// What became of one file.
#[derive(Debug)]
pub struct FileRow {
    /// Index into the paths.
    pub index: usize,
    /// For each tap its shape (`[channels]` or `[channels, height, width]`) and values, or why there are none.
    pub features: Result<Vec<(Vec<usize>, Vec<f32>)>>,
}

/// Features of the files that could be read.
#[derive(Debug)]
pub struct FileFeatures {
    /// One a tap, in the extractor's order.
    pub features: Vec<Features>,
    /// For each row of the features the index of its path.
    pub rows: Vec<usize>,
    /// Index of each path without a row, and the reason.
    pub failed: Vec<(usize, Error)>,
}

impl Extractor {
    /// Features of files, all in memory: paths of files of one image each, or [`crate::FrameOf`]s. A file that cannot be read or that the card's rule does not accept is listed
    /// in [`FileFeatures::failed`]. `on_progress` gets the number of files done, in the caller's thread.
    ///
    /// # Errors
    /// [`Error::Input`] if maps of different sizes come out; [`Error::Session`].
    pub fn extract_files<P: ImagePlace>(
        &self,
        paths: &[P],
        on_progress: &mut dyn FnMut(usize),
    ) -> Result<FileFeatures> {
        let mut features: Vec<Features> =
            self.taps().iter().map(|t| Features { tap: t.clone(), shape: vec![], data: vec![] }).collect();
        let (mut rows, mut failed) = (Vec::new(), Vec::new());
        let mut problem = None;
        self.stream_files(paths, &mut |row| {
            match row.features {
                Err(error) => failed.push((row.index, error)),
                Ok(taps) => {
                    for (features, (shape, values)) in features.iter_mut().zip(taps) {
                        if let Err(error) = check_shape(features, &shape, paths[row.index].path()) {
                            problem = Some(error);
                            return ControlFlow::Break(());
                        }
                        features.data.extend_from_slice(&values);
                    }
                    rows.push(row.index);
                }
            }
            on_progress(row.index + 1);
            ControlFlow::Continue(())
        })?;
        if let Some(problem) = problem {
            return Err(problem);
        }
        if rows.is_empty() {
            let empty = self.extract::<Raster>(&[])?;
            return Ok(FileFeatures { features: empty, rows, failed });
        }
        for features in &mut features {
            features.shape.insert(0, rows.len());
        }
        Ok(FileFeatures { features, rows, failed })
    }

    /// Hands the features of each file to `sink`, in the order of the paths and in the caller's thread, as they are
    /// ready; memory is bounded by what the threads work on. `Break` stops early.
    ///
    /// # Errors
    /// [`Error::Session`] if ONNX Runtime fails; what a file lacks is in its [`FileRow`].
    pub fn stream_files<P: ImagePlace>(
        &self,
        paths: &[P],
        sink: &mut dyn FnMut(FileRow) -> ControlFlow<()>,
    ) -> Result<()> {
        let inner = &*self.inner;
        let batch = inner.batch.min(paths.len().div_ceil(inner.threads)).max(1);
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let (sender, receiver) = bounded::<Result<Vec<FileRow>>>(2 * inner.threads);
        // A batch is begun against a permit that comes back when it is handed over, so that one slow file cannot make
        // the others pile up behind it.
        let (give_permit, permits) = bounded::<()>(4 * inner.threads);
        for _ in 0..4 * inner.threads {
            give_permit.send(()).expect("the channel has room for every permit and its receiver is held here");
        }
        std::thread::scope(|scope| {
            for _ in 0..inner.threads.min(paths.len()) {
                let (sender, permits) = (sender.clone(), permits.clone());
                let (next, stop) = (&next, &stop);
                scope.spawn(move || {
                    let mut reader = Reader::default();
                    while permits.recv().is_ok() && !stop.load(Ordering::Relaxed) {
                        let start = next.fetch_add(batch, Ordering::Relaxed);
                        if start >= paths.len() {
                            return;
                        }
                        let rows = inner.rows(paths, start..(start + batch).min(paths.len()), &mut reader);
                        if sender.send(rows).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            let result = in_order(receiver.iter(), &mut |row| {
                if (row.index + 1).is_multiple_of(batch) {
                    let _ = give_permit.try_send(());
                }
                sink(row)
            });
            stop.store(true, Ordering::Relaxed);
            // Threads that wait for room or for a permit must find the channels closed.
            drop((receiver, give_permit));
            result
        })
    }
}

impl Inner {
    /// Decodes and runs a few files; images of one size share a run.
    fn rows(
        &self,
        paths: &[impl ImagePlace],
        range: std::ops::Range<usize>,
        reader: &mut Reader,
    ) -> Result<Vec<FileRow>> {
        let options = self.read_options();
        let mut rows = Vec::with_capacity(range.len());
        let mut images: BTreeMap<(usize, usize), Vec<(usize, Raster)>> = BTreeMap::new();
        for index in range {
            let decode = || reader.read(&paths[index], &options);
            let decoded = self
                .pool
                .clock()
                .decode
                .measure(decode)
                .and_then(|image| Ok((self.accepted_size(&image, paths[index].path())?, image)));
            match decoded {
                Ok((size, image)) => images.entry(size).or_default().push((index, image)),
                Err(error) => rows.push(FileRow { index, features: Err(error) }),
            }
        }
        for (size, group) in images {
            let shapes = self.shapes(size)?;
            let inputs: Vec<&Raster> = group.iter().map(|(_, image)| image).collect();
            let features = self.pool.with(|worker| worker.run(&inputs, size))?;
            for (i, (index, _)) in group.iter().enumerate() {
                let of_image = |(shape, values): (&Vec<usize>, &Vec<f32>)| {
                    let len = shape.iter().product::<usize>();
                    (shape.clone(), values[i * len..(i + 1) * len].to_vec())
                };
                rows.push(FileRow {
                    index: *index,
                    features: Ok(shapes.iter().zip(&features).map(of_image).collect()),
                });
            }
        }
        Ok(rows)
    }

    /// Input size of an image that the rule and the network accept, so that one bad image cannot fail its batch.
    fn accepted_size(&self, image: &Raster, path: &std::path::Path) -> Result<(usize, usize)> {
        let size = self.input_size(image).map_err(|source| Error::File { path: path.to_owned(), source })?;
        self.shapes(size).map_err(|e| Error::Input(format!("{}: {e}", path.display())))?;
        Ok(size)
    }
}

fn in_order(
    batches: impl Iterator<Item = Result<Vec<FileRow>>>,
    sink: &mut dyn FnMut(FileRow) -> ControlFlow<()>,
) -> Result<()> {
    let mut waiting = BTreeMap::new();
    let mut next = 0;
    for batch in batches {
        waiting.extend(batch?.into_iter().map(|row| (row.index, row)));
        while let Some(row) = waiting.remove(&next) {
            if sink(row).is_break() {
                return Ok(());
            }
            next += 1;
        }
    }
    Ok(())
}

fn check_shape(features: &mut Features, shape: &[usize], path: &std::path::Path) -> Result<()> {
    if features.shape.is_empty() {
        features.shape = shape.to_vec();
    }
    if features.shape != shape {
        return Err(Error::Input(format!(
            "{}: tap `{}` is {shape:?}, {:?} for the files before: use a rule with a crop, or a tap without height and \
             width such as `pooled`",
            path.display(),
            features.tap,
            features.shape
        )));
    }
    Ok(())
}
