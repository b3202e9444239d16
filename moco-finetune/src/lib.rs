//! `moco-finetune`: what a user trains with labels on a backbone.
//!
//! [`LinearHead`](linear::LinearHead) is softmax regression on features that have been extracted already; [`task`] holds the words
//! in which images, labels and answers of classification, segmentation and detection are given; [`data`] reads them from
//! files, [`augment`] makes a network's inputs of them; [`loss`] compares what a network
//! says with them, and [`detect`] stands between the maps of a detector and boxes; [`metrics`] say how good
//! answers are. A [`Session`](session::Session) trains a head and as much of the backbone as is wished; what comes of it is a
//! [`Model`](model::Model), which answers.
#![deny(missing_docs)]

pub mod augment;
pub mod data;
pub mod detect;
mod error;
pub mod linear;
pub mod loss;
pub mod metrics;
pub mod model;
pub mod session;
pub mod task;

pub use error::{Error, Result};
