//! The program as a user runs it.

mod commands;
mod data;
mod processes;
mod resume;
mod support;
