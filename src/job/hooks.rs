//! Programs of the user's that run around checkpoints and restores: `DIR/before-dump`, `DIR/after-dump`
//! and `DIR/after-restore`, each with the facts in its environment.
//!
//! They run as children of the supervisor, and are waited for. What they leave running would be taken
//! for a part of the job. What they print goes to standard error: standard output is the job's.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use thiserror::Error;

use crate::sys::launch;

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

/// Runs the hook for `moment`, if there is one in `directory`, until it ends or is given up.
///
/// # Errors
/// When it fails.
pub fn run(
    directory: &Path,
    moment: Moment,
    facts: &[(&str, OsString)],
    given_up: &AtomicBool,
) -> Result<(), HookError> {
    let path = directory.join(moment.name());
    if !path.exists() {
        return Ok(());
    }
    let failed = |source| HookError::Run { path: path.clone(), source };
    let words = io::stderr().as_fd().try_clone_to_owned().map_err(failed)?;
    let mut command = Command::new(&path);
    command.stdin(Stdio::null()).stdout(words).env("RCKPT_HOOK", moment.name());
    command.envs(facts.iter().map(|(name, value)| (name, value)));
    launch::hand_on_to(&mut command);
    let mut child = command.spawn().map_err(failed)?;
    loop {
        match child.try_wait().map_err(failed)? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(HookError::Failed { path, status }),
            None if given_up.load(Ordering::Relaxed) => {
                child.kill().and_then(|()| child.wait()).map_err(failed)?;
                return Err(HookError::TooLong { path });
            }
            None => thread::sleep(INTERVAL),
        }
    }
}
