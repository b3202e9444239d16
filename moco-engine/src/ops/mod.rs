//! What a training step needs outside the network: the loss, row normalisation, the two parameter updates, and rows
//! moved about.
//!
//! Everything runs on all threads of rayon's current pool, in pieces whose borders do not depend on their number.

mod groups;
mod info_nce;
mod normalise;
mod rows;
mod update;

#[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
pub(crate) use groups::check_groups;
pub use groups::{AdamWStep, ParamGroup, SgdStep, adamw_groups, clip_factor, gradient_norm, scale_groups, sgd_groups};
#[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
pub(crate) use info_nce::check_contrast;
pub use info_nce::{InfoNce, InfoNceInputs, InfoNceWorkspace, SameImage, info_nce, info_nce_logits};
pub use normalise::{l2_normalise, l2_normalise_backward};
pub use rows::{enqueue, gather_rows, scatter_rows};
pub use update::{add_assign, ema, sgd_momentum};
