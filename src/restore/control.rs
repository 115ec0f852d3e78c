//! The supervisor's hold on the processes being rebuilt: it traces each through its blob, then gives
//! every thread its registers back and lets all go.
//!
//! Everything traced here dies with the supervisor until it is let go: a restore that ends half-way
//! leaves nothing behind.

use std::collections::BTreeMap;
use std::io;
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid as HostPid;
use thiserror::Error;

use super::blob::layout::{STEP_SIZE, TRAP_FAIL, TRAP_STOP};
use super::blob::{self, Placement};
use super::script::{
    Capabilities, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, PR_CAP_AMBIENT_RAISE, STOP_FILL,
    STOP_READY, capability_data, numbers,
};
use super::vdso::{Placed, StandIn};
use crate::model::address::RemoteAddr;
use crate::model::id::Pid;
use crate::model::memory::{AddressSpace, AioContext, MmAreas};
use crate::model::number::{PAGE_SIZE, as_signed, to_u64};
use crate::model::process::{Process, ProcessState, ResourceLimit};
use crate::model::thread::{Registers, Thread};
use crate::sys::clone::set_limit;
use crate::sys::memory::RemoteMemory;
use crate::sys::procfs;
use crate::sys::ptrace::{self, Resume, RseqAnswer, Stop};
use crate::sys::signal::kill_thread;

/// Bytes of the `syscall` instruction.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

const PR_SET_MM_MAP: u64 = 14;
const PR_SET_MM: u64 = 35;

/// How often it is looked whether a thread that ends has done so.
const ENDING: Duration = Duration::from_micros(100);

/// The kernel's result of an interrupted system call that the task's restart block takes up again.
const ERESTART_RESTARTBLOCK: i64 = -516;

/// `orig_rax` of a thread that is not in a system call.
const NO_SYSTEM_CALL: u64 = u64::MAX;

/// Why a process could not be rebuilt.
#[derive(Debug, Error)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum ControlError {
    #[error("{operation} of process {pid} being restored: {source}")]
    Trace { operation: &'static str, pid: Pid, source: Errno },
    #[error("{operation} the memory of process {pid} being restored: {source}")]
    Memory { operation: &'static str, pid: Pid, source: io::Error },
    #[error("process {pid} ended while it was being restored ({how}): {hint}")]
    Died { pid: Pid, how: String, hint: &'static str },
    #[error("process {pid} stopped unexpectedly while it was being restored ({how})")]
    Astray { pid: Pid, how: String },
    #[error("restoring process {pid}: {call} failed: {source}")]
    Step { pid: Pid, call: String, source: Errno },
    #[error("restoring process {pid}: {call} gave {result:#x} instead of {expected:#x}")]
    StepResult { pid: Pid, call: String, result: u64, expected: u64 },
    #[error(
        "process {pid} has an asynchronous I/O ring (io_setup) with {places} places, which this machine \
         makes otherwise: it may have more processors"
    )]
    AioRing { pid: Pid, places: u32 },
    #[error("process {pid} has no `syscall` instruction in its vDSO to be finished with")]
    FindSyscall { pid: Pid },
}

impl ControlError {
    /// Whether somebody else has an id that the job needs.
    #[must_use]
    pub fn id_is_taken(&self) -> bool {
        matches!(self, Self::Step { source: Errno::EEXIST, call, .. } if call.starts_with("clone3"))
    }
}

/// A process being rebuilt.
#[derive(Debug)]
pub struct Rebuilt<'a> {
    process: &'a Process,
    space: &'a AddressSpace,
    placement: Placement,
    host: HostPid,
    /// Host ids of the threads, by the job's.
    threads: BTreeMap<Pid, HostPid>,
    /// Its memory, once its own program has been executed.
    memory: Option<RemoteMemory>,
}

