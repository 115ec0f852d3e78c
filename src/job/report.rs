//! What a supervisor has to tell: checkpoints taken and failed, in a form that can be printed, sent
//! over the control socket or written as JSON.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::model::code::Code;
use crate::model::id::Bytes;

use super::checkpoint::CheckpointError;
use super::copy::Brought;
use super::finish::Finish;
use super::places::Moved;
use super::supervisor::{Cause, Ending};

/// A checkpoint that is complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The generation's directory, absolute.
    pub path: Bytes,
    /// From the first stop of a thread to the last thaw.
    pub pause: Duration,
    /// From the request to the committed generation.
    pub elapsed: Duration,
    /// Bytes of the generation on disk.
    pub bytes: u64,
    /// Bytes of memory in it, before compression.
    pub raw_bytes: u64,
    /// Bytes of memory that were the same in the checkpoint before.
    pub kept_bytes: u64,
    /// The generation that it builds on, by its name; `None`: it stands by itself.
    pub parent: Option<String>,
    /// Processes in it.
    pub processes: u64,
    /// Threads in it.
    pub threads: u64,
    /// What the user should know about it.
    pub warnings: Vec<String>,
    /// What the user may want to do another time.
    pub hint: Option<String>,
    /// When it was complete, in seconds since 1970.
    pub at: i64,
}

impl Taken {
    /// How much of the memory was new since the checkpoint before, from 0 to 1, to a ten-thousandth.
    #[must_use]
    pub fn dirty_share(&self) -> f64 {
        let all = u128::from(self.raw_bytes) + u128::from(self.kept_bytes);
        let parts = (u128::from(self.raw_bytes) * 10_000).checked_div(all).unwrap_or(0);
        f64::from(u16::try_from(parts).unwrap_or(10_000)) / 10_000.0
    }

    /// The same with no more warnings than fit in a message.
    #[must_use]
    pub fn bounded(&self) -> Self {
        let mut room = TEXT_LIMIT;
        let mut warnings = self.warnings.clone();
        warnings.retain(|warning| {
            let fits = warning.len() <= room;
            room = room.saturating_sub(warning.len());
            fits
        });
        Self { warnings, ..self.clone() }
    }
}

/// Bytes of free text in a message, at most: far from its limit with everything else.
const TEXT_LIMIT: usize = 32 * 1024;
/// Codes in a message, at most.
const MOST_DETAILS: usize = 100;

/// Who can do something about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// What the user asked for cannot be done as asked; another request can.
    User,
    /// The machine, its file systems or its settings are in the way.
    Environment,
    /// rckpt itself is wrong.
    Internal,
}

/// A failure in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// What it is in the catalogue.
    pub code: Code,
    /// What each of the things is that the message lists, if it lists any.
    pub details: Vec<Code>,
    /// Who can do something about it.
    pub kind: Kind,
    /// The operation, the thing it failed on, and the cause.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl Explanation {
    /// The same, cut to what fits in a message.
    #[must_use]
    pub fn bounded(&self) -> Self {
        let mut message = self.message.clone();
        message.truncate(message.floor_char_boundary(TEXT_LIMIT));
        let details = self.details.iter().take(MOST_DETAILS).copied().collect();
        Self { message, details, ..self.clone() }
    }
}

/// What one supervisor has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Checkpoints that are complete.
    pub taken: u64,
    /// Those that failed.
    pub failed: u64,
    /// For how long the job was stopped by all of them.
    pub paused: Duration,
    /// Bytes that they wrote.
    pub bytes: u64,
}

impl Totals {
    /// Counts a checkpoint in.
    pub fn add(&mut self, taken: &Taken) {
        self.taken += 1;
        self.paused += taken.pause;
        self.bytes = self.bytes.saturating_add(taken.bytes);
    }
}

