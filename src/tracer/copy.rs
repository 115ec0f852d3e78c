//! Hidden copies of frozen processes: made by fork, so that the processes can run on while what they
//! had in memory is read from the copies.
//!
//! The first thread of a process makes an *intermediate* that shares its memory (so no page tables
//! are copied, and no stack is touched), the intermediate makes the copy and ends, and the thread
//! takes that end away. So the copy is an orphan from the start: no process of the job has it as a
//! child, unless the job has one that adopts orphans (PR_SET_CHILD_SUBREAPER), which the caller must
//! rule out. Neither has an exit signal, so nobody is told of the intermediate.
//!
//! What if the tracer is killed meanwhile? The intermediate and the copy run code that ends them
//! ([`super::stub`], "birth slot"), unless the copy is already set to die with the tracer; the thread
//! waits for the intermediate's end and goes back. Nothing is ever set on the job itself that acts when
//! the tracer dies.
//!
//! A copy shares the process's table of descriptors until it leaves that ([`Copy::hide`]): so it never
//! holds a descriptor by itself, and no file is ever closed on its account.
//!
//! It knows nothing of what copies are read for.

use std::io;

use nix::errno::Errno;
use nix::unistd::Pid;
use thiserror::Error;

use super::error::InjectError;
use super::injection::{
    Call, Injector, Outcome, await_system_call_stop, decode_result, set_registers, trace,
};
use super::restart::NO_SYSTEM_CALL;
use super::stub::{self, COPY};
use super::tree::Process;
use crate::model::address::RemoteAddr;
use crate::model::number::PAGE_SIZE;
use crate::model::thread::Registers;
use crate::sys::memory::RemoteMemory;
use crate::sys::ptrace::{self, Resume, Stop};
use crate::sys::signal;

/// The name that copies have in /proc.
pub const NAME: &[u8] = b"rckpt-copy";

/// Where in its birth slot a copy has room for its name.
const NAME_OFFSET: u64 = 128;

const PR_SET_NAME: u64 = 15;
const CLOSE_RANGE_UNSHARE: u64 = 2;

/// Why a process could not be copied. It goes on unharmed, and so do all others.
#[derive(Debug, Error)]
pub enum CopyError {
    /// The kernel did not make it, mostly for a limit on processes or memory.
    #[error("process {pid} cannot be copied")]
    Make {
        /// The process.
        pid: Pid,
        /// What the kernel said to it.
        source: Errno,
    },
    /// The process could not be made to try.
    #[error("process {pid} cannot be made to copy itself")]
    Inject {
        /// The process.
        pid: Pid,
        /// Why.
        source: InjectError,
    },
    /// Something could not be done with the copy.
    #[error("cannot {operation} the copy {copy} of process {pid}")]
    Use {
        /// What was tried.
        operation: &'static str,
        /// The process.
        pid: Pid,
        /// The copy.
        copy: Pid,
        /// Why.
        source: io::Error,
    },
}

/// A copy of a process, as it was when it was made. It never runs the process's code, and ends with
/// this value, or with the thread that made it.
#[derive(Debug)]
pub struct Copy {
    /// The process that it is a copy of.
    original: Pid,
    pid: Pid,
    memory: RemoteMemory,
    /// Where its own code lies.
    code: RemoteAddr,
    registers: Registers,
    /// Where its system calls put what they have to say, once something was asked.
    answers: Option<RemoteAddr>,
}

/// Bytes of an answer, at most.
pub const ANSWER_SIZE: u64 = PAGE_SIZE;

impl Copy {
    /// Its id as rckpt sees it.
    #[must_use]
    pub const fn pid(&self) -> Pid {
        self.pid
    }

    /// Its memory.
    #[must_use]
    pub const fn memory(&self) -> &RemoteMemory {
        &self.memory
    }

    /// Has it leave the process's descriptors, session and process group, and take a name of its own.
    /// To be done at once when the original runs on.
    ///
    /// # Errors
    /// When it has been killed, or kept the descriptors.
    pub fn hide(&mut self) -> Result<(), CopyError> {
        let all = [0, u64::from(u32::MAX), CLOSE_RANGE_UNSHARE, 0, 0, 0];
        let closed = self.call("close the descriptors of", libc::SYS_close_range, all)?;
        closed.map_err(|source| self.failed("close the descriptors of", source.into()))?;
        // What is left is for the eyes of others: the terminal's signals, `ps`, `pgrep`. Where it cannot
        // be done the copy is as good.
        self.call("detach", libc::SYS_setsid, [0; 6])?.unwrap_or_default();
        let name = RemoteAddr(self.code.0 + NAME_OFFSET);
        let terminated: Vec<u8> = NAME.iter().copied().chain([0]).collect();
        self.memory.write(name, &terminated).map_err(|source| self.failed("write to", source))?;
        self.call("name", libc::SYS_prctl, [PR_SET_NAME, name.0, 0, 0, 0, 0])?.unwrap_or_default();
        Ok(())
    }

