//! Small image files for the tests of this room.

use std::path::Path;

use moco_image::Rng;

/// Writes a PNG of random pixels.
pub(crate) fn write_png(path: &Path, width: usize, height: usize, channels: usize, seed: u64) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut encoder = png::Encoder::new(std::fs::File::create(path).unwrap(), width as u32, height as u32);
    encoder.set_color(if channels == 1 { png::ColorType::Grayscale } else { png::ColorType::Rgb });
    encoder.set_depth(png::BitDepth::Eight);
    let pixels = pixels(width * height * channels, seed);
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
}

/// Random bytes.
pub(super) fn pixels(len: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed, 0);
    (0..len).map(|_| rng.below(256) as u8).collect()
}

/// An IDX file of unsigned bytes.
pub(super) fn idx(sizes: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, sizes.len() as u8];
    sizes.iter().for_each(|size| bytes.extend(size.to_be_bytes()));
    bytes.extend(data);
    bytes
}
