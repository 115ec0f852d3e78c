//! Where code can be put in a process: slots in the padding of its vDSO, what each of them holds, and
//! what a tracer that was killed left in them.
//!
//! It knows nothing of the calls that are made from slots ([`super::injection`], [`super::copy`]).

use std::io;

use nix::unistd::Pid;

use super::error::{FreezeError, InjectError, Occupation};
use super::injection::{
    ALL_SIGNALS, Call, await_system_call_stop, begin_return, end_return, read, set_registers, trace,
};
use super::restart::NO_SYSTEM_CALL;
use super::stub::{self, LOAD, SLOT_SIZE};
use super::tree::{Process, Thread};
use super::vdso;
use crate::model::address::{AddrRange, RemoteAddr};
use crate::model::number::{to_u64, to_usize};
use crate::model::thread::Registers;
use crate::sys::descriptor::{self, Shared};
use crate::sys::memory::RemoteMemory;
use crate::sys::procfs;
use crate::sys::ptrace::{self, Resume};

/// How much of each thread's stack is searched for a way back into a slot.
const SEARCHED_STACK: usize = 128 * 1024;

/// Where code can be put in a process.
#[derive(Debug, Default)]
pub struct Room {
    /// The vDSO, when there is one.
    vdso: Option<AddrRange>,
    /// The slots in its padding.
    pub(super) slots: Vec<Slot>,
}

/// Room for the code of one thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    /// Where it lies.
    pub base: RemoteAddr,
    /// What is in it.
    pub state: SlotState,
}

/// What is in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotState {
    /// All zero.
    Clean,
    /// Holds code that a thread may be in.
    Occupied,
    /// Holds code that nobody needs any more.
    Written,
    /// Holds something else, or code that somebody may yet return into.
    Taken,
}

impl Room {
    /// Makes all code that was put there zero again.
    ///
    /// # Errors
    /// When the process's memory cannot be written.
    pub(super) fn clear(&mut self, memory: &RemoteMemory) -> io::Result<()> {
        for slot in self.slots.iter_mut().filter(|slot| slot.state == SlotState::Written) {
            memory.write(slot.base, &[0; SLOT_SIZE])?;
            slot.state = SlotState::Clean;
        }
        Ok(())
    }

    /// The vDSO of the process.
    pub(super) fn vdso(&self) -> Option<AddrRange> {
        self.vdso
    }

    /// Slots that may be used, by number.
    pub(super) fn usable(&self) -> Vec<usize> {
        let slots = self.slots.iter().enumerate();
        let free = |slot: &Slot| matches!(slot.state, SlotState::Clean | SlotState::Written);
        slots.filter(|(_, slot)| free(slot)).map(|(number, _)| number).collect()
    }
}

/// Looks for room in a process.
///
/// # Errors
/// When its mappings or memory cannot be read.
pub(super) fn find_room(pid: Pid, memory: &RemoteMemory) -> Result<Room, FreezeError> {
    let mappings = procfs::mapping_heads(pid)?;
    let Some(vdso) = mappings.iter().find(|mapping| mapping.path == b"[vdso]") else {
        return Ok(Room::default());
    };
    let mut image = vec![0; to_usize(vdso.range.len())];
    let error = |source| FreezeError::Memory { pid, source };
    memory.read(vdso.range.start, &mut image).map_err(error)?;
    let start = vdso::padding(&image).unwrap_or(image.len());
    let mut slots = Vec::new();
    for (number, bytes) in image[start..].as_chunks::<SLOT_SIZE>().0.iter().enumerate() {
        let offset = to_u64(start + number * SLOT_SIZE);
        let base = RemoteAddr(vdso.range.start.0 + offset);
        let state = if bytes.iter().all(|byte| *byte == 0) {
            SlotState::Clean
        } else if stub::decode(bytes, base).is_some()
            || stub::is_birth(bytes, base)
            || stub::is_series(bytes)
        {
            SlotState::Occupied
        } else {
            SlotState::Taken
        };
        slots.push(Slot { base, state });
    }
    Ok(Room { vdso: Some(vdso.range), slots })
}

/// Brings threads that a killed tracer left in slots to where these would have brought them, and
/// finds out which slots may still be returned into. Processes may have their memory, and so their slots, in
/// common.
///
/// # Errors
/// When a thread cannot be brought back.
pub(super) fn heal_leftovers(processes: &mut [Process]) -> Result<(), FreezeError> {
    let is_clean =
        |process: &Process| process.room.slots.iter().all(|slot| slot.state == SlotState::Clean);
    if processes.iter().all(is_clean) {
        return Ok(());
    }
    for process in processes.iter_mut() {
        heal_threads(process)?;
        find_ways_back(process);
    }
    for index in 1..processes.len() {
        let (others, [process, ..]) = processes.split_at_mut(index) else { break };
        for other in others.iter_mut().filter(|other| !is_clean(other)) {
            unite_taken(other, process)?;
        }
    }
    for process in processes {
        for slot in process.room.slots.iter_mut().filter(|slot| slot.state == SlotState::Occupied) {
            slot.state = SlotState::Written;
        }
        process
            .room
            .clear(&process.memory)
            .map_err(|source| FreezeError::Memory { pid: process.pid, source })?;
    }
    Ok(())
}

/// Brings the threads of a process back that are in slots.
fn heal_threads(process: &mut Process) -> Result<(), FreezeError> {
    if process.room.slots.iter().all(|slot| slot.state == SlotState::Clean) {
        return Ok(());
    }
    for index in 0..process.threads.len() {
        let (pid, tid) = (process.pid, process.threads[index].tid);
        if gives_birth(process, index)? {
            // It waits for a child that ends at once, and goes on by itself.
            return Err(FreezeError::Busy { pid, tid, cause: Occupation::Healing });
        }
        heal_leftover(process, index).map_err(|source| FreezeError::Heal { pid, tid, source })?;
    }
    Ok(())
}

