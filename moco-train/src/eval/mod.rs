//! Is a backbone any good? Features by the training engine, k nearest neighbours, a linear probe.

mod features;
mod knn;
mod network;
mod probe;

pub use features::{Extraction, FeatureSet, features, pixels};
pub use knn::{KnnReport, knn, knn_leave_one_out};
pub use probe::{ProbeReport, fingerprint, linear_probe};
