//! `rckpt hold` and `rckpt release`: around parts of a job that no checkpoint may fall into.

use std::time::Duration;

use nix::unistd::Pid;

use crate::job::request;

use super::failure::Failure;
use super::options;

/// Take no checkpoint of the job until it is released as often as it was held
#[derive(clap::Args)]
pub struct HoldArguments {
    /// A process of the job (default: the job that this command runs inside)
    #[arg(value_parser = options::pid)]
    pid: Option<Pid>,
    /// Release it after this time at the latest
    #[arg(long = "for", value_name = "DUR", value_parser = options::duration)]
    at_most: Option<Duration>,
}

/// Let checkpoints be taken again
#[derive(clap::Args)]
pub struct ReleaseArguments {
    /// A process of the job (default: the job that this command runs inside)
    #[arg(value_parser = options::pid)]
    pid: Option<Pid>,
}

/// Holds.
pub fn hold(arguments: HoldArguments) -> Result<u8, Failure> {
    let HoldArguments { pid, at_most } = arguments;
    request::hold(pid, at_most)?;
    Ok(0)
}

/// Releases.
pub fn release(arguments: ReleaseArguments) -> Result<u8, Failure> {
    request::release(arguments.pid)?;
    Ok(0)
}
