//! Which job a directory belongs to: the file `job.json`, and nothing else of the directory.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::DirectoryError;
use crate::image::reader::Trust;
use crate::job::record;
use crate::model::id::Bytes;

/// The file's name in the job's directory.
pub const JOB_FILE: &str = "job.json";
/// The format that this program knows.
pub(super) const JOB_FILE_FORMAT: u32 = 1;

/// Which job a directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// [`crate::model::job::Job::id`]: ASCII.
    pub id: Bytes,
    /// The command line, for messages.
    pub command: Vec<Bytes>,
    /// When the directory became the job's, in seconds since 1970.
    pub created: i64,
}

impl Identity {
    /// The command line in one line, for messages.
    #[must_use]
    pub fn command_line(&self) -> String {
        let words: Vec<String> = self.command.iter().map(Bytes::to_string).collect();
        words.join(" ")
    }
}

/// What `job.json` holds. Fields that this version does not know are left alone.
#[derive(Serialize, Deserialize)]
struct JobFile {
    format: u32,
    id: String,
    command: Vec<String>,
    created: i64,
}

/// Reads whose the directory `path` is; `None` when it does not say.
pub(super) fn read(path: &Path, trust: Trust) -> Result<Option<Identity>, DirectoryError> {
    let path = path.join(JOB_FILE);
    let Some(contents) = record::read::<JobFile>(&path, trust)? else { return Ok(None) };
    if contents.format != JOB_FILE_FORMAT {
        return Err(DirectoryError::SupportIdentity { path, found: contents.format });
    }
    let bytes = |text: String| Bytes(text.into_bytes());
    Ok(Some(Identity {
        id: bytes(contents.id),
        command: contents.command.into_iter().map(bytes).collect(),
        created: contents.created,
    }))
}

/// Makes the directory `path` that of the job `identity`.
pub(super) fn write(path: &Path, identity: &Identity) -> Result<(), DirectoryError> {
    let contents = JobFile {
        format: JOB_FILE_FORMAT,
        id: identity.id.to_string(),
        command: identity.command.iter().map(Bytes::to_string).collect(),
        created: identity.created,
    };
    Ok(record::write(&path.join(JOB_FILE), &contents)?)
}