/// What finishing a process takes beside its records.
#[derive(Clone, Copy, Debug)]
pub struct Finish<'a> {
    /// The kernel's vDSO, and where its code lies.
    pub vdso: (&'a [u8], Option<u64>),
    /// The resource limits.
    pub limits: &'a [ResourceLimit],
    /// The descriptor of the executable; `None` for one whose memory is its parent's, which is finished first.
    pub executable: Option<i32>,
    /// The capabilities that it is to have, when these are not those that it has.
    pub capabilities: Option<Capabilities>,
    /// Whether it has executed no program of its own.
    pub stayed: bool,
}

impl<'a> Rebuilt<'a> {
    /// Takes hold of a process that waits to execute its blob.
    ///
    /// # Errors
    /// When it may not be traced.
    pub fn seize(
        process: &'a Process,
        space: &'a AddressSpace,
        placement: Placement,
        host: HostPid,
    ) -> Result<Self, ControlError> {
        let rebuilt =
            Self { process, space, placement, host, threads: BTreeMap::new(), memory: None };
        rebuilt.trace("seizing", ptrace::seize_to_rebuild(host))?;
        Ok(rebuilt)
    }

    /// Its id as the supervisor sees it.
    #[must_use]
    pub const fn host(&self) -> HostPid {
        self.host
    }

    /// Its thread `tid` as the supervisor sees it.
    #[must_use]
    pub fn thread(&self, tid: Pid) -> Option<HostPid> {
        self.threads.get(&tid).copied()
    }

