//! Making frozen threads carry out system calls.
//!
//! A thread is moved into a slot of the process's vDSO ([`super::stub`]), carries out calls there
//! between two stops each, and is put back where it was. While it is in a slot all its signals wait.
//! The order of the steps is what makes the tracer's death harmless at any of them:
//!
//! 1. the slot is written, while nobody runs in it;
//! 2. the thread is moved into it: from here on it finds its way back by itself;
//! 3. its signals are blocked: the slot sets the mask back;
//! 4. calls are made, one by one or in a series ([`super::series`]);
//! 5. its mask is put back;
//! 6. its registers are put back exactly as they were, the kernel's restart codes included, and it is
//!    made to run into another stop inside the kernel's signal code, where it was before. A thread
//!    whose tracer goes away between those two is made by the kernel to pass through that code, too
//!    (`__ptrace_unlink` marks it as having signals to look at);
//! 7. the slot is cleared.
//!
//! The first thread of the process answers for the scratch memory: its slot unmaps it. So it stays in
//! its slot until that is gone, while the other threads come and go. What these read and write is mapped
//! once, too: each of them answers for a part of its own while it is in its slot, the first thread for
//! what is left, and for all of it while nobody else is in one.

use nix::errno::Errno;
use nix::unistd::Pid;

use super::error::InjectError;
use super::restart::{self, NO_SYSTEM_CALL, SYSCALL};
use super::room::SlotState;
use super::series::{self, Series};
use super::stub::{self, HEAL, Healing, SLOT_SIZE};
use super::tree::{Process, Thread};
use crate::model::address::{AddrRange, RemoteAddr};
use crate::model::number::{PAGE_SIZE, to_u64, to_usize};
use crate::model::signal::SignalSet;
use crate::model::thread::Registers;
use crate::sys::procfs;
use crate::sys::ptrace::{self, Resume, Stop};

/// Bytes of memory that calls may use for what they read and write.
pub const SCRATCH_SIZE: u64 = 8 * PAGE_SIZE;

/// Bytes that each of several threads may use for its calls.
pub const AREA_SIZE: u64 = PAGE_SIZE / 2;

/// Bytes of the table of a thread's calls: behind the memory that they use.
const TABLE_SIZE: u64 = PAGE_SIZE / 2;

/// Bytes of the table of the first thread's calls.
const FIRST_TABLE_SIZE: u64 = 8 * PAGE_SIZE;

/// How many threads besides the first make calls at a time.
const MOST_GUESTS: usize = 8;

/// Bytes that are mapped for the first thread.
const FIRST_SIZE: u64 = SCRATCH_SIZE + FIRST_TABLE_SIZE;

/// Bytes that are mapped for another one.
const GUEST_SIZE: u64 = AREA_SIZE + TABLE_SIZE;

/// Bytes of the hole that all that is mapped lies in.
const HOLE_SIZE: u64 = FIRST_SIZE + to_u64(MOST_GUESTS) * GUEST_SIZE;

/// Everything but SIGKILL and SIGSTOP, which the kernel leaves out.
pub(super) const ALL_SIGNALS: SignalSet = SignalSet(u64::MAX);

/// The highest address that a program can map, on x86_64 with four levels of page tables.
const ADDRESS_LIMIT: u64 = 0x7fff_ffff_f000;

/// The lowest address that is worth trying.
const ADDRESS_START: u64 = 0x10_0000;

/// What a call returned, or the error that it gave.
pub type Outcome = Result<u64, Errno>;

/// Takes what a thread's calls have brought: the thread's place in its process, what each call
/// returned, and the content of the scratch page that they had.
pub type Visit<'visitor, E> = dyn FnMut(usize, &[Outcome], &[u8]) -> Result<(), E> + 'visitor;

/// A system call to carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// SYS_*.
    pub number: i64,
    /// Its arguments.
    pub arguments: [u64; 6],
}

impl Call {
    /// A call with up to six arguments; missing ones are zero.
    ///
    /// # Panics
    /// With more than six.
    #[must_use]
    pub fn new(number: i64, arguments: &[u64]) -> Self {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        Self { number, arguments: all }
    }

    /// The registers with which the SYSCALL instruction at `rip` makes the call, `others` but for what
    /// makes it up.
    pub(super) fn registers(&self, rip: RemoteAddr, others: &Registers) -> Registers {
        let [rdi, rsi, rdx, r10, r8, r9] = self.arguments;
        Registers {
            rip: rip.0,
            rax: self.number.cast_unsigned(),
            orig_rax: NO_SYSTEM_CALL,
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            ..*others
        }
    }
}