/// What happens while a job is supervised.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The supervisor is ready, and the job is about to start.
    Started {
        /// Where its checkpoints go.
        directory: &'a Path,
    },
    /// The job was brought back and runs.
    Resumed {
        /// The checkpoint that it was brought back from.
        generation: &'a Path,
        /// Its root process, as the supervisor sees it.
        root: Pid,
        /// Where its next checkpoints go.
        directory: &'a Path,
    },
    /// A checkpoint is complete.
    Taken(&'a Taken),
    /// A checkpoint failed.
    Failed {
        /// Why.
        explanation: &'a Explanation,
        /// Whether the job runs on; else it is about to be told to end.
        runs_on: bool,
    },
    /// A checkpoint was copied from the local directory to the job's own.
    Copied(&'a Brought),
    /// One was not; it is still in the local directory.
    NotCopied {
        /// Why.
        reason: &'a str,
    },
    /// The job has stopped, and its newest checkpoint is being copied to its own directory.
    BringingHome {
        /// That directory.
        directory: &'a Path,
    },
    /// The local directory cannot be used; checkpoints go to the job's own.
    NoLocal {
        /// Why.
        reason: &'a str,
    },
    /// The supervisor is to end, and takes a last checkpoint.
    Ending {
        /// Why.
        cause: Cause,
    },
    /// The batch system was asked to start the job again.
    Requeued,
    /// The batch system will not start the job again on our account.
    NotRequeued {
        /// Why.
        reason: &'a str,
    },
    /// A directory for temporary files has another name than at the checkpoint.
    PlaceMoved(&'a Moved),
    /// It is time for a checkpoint, and the job holds them off.
    PutOff,
    /// A process has ended for which checkpoints were held off.
    HolderEnded,
    /// What is left of connections that are over keeps addresses of the job, and is waited for.
    AddressesKept,
    /// A damaged checkpoint was passed over for an older one.
    PassedOver {
        /// The checkpoint.
        generation: &'a Path,
        /// What is wrong with it.
        reason: &'a str,
    },
    /// There was no checkpoint to go on from, and the job is about to start anew; what it had written
    /// is taken back.
    StartedOver,
    /// The job had finished before, and is not run again.
    HadFinished {
        /// How.
        finish: &'a Finish,
        /// Its directory.
        directory: &'a Path,
    },
    /// The supervisor got a signal that was not the terminal's.
    Signal(Signal),
    /// The supervision is over.
    Over {
        /// How it ended.
        ending: &'a Ending,
        /// How long it lasted.
        ran: Duration,
        /// What was done meanwhile, once somebody has counted.
        totals: Totals,
    },
    /// The last checkpoint did not fit in the time allowed, or failed: the job was told to end.
    Passed,
    /// Something went wrong that does not touch the job.
    Trouble(&'a str),
}

/// Whoever a supervisor tells what happens: the room that prints.
pub trait Observer {
    /// Something happened.
    fn tell(&mut self, event: Event<'_>);
    /// Puts a failure into words.
    fn explain(&self, error: &CheckpointError) -> Explanation;
}

#[cfg(test)]
mod tests {
    use super::{Explanation, Kind, TEXT_LIMIT, Taken};
    use crate::job::control::protocol::{Reply, encode};
    use crate::model::code::processes;

    #[test]
    fn everything_that_is_told_fits_in_a_message() {
        let explanation = Explanation {
            code: processes::REFUSED,
            details: vec![processes::SECCOMP],
            kind: Kind::User,
            message: "ü".repeat(TEXT_LIMIT),
            hint: Some("try again".to_owned()),
        };
        assert!(encode(&Reply::Failed(explanation.clone())).is_err());
        assert!(encode(&Reply::Failed(explanation.bounded())).is_ok());
        let taken = Taken {
            path: b"/scratch/job/gen-000001"[..].into(),
            hint: Some("name it".to_owned()),
            pause: std::time::Duration::from_millis(7),
            elapsed: std::time::Duration::from_secs(1),
            bytes: 1,
            raw_bytes: 2,
            kept_bytes: 2,
            parent: Some("gen-000000".to_owned()),
            processes: 3,
            threads: 4,
            warnings: vec!["w".repeat(1000); 100],
            at: 5,
        };
        assert!(encode(&Reply::Taken(taken.clone())).is_err());
        assert!(encode(&Reply::Taken(taken.bounded())).is_ok());
    }
}
