//! Layouts on disk, well formed and not.

mod detection;
mod labels;
mod masks;
mod parts;

use std::path::Path;

use super::*;

/// Writes a grey PNG of 8 or 16 bits.
fn write_png(path: &Path, width: u32, height: u32, values: &[u16], bits: png::BitDepth) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut encoder = png::Encoder::new(std::fs::File::create(path).unwrap(), width, height);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(bits);
    let bytes: Vec<u8> = match bits {
        png::BitDepth::Sixteen => values.iter().flat_map(|v| v.to_be_bytes()).collect(),
        _ => values.iter().map(|&v| v as u8).collect(),
    };
    encoder.write_header().unwrap().write_image_data(&bytes).unwrap();
}

/// Writes a picture in one shade.
fn picture(path: &Path, width: u32, height: u32) {
    write_png(path, width, height, &vec![100; (width * height) as usize], png::BitDepth::Eight);
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn open_as(path: &Path, task: Task) -> Result<Opened> {
    open(path, task, &DataOptions::default())
}

fn error_of<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("expected an error"),
        Err(error) => error.to_string(),
    }
}

fn names(data: &dyn LabelledData) -> Vec<String> {
    (0..data.len()).map(|i| data.name(i)).collect()
}
