//! One thread: registers and whatever else the kernel keeps per task.

use serde::{Deserialize, Serialize};

use super::address::RemoteAddr;
use super::id::{Bytes, Pid};
use super::memory::MemoryPolicy;
use super::signal::{PendingSignal, SignalSet, SignalStack};

/// The general registers, in the order and meaning of `struct user_regs_struct` on x86_64, as they
/// must be when the thread goes on. A thread that was caught inside a system call still has its
/// number in `orig_rax` and the kernel's private restart code in `rax`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // The names are the architecture's own.
pub struct Registers {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}

/// A registration with `rseq(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rseq {
    /// Address of the thread's `struct rseq`.
    pub area: RemoteAddr,
    /// Its registered length in bytes.
    pub length: u32,
    /// The signature expected before abort handlers.
    pub signature: u32,
    /// Registration flags.
    pub flags: u32,
}

/// How the scheduler treats a thread (`struct sched_attr`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduling {
    /// SCHED_OTHER, SCHED_BATCH, SCHED_IDLE, SCHED_FIFO, SCHED_RR, SCHED_DEADLINE.
    pub policy: u32,
    /// SCHED_FLAG_* bits.
    pub flags: u64,
    /// Nice value, -20..=19.
    pub nice: i32,
    /// Static priority of the real-time policies.
    pub priority: u32,
    /// SCHED_DEADLINE runtime, nanoseconds.
    pub runtime: u64,
    /// SCHED_DEADLINE deadline, nanoseconds.
    pub deadline: u64,
    /// SCHED_DEADLINE period, nanoseconds.
    pub period: u64,
    /// Least utilisation that the thread is taken to have, of 1024 (uclamp).
    pub util_min: u32,
    /// Most utilisation, likewise; 0 on a kernel without this.
    pub util_max: u32,
}

/// A thread of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    /// Thread id in the job's numbering; the main thread's equals the process id.
    pub tid: Pid,
    /// Name (`comm`), at most 15 bytes.
    pub name: Bytes,
    /// General registers.
    pub registers: Registers,
    /// The XSAVE area in the standard (not compacted) format, as NT_X86_XSTATE gives it. Its
    /// `xstate_bv` and the layout facts in [`super::job::Machine`] say what is inside.
    pub xstate: Vec<u8>,
    /// Blocked signals, outside any temporary mask of the call that the thread is in.
    pub blocked: SignalSet,
    /// Signals queued for this thread alone.
    pub pending: Vec<PendingSignal>,
    /// Alternate signal stack.
    pub signal_stack: SignalStack,
    /// Head of the robust futex list, and the length registered with it.
    pub robust_list: RemoteAddr,
    /// Length given to `set_robust_list`, normally 24.
    pub robust_list_length: u64,
    /// Restartable sequences, when registered.
    pub rseq: Option<Rseq>,
    /// Where the kernel stores zero and wakes a futex when the thread ends (`set_tid_address`).
    pub clear_child_tid: RemoteAddr,
    /// CPUs it may run on: the kernel's bit mask, low CPUs first.
    pub affinity: Vec<u8>,
    /// Scheduling policy and nice value.
    pub scheduling: Scheduling,
    /// I/O priority (`ioprio_get`).
    pub io_priority: i32,
    /// Timer slack in nanoseconds.
    pub timer_slack: u64,
    /// Signal sent when the thread's parent dies (PR_SET_PDEATHSIG); 0: none.
    pub parent_death_signal: i32,
    /// From which NUMA nodes its memory is taken (`set_mempolicy`).
    pub memory_policy: MemoryPolicy,
    /// PR_SPEC_* bit of PR_SPEC_STORE_BYPASS that it has set; 0: none.
    pub store_bypass: u32,
    /// PR_SPEC_* bit of PR_SPEC_INDIRECT_BRANCH that it has set; 0: none.
    pub indirect_branch: u32,
    /// Whether a memory error kills it early (PR_MCE_KILL); `None`: as the system has it.
    pub early_machine_check: Option<bool>,
}
