//! Programs of the user's that run around checkpoints and restores: `DIR/before-dump`, `DIR/after-dump`
//! and `DIR/after-restore`, each with the facts in its environment.
//!
//! They run as children of the supervisor, and are waited for. What they leave running would be taken
//! for a part of the job. What they print goes to standard error: standard output is the job's.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use thiserror::Error;

use crate::sys::launch;

/// The user's programs, and how long each may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hooks {
    /// Where they are, absolute.
    pub directory: PathBuf,
    /// After this time one is ended, with what it has started.
    pub limit: Duration,
}

/// How often it is looked whether one has ended.
const INTERVAL: Duration = Duration::from_millis(10);

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Before the job is looked at. If it fails, no checkpoint is taken.
    BeforeDump,
    /// When a checkpoint is complete or has failed.
    AfterDump,
    /// When the job has been brought back and runs.
    AfterRestore,
}

impl Moment {
    /// The file's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BeforeDump => "before-dump",
            Self::AfterDump => "after-dump",
            Self::AfterRestore => "after-restore",
        }
    }
}

/// Why a hook did not do its work.
#[derive(Debug, Error)]
pub enum HookError {
    /// It could not be run.
    #[error("run the hook {}: {source}", path.display())]
    Run {
        /// The program.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error("the hook {} failed: {status}", path.display())]
    Failed {
        /// The program.
        path: PathBuf,
        /// How it ended.
        status: ExitStatus,
    },
    /// Nobody could wait for it any longer.
    #[error("the hook {} was ended: it took too long", path.display())]
    TooLong {
        /// The program.
        path: PathBuf,
    },
}

impl Hooks {
    /// Runs the hook for `moment`, if there is one, until it ends, takes too long or is given up.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(
        &self,
        moment: Moment,
        facts: &[(&str, OsString)],
        given_up: &AtomicBool,
    ) -> Result<(), HookError> {
        let path = self.directory.join(moment.name());
        if path.exists() { run(path, self.limit, moment, facts, given_up) } else { Ok(()) }
    }
}

fn run(
    path: PathBuf,
    limit: Duration,
    moment: Moment,
    facts: &[(&str, OsString)],
    given_up: &AtomicBool,
) -> Result<(), HookError> {
    let begun = Instant::now();
    let failed = |source| HookError::Run { path: path.clone(), source };
    let words = io::stderr().as_fd().try_clone_to_owned().map_err(failed)?;
    let mut command = Command::new(&path);
    command.stdin(Stdio::null()).stdout(words).env("RCKPT_HOOK", moment.name());
    command.process_group(0).envs(facts.iter().map(|(name, value)| (name, value)));
    launch::hand_on_to(&mut command);
    let mut child = command.spawn().map_err(failed)?;
    loop {
        match child.try_wait().map_err(failed)? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(HookError::Failed { path, status }),
            None if begun.elapsed() > limit || given_up.load(Ordering::Relaxed) => {
                let group = i32::try_from(child.id()).map(Pid::from_raw);
                if group.is_ok_and(|group| killpg(group, Signal::SIGKILL).is_err()) {
                    // It has just ended, and is waited for all the same.
                }
                child.wait().map_err(failed)?;
                return Err(HookError::TooLong { path });
            }
            None => thread::sleep(INTERVAL),
        }
    }
}
