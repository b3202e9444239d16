//! From samples to a network's inputs: images, boxes and masks brought to one size together, and varied together.
//!
//! What happens to an image is drawn first and done afterwards: a [`Placement`] (size, window, turns) by which pixels,
//! masks and boxes are all moved, and [`PixelChange`]s. Pictures of 8 bits are resized as everywhere here, exactly as PIL
//! does it; deeper images stay in floats from their file to the input. Masks take the nearest pixel, filled borders are
//! ignored.

mod framing;
mod maps;
mod options;
mod pixels;
mod placement;
#[cfg(test)]
mod tests;
mod tiles;

pub use framing::{Framing, Prepared};
pub use options::AugmentOptions;
pub use pixels::PixelChange;
pub use placement::Placement;
pub use tiles::{Tile, TileMap, TileReader, Tiling, merge_detections};
