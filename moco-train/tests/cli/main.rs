//! The program as a user runs it.

mod commands;
mod data;
mod resume;
mod support;
