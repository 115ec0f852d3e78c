//! The arguments that `run` and `restore` share: how a job is supervised.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use crate::job::root::Ended;
use crate::job::supervisor::{Ending, Settings};

use super::failure::Failure;
use super::options::{self, Compression};

/// The exit status of a job that was stopped after a checkpoint and can be resumed.
const SUSPENDED: u8 = 85;
/// How many checkpoints are kept when they come by themselves.
const KEPT: NonZeroUsize = NonZeroUsize::new(3).expect("three is not zero");

/// How a job is supervised.
#[derive(clap::Args)]
pub struct Supervision {
    /// Take a checkpoint this often (300, 5m, 1h30m)
    #[arg(long, value_name = "DUR", value_parser = options::duration)]
    every: Option<Duration>,
    /// How many checkpoints to keep (default: 3 with --every, else all)
    #[arg(long, value_name = "N")]
    keep: Option<NonZeroUsize>,
    /// How page data is stored
    #[arg(long, value_enum, default_value_t)]
    compress: Compression,
    /// Files that the job appends to and closes (path, pattern or directory; repeatable)
    #[arg(long, value_name = "WHAT")]
    outputs: Vec<PathBuf>,
    /// How long a last checkpoint may take when rckpt is told to end (0: none is taken)
    #[arg(long, value_name = "DUR", value_parser = options::duration_or_none, default_value = "20")]
    grace: Duration,
}

impl Supervision {
    /// The same, validated.
    pub fn settings(self) -> Result<Settings, Failure> {
        let Self { every, keep, compress, outputs, grace } = self;
        Ok(Settings {
            every,
            grace,
            keep: keep.or(every.map(|_| KEPT)),
            write: compress.write_options(),
            outputs: options::absolute(outputs)?,
        })
    }
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
