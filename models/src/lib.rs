//! `moco-models`: a model described, never run.
//!
//! One typed [`Graph`] per network, built by the functions of [`arch`], is read by the training engine, by the
//! ONNX writer and by the tools that print shapes, parameters and memory. Weights go in and out through
//! [`weights`]; a weight file tells what it is by its [`card`]. Nothing here knows an engine or a pixel.
#![deny(missing_docs)]

pub mod arch;
mod error;
pub mod graph;
pub mod layout;

pub use error::{Error, Result};
pub use graph::{Graph, Node, NodeId, Op, Shape, Tap};
pub use layout::{FlatLayout, ParamKind, ParamSpec};
