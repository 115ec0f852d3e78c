//! Collects processes: what their threads share, but for memory and files.

use nix::unistd::Pid;

use super::bounds;
use super::census::{Census, Member};
use super::error::CollectError;
use super::form::Form;
use super::refusal::{Obstacle, StateRefusal};
use super::thread::{self, Answers, half, word};
use crate::model::address::{AddrRange, RemoteAddr};
use crate::model::id::{Bytes, FdTableId, FsId, MmId};
use crate::model::memory::MemoryPolicy;
use crate::model::number::{as_signed, to_usize};
use crate::model::process::{Credentials, PosixTimer, Process, ProcessState, TimerNotification};
use crate::model::signal::SignalAction;
use crate::model::time::{TimeSpec, TimerSpec};
use crate::sys::procfs::{self, Status, TimerEntry};
use crate::sys::ptrace::{self, Queue};
use crate::sys::signal::{self, ACTION_SIZE, SET_SIZE};
use crate::sys::task;
use crate::tracer::injection::{Call, Injector, SCRATCH_SIZE};
use crate::tracer::tree;

const PR_GET_DUMPABLE: u64 = 3;
const PR_GET_TSC: u64 = 25;
const PR_GET_SECUREBITS: u64 = 27;
const PR_GET_CHILD_SUBREAPER: u64 = 37;
const PR_GET_THP_DISABLE: u64 = 42;
const PR_GET_MDWE: u64 = 66;
const PR_GET_MEMORY_MERGE: u64 = 68;
const MEMBARRIER_CMD_GET_REGISTRATIONS: u64 = 1 << 9;

const PR_SPEC_STORE_BYPASS: u64 = 0;
const PR_SPEC_L1D_FLUSH: u64 = 2;
const ARCH_GET_CPUID: u64 = 0x1011;

/// Bytes of a `struct itimerval` and of a `struct itimerspec`.
const TIMER_SIZE: usize = 32;

const SA_NOCLDSTOP: u64 = 1;
const SA_NOCLDWAIT: u64 = 2;

/// SIGEV_THREAD_ID of include/uapi/asm-generic/siginfo.h.
const SIGEV_THREAD_ID: i32 = 4;

/// What a process alone can tell.
#[derive(Clone, Debug, Default)]
pub(super) struct Insight {
    /// Each thread's answers.
    pub threads: Vec<Answers>,
    /// Its address space's.
    pub memory: MemoryInsight,
    /// Mappings that have memory policies of their own, where it was asked for them.
    pub policies: Option<Vec<(AddrRange, MemoryPolicy)>>,
    actions: Vec<SignalAction>,
    interval_timers: [TimerSpec; 3],
    posix_timers: Vec<PosixTimer>,
    child_subreaper: bool,
    tsc_mode: u32,
    cpuid_faults: bool,
    secure_bits: u32,
}

/// What a process alone can tell of its address space.
#[derive(Clone, Debug, Default)]
pub(super) struct MemoryInsight {
    /// The end of the heap.
    pub brk: RemoteAddr,
    /// PR_GET_DUMPABLE.
    pub dumpable: u32,
    /// PR_GET_THP_DISABLE.
    pub thp_disabled: u32,
    /// PR_GET_MDWE.
    pub mdwe: u32,
    /// PR_GET_MEMORY_MERGE.
    pub memory_merge: bool,
    /// Commands registered with membarrier(2).
    pub membarrier: u32,
}