    /// Its records.
    #[must_use]
    pub const fn process(&self) -> &'a Process {
        self.process
    }

    /// Its memory.
    ///
    /// # Errors
    /// When it is not running the blob.
    pub fn memory(&self) -> Result<&RemoteMemory, ControlError> {
        self.memory
            .as_ref()
            .ok_or_else(|| self.memory_error("opening", io::ErrorKind::NotFound.into()))
    }

    /// Waits for the `execve`, or, of one that stays what it is, for the breakpoint, and starts the blob.
    /// Its script's entry is at `first_step`, the stack pointer to start with is `stack`.
    ///
    /// # Errors
    /// When it does not get there.
    pub fn start_blob(
        &mut self,
        first_step: u64,
        stack: u64,
        stays: bool,
    ) -> Result<(), ControlError> {
        match self.wait(self.host)? {
            Stop::Event(libc::PTRACE_EVENT_EXEC) if !stays => {}
            Stop::Signal(libc::SIGTRAP) if stays => {}
            other => return Err(self.astray(&other)),
        }
        let memory = RemoteMemory::open(self.host).map_err(|e| self.memory_error("opening", e))?;
        self.memory = Some(memory);
        if stays {
            self.forget_restartable_sequences()?;
        }
        let mut registers = self.trace("reading registers", ptrace::registers(self.host))?;
        registers.rip = self.placement.entry;
        registers.rdi = first_step;
        registers.rsp = stack;
        self.trace("setting registers", ptrace::set_registers(self.host, &registers))?;
        self.resume(self.host)
    }

    /// Takes back what rckpt's own C library has registered (rseq(2)): there is one registration a
    /// thread, and the memory that it names will be gone.
    fn forget_restartable_sequences(&self) -> Result<(), ControlError> {
        const UNREGISTER: u64 = 1;
        let asked = ptrace::rseq_configuration(self.host);
        let answer = self.trace("reading the registration of rseq", asked)?;
        if answer == RseqAnswer::Absent {
            return Ok(());
        }
        let pid = self.process.pid;
        let offset = blob::system_call_instruction().ok_or(ControlError::FindSyscall { pid })?;
        let base = self.trace("reading registers", ptrace::registers(self.host))?;
        let instruction = self.placement.range.start.0 + offset;
        let call = |arguments: &[u64]| {
            self.call_at(instruction, &base, "rseq", libc::SYS_rseq, arguments).map(drop)
        };
        let Some(rseq) = answer.told() else {
            // A kernel that does not tell where it is can at least be asked whether there is any.
            return match call(&ptrace::RSEQ_QUESTION) {
                Err(ControlError::Step { source: Errno::EFAULT | Errno::ENOSYS, .. }) => Ok(()),
                other => other,
            };
        };
        let (length, signature) = (u64::from(rseq.length), u64::from(rseq.signature));
        call(&[rseq.area.0, length, UNREGISTER, signature])
    }

    /// Has the main thread make one system call at an instruction for that.
    fn call_at(
        &self,
        instruction: u64,
        base: &Registers,
        call: &'static str,
        number: i64,
        arguments: &[u64],
    ) -> Result<i64, ControlError> {
        let mut six = [0; 6];
        six[..arguments.len()].copy_from_slice(arguments);
        let mut registers = *base;
        registers.rip = instruction;
        registers.rax = number.cast_unsigned();
        registers.orig_rax = NO_SYSTEM_CALL;
        [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] =
            six;
        self.trace("setting registers", ptrace::set_registers(self.host, &registers))?;
        self.trace("stepping", ptrace::resume(self.host, Resume::Step, 0))?;
        match self.wait(self.host)? {
            Stop::Signal(libc::SIGTRAP) => {}
            other => return Err(self.astray(&other)),
        }
        let result = self.trace("reading registers", ptrace::result_register(self.host))?;
        match i32::try_from(result) {
            Ok(error @ -4095..=-1) => Err(ControlError::Step {
                pid: self.process.pid,
                call: call.to_owned(),
                source: Errno::from_raw(-error),
            }),
            _ => Ok(result),
        }
    }

    /// Waits until it has cloned the child that `process` records, which shares its table of
    /// descriptors or its memory, and lets both go on.
    ///
    /// # Errors
    /// When a step of the script failed.
    pub fn await_sharer(
        &mut self,
        process: &'a Process,
        space: &'a AddressSpace,
    ) -> Result<Self, ControlError> {
        match self.wait(self.host)? {
            Stop::Event(libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_CLONE) => {}
            Stop::Signal(libc::SIGTRAP) => self.check_stop(self.host, STOP_FILL)?,
            other => return Err(self.astray(&other)),
        }
        let host = self.trace("finding a child", ptrace::event_thread(self.host))?;
        let memory = RemoteMemory::open(host).map_err(|e| self.memory_error("opening", e))?;
        let child = Self {
            process,
            space,
            placement: self.placement,
            host,
            threads: BTreeMap::new(),
            memory: Some(memory),
        };
        match child.wait(host)? {
            Stop::Trap => child.resume(host)?,
            other => return Err(child.astray(&other)),
        }
        self.resume(self.host)?;
        Ok(child)
    }

    /// Waits until every region is mapped and may be filled.
    ///
    /// # Errors
    /// When a step of the script failed.
    pub fn await_mapped(&mut self) -> Result<(), ControlError> {
        self.await_stop(self.host, STOP_FILL)
    }

    /// Puts what it has instead of the recorded vDSO into its memory.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn fill_vdso(&self, vdso: &Placed) -> Result<(), ControlError> {
        let Some(StandIn { range, bytes }) = &vdso.stand_in else { return Ok(()) };
        let written = self.memory()?.write(range.start, bytes);
        written.map_err(|source| self.memory_error("writing", source))
    }

    /// Puts the events that waited into the rings of asynchronous I/O, which are at their places and turned.
    ///
    /// # Errors
    /// When a ring is another one than there was, or cannot be written.
    pub fn fill_rings(&self) -> Result<(), ControlError> {
        /// Bytes of `struct aio_ring` before its events, and of an event.
        const STRUCTURE_SIZE: u64 = 32;
        for context in &self.space.aio {
            let AioContext { start, places, head, tail, ref events } = *context;
            let memory = self.memory()?;
            // struct aio_ring: id, nr, head, tail.
            let mut header = [0; 16];
            let read = memory.read(start, &mut header);
            read.map_err(|source| self.memory_error("reading", source))?;
            let expected = [places, head, tail].map(u32::to_ne_bytes).concat();
            if header[4..] != expected {
                return Err(ControlError::AioRing { pid: self.process.pid, places });
            }
            for (number, event) in (0..).zip(events) {
                let place = u64::from((head + number) % places);
                let bytes: Vec<u8> = event.iter().flat_map(|word| word.to_ne_bytes()).collect();
                let address = RemoteAddr(start.0 + STRUCTURE_SIZE * (place + 1));
                let written = memory.write(address, &bytes);
                written.map_err(|source| self.memory_error("writing", source))?;
            }
        }
        Ok(())
    }

    /// Lets it go on after its memory has been filled.
    ///
    /// # Errors
    /// When it has died.
    pub fn go_on(&mut self) -> Result<(), ControlError> {
        self.resume(self.host)
    }

    /// Waits until all threads exist and have nothing left to do.
    ///
    /// # Errors
    /// When a step of a script failed.
    pub fn await_threads(&mut self) -> Result<(), ControlError> {
        let mut expected = self.process.threads.iter().skip(1);
        loop {
            match self.wait(self.host)? {
                Stop::Event(libc::PTRACE_EVENT_CLONE) => {
                    let thread = self.trace("finding a thread", ptrace::event_thread(self.host))?;
                    if let Some(record) = expected.next() {
                        self.threads.insert(record.tid, thread);
                    }
                    match self.wait(thread)? {
                        Stop::Trap => self.resume(thread)?,
                        other => return Err(self.astray(&other)),
                    }
                    self.resume(self.host)?;
                }
                Stop::Signal(libc::SIGTRAP) => break,
                other => return Err(self.astray(&other)),
            }
        }
        self.check_stop(self.host, STOP_READY)?;
        let others: Vec<HostPid> = self.threads.values().copied().collect();
        for thread in others {
            self.await_stop(thread, STOP_READY)?;
        }
        self.threads.insert(self.process.pid, self.host);
        Ok(())
    }

    /// Takes the blob away, sets what only the process itself can set without it, and gives every
    /// thread its registers, extended state and signal mask.
    ///
    /// # Errors
    /// When one of these fails.
    pub fn finish(&self, finish: &Finish<'_>) -> Result<(), ControlError> {
        let calls = RemoteCalls::new(self, finish)?;
        if let Some(executable) = finish.executable {
            self.finish_memory(&calls, executable, finish.stayed)?;
        }
        if let Some(wanted) = &finish.capabilities {
            calls.set_capabilities(wanted)?;
        }
        if let Some(main) = self.process.threads.first() {
            let signal = u64::from(main.parent_death_signal.unsigned_abs());
            let arguments = [u64::from(libc::PR_SET_PDEATHSIG.unsigned_abs()), signal];
            calls.make("PR_SET_PDEATHSIG", libc::SYS_prctl, &arguments)?;
        }
        let instruction = calls.instruction;
        calls.done()?;
        let main_ended = usize::from(self.process.main_ended.is_some());
        for thread in self.process.threads.iter().skip(main_ended) {
            let host = self.threads.get(&thread.tid).copied().unwrap_or(self.host);
            self.set_thread(host, thread, instruction)?;
        }
        for limit in finish.limits {
            self.trace("setting resource limits", set_limit(self.host, limit))?;
        }
        if let Some(status) = self.process.main_ended {
            self.end_main(status, instruction)?;
        }
        Ok(())
    }

    /// Takes the blob away, and sets what concerns the whole address space.
    fn finish_memory(
        &self,
        calls: &RemoteCalls<'_, '_>,
        executable: i32,
        stayed: bool,
    ) -> Result<(), ControlError> {
        let range = self.placement.range;
        calls.make("munmap of the restorer", libc::SYS_munmap, &[range.start.0, range.len()])?;
        calls.set_areas(&self.space.areas, executable)?;
        let executable = u64::from(executable.unsigned_abs());
        calls.make("closing the executable", libc::SYS_close, &[executable])?;
        if self.space.dumpable != 1 || stayed {
            let set_dumpable = libc::PR_SET_DUMPABLE.unsigned_abs();
            let arguments = [u64::from(set_dumpable), u64::from(self.space.dumpable)];
            calls.make("PR_SET_DUMPABLE", libc::SYS_prctl, &arguments)?;
        }
        Ok(())
    }

    /// Has the main thread end, with the others there, as it did with wait status `status`.
    fn end_main(&self, status: i32, instruction: u64) -> Result<(), ControlError> {
        let host = self.host;
        let registers = self.trace("reading registers", ptrace::registers(host))?;
        let registers = Registers {
            rip: instruction,
            rax: libc::SYS_exit.cast_unsigned(),
            rdi: u64::from(status.unsigned_abs() >> 8),
            orig_rax: NO_SYSTEM_CALL,
            ..registers
        };
        self.trace("setting registers", ptrace::set_registers(host, &registers))?;
        self.trace("stopping at the end", ptrace::stop_at_exit(host))?;
        self.resume(host)?;
        match self.wait(host)? {
            Stop::Event(libc::PTRACE_EVENT_EXIT) => {}
            other => return Err(self.astray(&other)),
        }
        // Its end must not be ours to wait for, but its parent's, when the others have ended.
        self.trace("letting go", ptrace::detach(host, 0))?;
        while procfs::status(host).is_ok_and(|status| status.state != b'Z') {
            sleep(ENDING);
        }
        Ok(())
    }

    fn set_thread(
        &self,
        host: HostPid,
        thread: &Thread,
        instruction: u64,
    ) -> Result<(), ControlError> {
        let mut registers = thread.registers;
        let in_call = as_signed(registers.orig_rax) >= 0;
        if in_call && as_signed(registers.rax) == ERESTART_RESTARTBLOCK {
            registers = self.wait_again(host, &registers, instruction)?;
        }
        self.trace("setting extended state", ptrace::set_xstate(host, &thread.xstate))?;
        self.trace("setting registers", ptrace::set_registers(host, &registers))?;
        self.trace("setting the signal mask", ptrace::set_signal_mask(host, thread.blocked))
    }

    /// A thread was caught in a wait with a timeout, whose end only the old task's restart block knew.
    /// Has the new task begin the same wait, with the time that was left where the kernel told it, and
    /// breaks that off at once: the new task then has a restart block of its own, and goes on as the
    /// old one would have. Returns the registers to go on with.
    fn wait_again(
        &self,
        host: HostPid,
        recorded: &Registers,
        instruction: u64,
    ) -> Result<Registers, ControlError> {
        let mut registers = time_left(recorded);
        registers.rip = instruction;
        registers.rax = recorded.orig_rax;
        registers.orig_rax = NO_SYSTEM_CALL;
        self.trace("setting registers", ptrace::set_registers(host, &registers))?;
        self.to_system_call(host)?;
        self.trace("interrupting", ptrace::interrupt(host))?;
        self.to_system_call(host)?;
        let result = self.trace("reading registers", ptrace::result_register(host))?;
        // Any stop does away with the interruption asked for before it.
        self.trace("interrupting", ptrace::interrupt(host))?;
        self.resume(host)?;
        match self.wait(host)? {
            Stop::Trap => {}
            other => return Err(self.astray(&other)),
        }
        Ok(if result == ERESTART_RESTARTBLOCK {
            *recorded
        } else {
            // What was waited for has happened meanwhile.
            Registers { rax: result.cast_unsigned(), orig_rax: NO_SYSTEM_CALL, ..*recorded }
        })
    }

    fn to_system_call(&self, host: HostPid) -> Result<(), ControlError> {
        self.trace("resuming", ptrace::resume(host, Resume::ToSystemCall, 0))?;
        match self.wait(host)? {
            Stop::SystemCall => Ok(()),
            other => Err(self.astray(&other)),
        }
    }

    /// Lets every thread run, or stand when the process stood stopped.
    ///
    /// # Errors
    /// When one cannot be let go. What has ended meanwhile is no error.
    pub fn release(self) -> Result<(), ControlError> {
        if let ProcessState::Stopped { signal } = self.process.state {
            self.stop(signal)?;
        }
        for thread in self.threads.values() {
            match ptrace::detach(*thread, 0) {
                // Those that run already may have ended it: by exec, or by SIGKILL.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(source) => return Err(self.trace_error("letting go", source)),
            }
        }
        Ok(())
    }

    /// Stops the process by the signal that it was stopped by, which its parent can ask for. Where that
    /// signal would not stop it now, SIGSTOP does: a handler may be there, or its group be orphaned.
    fn stop(&self, signal: i32) -> Result<(), ControlError> {
        for signal in [signal, libc::SIGSTOP] {
            if let Some(thread) = self.thread_to_stop(signal)
                && self.stop_by(thread, signal)?
            {
                return Ok(());
            }
        }
        // Pending until the threads are let go, and then among the first things that they meet.
        kill(self.host, Signal::SIGSTOP).map_err(|source| self.trace_error("stopping", source))
    }

    /// A thread that `signal` would stop, with no other signal of its own that could come before.
    fn thread_to_stop(&self, signal: i32) -> Option<HostPid> {
        let number = signal.unsigned_abs();
        let is_default = self.process.actions.iter().all(|action| action.signal != number);
        let takes_it = |thread: &&Thread| {
            thread.pending.is_empty()
                && (signal == libc::SIGSTOP || !thread.blocked.contains(number))
        };
        let threads = self.process.threads.iter();
        let thread = threads.filter(|_| is_default).find(takes_it)?;
        self.threads.get(&thread.tid).copied()
    }

    /// Has a thread take a stop signal, without an instruction of its own in between: the interruption
    /// asked for meets it if the signal did not stop it. A signal for the thread alone comes before
    /// those that are pending for the process.
    fn stop_by(&self, thread: HostPid, signal: i32) -> Result<bool, ControlError> {
        self.trace("stopping", kill_thread(self.host, thread, signal))?;
        self.resume(thread)?;
        match self.wait(thread)? {
            Stop::Signal(number) if number == signal => {}
            other => return Err(self.astray(&other)),
        }
        self.trace("interrupting", ptrace::interrupt(thread))?;
        self.trace("stopping", ptrace::resume(thread, Resume::Run, signal))?;
        match self.wait(thread)? {
            Stop::Group(_) => Ok(true),
            Stop::Trap => Ok(false),
            other => Err(self.astray(&other)),
        }
    }

    fn await_stop(&self, thread: HostPid, which: u64) -> Result<(), ControlError> {
        match self.wait(thread)? {
            Stop::Signal(libc::SIGTRAP) => self.check_stop(thread, which),
            other => Err(self.astray(&other)),
        }
    }

    /// Checks that a task at a breakpoint is where its script says that it is done, and names the
    /// step when one failed instead.
    fn check_stop(&self, thread: HostPid, which: u64) -> Result<(), ControlError> {
        let registers = self.trace("reading registers", ptrace::registers(thread))?;
        let pid = self.process.pid;
        if ![TRAP_STOP, TRAP_FAIL].contains(&registers.rax) {
            return Err(self.astray(&Stop::Signal(libc::SIGTRAP)));
        }
        let mut bytes = [0; STEP_SIZE];
        self.memory()?
            .read(RemoteAddr(registers.rdi), &mut bytes)
            .map_err(|source| self.memory_error("reading", source))?;
        let words: Vec<u64> = bytes
            .chunks_exact(8)
            .filter_map(|word| word.first_chunk().copied().map(u64::from_le_bytes))
            .collect();
        let expected = words[8];
        if registers.rax == TRAP_STOP {
            let arrived = expected == which;
            return if arrived { Ok(()) } else { Err(self.astray(&Stop::Signal(libc::SIGTRAP))) };
        }
        let call = describe_call(words[1], &words[2..8]);
        let result = registers.rsi;
        match i32::try_from(as_signed(result)) {
            Ok(error @ -4095..=-1) => {
                Err(ControlError::Step { pid, call, source: Errno::from_raw(-error) })
            }
            _ => Err(ControlError::StepResult { pid, call, result, expected }),
        }
    }

    fn wait(&self, thread: HostPid) -> Result<Stop, ControlError> {
        // When it is killed, the end of its main thread is told only after those of the others.
        let stop = if thread == self.host && self.process.threads.len() > 1 {
            ptrace::wait_for_main(thread, false)
        } else {
            ptrace::wait(thread, false)
        };
        let stop = self.trace("waiting for a stop", stop)?;
        let hint = "the kernel log may say why; not enough memory is the usual reason";
        let how = match stop {
            Stop::Exited(status) => format!("exit status {status}"),
            Stop::Killed(signal) => format!("signal {signal}"),
            _ => return Ok(stop),
        };
        Err(ControlError::Died { pid: self.process.pid, how, hint })
    }

    fn resume(&self, thread: HostPid) -> Result<(), ControlError> {
        self.trace("resuming", ptrace::resume(thread, Resume::Run, 0))
    }

    fn trace<T>(
        &self,
        operation: &'static str,
        outcome: nix::Result<T>,
    ) -> Result<T, ControlError> {
        outcome.map_err(|source| self.trace_error(operation, source))
    }

    fn trace_error(&self, operation: &'static str, source: Errno) -> ControlError {
        ControlError::Trace { operation, pid: self.process.pid, source }
    }

    fn memory_error(&self, operation: &'static str, source: io::Error) -> ControlError {
        ControlError::Memory { operation, pid: self.process.pid, source }
    }

    fn astray(&self, stop: &Stop) -> ControlError {
        ControlError::Astray { pid: self.process.pid, how: format!("{stop:?}") }
    }
}

