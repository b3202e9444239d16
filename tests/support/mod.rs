//! What several tests share.

pub mod generator;
