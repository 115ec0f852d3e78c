//! Seizing and stopping every thread of every process under some roots, and letting them go.
//!
//! Stopping goes in passes: whatever is found is seized and interrupted, then what that has started
//! meanwhile is looked for, until a pass finds nothing new. A thread that cannot stop now (a parent
//! in vfork, a wait for a disk) makes the whole attempt be given up, everything is let go, and after
//! a moment it is tried again: so nothing waits frozen for something that is frozen itself.
//!
//! A [`Tree`] lets everything go when it is dropped. Should even that fail, the end of the thread
//! that made it does: the kernel detaches whatever a thread still traces when it ends. While a tree
//! exists no other thread of this process may wait for stops of its children (WSTOPPED).

use std::collections::HashSet;
use std::marker::PhantomData;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::{Pid, getpid, gettid};

use super::error::{FreezeError, InjectError, Occupation};
use super::injection::{self, Injector, Room};
use super::restart;
use crate::model::address::{AddrRange, RemoteAddr};
use crate::model::signal::SignalSet;
use crate::model::thread::Registers;
use crate::sys::memory::RemoteMemory;
use crate::sys::procfs;
use crate::sys::ptrace::{self, Resume, Stop};
use crate::sys::signal;

/// How long a thread that does not stop is waited for while the rest stands still.
const STOP_PATIENCE: Duration = Duration::from_millis(250);

/// How soon it is looked at whether a thread waits for something that stands still itself.
const FIRST_LOOK: Duration = Duration::from_millis(2);

/// How long a process may be in a state that it passes through, before that is taken for its nature.
const FLEETING: Duration = Duration::from_millis(300);

/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Passes that may find something new before the attempt is given up.
const MOST_PASSES: usize = 1000;

/// Offset of `rseq_cs` in the kernel's `struct rseq`.
const RSEQ_CRITICAL_SECTION: u64 = 8;

/// A frozen tree of processes.
#[derive(Debug)]
pub struct Tree {
    processes: Vec<Process>,
    zombies: Vec<Pid>,
    /// Only the thread that seized may talk to the tracees.
    _not_send: PhantomData<*mut ()>,
}

/// A frozen process that lives.
#[derive(Debug)]
pub struct Process {
    /// Its id as rckpt sees it.
    pub pid: Pid,
    /// Its threads, the main one first.
    pub threads: Vec<Thread>,
    /// Its memory.
    pub memory: RemoteMemory,
    /// Where code can be put.
    pub(super) room: Room,
    /// Whether it is a child of rckpt itself, whose end somebody here waits for.
    own_child: bool,
}

/// A thread of a frozen process.
#[derive(Clone, Debug)]
pub struct Thread {
    /// Its id as rckpt sees it.
    pub tid: Pid,
    /// The registers that it goes on with when it is let go.
    pub registers: Registers,
    /// The signals it blocks, outside any temporary mask.
    pub mask: SignalSet,
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
    /// It has ended.
    Gone,
}

