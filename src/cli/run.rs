//! `rckpt run`: starts a job and stays as its parent.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use super::failure::Failure;
use super::options::{self, Compression};

/// Start a job, take checkpoints of it, and give its exit status
#[derive(clap::Args)]
pub struct Arguments {
    /// Take a checkpoint this often (300, 5m, 1h30m)
    #[arg(long, value_name = "DUR", value_parser = options::duration)]
    every: Option<Duration>,
    /// Where checkpoints go (default: $RCKPT_DIR, else rckpt-NAME-PID in the current directory)
    #[arg(long)]
    dir: Option<PathBuf>,
    /// How many checkpoints to keep
    #[arg(long, value_name = "N", default_value = "3")]
    keep: NonZeroUsize,
    /// How page data is stored
    #[arg(long, value_enum, default_value_t)]
    compress: Compression,
    /// Files that the job appends to and closes (path, pattern or directory; repeatable)
    #[arg(long, value_name = "WHAT")]
    outputs: Vec<PathBuf>,
    /// How long a last checkpoint may take when rckpt is told to end
    #[arg(long, value_name = "DUR", value_parser = options::duration, default_value = "20")]
    grace: Duration,
    /// The job's command line
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Runs the job.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { every, dir, keep, compress, outputs, grace, command } = arguments;
    Err(Failure::internal(format_args!(
        "run {command:?} {every:?} {dir:?} {keep} {compress:?} {outputs:?} {grace:?}: not built yet"
    )))
}