    /// Asks it something by a system call, made for the address that it may write to: what that
    /// returns, and what it has written there. The first question adds a mapping to the copy.
    ///
    /// # Errors
    /// When it has been killed, or has no room for an answer.
    pub fn ask(
        &mut self,
        call: &dyn Fn(RemoteAddr) -> Call,
        answer: &mut [u8],
    ) -> Result<Outcome, CopyError> {
        let place = match self.answers {
            Some(place) => place,
            None => self.map_answers()?,
        };
        let Call { number, arguments } = call(place);
        let outcome = self.call("ask", number, arguments)?;
        self.memory.read(place, answer).map_err(|source| self.failed("read", source))?;
        Ok(outcome)
    }

    fn map_answers(&mut self) -> Result<RemoteAddr, CopyError> {
        let protection = u64::from((libc::PROT_READ | libc::PROT_WRITE).unsigned_abs());
        let flags = u64::from((libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).unsigned_abs());
        let arguments = [0, ANSWER_SIZE, protection, flags, u64::MAX, 0];
        let mapped = self.call("map memory in", libc::SYS_mmap, arguments)?;
        let place = mapped.map_err(|source| self.failed("map memory in", source.into()))?;
        Ok(*self.answers.insert(RemoteAddr(place)))
    }

    /// Makes a system call in it.
    fn call(
        &self,
        operation: &'static str,
        number: i64,
        [rdi, rsi, rdx, r10, r8, r9]: [u64; 6],
    ) -> Result<Outcome, CopyError> {
        let registers = Registers {
            rip: self.code.0 + COPY,
            rax: number.cast_unsigned(),
            orig_rax: NO_SYSTEM_CALL,
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            ..self.registers
        };
        let call = || {
            set_registers(self.pid, &registers)?;
            for _ in 0..2 {
                resume_to_system_call(self.pid)?;
                await_system_call_stop(self.pid, true)?;
            }
            trace("read the registers of", self.pid, ptrace::result_register)
        };
        let result = call().map_err(|source| self.failed(operation, io::Error::other(source)))?;
        Ok(decode_result(result))
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> CopyError {
        CopyError::Use { operation, pid: self.original, copy: self.pid, source }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        end(self.pid);
    }
}

/// Ends a copy and takes note of its end.
fn end(copy: Pid) {
    // It can only have ended before, and then there is nothing to be done.
    if signal::kill(copy, libc::SIGKILL).is_ok() {
        while let Ok(stop) = ptrace::wait(copy, true) {
            if matches!(stop, Stop::Exited(_) | Stop::Killed(_)) {
                break;
            }
        }
    }
}

/// Makes a copy of each of some frozen processes, all at once, as nearly as processors allow.
///
/// # Errors
/// When one of them cannot be copied; then none is.
pub(super) fn copy<'tree>(
    processes: impl Iterator<Item = &'tree mut Process>,
) -> Result<Vec<Copy>, CopyError> {
    let mut births = Vec::new();
    for process in processes {
        let pid = process.pid;
        let birth = Birth::prepare(process);
        births.push(birth.map_err(|source| CopyError::Inject { pid, source })?);
    }
    // Each step is taken by all before the next, so that they work while others are waited for.
    for step in [
        Birth::begin,
        Birth::make_intermediate,
        Birth::await_intermediate,
        Birth::make_copy,
        Birth::await_copy,
    ] {
        if !births.iter_mut().all(|birth| birth.take(step)) {
            break;
        }
    }
    // Whatever has come of it, all intermediates end, and all threads go back.
    for step in [Birth::let_go, Birth::leave_clone, Birth::enter_wait, Birth::end_wait] {
        for birth in &mut births {
            birth.take_back(step);
        }
    }
    // All are tried; copies end when they are dropped.
    let outcomes: Vec<_> = births.into_iter().map(Birth::finish).collect();
    outcomes.into_iter().collect()
}

/// A process that is being copied.
struct Birth<'tree> {
    injector: Injector<'tree>,
    pid: Pid,
    tid: Pid,
    code: RemoteAddr,
    stage: Stage,
    /// The intermediate, while it is held.
    intermediate: Option<Pid>,
    copy: Option<Copy>,
    failure: Option<CopyError>,
}

