//! What the engine asks of a device: memory, copies, launches.

use std::ffi::c_void;
use std::sync::Arc;

use super::arguments::{Arguments, KERNELS};
use super::memory::Value;
#[cfg(doc)]
use crate::Error;
use crate::Result;
use crate::device::{HostMemory, Pageable};
use crate::group::Group;
use crate::kernels::conv::ConvShape;

/// Threads of every block; `THREADS` in `cuda/common.cuh`.
pub(super) const THREADS: usize = 256;
/// Bytes that a thread moves in one access.
pub(super) const ACCESS: usize = 16;

/// A device, or its emulation. Work runs in the order in which it is asked for, and may run behind the caller's back.
///
/// Nothing outside the engine can name this trait: its methods trust the addresses they are given.
///
/// Launches and copies do not report errors; what went wrong is kept until [`Driver::wait`] or a download.
pub trait Driver: Send + Sync + 'static {
    /// Memory of the device.
    type Allocation: Send + Sync;
    /// Work that can be repeated.
    type Recording: Send + Sync;

    /// `bytes` zeros.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is not that much.
    fn allocate(&self, bytes: usize) -> Result<Self::Allocation>;
    /// Takes an allocation back, after the work that has been asked for.
    fn free(&self, allocation: &mut Self::Allocation);
    /// Address of an allocation's first byte; a multiple of 256.
    fn address(allocation: &Self::Allocation) -> u64;
    /// Runs a kernel. `index` counts [`KERNELS`] twice, f32 before bf16; `arguments` is its argument struct.
    fn launch(&self, index: usize, grid: [u32; 3], arguments: *const c_void);
    /// Copies between places of the device.
    fn copy(&self, from: u64, to: u64, bytes: usize);
    /// Writes zeros.
    fn clear(&self, at: u64, bytes: usize);
    /// Copies from the host; `from` may change as soon as this returns.
    fn upload(&self, from: &[u8], to: u64);
    /// Copies from the host beside the other work, which [`Driver::join_copies`] makes wait; `from` must stay as it is until
    /// a later wait has ended.
    fn upload_beside(&self, from: &[u8], to: u64) {
        self.upload(from, to);
    }
    /// What is asked for from now on comes after all copies of [`Driver::upload_beside`].
    fn join_copies(&self) {}
    /// Host memory from which [`Driver::upload_beside`] copies without a detour.
    fn host_memory(&self) -> Arc<dyn HostMemory> {
        Arc::new(Pageable)
    }
    /// Copies to the host, after all that has been asked for.
    ///
    /// # Errors
    /// [`Error::Device`] for what went wrong until here.
    fn download(&self, from: u64, to: &mut [u8]) -> Result<()>;
    /// Waits for everything that has been asked for.
    ///
    /// # Errors
    /// [`Error::Device`] for what went wrong until here.
    fn wait(&self) -> Result<()>;
    /// From now on, work is recorded and not done, until [`Driver::end_recording`]. `false` if the device cannot.
    fn begin_recording(&self) -> bool;
    /// The work since [`Driver::begin_recording`]; `None` if something in it cannot be recorded.
    fn end_recording(&self) -> Option<Self::Recording>;
    /// Does recorded work again, on the same addresses.
    fn replay(&self, recording: &Self::Recording);
    /// Changes when the device's own scratch, which recordings also use, has moved.
    fn generation(&self) -> u64;
    /// Keeps a failure of the caller for who waits next.
    fn fail(&self, error: &crate::Error);
    /// Multiprocessors, to size grids.
    fn multiprocessors(&self) -> usize;
    /// What a message calls the device.
    fn describe(&self) -> String;
    /// Runs a convolution by a library; `false` where it has none and the engine's own kernels are to run.
    fn convolve(&self, job: &Convolution) -> bool;
    /// Connects it with the devices of other processes; `None` where they are to exchange over the host.
    ///
    /// # Errors
    /// [`Error::Device`] if what it needs for that is missing, [`Error::Group`] if a process is lost.
    fn link(self: &Arc<Self>, group: &Arc<Group>) -> Result<Option<Box<dyn Links>>> {
        let _ = group;
        Ok(None)
    }
}

/// What devices of several processes do together, in the order of their other work. Lengths and counts are in f32 values.
pub trait Links: Send {
    /// Replaces values by their mean over all processes.
    ///
    /// # Errors
    /// [`Error::Device`] if it cannot be asked for.
    fn mean(&mut self, at: u64, len: usize) -> Result<()>;
    /// Puts the values of all processes behind each other.
    ///
    /// # Errors
    /// As [`Links::mean`].
    fn gather(&mut self, from: u64, len: usize, to: u64) -> Result<()>;
    /// Sends a part of what lies at `from` to each process and receives one of each at `into`, in their order.
    ///
    /// # Errors
    /// As [`Links::mean`].
    fn exchange(&mut self, from: u64, to: &[usize], into: u64, counts: &[usize]) -> Result<()>;
}

/// A convolution for a library, NHWC and OHWI, all in one precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Convolution {
    /// Which of the three products.
    pub pass: Pass,
    /// Sizes.
    pub shape: ConvShape,
    /// Whether values are bf16; f32 otherwise, without TF32.
    pub bf16: bool,
    /// Address of the input, or of its gradient.
    pub x: u64,
    /// Address of the weight, or of its gradient.
    pub w: u64,
    /// Address of the output, or of its gradient.
    pub y: u64,
    /// Whether the result is added to what is there; [`Pass::Data`] only.
    pub accumulate: bool,
}

/// A product of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Output from input and weight.
    Forward,
    /// Gradient of the input.
    Data,
    /// Gradient of the weight.
    Weights,
}

/// Launches `arguments`' kernel, for maps of precision `T`.
pub(super) fn launch<D: Driver, T: Value, A: Arguments>(driver: &Arc<D>, grid: [usize; 3], arguments: A) {
    let bf16 = T::BF16 && KERNELS[A::INDEX].on_maps;
    if grid.contains(&0) {
        return; // Nothing to do.
    }
    let grid = grid.map(|n| u32::try_from(n).expect("a grid that fits the device"));
    driver.launch(2 * A::INDEX + usize::from(bf16), grid, (&raw const arguments).cast());
}

/// Grid of a kernel that walks over `len` values of precision `T` with a stride.
pub(super) fn flat<D: Driver, T: Value>(driver: &Arc<D>, len: usize) -> [usize; 3] {
    let vectors = (len * T::BYTES).div_ceil(ACCESS);
    [vectors.div_ceil(THREADS).min(16 * driver.multiprocessors()), 1, 1]
}
