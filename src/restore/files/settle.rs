//! What can only be done to files and descriptions once memory and files have their content, and
//! every process exists: owners, leases, running timers, seals, times, the modes of terminals, and how
//! connections end.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{Mode, fchmod, futimens};
use nix::sys::time::TimeSpec as KernelTime;
use nix::unistd::{Pid as HostPid, ftruncate};

use super::epoll;
use super::inotify;
use super::judge::Action;
use super::{OpenedJob, Origin, SettleError, socket};
use crate::model::file::{FileLockKind, Inode, InodeKind, OpenFile, OpenFileKind};
use crate::model::id::Pid;
use crate::model::job::Job;
use crate::model::number::to_usize;
use crate::model::time::{Clocks, TimeSpec, TimerSpec};
use crate::restore::owner::comes_late;
use crate::restore::plan::Plan;
use crate::sys::attributes;
use crate::sys::descriptor::{self, Owner};
use crate::sys::terminal::{self, TERMIOS2_SIZE};

/// Bits of st_mode that fchmod(2) sets.
const PERMISSIONS: u32 = 0o7777;

/// Nanoseconds in a second.
const SECOND: i64 = 1_000_000_000;

/// Whether a description needs anything that has to wait.
pub(super) fn is_needed(job: &Job, file: &OpenFile) -> bool {
    matches!(file.kind, OpenFileKind::TimerFd { .. })
        || matches!(file.kind, OpenFileKind::Socket { socket } if socket::has_to_settle(job, socket))
        || file.owner.is_some()
        || file.locks.iter().any(|lock| lock.kind == FileLockKind::Lease)
}

/// Does everything that is left to be done.
pub(super) fn settle(job: &Job, plan: &Plan, opened: &OpenedJob) -> Result<(), SettleError> {
    settle_descriptions(job, opened, |file, descriptor| settle_description(job, file, descriptor))?;
    for (id, origin) in &opened.origins {
        let Some(inode) = job.inodes.get(to_usize(u64::from(id.0))) else { continue };
        settle_file(inode, origin).map_err(|(operation, source)| SettleError::File {
            path: inode.path.clone(),
            operation,
            source,
        })?;
    }
    for (terminal, modes) in &opened.terminals {
        set_modes(terminal, modes).map_err(|source| SettleError::Terminal { source })?;
    }
    if let (Some((terminal, _)), Some(group)) = (opened.terminals.first(), inner_foreground(job)) {
        give_foreground(terminal, group)
            .map_err(|source| SettleError::Foreground { group, source })?;
    }
    // A timer that has run out shows that to whoever begins to watch it. One that has not begins to run
    // when everything that it could wake is there.
    let has_run_out =
        |file: &OpenFile| matches!(file.kind, OpenFileKind::TimerFd { ticks, .. } if ticks != 0);
    settle_descriptions(job, opened, |file, timer| {
        if has_run_out(file) { start_timer(file, timer, &job.clocks) } else { Ok(()) }
    })?;
    inotify::watch_all(job, plan, opened)?;
    epoll::watch_all(job, opened)?;
    settle_descriptions(job, opened, |file, timer| {
        if has_run_out(file) { Ok(()) } else { start_timer(file, timer, &job.clocks) }
    })
}

fn settle_descriptions(
    job: &Job,
    opened: &OpenedJob,
    settle: impl Fn(&OpenFile, &OwnedFd) -> Result<(), Failed>,
) -> Result<(), SettleError> {
    for (id, descriptor) in &opened.unsettled {
        let Some(file) = job.open_files.get(to_usize(u64::from(id.0))) else { continue };
        settle(file, descriptor).map_err(|(operation, source)| SettleError::Description {
            file: *id,
            operation,
            source,
        })?;
    }
    Ok(())
}

