//! `moco-models`: a model described, never run.
//!
//! One typed [`Graph`] per network, built by the functions of [`arch`], is read by the training engine, by the
//! ONNX writer and by the tools that print shapes, parameters and memory. Weights go in and out through
//! [`weights`]; a weight file tells what it is by its [`card`]. Nothing here knows an engine or a pixel.
#![deny(missing_docs)]

pub mod arch;
pub mod calibration;
pub mod card;
mod error;
pub mod export;
mod files;
pub mod graph;
pub mod heads;
pub mod import;
pub mod init;
pub mod layout;
pub mod onnx;
pub mod weights;

pub use error::{Error, Result};
pub use files::{sha256_of_file, write_atomically};
pub use graph::{Graph, Interpolation, Node, NodeId, Op, Shape, Tap};
pub use layout::{FlatLayout, ParamKind, ParamSpec};
pub use weights::Weights;
