//! Questions that a process answers all at once: a form is filled with system calls, the process makes
//! them in one go, and the answers are read from it.

use nix::errno::Errno;
use nix::unistd::Pid;

use super::error::CollectError;
use crate::model::number::to_u64;
use crate::tracer::injection::{Call, Injector, Outcome, SCRATCH_SIZE};

/// A question whose answer is what the call returns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number(usize);

/// A question whose answer is a structure that the call fills.
#[derive(Clone, Copy, Debug)]
pub(super) struct Structure {
    number: Number,
    offset: usize,
    size: usize,
}

/// Questions to one process.
#[derive(Debug)]
pub(super) struct Form {
    pid: Pid,
    /// Where structures are put, in the process.
    area: u64,
    /// Bytes of structures.
    used: usize,
    calls: Vec<Call>,
    /// What each call is to find out.
    operations: Vec<&'static str>,
}

/// What a process has answered.
#[derive(Debug)]
pub(super) struct Answers {
    pid: Pid,
    operations: Vec<&'static str>,
    outcomes: Vec<Outcome>,
    content: Vec<u8>,
}

impl Form {
    /// An empty form for the process of an injector.
    pub fn new(injector: &Injector<'_>) -> Self {
        Self {
            pid: injector.process().task(),
            area: injector.scratch().start.0,
            used: 0,
            calls: Vec::new(),
            operations: Vec::new(),
        }
    }

    /// Asks for what a call returns.
    pub fn number(&mut self, operation: &'static str, call: Call) -> Number {
        self.calls.push(call);
        self.operations.push(operation);
        Number(self.calls.len() - 1)
    }

    /// Asks for the structure of `size` bytes that a call fills at the address it is
    /// given.
    ///
    /// # Panics
    /// When there is no room for it.
    pub fn structure(
        &mut self,
        operation: &'static str,
        size: usize,
        call: impl FnOnce(u64) -> Call,
    ) -> Structure {
        let offset = self.used;
        self.used += size.next_multiple_of(8);
        assert!(to_u64(self.used) <= SCRATCH_SIZE, "a form has room for {SCRATCH_SIZE} bytes");
        let number = self.number(operation, call(self.area + to_u64(offset)));
        Structure { number, offset, size }
    }

    /// Has the process answer.
    pub fn ask(self, injector: &mut Injector<'_>) -> Result<Answers, CollectError> {
        let Self { pid, used, calls, operations, .. } = self;
        let failed = |source| CollectError::Inject { pid, source };
        let outcomes = injector.call_all(&calls).map_err(failed)?;
        let mut content = vec![0; used];
        injector.read(injector.scratch().start, &mut content).map_err(failed)?;
        Ok(Answers { pid, operations, outcomes, content })
    }
}

impl Answers {
    /// What a call returned.
    pub fn number(&self, Number(place): Number) -> Result<u64, CollectError> {
        let operation = self.operations[place];
        self.outcomes[place].map_err(|source| CollectError::Ask {
            operation,
            pid: self.pid,
            source,
        })
    }

    /// What a call returned; `None` when that was an error: this kernel does not know it.
    pub fn known(&self, Number(place): Number) -> Option<u64> {
        self.outcomes[place].ok()
    }

    /// The error of a call.
    pub fn error(&self, Number(place): Number) -> Option<Errno> {
        self.outcomes[place].err()
    }

    /// What a call has filled.
    pub fn structure(&self, structure: Structure) -> Result<&[u8], CollectError> {
        self.number(structure.number)?;
        Ok(&self.content[structure.offset..structure.offset + structure.size])
    }
}
