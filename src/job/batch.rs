//! The batch system that this process runs under, as its environment tells: what it is asked and how,
//! and what its answers mean.
//!
//! Pure but for the one call that asks to start the job again. What an environment or a command says is checked
//! here; nothing of it is ever given to a shell.

use std::ffi::OsString;
use std::io;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use thiserror::Error;

/// Which batch system, and which of its jobs this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Batch {
    /// None that is known.
    None,
    /// Slurm.
    Slurm {
        /// The job's number, of a task of an array `JOB_TASK`.
        job: String,
        /// When its time is over, in seconds since 1970, where Slurm tells (since 23.02).
        end: Option<i64>,
    },
    /// LSF.
    Lsf {
        /// The job's number, of an element of an array `JOB[INDEX]`.
        job: String,
    },
    /// PBS, of whatever make.
    Pbs {
        /// The job's name.
        job: String,
    },
    /// Grid Engine, of whatever make.
    GridEngine,
    /// HTCondor.
    HtCondor,
}

/// Why a batch system was not asked, or did not do it.
#[derive(Debug, Error)]
pub enum RequeueError {
    /// There is none.
    #[error("no batch system is known here")]
    NoBatchSystem,
    /// Its command could not be run.
    #[error("run {command}: {source}")]
    Run {
        /// The command.
        command: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It refused.
    #[error("{command}: {words}")]
    Refused {
        /// The command.
        command: &'static str,
        /// What it said.
        words: String,
    },
}

/// How the batch system starts a job again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requeued {
    /// It was asked, and will end this process.
    Asked,
    /// It does so by the exit status of this process.
    ByExitStatus,
}

/// What a batch system says of its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It runs, for so long still; `None`: without a limit.
    Runs(Option<Duration>),
    /// It is being ended because its time is over.
    TimedOut,
    /// It is being ended for another reason, which is the batch system's or a user's decision.
    Ends,
    /// That cannot be learnt.
    Unknown,
}

/// Grid Engine starts a job again that exits so, sge_conf(5).
const GRID_ENGINE_AGAIN: u8 = 99;
/// HTCondor and Slurm can be told to do so with this one, which is rckpt's everywhere else.
const AGAIN: u8 = 85;

impl Batch {
    /// Reads it from the environment, through `variable`.
    pub fn of(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let word = |name: &str| variable(name).and_then(|value| value.into_string().ok());
        let id = |name: &str| word(name).filter(|value| is_id(value));
        if let Some(job) = id("SLURM_JOB_ID") {
            // The first job of an array has the number of the whole array.
            let task = id("SLURM_ARRAY_JOB_ID").zip(id("SLURM_ARRAY_TASK_ID"));
            let job = task.map_or(job, |(array, task)| format!("{array}_{task}"));
            let end = word("SLURM_JOB_END_TIME").and_then(|end| end.parse().ok());
            return Self::Slurm { job, end };
        }
        if let Some(job) = id("LSB_JOBID") {
            let index = id("LSB_JOBINDEX").filter(|index| index != "0");
            return Self::Lsf { job: index.map_or(job.clone(), |index| format!("{job}[{index}]")) };
        }
        if let Some(job) = id("PBS_JOBID") {
            return Self::Pbs { job };
        }
        if variable("SGE_TASK_ID").is_some() && variable("JOB_ID").is_some() {
            return Self::GridEngine;
        }
        if variable("_CONDOR_SCRATCH_DIR").is_some() {
            return Self::HtCondor;
        }
        Self::None
    }

    /// The exit status that stands for "start me again" where that is all the batch system looks at,
    /// and else for "I was stopped, and can go on".
    #[must_use]
    pub const fn status_to_go_on(&self, requeue: bool) -> u8 {
        match self {
            Self::GridEngine if requeue => GRID_ENGINE_AGAIN,
            _ => AGAIN,
        }
    }

    /// The command that tells how the job stands; `None`: there is none. Its standard output is read by
    /// [`Batch::standing`].
    #[must_use]
    pub fn inquire(&self) -> Option<Command> {
        let Self::Slurm { job, .. } = self else { return None };
        let mut command = Command::new("squeue");
        command.args(["--noheader", "--format=%T %L %r", "--jobs", job]);
        Some(command)
    }

    /// What the answer to [`Batch::inquire`] means.
    #[must_use]
    pub fn standing(&self, answer: &[u8]) -> Standing {
        let answer = String::from_utf8_lossy(answer);
        let mut words = answer.lines().next().unwrap_or_default().split_ascii_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("RUNNING"), Some("UNLIMITED"), _) => Standing::Runs(None),
            (Some("RUNNING"), Some(left), _) => {
                time(left).map_or(Standing::Unknown, |left| Standing::Runs(Some(left)))
            }
            (Some("TIMEOUT"), _, _) | (Some("COMPLETING"), _, Some("TimeLimit")) => {
                Standing::TimedOut
            }
            (Some("COMPLETING" | "CANCELLED" | "PREEMPTED" | "PENDING"), _, _) => Standing::Ends,
            _ => Standing::Unknown,
        }
    }

    /// Has the job started again, and says how. The job must not run any more.
    ///
    /// # Errors
    /// When the batch system does not go along.
    pub fn requeue(&self) -> Result<Requeued, RequeueError> {
        let (command, job) = match self {
            Self::None => return Err(RequeueError::NoBatchSystem),
            Self::GridEngine | Self::HtCondor => return Ok(Requeued::ByExitStatus),
            Self::Slurm { job, .. } => ("scontrol", job),
            Self::Lsf { job } => ("brequeue", job),
            Self::Pbs { job } => ("qrerun", job),
        };
        let mut call = Command::new(command);
        if command == "scontrol" {
            call.arg("requeue");
        }
        let output = call.arg(job).stdin(Stdio::null()).output();
        let Output { status, stdout, stderr } =
            output.map_err(|source| RequeueError::Run { command, source })?;
        if status.success() {
            return Ok(Requeued::Asked);
        }
        let said = if stderr.trim_ascii().is_empty() { stdout } else { stderr };
        let words = String::from_utf8_lossy(said.trim_ascii()).into_owned();
        Err(RequeueError::Refused { command, words })
    }
}

