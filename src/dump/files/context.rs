//! Working directory, root directory and umask.

use std::path::PathBuf;

use nix::unistd::Pid;

use super::refusal::{Place, RefusalKind};
use super::{CollectFilesError, Collector, scan};
use crate::model::file::FsContext;
use crate::model::id::Bytes;
use crate::sys::procfs;

/// Records the directories of a process. What is refused is noted, and leaves a default behind.
pub(super) fn collect(collector: &mut Collector, pid: Pid) -> Result<FsContext, CollectFilesError> {
    let cwd = PathBuf::from(format!("/proc/{pid}/cwd"));
    let cwd = collector.intern_link(pid, Place::WorkingDirectory, cwd)?;
    let link = PathBuf::from(format!("/proc/{pid}/root"));
    let root = scan::read_link(&link)?;
    if root != b"/" {
        collector.refuse(pid, Place::RootDirectory, &root, RefusalKind::ChangedRoot);
    }
    Ok(FsContext {
        cwd: cwd.unwrap_or_default(),
        root: Bytes(root),
        umask: procfs::status(pid)?.umask,
    })
}
