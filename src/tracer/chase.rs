//! Stopping every thread of every process under some roots, while they run, fork and end.
//!
//! Stopping goes in passes: whatever is found is seized and interrupted, then what that has started
//! meanwhile is looked for, until a pass finds nothing new. A [`Chase`] that is dropped lets
//! everything go. It knows nothing of what is done with a tree that has been stopped.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::thread::{sleep, yield_now};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::{Pid, getpid, gettid};

use super::copy;
use super::error::{FreezeError, Occupation, trace};
use super::restart::{self, SYSCALL, Wait};
use crate::model::address::RemoteAddr;
use crate::model::number::to_u64;
use crate::model::signal::SignalSet;
use crate::model::thread::Registers;
use crate::sys::ptrace::{self, Resume, Stop};
use crate::sys::{memory, procfs};

/// How long a thread that does not stop is waited for while the rest stands still.
const STOP_PATIENCE: Duration = Duration::from_millis(250);

/// How long a thread that was asked to stop, and is to be let go again, is waited for. One that stops with
/// nobody there to see it, in a call that any stop breaks off, would take that for an interruption; this
/// is much longer than a busy machine lets a thread wait for its turn.
const RELEASE_PATIENCE: Duration = Duration::from_secs(5);

/// How soon it is looked at whether a thread waits for something that stands still itself.
const FIRST_LOOK: Duration = Duration::from_millis(2);

/// How often a thread is looked at right after it was interrupted.
const LOOKS_AT_ONCE: u32 = 20;

/// How often a thread that has not stopped is only given way to: a running one stops within
/// microseconds.
const YIELDS: u32 = 50;

/// How often it is looked again after that.
const LOOK_INTERVAL: Duration = Duration::from_micros(200);

/// Bytes of code before a system call that are searched for its number.
const SEARCHED_CODE: usize = 24;

/// Passes that may find something new before it is given up.
const MOST_PASSES: usize = 1000;

/// A tree that is being stopped.
#[derive(Debug, Default)]
pub(super) struct Chase {
    /// Whoever adopts the orphans of the tree, and has no other children.
    adopter: Option<Pid>,
    /// The processes held, each after the one that it was found through.
    pub held: Vec<Held>,
    /// Processes that have ended, and that nobody has waited for.
    pub zombies: Vec<Pid>,
    /// All that is or was held.
    known: HashSet<Pid>,
    /// Whether everybody held stood still when their children were listed last, and no others were found.
    listed: bool,
}

/// What is held of a process.
#[derive(Debug)]
pub(super) struct Held {
    pub pid: Pid,
    /// The main thread first.
    pub threads: Vec<Thread>,
    /// Whether it is a child of rckpt itself, whose end somebody here waits for.
    pub own_child: bool,
}

/// A thread of a process that is frozen or being frozen.
#[derive(Clone, Debug)]
pub struct Thread {
    /// Its id as rckpt sees it.
    pub tid: Pid,
    /// The registers that it goes on with when it is let go.
    pub registers: Registers,
    /// The signals it blocks, outside any temporary mask.
    pub mask: SignalSet,
    /// The kernel's function that it slept in before it was stopped, as /proc/PID/wchan names it.
    sleeping_in: Vec<u8>,
    /// The signal that its process is stopped by (Ctrl-Z).
    pub group_stop: Option<i32>,
    hold: Hold,
}

/// How firmly a thread is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    /// Seized and interrupted, not stopped yet.
    Seized,
    /// Stopped.
    Stopped,
    /// Let go, or ended.
    Gone,
}

impl Chase {
    /// Stops `root` and everything under it, and the orphans that `adopter` has adopted.
    pub fn run(root: Pid, adopter: Option<Pid>) -> Result<Self, FreezeError> {
        let mut chase = Self::default();
        chase.adopter = adopter;
        if !chase.take(root)? {
            return Err(FreezeError::NoSuchProcess { pid: root });
        }
        let mut passes = 0;
        while chase.pass()? {
            passes += 1;
            if passes == MOST_PASSES {
                return Err(FreezeError::Growing { pid: root });
            }
        }
        if chase.held.iter().all(|held| held.pid != root) {
            return Err(FreezeError::Ended { pid: root });
        }
        Ok(chase)
    }

