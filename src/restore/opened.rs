//! What the reaper has opened for the whole job before the first process is forked, and how each
//! process lays its table of descriptors out from it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;

use crate::model::file::FdTable;
use crate::model::id::{InodeId, ObjectId};
use crate::sys::{clone, descriptor};

/// Descriptors of the reaper, all numbered from `first` on, which is above every number that a table
/// of the job uses. Every process inherits them by fork, and so shares the descriptions as recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// The lowest number in use here.
    pub first: RawFd,
    /// One descriptor an open file description, by [`crate::model::id::OpenFileId`].
    pub files: Vec<RawFd>,
    /// Descriptors to map files with, by inode and whether the mapping may write through.
    pub mapped: BTreeMap<(InodeId, bool), RawFd>,
    /// Where the content of inodes is to be written before the job runs, by object. Page `n` goes to
    /// byte `n * 4096`; the files have their sizes already.
    pub contents: BTreeMap<ObjectId, RawFd>,
}

/// Gives the calling process the descriptors of `table`, and leaves those from `opened.first` on open
/// for the blob. Everything else below is closed.
///
/// # Errors
/// As `dup3(2)` and `close_range(2)`; EMFILE when the hard limit of RLIMIT_NOFILE is too low.
pub fn lay_out(table: &FdTable, opened: &Opened) -> io::Result<()> {
    let mut next = 0;
    for entry in &table.entries {
        close_between(next, entry.number)?;
        let file = usize::try_from(entry.file.0).map_err(io::Error::other)?;
        let source = opened.files.get(file).ok_or(io::ErrorKind::NotFound)?;
        clone::duplicate_to(*source, entry.number, entry.close_on_exec)?;
        next = entry.number + 1;
    }
    close_between(next, opened.first)
}

/// Closes what is open in `first..end`.
fn close_between(first: RawFd, end: RawFd) -> io::Result<()> {
    if first < end {
        descriptor::close_range(first.unsigned_abs(), end.unsigned_abs() - 1)?;
    }
    Ok(())
}