/// A process that can carry out system calls. Dropping it puts everything back.
#[derive(Debug)]
pub struct Injector<'tree> {
    process: &'tree mut Process,
    /// Threads that are in slots, the one that answers for the scratch page first.
    guests: Vec<Guest>,
    /// What is mapped for the first thread; empty when nothing is mapped for calls.
    mapped: AddrRange,
    /// What is mapped for the others at the moment.
    areas: Option<AddrRange>,
    /// The slot for series, once there was one.
    series: Option<usize>,
    /// The slot for other code, once there was one.
    placed: Option<usize>,
    /// Whether a thread could not be put back by hand, and may be anywhere in the code on its way: then
    /// none of that is taken away.
    astray: bool,
}

/// What one of several threads has answered.
#[derive(Debug)]
struct Answer {
    /// Its place among the threads of the process.
    thread: usize,
    /// What its calls returned.
    outcomes: Vec<Outcome>,
    /// What their memory holds.
    content: Vec<u8>,
}

/// A thread in a slot.
#[derive(Clone, Copy, Debug)]
struct Guest {
    /// Its place among the threads of the process.
    thread: usize,
    tid: Pid,
    slot: usize,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Stopped, and not in a system call.
    Idle,
    /// On its way to the entry of a system call.
    Entering,
    /// Past the entry, on its way to the exit.
    Inside,
    /// Sent on a series of calls.
    Series(Series),
    /// It was killed, or has gone back by itself.
    Lost,
}

impl<'tree> Injector<'tree> {
    pub(super) fn new(process: &'tree mut Process) -> Result<Self, InjectError> {
        let pid = process.pid;
        if process.room.vdso().is_none() {
            return Err(InjectError::NoVdso { pid });
        }
        let slot = *process.room.usable().first().ok_or(InjectError::NoRoom { pid })?;
        let start = find_hole(process.task())?.start;
        let mapped = AddrRange { start, end: RemoteAddr(start.0 + FIRST_SIZE) };
        let mut injector = Self::with(process, mapped);
        injector.enter(0, slot, Some(mapped))?;
        injector.map(mapped)?;
        Ok(injector)
    }

    /// As [`Self::new`], with nothing mapped for what calls read and write.
    pub(super) fn without_scratch(process: &'tree mut Process) -> Result<Self, InjectError> {
        let pid = process.pid;
        if process.room.vdso().is_none() {
            return Err(InjectError::NoVdso { pid });
        }
        let slot = *process.room.usable().first().ok_or(InjectError::NoRoom { pid })?;
        let mapped = AddrRange { start: RemoteAddr(0), end: RemoteAddr(0) };
        let mut injector = Self::with(process, mapped);
        injector.enter(0, slot, None)?;
        Ok(injector)
    }

    /// With nobody in a slot yet.
    const fn with(process: &'tree mut Process, mapped: AddrRange) -> Self {
        let guests = Vec::new();
        Self { process, guests, mapped, areas: None, series: None, placed: None, astray: false }
    }

    /// Puts other code into a slot that is free, made from the addresses of the first thread's slot and
    /// of that one: where it lies. It is taken away with everything else.
    pub(super) fn place(
        &mut self,
        code: &dyn Fn(RemoteAddr, RemoteAddr) -> [u8; SLOT_SIZE],
    ) -> Result<RemoteAddr, InjectError> {
        let (pid, own) = (self.process.pid, self.guests[0].slot);
        let free = self.process.room.usable().into_iter().find(|slot| *slot != own);
        let free = free.ok_or(InjectError::NoRoom { pid })?;
        let slots = &self.process.room.slots;
        let (own, base) = (slots[own].base, slots[free].base);
        self.fill(free, &code(own, base))?;
        self.placed = Some(free);
        Ok(base)
    }

    /// Leaves the first thread to itself, wherever it is: it goes back when it is let go. No code is taken
    /// away then.
    pub(super) fn abandon(&mut self) {
        self.guests[0].phase = Phase::Lost;
    }

    /// The memory that the first thread's calls may use for what they read and write, in the process.
    #[must_use]
    pub fn scratch(&self) -> AddrRange {
        let AddrRange { start, end } = self.mapped;
        AddrRange { start, end: end.min(RemoteAddr(start.0 + SCRATCH_SIZE)) }
    }

    /// The process.
    #[must_use]
    pub fn process(&self) -> &Process {
        self.process
    }