/// Where the thread is that makes the intermediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Stopped, in its own slot or at the end of the birth slot.
    Idle,
    /// On its way into `clone`.
    Entering,
    /// On its way out of `clone`.
    Making,
    /// Stopped in `clone`, with the intermediate made.
    Made,
    /// On its way out of `clone` again.
    Leaving,
    /// On its way into `waitid`.
    Turning,
    /// In `waitid`.
    Waiting,
    /// It was killed.
    Dead,
}

impl<'tree> Birth<'tree> {
    fn prepare(process: &'tree mut Process) -> Result<Self, InjectError> {
        let (pid, tid) = (process.pid, process.threads[0].tid);
        let mut injector = Injector::without_scratch(process)?;
        let code = injector.place(&stub::encode_birth)?;
        trace("follow the children of", tid, |tid| ptrace::follow_births(tid, true))?;
        Ok(Self {
            injector,
            pid,
            tid,
            code,
            stage: Stage::Idle,
            intermediate: None,
            copy: None,
            failure: None,
        })
    }

    /// Takes a step, and says whether that went well.
    fn take(&mut self, step: fn(&mut Self) -> Result<(), CopyError>) -> bool {
        if let Err(error) = step(self) {
            self.failure.get_or_insert(error);
        }
        self.failure.is_none()
    }

    /// Takes a step on the way back.
    fn take_back(&mut self, step: fn(&mut Self) -> Result<(), InjectError>) {
        if self.stage == Stage::Dead {
            return;
        }
        if let Err(source) = step(self) {
            self.stage = Stage::Dead;
            self.failure.get_or_insert(CopyError::Inject { pid: self.pid, source });
        }
    }

    fn inject<T>(&self, outcome: Result<T, InjectError>) -> Result<T, CopyError> {
        outcome.map_err(|source| CopyError::Inject { pid: self.pid, source })
    }

    /// Registers to make a child with, which shares descriptors and more with its parent.
    fn cloning(&self, at: u64, more: i32) -> Registers {
        let flags = libc::CLONE_FILES | more;
        Registers {
            rip: at,
            rax: libc::SYS_clone.cast_unsigned(),
            orig_rax: NO_SYSTEM_CALL,
            rdi: u64::from(flags.unsigned_abs()),
            // The same stack: neither side ever touches it.
            rsi: 0,
            rdx: 0,
            r10: 0,
            r8: 0,
            ..self.injector.process().threads[0].registers
        }
    }

    fn begin(&mut self) -> Result<(), CopyError> {
        let registers = self.cloning(self.code.0, libc::CLONE_VM);
        self.inject(set_registers(self.tid, &registers))?;
        self.inject(resume_to_system_call(self.tid))?;
        self.stage = Stage::Entering;
        Ok(())
    }

    fn make_intermediate(&mut self) -> Result<(), CopyError> {
        let outcome = self.enter_clone();
        self.inject(outcome)
    }

    fn enter_clone(&mut self) -> Result<(), InjectError> {
        self.await_system_call()?;
        resume_to_system_call(self.tid)?;
        self.stage = Stage::Making;
        Ok(())
    }

    fn await_intermediate(&mut self) -> Result<(), CopyError> {
        let outcome = self.await_clone();
        if let Some(source) = self.inject(outcome)? {
            return Err(CopyError::Make { pid: self.pid, source });
        }
        Ok(())
    }

    /// Waits for `clone` to make the intermediate, or to fail.
    fn await_clone(&mut self) -> Result<Option<Errno>, InjectError> {
        let tid = self.tid;
        loop {
            let signal = match self.await_stop()? {
                Stop::Event(_) => break,
                Stop::SystemCall => {
                    self.stage = Stage::Idle;
                    let result = trace("read the registers of", tid, ptrace::result_register)?;
                    return Ok(Some(decode_result(result).err().unwrap_or(Errno::EAGAIN)));
                }
                Stop::Signal(signal) => signal,
                _ => 0,
            };
            trace("resume", tid, |tid| ptrace::resume(tid, Resume::ToSystemCall, signal))?;
        }
        self.stage = Stage::Made;
        let intermediate = trace("ask for the child of", tid, ptrace::event_thread)?;
        await_trap(intermediate)?;
        self.intermediate = Some(intermediate);
        Ok(None)
    }

    fn make_copy(&mut self) -> Result<(), CopyError> {
        let Some(intermediate) = self.intermediate else { return Ok(()) };
        let registers = self.cloning(self.code.0 + COPY, 0);
        self.inject(set_registers(intermediate, &registers))?;
        let resumed = trace("resume", intermediate, |tid| ptrace::resume(tid, Resume::Run, 0));
        self.inject(resumed)
    }

