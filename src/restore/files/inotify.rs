//! Has inotify instances watch again what they watched, by the same numbers.
//!
//! The kernel numbers watches one after the other, so numbers in between are used up first, by watches
//! on a file that nobody knows. What an instance is told meanwhile is forgotten.

use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

use nix::errno::Errno;

use super::{OpenedJob, SettleError};
use crate::model::event::FileWatch;
use crate::model::file::OpenFileKind;
use crate::model::id::OpenFileId;
use crate::model::job::Job;
use crate::model::number::to_usize;
use crate::restore::plan::Plan;
use crate::sys::{descriptor, inotify};

/// How many events an instance gathers before they are forgotten: fewer than it can hold
/// (/proc/sys/fs/inotify/max_queued_events).
const GATHERED: i32 = 1000;

/// Has all instances of a job watch what they watched.
pub(super) fn watch_all(job: &Job, plan: &Plan, opened: &OpenedJob) -> Result<(), SettleError> {
    for (number, file) in (0..).zip(&job.open_files) {
        let OpenFileKind::Inotify { watches } = &file.kind else { continue };
        let id = OpenFileId(number);
        let instance = opened.opened.files[to_usize(u64::from(number))];
        let mut next = 1;
        for watch in watches {
            let path = match opened.origins.get(&watch.inode) {
                Some(origin) => PathBuf::from(format!("/proc/self/fd/{}", origin.file.as_raw_fd())),
                None => PathBuf::from(plan.path_of(watch.inode, job).as_os_str()),
            };
            add(instance, &mut next, watch, &path).map_err(|source| SettleError::WatchFile {
                file: id,
                path: plan.path_of(watch.inode, job),
                source,
            })?;
        }
        inotify::drain(instance).map_err(|source| SettleError::Description {
            file: id,
            operation: "reading events",
            source,
        })?;
    }
    Ok(())
}

fn add(
    instance: RawFd,
    next: &mut i32,
    watch: &FileWatch,
    path: &std::path::Path,
) -> Result<(), Errno> {
    if *next < watch.number {
        let unknown = descriptor::memfd_create(c"rckpt", 0)?;
        let unknown = PathBuf::from(format!("/proc/self/fd/{}", unknown.as_raw_fd()));
        while *next < watch.number {
            *next = inotify::add(instance, &unknown, libc::IN_DELETE_SELF)? + 1;
            inotify::remove(instance, *next - 1)?;
            if *next % GATHERED == 0 {
                inotify::drain(instance)?;
            }
        }
    }
    let number = inotify::add(instance, path, watch.mask)?;
    *next = number + 1;
    // One file under two names would have but one watch.
    if number == watch.number { Ok(()) } else { Err(Errno::EEXIST) }
}
