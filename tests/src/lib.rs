//! Tests that cross crates. One test binary; its modules stand in the folders beside `src`.

#[cfg(test)]
#[path = "../parity/mod.rs"]
mod parity;
#[cfg(test)]
#[path = "../support/mod.rs"]
mod support;