    /// Carries out one call in the first thread: what it returned, or the error that it gave.
    ///
    /// # Errors
    /// When the thread was killed meanwhile, or tracing failed.
    pub fn call(&mut self, call: &Call) -> Result<Outcome, InjectError> {
        self.begin_call(0, call)?;
        self.enter_call(0)?;
        self.end_call(0)
    }

    /// Carries out calls in the first thread, one after another whatever they return, which takes much
    /// less time than each by itself. They must not be ones that wait.
    ///
    /// # Errors
    /// As for [`Self::call`]; also when this machine is so busy that the thread did not wait for us.
    pub fn call_all(&mut self, calls: &[Call]) -> Result<Vec<Outcome>, InjectError> {
        let table = self.scratch().end;
        let mut outcomes = Vec::with_capacity(calls.len());
        for part in calls.chunks(series::capacity(FIRST_TABLE_SIZE)) {
            self.begin_series(0, table, part)?;
            outcomes.extend(self.end_series(0)?);
        }
        Ok(outcomes)
    }

    /// Carries out calls in every thread, as [`Self::call_all`] does, several threads at a time. `calls`
    /// makes a thread's calls for the [`AREA_SIZE`] bytes of memory that they may use; `visit` gets the
    /// thread's place in the process, what each of its calls returned, and what that memory holds then.
    ///
    /// # Errors
    /// As for [`Self::call_all`], and when `visit` gives an error.
    pub fn on_each_thread<E: From<InjectError>>(
        &mut self,
        calls: &dyn Fn(RemoteAddr) -> Vec<Call>,
        visit: &mut Visit<'_, E>,
    ) -> Result<(), E> {
        let area = self.scratch().start;
        let outcomes = self.call_all(&calls(area))?;
        let mut content = vec![0; to_usize(AREA_SIZE)];
        self.read(area, &mut content)?;
        visit(0, &outcomes, &content)?;
        let slots = self.free_slots();
        let threads: Vec<usize> = (1..self.process.threads.len()).collect();
        if slots.is_empty() && !threads.is_empty() {
            return Err(InjectError::NoRoom { pid: self.process.pid }.into());
        }
        for group in threads.chunks(slots.len().clamp(1, MOST_GUESTS)) {
            for answer in self.call_group(group, &slots, calls)? {
                visit(answer.thread, &answer.outcomes, &answer.content)?;
            }
        }
        Ok(())
    }

    /// Carries out calls in some threads at once, each in a slot.
    fn call_group(
        &mut self,
        threads: &[usize],
        slots: &[usize],
        calls: &dyn Fn(RemoteAddr) -> Vec<Call>,
    ) -> Result<Vec<Answer>, InjectError> {
        let all = AddrRange {
            start: self.mapped.end,
            end: RemoteAddr(self.mapped.end.0 + to_u64(MOST_GUESTS) * GUEST_SIZE),
        };
        // They take the last parts, so that what the first thread answers for is in one piece.
        let taken = AddrRange {
            start: RemoteAddr(all.end.0 - to_u64(threads.len()) * GUEST_SIZE),
            end: all.end,
        };
        let areas: Vec<RemoteAddr> = (0..threads.len())
            .map(|number| RemoteAddr(taken.start.0 + to_u64(number) * GUEST_SIZE))
            .collect();
        // While the others are not there yet: one that goes back by itself before the first thread has come
        // through its call would leave its part.
        if self.areas.is_none() {
            self.areas = Some(all);
            self.answer_until(all.end)?;
            self.map(all)?;
        }
        for ((thread, slot), area) in threads.iter().zip(slots).zip(&areas) {
            let own = AddrRange { start: *area, end: RemoteAddr(area.0 + GUEST_SIZE) };
            self.enter(*thread, *slot, Some(own))?;
        }
        self.answer_until(taken.start)?;
        for (guest, area) in (1..).zip(&areas) {
            let made = calls(*area);
            debug_assert!(made.len() <= series::capacity(TABLE_SIZE));
            self.write(*area, &[0; to_usize(AREA_SIZE)])?;
            self.begin_series(guest, RemoteAddr(area.0 + AREA_SIZE), &made)?;
        }
        let mut answers = Vec::with_capacity(threads.len());
        for (guest, (thread, area)) in (1..).zip(threads.iter().zip(&areas)) {
            let outcomes = self.end_series(guest)?;
            let mut content = vec![0; to_usize(AREA_SIZE)];
            self.read(*area, &mut content)?;
            answers.push(Answer { thread: *thread, outcomes, content });
        }
        self.answer_until(all.end)?;
        self.leave_from(1)?;
        Ok(answers)
    }

