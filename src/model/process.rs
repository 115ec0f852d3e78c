//! One process: its place in the tree, and what its threads share.

use serde::{Deserialize, Serialize};

use super::id::{Bytes, FdTableId, FsId, MmId, Pid};
use super::signal::{PendingSignal, SignalAction};
use super::thread::Thread;
use super::time::TimerSpec;

/// Whether a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessState {
    /// It runs or sleeps.
    Alive,
    /// Stopped by a job-control signal (Ctrl-Z).
    Stopped {
        /// The signal: SIGSTOP, SIGTSTP, SIGTTIN or SIGTTOU.
        signal: i32,
    },
    /// Ended, and not yet waited for.
    Zombie {
        /// The status that `wait4` will give.
        wait_status: i32,
    },
}

/// How a POSIX timer tells that it fired (`struct sigevent`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimerNotification {
    /// SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD or SIGEV_THREAD_ID, as /proc/pid/timers tells.
    pub method: i32,
    /// Signal number.
    pub signal: i32,
    /// `sigev_value`.
    pub value: u64,
    /// The thread told, with SIGEV_THREAD_ID.
    pub thread: Option<Pid>,
}

/// A timer made with `timer_create`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixTimer {
    /// The kernel's id for it.
    pub id: i32,
    /// CLOCK_*; CPU clocks of other tasks are refused at dump.
    pub clock: i32,
    /// What happens when it fires.
    pub notification: TimerNotification,
    /// Time left, and interval.
    pub timer: TimerSpec,
    /// Expirations missed so far (`timer_getoverrun`).
    pub overrun: i32,
}

/// A resource limit (`struct rlimit64`); `u64::MAX` is RLIM_INFINITY.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimit {
    /// RLIMIT_*.
    pub resource: u32,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// User and group identity, as seen in the job's user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Real, effective, saved and file-system user id.
    pub uids: [u32; 4],
    /// Real, effective, saved and file-system group id.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective, bounding and ambient capabilities.
    pub capabilities: [u64; 5],
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// PR_SET_SECUREBITS.
    pub secure_bits: u32,
}

/// A process and its threads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: Pid,
    /// Parent, in the job's numbering; a number that no process of the job has means outside.
    pub ppid: Pid,
    /// Process group; may be led by a process that has ended, or lies outside.
    pub pgid: Pid,
    /// Session; may be led by a process that has ended, or lies outside.
    pub sid: Pid,
    /// Signal that its parent gets when it ends: SIGCHLD, or as given to `clone`; 0: none.
    pub exit_signal: i32,
    /// Whether it runs.
    pub state: ProcessState,
    /// Threads, the main one first. Empty for a zombie.
    pub threads: Vec<Thread>,
    /// How the main thread ended, as wait(2) would tell, when others go on without it. Of its record
    /// the id and the name have a meaning then.
    pub main_ended: Option<i32>,
    /// Name (`comm`), also of a zombie.
    pub name: Bytes,
    /// Address space. Meaningless for a zombie.
    pub mm: MmId,
    /// Descriptors. Meaningless for a zombie.
    pub fd_table: FdTableId,
    /// Directories and umask. Meaningless for a zombie.
    pub fs: FsId,
    /// Whether its dispositions are those of its parent (CLONE_SIGHAND), whose memory it has, too.
    pub shares_actions: bool,
    /// Dispositions that differ from the default, ascending by signal.
    pub actions: Vec<SignalAction>,
    /// Signals queued for the process as a whole, oldest first.
    pub pending: Vec<PendingSignal>,
    /// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF: time left and interval.
    pub interval_timers: [TimerSpec; 3],
    /// POSIX timers, ascending by id.
    pub posix_timers: Vec<PosixTimer>,
    /// Resource limits, in the order of their numbers.
    pub limits: Vec<ResourceLimit>,
    /// Identity.
    pub credentials: Credentials,
    /// personality(2).
    pub personality: u32,
    /// PR_SET_CHILD_SUBREAPER.
    pub child_subreaper: bool,
    /// /proc/pid/oom_score_adj.
    pub oom_score_adj: i32,
    /// PR_SET_TSC.
    pub tsc_mode: u32,
    /// Whether the CPUID instruction raises SIGSEGV (ARCH_SET_CPUID).
    pub cpuid_faults: bool,
    /// Nice value of the scheduler's group that the session is (/proc/pid/autogroup), kept with the
    /// session's leader; `None` for others, and where there are no such groups.
    pub autogroup_nice: Option<i32>,
    /// Whether it leads a session with a controlling terminal that is the caller's own.
    pub controlling_terminal: bool,
}

impl Process {
    /// Whether it has ended.
    #[must_use]
    pub const fn is_zombie(&self) -> bool {
        matches!(self.state, ProcessState::Zombie { .. })
    }
}
