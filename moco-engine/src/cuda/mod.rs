//! The engine on NVIDIA GPUs.
//!
//! `cuda/*.cu` holds the kernels. They reach a device through the [`Driver`] trait, of which there are two: the GPU, and an
//! emulation that compiles the same files for the host, so that every kernel and every launch is tested without a GPU.

mod arguments;
mod conv;
mod driver;
#[cfg(feature = "cuda-emulation")]
mod emulated;
#[cfg(feature = "cuda")]
mod gpu;
mod kernels;
mod memory;
mod norm;

pub use driver::{Convolution, Driver, Pass};
#[cfg(feature = "cuda-emulation")]
pub use emulated::{Emulated, EmulatedMemory};
#[cfg(feature = "cuda")]
pub use gpu::{Gpu, GpuMemory, Graph};
pub use kernels::CudaKernels;
pub use memory::{Bf16, DeviceView, Memory, Value};
