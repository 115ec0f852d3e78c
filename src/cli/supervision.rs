//! The arguments that `run` and `restore` share: how a job is supervised.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use thiserror::Error;

use crate::job::batch::Batch;
use crate::job::hooks::Hooks;
use crate::job::interval::{INTERRUPTIONS, Pace};
use crate::job::retention::Retention;
use crate::job::root::Ended;
use crate::job::signals::{Action, Actions, CONFIGURABLE, Farewell};
use crate::job::supervisor::{Cause, Ending, Settings};

use super::failure::Failure;
use super::options::{self, Compression, DurationError};
use crate::model::code::requests;

/// The exit status of a job that has run as long as it may in all, as of one that timeout(1) ends: no
/// batch system is to start it again.
pub const OVER_BUDGET: u8 = 124;
/// How many checkpoints are kept when they come by themselves.
const KEPT: NonZeroUsize = NonZeroUsize::new(3).expect("three is not zero");

/// How a job is supervised.
#[derive(clap::Args)]
pub struct Supervision {
    /// Take a checkpoint this often (300, 5m, 1h30m), or as often as their cost suggests (auto)
    #[arg(long, value_name = "DUR|auto", value_parser = every)]
    every: Option<Every>,
    /// With --every auto: the time to be expected between interruptions
    #[arg(long, value_name = "DUR", value_parser = options::duration)]
    mtbi: Option<Duration>,
    /// Take no checkpoint by the clock in the first time (a start-up that is quickly done again)
    #[arg(long, value_name = "DUR", value_parser = options::duration)]
    no_checkpoint_before: Option<Duration>,
    /// A directory with programs to run: before-dump, after-dump, after-restore
    #[arg(long, value_name = "DIR")]
    hook: Option<PathBuf>,
    /// How long such a program may take before it is ended, and the checkpoint left out
    #[arg(long, value_name = "DUR", value_parser = options::duration, default_value = "60")]
    hook_limit: Duration,
    /// A directory on a fast disk of this machine: checkpoints are written there first, and copied to the
    /// job's directory in the background
    #[arg(long, value_name = "DIR")]
    local: Option<PathBuf>,
    /// How many checkpoints to keep (default: 3 with --every, else all)
    #[arg(long, value_name = "N", value_parser = options::count)]
    keep: Option<NonZeroUsize>,
    /// How much room checkpoints may take (512M, 4G); the newest always stays
    #[arg(long, value_name = "SIZE", value_parser = options::bytes)]
    max_bytes: Option<NonZeroU64>,
    /// How page data is stored
    #[arg(long, value_enum, default_value_t)]
    compress: Compression,
    /// Most that is written in a second while the job runs on (64M, 1G; at least 1M)
    #[arg(long, value_name = "SIZE", value_parser = options::rate)]
    rate: Option<NonZeroU64>,
    /// Files that the job appends to and closes (path, pattern or directory; repeatable)
    #[arg(long, value_name = "WHAT")]
    outputs: Vec<PathBuf>,
    /// Take checkpoints although the job has TCP connections to outside: after a restore it finds them
    /// reset
    #[arg(long)]
    tcp_close: bool,
    /// Take checkpoints although the job has unix sockets connected to outside: after a restore it finds
    /// them closed
    #[arg(long)]
    ext_unix: bool,
    /// Files that the job changes in place, to be copied into each checkpoint (path, pattern, directory, or
    /// auto: what it has open for reading and writing; repeatable)
    #[arg(long, value_name = "WHAT")]
    save_files: Vec<PathBuf>,
    /// How long a last checkpoint may take when rckpt is told to end (0: none is taken)
    #[arg(long, value_name = "DUR", value_parser = options::duration_or_none, default_value = "20")]
    grace: Duration,
    /// What to do about a signal: checkpoint, stop, requeue or forward (repeatable)
    #[arg(long, value_name = "SIG=ACTION", value_parser = on)]
    on: Vec<(Signal, Action)>,
    /// In a batch system: USR1, TERM and the end of the time allowed mean to checkpoint, stop and have
    /// the batch system start the job again
    #[arg(long)]
    requeue: bool,
    /// How long the job may run in all, over every start of it
    #[arg(long, value_name = "DUR", value_parser = options::duration)]
    max_total: Option<Duration>,
    /// Keep FILE up to date with what Prometheus's node exporter collects (FILE.prom in its directory)
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    /// The exit status when the job was stopped and can go on (default: 85; 99 with --requeue under Grid
    /// Engine)
    #[arg(long, value_name = "N")]
    exit_code_stopped: Option<u8>,
}

/// `--every`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Every {
    Fixed(Duration),
    Auto,
}

fn every(word: &str) -> Result<Every, DurationError> {
    if word == "auto" { Ok(Every::Auto) } else { options::duration(word).map(Every::Fixed) }
}

/// Why a word of `--on` cannot be used.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum OnError {
    /// It has no `=`.
    #[error("write SIGNAL=ACTION, as USR2=checkpoint")]
    Malformed,
    /// There is no such signal, or it cannot be changed.
    #[error("the signals that can be changed are: {}", names())]
    Signal,
    /// There is no such action.
    #[error("the actions are: checkpoint, stop, requeue, forward")]
    Action,
}