/// The call that failed, and why.
type Failed = (&'static str, Errno);

fn settle_file(inode: &Inode, origin: &Origin) -> Result<(), Failed> {
    if inode.mode & libc::S_IFMT != libc::S_IFREG {
        return Ok(());
    }
    let size = i64::try_from(inode.size).unwrap_or(i64::MAX);
    // Content was written by whole pages.
    ftruncate(&origin.file, size).map_err(|errno| ("ftruncate", errno))?;
    // Its permissions may forbid that.
    for (name, value) in &inode.attributes {
        attributes::set(&origin.file, &name.0, &value.0).map_err(|errno| ("fsetxattr", errno))?;
    }
    if origin.action != Some(Action::Reset) && inode.kind != InodeKind::AnonymousShared {
        fchmod(&origin.file, Mode::from_bits_truncate(inode.mode & PERMISSIONS))
            .map_err(|errno| ("fchmod", errno))?;
    }
    let time = KernelTime::new(inode.mtime.seconds, inode.mtime.nanoseconds);
    futimens(&origin.file, &time, &time).map_err(|errno| ("futimens", errno))?;
    if let InodeKind::Memfd { seals, .. } = inode.kind
        && seals != 0
    {
        descriptor::add_seals(&origin.file, seals).map_err(|errno| ("F_ADD_SEALS", errno))?;
    }
    Ok(())
}

fn start_timer(file: &OpenFile, descriptor: &OwnedFd, clocks: &Clocks) -> Result<(), Failed> {
    if let OpenFileKind::TimerFd { clock, ticks, flags, timer } = file.kind {
        let (flags, timer) = start_of(clock, flags, timer, clocks);
        descriptor::timerfd_settime(descriptor, flags, timer)
            .map_err(|errno| ("timerfd_settime", errno))?;
        if ticks != 0 {
            descriptor::timerfd_set_ticks(descriptor, ticks)
                .map_err(|errno| ("TFD_IOC_SET_TICKS", errno))?;
        }
    }
    Ok(())
}

fn settle_description(job: &Job, file: &OpenFile, descriptor: &OwnedFd) -> Result<(), Failed> {
    if let OpenFileKind::Socket { socket } = file.kind {
        socket::settle(job, socket, descriptor).map_err(|errno| ("SO_LINGER", errno))?;
    }
    for lock in file.locks.iter().filter(|lock| lock.kind == FileLockKind::Lease) {
        descriptor::set_lease(descriptor, i32::from(lock.access))
            .map_err(|errno| ("F_SETLEASE", errno))?;
    }
    if let Some(owner) = file.owner {
        // Taking a lease makes the taker the owner, so this comes after it.
        if owner.id.0 != 0 && !comes_late(job, &owner) {
            descriptor::set_owner(descriptor, Owner { kind: owner.kind, id: owner.id.0 })
                .map_err(|errno| ("F_SETOWN_EX", errno))?;
        }
        descriptor::set_owner_signal(descriptor, owner.signal)
            .map_err(|errno| ("F_SETSIG", errno))?;
    }
    Ok(())
}

/// How to arm a timer that had `timer.value` left. The clocks that only ever go on have the job's
/// own readings, so a span of time is all they need. A time of day is a time of day, also after a
/// long pause: what fell into the pause has expired.
fn start_of(clock: i32, flags: u32, timer: TimerSpec, clocks: &Clocks) -> (i32, TimerSpec) {
    let absolute = flags.cast_signed() & libc::TFD_TIMER_ABSTIME != 0;
    let by_day = matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM);
    if absolute && by_day && !timer.value.is_zero() {
        let nanoseconds = clocks.realtime.nanoseconds + timer.value.nanoseconds;
        let value = TimeSpec {
            seconds: clocks
                .realtime
                .seconds
                .saturating_add(timer.value.seconds)
                .saturating_add(nanoseconds / SECOND),
            nanoseconds: nanoseconds % SECOND,
        };
        return (flags.cast_signed(), TimerSpec { value, ..timer });
    }
    (0, timer)
}

/// The group that is to be in the foreground of the outer terminal, unless that is the one that the
/// job was started in by others, in which the caller is now.
fn inner_foreground(job: &Job) -> Option<Pid> {
    let group = job.terminals.outer_foreground?;
    let leads = job.processes.iter().any(|process| process.pid == group);
    let root = job.processes.iter().find(|process| process.pid == job.root)?;
    (leads || root.pgid != group).then_some(group)
}

fn give_foreground(terminal: &OwnedFd, group: Pid) -> Result<(), Errno> {
    though_in_background(|| terminal::set_foreground(terminal, HostPid::from_raw(group.0)))
}

fn set_modes(terminal: &OwnedFd, modes: &[u8]) -> Result<(), Errno> {
    let modes: &[u8; TERMIOS2_SIZE] = modes.try_into().map_err(|_| Errno::EINVAL)?;
    though_in_background(|| terminal::set_modes(terminal, modes))
}

/// Does something to a terminal. The caller speaks in the foreground; the job that it acts for has
/// process ids of its own, though, so the kernel may take us for a background process.
fn though_in_background(act: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    let mut stop = SigSet::empty();
    stop.add(Signal::SIGTTOU);
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&stop), Some(&mut before))?;
    let outcome = act();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: i64) -> TimeSpec {
        TimeSpec { seconds, nanoseconds: 700_000_000 }
    }

    #[test]
    fn timers_go_on_with_the_time_that_was_left() {
        let clocks = Clocks { realtime: seconds(1000), ..Clocks::default() };
        let timer = TimerSpec { value: seconds(5), interval: seconds(9) };
        let check = |clock, flags: i32, expected| {
            assert_eq!(start_of(clock, flags.cast_unsigned(), timer, &clocks), expected);
        };
        check(libc::CLOCK_MONOTONIC, 0, (0, timer));
        check(libc::CLOCK_MONOTONIC, libc::TFD_TIMER_ABSTIME, (0, timer));
        check(libc::CLOCK_REALTIME, 0, (0, timer));
        let at = TimerSpec {
            value: TimeSpec { seconds: 1006, nanoseconds: 400_000_000 },
            interval: seconds(9),
        };
        check(libc::CLOCK_REALTIME, libc::TFD_TIMER_ABSTIME, (libc::TFD_TIMER_ABSTIME, at));
        let off = TimerSpec::default();
        let flags = libc::TFD_TIMER_ABSTIME.cast_unsigned();
        assert_eq!(start_of(libc::CLOCK_REALTIME, flags, off, &clocks), (0, off));
    }
}
