//! `libmoco`: the C ABI, nothing else. Every function is a few lines over `moco-infer` and `moco-finetune`; the rules that
//! hold for all of them stand at the top of `include/moco.h`, which `cargo xtask header` generates from this crate.

#![expect(non_camel_case_types, reason = "names are those of the C header")]
#![allow(clippy::missing_safety_doc, reason = "the safety contract of a function is what its header says")]

mod backbone;
mod boundary;
mod error;
mod features;
mod head;
mod image;
mod log;
mod model;
mod pixels;
mod prediction;
mod samples;
mod session;
mod session_options;
mod version;

pub use backbone::*;
pub use error::*;
pub use features::*;
pub use head::*;
pub use image::*;
pub use log::*;
pub use model::*;
pub use pixels::*;
pub use prediction::*;
pub use samples::*;
pub use session::*;
pub use session_options::*;
pub use version::*;
