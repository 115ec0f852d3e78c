//! What this kernel allows this user, found out by trying: each trial does the thing itself in a
//! forked child and tells how that went. Versions, sysctls and capabilities explain; they decide
//! nothing.
//!
//! It knows nothing of what rckpt does without a feature, nor of what an administrator can do.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{self, ForkResult, Pid};
use serde::Serialize;
use thiserror::Error;

use crate::model::number::{PAGE_SIZE, to_u64, to_usize};

use super::clone::{self, Fork};
use super::descriptor::{self, Shared};
use super::launch::{self, LaunchError};
use super::{procfs, ptrace, write_watch};

/// How long one child may take for its trials.
const PATIENCE: Duration = Duration::from_secs(5);

/// Something that a kernel may or may not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// PTRACE_SEIZE and PTRACE_INTERRUPT of a child.
    TraceDescendants,
    /// The same of a process that is no descendant (Yama).
    TraceOthers,
    /// PTRACE_GET_RSEQ_CONFIGURATION, Linux 5.13.
    RseqConfiguration,
    /// process_vm_readv.
    ReadMemory,
    /// pidfd_getfd, Linux 5.6.
    TakeDescriptors,
    /// kcmp.
    CompareDescriptors,
    /// A user namespace with one's own ids mapped into it.
    UserNamespace,
    /// A mount namespace in it.
    MountNamespace,
    /// A pid namespace in it.
    PidNamespace,
    /// A fresh /proc in that.
    MountProc,
    /// clone3 with chosen process ids in that.
    ChosenPids,
    /// A time namespace with shifted clocks in that.
    TimeNamespace,
    /// PR_SET_MM_MAP with a new /proc/self/exe in that.
    ExecutableLink,
    /// clone3 with chosen process ids outside any new namespace.
    ChosenPidsInPlace,
    /// ARCH_MAP_VDSO_64.
    MapVdso,
    /// PR_TIMER_CREATE_RESTORE_IDS, Linux 6.15.
    TimerIds,
    /// PAGEMAP_SCAN, Linux 6.7.
    ScanPages,
    /// userfaultfd with asynchronous write protection, Linux 6.7.
    TrackWrites,
    /// The soft-dirty bit in /proc/self/pagemap.
    SoftDirty,
    /// MEMBARRIER_CMD_GET_REGISTRATIONS, Linux 6.3.
    MembarrierRegistrations,
}

/// How a trial went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trial {
    /// It worked.
    Works,
    /// The kernel said no, with this error number.
    Refused(i32),
    /// The calls succeeded without the effect that they should have.
    Ineffective,
    /// It was not tried, because something that it needs does not work, or the child ended.
    Untried,
}

/// What this machine allows this user.
#[derive(Clone, Debug, Serialize)]
pub struct Features {
    /// Kernel release (`uname -r`).
    pub kernel: String,
    /// /proc/sys/kernel/yama/ptrace_scope; `None` without Yama.
    pub yama_scope: Option<u32>,
    /// How each trial went.
    pub trials: BTreeMap<Feature, Trial>,
}

