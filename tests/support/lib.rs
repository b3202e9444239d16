//! What the tests across crates share: generated inputs, recorded references, tolerances, a Hub.
//!
//! The recordings themselves are in `tests/fixtures/parity`; its README states how they were made, which values are
//! generated instead of stored, and how close a result must come.
#![deny(missing_docs)]

pub mod generator;
pub mod hub;
pub mod reference;
pub mod tolerance;