    /// Makes the first thread answer for all scratch memory below `end`. Where others answer for a part of
    /// it as well it is unmapped twice, which does no harm (see [`find_hole`]).
    fn answer_until(&self, end: RemoteAddr) -> Result<(), InjectError> {
        let (offset, bytes) = stub::unmapping(end.0 - self.mapped.start.0);
        let base = self.process.room.slots[self.guests[0].slot].base;
        write(self.process, RemoteAddr(base.0 + offset), &bytes)
    }

    /// Reads from the process.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self, address: RemoteAddr, buffer: &mut [u8]) -> Result<(), InjectError> {
        read(self.process, address, buffer)
    }

    /// Writes to the process: to the scratch page, that is.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, address: RemoteAddr, bytes: &[u8]) -> Result<(), InjectError> {
        write(self.process, address, bytes)
    }

    /// Puts everything back.
    ///
    /// # Errors
    /// When the scratch page could not be unmapped, or a thread could not be put back by hand: it
    /// then finds its way back by itself.
    pub fn finish(mut self) -> Result<(), InjectError> {
        self.put_back()
    }

    fn put_back(&mut self) -> Result<(), InjectError> {
        if self.guests.is_empty() {
            return Ok(());
        }
        // Where one of several threads has gone back already, or nobody can unmap what they share, all go
        // back by themselves, which unmaps the part of each.
        self.unmap_areas()?;
        self.leave_from(1)?;
        self.complete_call(0)?;
        let unmapped = match self.mapped {
            mapped if mapped.is_empty() => Ok(()),
            mapped => self.unmap(mapped),
        };
        self.leave_from(0)?;
        // Whoever is astray may be in there still.
        if !self.astray {
            for slot in [self.series.take(), self.placed.take()].into_iter().flatten() {
                self.process.room.slots[slot].state = SlotState::Written;
            }
        }
        let pid = self.process.pid;
        let memory = &self.process.memory;
        self.process.room.clear(memory).map_err(|source| InjectError::Memory {
            operation: "write",
            pid,
            address: self.mapped.start,
            source,
        })?;
        unmapped
    }

    /// Maps memory for calls, by the first thread.
    fn map(&mut self, range: AddrRange) -> Result<(), InjectError> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE
            | libc::MAP_ANONYMOUS
            | libc::MAP_NORESERVE
            | libc::MAP_FIXED_NOREPLACE;
        let [protection, flags] = [protection, flags].map(|bits| u64::from(bits.unsigned_abs()));
        let arguments = [range.start.0, range.len(), protection, flags, u64::MAX, 0];
        let pid = self.process.pid;
        let mapped = self.call(&Call::new(libc::SYS_mmap, &arguments))?;
        mapped.map(drop).map_err(|source| InjectError::Scratch { operation: "map", pid, source })
    }

    /// Unmaps memory, by the first thread.
    fn unmap(&mut self, range: AddrRange) -> Result<(), InjectError> {
        let pid = self.process.pid;
        let unmapped = self.call(&Call::new(libc::SYS_munmap, &[range.start.0, range.len()]))?;
        unmapped.map(drop).map_err(|source| InjectError::Scratch {
            operation: "unmap",
            pid,
            source,
        })
    }

    /// Unmaps what is mapped for the others, none of which needs it any more.
    fn unmap_areas(&mut self) -> Result<(), InjectError> {
        let Some(areas) = self.areas.take() else { return Ok(()) };
        // All are stopped, whatever becomes of one of them.
        let completed = (0..self.guests.len()).map(|guest| self.complete_call(guest));
        completed.fold(Ok(()), Result::and)?;
        self.unmap(areas)
    }

    /// Slots for threads to go into. One more is kept for series.
    fn free_slots(&self) -> Vec<usize> {
        let mut slots = self.process.room.usable();
        slots.retain(|slot| self.guests.iter().all(|guest| guest.slot != *slot));
        slots
    }

    /// Where the code for series lies, which is put there if it was not.
    fn series_code(&mut self) -> Result<RemoteAddr, InjectError> {
        let slot = match self.series {
            Some(slot) => slot,
            None => {
                let free = self.free_slots().last().copied();
                let free = free.ok_or(InjectError::NoRoom { pid: self.process.pid })?;
                self.fill(free, &stub::encode_series())?;
                *self.series.insert(free)
            }
        };
        Ok(self.process.room.slots[slot].base)
    }

    /// Puts code into a slot that nobody is in.
    fn fill(&mut self, slot: usize, code: &[u8; SLOT_SIZE]) -> Result<(), InjectError> {
        // Half of it may be there when writing fails: then all of it is taken away.
        self.process.room.slots[slot].state = SlotState::Written;
        write(self.process, self.process.room.slots[slot].base, code)?;
        self.process.room.slots[slot].state = SlotState::Occupied;
        Ok(())
    }

    /// Sends a guest on a series of calls, whose table is to lie at `table`.
    fn begin_series(
        &mut self,
        guest: usize,
        table: RemoteAddr,
        calls: &[Call],
    ) -> Result<(), InjectError> {
        let places = (self.series_code()?, table);
        let Guest { thread, slot, .. } = self.guests[guest];
        let own = self.process.room.slots[slot].base;
        let series = Series::begin(self.process, thread, own, places, calls)?;
        self.guests[guest].phase = Phase::Series(series);
        Ok(())
    }

    /// Waits for the end of a guest's series: what its calls returned.
    fn end_series(&mut self, guest: usize) -> Result<Vec<Outcome>, InjectError> {
        let Guest { tid, phase: Phase::Series(series), .. } = self.guests[guest] else {
            return Ok(Vec::new());
        };
        let outcome = series.end(self.process, tid);
        self.guests[guest].phase = if outcome.is_ok() { Phase::Idle } else { Phase::Lost };
        if !matches!(outcome, Ok(_) | Err(InjectError::Died { .. } | InjectError::Late { .. })) {
            // It may still be in there, so the code stays.
            self.series = None;
        }
        outcome
    }

    /// Moves a thread into a slot.
    fn enter(
        &mut self,
        thread: usize,
        slot: usize,
        scratch: Option<AddrRange>,
    ) -> Result<(), InjectError> {
        let Thread { tid, registers, mask, .. } = self.process.threads[thread];
        if restart::will_restart(&registers) {
            let address = RemoteAddr(registers.rip.wrapping_sub(2));
            let mut instruction = [0; 2];
            read(self.process, address, &mut instruction)?;
            if instruction != SYSCALL {
                return Err(InjectError::ForeignCall { tid, address });
            }
        }
        let base = self.process.room.slots[slot].base;
        let healing = Healing { registers: restart::healed(&registers), mask, scratch };
        self.fill(slot, &stub::encode(&healing, base))?;
        // From here on it has to be brought back out.
        self.guests.push(Guest { thread, tid, slot, phase: Phase::Idle });
        let moved = Registers { rip: base.0 + HEAL, orig_rax: NO_SYSTEM_CALL, ..registers };
        set_registers(tid, &moved)?;
        trace("block the signals of", tid, |tid| ptrace::set_signal_mask(tid, ALL_SIGNALS))
    }

    /// Sends a guest on its way into a call.
    fn begin_call(&mut self, guest: usize, call: &Call) -> Result<(), InjectError> {
        let Guest { thread, tid, slot, .. } = self.guests[guest];
        let own = self.process.threads[thread].registers;
        let registers = call.registers(self.process.room.slots[slot].base, &own);
        set_registers(tid, &registers)?;
        self.resume(guest, Phase::Entering)
    }

    /// Waits until a guest enters its call, and sends it on to its exit.
    fn enter_call(&mut self, guest: usize) -> Result<(), InjectError> {
        self.await_guest(guest)?;
        self.resume(guest, Phase::Inside)
    }

    /// Waits until a guest's call is over: what it returned.
    fn end_call(&mut self, guest: usize) -> Result<Outcome, InjectError> {
        self.await_guest(guest)?;
        self.guests[guest].phase = Phase::Idle;
        let tid = self.guests[guest].tid;
        let result = trace("read the registers of", tid, ptrace::result_register)?;
        Ok(decode_result(result))
    }

    /// Brings a guest that is in the middle of a call to the end of it.
    fn complete_call(&mut self, guest: usize) -> Result<(), InjectError> {
        if self.guests[guest].phase == Phase::Entering {
            self.enter_call(guest)?;
        }
        if self.guests[guest].phase == Phase::Inside {
            self.await_guest(guest)?;
            self.guests[guest].phase = Phase::Idle;
        }
        self.end_series(guest)?;
        match self.guests[guest] {
            Guest { tid, phase: Phase::Lost, .. } => Err(InjectError::Lost { tid }),
            _ => Ok(()),
        }
    }

    fn resume(&mut self, guest: usize, phase: Phase) -> Result<(), InjectError> {
        let tid = self.guests[guest].tid;
        trace("resume", tid, |tid| ptrace::resume(tid, Resume::ToSystemCall, 0))?;
        self.guests[guest].phase = phase;
        Ok(())
    }

    fn await_guest(&mut self, guest: usize) -> Result<(), InjectError> {
        let tid = self.guests[guest].tid;
        let outcome = await_system_call_stop(tid, |tid| self.process.next_stop(tid));
        if outcome.is_err() {
            self.guests[guest].phase = Phase::Lost;
        }
        outcome
    }

    /// Brings all guests from `first` on back to where they were. All are tried, then the first
    /// error is told.
    fn leave_from(&mut self, first: usize) -> Result<(), InjectError> {
        let mut outcome = Ok(());
        let mut returning = Vec::new();
        for guest in first..self.guests.len() {
            let step = self
                .complete_call(guest)
                .and_then(|()| begin_return(&self.process.threads[self.guests[guest].thread]));
            match step {
                Ok(()) => returning.push(self.guests[guest]),
                Err(error) => {
                    self.astray = true;
                    outcome = outcome.and(Err(error));
                }
            }
        }
        self.guests.truncate(first);
        for guest in returning {
            let returned = end_return(self.process, guest.thread);
            if matches!(returned, Ok(()) | Err(InjectError::Died { .. })) {
                self.process.room.slots[guest.slot].state = SlotState::Written;
            }
            outcome = outcome.and(returned);
        }
        outcome
    }
}

