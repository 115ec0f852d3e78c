//! `rckpt dump`: takes a checkpoint of a running job.

use std::path::PathBuf;

use nix::unistd::Pid;

use super::failure::Failure;
use super::options::{self, Compression};

/// Take a checkpoint of a process and everything under it
#[derive(clap::Args)]
pub struct Arguments {
    /// The process (default: the job that this command runs inside)
    #[arg(value_parser = options::pid)]
    pid: Option<Pid>,
    /// Where the checkpoint goes (default: the job's directory, else rckpt-NAME-PID here)
    #[arg(long)]
    dir: Option<PathBuf>,
    /// End the job, in one step with the checkpoint
    #[arg(long)]
    kill: bool,
    /// Leave the job stopped
    #[arg(long, conflicts_with = "kill")]
    stop: bool,
    /// How page data is stored
    #[arg(long, value_enum, default_value_t)]
    compress: Compression,
    /// Files that the job appends to and closes (path, pattern or directory; repeatable)
    #[arg(long, value_name = "WHAT")]
    outputs: Vec<PathBuf>,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// Takes the checkpoint.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { pid, dir, kill, stop, compress, outputs, json } = arguments;
    Err(Failure::internal(format_args!(
        "dump {pid:?} {dir:?} {kill} {stop} {compress:?} {outputs:?} {json}: not built yet"
    )))
}