/// Why nothing could be tried.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// No child could be forked.
    #[error(transparent)]
    Fork(#[from] LaunchError),
    /// A call that the trials need failed.
    #[error("{operation}: {source}")]
    Prepare {
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

impl Features {
    /// Tries everything. The calling process must have a single thread.
    ///
    /// # Errors
    /// When children cannot be forked or waited for.
    pub fn probe() -> Result<Self, ProbeError> {
        let mut trials = BTreeMap::new();
        for group in [try_tracing, try_namespaces, try_pids_in_place, try_vdso, try_memory] {
            trials.append(&mut in_child(group)?);
        }
        trials.append(&mut try_tracing_others()?);
        let release = nix::sys::utsname::uname()
            .map_err(|source| ProbeError::Prepare { operation: "uname", source })?;
        let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
        Ok(Self {
            kernel: release.release().to_string_lossy().into_owned(),
            yama_scope: scope.ok().and_then(|text| text.trim().parse().ok()),
            trials,
        })
    }

    /// Tries only what decides whether a job can get its process ids back, which takes milliseconds. The
    /// calling process must have a single thread.
    ///
    /// # Errors
    /// When children cannot be forked or waited for.
    pub fn probe_identity() -> Result<BTreeMap<Feature, Trial>, ProbeError> {
        let mut trials = in_child(try_namespaces)?;
        trials.append(&mut in_child(try_pids_in_place)?);
        Ok(trials)
    }

    /// How the trial of `feature` went.
    #[must_use]
    pub fn trial(&self, feature: Feature) -> Trial {
        self.trials.get(&feature).copied().unwrap_or(Trial::Untried)
    }

    /// Whether `feature` works.
    #[must_use]
    pub fn works(&self, feature: Feature) -> bool {
        self.trial(feature) == Trial::Works
    }
}

/// How a child tells what it tried: one record of five bytes a trial.
struct Recorder {
    pipe: File,
}

/// The features that are tried, in the order of their numbers in a record.
const ALL: [Feature; 20] = [
    Feature::TraceDescendants,
    Feature::TraceOthers,
    Feature::RseqConfiguration,
    Feature::ReadMemory,
    Feature::TakeDescriptors,
    Feature::CompareDescriptors,
    Feature::UserNamespace,
    Feature::MountNamespace,
    Feature::PidNamespace,
    Feature::MountProc,
    Feature::ChosenPids,
    Feature::TimeNamespace,
    Feature::ExecutableLink,
    Feature::ChosenPidsInPlace,
    Feature::MapVdso,
    Feature::TimerIds,
    Feature::ScanPages,
    Feature::TrackWrites,
    Feature::SoftDirty,
    Feature::MembarrierRegistrations,
];
/// In place of an error number: no error, and no effect either.
const NO_EFFECT: i32 = -1;

/// What a trial found: an error number of 0 is none.
type Tried = Result<bool, Errno>;

impl Recorder {
    /// Records how a trial went; `Ok(false)` means without effect. Gives whether it worked.
    fn record(&mut self, feature: Feature, outcome: Tried) -> bool {
        let number = match outcome {
            Ok(true) => 0,
            Ok(false) => NO_EFFECT,
            Err(errno) => errno as i32,
        };
        let index = ALL.iter().position(|known| *known == feature);
        let mut bytes = vec![index.and_then(|index| u8::try_from(index).ok()).unwrap_or(u8::MAX)];
        bytes.extend_from_slice(&number.to_le_bytes());
        // A record that cannot be written reads as a trial not made.
        self.pipe.write_all(&bytes).is_ok() && number == 0
    }
}

/// Lets a child try, and reads what it tells until it ends or time is over.
fn in_child(group: fn(&mut Recorder)) -> Result<BTreeMap<Feature, Trial>, ProbeError> {
    let preparing = |operation| move |source| ProbeError::Prepare { operation, source };
    let (mut records, pipe) = io::pipe().map_err(|error| preparing("pipe")(errno_of(&error)))?;
    let child = match launch::fork()? {
        ForkResult::Child => {
            drop(records);
            group(&mut Recorder { pipe: OwnedFd::from(pipe).into() });
            clone::exit_now(0)
        }
        ForkResult::Parent { child } => child,
    };
    drop(pipe);
    let deadline = Instant::now() + PATIENCE;
    let mut trials = BTreeMap::new();
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        let mut ready = [PollFd::new(std::os::fd::AsFd::as_fd(&records), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut ready, timeout) {
            Ok(0) => break,
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(source) => return Err(preparing("poll")(source)),
        }
        let mut record = [0; 5];
        if records.read_exact(&mut record).is_err() {
            break;
        }
        let [index, number @ ..] = record;
        let Some(feature) = ALL.get(usize::from(index)) else { continue };
        let trial = match i32::from_le_bytes(number) {
            0 => Trial::Works,
            NO_EFFECT => Trial::Ineffective,
            errno => Trial::Refused(errno),
        };
        trials.insert(*feature, trial);
    }
    kill(child, Signal::SIGKILL).map_err(preparing("kill"))?;
    waitpid(child, None).map_err(preparing("wait"))?;
    Ok(trials)
}

/// A process that only waits, and ends with its parent.
fn sleeper() -> Result<Pid, Errno> {
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

fn end(sleeper: Pid) -> Result<(), Errno> {
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

fn try_tracing(recorder: &mut Recorder) {
    let pid = match sleeper() {
        Ok(pid) => pid,
        Err(errno) => {
            recorder.record(Feature::TraceDescendants, Err(errno));
            return;
        }
    };
    let mut rseq = Err(Errno::EPERM);
    let traced = trace(pid, &mut || rseq = ptrace::rseq_configuration(pid).map(|_| true));
    if recorder.record(Feature::TraceDescendants, traced) {
        recorder.record(Feature::RseqConfiguration, rseq);
    }
    recorder.record(Feature::ReadMemory, read_memory(pid));
    let number = recorder.pipe.as_raw_fd();
    let taken = descriptor::pidfd_open(pid)
        .and_then(|pidfd| descriptor::pidfd_getfd(pidfd, number).map(|_| true));
    recorder.record(Feature::TakeDescriptors, taken);
    let compared = descriptor::compare_tasks(Shared::Descriptors, unistd::getpid(), pid);
    recorder.record(Feature::CompareDescriptors, compared.map(|order| order.is_ne()));
    recorder.record(Feature::TimerIds, Ok(clone::timer_ids_can_be_chosen()));
    let registrations: libc::c_int = 1 << 9;
    // SAFETY: this command of membarrier takes no pointers.
    let answer = unsafe { libc::syscall(libc::SYS_membarrier, registrations, 0, 0) };
    recorder.record(Feature::MembarrierRegistrations, Errno::result(answer).map(|_| true));
    // A sleeper that stays behind ends with this process.
    end(pid).unwrap_or_default();
}

/// Whether a process that is no descendant of the tracer can be traced: two children of ours.
fn try_tracing_others() -> Result<BTreeMap<Feature, Trial>, ProbeError> {
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

fn try_namespaces(recorder: &mut Recorder) {
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

fn try_pids_in_place(recorder: &mut Recorder) {
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

/// Maps a vDSO where there is none: ours is taken away first.
fn try_vdso(recorder: &mut Recorder) {
    const ARCH_MAP_VDSO_64: libc::c_int = 0x2003;
    let Ok(mappings) = procfs::mappings(unistd::getpid()) else { return };
    let ours = |path: &[u8]| path == b"[vdso]" || path.starts_with(b"[vvar");
    let mut lowest = None;
    for mapping in mappings.iter().filter(|mapping| ours(&mapping.path)) {
        let start = lowest.get_or_insert(mapping.range.start.0);
        *start = (*start).min(mapping.range.start.0);
        // SAFETY: nothing in this child uses the vDSO any more: it does not ask for the time.
        let gone =
            unsafe { libc::syscall(libc::SYS_munmap, mapping.range.start.0, mapping.range.len()) };
        if let Err(errno) = Errno::result(gone) {
            recorder.record(Feature::MapVdso, Err(errno));
            return;
        }
    }
    let Some(address) = lowest else { return };
    // SAFETY: the addresses have just been freed, so nothing is mapped over.
    let answer = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_MAP_VDSO_64, address) };
    recorder.record(Feature::MapVdso, Errno::result(answer).map(|size| size > 0));
}

/// Two pages of our own memory, both written to.
struct Pages {
    start: *mut u8,
}

impl Pages {
    fn new() -> Result<Self, Errno> {
        // SAFETY: a new mapping anywhere harms nothing.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                to_usize(2 * PAGE_SIZE),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let pages = Self { start: start.cast() };
        pages.write(0);
        pages.write(1);
        Ok(pages)
    }

    fn address(&self) -> u64 {
        to_u64(self.start.addr())
    }

    fn write(&self, page: u64) {
        // SAFETY: the mapping has two pages and `page` is 0 or 1; it is never unmapped.
        unsafe { self.start.add(to_usize(page * PAGE_SIZE)).write_volatile(1) }
    }

    /// What /proc/self/pagemap says of both.
    fn entries(&self) -> Result<[u64; 2], Errno> {
        let file = File::open("/proc/self/pagemap").map_err(|error| errno_of(&error))?;
        let mut bytes = [0; 16];
        file.read_exact_at(&mut bytes, self.address() / PAGE_SIZE * 8)
            .map_err(|error| errno_of(&error))?;
        let entry =
            |at: usize| bytes[at..].first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk));
        Ok([entry(0), entry(8)])
    }
}

fn try_memory(recorder: &mut Recorder) {
    let scan = super::memory::PageMap::open(unistd::getpid())
        .map(|map| map.scans())
        .map_err(|error| errno_of(&error));
    recorder.record(Feature::ScanPages, scan);
    recorder.record(Feature::SoftDirty, find_soft_dirty());
    recorder.record(Feature::TrackWrites, write_watch::works());
}

/// Clears the soft-dirty bits, writes to one of two pages, and looks whether just that one has it.
/// Kernels built without it accept the first step silently.
fn find_soft_dirty() -> Tried {
    const SOFT_DIRTY: u64 = 1 << 55;
    let pages = Pages::new()?;
    fs::write("/proc/self/clear_refs", "4").map_err(|error| errno_of(&error))?;
    pages.write(1);
    let [first, second] = pages.entries()?;
    Ok(first & SOFT_DIRTY == 0 && second & SOFT_DIRTY != 0)
}

fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::{ALL, Feature};

    #[test]
    fn every_feature_is_tried() {
        let check = |feature: Feature| match feature {
            // A new variant fails to compile here, as a reminder to add it to the array, too.
            Feature::TraceDescendants
            | Feature::TraceOthers
            | Feature::RseqConfiguration
            | Feature::ReadMemory
            | Feature::TakeDescriptors
            | Feature::CompareDescriptors
            | Feature::UserNamespace
            | Feature::MountNamespace
            | Feature::PidNamespace
            | Feature::MountProc
            | Feature::ChosenPids
            | Feature::TimeNamespace
            | Feature::ExecutableLink
            | Feature::ChosenPidsInPlace
            | Feature::MapVdso
            | Feature::TimerIds
            | Feature::ScanPages
            | Feature::TrackWrites
            | Feature::SoftDirty
            | Feature::MembarrierRegistrations => {}
        };
        ALL.into_iter().for_each(check);
        let mut sorted = ALL;
        sorted.sort_unstable();
        assert!(sorted.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
