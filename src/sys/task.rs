//! What the kernel tells of another task by id: limits, scheduling, affinity, robust futexes.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::model::address::RemoteAddr;
use crate::model::process::ResourceLimit;
use crate::model::thread::Scheduling;

/// Resources that a limit can be set on (RLIM_NLIMITS).
pub const RESOURCES: u32 = 16;

/// Bytes of a CPU mask asked for at first: 8,192 CPUs, as many as a kernel can be built for.
const AFFINITY_BYTES: usize = 1024;

const IOPRIO_WHO_PROCESS: libc::c_int = 1;
const IOPRIO_CLASS_SHIFT: i32 = 13;
const IOPRIO_CLASS_NONE: i32 = 0;

/// `struct sched_attr`, as far as Linux 5.6 knows it.
#[repr(C)]
#[derive(Default)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util_min: u32,
    util_max: u32,
}

const SCHED_ATTR_SIZE: u32 = 56;
const _: () = assert!(size_of::<SchedAttr>() == 56);

/// One resource limit of a process.
///
/// # Errors
/// ESRCH when it has ended, EPERM when it is another user's.
pub fn limit(pid: Pid, resource: u32) -> nix::Result<ResourceLimit> {
    let mut raw = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: without a new limit prlimit only writes one `rlimit64` to the last pointer.
    let outcome =
        unsafe { libc::prlimit64(pid.as_raw(), resource, std::ptr::null(), &raw mut raw) };
    Errno::result(outcome)?;
    Ok(ResourceLimit { resource, soft: raw.rlim_cur, hard: raw.rlim_max })
}

/// Scheduling policy, nice value and the rest of sched_getattr(2).
///
/// # Errors
/// ESRCH when it has ended.
pub fn scheduling(tid: Pid) -> nix::Result<Scheduling> {
    let mut raw = SchedAttr { size: SCHED_ATTR_SIZE, ..SchedAttr::default() };
    // SAFETY: sched_getattr writes at most the given size to the structure, which is that large.
    let outcome = unsafe {
        libc::syscall(libc::SYS_sched_getattr, tid.as_raw(), &raw mut raw, SCHED_ATTR_SIZE, 0)
    };
    Errno::result(outcome)?;
    Ok(Scheduling {
        policy: raw.policy,
        flags: raw.flags,
        nice: nice(tid)?,
        priority: raw.priority,
        runtime: raw.runtime,
        deadline: raw.deadline,
        period: raw.period,
        util_min: raw.util_min,
        util_max: raw.util_max,
    })
}

/// The nice value, which sched_getattr(2) does not tell of threads with a real-time policy.
fn nice(tid: Pid) -> nix::Result<i32> {
    // What the kernel gives is never negative: 20 less the nice value.
    const HIGHEST: libc::c_long = 20;
    // SAFETY: getpriority takes plain numbers.
    let found = unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, tid.as_raw()) };
    i32::try_from(HIGHEST - Errno::result(found)?).map_err(|_| Errno::EOVERFLOW)
}

/// The mask of CPUs that a thread may run on, low CPUs first, without zero bytes at the end.
///
/// # Errors
/// ESRCH when it has ended.
pub fn affinity(tid: Pid) -> nix::Result<Vec<u8>> {
    let mut mask = vec![0_u8; AFFINITY_BYTES];
    // SAFETY: sched_getaffinity writes at most as many bytes as it is told the buffer has.
    let outcome = unsafe {
        libc::syscall(libc::SYS_sched_getaffinity, tid.as_raw(), AFFINITY_BYTES, mask.as_mut_ptr())
    };
    Errno::result(outcome)?;
    let used = mask.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    mask.truncate(used);
    Ok(mask)
}

/// I/O priority (ioprio_get(2)); 0 when it has none of its own, whatever level older kernels give with that,
/// which they do not take back.
///
/// # Errors
/// ESRCH when it has ended.
pub fn io_priority(tid: Pid) -> nix::Result<i32> {
    // SAFETY: ioprio_get takes plain numbers.
    let outcome = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid.as_raw()) };
    let priority = i32::try_from(Errno::result(outcome)?).map_err(|_| Errno::EOVERFLOW)?;
    Ok(if priority >> IOPRIO_CLASS_SHIFT == IOPRIO_CLASS_NONE { 0 } else { priority })
}

/// Has the calling thread give way to others at processors, by a nice value, and most of all at disks.
/// Without privilege there is no way back.
///
/// # Errors
/// What the kernel says; the thread runs on as before then.
pub fn give_way(nice: libc::c_int) -> nix::Result<()> {
    // IOPRIO_CLASS_BE, and the lowest level in that class: one that is never kept from the disk forever.
    const LOWEST: libc::c_int = 2 << 13 | 7;
    let this: libc::id_t = 0;
    // SAFETY: both calls take plain numbers, and 0 for the calling thread.
    unsafe {
        Errno::result(libc::setpriority(libc::PRIO_PROCESS, this, nice))?;
        Errno::result(libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, this, LOWEST))?;
    }
    Ok(())
}

/// The mark by which the scheduler knows whom a thread may share a CPU core with (PR_SCHED_CORE_GET);
/// 0: anybody, also where the kernel does not care.
#[must_use]
pub fn core_cookie(tid: Pid) -> u64 {
    const PR_SCHED_CORE: libc::c_int = 62;
    const GET: libc::c_ulong = 0;
    const OF_THREAD: libc::c_ulong = 0;
    let Ok(tid) = libc::c_ulong::try_from(tid.as_raw()) else { return 0 };
    let mut cookie = 0_u64;
    // SAFETY: this prctl writes one word to its last pointer, and only asks.
    let outcome = unsafe { libc::prctl(PR_SCHED_CORE, GET, tid, OF_THREAD, &raw mut cookie) };
    if outcome == 0 { cookie } else { 0 }
}

/// Head of the robust futex list of a thread, and the length registered with it.
///
/// # Errors
/// ESRCH when it has ended, EPERM when it may not be traced.
pub fn robust_list(tid: Pid) -> nix::Result<(RemoteAddr, u64)> {
    let mut head = MaybeUninit::<u64>::uninit();
    let mut length = MaybeUninit::<u64>::uninit();
    // SAFETY: get_robust_list writes one word to each pointer.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_get_robust_list,
            tid.as_raw(),
            head.as_mut_ptr(),
            length.as_mut_ptr(),
        )
    };
    Errno::result(outcome)?;
    // SAFETY: both were written, as the call succeeded.
    let (head, length) = unsafe { (head.assume_init(), length.assume_init()) };
    Ok((RemoteAddr(head), length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_properties_can_be_asked() {
        let me = Pid::this();
        assert!((0..RESOURCES).all(|resource| limit(me, resource).is_ok()));
        assert_eq!(limit(me, RESOURCES), Err(Errno::EINVAL));
        assert!(affinity(me).is_ok_and(|mask| mask.iter().any(|byte| *byte != 0)));
        assert!(scheduling(me).is_ok());
        assert!(io_priority(me).is_ok());
        assert!(robust_list(me).is_ok());
    }
}
