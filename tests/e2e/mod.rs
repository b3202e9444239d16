//! From one end to the other: what training writes, inference opens.

mod engines;
mod foreign;
mod heads;
