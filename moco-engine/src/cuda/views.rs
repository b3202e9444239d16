//! Views of decoded images, made on the device by `cuda/augment.cu`.

use std::sync::Arc;

use super::arguments::{ViewColour, ViewFirst, ViewNormal, ViewSecond, Views};
use super::driver::{Driver, THREADS, launch};
use super::memory::{DeviceView, Memory};
use crate::device::DecodedBatch;
use crate::{Error, Result};

/// Blocks that share the values of one view.
const MOST_CHUNKS: usize = 64;

/// A batch of decoded images on the device, perhaps still being copied.
pub struct DecodedMemory<D: Driver> {
    pixels: Memory<D>,
    tables: [Memory<D>; 2],
    normal: [Memory<D>; 2],
    between: [usize; 2],
    n: usize,
    size: [usize; 2],
    channels: usize,
}

/// Makes views, and keeps the memory for what lies between an image and its view.
pub(super) struct ViewMaker<D: Driver> {
    driver: Arc<D>,
    between: Option<Memory<D>>,
    images: [Option<Memory<D>>; 2],
}

impl<D: Driver> ViewMaker<D> {
    /// For a device.
    pub fn new(driver: &Arc<D>) -> ViewMaker<D> {
        ViewMaker { driver: driver.clone(), between: None, images: [None, None] }
    }

    /// As [`Device::send`](crate::Device::send).
    ///
    /// # Errors
    /// [`Error::Memory`] if the device has not that much.
    pub fn send(&self, batch: &DecodedBatch<'_>, reuse: Option<DecodedMemory<D>>) -> Result<DecodedMemory<D>> {
        let driver = &self.driver;
        let parts = [
            batch.pixels,
            bytemuck::cast_slice(batch.tables[0]),
            bytemuck::cast_slice(batch.tables[1]),
            bytemuck::cast_slice(batch.normal[0]),
            bytemuck::cast_slice(batch.normal[1]),
        ];
        let old = match reuse {
            Some(DecodedMemory { pixels, tables: [a, b], normal: [c, d], .. }) => [pixels, a, b, c, d].map(Some),
            None => [None, None, None, None, None],
        };
        let mut memories = Vec::with_capacity(parts.len());
        for (part, old) in parts.iter().zip(old) {
            match old.filter(|memory| memory.bytes() >= part.len()) {
                Some(memory) => memories.push(memory),
                None => {
                    // Batches of files differ in size: room for a larger one, so that the memory soon stays.
                    memories.push(Memory::zeroed(driver, part.len() + part.len() / 4)?);
                }
            }
        }
        for (part, memory) in parts.iter().zip(&memories) {
            driver.upload_beside(part, memory.address());
        }
        let [pixels, a, b, c, d] = <[Memory<D>; 5]>::try_from(memories).unwrap_or_else(|_| unreachable!("five parts"));
        let DecodedBatch { between, n, size, channels, .. } = *batch;
        Ok(DecodedMemory { pixels, tables: [a, b], normal: [c, d], between, n, size, channels })
    }

    /// As [`Device::make_view`](crate::Device::make_view).
    ///
    /// # Errors
    /// [`Error::Length`] for a view of another length, [`Error::Memory`] if the device has not that much.
    pub fn make(&mut self, batch: &DecodedMemory<D>, which: usize, out: &mut DeviceView<f32>) -> Result<()> {
        let DecodedMemory { n, size: [height, width], channels, .. } = *batch;
        let values = height * width * channels;
        Error::check_len("views", n * values, out.len())?;
        let between = at_least(&self.driver, &mut self.between, batch.between[which])?;
        let [image, other] = &mut self.images;
        let image = at_least(&self.driver, image, n * values)?;
        let other = at_least(&self.driver, other, n * values)?;
        let views = Views {
            pixels: batch.pixels.address(),
            table: batch.tables[which].address(),
            between,
            image,
            other,
            normal: batch.normal[which].address(),
            out: out.address(),
            n: n as i32,
            height: height as i32,
            width: width as i32,
            channels: channels as i32,
        };
        self.driver.join_copies();
        let chunks = |values: usize| [values.div_ceil(THREADS).clamp(1, MOST_CHUNKS), 1, n];
        launch::<D, f32, _>(&self.driver, chunks(batch.between[which] / n.max(1)), ViewFirst { views });
        launch::<D, f32, _>(&self.driver, chunks(values), ViewSecond { views });
        launch::<D, f32, _>(&self.driver, [n, 1, 1], ViewColour { views });
        launch::<D, f32, _>(&self.driver, chunks(values), ViewNormal { views });
        Ok(())
    }
}

/// Address of memory of at least so many bytes.
fn at_least<D: Driver>(driver: &Arc<D>, memory: &mut Option<Memory<D>>, bytes: usize) -> Result<u64> {
    if memory.as_ref().is_none_or(|memory| memory.bytes() < bytes) {
        *memory = None;
        *memory = Some(Memory::zeroed(driver, bytes + bytes / 4)?);
    }
    Ok(memory.as_ref().expect("made above").address())
}

#[cfg(all(test, feature = "cuda-emulation"))]
mod tests {
    use std::path::Path;

    use moco_image::{
        AugmentConfig, AugmentParams, CropBox, Image, PixelOp, Rng, Scratch, ViewProgram, ViewTables, augment_exactly,
        decode_file, normalise_tables,
    };

    use super::super::Emulated;
    use super::*;

