//! The program `moco-train`.

mod cli;

/// A training step allocates little, and what it does should keep its pages.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::main()
}
