//! Who is signalled about a description, and the locks held through it.

use std::collections::BTreeSet;

use nix::unistd::Pid;

use super::refusal::RefusalKind;
use super::scan::Description;
use super::{Collector, Failure, call_failed, duplicate};
use crate::model::file::{FileLock, FileLockKind, FileOwner};
use crate::model::id;
use crate::sys::fdinfo::{HeldLock, LockClass};
use crate::sys::{descriptor, procfs};

const F_OWNER_TID: i32 = 0;
const F_OWNER_PID: i32 = 1;

/// The owner of a description, in the job's numbering.
pub(super) fn owner(
    collector: &Collector,
    found: &Description,
) -> Result<Option<FileOwner>, Failure> {
    let file = duplicate(found)?;
    let owner = descriptor::owner(&file).map_err(call_failed(found, "F_GETOWN_EX"))?;
    let signal = descriptor::owner_signal(&file).map_err(call_failed(found, "F_GETSIG"))?;
    if owner.id == 0 {
        // Without an owner the signal to send can be set already.
        let none = FileOwner { kind: owner.kind, id: id::Pid(0), signal };
        return Ok((signal != 0).then_some(none));
    }
    let recorded = match owner.kind {
        F_OWNER_TID => recorded_thread(collector, Pid::from_raw(owner.id)),
        F_OWNER_PID => collector.recorded.get(&Pid::from_raw(owner.id)).copied(),
        _ => recorded_group(collector, owner.id),
    };
    match recorded {
        Some(id) => Ok(Some(FileOwner { kind: owner.kind, id, signal })),
        None => Err(RefusalKind::OwnerOutside { owner: owner.id }.into()),
    }
}

fn recorded_thread(collector: &Collector, tid: Pid) -> Option<id::Pid> {
    let status = procfs::status(tid).ok()?;
    collector.recorded.get(&Pid::from_raw(status.tgid))?;
    status.ns_pid.last().copied().map(id::Pid)
}

/// A group is known by its members: the leader may have ended.
pub(super) fn recorded_group(collector: &Collector, group: i32) -> Option<id::Pid> {
    collector.recorded.keys().find_map(|pid| {
        let status = procfs::status(*pid).ok()?;
        (status.ns_pgid.first() == Some(&group))
            .then(|| status.ns_pgid.last().copied().map(id::Pid))
            .flatten()
    })
}

/// The locks held through a description. Those of flock(2), OFD locks and leases belong to the
/// description, and every descriptor shows them; those of F_SETLK belong to a process, and only its
/// own descriptors show them.
pub(super) fn collect(
    collector: &Collector,
    found: &Description,
    tables: &[Pid],
) -> Result<Vec<FileLock>, Failure> {
    let mut locks = Vec::new();
    let of_description = found.info.locks.iter();
    for lock in of_description.filter(|lock| lock.class != LockClass::Posix) {
        let kind = match lock.class {
            LockClass::Flock => FileLockKind::Flock,
            LockClass::OpenFileDescription => FileLockKind::OpenFileDescription,
            LockClass::Lease { breaking: false } => FileLockKind::Lease,
            LockClass::Lease { breaking: true } => return Err(RefusalKind::LeaseBreaking.into()),
            LockClass::Posix => continue,
        };
        locks.push(record(kind, lock));
    }
    let mut seen = BTreeSet::new();
    for entry in &found.entries {
        let Some(holder) = collector.recorded.get(&tables[entry.table]) else { continue };
        if !seen.insert(entry.table) {
            continue;
        }
        let of_process = entry.info.locks.iter();
        for lock in of_process.filter(|lock| lock.class == LockClass::Posix) {
            locks.push(record(FileLockKind::Posix { holder: *holder }, lock));
        }
    }
    Ok(locks)
}

/// `F_RDLCK` and `F_WRLCK` (include/uapi/asm-generic/fcntl.h) in the width of `l_type`.
const F_RDLCK: i16 = 0;
const F_WRLCK: i16 = 1;

const fn record(kind: FileLockKind, lock: &HeldLock) -> FileLock {
    let access = if lock.exclusive { F_WRLCK } else { F_RDLCK };
    FileLock { kind, access, start: lock.start, end: lock.end }
}