/// The arguments of an interrupted wait, for the time that was left: a sleep that was given room for
/// that has it there. Other waits begin anew, and so may come later, but never too early.
fn time_left(recorded: &Registers) -> Registers {
    let mut registers = *recorded;
    match as_signed(recorded.orig_rax) {
        libc::SYS_nanosleep if recorded.rsi != 0 => registers.rdi = recorded.rsi,
        libc::SYS_clock_nanosleep if recorded.r10 != 0 => registers.rdx = recorded.r10,
        _ => {}
    }
    registers
}

fn describe_call(number: u64, arguments: &[u64]) -> String {
    let name = match i64::try_from(number) {
        Ok(libc::SYS_mmap) => "mmap",
        Ok(libc::SYS_munmap) => "munmap",
        Ok(libc::SYS_mprotect) => "mprotect",
        Ok(libc::SYS_madvise) => "madvise",
        Ok(libc::SYS_io_setup) => "io_setup (see /proc/sys/fs/aio-max-nr)",
        Ok(libc::SYS_io_submit) => "io_submit",
        Ok(libc::SYS_io_getevents) => "io_getevents",
        Ok(libc::SYS_mlock2) => "mlock2",
        Ok(libc::SYS_prctl) => "prctl",
        Ok(libc::SYS_arch_prctl) => "arch_prctl",
        Ok(libc::SYS_clone3) => "clone3",
        Ok(libc::SYS_rseq) => "rseq",
        Ok(libc::SYS_timer_create) => "timer_create",
        Ok(libc::SYS_sched_setaffinity) => "sched_setaffinity",
        Ok(libc::SYS_sched_setattr) => "sched_setattr",
        Ok(libc::SYS_rt_sigaction) => "rt_sigaction",
        Ok(libc::SYS_rt_sigqueueinfo) => "rt_sigqueueinfo",
        Ok(libc::SYS_rt_tgsigqueueinfo) => "rt_tgsigqueueinfo",
        Ok(libc::SYS_ioprio_set) => "ioprio_set",
        Ok(libc::SYS_capset) => "capset",
        _ => "system call",
    };
    let arguments: Vec<String> = arguments.iter().map(|value| format!("{value:#x}")).collect();
    format!("{name} ({number}) with {}", arguments.join(", "))
}

