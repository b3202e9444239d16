//! Batches for a device that makes the views itself: decoded pixels, put together in memory it copies from fast, and for
//! each view the tables that say how to make it. The random numbers are those of views that are made on the CPU.

use std::sync::Arc;

use moco_engine::device::{DecodedBatch, HostBytes, HostMemory};
use moco_image::{AugmentConfig, AugmentParams, CropBox, Image, Rng, ViewProgram, ViewTables, normalise_tables};
use rayon::prelude::*;

use super::LoaderOptions;
use crate::data::{Error, Result};

/// What does not change from batch to batch.
#[derive(Debug)]
pub(super) struct Plan {
    memory: Arc<dyn HostMemory>,
    normal: [Vec<f32>; 2],
    size: [usize; 2],
    channels: usize,
}

impl Plan {
    /// # Errors
    /// [`Error::Option`] unless both views have one size, [`Error::Pixels`] for views that devices cannot make.
    pub fn new(options: &LoaderOptions, channels: usize, memory: Arc<dyn HostMemory>) -> Result<Plan> {
        let [first, second] = &options.views;
        if first.size != second.size {
            return Err(Error::Option("views that a device makes have one size".into()));
        }
        options.views.iter().try_for_each(ViewProgram::check)?;
        let normal = |view: &AugmentConfig| normalise_tables(&view.mean, &view.std).concat();
        Ok(Plan { memory, normal: [normal(first), normal(second)], size: first.size, channels })
    }
}

/// Decoded images of a batch, and how to make their views.
#[derive(Debug)]
pub struct Decoded {
    plan: Arc<Plan>,
    pixels: Option<Box<dyn HostBytes>>,
    len: usize,
    tables: [ViewTables; 2],
    pub(super) samples: Vec<Sample>,
}

/// One image of the batch.
#[derive(Debug)]
pub(super) struct Sample {
    /// The part that its views show, HWC.
    pixels: Vec<u8>,
    programs: [ViewProgram; 2],
    params: [AugmentParams; 2],
    place: usize,
}

impl Default for Sample {
    fn default() -> Sample {
        let crop = CropBox { top: 0, left: 0, height: 0, width: 0 };
        let params = [0, 1].map(|_| AugmentParams { crop, ops: vec![] });
        Sample { pixels: vec![], programs: Default::default(), params, place: 0 }
    }
}

impl Decoded {
    pub(super) fn new(plan: Arc<Plan>) -> Decoded {
        Decoded { plan, pixels: None, len: 0, tables: Default::default(), samples: vec![] }
    }

    /// As a device takes it.
    pub fn as_batch(&self) -> DecodedBatch<'_> {
        let Plan { normal: [first, second], size, channels, .. } = &*self.plan;
        DecodedBatch {
            pixels: self.pixels.as_ref().map_or(&[], |pixels| &pixels.bytes()[..self.len]),
            tables: [&self.tables[0].words, &self.tables[1].words],
            between: [self.tables[0].between, self.tables[1].between],
            normal: [first, second],
            n: self.samples.len(),
            size: *size,
            channels: *channels,
        }
    }

    /// Bytes of decoded pixels.
    pub fn pixel_bytes(&self) -> usize {
        self.len
    }

    /// Puts the samples together.
    pub(super) fn assemble(&mut self) -> Result<()> {
        let mut place = 0;
        for sample in &mut self.samples {
            sample.place = place;
            place += sample.pixels.len();
        }
        self.len = place;
        if self.pixels.as_ref().is_none_or(|pixels| pixels.bytes().len() < place) {
            // Batches of files differ in size: room for a larger one, so that the memory soon stays.
            self.pixels = None;
            let memory = self.plan.memory.allocate(place + place / 4);
            self.pixels = Some(memory.map_err(|e| Error::Worker(format!("memory for decoded images: {e}")))?);
        }
        let mut rest = &mut self.pixels.as_mut().expect("allocated above").bytes_mut()[..place];
        let mut parts = Vec::with_capacity(self.samples.len());
        for sample in &self.samples {
            let (part, after) = rest.split_at_mut(sample.pixels.len());
            parts.push((part, &sample.pixels));
            rest = after;
        }
        parts.into_par_iter().for_each(|(part, pixels)| part.copy_from_slice(pixels));
        for (which, tables) in self.tables.iter_mut().enumerate() {
            tables.pack(self.samples.iter().map(|sample| (&sample.programs[which], sample.place)));
        }
        Ok(())
    }
}

impl Sample {
    /// Draws both views of an image with the random numbers that belong to them, and keeps the part that they show.
    pub(super) fn draw(&mut self, image: &Image, configs: &[AugmentConfig; 2], rngs: [Rng; 2]) -> Result<()> {
        let (height, width, channels) = (image.height(), image.width(), image.channels());
        for ((config, mut rng), params) in configs.iter().zip(rngs).zip(&mut self.params) {
            config.sample_into(height, width, &mut rng, params);
        }
        let part = around(self.params[0].crop, self.params[1].crop);
        for ((program, params), config) in self.programs.iter_mut().zip(&self.params).zip(configs) {
            program.compile(part, channels, params, config)?;
        }
        self.pixels.clear();
        for row in image.data().chunks_exact(width * channels).skip(part.top).take(part.height) {
            self.pixels.extend_from_slice(&row[part.left * channels..][..part.width * channels]);
        }
        Ok(())
    }
}

/// The smallest part with both crops in it.
fn around(a: CropBox, b: CropBox) -> CropBox {
    let (top, left) = (a.top.min(b.top), a.left.min(b.left));
    let (bottom, right) = ((a.top + a.height).max(b.top + b.height), (a.left + a.width).max(b.left + b.width));
    CropBox { top, left, height: bottom - top, width: right - left }
}