/// Whether a word can be the number or name of a job: it cannot be taken for an option, at least.
fn is_id(word: &str) -> bool {
    word.starts_with(|first: char| first.is_ascii_digit())
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-[]".contains(&byte))
}

/// Reads Slurm's `DAYS-HOURS:MINUTES:SECONDS`, of which only the last two parts must be there.
fn time(word: &str) -> Option<Duration> {
    let (days, clock) = word.split_once('-').unwrap_or(("0", word));
    let mut parts = clock.rsplit(':').map(|part| part.parse::<u64>().ok());
    let (seconds, minutes) = (parts.next()??, parts.next()??);
    let hours = parts.next().unwrap_or(Some(0))?;
    let days = days.parse::<u64>().ok()?;
    let hours = days.checked_mul(24)?.checked_add(hours)?;
    let seconds = hours.checked_mul(3600)?.checked_add(minutes * 60)?.checked_add(seconds)?;
    parts.next().is_none().then_some(Duration::from_secs(seconds))
}

/// How long before the end of its time a job takes its last checkpoint: long enough for one that
/// lasts `grace`, or twice as long as the slowest so far, and for the batch system to notice. Of a
/// short time, half.
#[must_use]
pub fn lead(left: Duration, grace: Duration, slowest: Duration) -> Duration {
    (grace.max(slowest * 2) + Duration::from_secs(10)).min(left / 2)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::time::Duration;

    use super::{Batch, Standing, lead};

    fn batch(environment: &[(&str, &str)]) -> Batch {
        Batch::of(|name| {
            let found = environment.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        })
    }

    fn slurm(job: &str, end: Option<i64>) -> Batch {
        Batch::Slurm { job: job.to_owned(), end }
    }

    #[test]
    fn the_environment_tells_the_batch_system() {
        let check = |environment: &[(&str, &str)], expected: Batch| {
            assert_eq!(batch(environment), expected, "{environment:?}");
        };
        check(&[], Batch::None);
        check(&[("SLURM_JOB_ID", "17")], slurm("17", None));
        check(&[("SLURM_JOB_ID", "17"), ("SLURM_JOB_END_TIME", "99")], slurm("17", Some(99)));
        let array =
            [("SLURM_JOB_ID", "19"), ("SLURM_ARRAY_JOB_ID", "17"), ("SLURM_ARRAY_TASK_ID", "2")];
        check(&array, slurm("17_2", None));
        check(&[("SLURM_JOB_ID", "--help")], Batch::None);
        check(&[("SLURM_JOB_ID", "1;reboot")], Batch::None);
        check(&[("LSB_JOBID", "5"), ("LSB_JOBINDEX", "0")], Batch::Lsf { job: "5".to_owned() });
        check(&[("LSB_JOBID", "5"), ("LSB_JOBINDEX", "3")], Batch::Lsf { job: "5[3]".to_owned() });
        check(&[("PBS_JOBID", "7[2].host")], Batch::Pbs { job: "7[2].host".to_owned() });
        check(&[("JOB_ID", "1"), ("SGE_TASK_ID", "undefined")], Batch::GridEngine);
        check(&[("_CONDOR_SCRATCH_DIR", "/x")], Batch::HtCondor);
        assert_eq!(Batch::GridEngine.status_to_go_on(true), 99);
        assert_eq!(Batch::GridEngine.status_to_go_on(false), 85);
        assert_eq!(Batch::HtCondor.status_to_go_on(true), 85);
    }

    #[test]
    fn what_squeue_says() {
        let check = |answer: &str, expected: Standing| {
            assert_eq!(slurm("1", None).standing(answer.as_bytes()), expected, "{answer:?}");
        };
        let runs = |seconds| Standing::Runs(Some(Duration::from_secs(seconds)));
        check("RUNNING 4:58 None\n", runs(298));
        check("RUNNING 1-02:03:04 None\n", runs(93_784));
        check("RUNNING 2:00:00 None\n", runs(7_200));
        check("RUNNING 0:00 None\n", runs(0));
        check("RUNNING UNLIMITED None\n", Standing::Runs(None));
        check("RUNNING INVALID None\n", Standing::Unknown);
        check("RUNNING 1:2:3:4 None\n", Standing::Unknown);
        check("RUNNING 99999999999999999999-0:00 None\n", Standing::Unknown);
        check("COMPLETING INVALID TimeLimit\n", Standing::TimedOut);
        check("COMPLETING 4:58 None\n", Standing::Ends);
        check("", Standing::Unknown);
        check("slurm_load_jobs error: Invalid job id specified\n", Standing::Unknown);
    }

    #[test]
    fn the_last_checkpoint_comes_early_enough() {
        let check = |left, grace, slowest, expected| {
            let seconds = Duration::from_secs;
            assert_eq!(lead(seconds(left), seconds(grace), seconds(slowest)), seconds(expected));
        };
        check(3600, 20, 0, 30);
        check(3600, 20, 60, 130);
        check(3600, 300, 60, 310);
        check(40, 20, 0, 20);
    }
}
