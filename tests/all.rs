//! Tests that cross crates.

mod parity;