    fn await_copy(&mut self) -> Result<(), CopyError> {
        let Some(intermediate) = self.intermediate else { return Ok(()) };
        loop {
            let stop = trace("await", intermediate, |tid| ptrace::wait(tid, true));
            match self.inject(stop)? {
                Stop::Event(_) => break,
                Stop::Exited(status) => {
                    // It ended with the low byte of what `clone` had given it.
                    self.intermediate = None;
                    return Err(CopyError::Make { pid: self.pid, source: errno_of(status) });
                }
                Stop::Killed(_) => {
                    self.intermediate = None;
                    return Err(CopyError::Make { pid: self.pid, source: Errno::ECANCELED });
                }
                _ => {
                    let resumed =
                        trace("resume", intermediate, |tid| ptrace::resume(tid, Resume::Run, 0));
                    self.inject(resumed)?;
                }
            }
        }
        let copy = trace("ask for the child of", intermediate, ptrace::event_thread);
        let copy = self.inject(copy)?;
        let held =
            await_trap(copy).and_then(|()| trace("take hold of", copy, ptrace::end_with_tracer));
        if let Err(error) = held {
            end(copy);
            return self.inject(Err(error));
        }
        let memory = RemoteMemory::open(copy).map_err(|source| {
            end(copy);
            CopyError::Use { operation: "open the memory of", pid: self.pid, copy, source }
        })?;
        let registers = self.cloning(self.code.0 + COPY, 0);
        let (original, code) = (self.pid, self.code);
        self.copy = Some(Copy { original, pid: copy, memory, code, registers, answers: None });
        Ok(())
    }

    /// Lets the intermediate go, which ends then, and the thread on its way back.
    fn let_go(&mut self) -> Result<(), InjectError> {
        if self.stage == Stage::Entering {
            self.enter_clone()?;
        }
        if self.stage == Stage::Making {
            self.await_clone()?;
        }
        if let Some(intermediate) = self.intermediate.take() {
            // Stopped where it was born, or where the copy was; a failure says that it was killed.
            ptrace::detach(intermediate, 0).unwrap_or_default();
        }
        if self.stage == Stage::Made {
            resume_to_system_call(self.tid)?;
            self.stage = Stage::Leaving;
        }
        Ok(())
    }

    fn leave_clone(&mut self) -> Result<(), InjectError> {
        self.go_on(Stage::Leaving, Stage::Turning)
    }

    fn enter_wait(&mut self) -> Result<(), InjectError> {
        self.go_on(Stage::Turning, Stage::Waiting)
    }

    fn end_wait(&mut self) -> Result<(), InjectError> {
        if self.stage == Stage::Waiting {
            self.await_system_call()?;
            self.stage = Stage::Idle;
        }
        trace("let go of the children of", self.tid, |tid| ptrace::follow_births(tid, false))
    }

    fn go_on(&mut self, from: Stage, to: Stage) -> Result<(), InjectError> {
        if self.stage == from {
            self.await_system_call()?;
            resume_to_system_call(self.tid)?;
            self.stage = to;
        }
        Ok(())
    }

    /// Puts the thread back, and gives the copy.
    fn finish(self) -> Result<Copy, CopyError> {
        let Self { injector, pid, copy, failure, .. } = self;
        let back = injector.finish().map_err(|source| CopyError::Inject { pid, source });
        match (failure, copy) {
            (Some(failure), _) => Err(failure),
            (None, Some(copy)) => back.map(|()| copy),
            // Somebody else failed, and this one has stopped half way.
            (None, None) => Err(CopyError::Make { pid, source: Errno::ECANCELED }),
        }
    }

    fn await_system_call(&self) -> Result<(), InjectError> {
        await_system_call_stop(self.tid, self.injector.process().reaps(self.tid))
    }

    fn await_stop(&self) -> Result<Stop, InjectError> {
        let reap = self.injector.process().reaps(self.tid);
        match trace("await", self.tid, |tid| ptrace::wait(tid, reap))? {
            Stop::Exited(_) | Stop::Killed(_) => Err(InjectError::Died { tid: self.tid }),
            stop => Ok(stop),
        }
    }
}

fn resume_to_system_call(tid: Pid) -> Result<(), InjectError> {
    trace("resume", tid, |tid| ptrace::resume(tid, Resume::ToSystemCall, 0))
}

/// Waits for the stop that a process which is attached from birth begins with.
fn await_trap(tid: Pid) -> Result<(), InjectError> {
    match trace("await", tid, |tid| ptrace::wait(tid, true))? {
        Stop::Exited(_) | Stop::Killed(_) => Err(InjectError::Died { tid }),
        _ => Ok(()),
    }
}

/// The error whose negative has this low byte.
fn errno_of(status: i32) -> Errno {
    Errno::from_raw(256 - status)
}