/// System calls made by the main thread of a process whose blob has done its work, one step at a time
/// at the `syscall` instruction of the vDSO. Their data goes onto the page that the stack pointer is
/// to be on, whose bytes are put back at the end.
struct RemoteCalls<'a, 'b> {
    rebuilt: &'a Rebuilt<'b>,
    instruction: u64,
    base: Registers,
    scratch: RemoteAddr,
    saved: Vec<u8>,
}

impl<'a, 'b> RemoteCalls<'a, 'b> {
    /// Room for data, in bytes.
    const ROOM: usize = 2048;

    fn new(rebuilt: &'a Rebuilt<'b>, finish: &Finish<'_>) -> Result<Self, ControlError> {
        let pid = rebuilt.process.pid;
        let (vdso, code) = finish.vdso;
        let instruction = vdso
            .windows(SYSCALL.len())
            .position(|bytes| bytes == SYSCALL)
            .zip(code)
            .map(|(offset, code)| code + to_u64(offset))
            .ok_or(ControlError::FindSyscall { pid })?;
        let stack = rebuilt.process.threads.first().map_or(0, |main| main.registers.rsp);
        let scratch = RemoteAddr((stack & !(PAGE_SIZE - 1)) + PAGE_SIZE / 4);
        let mut saved = vec![0; Self::ROOM];
        rebuilt
            .memory()?
            .read(scratch, &mut saved)
            .map_err(|source| rebuilt.memory_error("reading", source))?;
        let base = rebuilt.trace("reading registers", ptrace::registers(rebuilt.host))?;
        Ok(Self { rebuilt, instruction, base, scratch, saved })
    }

