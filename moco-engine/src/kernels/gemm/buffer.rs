//! Memory that starts on a cache line.

/// One cache line of f32.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Line([f32; 16]);

/// A zeroed buffer of f32 whose first value lies on a 64-byte boundary.
#[derive(Clone, Debug, Default)]
pub(crate) struct AlignedBuffer(Vec<Line>);

impl AlignedBuffer {
    /// No room at all.
    pub(crate) const fn empty() -> AlignedBuffer {
        AlignedBuffer(Vec::new())
    }

    /// Room for `len` values, all 0.
    pub(crate) fn zeroed(len: usize) -> AlignedBuffer {
        AlignedBuffer(vec![Line([0.0; 16]); len.div_ceil(16)])
    }

    /// At least `len` values, growing if need be; what they hold is not specified.
    pub(crate) fn at_least(&mut self, len: usize) -> &mut [f32] {
        if self.0.len() < len.div_ceil(16) {
            self.0.resize(len.div_ceil(16), Line([0.0; 16]));
        }
        &mut self.as_mut_slice()[..len]
    }

    /// All values, rounded up to whole lines.
    pub(crate) fn as_slice(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }

    /// All values, rounded up to whole lines.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}