    /// One pass: stops what is known, then looks for more. Whether it found something new.
    fn pass(&mut self) -> Result<bool, FreezeError> {
        let mut grown = false;
        for held in &mut self.held {
            grown |= held.seize_threads()?;
        }
        if self.listed && !grown {
            return Ok(false);
        }
        self.await_stops()?;
        // What has ended meanwhile is looked at once more: its parent may not have waited for it.
        for ended in self.held.extract_if(.., |held| held.threads.is_empty()) {
            self.known.remove(&ended.pid);
        }
        self.listed = true;
        for child in self.children()? {
            if !self.known.contains(&child) && self.take(child)? {
                (self.listed, grown) = (false, true);
            }
        }
        Ok(grown)
    }

    /// Begins to hold a process. Whether there is such a process.
    fn take(&mut self, pid: Pid) -> Result<bool, FreezeError> {
        let status = match procfs::status(pid) {
            // The copies of a checkpoint that is still being written are of no job.
            Ok(status)
                if status.tracer != 0 && procfs::name(pid).is_ok_and(|it| it == copy::NAME) =>
            {
                return Ok(false);
            }
            Ok(status) if status.tgid == pid.as_raw() => status,
            Ok(_) => return Ok(false),
            Err(error) if error.is_gone() => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        match status.state {
            b'X' => return Ok(false),
            b'Z' if !others_live(pid)? => self.zombies.push(pid),
            _ => {
                let own_child = status.ppid == getpid().as_raw();
                self.held.push(Held { pid, threads: Vec::new(), own_child });
            }
        }
        self.known.insert(pid);
        Ok(true)
    }

    /// The children of all threads held, then the orphans. In this order: whoever was orphaned while
    /// we looked has been adopted by then.
    fn children(&self) -> Result<Vec<Pid>, FreezeError> {
        let mut parents = Vec::new();
        for held in &self.held {
            parents.extend(held.threads.iter().map(|thread| (held.pid, thread.tid)));
        }
        if let Some(adopter) = self.adopter {
            match procfs::threads(adopter) {
                Ok(threads) => parents.extend(threads.into_iter().map(|tid| (adopter, tid))),
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut found = Vec::new();
        for (pid, tid) in parents {
            match procfs::children(pid, tid) {
                Ok(Some(children)) => found.extend(children),
                Ok(None) => return self.children_by_parent(),
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(found)
    }

    /// As [`Self::children`], on a kernel that does not list them.
    fn children_by_parent(&self) -> Result<Vec<Pid>, FreezeError> {
        let parents: HashSet<Pid> =
            self.held.iter().map(|held| held.pid).chain(self.adopter).collect();
        let mut found = Vec::new();
        for pid in procfs::processes()? {
            match procfs::status(pid) {
                Ok(status) if parents.contains(&Pid::from_raw(status.ppid)) => found.push(pid),
                Ok(_) => {}
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(found)
    }

    /// Waits until every thread that was interrupted has stopped or ended.
    fn await_stops(&mut self) -> Result<(), FreezeError> {
        let begun = Instant::now();
        let mut rounds = 0;
        loop {
            let mut missing = Vec::new();
            for held in &mut self.held {
                missing.extend(held.collect_stops()?.map(|tid| (held.pid, tid)));
            }
            let Some((pid, tid)) = missing.first().copied() else { return Ok(()) };
            let waited = begun.elapsed();
            if waited > FIRST_LOOK {
                let in_vfork = |(_, tid): &&(Pid, Pid)| occupation(*tid) == Some(Occupation::Vfork);
                if let Some((pid, tid)) = missing.iter().find(in_vfork).copied() {
                    return Err(FreezeError::Busy { pid, tid, cause: Occupation::Vfork });
                }
            }
            if waited > STOP_PATIENCE {
                let cause = occupation(tid).unwrap_or(Occupation::Ending);
                return Err(FreezeError::Busy { pid, tid, cause });
            }
            rounds += 1;
            if rounds < YIELDS {
                yield_now();
            } else {
                sleep(LOOK_INTERVAL);
            }
        }
    }
}

impl Drop for Chase {
    fn drop(&mut self) {
        // There is an error already that is more to the point.
        drop(release(std::mem::take(&mut self.held)));
    }
}

/// Lets go of whatever is held; the first error is told after all has been tried.
pub(super) fn release(mut all: Vec<Held>) -> Result<(), FreezeError> {
    let mut outcome = Ok(());
    // What was interrupted and has not stopped can only be let go once it has. It mostly waits for
    // what is let go in the first round.
    let begun = Instant::now();
    loop {
        let mut missing = false;
        for held in &mut all {
            for thread in held.threads.iter_mut().filter(|thread| thread.hold == Hold::Stopped) {
                outcome = outcome.and(thread.detach());
            }
            match held.collect_stops() {
                Ok(None) => {}
                Ok(Some(_)) => missing = true,
                Err(error) => outcome = outcome.and(Err(error)),
            }
            missing |= held.threads.iter().any(|thread| thread.hold == Hold::Stopped);
        }
        if !missing || begun.elapsed() > RELEASE_PATIENCE {
            return outcome;
        }
        sleep(LOOK_INTERVAL);
    }
}

impl Held {
    /// A thread of it that lives, as [`super::tree::Process::task`].
    pub fn task(&self) -> Pid {
        let is_main = |thread: &&Thread| thread.tid == self.pid;
        let thread = self.threads.iter().find(is_main).or(self.threads.first());
        thread.map_or(self.pid, |thread| thread.tid)
    }

    /// Seizes and interrupts the threads that are not held yet. Whether there were any.
    fn seize_threads(&mut self) -> Result<bool, FreezeError> {
        let tids = match procfs::threads(self.pid) {
            Ok(tids) => tids,
            Err(error) if error.is_gone() => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let known: HashSet<Pid> = self.threads.iter().map(|thread| thread.tid).collect();
        let mut grown = false;
        for tid in tids.into_iter().filter(|tid| !known.contains(tid)) {
            match procfs::is_kernel_worker(tid) {
                Ok(false) => {}
                Ok(true) => continue,
                Err(error) if error.is_gone() => continue,
                Err(error) => return Err(error.into()),
            }
            match ptrace::seize(tid) {
                Ok(()) => {}
                Err(Errno::ESRCH) => continue,
                Err(source) => match seize_failure(self.pid, tid, source)? {
                    SeizeFailure::Gone => continue,
                    SeizeFailure::HeldAlready => {}
                },
            }
            grown = true;
            // Held from here on, so that it is let go whatever happens.
            let place = if tid == self.pid { 0 } else { self.threads.len() };
            self.threads.insert(place, Thread::seized(tid));
            match ptrace::interrupt(tid) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(source) => {
                    return Err(FreezeError::Trace { operation: "interrupt", tid, source });
                }
            }
            // The sooner a stop is seen, the shorter the moment in which the thread would notice
            // that this tracer was killed (see `Thread::stopped`). A sleeping thread stops at once.
            let reap = reaps(self.pid, self.own_child, tid);
            let thread = &mut self.threads[place];
            for _ in 0..LOOKS_AT_ONCE {
                thread.look(reap)?;
                if thread.hold != Hold::Seized {
                    break;
                }
            }
        }
        Ok(grown)
    }

    /// Takes note of the threads that have stopped; one that has not, if any.
    fn collect_stops(&mut self) -> Result<Option<Pid>, FreezeError> {
        let mut missing = None;
        let (pid, own_child) = (self.pid, self.own_child);
        for thread in self.threads.iter_mut().filter(|thread| thread.hold == Hold::Seized) {
            thread.look(reaps(pid, own_child, thread.tid))?;
            if thread.hold == Hold::Seized {
                missing = Some(thread.tid);
            }
        }
        self.threads.retain(|thread| thread.hold != Hold::Gone);
        Ok(missing)
    }
}

/// Whether a process whose main thread has ended goes on in others.
fn others_live(pid: Pid) -> Result<bool, FreezeError> {
    match procfs::threads(pid) {
        Ok(threads) => Ok(threads.iter().any(|tid| *tid != pid)),
        Err(error) if error.is_gone() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether the end of a thread is to be taken note of for good. That of a child of this very process
/// is left to whoever here waits for it.
pub(super) fn reaps(pid: Pid, own_child: bool, tid: Pid) -> bool {
    !(own_child && tid == pid)
}

impl Thread {
    fn seized(tid: Pid) -> Self {
        Self {
            tid,
            registers: Registers::default(),
            mask: SignalSet::default(),
            // It may have ended meanwhile, or the kernel may not tell: then it slept nowhere.
            sleeping_in: procfs::read(tid, "wchan").unwrap_or_default(),
            group_stop: None,
            hold: Hold::Seized,
        }
    }

    /// Whether it has stopped or ended meanwhile.
    fn look(&mut self, reap: bool) -> Result<(), FreezeError> {
        let tid = self.tid;
        let stop = match ptrace::poll(tid, reap) {
            Ok(Some(stop)) => stop,
            Ok(None) => return Ok(()),
            // Another thread of its process called exec and took its place.
            Err(Errno::ECHILD) => {
                self.hold = Hold::Gone;
                return Ok(());
            }
            Err(source) => return Err(FreezeError::Trace { operation: "stop", tid, source }),
        };
        match stop {
            Stop::Trap => self.stopped(),
            Stop::Group(signal) => {
                self.group_stop = Some(signal);
                self.stopped()
            }
            Stop::Signal(signal) => self.go_on(signal),
            Stop::SystemCall | Stop::Event(_) => self.go_on(0),
            Stop::Exited(_) | Stop::Killed(_) => {
                self.hold = Hold::Gone;
                Ok(())
            }
        }
    }

    /// Takes note of its stop, reads its registers, and at once, lest this tracer be killed before it
    /// has, undoes what the mere stop did to the call that the thread was in. Of a timed wait it is
    /// also noted, in the registers themselves, which one it is.
    fn stopped(&mut self) -> Result<(), FreezeError> {
        let tid = self.tid;
        self.hold = Hold::Stopped;
        self.registers = match ptrace::registers(tid) {
            Ok(found) => found,
            // Killed meanwhile: the next look will tell.
            Err(Errno::ESRCH) => {
                self.hold = Hold::Seized;
                return Ok(());
            }
            Err(source) => {
                return Err(FreezeError::Trace { operation: "read the registers of", tid, source });
            }
        };
        let corrected = if restart::in_timed_wait(&self.registers) {
            let number = timed_wait(tid, &self.registers, &self.sleeping_in);
            if ptrace::upper_half_is_free() {
                number.map(|number| restart::continued(&self.registers, Some(number)))
            } else {
                self.registers = restart::named(&self.registers, number);
                None
            }
        } else {
            let wait = match restart::interrupted_wait(&self.registers) {
                Some(Wait::At(address)) => read_wait(tid, address),
                wait => wait,
            };
            wait.filter(|wait| restart::is_repeated(*wait))
                .map(|_| restart::repeated(&self.registers))
        };
        if let Some(corrected) = corrected {
            trace("set the registers of", tid, |tid| ptrace::set_registers(tid, &corrected))?;
            self.registers = corrected;
        }
        Ok(())
    }

    /// Delivers a signal, and asks again for a stop: any stop takes the request away.
    fn go_on(&self, signal: i32) -> Result<(), FreezeError> {
        let tid = self.tid;
        for outcome in [ptrace::interrupt(tid), ptrace::resume(tid, Resume::Run, signal)] {
            match outcome {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(source) => return Err(FreezeError::Trace { operation: "stop", tid, source }),
            }
        }
        Ok(())
    }

    fn detach(&mut self) -> Result<(), FreezeError> {
        self.hold = Hold::Gone;
        match ptrace::detach(self.tid, 0) {
            // Killed meanwhile: then there is nothing to let go.
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(source) => Err(FreezeError::Trace { operation: "detach", tid: self.tid, source }),
        }
    }
}

/// Which timed wait a thread is in; `None` when that cannot be told, or when it was not begun by the
/// SYSCALL instruction.
fn timed_wait(tid: Pid, registers: &Registers, sleeping_in: &[u8]) -> Option<i64> {
    let mut code = [0; SEARCHED_CODE + SYSCALL.len()];
    let start = registers.rip.checked_sub(to_u64(code.len()))?;
    memory::peek(tid, RemoteAddr(start), &mut code).ok()?;
    let before = code.strip_suffix(&SYSCALL)?;
    restart::timed_wait(registers)
        .or_else(|| restart::timed_wait_by_code(before))
        .or_else(|| restart::timed_wait_by_function(sleeping_in, registers))
}

/// The wait that a `struct timespec` in a thread's memory says; `None` when it cannot be read.
fn read_wait(tid: Pid, address: RemoteAddr) -> Option<Wait> {
    let mut bytes = [0; 16];
    memory::peek(tid, address, &mut bytes).ok()?;
    let (seconds, nanoseconds) = bytes.split_at(8);
    let seconds = u64::from_le_bytes(seconds.try_into().ok()?);
    let nanoseconds = u64::from_le_bytes(nanoseconds.try_into().ok()?);
    let length = Duration::from_secs(seconds).checked_add(Duration::from_nanos(nanoseconds))?;
    Some(Wait::For(length))
}

/// Why a process cannot be traced; `None` when it can, as far as that is to be seen.
pub(super) fn untraceable(pid: Pid) -> Option<FreezeError> {
    let status = procfs::status(pid).ok()?;
    if matches!(status.state, b'Z' | b'X') {
        return None;
    }
    if status.tracer != 0 {
        if procfs::name(pid).is_ok_and(|name| name == copy::NAME) {
            return None;
        }
        let tracer = Pid::from_raw(status.tracer);
        return Some(FreezeError::AlreadyTraced { pid, tid: pid, tracer });
    }
    // Whoever may open this may trace.
    match memory::RemoteMemory::open(pid) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Some(FreezeError::NotPermitted { pid, source: Errno::EPERM })
        }
        Ok(_) | Err(_) => None,
    }
}

/// What an attempt to seize that failed means, when it is no reason to give up.
enum SeizeFailure {
    /// The thread has ended.
    Gone,
    /// It is still held from an attempt before.
    HeldAlready,
}

fn seize_failure(pid: Pid, tid: Pid, source: Errno) -> Result<SeizeFailure, FreezeError> {
    let status = match procfs::status(tid) {
        Ok(status) => status,
        Err(error) if error.is_gone() => return Ok(SeizeFailure::Gone),
        Err(error) => return Err(error.into()),
    };
    if status.tracer == gettid().as_raw() {
        return Ok(SeizeFailure::HeldAlready);
    }
    if status.tracer != 0 {
        let tracer = Pid::from_raw(status.tracer);
        return Err(FreezeError::AlreadyTraced { pid, tid, tracer });
    }
    if matches!(status.state, b'Z' | b'X') {
        return Ok(SeizeFailure::Gone);
    }
    Err(FreezeError::NotPermitted { pid, source })
}

/// What keeps a thread from stopping; `None` when it has ended.
fn occupation(tid: Pid) -> Option<Occupation> {
    let status = procfs::status(tid).ok()?;
    match status.state {
        b'D' if in_vfork(tid) => Some(Occupation::Vfork),
        b'D' => Some(Occupation::UninterruptibleSleep),
        b'Z' | b'X' => Some(Occupation::Ending),
        state => Some(Occupation::Unknown(state)),
    }
}

/// Whether a thread in uninterruptible sleep is in a call that makes processes.
fn in_vfork(tid: Pid) -> bool {
    let Ok(line) = procfs::read(tid, "syscall") else { return false };
    let number = line.split(u8::is_ascii_whitespace).next().unwrap_or_default();
    let making = [libc::SYS_vfork, libc::SYS_clone, libc::SYS_clone3];
    making.iter().any(|call| call.to_string().as_bytes() == number)
}
