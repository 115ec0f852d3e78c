//! `rckpt run`: starts a job and stays as its parent.

use std::ffi::OsString;
use std::path::PathBuf;

use nix::errno::Errno;

use crate::job::run::{self, RunError};
use crate::sys::launch::LaunchError;

use super::failure::{self, Failure};
use super::narrator::Narrator;
use super::supervision::{Supervision, status_of};

/// Start a job, take checkpoints of it, and give its exit status
#[derive(clap::Args)]
pub struct Arguments {
    /// Where checkpoints go (default: $RCKPT_DIR, else rckpt-NAME-PID in the current directory)
    #[arg(long)]
    dir: Option<PathBuf>,
    #[command(flatten)]
    supervision: Supervision,
    /// The job's command line
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Runs the job.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { dir, supervision, command } = arguments;
    let options = run::Options { command, directory: dir, settings: supervision.settings()? };
    Ok(status_of(&run::run(options, &mut Narrator)?))
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        let message = failure::chain(&error);
        match error {
            RunError::Prepare { .. } => Self::environment(message),
            RunError::Directory(error) => error.into(),
            RunError::Launch(LaunchError::Execute { source: Errno::ENOENT, .. }) => {
                Self::user(message).status(127)
            }
            RunError::Launch(LaunchError::Execute { .. }) => Self::user(message).status(126),
            RunError::Launch(LaunchError::HoldsNul(_)) => Self::user(message),
            RunError::Launch(LaunchError::SeveralThreads(_)) => Self::internal(message),
            RunError::Launch(_) => Self::environment(message),
            RunError::Supervise(error) => error.into(),
        }
    }
}
