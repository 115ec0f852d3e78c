//! `rckpt check`: what this machine allows, tried and not guessed, and what would block a job.

use std::ffi::OsString;
use std::path::PathBuf;

use nix::unistd::Pid;

use super::failure::Failure;

/// Tell what this machine allows, by trying it, and what would block a job
#[derive(clap::Args)]
pub struct Arguments {
    /// A process: tell what would block a checkpoint of it and its children
    #[arg(value_parser = super::options::pid, conflicts_with = "command")]
    pid: Option<Pid>,
    /// Where checkpoints would go (default: the current directory)
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Report as JSON
    #[arg(long)]
    json: bool,
    /// A command: tell what is known of it without running it
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Checks.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { pid, dir, json, command } = arguments;
    Err(Failure::internal(format_args!(
        "check {pid:?} {dir:?} {command:?} (json: {json}): not built yet"
    )))
}