impl Drop for Injector<'_> {
    fn drop(&mut self) {
        // Whatever cannot be put back by hand finds its way back by itself.
        drop(self.put_back());
        self.guests.clear();
    }
}

/// Puts a thread's mask and registers back, and makes it run into a stop in the kernel's signal code.
pub(super) fn begin_return(thread: &Thread) -> Result<(), InjectError> {
    let tid = thread.tid;
    trace("set the signal mask of", tid, |tid| ptrace::set_signal_mask(tid, thread.mask))?;
    set_registers(tid, &thread.registers)?;
    trace("interrupt", tid, ptrace::interrupt)?;
    trace("resume", tid, |tid| ptrace::resume(tid, Resume::Run, 0))
}

/// Waits for that stop, and makes sure that the thread is where it was.
pub(super) fn end_return(process: &mut Process, index: usize) -> Result<(), InjectError> {
    let tid = process.threads[index].tid;
    let mut delivered = false;
    loop {
        let signal = match trace("await", tid, |tid| process.next_stop(tid))? {
            Stop::Trap => break,
            Stop::Group(signal) => {
                process.threads[index].group_stop = Some(signal);
                break;
            }
            // A signal got in first. It is delivered to the thread as it was, which is what would
            // have happened without us; where that leads is where the thread is now.
            Stop::Signal(signal) => {
                delivered = true;
                signal
            }
            Stop::SystemCall | Stop::Event(_) => 0,
            Stop::Exited(_) | Stop::Killed(_) => return Err(InjectError::Died { tid }),
        };
        trace("interrupt", tid, ptrace::interrupt)?;
        trace("resume", tid, |tid| ptrace::resume(tid, Resume::Run, signal))?;
    }
    let found = trace("read the registers of", tid, ptrace::registers)?;
    let thread = &mut process.threads[index];
    if delivered {
        thread.registers = found;
        thread.mask = trace("read the signal mask of", tid, ptrace::signal_mask)?;
    } else if found != thread.registers {
        return Err(InjectError::Astray { tid });
    }
    Ok(())
}