impl Tree {
    /// Freezes `root` and all processes under it, and those under `others` as far as these exist,
    /// trying for as long as `patience`.
    ///
    /// # Errors
    /// When `root` does not exist, or something cannot be traced or does not stop. Everything runs
    /// on then.
    pub fn freeze(root: Pid, others: &[Pid], patience: Duration) -> Result<Self, FreezeError> {
        let begun = Instant::now();
        let deadline = begun + patience;
        let mut pause = Duration::from_millis(1);
        loop {
            let outcome = Self::attempt(root, others);
            let again = match &outcome {
                Err(FreezeError::Busy { .. } | FreezeError::Growing { .. }) => true,
                // In the middle of exec a process is not dumpable; there, and when a process ends,
                // its main thread may have ended before the others. Neither lasts.
                Err(FreezeError::NotPermitted { .. } | FreezeError::MainThreadEnded { .. }) => {
                    begun.elapsed() < FLEETING
                }
                _ => false,
            };
            if !again || Instant::now() + pause >= deadline {
                return outcome;
            }
            sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The living processes; a process comes after the one that it was found through.
    #[must_use]
    pub fn processes(&self) -> &[Process] {
        &self.processes
    }

    /// The processes in the tree that have ended, and that their parents have not waited for.
    #[must_use]
    pub fn zombies(&self) -> &[Pid] {
        &self.zombies
    }

    /// Prepares the process at `index` for carrying out system calls.
    ///
    /// # Errors
    /// When there is no room for that in it, or it was killed.
    ///
    /// # Panics
    /// When there is no process at `index`.
    pub fn inject(&mut self, index: usize) -> Result<Injector<'_>, InjectError> {
        Injector::new(&mut self.processes[index])
    }

    /// Lets everything go, as if it had never been touched. What was killed meanwhile is no error.
    ///
    /// # Errors
    /// When a thread could not be let go; all others have been.
    pub fn thaw(mut self) -> Result<(), FreezeError> {
        self.release()
    }

    /// Kills every process while all of them stand still, so that none sees another end.
    ///
    /// # Errors
    /// When a process could not be killed; all others have been.
    pub fn kill_all(mut self) -> Result<(), FreezeError> {
        let mut outcome = Ok(());
        for process in &self.processes {
            match signal::kill(process.pid, libc::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(source) => {
                    outcome =
                        Err(FreezeError::Trace { operation: "kill", tid: process.pid, source });
                }
            }
        }
        outcome?;
        for process in &mut self.processes {
            // The main thread's end is reported when the others' have been taken note of.
            for thread in process.threads.iter_mut().rev() {
                let reap = !(process.own_child && thread.tid == process.pid);
                await_end(thread.tid, reap)?;
                thread.hold = Hold::Gone;
            }
        }
        Ok(())
    }

    /// Leaves every process stopped, as SIGSTOP does, without any of them running in between.
    ///
    /// # Errors
    /// When a thread could not be stopped or let go.
    pub fn stop_all(mut self) -> Result<(), FreezeError> {
        for process in &mut self.processes {
            process.enter_group_stop()?;
        }
        self.release()
    }

    fn attempt(root: Pid, others: &[Pid]) -> Result<Self, FreezeError> {
        let mut tree = Self { processes: Vec::new(), zombies: Vec::new(), _not_send: PhantomData };
        let mut known = HashSet::new();
        if !tree.take(root, &mut known)? {
            return Err(FreezeError::NoSuchProcess { pid: root });
        }
        for other in others {
            tree.take(*other, &mut known)?;
        }
        let mut passes = 0;
        while tree.pass(&mut known)? {
            passes += 1;
            if passes == MOST_PASSES {
                return Err(FreezeError::Growing { pid: root });
            }
        }
        if tree.processes.iter().all(|process| process.pid != root) {
            return Err(FreezeError::Ended { pid: root });
        }
        for process in &mut tree.processes {
            process.settle()?;
        }
        Ok(tree)
    }

    /// One pass: stops what is known, then looks for more. Whether it found something new.
    fn pass(&mut self, known: &mut HashSet<Pid>) -> Result<bool, FreezeError> {
        let mut grown = false;
        for process in &mut self.processes {
            grown |= process.seize_threads()?;
        }
        self.await_stops()?;
        // What has ended meanwhile is looked at once more: its parent may not have waited for it.
        for ended in self.processes.extract_if(.., |process| process.threads.is_empty()) {
            known.remove(&ended.pid);
        }
        for child in self.children()? {
            if !known.contains(&child) {
                grown |= self.take(child, known)?;
            }
        }
        Ok(grown)
    }

    /// Begins to hold a process. Whether there is such a process.
    fn take(&mut self, pid: Pid, known: &mut HashSet<Pid>) -> Result<bool, FreezeError> {
        let status = match procfs::status(pid) {
            Ok(status) if status.tgid == pid.as_raw() => status,
            Ok(_) => return Ok(false),
            Err(error) if error.is_gone() => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        match status.state {
            b'X' => return Ok(false),
            b'Z' => {
                let threads = procfs::threads(pid).unwrap_or_default();
                if threads.iter().any(|tid| *tid != pid) {
                    return Err(FreezeError::MainThreadEnded { pid });
                }
                known.insert(pid);
                self.zombies.push(pid);
                return Ok(true);
            }
            _ => {}
        }
        let memory = match RemoteMemory::open(pid) {
            Ok(memory) => memory,
            // It is ending: wait until it is a zombie.
            Err(source) if source.raw_os_error() == Some(libc::ESRCH) => {
                return Err(FreezeError::Busy { pid, tid: pid, cause: Occupation::Ending });
            }
            Err(source) => return Err(refusal_to_trace(pid, pid, source)),
        };
        known.insert(pid);
        self.processes.push(Process {
            pid,
            threads: Vec::new(),
            memory,
            room: Room::default(),
            own_child: status.ppid == getpid().as_raw(),
        });
        Ok(true)
    }

    /// The children of all threads held.
    fn children(&self) -> Result<Vec<Pid>, FreezeError> {
        let mut found = Vec::new();
        for process in &self.processes {
            for thread in &process.threads {
                match procfs::children(process.pid, thread.tid) {
                    Ok(Some(children)) => found.extend(children),
                    Ok(None) => return self.children_by_parent(),
                    Err(error) if error.is_gone() => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(found)
    }

    /// As [`Self::children`], on a kernel that does not list them.
    fn children_by_parent(&self) -> Result<Vec<Pid>, FreezeError> {
        let parents: HashSet<i32> =
            self.processes.iter().map(|process| process.pid.as_raw()).collect();
        let mut found = Vec::new();
        for pid in procfs::processes()? {
            match procfs::status(pid) {
                Ok(status) if parents.contains(&status.ppid) => found.push(pid),
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
        let mut rounds: u32 = 0;
        loop {
            let mut missing = Vec::new();
            for process in &mut self.processes {
                let pid = process.pid;
                missing.extend(process.collect_stops()?.map(|tid| (pid, tid)));
            }
            let Some((first_pid, first_tid)) = missing.first().copied() else { return Ok(()) };
            let waited = begun.elapsed();
            if waited > FIRST_LOOK {
                let vfork = |(_, tid): &&(Pid, Pid)| occupation(*tid) == Some(Occupation::Vfork);
                if let Some((pid, tid)) = missing.iter().find(vfork).copied() {
                    return Err(FreezeError::Busy { pid, tid, cause: Occupation::Vfork });
                }
            }
            if waited > STOP_PATIENCE {
                let cause = occupation(first_tid).unwrap_or(Occupation::Ending);
                return Err(FreezeError::Busy { pid: first_pid, tid: first_tid, cause });
            }
            // The first rounds only give way: a running thread stops within microseconds.
            rounds += 1;
            if rounds < 50 {
                std::thread::yield_now();
            } else {
                sleep(Duration::from_micros(200));
            }
        }
    }

    /// Lets go of whatever is held; the first error is told after all has been tried.
    fn release(&mut self) -> Result<(), FreezeError> {
        let mut outcome = Ok(());
        for process in &mut self.processes {
            if let Err(source) = process.room.clear(&process.memory) {
                outcome = Err(FreezeError::Memory { pid: process.pid, source });
            }
        }
        for thread in self.processes.iter_mut().flat_map(|process| &mut process.threads) {
            if thread.hold == Hold::Stopped {
                outcome = outcome.and(thread.detach());
            }
        }
        // What was interrupted and has not stopped can only be let go once it has. It mostly waited
        // for what has just been let go.
        let begun = Instant::now();
        loop {
            let mut missing = false;
            for process in &mut self.processes {
                match process.collect_stops() {
                    Ok(tid) => missing |= tid.is_some(),
                    Err(error) => outcome = outcome.and(Err(error)),
                }
                for thread in &mut process.threads {
                    if thread.hold == Hold::Stopped {
                        outcome = outcome.and(thread.detach());
                    }
                }
            }
            if !missing || begun.elapsed() > STOP_PATIENCE {
                break;
            }
            sleep(Duration::from_micros(200));
        }
        self.processes.clear();
        outcome
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // There is nobody left to tell an error to; the end of this thread detaches the rest.
        drop(self.release());
    }
}

impl Process {
    /// Its vDSO, when it has one.
    #[must_use]
    pub fn vdso(&self) -> Option<AddrRange> {
        self.room.vdso()
    }

    /// Whether its threads are stopped by a job-control signal (Ctrl-Z), and by which.
    #[must_use]
    pub fn group_stop(&self) -> Option<i32> {
        self.threads.iter().find_map(|thread| thread.group_stop)
    }

    /// Whether an end of this thread is to be taken note of for good.
    pub(super) fn reaps(&self, tid: Pid) -> bool {
        !(self.own_child && tid == self.pid)
    }

    /// Seizes and interrupts the threads that are not held yet. Whether there were any.
    fn seize_threads(&mut self) -> Result<bool, FreezeError> {
        let tids = match procfs::threads(self.pid) {
            Ok(tids) => tids,
            Err(error) if error.is_gone() => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let held: HashSet<Pid> = self.threads.iter().map(|thread| thread.tid).collect();
        let mut grown = false;
        for tid in tids.into_iter().filter(|tid| !held.contains(tid)) {
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
            let thread = Thread {
                tid,
                registers: Registers::default(),
                mask: SignalSet::default(),
                group_stop: None,
                hold: Hold::Seized,
            };
            if tid == self.pid {
                self.threads.insert(0, thread);
            } else {
                self.threads.push(thread);
            }
            match ptrace::interrupt(tid) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(source) => {
                    return Err(FreezeError::Trace { operation: "interrupt", tid, source });
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
            let reap = !(own_child && thread.tid == pid);
            thread.look(reap)?;
            if thread.hold == Hold::Seized {
                missing = Some(thread.tid);
            }
        }
        self.threads.retain(|thread| thread.hold != Hold::Gone);
        Ok(missing)
    }

    /// Makes sure, once everything stands still, that each thread goes on from where it is in the
    /// right way, and that nothing is left of a tracer that was killed.
    fn settle(&mut self) -> Result<(), FreezeError> {
        // Opened again: what was opened before is the memory of before an exec.
        self.memory = RemoteMemory::open(self.pid)
            .map_err(|source| FreezeError::Memory { pid: self.pid, source })?;
        self.threads[1..].sort_unstable_by_key(|thread| thread.tid);
        for thread in &mut self.threads {
            thread.mask = trace("read the signal mask of", thread.tid, ptrace::signal_mask)?;
            if thread.registers.cs != restart::USER_CODE_SEGMENT {
                return Err(FreezeError::ThirtyTwoBit { pid: self.pid, tid: thread.tid });
            }
        }
        self.room = injection::find_room(self.pid, &self.memory)?;
        injection::heal_leftovers(self)?;
        for index in 0..self.threads.len() {
            self.abort_sequence(index)?;
        }
        Ok(())
    }

    /// Takes a thread out of a restartable sequence, as the kernel would when it goes on.
    fn abort_sequence(&mut self, index: usize) -> Result<(), FreezeError> {
        let thread = &self.threads[index];
        let Some(abort) = self.rseq_abort(thread)? else { return Ok(()) };
        let corrected = Registers { rip: abort.0, ..thread.registers };
        let set = |tid| ptrace::set_registers(tid, &corrected);
        trace("set the registers of", thread.tid, set)?;
        self.threads[index].registers = corrected;
        Ok(())
    }

    /// Where the kernel would send a thread that it stopped in the middle of a restartable sequence.
    /// It does so when the thread goes on at the place where it was; injection moves it away first,
    /// and the kernel would forget.
    fn rseq_abort(&self, thread: &Thread) -> Result<Option<RemoteAddr>, FreezeError> {
        let rseq = trace("read the rseq area of", thread.tid, ptrace::rseq_configuration)?;
        let Some(rseq) = rseq else { return Ok(None) };
        let area = RemoteAddr(rseq.area.0.wrapping_add(RSEQ_CRITICAL_SECTION));
        // The program may have unmapped it, or put anything there: then the kernel kills it, which
        // is not for us to do.
        let Ok(descriptor) = self.memory.read_word(area) else { return Ok(None) };
        if descriptor == 0 {
            return Ok(None);
        }
        // struct rseq_cs: version, flags, start_ip, post_commit_offset, abort_ip.
        let mut bytes = [0; 32];
        if self.memory.read(RemoteAddr(descriptor), &mut bytes).is_err() {
            return Ok(None);
        }
        let [_, start, length, abort] = std::array::from_fn(|index| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[8 * index..8 * index + 8]);
            u64::from_le_bytes(word)
        });
        let inside = thread.registers.rip.wrapping_sub(start) < length;
        Ok(inside.then_some(RemoteAddr(abort)))
    }

    /// Brings all threads into the group stop of SIGSTOP, unless they are in one.
    fn enter_group_stop(&mut self) -> Result<(), FreezeError> {
        if self.group_stop().is_some() {
            return Ok(());
        }
        let Some(thread) = self.threads.first() else { return Ok(()) };
        let tid = thread.tid;
        let error = |source| FreezeError::Trace { operation: "stop", tid, source };
        signal::kill(self.pid, libc::SIGSTOP).map_err(error)?;
        // One thread takes the signal, and with that the others are bound to stop before they run.
        ptrace::resume(tid, Resume::Run, 0).map_err(error)?;
        loop {
            match ptrace::wait(tid, self.reaps(tid)).map_err(error)? {
                Stop::Group(_) => return Ok(()),
                Stop::Signal(signal) => ptrace::resume(tid, Resume::Run, signal).map_err(error)?,
                Stop::Trap | Stop::SystemCall | Stop::Event(_) => {
                    ptrace::resume(tid, Resume::Run, 0).map_err(error)?;
                }
                Stop::Exited(_) | Stop::Killed(_) => return Ok(()),
            }
        }
    }
}

impl Thread {
    /// Whether it has stopped or ended meanwhile.
    fn look(&mut self, reap: bool) -> Result<(), FreezeError> {
        let tid = self.tid;
        let error = |source| FreezeError::Trace { operation: "stop", tid, source };
        let stop = match ptrace::poll(tid, reap) {
            Ok(Some(stop)) => stop,
            Ok(None) => return Ok(()),
            // Another thread of its process called exec and took its place.
            Err(Errno::ECHILD) => {
                self.hold = Hold::Gone;
                return Ok(());
            }
            Err(source) => return Err(error(source)),
        };
        match stop {
            Stop::Trap => self.hold = Hold::Stopped,
            Stop::Group(signal) => {
                self.hold = Hold::Stopped;
                self.group_stop = Some(signal);
            }
            Stop::Signal(signal) => self.go_on(signal)?,
            Stop::SystemCall | Stop::Event(_) => self.go_on(0)?,
            Stop::Exited(_) | Stop::Killed(_) => self.hold = Hold::Gone,
        }
        if self.hold == Hold::Stopped {
            self.read_registers()?;
        }
        Ok(())
    }

    /// Reads the registers of a thread that has just stopped, and at once, lest this tracer be killed
    /// before it is done, undoes what the mere stop did to the call that the thread was in.
    fn read_registers(&mut self) -> Result<(), FreezeError> {
        let tid = self.tid;
        let found = match ptrace::registers(tid) {
            Ok(found) => found,
            Err(Errno::ESRCH) => {
                self.hold = Hold::Gone;
                return Ok(());
            }
            Err(source) => {
                return Err(FreezeError::Trace { operation: "read the registers of", tid, source });
            }
        };
        self.registers = found;
        if let Some(corrected) = restart::without_spurious_interruption(&found) {
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
                Err(source) => {
                    return Err(FreezeError::Trace { operation: "stop", tid, source });
                }
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

/// Why the memory of a process could not be opened.
fn refusal_to_trace(pid: Pid, tid: Pid, source: std::io::Error) -> FreezeError {
    match source.raw_os_error().map(Errno::from_raw) {
        Some(errno @ (Errno::EACCES | Errno::EPERM)) => {
            FreezeError::NotPermitted { pid, source: errno }
        }
        Some(errno) => FreezeError::Trace { operation: "open the memory of", tid, source: errno },
        None => FreezeError::Memory { pid, source },
    }
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

fn await_end(tid: Pid, reap: bool) -> Result<(), FreezeError> {
    loop {
        match ptrace::wait(tid, reap) {
            Ok(Stop::Exited(_) | Stop::Killed(_)) | Err(Errno::ECHILD) => return Ok(()),
            Ok(_) => {}
            Err(source) => {
                return Err(FreezeError::Trace { operation: "await the end of", tid, source });
            }
        }
    }
}

fn trace<T>(
    operation: &'static str,
    tid: Pid,
    request: impl FnOnce(Pid) -> nix::Result<T>,
) -> Result<T, FreezeError> {
    request(tid).map_err(|source| FreezeError::Trace { operation, tid, source })
}
