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
//! The steps are [`super::birth`]'s. This file knows nothing of what copies are read for.

use std::io;

use nix::errno::Errno;
use nix::unistd::Pid;
use thiserror::Error;

use super::birth::call_in;
use super::error::InjectError;
use super::injection::{Call, Outcome};
use crate::model::address::RemoteAddr;
use crate::model::number::PAGE_SIZE;
use crate::model::thread::Registers;
use crate::sys::memory::RemoteMemory;
use crate::sys::ptrace::{self, Stop};
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
    /// The copy `pid` of `original`, whose code lies at `code`, and which has `registers` to go through that
    /// with.
    pub(super) const fn new(
        original: Pid,
        pid: Pid,
        memory: RemoteMemory,
        code: RemoteAddr,
        registers: Registers,
    ) -> Self {
        Self { original, pid, memory, code, registers, answers: None }
    }

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
        arguments: [u64; 6],
    ) -> Result<Outcome, CopyError> {
        let call = Call::new(number, &arguments);
        call_in(self.pid, &self.registers, &call)
            .map_err(|source| self.failed(operation, io::Error::other(source)))
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
pub(super) fn end(copy: Pid) {
    // It can only have ended before, and then there is nothing to be done.
    if signal::kill(copy, libc::SIGKILL).is_ok() {
        while let Ok(stop) = ptrace::wait(copy, true) {
            if matches!(stop, Stop::Exited(_) | Stop::Killed(_)) {
                break;
            }
        }
    }
}