/// Asks a process for everything that it alone can tell.
pub(super) fn ask(
    injector: &mut Injector<'_>,
    status: &Status,
    census: &Census,
    obstacles: &mut Vec<Obstacle>,
) -> Result<Insight, CollectError> {
    let threads = thread::ask(injector)?;
    let process = injector.process();
    for (thread, answers) in process.threads.iter().zip(&threads) {
        if answers.rseq_is_untold() {
            let kind = StateRefusal::RseqUntold(thread.tid);
            obstacles.push(Obstacle::State { pid: process.pid, kind });
        }
    }
    let mut form = Form::new(injector);
    let dumpable = form.number("read dumpable", prctl(PR_GET_DUMPABLE));
    let thp_disabled = form.number("read THP disable", prctl(PR_GET_THP_DISABLE));
    // Younger than the oldest kernel supported; what a kernel does not know is not set.
    let mdwe = form.number("read MDWE", prctl(PR_GET_MDWE));
    let memory_merge = form.number("read memory merging", prctl(PR_GET_MEMORY_MERGE));
    let registrations = Call::new(libc::SYS_membarrier, &[MEMBARRIER_CMD_GET_REGISTRATIONS]);
    let membarrier = form.number("read the memory barriers", registrations);
    let cpuid_faults =
        form.number("read the CPUID faulting", Call::new(libc::SYS_arch_prctl, &[ARCH_GET_CPUID]));
    let secure_bits = form.number("read the secure bits", prctl(PR_GET_SECUREBITS));
    let [bypass, flushing] = [PR_SPEC_STORE_BYPASS, PR_SPEC_L1D_FLUSH].map(|which| {
        let option = u64::from(libc::PR_GET_SPECULATION_CTRL.unsigned_abs());
        form.number("read the speculation", Call::new(libc::SYS_prctl, &[option, which, 0, 0, 0]))
    });
    let brk = form.number("read the break", Call::new(libc::SYS_brk, &[0]));
    let tsc_mode = form
        .structure("read the TSC mode", 4, |area| Call::new(libc::SYS_prctl, &[PR_GET_TSC, area]));
    let subreaper = form.structure("read the subreaper flag", 4, |area| {
        Call::new(libc::SYS_prctl, &[PR_GET_CHILD_SUBREAPER, area])
    });
    let interval_timers = [0, 1, 2].map(|which| {
        form.structure("read an interval timer", TIMER_SIZE, |area| {
            Call::new(libc::SYS_getitimer, &[which, area])
        })
    });
    let actions: Vec<_> = asked_actions(status)
        .map(|number| {
            let call =
                |area| Call::new(libc::SYS_rt_sigaction, &[u64::from(number), 0, area, SET_SIZE]);
            (number, form.structure("read a signal action", ACTION_SIZE, call))
        })
        .collect();
    let bounds = bounds::ask(&mut form, status);
    let answers = form.ask(injector)?;

    let known = |number| answers.known(number).unwrap_or_default();
    let pid = injector.process().task();
    for what in unsaved_speculation(known(bypass), known(flushing)) {
        obstacles.push(Obstacle::State { pid, kind: StateRefusal::Speculation(what) });
    }
    let kept = bounds::judge(&bounds, &answers);
    obstacles.extend(kept.into_iter().map(|kind| Obstacle::State { pid, kind }));
    let mut timers = [TimerSpec::default(); 3];
    for (timer, structure) in timers.iter_mut().zip(interval_timers) {
        *timer = awaiting_delivery(decode_interval_timer(answers.structure(structure)?));
    }
    let mut saved_actions = Vec::new();
    for (number, structure) in actions {
        saved_actions.extend(saved_action(number, answers.structure(structure)?, status));
    }
    Ok(Insight {
        threads,
        memory: MemoryInsight {
            brk: RemoteAddr(answers.number(brk)?),
            dumpable: low_half(answers.number(dumpable)?),
            thp_disabled: low_half(answers.number(thp_disabled)?),
            mdwe: low_half(known(mdwe)),
            memory_merge: known(memory_merge) != 0,
            membarrier: low_half(known(membarrier)),
        },
        policies: None,
        actions: saved_actions,
        interval_timers: timers,
        posix_timers: posix_timers(injector, census, obstacles)?,
        child_subreaper: half(answers.structure(subreaper)?, 0) != 0,
        tsc_mode: half(answers.structure(tsc_mode)?, 0).cast_unsigned(),
        cpuid_faults: answers.known(cpuid_faults) == Some(0),
        secure_bits: low_half(answers.number(secure_bits)?),
    })
}

/// Settings of PR_SET_SPECULATION_CTRL that /proc does not tell, and that a restore does not make, by what
/// PR_GET_SPECULATION_CTRL says of store bypass and of the flushing of the L1D cache.
fn unsaved_speculation(bypass: u64, flushing: u64) -> impl Iterator<Item = &'static str> {
    const PR_SPEC_DISABLE_NOEXEC: u32 = 1 << 4;
    const FLUSHED: u32 = libc::PR_SPEC_PRCTL | libc::PR_SPEC_ENABLE;
    let bypass = (low_half(bypass) & PR_SPEC_DISABLE_NOEXEC != 0)
        .then_some("speculative store bypass, until exec");
    let flushing = (low_half(flushing) & FLUSHED == FLUSHED).then_some("flushing of the L1D cache");
    bypass.into_iter().chain(flushing)
}

/// The signals whose disposition may not be the default.
fn asked_actions(status: &Status) -> impl Iterator<Item = u32> {
    let child = libc::SIGCHLD.cast_unsigned();
    // Zombies can be declined with the default action, too.
    (1..=64).filter(move |number| is_changed(*number, status) || *number == child)
}

fn is_changed(number: u32, status: &Status) -> bool {
    status.caught.contains(number) || status.ignored.contains(number)
}

/// A disposition by what the kernel says of it, unless it is the default.
fn saved_action(number: u32, content: &[u8], status: &Status) -> Option<SignalAction> {
    let mut raw = [0; ACTION_SIZE];
    raw.copy_from_slice(content);
    let action = signal::decode_action(number, &raw);
    let saved = is_changed(number, status) || action.flags & (SA_NOCLDSTOP | SA_NOCLDWAIT) != 0;
    saved.then_some(action)
}

