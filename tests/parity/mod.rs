//! Recorded reference values.

mod losses;
mod traces;
