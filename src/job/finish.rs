//! How a job finished: kept in its directory, so that a batch script that runs once more finds out.
//!
//! Only a job that exited by itself has finished. One that a signal ended (a lost node, no memory, an
//! impatient user) goes on from its last checkpoint when it is asked for again.

use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::image::reader::Trust;

use super::record::{self, RecordError};
use super::supervisor::seconds_since_1970;

const FINISH_FILE: &str = "finished.json";
const FORMAT: u32 = 1;

/// How a job finished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finish {
    format: u32,
    /// Its exit status.
    pub status: i32,
    /// When, in seconds since 1970.
    pub at: i64,
}

impl Finish {
    /// A job that exited just now.
    #[must_use]
    pub fn now(status: i32) -> Self {
        Self { format: FORMAT, status, at: seconds_since_1970(SystemTime::now()) }
    }

    /// What `directory` says; `None`: its job has not finished.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn read(directory: &Path) -> Result<Option<Self>, RecordError> {
        record::read(&directory.join(FINISH_FILE), Trust::Own)
    }

    /// Keeps it in `directory`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, directory: &Path) -> Result<(), RecordError> {
        record::write(&directory.join(FINISH_FILE), self)
    }

    /// Forgets it: the job runs again.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn forget(directory: &Path) -> Result<(), RecordError> {
        record::remove(&directory.join(FINISH_FILE))
    }
}