/// Finds slots that threads of a process will return into: a handler may be running that a signal started
/// while its thread was in a slot, whose address is then in its frame on the stack.
fn find_ways_back(process: &mut Process) {
    if process.room.slots.iter().all(|slot| slot.state == SlotState::Clean) {
        return;
    }
    for thread in &process.threads {
        let mut stack = vec![0; SEARCHED_STACK];
        let stack_pointer = RemoteAddr(thread.registers.rsp & !7);
        let length = read_until_gap(&process.memory, stack_pointer, &mut stack);
        let words = || stack[..length].as_chunks::<8>().0.iter().copied().map(u64::from_le_bytes);
        for slot in process.room.slots.iter_mut().filter(|it| it.state == SlotState::Occupied) {
            // A stack that cannot be looked at may hold anything.
            if length == 0 || words().any(|word| slot.contains(RemoteAddr(word))) {
                slot.state = SlotState::Taken;
            }
        }
    }
}

/// Reads as much as can be read without a gap, and says how much.
fn read_until_gap(memory: &RemoteMemory, start: RemoteAddr, buffer: &mut [u8]) -> usize {
    let mut length = 0;
    while length < buffer.len() {
        let next = RemoteAddr(start.0.wrapping_add(to_u64(length)));
        match memory.read_some(next, &mut buffer[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    length
}

/// Has two processes that share their memory leave those slots alone that either returns into.
fn unite_taken(one: &mut Process, other: &mut Process) -> Result<(), FreezeError> {
    let compared = descriptor::compare_tasks(Shared::Memory, one.task(), other.task());
    let tid = other.task();
    let order = compared.map_err(|source| FreezeError::Trace {
        operation: "compare the memory of",
        tid,
        source,
    })?;
    if order.is_ne() {
        return Ok(());
    }
    for (slot, same) in one.room.slots.iter_mut().zip(&mut other.room.slots) {
        if [slot.state, same.state].contains(&SlotState::Taken) {
            (slot.state, same.state) = (SlotState::Taken, SlotState::Taken);
        }
    }
    Ok(())
}

/// Whether a thread is in a slot that copies of its process are made from.
fn gives_birth(process: &Process, index: usize) -> Result<bool, FreezeError> {
    let address = RemoteAddr(process.threads[index].registers.rip);
    let inside = |slot: &&Slot| slot.state == SlotState::Occupied && slot.contains(address);
    let Some(slot) = process.room.slots.iter().find(inside) else { return Ok(false) };
    let mut bytes = [0; SLOT_SIZE];
    process
        .memory
        .read(slot.base, &mut bytes)
        .map_err(|source| FreezeError::Memory { pid: process.pid, source })?;
    Ok(stub::is_birth(&bytes, slot.base))
}

/// The slot that an address lies in, with what it holds, unless that is nothing.
fn slot_around(
    process: &Process,
    address: RemoteAddr,
) -> Result<Option<(RemoteAddr, [u8; SLOT_SIZE])>, InjectError> {
    let around = |slot: &&Slot| slot.state != SlotState::Clean && slot.contains(address);
    let Some(slot) = process.room.slots.iter().find(around) else { return Ok(None) };
    let mut bytes = [0; SLOT_SIZE];
    read(process, slot.base, &mut bytes)?;
    Ok(Some((slot.base, bytes)))
}

fn heal_leftover(process: &mut Process, index: usize) -> Result<(), InjectError> {
    let Thread { tid, registers: current, .. } = process.threads[index];
    let Some((mut base, mut bytes)) = slot_around(process, RemoteAddr(current.rip))? else {
        return Ok(());
    };
    let mut place = current.rip;
    if stub::is_series(&bytes) {
        // The way back is in its own slot.
        place = current.r15;
        let own = slot_around(process, RemoteAddr(place))?;
        (base, bytes) = own.ok_or(InjectError::Astray { tid })?;
    }
    let healing = stub::decode(&bytes, base).ok_or(InjectError::Astray { tid })?;
    let unmapping = healing.scratch.filter(|_| place < base.0 + LOAD);
    let thread = &mut process.threads[index];
    thread.registers = Registers {
        rsp: current.rsp,
        eflags: current.eflags,
        cs: current.cs,
        ss: current.ss,
        fs_base: current.fs_base,
        gs_base: current.gs_base,
        ds: current.ds,
        es: current.es,
        fs: current.fs,
        gs: current.gs,
        orig_rax: NO_SYSTEM_CALL,
        ..healing.registers
    };
    thread.mask = healing.mask;
    if let Some(scratch) = unmapping {
        // At the beginning of its slot, so that it goes back with its own signal mask should this tracer be
        // killed, too.
        let call = Call::new(libc::SYS_munmap, &[scratch.start.0, scratch.len()]);
        set_registers(tid, &call.registers(base, &current))?;
        trace("block the signals of", tid, |tid| ptrace::set_signal_mask(tid, ALL_SIGNALS))?;
        for _ in 0..2 {
            trace("resume", tid, |tid| ptrace::resume(tid, Resume::ToSystemCall, 0))?;
            await_system_call_stop(tid, |tid| process.next_stop(tid))?;
        }
    }
    begin_return(&process.threads[index])?;
    end_return(process, index)
}

impl Slot {
    fn contains(&self, address: RemoteAddr) -> bool {
        address.0.wrapping_sub(self.base.0) < to_u64(SLOT_SIZE)
    }
}