/// Waits for the next stop at a system call. Its signals are blocked; what remains is SIGSTOP, which
/// takes effect, and the stop that follows from it. `next_stop` waits for any.
pub(super) fn await_system_call_stop(
    tid: Pid,
    next_stop: impl Fn(Pid) -> Result<Stop, Errno>,
) -> Result<(), InjectError> {
    loop {
        let signal = match trace("await", tid, &next_stop)? {
            Stop::SystemCall => return Ok(()),
            Stop::Signal(signal) => signal,
            Stop::Trap | Stop::Group(_) | Stop::Event(_) => 0,
            Stop::Exited(_) | Stop::Killed(_) => return Err(InjectError::Died { tid }),
        };
        trace("resume", tid, |tid| ptrace::resume(tid, Resume::ToSystemCall, signal))?;
    }
}

/// The middle of the largest free range of a process: nothing is ever mapped there by chance, so
/// that unmapping it is safe even when mapping it has failed.
fn find_hole(pid: Pid) -> Result<AddrRange, InjectError> {
    let mut largest: Option<AddrRange> = None;
    let mut previous = ADDRESS_START;
    let mappings = procfs::mapping_heads(pid)?;
    let ranges = mappings.iter().map(|mapping| (mapping.range.start.0, mapping.range.end.0));
    for (start, end) in ranges.chain([(ADDRESS_LIMIT, ADDRESS_LIMIT)]) {
        if start <= ADDRESS_LIMIT
            && let Some(gap) = AddrRange::new(previous, start)
            && largest.is_none_or(|largest| largest.len() < gap.len())
        {
            largest = Some(gap);
        }
        previous = previous.max(end);
    }
    let no_hole = || InjectError::NoHole { pid, bytes: HOLE_SIZE };
    let gap = largest.filter(|gap| gap.len() >= 3 * HOLE_SIZE).ok_or_else(no_hole)?;
    let start = (gap.start.0 + gap.len() / 2) / PAGE_SIZE * PAGE_SIZE;
    AddrRange::new(start, start + HOLE_SIZE).ok_or_else(no_hole)
}

