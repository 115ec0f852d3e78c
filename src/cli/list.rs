//! `rckpt list`: the jobs of mine on this machine, or the checkpoints in a directory.

use std::path::PathBuf;

use super::failure::Failure;

/// List my jobs on this machine, or the checkpoints in DIR
#[derive(clap::Args)]
pub struct Arguments {
    /// A job's directory
    dir: Option<PathBuf>,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// Lists.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { dir, json } = arguments;
    Err(Failure::internal(format_args!("list {dir:?} (json: {json}): not built yet")))
}
