//! What restores of a job have cut off and set aside, as it lies beside its checkpoints.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

use crate::job::restore::DISPLACED;

/// A file that was kept.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct DisplacedReport {
    /// The file. Below the number of the restore it has the path that it was taken from; the end of a
    /// file that was cut has the place of the cut at the end of its name.
    pub path: String,
    /// Its size.
    pub bytes: u64,
}

/// All of it in the job's directory, sorted.
///
/// # Errors
/// When a directory cannot be listed.
pub fn find(directory: &Path) -> io::Result<Vec<DisplacedReport>> {
    let mut found = Vec::new();
    let mut open = vec![directory.join(DISPLACED)];
    while let Some(path) = open.pop() {
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            let facts = entry.metadata()?;
            if facts.is_dir() {
                open.push(entry.path());
            } else {
                let path = entry.path().display().to_string();
                found.push(DisplacedReport { path, bytes: facts.len() });
            }
        }
    }
    found.sort_unstable_by(|left, right| left.path.cmp(&right.path));
    Ok(found)
}
