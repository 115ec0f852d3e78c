//! Where a job's outputs stood when it started: what a start from the beginning goes back to.
//!
//! A job that was lost before its first checkpoint has written something, and writes it again. Its
//! standard output may be a file that batch systems append to; it and the outputs that the user named
//! are cut back as a restore would do it, and what is cut off is kept in the same place.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::dump::files::outputs::{self, OutputError};
use crate::image::reader::Trust;
use crate::model::file::{Inode, InodeKind, OpenFile, OpenFileKind, Outputs, Stream, StreamTarget};
use crate::model::id::{Bytes, InodeId};
use crate::model::job::Job;
use crate::model::time::TimeSpec;
use crate::restore::files::{
    self, Choices, NotPutBack, Policy, Problems, RollbackError, TakenBack,
};

use super::record::{self, RecordError};
use super::restore::DISPLACED;
use crate::model::code::{self, Code};

const START_FILE: &str = "start.json";

/// Why a job's outputs could not be recorded, or not be taken back.
#[derive(Debug, Error)]
pub enum StartError {
    /// An output cannot be looked at.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Files are not as they were, in a way that cannot be taken back.
    #[error(transparent)]
    Files(#[from] Problems),
    /// Taking back failed, and files are as they were before.
    #[error(transparent)]
    TakeBack(#[from] RollbackError),
    /// Taking back failed, and so did putting back what had been taken by then.
    #[error("{error}\n{left}")]
    NotPutBack {
        /// Why taking back failed.
        error: RollbackError,
        /// What is not as it was.
        left: NotPutBack,
    },
}

impl StartError {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Output(_) => code::writing::OUTPUTS_UNREADABLE,
            Self::Record(error) => error.code(),
            Self::Files(_) => code::restoring::OUTPUTS_CHANGED,
            Self::TakeBack(_) | Self::NotPutBack { .. } => code::restoring::NOT_TAKEN_BACK,
        }
    }
}

/// Everything that the job writes to and that was there before.
#[derive(Serialize, Deserialize)]
struct Beginning {
    outputs: Outputs,
    streams: Vec<(Stream, Inode)>,
}

/// Records in `directory` where the named outputs and the standard streams of this process stand.
///
/// # Errors
/// When one cannot be looked at, or nothing be written.
pub fn record(directory: &Path, named: &[PathBuf]) -> Result<(), StartError> {
    let mut outputs = outputs::find(named, &[directory.to_owned()])?;
    outputs::add_digests(&mut outputs)?;
    let streams = [(1, Stream::Output), (2, Stream::Error)]
        .into_iter()
        .filter_map(|(number, stream)| Some((stream, regular_file(number)?)))
        .collect();
    Ok(record::write(&directory.join(START_FILE), &Beginning { outputs, streams })?)
}

/// Takes back what was written since [`record`], if that was ever done in `directory`.
///
/// # Errors
/// When a file was changed in another way than by growing.
pub fn take_back(directory: &Path) -> Result<(), StartError> {
    let path = directory.join(START_FILE);
    let Some(beginning) = record::read::<Beginning>(&path, Trust::Own)? else { return Ok(()) };
    let mut job = Job { outputs: beginning.outputs, ..Job::default() };
    for ((stream, inode), number) in beginning.streams.into_iter().zip(0..) {
        let target = StreamTarget::Regular { inode: InodeId(number), position: inode.size };
        job.open_files.push(OpenFile {
            flags: libc::O_WRONLY.cast_unsigned(),
            kind: OpenFileKind::Stream { stream, target },
            owner: None,
            locks: Vec::new(),
        });
        job.inodes.push(inode);
    }
    let choices = Choices {
        policy: Policy::Rollback,
        moved: Vec::new(),
        displaced: directory.join(DISPLACED),
        job_directory: directory.to_owned(),
    };
    let decisions = files::decide(&job, &choices)?;
    let mut taken = TakenBack::default();
    match files::carry_out(&decisions, &mut taken) {
        Ok(()) => Ok(()),
        Err(error) => match files::put_back(&taken) {
            Ok(()) => Err(StartError::TakeBack(error)),
            Err(left) => Err(StartError::NotPutBack { error, left }),
        },
    }
}

/// The regular file that a standard stream of this process leads to.
fn regular_file(number: i32) -> Option<Inode> {
    let link = PathBuf::from(format!("/proc/self/fd/{number}"));
    let metadata = fs::metadata(&link).ok().filter(fs::Metadata::is_file)?;
    let path = fs::read_link(&link).ok()?;
    // A file that was deleted has no name under which it could be found again.
    let is_it = fs::metadata(&path)
        .is_ok_and(|named| (named.dev(), named.ino()) == (metadata.dev(), metadata.ino()));
    is_it.then(|| Inode {
        kind: InodeKind::Linked,
        path: Bytes::from(path),
        device: metadata.dev(),
        number: metadata.ino(),
        mode: metadata.mode(),
        rdev: 0,
        size: metadata.size(),
        mtime: TimeSpec { seconds: metadata.mtime(), nanoseconds: metadata.mtime_nsec() },
        links: metadata.nlink(),
        build_id: None,
        content: None,
        written: true,
        attributes: Vec::new(),
        ends: None,
    })
}
