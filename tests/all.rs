//! Tests that cross crates.

mod abi;
mod e2e;
mod hub;
mod parity;
