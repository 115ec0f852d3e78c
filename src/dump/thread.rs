//! Collects threads: registers, extended state, and what else the kernel keeps for each.

use nix::errno::Errno;
use nix::unistd::Pid;

use super::census::Census;
use super::error::CollectError;
use super::policy;
use crate::model::address::RemoteAddr;
use crate::model::id::{self, Bytes};
use crate::model::memory::MemoryPolicy;
use crate::model::signal::SignalStack;
use crate::model::thread::{Registers, Thread};
use crate::sys::ptrace::{self, Queue, RseqAnswer};
use crate::sys::signal::{self, STACK_SIZE};
use crate::sys::{procfs, task};
use crate::tracer::error::InjectError;
use crate::tracer::injection::{Call, Injector};
use crate::tracer::restart::{self, SYSCALL};
use crate::tracer::tree;

const PR_GET_PDEATHSIG: u64 = 2;
const PR_GET_TIMERSLACK: u64 = 30;
const PR_GET_TID_ADDRESS: u64 = 40;
const SS_DISABLE: u32 = 2;

/// What is done, for messages.
const READ_RSEQ: &str = "read the rseq registration";

/// Where in its part of the scratch page a thread's answers lie.
const TID_ADDRESS: usize = 64;
const DEATH_SIGNAL: usize = 72;
const POLICY_MODE: usize = 80;
const POLICY_NODES: usize = 88;

/// What a thread alone can tell.
#[derive(Clone, Debug, Default)]
pub(super) struct Answers {
    signal_stack: SignalStack,
    clear_child_tid: RemoteAddr,
    timer_slack: u64,
    parent_death_signal: i32,
    memory_policy: MemoryPolicy,
    /// Whether it has registered restartable sequences of which the kernel tells no more than that.
    rseq_is_untold: bool,
}

impl Answers {
    /// Whether it has registered restartable sequences that cannot be found.
    pub(super) const fn rseq_is_untold(&self) -> bool {
        self.rseq_is_untold
    }
}

