//! Pixels in, pixels out: finding and decoding files, PIL-exact resizing, augmentation and the one preprocessing function
//! that trainer evaluation, inference and the C ABI share. Knows no model and no engine.

mod augment;
mod decode;
mod error;
mod files;
mod image;
mod preprocess;
mod raster;
mod raw;
mod resize;
mod rng;
mod values;

pub use augment::{
    AugmentConfig, AugmentParams, CropBox, PixelOp, Scratch, Step, VIEW_HEADER, ViewProgram, ViewTables, apply_ops,
    augment, augment_exactly, augment_with, luma, normalise_tables, render,
};
pub use decode::{
    Axis, Format, ImageFile, ImageInfo, Limits, ReadOptions, decode, decode_file, decode_into, probe, read_labels,
};
pub use error::{Error, Result};
pub use files::{FileKind, FolderFiles, IMAGE_NAMES, ImagePlaces, is_image_file};
pub use image::Image;
pub use preprocess::{
    ChannelMismatch, ChannelOrder, Layout, PreprocessRule, ResizeRule, preprocess, preprocess_raster, preprocess_with,
};
pub use raster::{Pixels, Raster, Rescale};
pub use raw::{PixelType, RawImage};
pub use resize::{
    Filter, center_crop, crop, crop_resized, crop_resized_f32, resize, resize_f32, resize_shorter_side, resized_crop,
};
pub use rng::Rng;
pub use values::{DepthRule, ValueRange};
