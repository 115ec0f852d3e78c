//! Trials of how a job could get its process ids and the like back: in namespaces of its own, and in place.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::{self, ForkResult, Pid};

use crate::sys::clone::{self, Fork};
use crate::sys::{launch, procfs};

use super::tracing::{end, sleeper};
use super::{Feature, Recorder, Tried, errno_of};

pub(super) fn try_namespaces(recorder: &mut Recorder) {
    let (uid, gid) = (unistd::getuid(), unistd::getgid());
    let enter_user = || {
        unshare(CloneFlags::CLONE_NEWUSER)?;
        let write = |name: &str, text: String| {
            fs::write(format!("/proc/self/{name}"), text).map_err(|error| errno_of(&error))
        };
        write("setgroups", "deny".to_owned())?;
        write("uid_map", format!("{uid} {uid} 1"))?;
        write("gid_map", format!("{gid} {gid} 1"))?;
        Ok(true)
    };
    if !recorder.record(Feature::UserNamespace, enter_user()) {
        return;
    }
    recorder.record(Feature::ExecutableLink, set_executable_link());
    let nothing: Option<&str> = None;
    let enter_mount = || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_SLAVE, nothing)?;
        Ok(true)
    };
    let mounts = recorder.record(Feature::MountNamespace, enter_mount());
    if mounts {
        recorder.record(Feature::MountTerminals, mount_terminals());
    }
    let separated = unshare(CloneFlags::CLONE_NEWIPC).map(|()| true);
    if recorder.record(Feature::IpcNamespace, separated) {
        let chosen = fs::write("/proc/sys/kernel/shm_next_id", "4711").map(|()| true);
        recorder.record(Feature::ChosenIpcIds, chosen.map_err(|error| errno_of(&error)));
    }
    let entered = unshare(CloneFlags::CLONE_NEWPID).map(|()| true);
    if !recorder.record(Feature::PidNamespace, entered) {
        return;
    }
    let first = match launch::fork() {
        Ok(ForkResult::Parent { child }) => child,
        Ok(ForkResult::Child) => {
            try_as_first_process(recorder, mounts);
            clone::exit_now(0)
        }
        Err(_) => return,
    };
    // Its records say how it went; how it ended says nothing more.
    waitpid(first, None).map(|_| ()).unwrap_or_default();
}

/// Mounts a new set of terminals, over those that there are, if there is a place.
fn mount_terminals() -> Tried {
    let place = Path::new("/dev/pts");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = Some("newinstance,ptmxmode=0666");
    mount(Some("devpts"), place, Some("devpts"), flags, options)?;
    Ok(place.join("ptmx").exists())
}

fn try_as_first_process(recorder: &mut Recorder, mounts: bool) {
    let nothing: Option<&str> = None;
    if mounts {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let mounted = mount(Some("proc"), "/proc", Some("proc"), flags, nothing).map(|()| true);
        recorder.record(Feature::MountProc, mounted);
    }
    recorder.record(Feature::ChosenPids, choose_pid(Pid::from_raw(4711)));
    let shift = || {
        unshare(CloneFlags::from_bits_retain(libc::CLONE_NEWTIME))?;
        fs::write("/proc/self/timens_offsets", "monotonic 100 0\nboottime 100 0\n")
            .map_err(|error| errno_of(&error))?;
        Ok(true)
    };
    recorder.record(Feature::TimeNamespace, shift());
}

/// Forks a process under a chosen number.
fn choose_pid(wanted: Pid) -> Tried {
    match clone::fork(0, libc::SIGCHLD, Some(wanted.as_raw())) {
        Ok(Fork::Child) => clone::exit_now(0),
        Ok(Fork::Parent(child)) => {
            waitpid(child, None)?;
            Ok(child == wanted)
        }
        Err(error) => Err(errno_of(&error)),
    }
}

pub(super) fn try_pids_in_place(recorder: &mut Recorder) {
    // The number of a process that has just ended is free, in all likelihood.
    let outcome = sleeper().and_then(|pid| end(pid).map(|()| pid)).and_then(choose_pid);
    recorder.record(Feature::ChosenPidsInPlace, outcome);
}

/// The kernel's `struct prctl_mm_map` (include/uapi/linux/prctl.h).
#[repr(C)]
#[derive(Default)]
struct MemoryLayout {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

/// Asks for another /proc/self/exe. The kernel checks the right to do so first, and then says EBUSY
/// because our own executable is still mapped: that is as far as a process with code can go.
fn set_executable_link() -> Tried {
    let stat = procfs::stat(unistd::getpid()).map_err(|_| Errno::ENOENT)?;
    let file = File::open("/proc/self/exe").map_err(|error| errno_of(&error))?;
    // SAFETY: brk(2) with 0 changes nothing and gives the present end.
    let brk = unsafe { libc::syscall(libc::SYS_brk, 0) };
    let layout = MemoryLayout {
        start_code: stat.startcode,
        end_code: stat.endcode,
        start_data: stat.start_data.unwrap_or_default(),
        end_data: stat.end_data.unwrap_or_default(),
        start_brk: stat.start_brk.unwrap_or_default(),
        brk: brk.cast_unsigned(),
        start_stack: stat.startstack,
        arg_start: stat.arg_start.unwrap_or_default(),
        arg_end: stat.arg_end.unwrap_or_default(),
        env_start: stat.env_start.unwrap_or_default(),
        env_end: stat.env_end.unwrap_or_default(),
        exe_fd: file.as_raw_fd().unsigned_abs(),
        ..MemoryLayout::default()
    };
    // SAFETY: the kernel reads one structure of the given size; the addresses in it are the present
    // ones, so nothing changes but the executable, if that.
    let answer = unsafe {
        libc::prctl(
            libc::PR_SET_MM,
            libc::PR_SET_MM_MAP,
            &raw const layout,
            size_of::<MemoryLayout>(),
            0,
        )
    };
    match Errno::result(answer) {
        Ok(_) | Err(Errno::EBUSY) => Ok(true),
        Err(errno) => Err(errno),
    }
}
