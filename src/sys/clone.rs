//! Making processes: clone3 with chosen ids and namespaces, capabilities, and execution by descriptor.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::Pid;

use crate::model::number::to_u64;
use crate::model::process::ResourceLimit;

/// Which side of a fork the caller is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// The caller; the new process has this id in the caller's pid namespace.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Forks with `clone3`. `flags` are CLONE_* bits that leave memory unshared; `exit_signal` is what
/// the parent gets at the end (0: none); `set_tid` chooses the id in the caller's innermost pid
/// namespace, which needs CAP_CHECKPOINT_RESTORE in its user namespace.
///
/// The caller must have one thread only: the child gets no other, nor the locks they hold.
///
/// # Errors
/// As `clone3(2)`: EEXIST when the id is taken, EPERM without the capability or where namespaces are
/// forbidden, EAGAIN and ENOMEM, ENOSPC at the limit of namespaces.
pub fn fork(flags: u64, exit_signal: i32, set_tid: Option<i32>) -> io::Result<Fork> {
    const SHARING: i32 = libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND;
    assert!(flags & u64::from(SHARING.unsigned_abs()) == 0, "a fork shares no memory");
    let wanted = set_tid.unwrap_or_default();
    // SAFETY: `clone_args` is plain integers, for which zero is valid and means "not asked for".
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags;
    arguments.exit_signal = u64::from(exit_signal.unsigned_abs());
    if set_tid.is_some() {
        arguments.set_tid = to_u64(std::ptr::from_ref(&wanted).addr());
        arguments.set_tid_size = 1;
    }
    // SAFETY: without CLONE_VM the child has its own copy of everything; the arguments live on this
    // frame until the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            std::ptr::from_ref(&arguments),
            size_of::<libc::clone_args>(),
        )
    };
    let result = Errno::result(result)?;
    match i32::try_from(result).expect("a process id fits an int") {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(Pid::from_raw(pid))),
    }
}

/// Ends the process at once, without flushing or destructors: how a forked child ends.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: `_exit` never returns and touches no memory.
    unsafe { libc::_exit(status) }
}

/// Executes the file behind `program` with one argument and no environment. Returns only to tell why
/// it failed.
#[must_use]
pub fn execute(program: BorrowedFd<'_>, name: &CStr) -> io::Error {
    let arguments = [name.as_ptr(), std::ptr::null()];
    let environment: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: both arrays end in a null pointer and outlive the call; the path is a C string.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    io::Error::last_os_error()
}

/// Takes back what the C library has registered for this thread's restartable sequences (rseq(2)), whose
/// memory is about to go: the kernel would end the thread. Where that lies nobody tells before Linux 5.13; but
/// it is near the thread pointer, and the kernel takes nothing back that is not there.
pub fn forget_restartable_sequences() {
    /// `sizeof(struct rseq)` of those kernels, of which it is also the alignment.
    const LENGTH: usize = 32;
    const UNREGISTER: i32 = 1;
    /// What the C library registers with (RSEQ_SIG).
    const SIGNATURE: u32 = 0x5305_3053;
    /// How far from the thread pointer it is looked for.
    const REACH: usize = 8192;
    let pointer: usize;
    // SAFETY: by the ABI of x86-64 the first word that `fs` leads to is the thread pointer itself.
    unsafe { std::arch::asm!("mov {}, fs:0", out(reg) pointer, options(nostack, readonly)) };
    let first = pointer.saturating_sub(REACH).next_multiple_of(LENGTH);
    for address in (first..pointer.saturating_add(REACH)).step_by(LENGTH) {
        // SAFETY: the kernel compares the address with the one that is registered, and touches nothing if it
        // is another.
        let outcome =
            unsafe { libc::syscall(libc::SYS_rseq, address, LENGTH, UNREGISTER, SIGNATURE) };
        if outcome == 0 {
            return;
        }
    }
}

/// Stops at a breakpoint in front of the caller's tracer, which takes it elsewhere from there. Without a
/// tracer it ends the process.
pub fn stop_for_tracer() {
    // SAFETY: a breakpoint changes nothing; what the tracer does is not this program's any more.
    unsafe { std::arch::asm!("int3") };
}

/// Header of `capget` and `capset` (`struct __user_cap_header_struct`), version 3.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`: one 32-bit half of three sets.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`.
pub const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// CAP_SETPCAP.
pub const CAP_SETPCAP: u32 = 8;
/// CAP_SYS_ADMIN.
pub const CAP_SYS_ADMIN: u32 = 21;
/// CAP_SYS_RESOURCE.
pub const CAP_SYS_RESOURCE: u32 = 24;
/// CAP_CHECKPOINT_RESTORE, since Linux 5.9.
pub const CAP_CHECKPOINT_RESTORE: u32 = 40;

/// The calling thread's effective capabilities, one bit each.
///
/// # Errors
/// As `capget(2)`.
pub fn effective_capabilities() -> io::Result<u64> {
    let (header, mut data) = capability_arguments();
    // SAFETY: version 3 fills two halves, and `data` has two.
    let result =
        unsafe { libc::syscall(libc::SYS_capget, std::ptr::from_ref(&header), data.as_mut_ptr()) };
    Errno::result(result)?;
    Ok(u64::from(data[1].effective) << 32 | u64::from(data[0].effective))
}

