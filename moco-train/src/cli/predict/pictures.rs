//! Answers as pictures: masks, and images with masks or boxes on them.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use moco_finetune::task::{Detection, IGNORED, Mask};
use moco_image::{Image, PreprocessRule, Raster};

/// Colours of classes, far apart, also for the colour-blind (Okabe and Ito).
const COLOURS: [[u8; 3]; 8] = [
    [230, 159, 0],
    [86, 180, 233],
    [0, 158, 115],
    [240, 228, 66],
    [0, 114, 178],
    [213, 94, 0],
    [204, 121, 167],
    [255, 255, 255],
];

/// The PNG file below `folder` for an image of this name; its folders are made.
pub fn file_for(folder: &Path, name: &str) -> Result<PathBuf> {
    // Only what leads down: a name must not lead out of the folder.
    let below: PathBuf = Path::new(name).components().filter(|c| matches!(c, Component::Normal(_))).collect();
    // The extension stays in the name, so that a.jpg and a.png do not meet.
    let mut path = folder.join(below).into_os_string();
    path.push(".png");
    let path = PathBuf::from(path);
    let parent = path.parent().unwrap_or(folder);
    std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    Ok(path)
}

/// One byte a pixel.
pub fn write_grey(path: &Path, width: usize, height: usize, data: &[u8]) -> Result<()> {
    write(path, width, height, png::ColorType::Grayscale, data)
}

/// The image with the colour of each class on it; class 0 is left as it is.
pub fn write_mask_overlay(path: &Path, image: &Raster, rule: &PreprocessRule, mask: &Mask) -> Result<()> {
    let mut picture = picture(image, rule)?;
    let pixels = picture.data_mut().chunks_exact_mut(3).zip(mask.data());
    for (pixel, class) in pixels.filter(|(_, class)| !matches!(**class, 0 | IGNORED)) {
        let colour = COLOURS[(usize::from(*class) - 1) % COLOURS.len()];
        for (value, colour) in pixel.iter_mut().zip(colour) {
            *value = ((u16::from(*value) + u16::from(colour)) / 2) as u8;
        }
    }
    write(path, picture.width(), picture.height(), png::ColorType::Rgb, picture.data())
}

/// The image with a frame of its class's colour around each object.
pub fn write_box_overlay(path: &Path, image: &Raster, rule: &PreprocessRule, found: &[Detection]) -> Result<()> {
    let mut picture = picture(image, rule)?;
    let (width, height) = (picture.width(), picture.height());
    let thickness = (width.max(height) / 400).max(1);
    // The surest last, on top.
    for d in found.iter().rev() {
        let edge = |v: f32, size: usize| (v.round().max(0.0) as usize).min(size.saturating_sub(1));
        let (x0, x1) = (edge(d.bbox.x0, width), edge(d.bbox.x1 - 1.0, width));
        let (y0, y1) = (edge(d.bbox.y0, height), edge(d.bbox.y1 - 1.0, height));
        for y in y0..=y1 {
            for x in x0..=x1 {
                if x < x0 + thickness || x + thickness > x1 || y < y0 + thickness || y + thickness > y1 {
                    let at = 3 * (y * width + x);
                    picture.data_mut()[at..at + 3].copy_from_slice(&COLOURS[d.label % COLOURS.len()]);
                }
            }
        }
    }
    write(path, width, height, png::ColorType::Rgb, picture.data())
}

/// The image in 8 bits and three channels, as the model's rule sees its values.
fn picture(image: &Raster, rule: &PreprocessRule) -> Result<Image> {
    let mut picture = image.to_8_bits(rule.range_of(image)?)?;
    picture.convert(3)?;
    Ok(picture)
}

fn write(path: &Path, width: usize, height: usize, colour: png::ColorType, data: &[u8]) -> Result<()> {
    let mut bytes = vec![];
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(colour);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(data)?;
    writer.finish()?;
    Ok(moco_models::write_atomically(path, |f| f.write_all(&bytes))?)
}
