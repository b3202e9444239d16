//! `moco-engine`: a network run and differentiated by a static plan.
//!
//! [`Plan::compile`] turns a [`moco_models::Graph`] into a fixed list of fused steps for one batch size, image size and
//! [`Mode`], and allocates every buffer once; [`Plan::forward`] and [`Plan::backward`] then run it without allocating.
//! The steps are the methods of the [`Kernels`] trait; [`CpuKernels`] is its implementation on all CPU cores, others can
//! stand beside it. [`ops`] holds what a training step needs outside the network: InfoNCE, row normalisation, SGD, AdamW and
//! the momentum update over flat buffers; a [`Device`] is a place where both can be had.
//!
//! Feature maps are NHWC, stored as f32 or bf16 ([`Element`]). Parameters, buffers and gradients are flat, in the order of
//! [`Graph::parameter_layout`](moco_models::Graph::parameter_layout), each tensor as PyTorch stores it (OIHW). Every
//! result is the same whatever the number of threads.
#![deny(missing_docs)]

pub mod compute;
#[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
pub mod cuda;
pub mod device;
mod error;
pub mod group;
pub mod kernels;
pub mod ops;
mod plan;

pub use device::{Cpu, Device};
pub use error::{Error, Result};
pub use half::bf16;
pub use kernels::{CpuKernels, Element, Kernels};
pub use plan::{BnGroups, MemoryEstimate, Mode, Plan, PlanConfig, Recompute};
