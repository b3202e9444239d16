//! `moco-train recipes`.

use anyhow::Result;
use moco_train::recipe::{builtin, builtins};

/// Lists the built-in recipes, or prints one with all its values, their units and sources
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  moco-train recipes\n  moco-train recipes moco-v2 > mine.toml")]
pub struct Args {
    /// The recipe to print as TOML
    name: Option<String>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    match &args.name {
        Some(name) => print!("{}", builtin(name)?.toml),
        None => {
            for recipe in builtins() {
                println!("{:12}{}", recipe.name, recipe.recipe()?.description);
            }
            println!("\n`moco-train recipes NAME` prints one; save it, change it, and train with `--recipe FILE`.");
        }
    }
    Ok(())
}
