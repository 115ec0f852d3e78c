//! Brings checkpoints from a job's local directory into its own, one at a time, the newest first: those
//! before it that are not there yet are not needed any more.
//!
//! The copy gives way to everything else. It appears whole or not at all, as a checkpoint that was
//! written there; should the supervisor be killed in the middle, the next writer removes what is left.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::background::Background;
use super::directory::{DirectoryError, GenerationError, JobDirectory};
use super::history;
use super::record::RecordError;
use super::retention::Retention;
use crate::image::copy::{self, CopyError};
use crate::image::reader::Trust;
use crate::sys::task;

/// The nice value of the thread that copies.
const LOWEST_PRIORITY: i32 = 19;

/// Where from and where to.
#[derive(Clone, Debug)]
pub struct Route {
    /// The local directory.
    pub local: PathBuf,
    /// The job's own.
    pub home: PathBuf,
    /// What is kept there.
    pub retention: Retention,
}

/// A checkpoint that was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Brought {
    /// Where it is now.
    pub path: PathBuf,
    /// Bytes that were written for it.
    pub bytes: u64,
    /// How long that took.
    pub elapsed: Duration,
    /// Why older ones stay, when they should not.
    pub warning: Option<String>,
}

/// Why a checkpoint was not copied. It is still in the local directory.
#[derive(Debug, Error)]
pub enum BringError {
    /// One of the directories.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The checkpoint in the local directory is not good.
    #[error(transparent)]
    Read(#[from] GenerationError),
    /// The copy itself.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The record of how it was made.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// No thread could be started.
    #[error("start a thread for the copy: {0}")]
    StartThread(#[source] io::Error),
    /// The thread panicked.
    #[error("the thread that copies panicked")]
    Panicked,
}

impl BringError {
    /// Whether nobody wanted it any more.
    #[must_use]
    pub const fn is_given_up(&self) -> bool {
        matches!(self, Self::Copy(CopyError::GivenUp))
    }
}

/// A copy that is being made.
pub type Bringing = Background<Result<Option<Brought>, BringError>>;

impl Route {
    /// Whether the local directory has a newer checkpoint than the job's own.
    ///
    /// # Errors
    /// When one of them cannot be listed.
    pub fn is_behind(&self) -> Result<bool, DirectoryError> {
        let newest = |path| -> Result<u64, DirectoryError> {
            let generations = JobDirectory::open(path, Trust::Own)?.generations()?;
            Ok(generations.last().map_or(0, |newest| newest.number))
        };
        Ok(newest(&self.local)? > newest(&self.home)?)
    }

    /// Begins to copy the newest checkpoint, in the background.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn start(&self) -> Result<Bringing, BringError> {
        let route = self.clone();
        let given_up = Arc::<AtomicBool>::default();
        let seen = Arc::clone(&given_up);
        Background::start("copy", given_up, move || {
            // Where that cannot be had, the work is done all the same.
            task::give_way(LOWEST_PRIORITY).unwrap_or_default();
            route.bring(&seen)
        })
        .map_err(BringError::StartThread)
    }

    /// Copies the newest checkpoint; `None`: it is there.
    fn bring(&self, given_up: &AtomicBool) -> Result<Option<Brought>, BringError> {
        let begun = Instant::now();
        let local = JobDirectory::open(&self.local, Trust::Own)?;
        let home = JobDirectory::open(&self.home, Trust::Own)?;
        let there = home.generations()?;
        let newest = there.last().map_or(0, |generation| generation.number);
        let (generation, source) = loop {
            let Some(chosen) = local.generations()?.pop().filter(|it| it.number > newest) else {
                return Ok(None);
            };
            match local.read(&chosen, Trust::Own) {
                Ok(source) => break (chosen, source),
                // It has given way to newer ones meanwhile.
                Err(_) if !chosen.path.exists() => {}
                Err(error) => return Err(error.into()),
            }
        };
        // One that cannot be read is no help, and no hindrance.
        let relative = there.last().and_then(|newest| home.read(newest, Trust::Own).ok());
        let pending = home.begin_generation()?;
        let goes_on = || !given_up.load(Ordering::Relaxed);
        let copied = copy::copy(&source, relative.as_ref(), pending.path(), &goes_on)?;
        history::take_along(&generation.path, pending.path())?;
        let Some(generation) = pending.commit_as(generation.number)? else { return Ok(None) };
        let warning = match self.retention.apply(&home) {
            Ok(()) => None,
            Err(error) => Some(format!("old checkpoints stay: {error}")),
        };
        let elapsed = begun.elapsed();
        Ok(Some(Brought { path: generation.path, bytes: copied.bytes, elapsed, warning }))
    }
}
