//! `rckpt inspect`: what is in a checkpoint.

use std::path::PathBuf;

use super::failure::Failure;

/// Show what is in a checkpoint: process tree, memory map, descriptors, sizes
#[derive(clap::Args)]
pub struct Arguments {
    /// A job's directory, or one checkpoint in it
    dir: PathBuf,
    /// The checkpoint (default: the latest)
    #[arg(long, value_name = "GEN")]
    at: Option<String>,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// Inspects.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { dir, at, json } = arguments;
    Err(Failure::internal(format_args!("inspect {dir:?} at {at:?} (json: {json}): not built yet")))
}
