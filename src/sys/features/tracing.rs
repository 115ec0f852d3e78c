//! Trials of what a checkpoint does to other processes: tracing them, reading them, asking the kernel
//! about what they have.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{self, ForkResult, Pid};

use crate::sys::descriptor::{self, Shared};
use crate::sys::ptrace::RseqAnswer;
use crate::sys::{clone, inet_diag, launch, procfs, ptrace, task, unix_diag};

use super::{Feature, ProbeError, Recorder, Trial, Tried, errno_of, in_child};

/// A process that only waits, and ends with its parent.
pub(super) fn sleeper() -> Result<Pid, Errno> {
    match launch::fork().map_err(|_| Errno::EAGAIN)? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            if clone::set_parent_death_signal(libc::SIGKILL).is_ok() {
                unistd::pause();
            }
            clone::exit_now(0)
        }
    }
}

pub(super) fn end(sleeper: Pid) -> Result<(), Errno> {
    kill(sleeper, Signal::SIGKILL)?;
    waitpid(sleeper, None).map(|_| ())
}

/// Stops and lets go of a process.
fn trace(pid: Pid, while_stopped: &mut dyn FnMut()) -> Tried {
    ptrace::seize(pid)?;
    ptrace::interrupt(pid)?;
    ptrace::wait(pid, false)?;
    ptrace::registers(pid)?;
    while_stopped();
    ptrace::detach(pid, 0)?;
    Ok(true)
}

pub(super) fn try_tracing(recorder: &mut Recorder) {
    let pid = match sleeper() {
        Ok(pid) => pid,
        Err(errno) => {
            recorder.record(Feature::TraceDescendants, Err(errno));
            return;
        }
    };
    let mut rseq = Err(Errno::EPERM);
    let traced = trace(pid, &mut || {
        rseq = ptrace::rseq_configuration(pid).map(|answer| answer != RseqAnswer::Untold);
    });
    if recorder.record(Feature::TraceDescendants, traced) {
        recorder.record(Feature::RseqConfiguration, rseq);
    }
    recorder.record(Feature::ReadMemory, read_memory(pid));
    recorder.record(Feature::ReadProc, read_proc(pid));
    let number = recorder.pipe.as_raw_fd();
    let taken = descriptor::pidfd_open(pid)
        .and_then(|pidfd| descriptor::pidfd_getfd(pidfd, number).map(|_| true));
    recorder.record(Feature::TakeDescriptors, taken);
    let compared = descriptor::compare_tasks(Shared::Descriptors, unistd::getpid(), pid);
    recorder.record(Feature::CompareDescriptors, compared.map(|order| order.is_ne()));
    recorder.record(Feature::TimerIds, Ok(clone::timer_ids_can_be_chosen()));
    // A sleeper that stays behind ends with this process.
    end(pid).unwrap_or_default();
}

/// Whether a process that is no descendant of the tracer can be traced: two children of ours.
pub(super) fn try_tracing_others() -> Result<BTreeMap<Feature, Trial>, ProbeError> {
    static OTHER: std::sync::atomic::AtomicI32 = std::sync::atomic::AtomicI32::new(0);
    let preparing = |operation| move |source| ProbeError::Prepare { operation, source };
    let other = sleeper().map_err(preparing("fork"))?;
    OTHER.store(other.as_raw(), std::sync::atomic::Ordering::Relaxed);
    let trials = in_child(|recorder| {
        let other = Pid::from_raw(OTHER.load(std::sync::atomic::Ordering::Relaxed));
        let traced = trace(other, &mut || {});
        recorder.record(Feature::TraceOthers, traced);
    });
    end(other).map_err(preparing("end a child"))?;
    trials
}

/// Reads a value of ours out of a forked copy of us.
fn read_memory(pid: Pid) -> Tried {
    static SAMPLE: u64 = 0x7263_6b70_7431;
    let mut found = 0_u64;
    let local = libc::iovec { iov_base: (&raw mut found).cast(), iov_len: size_of::<u64>() };
    let remote = libc::iovec {
        iov_base: std::ptr::from_ref(&SAMPLE).cast_mut().cast(),
        iov_len: size_of::<u64>(),
    };
    // SAFETY: the local vector covers `found`; the remote one is only read, in another process.
    let read = unsafe { libc::process_vm_readv(pid.as_raw(), &local, 1, &remote, 1, 0) };
    Errno::result(read)?;
    Ok(found == SAMPLE)
}

/// Reads what /proc tells of another process, as a checkpoint does.
fn read_proc(pid: Pid) -> Tried {
    let allowed = |error: procfs::ProcError| match error {
        procfs::ProcError::Read { source, .. } => errno_of(&source),
        procfs::ProcError::Parse { .. } => Errno::EBADMSG,
    };
    let mappings = procfs::mappings(pid).map_err(allowed)?;
    procfs::timers(pid).map_err(allowed)?;
    procfs::read(pid, "auxv").map_err(allowed)?;
    let mut entry = [0; 8];
    File::open(format!("/proc/{pid}/pagemap"))
        .and_then(|mut pages| pages.read_exact(&mut entry))
        .map_err(|error| errno_of(&error))?;
    Ok(!mappings.is_empty())
}

/// Questions about the caller itself, and what it asks for itself.
pub(super) fn try_questions(recorder: &mut Recorder) {
    let registrations: libc::c_int = 1 << 9;
    // SAFETY: this command of membarrier takes no pointers.
    let answer = unsafe { libc::syscall(libc::SYS_membarrier, registrations, 0, 0) };
    recorder.record(Feature::MembarrierRegistrations, Errno::result(answer).map(|_| true));
    recorder.record(Feature::CloseRanges, Ok(descriptor::closes_ranges()));
    recorder.record(Feature::UnixSockets, find_unix_socket());
    let tables = [libc::IPPROTO_TCP, libc::IPPROTO_UDP].into_iter().try_for_each(|protocol| {
        let protocol = u8::try_from(protocol).map_err(|_| Errno::EINVAL)?;
        inet_diag::inet_sockets(protocol).map(drop)
    });
    recorder.record(Feature::InetSockets, tables.map(|()| true));
    // The child's own priority: it ends right after this.
    recorder.record(Feature::GiveWay, task::give_way(10).map(|()| true));
}

/// Looks for a socket of our own in the kernel's table.
fn find_unix_socket() -> Tried {
    let (socket, _peer) =
        std::os::unix::net::UnixStream::pair().map_err(|error| errno_of(&error))?;
    let inode = nix::sys::stat::fstat(&socket)?.st_ino;
    let inode = u32::try_from(inode).map_err(|_| Errno::EOVERFLOW)?;
    unix_diag::unix_socket(inode).map(|found| found.inode == inode)
}
