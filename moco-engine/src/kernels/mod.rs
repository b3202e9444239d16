//! The steps a plan is made of, as a trait, and their implementation on the CPU.

pub mod conv;
pub mod gemm;

/// Everything a [`Plan`](crate::Plan) calls.
pub trait Kernels {
    /// Memory of the device that the plan owns.
    type Buffer;
    /// A borrowed part of it; `[f32]` on the CPU.
    type View: ?Sized;
}

/// The CPU: f32, all cores through rayon's current thread pool.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuKernels;

impl Kernels for CpuKernels {
    type Buffer = Vec<f32>;
    type View = [f32];
}
