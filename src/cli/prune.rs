//! `rckpt prune`: removes old checkpoints of a job.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use crate::image::reader::Trust;
use crate::job::directory::JobDirectory;
use crate::job::retention;

use super::failure::Failure;
use super::output;

/// Remove all but the newest checkpoints of a job
#[derive(clap::Args)]
pub struct Arguments {
    /// The job's directory
    dir: PathBuf,
    /// How many checkpoints to keep
    #[arg(long, value_name = "N")]
    keep: NonZeroUsize,
}

/// Prunes, and prints what is gone.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { dir, keep } = arguments;
    let directory = JobDirectory::open(&dir, Trust::Own)?;
    let mut removed = retention::by_number(&directory, keep)?;
    if let Some(local) = directory.local(Trust::Own)? {
        removed.extend(retention::by_number(&local, keep)?);
    }
    for generation in removed {
        output::print(format_args!("removed {}\n", generation.path.display()))?;
    }
    Ok(0)
}