fn names() -> String {
    let names: Vec<&str> = CONFIGURABLE.iter().map(|signal| short_name(*signal)).collect();
    names.join(", ")
}

fn short_name(signal: Signal) -> &'static str {
    signal.as_str().trim_start_matches("SIG")
}

/// Reads `USR2=checkpoint`; the name of the signal may begin with `SIG`.
fn on(word: &str) -> Result<(Signal, Action), OnError> {
    let (signal, action) = word.split_once('=').ok_or(OnError::Malformed)?;
    let name = signal.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let signal = CONFIGURABLE
        .into_iter()
        .find(|signal| short_name(*signal) == name)
        .ok_or(OnError::Signal)?;
    let action = match action {
        "checkpoint" => Action::Checkpoint,
        "stop" => Action::Stop,
        "requeue" => Action::Requeue,
        "forward" => Action::Forward,
        _ => return Err(OnError::Action),
    };
    Ok((signal, action))
}

/// Which exit status stands for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statuses {
    suspended: u8,
}

impl Supervision {
    /// Where metrics go, absolute.
    pub fn metrics(&self) -> Result<Option<PathBuf>, Failure> {
        self.metrics.as_deref().map(options::absolute_path).transpose()
    }

    /// The exit statuses.
    pub fn statuses(&self) -> Statuses {
        let batch = Batch::of(|name| std::env::var_os(name));
        let suspended =
            self.exit_code_stopped.unwrap_or_else(|| batch.status_to_go_on(self.requeue));
        Statuses { suspended }
    }

    /// The same, validated.
    pub fn settings(self) -> Result<Settings, Failure> {
        let Self { every, mtbi, keep, max_bytes, compress, rate, outputs, .. } = self;
        let pace = match (every, mtbi) {
            (Some(Every::Auto), mtbi) => {
                Pace::Auto { interruptions: mtbi.unwrap_or(INTERRUPTIONS) }
            }
            (_, Some(_)) => {
                return Err(Failure::user(
                    requests::USAGE,
                    "--mtbi: it is for --every auto to reckon with",
                ));
            }
            (Some(Every::Fixed(interval)), None) => Pace::Every(interval),
            (None, None) => Pace::OnRequest,
        };
        Ok(Settings {
            pace,
            not_before: self.no_checkpoint_before.unwrap_or_default(),
            hooks: self
                .hook
                .map(|hook| options::absolute_path(&hook))
                .transpose()?
                .map(|directory| Hooks { directory, limit: self.hook_limit }),
            grace: self.grace,
            local: self.local.map(|local| options::absolute_path(&local)).transpose()?,
            retention: Retention { number: keep.or(every.map(|_| KEPT)), bytes: max_bytes },
            write: compress.write_options(rate),
            outputs: options::absolute(outputs)?,
            tcp_close: self.tcp_close,
            ext_unix: self.ext_unix,
            save: options::wanted(self.save_files)?,
            actions: Actions::new(self.requeue, &self.on),
            farewell: if self.requeue { Farewell::Requeue } else { Farewell::Stop },
            most_total: self.max_total,
        })
    }
}

impl Statuses {
    /// The exit status that a supervised job's end becomes.
    pub fn of(self, ending: &Ending) -> u8 {
        let (base, number) = match ending {
            Ending::Suspended { cause: Cause::Budget, .. } => return OVER_BUDGET,
            Ending::Suspended { .. } => return self.suspended,
            Ending::Ended(Ended::Exited(status)) => (0, *status),
            Ending::Ended(Ended::Killed(signal)) => (128, *signal),
        };
        // The kernel gives statuses of 8 bits and signals up to 64, so this never saturates.
        u8::try_from(base + number).unwrap_or(u8::MAX)
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;

    use super::{OnError, Statuses, on};
    use crate::job::root::Ended;
    use crate::job::signals::Action;
    use crate::job::supervisor::Ending;

    #[test]
    fn exit_statuses_are_those_of_a_shell() {
        let statuses = Statuses { suspended: 85 };
        let check = |ended, expected| assert_eq!(statuses.of(&Ending::Ended(ended)), expected);
        check(Ended::Exited(0), 0);
        check(Ended::Exited(255), 255);
        check(Ended::Killed(9), 137);
        check(Ended::Killed(64), 192);
    }

    #[test]
    fn signals_and_what_to_do_about_them() {
        let check = |word: &str, expected: Result<(Signal, Action), OnError>| {
            assert_eq!(on(word), expected, "{word:?}");
        };
        check("USR2=checkpoint", Ok((Signal::SIGUSR2, Action::Checkpoint)));
        check("SIGTERM=forward", Ok((Signal::SIGTERM, Action::Forward)));
        check("xcpu=requeue", Ok((Signal::SIGXCPU, Action::Requeue)));
        check("INT=stop", Ok((Signal::SIGINT, Action::Stop)));
        check("KILL=stop", Err(OnError::Signal));
        check("SIGSIGINT=stop", Err(OnError::Signal));
        check("INT=pause", Err(OnError::Action));
        check("INT", Err(OnError::Malformed));
        assert!(OnError::Signal.to_string().contains(": TERM, INT, QUIT"));
    }
}
