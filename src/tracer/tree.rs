//! A frozen tree of processes: what is known of it, and letting it go.
//!
//! Everything in it stands still ([`super::chase`] stopped it). A thread that cannot stop now (a parent
//! in vfork, a wait for a disk) makes the whole attempt be given up, everything is let go, and after
//! a moment it is tried again: so nothing waits frozen for something that is frozen itself.
//!
//! A [`Tree`] lets everything go when it is dropped. Should even that fail, the end of the thread
//! that made it does: the kernel detaches whatever a thread still traces when it ends. While a tree
//! exists no other thread of this process may wait for stops of its children (WSTOPPED).

use std::marker::PhantomData;
use std::mem::take;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::Pid;

pub use super::chase::Thread;

use super::birth::{self, Born, Wanted};
use super::chase::{self, Chase, Held};
use super::copy::{Copy, CopyError};
use super::error::{FreezeError, InjectError, trace};
use super::injection::Injector;
use super::restart;
use super::room::{self, Room};
use crate::model::address::{AddrRange, RemoteAddr};
use crate::model::thread::Registers;
use crate::sys::memory::RemoteMemory;
use crate::sys::ptrace::{self, Resume, Stop};
use crate::sys::{procfs, signal};

/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// How long a process may be in a state that others pass through, before that is taken for its own.
const PASSING: Duration = Duration::from_millis(300);

/// How long a tree may be held by somebody else: a checkpoint holds it for a moment, one whose rckpt was
/// killed until that is noticed, a debugger for good.
const HELD: Duration = Duration::from_secs(5);

/// Offset of `rseq_cs` in the kernel's `struct rseq`.
const RSEQ_CRITICAL_SECTION: u64 = 8;

/// A frozen tree of processes.
#[derive(Debug)]
pub struct Tree {
    pub(super) processes: Vec<Process>,
    zombies: Vec<Pid>,
    /// Only the thread that seized may talk to the tracees.
    _not_send: PhantomData<*mut ()>,
}

/// A frozen process that lives.
#[derive(Debug)]
pub struct Process {
    /// Its id as rckpt sees it.
    pub pid: Pid,
    /// Its threads that live, the main one first.
    pub threads: Vec<Thread>,
    /// Its memory.
    pub memory: RemoteMemory,
    /// Where code can be put.
    pub(super) room: Room,
    /// Whether it is a child of rckpt itself, whose end somebody here waits for.
    own_child: bool,
}

