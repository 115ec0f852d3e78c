//! What this kernel allows this user, found out by trying: each trial does the thing itself in a
//! forked child and tells how that went. Versions, sysctls and capabilities explain; they decide
//! nothing.
//!
//! It knows nothing of what rckpt does without a feature, nor of what an administrator can do.

mod memory;
mod namespaces;
mod tracing;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::ForkResult;
use serde::Serialize;
use thiserror::Error;

use super::clone;
use super::launch::{self, LaunchError};

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
    /// What /proc tells of another process's memory and timers (smaps, pagemap, timers).
    ReadProc,
    /// close_range, Linux 5.9.
    CloseRanges,
    /// The kernel's table of unix sockets (NETLINK_SOCK_DIAG).
    UnixSockets,
    /// The kernel's tables of TCP and UDP sockets.
    InetSockets,
    /// A lower priority, for processors and disks.
    GiveWay,
    /// An ipc namespace in the user namespace.
    IpcNamespace,
    /// System V IPC with chosen ids in that.
    ChosenIpcIds,
    /// Terminals of its own (devpts) in the mount namespace.
    MountTerminals,
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
        for group in [
            tracing::try_tracing,
            tracing::try_questions,
            namespaces::try_namespaces,
            namespaces::try_pids_in_place,
            memory::try_vdso,
            memory::try_memory,
        ] {
            trials.append(&mut in_child(group)?);
        }
        trials.append(&mut tracing::try_tracing_others()?);
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
        let mut trials = in_child(namespaces::try_namespaces)?;
        trials.append(&mut in_child(namespaces::try_pids_in_place)?);
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
const ALL: [Feature; 28] = [
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
    Feature::ReadProc,
    Feature::CloseRanges,
    Feature::UnixSockets,
    Feature::InetSockets,
    Feature::GiveWay,
    Feature::IpcNamespace,
    Feature::ChosenIpcIds,
    Feature::MountTerminals,
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
            | Feature::MembarrierRegistrations
            | Feature::ReadProc
            | Feature::CloseRanges
            | Feature::UnixSockets
            | Feature::InetSockets
            | Feature::GiveWay
            | Feature::IpcNamespace
            | Feature::ChosenIpcIds
            | Feature::MountTerminals => {}
        };
        ALL.into_iter().for_each(check);
        let mut sorted = ALL;
        sorted.sort_unstable();
        assert!(sorted.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
