//! `rckpt restore`: brings a job back and stays as its parent.

use std::path::PathBuf;
use std::time::Duration;

use super::failure::Failure;
use super::options;

/// Bring a job back from a checkpoint, and give its exit status
#[derive(clap::Args)]
pub struct Arguments {
    /// A job's directory, or one checkpoint in it
    dir: PathBuf,
    /// The checkpoint (default: the latest)
    #[arg(long, value_name = "GEN")]
    at: Option<String>,
    /// Go on taking a checkpoint this often (300, 5m, 1h30m)
    #[arg(long, value_name = "DUR", value_parser = options::duration)]
    every: Option<Duration>,
    /// Return once the job runs
    #[arg(long)]
    detach: bool,
    /// Write the pid of the job's root process to this file
    #[arg(long, value_name = "FILE")]
    pidfile: Option<PathBuf>,
    /// Show what would be done, and start nothing
    #[arg(long)]
    dry_run: bool,
}

/// Restores the job.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { dir, at, every, detach, pidfile, dry_run } = arguments;
    Err(Failure::internal(format_args!(
        "restore {dir:?} {at:?} {every:?} {detach} {pidfile:?} {dry_run}: not built yet"
    )))
}
