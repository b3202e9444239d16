//! Tests that cross crates.

mod abi;
mod parity;
