//! `rckpt prune`: removes old checkpoints of a job.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use super::failure::Failure;

/// Remove all but the newest checkpoints of a job
#[derive(clap::Args)]
pub struct Arguments {
    /// The job's directory
    dir: PathBuf,
    /// How many checkpoints to keep
    #[arg(long, value_name = "N")]
    keep: NonZeroUsize,
}

/// Prunes.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { dir, keep } = arguments;
    Err(Failure::internal(format_args!("prune {dir:?} to {keep}: not built yet")))
}
