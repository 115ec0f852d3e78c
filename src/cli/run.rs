//! `rckpt run`: starts a job and stays as its parent.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;

use crate::job::root::Ended;
use crate::job::run::{self, RunError};
use crate::job::supervisor::{Ending, Settings};
use crate::sys::launch::LaunchError;

use super::failure::{self, Failure};
use super::narrator::Narrator;
use super::options::{self, Compression};

/// The exit status of a job that was stopped after a checkpoint and can be resumed.
const SUSPENDED: u8 = 85;

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
    let settings = Settings {
        every,
        grace,
        keep,
        write: compress.write_options(),
        outputs: options::absolute(outputs)?,
    };
    let options = run::Options { command, directory: dir, settings };
    Ok(status_of(&run::run(options, &mut Narrator)?))
}

/// The exit status that a supervised job's end becomes.
pub fn status_of(ending: &Ending) -> u8 {
    let (base, number) = match ending {
        Ending::Suspended(_) => return SUSPENDED,
        Ending::Ended(Ended::Exited(status)) => (0, *status),
        Ending::Ended(Ended::Killed(signal)) => (128, *signal),
    };
    // The kernel gives statuses of 8 bits and signals up to 64, so this never saturates.
    u8::try_from(base + number).unwrap_or(u8::MAX)
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

#[cfg(test)]
mod tests {
    use super::status_of;
    use crate::job::root::Ended;
    use crate::job::supervisor::Ending;

    #[test]
    fn exit_statuses_are_those_of_a_shell() {
        let check = |ended, expected| assert_eq!(status_of(&Ending::Ended(ended)), expected);
        check(Ended::Exited(0), 0);
        check(Ended::Exited(255), 255);
        check(Ended::Killed(9), 137);
        check(Ended::Killed(64), 192);
    }
}