/// Makes those of the permitted capabilities in `wanted` survive an `execve` by a user other than
/// root (they become inheritable and ambient). Capabilities that are not permitted are left out.
///
/// # Errors
/// As `capset(2)` and `prctl(PR_CAP_AMBIENT)`.
pub fn keep_capabilities_over_exec(wanted: &[u32]) -> io::Result<()> {
    let (header, mut data) = capability_arguments();
    // SAFETY: as in `effective_capabilities`.
    let result =
        unsafe { libc::syscall(libc::SYS_capget, std::ptr::from_ref(&header), data.as_mut_ptr()) };
    Errno::result(result)?;
    for half in &mut data {
        half.inheritable = half.permitted;
    }
    // SAFETY: the header and both halves are valid for reading.
    let result =
        unsafe { libc::syscall(libc::SYS_capset, std::ptr::from_ref(&header), data.as_ptr()) };
    Errno::result(result)?;
    for capability in wanted {
        let half = data[usize::from(*capability >= 32)];
        if half.permitted >> (capability % 32) & 1 == 0 {
            continue;
        }
        // SAFETY: this prctl takes integers only.
        let result = unsafe {
            libc::prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_RAISE,
                libc::c_ulong::from(*capability),
                0,
                0,
            )
        };
        Errno::result(result)?;
    }
    Ok(())
}

fn capability_arguments() -> (CapabilityHeader, [CapabilityData; 2]) {
    (CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 }, [CapabilityData::default(); 2])
}

/// Sets the calling process's `personality(2)`.
///
/// # Errors
/// As `personality(2)`.
pub fn set_personality(persona: u32) -> io::Result<()> {
    // SAFETY: takes an integer only.
    let result = unsafe { libc::personality(libc::c_ulong::from(persona)) };
    Errno::result(result)?;
    Ok(())
}

/// Has the kernel send `signal` to the caller when its parent ends; 0: none.
///
/// # Errors
/// As `prctl(PR_SET_PDEATHSIG)`.
pub fn set_parent_death_signal(signal: i32) -> io::Result<()> {
    // SAFETY: this prctl takes an integer only.
    let result = unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::c_ulong::from(signal.unsigned_abs()), 0, 0, 0)
    };
    Errno::result(result)?;
    Ok(())
}

/// Makes the caller adopt (or no longer adopt) the orphans among its descendants.
///
/// # Errors
/// As `prctl(PR_SET_CHILD_SUBREAPER)`.
pub fn set_child_subreaper(adopt: bool) -> io::Result<()> {
    // SAFETY: this prctl takes an integer only.
    let result =
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, libc::c_ulong::from(adopt), 0, 0, 0) };
    Errno::result(result)?;
    Ok(())
}

/// Makes `number` another name of what `source` refers to.
///
/// # Errors
/// As `dup3(2)`; EINVAL when both are the same.
pub fn duplicate_to(source: RawFd, number: RawFd, close_on_exec: bool) -> io::Result<()> {
    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: replacing a descriptor of a forked child that owns its whole table is what is asked for.
    let result = unsafe { libc::dup3(source, number, flags) };
    Errno::result(result)?;
    Ok(())
}

/// Has a descriptor of a forked child stay open when it executes a program.
///
/// # Errors
/// EBADF when there is none.
pub fn keep_over_exec(number: RawFd) -> io::Result<()> {
    // SAFETY: only the mark of a descriptor changes, in a child that owns its whole table.
    let result = unsafe { libc::fcntl(number, libc::F_SETFD, 0) };
    Errno::result(result)?;
    Ok(())
}

/// Gives `signal` its default action.
///
/// # Errors
/// EINVAL for SIGKILL and SIGSTOP.
pub fn set_default_action(signal: Signal) -> nix::Result<()> {
    let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler of ours is installed, so none can run at a bad moment.
    unsafe { sigaction(signal, &action) }.map(drop)
}

/// Whether `timer_create` can be told the id of the new timer (PR_TIMER_CREATE_RESTORE_IDS, since
/// Linux 6.16).
#[must_use]
pub fn timer_ids_can_be_chosen() -> bool {
    const PR_TIMER_CREATE_RESTORE_IDS: libc::c_int = 77;
    const GET: libc::c_ulong = 2;
    // SAFETY: this prctl takes integers only; asking changes nothing.
    unsafe { libc::prctl(PR_TIMER_CREATE_RESTORE_IDS, GET, 0, 0, 0) >= 0 }
}

/// Sets a resource limit of a process.
///
/// # Errors
/// As `prlimit(2)`: EPERM to raise a hard limit without CAP_SYS_RESOURCE, ESRCH when it has ended.
pub fn set_limit(pid: Pid, limit: &ResourceLimit) -> nix::Result<()> {
    let raw = libc::rlimit64 { rlim_cur: limit.soft, rlim_max: limit.hard };
    // SAFETY: the kernel reads one `rlimit64`; a null pointer says that the old one is not wanted.
    let result =
        unsafe { libc::prlimit64(pid.as_raw(), limit.resource, &raw const raw, ptr::null_mut()) };
    Errno::result(result).map(drop)
}

/// The calling process's own limit on `resource`.
///
/// # Errors
/// EINVAL when there is no such resource.
pub fn own_limit(resource: u32) -> nix::Result<ResourceLimit> {
    let mut raw = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one `rlimit64`; a null pointer says that none is to be set.
    let result = unsafe { libc::prlimit64(0, resource, ptr::null(), &raw mut raw) };
    Errno::result(result)?;
    Ok(ResourceLimit { resource, soft: raw.rlim_cur, hard: raw.rlim_max })
}
