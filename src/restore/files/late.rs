//! Opens what leads to processes of the job, once all of them are there: process descriptors, and files
//! in their parts of /proc. Until then a stopgap has had the place of each; processes fetch the real
//! one when they lay out their descriptors.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid as HostPid;

use super::open::{duplicate, flags_to_open, open_path};
use super::{OpenError, OpenedJob, settle};
use crate::model::file::{OpenFile, OpenFileKind};
use crate::model::id::{OpenFileId, Pid};
use crate::model::job::Job;
use crate::model::number::to_usize;
use crate::sys::clone::{self, Fork};
use crate::sys::descriptor;

/// Whether a description can only be made when the process that it leads to is there.
pub(super) fn is_late(file: &OpenFile) -> bool {
    match &file.kind {
        OpenFileKind::PidFd { .. } => true,
        OpenFileKind::Proc { path, .. } => path
            .0
            .strip_prefix(b"/proc/")
            .is_some_and(|rest| rest.first().is_some_and(u8::is_ascii_digit)),
        _ => false,
    }
}

/// Opens all of these, in the process that has opened everything else.
pub(super) fn open_all(job: &Job, opened: &mut OpenedJob) -> Result<(), OpenError> {
    let first = opened.opened.private.start;
    for (number, file) in (0..).zip(&job.open_files).filter(|(_, file)| is_late(file)) {
        let made = open(file)?;
        let place = opened.opened.files[to_usize(u64::from(number))];
        clone::duplicate_to(std::os::fd::AsRawFd::as_raw_fd(&made), place, true)
            .map_err(|source| OpenError::MoveUp { source })?;
        if settle::is_needed(job, file) {
            let duplicate = duplicate(&made, first)?;
            opened.unsettled.push((OpenFileId(number), duplicate));
        }
    }
    Ok(())
}

/// Makes one of these, or a file under /proc that leads to no process.
pub(super) fn open(file: &OpenFile) -> Result<OwnedFd, OpenError> {
    match &file.kind {
        OpenFileKind::PidFd { process, thread } => {
            let made = if process.0 == 0 {
                of_nobody()
            } else {
                descriptor::pidfd_open_as(HostPid::from_raw(process.0), *thread)
            };
            let flags = flags_to_open(file.flags);
            made.and_then(|made| {
                descriptor::set_status_flags(&made, flags)?;
                Ok(made)
            })
            .map_err(|source| OpenError::OpenProcess { process: *process, source })
        }
        OpenFileKind::Proc { path, position } => {
            let flags = flags_to_open(file.flags);
            open_path(path.as_path(), flags)
                .and_then(|made| {
                    // Namespaces have no positions.
                    if *position != 0 {
                        descriptor::set_position(&made, *position)?;
                    }
                    Ok(made)
                })
                .map_err(|source| OpenError::Open { path: path.clone(), source })
        }
        _ => unreachable!("nothing else is opened here"),
    }
}

/// The descriptor of a process that has ended and been waited for.
fn of_nobody() -> Result<OwnedFd, Errno> {
    let failed =
        |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EAGAIN));
    match clone::fork(0, 0, None).map_err(failed)? {
        Fork::Child => loop {
            nix::unistd::pause();
        },
        Fork::Parent(child) => {
            let made = descriptor::pidfd_open(child);
            kill(child, Signal::SIGKILL)?;
            while waitpid(child, Some(WaitPidFlag::__WALL)) == Err(Errno::EINTR) {}
            made
        }
    }
}

/// What a process is called in messages.
pub(super) fn name_of(process: Pid) -> String {
    if process.0 == 0 {
        "a process that has ended".to_owned()
    } else {
        format!("process {process}")
    }
}
