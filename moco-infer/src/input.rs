//! What a network can be given: 8-bit images, and images of any depth.

use moco_image::{Image, Layout, PreprocessRule, Raster, Scratch, preprocess_raster, preprocess_with};

/// An image in memory that the card's rule can prepare: [`Image`] (8 bits) or [`Raster`] (any depth).
pub trait Input: Sync {
    /// Height and width.
    fn size(&self) -> (usize, usize);

    /// Whether the rule accepts its channels and its depth.
    ///
    /// # Errors
    /// [`moco_image::Error::Channels`] or [`moco_image::Error::Depth`], saying how to convert.
    fn check(&self, rule: &PreprocessRule) -> moco_image::Result<()>;

    /// Writes the network's input.
    ///
    /// # Errors
    /// As [`moco_image::preprocess()`].
    fn prepare(
        &self,
        rule: &PreprocessRule,
        layout: Layout,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) -> moco_image::Result<()>;
}

impl Input for Image {
    fn size(&self) -> (usize, usize) {
        (self.height(), self.width())
    }

    fn check(&self, rule: &PreprocessRule) -> moco_image::Result<()> {
        rule.accepts(self.channels())?;
        // An empty raster is one of 8 bits too.
        rule.range_of(&Raster::default()).map(drop)
    }

    fn prepare(
        &self,
        rule: &PreprocessRule,
        layout: Layout,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) -> moco_image::Result<()> {
        preprocess_with(self, rule, layout, scratch, out)
    }
}

impl Input for Raster {
    fn size(&self) -> (usize, usize) {
        Raster::size(self)
    }

    fn check(&self, rule: &PreprocessRule) -> moco_image::Result<()> {
        rule.accepts(self.channels())?;
        rule.range_of(self).map(drop)
    }

    fn prepare(
        &self,
        rule: &PreprocessRule,
        layout: Layout,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) -> moco_image::Result<()> {
        preprocess_raster(self, rule, layout, scratch, out)
    }
}
