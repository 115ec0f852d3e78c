//! How long a job has run in all, over every start of it: `DIR/spent.json`.
//!
//! Counted at each checkpoint and at the end. What was run after the last checkpoint of a start that was
//! cut off is run again, and so not counted twice.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::image::reader::Trust;

use super::record::{self, RecordError};

const SPENT_FILE: &str = "spent.json";
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Spent {
    format: u32,
    seconds: u64,
}

/// How long the job in `directory` has run before.
///
/// # Errors
/// When the record cannot be read.
pub fn read(directory: &Path) -> Result<Duration, RecordError> {
    let spent = record::read::<Spent>(&directory.join(SPENT_FILE), Trust::Own)?;
    Ok(spent.map_or(Duration::ZERO, |spent| Duration::from_secs(spent.seconds)))
}

/// Keeps in `directory` how long its job has run in all.
///
/// # Errors
/// When that cannot be written.
pub fn write(directory: &Path, spent: Duration) -> Result<(), RecordError> {
    record::write(&directory.join(SPENT_FILE), &Spent { format: FORMAT, seconds: spent.as_secs() })
}
