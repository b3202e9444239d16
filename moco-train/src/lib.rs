//! `moco-train`: from a folder of unlabelled images to a backbone.
//!
//! A [`recipe`] names every hyper-parameter; [`objective`] is the method (MoCo v1 and v2, arXiv:1911.05722 and
//! arXiv:2003.04297) over the plans of `moco-engine`; a [`run`] is a folder that holds all of a training and can be
//! killed and resumed anywhere, bit for bit; [`health`] judges the features without labels.
#![deny(missing_docs)]

pub mod compute;
pub mod data;
mod error;
pub mod eval;
pub mod health;
pub mod objective;
pub mod recipe;
pub mod report;
pub mod run;
pub mod schedule;

pub use error::{Error, Result};
