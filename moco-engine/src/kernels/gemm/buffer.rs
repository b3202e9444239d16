//! Memory that starts on a cache line.

use bytemuck::Pod;

/// One cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Line([u32; 16]);

/// A zeroed buffer whose first value lies on a 64-byte boundary, for numbers of up to 4 bytes of any type.
#[derive(Clone, Debug, Default)]
pub(crate) struct AlignedBuffer(Vec<Line>);

impl AlignedBuffer {
    /// No room at all.
    pub(crate) const fn empty() -> AlignedBuffer {
        AlignedBuffer(Vec::new())
    }

    /// Room for `len` values of 4 bytes, all 0.
    pub(crate) fn zeroed(len: usize) -> AlignedBuffer {
        AlignedBuffer(vec![Line([0; 16]); len.div_ceil(16)])
    }

    /// At least `len` values, growing if need be; what they hold is not specified.
    pub(crate) fn at_least<T: Pod>(&mut self, len: usize) -> &mut [T] {
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        if self.0.len() < lines {
            self.0.resize(lines, Line([0; 16]));
        }
        &mut bytemuck::cast_slice_mut(&mut self.0)[..len]
    }

    /// All values, rounded up to whole lines.
    pub(crate) fn as_slice<T: Pod>(&self) -> &[T] {
        bytemuck::cast_slice(&self.0)
    }
}