/// Two `struct timeval`: microseconds.
fn decode_interval_timer(content: &[u8]) -> TimerSpec {
    let time = |offset: usize| TimeSpec {
        seconds: as_signed(word(content, offset)),
        nanoseconds: as_signed(word(content, offset + 8)) * 1000,
    };
    TimerSpec { interval: time(0), value: time(16) }
}

/// Two `struct timespec`.
fn decode_timer(content: &[u8]) -> TimerSpec {
    let time = |offset: usize| TimeSpec {
        seconds: as_signed(word(content, offset)),
        nanoseconds: as_signed(word(content, offset + 8)),
    };
    TimerSpec { interval: time(0), value: time(16) }
}

/// Asks for the POSIX timers, of which there may be any number.
fn posix_timers(
    injector: &mut Injector<'_>,
    census: &Census,
    obstacles: &mut Vec<Obstacle>,
) -> Result<Vec<PosixTimer>, CollectError> {
    let pid = injector.process().task();
    let mut known = Vec::new();
    for entry in procfs::timers(pid)? {
        let mut refuse = |kind| obstacles.push(Obstacle::State { pid, kind });
        let Some(clock) = own_clock(entry.clock, &injector.process().threads, census) else {
            refuse(StateRefusal::Timer { id: entry.id, clock: entry.clock });
            continue;
        };
        let Some(notification) = notification(&entry, census) else {
            refuse(StateRefusal::TimerThread { id: entry.id, tid: entry.target });
            continue;
        };
        known.push((entry.id, clock, notification));
    }
    let mut timers = Vec::with_capacity(known.len());
    for part in known.chunks(to_usize(SCRATCH_SIZE) / TIMER_SIZE) {
        let mut form = Form::new(injector);
        let questions: Vec<_> = part
            .iter()
            .map(|(id, ..)| {
                let id = u64::from(id.unsigned_abs());
                let timer = form.structure("read a timer", TIMER_SIZE, |area| {
                    Call::new(libc::SYS_timer_gettime, &[id, area])
                });
                let overrun = form.number(
                    "read the overrun of a timer",
                    Call::new(libc::SYS_timer_getoverrun, &[id]),
                );
                (timer, overrun)
            })
            .collect();
        let answers = form.ask(injector)?;
        for ((id, clock, notification), (timer, overrun)) in part.iter().zip(questions) {
            timers.push(PosixTimer {
                id: *id,
                clock: *clock,
                notification: *notification,
                timer: decode_timer(answers.structure(timer)?),
                overrun: low_half(answers.number(overrun)?).cast_signed(),
            });
        }
    }
    Ok(timers)
}

/// Puts the record of a living process together. Memory and files are filled in by who knows them.
pub(super) fn collect(
    member: &Member,
    process: &tree::Process,
    insight: Insight,
    census: &Census,
) -> Result<Process, CollectError> {
    let pid = process.pid;
    let ask = |operation| move |source| CollectError::Ask { operation, pid, source };
    let stat = procfs::stat(pid)?;
    let mut limits = Vec::new();
    for resource in 0..task::RESOURCES {
        limits.push(task::limit(pid, resource).map_err(ask("read the resource limits"))?);
    }
    let mut threads = Vec::with_capacity(process.threads.len());
    for (thread, answers) in process.threads.iter().zip(insight.threads) {
        threads.push(thread::collect(process, thread, answers, census)?);
    }
    let main_ended = process.main_has_ended().then(|| stat.exit_code.unwrap_or_default());
    if main_ended.is_some()
        && let Some(other) = threads.first()
    {
        threads.insert(0, thread::ended(other, member.recorded(), Bytes(procfs::name(pid)?)));
    }
    let status = &member.status;
    Ok(Process {
        pid: member.recorded(),
        ppid: census.parent(member)?,
        pgid: member.group(),
        sid: member.session(),
        exit_signal: stat.exit_signal.unwrap_or(libc::SIGCHLD),
        state: match process.group_stop() {
            Some(signal) => ProcessState::Stopped { signal },
            None => ProcessState::Alive,
        },
        threads,
        main_ended,
        name: Bytes(procfs::name(pid)?),
        mm: MmId::default(),
        fd_table: FdTableId::default(),
        fs: FsId::default(),
        shares_actions: census.shares_actions(member),
        actions: insight.actions,
        pending: ptrace::pending_signals(process.task(), Queue::Process)
            .map_err(ask("read the pending signals"))?,
        interval_timers: insight.interval_timers,
        posix_timers: insight.posix_timers,
        limits,
        credentials: Credentials {
            uids: status.uids,
            gids: status.gids,
            groups: status.groups.clone(),
            capabilities: status.capabilities,
            no_new_privs: status.no_new_privs,
            secure_bits: insight.secure_bits,
        },
        personality: low_half(
            procfs::single_number(process.task(), "personality", 16)?.cast_unsigned(),
        ),
        child_subreaper: insight.child_subreaper,
        oom_score_adj: oom_score_adj(pid)?,
        tsc_mode: insight.tsc_mode,
        cpuid_faults: insight.cpuid_faults,
        autogroup_nice: match member.session() == member.recorded() {
            true => procfs::autogroup_nice(pid)?,
            false => None,
        },
        controlling_terminal: stat.tty_nr != 0 && member.session() == member.recorded(),
    })
}

