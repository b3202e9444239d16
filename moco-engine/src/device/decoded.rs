//! Batches of decoded images, of which a device makes the views itself, and the host memory they are copied from.

use std::fmt::Debug;

use crate::Result;

/// Decoded images with the tables that say which views to make of them; `ViewTables` of `moco-image` makes those.
#[derive(Clone, Copy, Debug)]
pub struct DecodedBatch<'a> {
    /// Images, or the parts of them that the views show: HWC, one after the other.
    pub pixels: &'a [u8],
    /// Headers and tables of the first view of each image, and of the second.
    pub tables: [&'a [i32]; 2],
    /// Bytes between the two passes of a resize, over all images.
    pub between: [usize; 2],
    /// Normalised values of every byte [channels, 256], for the first view and for the second.
    pub normal: [&'a [f32]; 2],
    /// Images.
    pub n: usize,
    /// Height and width of a view.
    pub size: [usize; 2],
    /// Channels of the images and of the views.
    pub channels: usize,
}

/// Where batches are put together on the host.
pub trait HostMemory: Debug + Send + Sync {
    /// `len` bytes.
    ///
    /// # Errors
    /// If there are not that many.
    fn allocate(&self, len: usize) -> Result<Box<dyn HostBytes>>;
}

/// Bytes on the host.
pub trait HostBytes: Debug + Send + Sync {
    /// To be read.
    fn bytes(&self) -> &[u8];
    /// To be written.
    fn bytes_mut(&mut self) -> &mut [u8];
}

/// Ordinary memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pageable;

impl HostMemory for Pageable {
    fn allocate(&self, len: usize) -> Result<Box<dyn HostBytes>> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| crate::Error::Memory { bytes: len })?;
        bytes.resize(len, 0);
        Ok(Box::new(PageableBytes(bytes)))
    }
}

#[derive(Debug)]
struct PageableBytes(Vec<u8>);

impl HostBytes for PageableBytes {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
