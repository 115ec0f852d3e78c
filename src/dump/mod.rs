//! Taking a checkpoint: freeze, collect, snapshot, thaw, write. One collector file per kind of state.
//!
//! It fills [`crate::model::job::Job`] and hands page data to [`crate::image`]; it knows nothing of
//! how either is brought back.

pub mod files;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Pid;
use thiserror::Error;

use crate::image::WriteOptions;
use crate::model::id::Bytes;

/// What becomes of a job after its checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// It runs on.
    Continue,
    /// It is ended, in one step with the checkpoint.
    Kill,
    /// It is left stopped.
    Stop,
}

/// What to save, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// The root process.
    pub root: Pid,
    /// Orphans of the job, adopted by its supervisor.
    pub extra_roots: Vec<Pid>,
    /// What becomes of the job.
    pub after: After,
    /// How it is written.
    pub write: WriteOptions,
    /// Named outputs, absolute.
    pub outputs: Vec<PathBuf>,
    /// The process whose descriptors 0, 1 and 2 are the job's standard streams.
    pub supervisor: Option<Pid>,
    /// The job's identity.
    pub job_id: Bytes,
}

/// What a checkpoint came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// From the first stop of a thread to the last thaw.
    pub pause: Duration,
    /// Bytes written.
    pub bytes: u64,
    /// Bytes of memory before compression.
    pub raw_bytes: u64,
    /// Processes saved.
    pub processes: usize,
    /// Threads saved.
    pub threads: usize,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Why the commit of a generation failed.
pub type CommitError = Box<dyn Error + Send + Sync>;

/// Why there is no checkpoint.
#[derive(Debug, Error)]
pub enum DumpError {
    /// The generation could not be committed.
    #[error("cannot commit the checkpoint: {0}")]
    Commit(CommitError),
    /// Collecting is not in place.
    #[error("process {0}: saving processes is not in place")]
    Unavailable(Pid),
}

/// Saves a job into `directory`.
///
/// # Errors
/// When anything cannot be saved faithfully; the job runs on.
pub fn dump(
    request: &Request,
    _directory: &Path,
    _commit: &mut dyn FnMut() -> Result<(), CommitError>,
) -> Result<Report, DumpError> {
    Err(DumpError::Unavailable(request.root))
}