/// The record of a zombie.
pub(super) fn collect_zombie(member: &Member, census: &Census) -> Result<Process, CollectError> {
    let stat = procfs::stat(member.host)?;
    Ok(Process {
        pid: member.recorded(),
        ppid: census.parent(member)?,
        pgid: member.group(),
        sid: member.session(),
        exit_signal: stat.exit_signal.unwrap_or(libc::SIGCHLD),
        state: ProcessState::Zombie { wait_status: stat.exit_code.unwrap_or_default() },
        threads: Vec::new(),
        main_ended: None,
        name: Bytes(procfs::name(member.host)?),
        mm: MmId::default(),
        fd_table: FdTableId::default(),
        fs: FsId::default(),
        shares_actions: false,
        actions: Vec::new(),
        pending: Vec::new(),
        interval_timers: [TimerSpec::default(); 3],
        posix_timers: Vec::new(),
        limits: Vec::new(),
        credentials: Credentials {
            uids: member.status.uids,
            gids: member.status.gids,
            ..Credentials::default()
        },
        personality: 0,
        child_subreaper: false,
        oom_score_adj: 0,
        tsc_mode: 0,
        cpuid_faults: false,
        autogroup_nice: None,
        controlling_terminal: false,
    })
}

/// A repeating ITIMER_REAL stands still from when it fires until its signal is delivered, and has no
/// time left then (`posixtimer_rearm_itimer` in kernel/time/itimer.c). To set it like that would
/// disarm it, so it gets a whole interval.
fn awaiting_delivery(timer: TimerSpec) -> TimerSpec {
    let value = if timer.value.is_zero() { timer.interval } else { timer.value };
    TimerSpec { value, ..timer }
}

/// The clock of a timer as `timer_create` in the same process takes it; `None` for a CPU clock of
/// another task, or of a thread that the kernel does not name.
///
/// A negative number is a CPU clock (include/linux/posix-timers_types.h): the inverse of an id, which
/// is 0 for "my own" at the time of `timer_create`, above three bits that say of what it is.
fn own_clock(clock: i32, threads: &[tree::Thread], census: &Census) -> Option<i32> {
    const CLOCK_DESCRIPTOR: i32 = 3;
    const PER_THREAD: i32 = 4;
    if clock >= 0 {
        return Some(clock);
    }
    let id = !(clock >> 3);
    let mut own = threads.iter().filter_map(|thread| census.recorded(thread.tid));
    let is_own = match (clock & CLOCK_DESCRIPTOR, clock & PER_THREAD, id) {
        (CLOCK_DESCRIPTOR, _, _) => false,
        (_, 0, 0) => true,
        (_, 0, id) => own.next().is_some_and(|main| main.0 == id),
        (_, _, 0) => threads.len() == 1,
        (_, _, id) => own.any(|tid| tid.0 == id),
    };
    is_own.then_some(clock)
}

/// How a timer tells; `None` when it tells a thread that is not there.
fn notification(entry: &TimerEntry, census: &Census) -> Option<TimerNotification> {
    let thread = match entry.to_thread {
        true => Some(census.recorded(Pid::from_raw(entry.target))?),
        false => None,
    };
    Some(TimerNotification {
        method: if thread.is_some() { SIGEV_THREAD_ID } else { entry.method },
        signal: entry.signal,
        value: entry.value,
        thread,
    })
}

fn oom_score_adj(pid: Pid) -> Result<i32, CollectError> {
    let value = procfs::single_number(pid, "oom_score_adj", 10)?;
    // The kernel keeps it within -1000..=1000.
    Ok(i32::try_from(value).unwrap_or_default())
}

fn prctl(option: u64) -> Call {
    Call::new(libc::SYS_prctl, &[option])
}

/// The lower half of what a call returned, where the kernel's type is a C int.
fn low_half(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_whose_signal_waits_is_not_disarmed() {
        let time = |nanoseconds| TimeSpec { seconds: 0, nanoseconds };
        let check = |interval, value, expected| {
            let timer = TimerSpec { interval: time(interval), value: time(value) };
            assert_eq!(awaiting_delivery(timer).value, time(expected));
        };
        check(1000, 300, 300);
        check(1000, 0, 1000);
        check(0, 300, 300);
        check(0, 0, 0);
    }
}