/// Asks every thread of a process for what it alone can tell, in the order of the threads.
pub(super) fn ask(injector: &mut Injector<'_>) -> Result<Vec<Answers>, CollectError> {
    /// Either kind of failure, until it is known of whom.
    enum Failure {
        Inject(InjectError),
        Ask(usize, &'static str, Errno),
    }
    impl From<InjectError> for Failure {
        fn from(error: InjectError) -> Self {
            Self::Inject(error)
        }
    }

    let process = injector.process();
    let pid = process.pid;
    let tids: Vec<Pid> = process.threads.iter().map(|thread| thread.tid).collect();
    let is_untold = |tid: &Pid| match ptrace::rseq_configuration(*tid) {
        Ok(answer) => Ok(answer == RseqAnswer::Untold),
        Err(source) => Err(CollectError::Ask { operation: READ_RSEQ, pid: *tid, source }),
    };
    let untold: Vec<bool> = tids.iter().map(is_untold).collect::<Result<_, _>>()?;
    let mut answers = vec![Answers::default(); tids.len()];
    let outcome = injector.on_each_thread::<Failure>(
        &|area| {
            let at = |offset: u64| area.0 + offset;
            vec![
                Call::new(libc::SYS_sigaltstack, &[0, at(0)]),
                Call::new(libc::SYS_prctl, &[PR_GET_TID_ADDRESS, at(64)]),
                Call::new(libc::SYS_prctl, &[PR_GET_PDEATHSIG, at(72)]),
                Call::new(libc::SYS_prctl, &[PR_GET_TIMERSLACK]),
                policy::question(at(80), at(88), None),
                Call::new(libc::SYS_rseq, &ptrace::RSEQ_QUESTION),
            ]
        },
        &mut |thread, results, content| {
            let operations =
                ["read the signal stack", "read the tid address", "read the death signal"];
            for (result, operation) in results.iter().zip(operations) {
                result.map_err(|error| Failure::Ask(thread, operation, error))?;
            }
            let slack =
                results[3].map_err(|error| Failure::Ask(thread, "read the timer slack", error))?;
            let nodes = &content[POLICY_NODES..POLICY_NODES + policy::NODES_SIZE];
            let memory_policy = policy::answer(results[4], half(content, POLICY_MODE), nodes)
                .map_err(|error| Failure::Ask(thread, "read the memory policy", error))?;
            let rseq_is_untold = untold[thread]
                && ptrace::rseq_is_registered(results[5])
                    .map_err(|error| Failure::Ask(thread, "ask for the rseq area", error))?;
            let mut stack = [0; STACK_SIZE];
            stack.copy_from_slice(&content[..STACK_SIZE]);
            answers[thread] = Answers {
                signal_stack: signal::decode_stack(&stack),
                clear_child_tid: RemoteAddr(word(content, TID_ADDRESS)),
                timer_slack: slack,
                parent_death_signal: half(content, DEATH_SIGNAL),
                memory_policy,
                rseq_is_untold,
            };
            Ok(())
        },
    );
    match outcome {
        Ok(()) => Ok(answers),
        Err(Failure::Inject(source)) => Err(CollectError::Inject { pid, source }),
        Err(Failure::Ask(thread, operation, source)) => {
            Err(CollectError::Ask { operation, pid: tids[thread], source })
        }
    }
}

/// Puts a thread's record together. It must be where it will go on from.
pub(super) fn collect(
    process: &tree::Process,
    thread: &tree::Thread,
    answers: Answers,
    census: &Census,
) -> Result<Thread, CollectError> {
    let tid = thread.tid;
    let glimpse = census.glimpse(tid);
    let ask = |operation| move |source| CollectError::Ask { operation, pid: tid, source };
    let (robust_list, robust_list_length) =
        task::robust_list(tid).map_err(ask("read the robust futex list"))?;
    Ok(Thread {
        tid: census.recorded(tid).unwrap_or_default(),
        name: Bytes(procfs::name(tid)?),
        registers: registers(process, thread),
        xstate: ptrace::xstate(tid).map_err(ask("read the extended state"))?,
        blocked: thread.mask,
        pending: ptrace::pending_signals(tid, Queue::Thread)
            .map_err(ask("read the pending signals"))?,
        signal_stack: answers.signal_stack,
        robust_list,
        robust_list_length,
        rseq: ptrace::rseq_configuration(tid).map_err(ask(READ_RSEQ))?.told(),
        clear_child_tid: answers.clear_child_tid,
        affinity: task::affinity(tid).map_err(ask("read the CPU affinity"))?,
        scheduling: task::scheduling(tid).map_err(ask("read the scheduling policy"))?,
        io_priority: task::io_priority(tid).map_err(ask("read the I/O priority"))?,
        timer_slack: answers.timer_slack,
        parent_death_signal: answers.parent_death_signal,
        memory_policy: answers.memory_policy,
        store_bypass: glimpse.store_bypass,
        indirect_branch: glimpse.indirect_branch,
        early_machine_check: early_machine_check(glimpse.flags),
    })
}

/// The record of a main thread that has ended: what a restore begins with is that of `other`, and nothing
/// is left that the end of a thread would touch.
pub(super) fn ended(other: &Thread, tid: id::Pid, name: Bytes) -> Thread {
    Thread {
        tid,
        name,
        pending: Vec::new(),
        signal_stack: SignalStack { flags: SS_DISABLE, ..SignalStack::default() },
        robust_list: RemoteAddr::default(),
        rseq: None,
        clear_child_tid: RemoteAddr::default(),
        parent_death_signal: 0,
        ..other.clone()
    }
}

/// What PR_MCE_KILL has set, from the thread's flags in the kernel (include/linux/sched.h).
const fn early_machine_check(flags: u32) -> Option<bool> {
    const PF_MCE_PROCESS: u32 = 0x80;
    const PF_MCE_EARLY: u32 = 0x0800_0000;
    if flags & PF_MCE_PROCESS == 0 { None } else { Some(flags & PF_MCE_EARLY != 0) }
}

/// The registers of a thread, with a timed wait that it is about to go on with as it was when it was
/// caught inside of it.
fn registers(process: &tree::Process, thread: &tree::Thread) -> Registers {
    let mut instruction = [0; SYSCALL.len()];
    let next = RemoteAddr(thread.registers.rip);
    let at_system_call =
        process.memory.read(next, &mut instruction).is_ok() && instruction == SYSCALL;
    restart::recorded(&thread.registers, at_system_call).unwrap_or(thread.registers)
}

/// The little-endian word at `offset`.
pub(super) fn word(bytes: &[u8], offset: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(word)
}

/// The little-endian half word (a C int) at `offset`.
pub(super) fn half(bytes: &[u8], offset: usize) -> i32 {
    let mut half = [0; 4];
    half.copy_from_slice(&bytes[offset..offset + 4]);
    i32::from_le_bytes(half)
}
