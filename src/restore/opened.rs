//! What the reaper has opened for the whole job before the first process is forked, and how each
//! process lays its table of descriptors out from it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::unistd::Pid as HostPid;
use serde::{Deserialize, Serialize};

use super::numbers;
use crate::model::file::FdTable;
use crate::model::id::{InodeId, ObjectId, OpenFileId, Pid};
use crate::sys::{clone, descriptor};

/// Descriptors of the reaper, all with numbers in `private`, which no table of the job uses. Every process inherits them by fork, and so shares the descriptions as recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// The numbers that can be in use here.
    pub private: Range<RawFd>,
    /// One descriptor an open file description, by [`crate::model::id::OpenFileId`].
    pub files: Vec<RawFd>,
    /// Descriptors to map with.
    pub mapped: Mapped,
    /// Where the content of inodes is to be written before the job runs, by object. The files have their
    /// sizes already.
    pub contents: BTreeMap<ObjectId, ContentPlace>,
    /// Working directories that no path leads to.
    pub directories: BTreeMap<InodeId, RawFd>,
    /// Descriptions that are made once the processes are there: what these have inherited under
    /// [`Opened::files`] is a stopgap, and the reaper has the real one under the same number.
    pub late: BTreeSet<OpenFileId>,
    /// The reaper.
    pub reaper: Pid,
}

/// Descriptors to map with, which stay open when the blob is executed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapped {
    /// Of files, by inode and whether the mapping may write through.
    pub files: BTreeMap<(InodeId, bool), RawFd>,
    /// Of rings of io_uring.
    pub rings: BTreeMap<OpenFileId, RawFd>,
}

/// Where content is written: page `n` at byte `base + n * 4096` of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentPlace {
    /// The descriptor, in the reaper.
    pub number: RawFd,
    /// Where the first page goes.
    pub base: u64,
}

/// Gives the calling process the descriptors of `table`, and leaves those in `opened.private` open
/// for the blob. Everything else is closed. Nothing is marked close-on-exec yet, for the blob is
/// still to be executed.
///
/// # Errors
/// As `dup3(2)` and `close_range(2)`; EMFILE when the hard limit of RLIMIT_NOFILE is too low.
pub fn lay_out(table: &FdTable, opened: &Opened) -> io::Result<()> {
    let mut next = 0;
    // Where the late files of this process are, once they are open.
    let mut late: BTreeMap<OpenFileId, RawFd> = BTreeMap::new();
    for entry in &table.entries {
        close_between(next, entry.number, opened)?;
        let file = usize::try_from(entry.file.0).map_err(io::Error::other)?;
        let inherited = opened.files.get(file).copied().ok_or(io::ErrorKind::NotFound)?;
        if opened.late.contains(&entry.file) && !late.contains_key(&entry.file) {
            late.insert(entry.file, descriptor::leave_open(fetch(inherited, opened)?));
        }
        let source = late.get(&entry.file).copied().unwrap_or(inherited);
        clone::duplicate_to(source, entry.number, false)?;
        next = entry.number + 1;
    }
    close_between(next, RawFd::MAX, opened)
}

/// Leaves what `table` needs open for a process that is cloned by the caller's blob, and takes its
/// descriptors from there; late files come in the place of their stopgaps.
///
/// # Errors
/// As [`lay_out`].
pub fn keep_for_clone(table: &FdTable, opened: &Opened) -> io::Result<()> {
    for entry in &table.entries {
        let file = usize::try_from(entry.file.0).map_err(io::Error::other)?;
        let number = opened.files.get(file).copied().ok_or(io::ErrorKind::NotFound)?;
        if opened.late.contains(&entry.file) {
            let fetched = fetch(number, opened)?;
            clone::duplicate_to(fetched.as_raw_fd(), number, false)?;
        } else {
            clone::keep_over_exec(number)?;
        }
    }
    Ok(())
}

/// The description that the reaper has under `number` by now.
fn fetch(number: RawFd, opened: &Opened) -> io::Result<OwnedFd> {
    let reaper = descriptor::pidfd_open(HostPid::from_raw(opened.reaper.0))?;
    let fetched = descriptor::pidfd_getfd(&reaper, number)?;
    Ok(descriptor::move_above(fetched, opened.private.start)?)
}

/// Closes what is open in `first..end`, but for what the blob needs.
fn close_between(first: RawFd, end: RawFd, opened: &Opened) -> io::Result<()> {
    for range in numbers::without(first..end, &opened.private) {
        descriptor::close_range(range.start.unsigned_abs(), range.end.unsigned_abs() - 1)?;
    }
    Ok(())
}