impl Tree {
    /// Freezes `root` and all processes under it, trying for as long as `patience`. The children of
    /// `adopter`, which is not held itself, are the job's orphans and belong to it, too.
    ///
    /// # Errors
    /// When `root` does not exist, or something cannot be traced or does not stop. Everything runs
    /// on then.
    pub fn freeze(
        root: Pid,
        adopter: Option<Pid>,
        patience: Duration,
    ) -> Result<Self, FreezeError> {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            let outcome = Self::attempt(root, adopter);
            let patience = match &outcome {
                Err(FreezeError::Busy { .. } | FreezeError::Growing { .. }) => patience,
                // It was there and has been killed, or another thread's exec has ended it.
                Err(FreezeError::Trace { source: Errno::ESRCH, .. }) => patience,
                // So a process looks, too, that is just ending or in the middle of exec: it is not
                // dumpable, which does not last.
                Err(FreezeError::NotPermitted { .. }) => patience.min(PASSING),
                Err(FreezeError::AlreadyTraced { .. }) => patience.min(HELD),
                _ => return outcome,
            };
            if begun.elapsed() + pause >= patience {
                return outcome;
            }
            sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Everything under `root` that cannot be traced, by what /proc tells and allows: nothing is touched.
    #[must_use]
    pub fn untraceable(root: Pid, adopter: Option<Pid>) -> Vec<FreezeError> {
        let mut known = vec![root];
        let parents: Vec<(Pid, Pid)> = procfs::processes()
            .unwrap_or_default()
            .into_iter()
            .filter_map(|pid| Some((pid, Pid::from_raw(procfs::stat(pid).ok()?.ppid))))
            .collect();
        let of = |parent: Pid| parents.iter().filter(move |(_, of)| *of == parent);
        known.extend(adopter.into_iter().flat_map(of).map(|(pid, _)| *pid));
        let mut next = 0;
        while let Some(parent) = known.get(next).copied() {
            let children: Vec<Pid> = of(parent).map(|(pid, _)| *pid).collect();
            known.extend(children.into_iter().filter(|pid| *pid != root));
            next += 1;
        }
        known.sort_unstable();
        known.dedup();
        known.into_iter().filter_map(chase::untraceable).collect()
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

    /// Makes hidden copies of the processes at `places`, ascending, while everything stands still.
    ///
    /// # Errors
    /// When one of them cannot be copied; then none is.
    pub fn copy(&mut self, places: &[usize]) -> Result<Vec<Copy>, CopyError> {
        let copy = Wanted { copy: true, watch: false };
        let wanted: Vec<(usize, Wanted)> = places.iter().map(|place| (*place, copy)).collect();
        let born = self.bear(&wanted)?;
        Ok(born.into_iter().filter_map(|born| born.copy).collect())
    }

    /// Makes what is wanted of the processes at some places, ascending, while everything stands still.
    ///
    /// # Errors
    /// When one of them cannot be copied; then none is.
    pub fn bear(&mut self, wanted: &[(usize, Wanted)]) -> Result<Vec<Born>, CopyError> {
        let all = self.processes.iter_mut().enumerate();
        birth::bear(all.filter_map(|(place, process)| {
            let found = wanted.binary_search_by_key(&place, |(place, _)| *place).ok()?;
            Some((process, wanted[found].1))
        }))
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
            for thread in take(&mut process.threads).into_iter().rev() {
                await_end(thread.tid, process.reaps(thread.tid))?;
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

    fn attempt(root: Pid, adopter: Option<Pid>) -> Result<Self, FreezeError> {
        let mut chase = Chase::run(root, adopter)?;
        // Whatever fails from here on, each process is in one of the two, and is let go with it.
        let mut tree = Self {
            processes: Vec::new(),
            zombies: take(&mut chase.zombies),
            _not_send: PhantomData,
        };
        while let Some(held) = chase.held.pop() {
            match RemoteMemory::open(held.task()) {
                Ok(memory) => tree.processes.push(Process::new(held, memory)),
                Err(source) => {
                    let pid = held.pid;
                    chase.held.push(held);
                    return Err(FreezeError::Memory { pid, source });
                }
            }
        }
        tree.processes.reverse();
        for process in &mut tree.processes {
            process.look_around()?;
        }
        room::heal_leftovers(&mut tree.processes)?;
        for process in &mut tree.processes {
            process.abort_sequences()?;
        }
        Ok(tree)
    }

    /// Lets go of whatever is held; the first error is told after all has been tried.
    fn release(&mut self) -> Result<(), FreezeError> {
        let mut outcome = Ok(());
        for process in &mut self.processes {
            if let Err(source) = process.room.clear(&process.memory) {
                outcome = Err(FreezeError::Memory { pid: process.pid, source });
            }
        }
        outcome.and(chase::release(self.processes.drain(..).map(Process::into_held).collect()))
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // There is nobody left to tell an error to; the end of this thread detaches the rest.
        drop(self.release());
    }
}

impl Process {
    fn new(held: Held, memory: RemoteMemory) -> Self {
        let Held { pid, mut threads, own_child } = held;
        threads.sort_by_key(|thread| (thread.tid != pid, thread.tid));
        Self { pid, threads, memory, room: Room::default(), own_child }
    }

    fn into_held(self) -> Held {
        Held { pid: self.pid, threads: self.threads, own_child: self.own_child }
    }

    /// A thread that lives, through which the kernel shows memory and descriptors of the process: the
    /// main one, unless that has ended before the others.
    #[must_use]
    pub fn task(&self) -> Pid {
        self.threads.first().map_or(self.pid, |thread| thread.tid)
    }

    /// Whether the main thread has ended (pthread_exit(3)) while others go on.
    #[must_use]
    pub fn main_has_ended(&self) -> bool {
        self.task() != self.pid
    }

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

    /// Waits until one of its threads stops or ends.
    ///
    /// # Errors
    /// ECHILD when it is not traced by the calling thread.
    pub(super) fn next_stop(&self, tid: Pid) -> Result<Stop, Errno> {
        let reap = self.reaps(tid);
        if tid == self.pid && self.threads.len() > 1 {
            ptrace::wait_for_main(tid, reap)
        } else {
            ptrace::wait(tid, reap)
        }
    }

    /// Whether an end of this thread is to be taken note of for good.
    fn reaps(&self, tid: Pid) -> bool {
        chase::reaps(self.pid, self.own_child, tid)
    }

    /// Finds out, once everything stands still, what is needed to have each thread go on from where it is.
    fn look_around(&mut self) -> Result<(), FreezeError> {
        for thread in &mut self.threads {
            thread.mask = trace("read the signal mask of", thread.tid, ptrace::signal_mask)?;
            if thread.registers.cs != restart::USER_CODE_SEGMENT {
                return Err(FreezeError::ThirtyTwoBit { pid: self.pid, tid: thread.tid });
            }
        }
        self.room = room::find_room(self.task(), &self.memory)?;
        Ok(())
    }

    /// Takes every thread out of a restartable sequence.
    fn abort_sequences(&mut self) -> Result<(), FreezeError> {
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
        // Where the kernel does not tell, whoever has registered one is refused.
        let Some(rseq) = rseq.told() else { return Ok(None) };
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
            match self.next_stop(tid).map_err(error)? {
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