    /// Both views of every image on the device and on the CPU must be the same to the bit.
    fn compare(images: &[Image], config: &AugmentConfig, params: &[[AugmentParams; 2]]) {
        let driver = Arc::new(Emulated::new().unwrap());
        let channels = images[0].channels();
        let (mut pixels, mut programs) = (vec![], [vec![], vec![]]);
        for (image, params) in images.iter().zip(params) {
            let part = CropBox { top: 0, left: 0, height: image.height(), width: image.width() };
            for (programs, params) in programs.iter_mut().zip(params) {
                let mut program = ViewProgram::default();
                program.compile(part, channels, params, config).unwrap();
                programs.push((program, pixels.len()));
            }
            pixels.extend_from_slice(image.data());
        }
        let tables = programs.map(|programs| {
            let mut tables = ViewTables::default();
            tables.pack(programs.iter().map(|(program, place)| (program, *place)));
            tables
        });
        let normal = normalise_tables(&config.mean, &config.std).concat();
        let batch = DecodedBatch {
            pixels: &pixels,
            tables: [&tables[0].words, &tables[1].words],
            between: [tables[0].between, tables[1].between],
            normal: [&normal, &normal],
            n: images.len(),
            size: config.size,
            channels,
        };
        let mut maker = ViewMaker::new(&driver);
        let sent = maker.send(&batch, None).unwrap();
        let sent = maker.send(&batch, Some(sent)).unwrap();
        let values = config.size[0] * config.size[1] * channels;
        let mut scratch = Scratch::default();
        for which in 0..2 {
            let mut memory = Memory::zeroed(&driver, 4 * images.len() * values).unwrap();
            maker.make(&sent, which, memory.view_mut(images.len() * values)).unwrap();
            let got = memory.view::<f32>(images.len() * values).download(&*driver).unwrap();
            for (i, (image, got)) in images.iter().zip(got.chunks_exact(values)).enumerate() {
                let mut expected = vec![0.0; values];
                augment_exactly(image, config, &params[i][which], &mut scratch, &mut expected).unwrap();
                let differing = got.iter().zip(&expected).filter(|(g, e)| g != e).count();
                assert_eq!(differing, 0, "image {i}, view {which}, {:?}", params[i][which]);
            }
        }
    }

    fn photographs(most: usize) -> Vec<Image> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data/groceries/test");
        let mut classes: Vec<_> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
        classes.sort();
        let first = |class: &std::path::PathBuf| {
            let mut files: Vec<_> = std::fs::read_dir(class).unwrap().map(|e| e.unwrap().path()).collect();
            files.sort();
            decode_file(&files[0], &Default::default()).unwrap()
        };
        classes.iter().take(most).map(first).collect()
    }

    #[test]
    fn drawn_views_of_photographs_equal_those_of_the_cpu() {
        let images = photographs(6);
        for (seed, mut config) in [AugmentConfig::moco_v1(), AugmentConfig::moco_v2()].into_iter().enumerate() {
            (config.size, config.blur_p) = ([40, 56], 0.7);
            if !config.order.contains(&moco_image::Step::Blur) {
                config.order.push(moco_image::Step::Blur);
            }
            config.order.push(moco_image::Step::Solarize);
            config.solarize_p = 0.3;
            let draw = |i: usize, image: &Image, view| {
                config.sample(image.height(), image.width(), &mut Rng::for_sample(seed as u64, 0, i as u64, view))
            };
            let params: Vec<_> =
                images.iter().enumerate().map(|(i, image)| [draw(i, image, 0), draw(i, image, 1)]).collect();
            compare(&images, &config, &params);
        }
    }

    #[test]
    fn every_colour_survives_every_operation_as_on_the_cpu() {
        // 2^15 colours, each operation alone and all together; sides that no block divides.
        let (width, height) = (181, 182);
        let data: Vec<u8> =
            (0..width * height).flat_map(|i| [i << 3, i >> 2, i >> 7].map(|v| (v & 0xff) as u8)).collect();
        let image = Image::new(width, height, 3, data).unwrap();
        let crop = CropBox { top: 0, left: 0, height, width };
        let config = AugmentConfig { size: [height, width], ..AugmentConfig::moco_v2() };
        let alone = [
            PixelOp::Brightness(1.37),
            PixelOp::Contrast(0.61),
            PixelOp::Saturation(1.4),
            PixelOp::Hue(-0.23),
            PixelOp::Hue(0.0),
            PixelOp::Grayscale,
            PixelOp::Blur(1.3),
            PixelOp::Blur(0.1),
            PixelOp::Solarize(100),
            PixelOp::Flip,
        ];
        let mut lists: Vec<Vec<PixelOp>> = alone.iter().map(|op| vec![*op]).collect();
        lists.push([3, 1, 0, 2, 5, 6, 9].map(|i: usize| alone[i]).to_vec());
        lists.push(vec![PixelOp::Blur(9.5), PixelOp::Contrast(1.9)]);
        for pair in lists.chunks(2) {
            let params = [0, 1].map(|i| AugmentParams { crop, ops: pair[i].clone() });
            compare(std::slice::from_ref(&image), &config, &[params]);
        }
    }

    #[test]
    fn grey_images_get_what_means_something_for_them() {
        let images: Vec<_> = photographs(2).iter().map(|image| image.to_grey().unwrap()).collect();
        let config = AugmentConfig { size: [33, 32], mean: vec![0.4], std: vec![0.3], ..AugmentConfig::moco_v2() };
        let ops =
            vec![PixelOp::Contrast(1.2), PixelOp::Hue(0.2), PixelOp::Grayscale, PixelOp::Blur(0.8), PixelOp::Flip];
        let params: Vec<_> = images
            .iter()
            .map(|image| {
                let crop = CropBox { top: 1, left: 2, height: image.height() - 1, width: image.width() - 2 };
                [0, 1].map(|_| AugmentParams { crop, ops: ops.clone() })
            })
            .collect();
        compare(&images, &config, &params);
    }
}