    fn make(
        &self,
        call: &'static str,
        number: i64,
        arguments: &[u64],
    ) -> Result<i64, ControlError> {
        self.rebuilt.call_at(self.instruction, &self.base, call, number, arguments)
    }

    fn write(&self, bytes: &[u8]) -> Result<(), ControlError> {
        self.rebuilt
            .memory()?
            .write(self.scratch, bytes)
            .map_err(|source| self.rebuilt.memory_error("writing", source))
    }

    /// Sets what /proc shows as program, arguments, environment, heap and stack.
    fn set_areas(&self, areas: &MmAreas, executable: i32) -> Result<(), ControlError> {
        const MAP_SIZE: usize = 104;
        let auxv = self.scratch.0 + to_u64(MAP_SIZE);
        let auxv_length = areas.auxv.len().min(Self::ROOM - MAP_SIZE);
        // struct prctl_mm_map: eleven addresses, the auxiliary vector, its length, the executable.
        let addresses = [
            areas.start_code,
            areas.end_code,
            areas.start_data,
            areas.end_data,
            areas.start_brk,
            areas.brk,
            areas.start_stack,
            areas.arg_start,
            areas.arg_end,
            areas.env_start,
            areas.env_end,
            RemoteAddr(auxv),
        ];
        let mut bytes: Vec<u8> = addresses.iter().flat_map(|each| each.0.to_le_bytes()).collect();
        let length = u32::try_from(auxv_length).unwrap_or(0);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&executable.to_le_bytes());
        assert_eq!(bytes.len(), MAP_SIZE);
        bytes.extend_from_slice(&areas.auxv[..auxv_length]);
        self.write(&bytes)?;
        let arguments = [PR_SET_MM, PR_SET_MM_MAP, self.scratch.0, to_u64(MAP_SIZE), 0];
        self.make("PR_SET_MM_MAP", libc::SYS_prctl, &arguments)?;
        Ok(())
    }

    fn set_capabilities(&self, wanted: &Capabilities) -> Result<(), ControlError> {
        let arguments = [PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0];
        self.make("PR_CAP_AMBIENT_CLEAR_ALL", libc::SYS_prctl, &arguments)?;
        self.write(&capability_data(wanted))?;
        self.make("capset", libc::SYS_capset, &[self.scratch.0, self.scratch.0 + 8])?;
        for number in numbers(wanted.ambient) {
            let arguments = [PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0];
            self.make("PR_CAP_AMBIENT_RAISE", libc::SYS_prctl, &arguments)?;
        }
        Ok(())
    }

    /// Puts the bytes back that the data lay on.
    fn done(self) -> Result<(), ControlError> {
        self.write(&self.saved)
    }
}
