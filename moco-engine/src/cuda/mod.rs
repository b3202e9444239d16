//! The engine on NVIDIA GPUs.
//!
//! `cuda/*.cu` holds the kernels. They reach a device through the `Driver` trait, of which there are two: the GPU, and an
//! emulation that compiles the same files for the host, so that every kernel and every launch is tested without a GPU.

mod arguments;
pub mod check;
mod conv;
mod device;
mod driver;
#[cfg(feature = "cuda-emulation")]
mod emulated;
#[cfg(feature = "cuda")]
mod gpu;
mod kernels;
mod memory;
mod norm;
mod optimisers;
mod passes;
mod views;

pub use device::DriverDevice;
use driver::Driver;
#[cfg(feature = "cuda-emulation")]
pub use emulated::{Emulated, EmulatedMemory, Work};
#[cfg(feature = "cuda")]
pub use gpu::{Gpu, GpuMemory, Graph};
pub use kernels::CudaKernels;
use memory::Rows;
pub use memory::{Bf16, DeviceView, Memory, Value};
pub use views::DecodedMemory;

/// A GPU on which plans store feature maps as `T`: f32 or [`Bf16`].
#[cfg(feature = "cuda")]
pub type Cuda<T> = DriverDevice<T, Gpu>;

/// The emulated device, as a [`Device`](crate::Device).
#[cfg(feature = "cuda-emulation")]
pub type EmulatedCuda<T> = DriverDevice<T, Emulated>;

#[cfg(feature = "cuda")]
impl<T: Value> DriverDevice<T, Gpu> {
    /// Opens GPU number `ordinal`.
    ///
    /// # Errors
    /// As [`Gpu::open`].
    pub fn open(ordinal: usize) -> crate::Result<DriverDevice<T, Gpu>> {
        Ok(DriverDevice::new(std::sync::Arc::new(Gpu::open(ordinal)?)))
    }
}

#[cfg(feature = "cuda-emulation")]
impl<T: Value> DriverDevice<T, Emulated> {
    /// An emulated device of its own.
    ///
    /// # Errors
    /// As [`Emulated::new`].
    pub fn emulated() -> crate::Result<DriverDevice<T, Emulated>> {
        Ok(DriverDevice::new(std::sync::Arc::new(Emulated::new()?)))
    }
}