/// A system call's result as the kernel returns it: an error is a small negative number.
pub(super) fn decode_result(result: i64) -> Result<u64, Errno> {
    match i32::try_from(result) {
        Ok(error @ -4095..=-1) => Err(Errno::from_raw(-error)),
        _ => Ok(result.cast_unsigned()),
    }
}

pub(super) fn set_registers(tid: Pid, registers: &Registers) -> Result<(), InjectError> {
    trace("set the registers of", tid, |tid| ptrace::set_registers(tid, registers))
}

pub(super) fn read(
    process: &Process,
    address: RemoteAddr,
    buffer: &mut [u8],
) -> Result<(), InjectError> {
    let pid = process.pid;
    let error = |source| InjectError::Memory { operation: "read", pid, address, source };
    process.memory.read(address, buffer).map_err(error)
}

pub(super) fn write(
    process: &Process,
    address: RemoteAddr,
    bytes: &[u8],
) -> Result<(), InjectError> {
    let pid = process.pid;
    let error = |source| InjectError::Memory { operation: "write", pid, address, source };
    process.memory.write(address, bytes).map_err(error)
}

pub(super) fn trace<T>(
    operation: &'static str,
    tid: Pid,
    request: impl FnOnce(Pid) -> nix::Result<T>,
) -> Result<T, InjectError> {
    request(tid).map_err(|source| match source {
        // A stopped thread that is not there any more was killed.
        Errno::ESRCH | Errno::ECHILD => InjectError::Died { tid },
        source => InjectError::Trace { operation, tid, source },
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Read;
    use std::mem::forget;
    use std::process::{Child, Command, Stdio};
    use std::thread::{self, sleep};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::tracer::tree::Tree;

    #[test]
    fn results_are_told_from_errors() {
        let check = |result: i64, expected: Result<u64, Errno>| {
            assert_eq!(decode_result(result), expected);
        };
        check(0, Ok(0));
        check(-22, Err(Errno::EINVAL));
        check(-4096, Ok((-4096_i64).cast_unsigned()));
        check(0x7f00_0000_0000, Ok(0x7f00_0000_0000));
    }

    /// A sleeping process, killed at the end.
    struct Sleeper(Child);

    impl Sleeper {
        fn start() -> Self {
            let sleeper = Self(Command::new("sleep").arg("1000").spawn().expect("sleep"));
            sleeper.await_sleep();
            sleeper
        }

        fn await_sleep(&self) {
            let sleeps = || procfs::status(self.pid()).is_ok_and(|status| status.state == b'S');
            let waits = || procfs::name(self.pid()).is_ok_and(|name| name == b"sleep");
            while !(sleeps() && waits()) {
                sleep(Duration::from_millis(1));
            }
        }

        fn pid(&self) -> Pid {
            Pid::from_raw(self.0.id().cast_signed())
        }

        fn freeze(&self) -> Tree {
            Tree::freeze(self.pid(), None, Duration::from_secs(5)).expect("it can be frozen")
        }

        /// Freezes it, and has it begin a series of calls.
        fn begin_series<'tree>(&self, tree: &'tree mut Tree) -> Injector<'tree> {
            let mut injector = tree.inject(0).expect("there is room");
            let table = injector.scratch().end;
            let calls = [Call::new(libc::SYS_getpid, &[])];
            injector.begin_series(0, table, &calls).expect("it begins");
            injector
        }

        /// It can be frozen again, and answers, and goes on where it was, with nothing left in it.
        fn check_unharmed(&self, before: &[procfs::Mapping]) {
            let mut tree = self.freeze();
            let mut injector = tree.inject(0).expect("there is room");
            let calls = [Call::new(libc::SYS_getpid, &[]), Call::new(libc::SYS_close, &[9999])];
            let answers = injector.call_all(&calls).expect("it answers");
            assert_eq!(answers, [Ok(u64::from(self.0.id())), Err(Errno::EBADF)]);
            injector.finish().expect("all is put back");
            tree.thaw().expect("it is let go");
            self.await_sleep();
            assert_eq!(procfs::mapping_heads(self.pid()).expect("its mappings"), before);
        }
    }

    /// A process of four threads that sleep.
    fn start_threads() -> Sleeper {
        let script = "import threading, time\n\
            for _ in range(3): threading.Thread(target=time.sleep, args=(1000,)).start()\n\
            print(flush=True)\ntime.sleep(1000)";
        let mut command = Command::new("python3");
        let mut child =
            command.args(["-c", script]).stdout(Stdio::piped()).spawn().expect("python3");
        let mut word = [0];
        child.stdout.as_mut().expect("a pipe").read_exact(&mut word).expect("it is ready");
        let sleeper = Sleeper(child);
        let sleeps = |tid| procfs::status(tid).is_ok_and(|status| status.state == b'S');
        while !procfs::threads(sleeper.pid()).expect("its threads").into_iter().all(sleeps) {
            sleep(Duration::from_millis(1));
        }
        sleeper
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            self.0.kill().expect("it is not reaped yet");
            self.0.wait().expect("it is not reaped yet");
        }
    }

    #[test]
    fn a_process_whose_tracer_ends_in_a_series_is_healed_by_the_next() {
        let sleeper = Sleeper::start();
        let before = procfs::mapping_heads(sleeper.pid()).expect("its mappings");
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut tree = sleeper.freeze();
                forget(sleeper.begin_series(&mut tree));
                forget(tree);
            });
        });
        sleeper.check_unharmed(&before);
    }

    #[test]
    fn a_process_that_is_not_stopped_in_time_goes_on_unharmed() {
        let sleeper = Sleeper::start();
        let before = procfs::mapping_heads(sleeper.pid()).expect("its mappings");
        let mut tree = sleeper.freeze();
        let mut injector = sleeper.begin_series(&mut tree);
        sleep(Duration::from_millis(1500));
        let late = injector.end_series(0);
        assert!(matches!(late, Err(InjectError::Late { .. })), "{late:?}");
        drop(injector);
        tree.thaw().expect("it is let go");
        sleeper.await_sleep();
        sleeper.check_unharmed(&before);
    }

    #[test]
    fn threads_of_which_one_is_not_stopped_in_time_go_on_unharmed() {
        let sleeper = start_threads();
        let before = procfs::mapping_heads(sleeper.pid()).expect("its mappings");
        let mut tree = sleeper.freeze();
        let mut injector = tree.inject(0).expect("there is room");
        let asked = Cell::new(0);
        // The main thread is asked first, by itself; then the others, the last of them much later.
        let calls = |_| {
            asked.set(asked.get() + 1);
            if asked.get() == 4 {
                sleep(Duration::from_millis(1500));
            }
            vec![Call::new(libc::SYS_getpid, &[])]
        };
        let late = injector.on_each_thread(&calls, &mut |_, _, _| Ok::<_, InjectError>(()));
        assert!(matches!(late, Err(InjectError::Late { .. })), "{late:?}");
        drop(injector);
        tree.thaw().expect("it is let go");
        let end = Instant::now() + Duration::from_secs(10);
        let mut after = Vec::new();
        while after != before && Instant::now() < end {
            after = procfs::mapping_heads(sleeper.pid()).expect("its mappings");
        }
        assert_eq!(after, before);
    }

    #[test]
    fn a_hole_is_free() {
        let hole = find_hole(Pid::this()).expect("a hole");
        let mappings = procfs::mapping_heads(Pid::this()).expect("own mappings");
        assert!(mappings.iter().all(|mapping| !mapping.range.overlaps(&hole)), "{hole}");
    }
}
