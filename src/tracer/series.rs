//! Series of system calls that a frozen thread makes in one go.
//!
//! Each stop of a thread costs more than most calls do. So the calls are written to the thread's memory
//! as a table, and the code of a series slot ([`super::stub`]) makes one after another, puts what each
//! returned in place of its number, and waits to be stopped. The wait is bounded, for the tracer may have
//! been killed. A tracer that comes too late finds the thread gone back to where it was before it was
//! frozen: that does no harm, but what was seen of the process until then is worth nothing.
//!
//! It knows nothing of how threads get into slots ([`super::injection`]).

use std::hint::spin_loop;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::error::InjectError;
use super::injection::{Call, Outcome, decode_result, read, set_registers, trace, write};
use super::restart::NO_SYSTEM_CALL;
use super::stub::{HEAL, SERIES_DONE, SERIES_END, SLOT_SIZE};
use super::tree::Process;
use crate::model::address::RemoteAddr;
use crate::model::number::{as_signed, to_u64, to_usize};
use crate::model::thread::Registers;
use crate::sys::ptrace::{self, Resume, Stop};

/// How long a thread waits to be stopped: much longer than a busy machine lets the tracer wait for its
/// turn, but no longer than a job may be kept waiting when its tracer was killed.
const WAIT: Duration = Duration::from_secs(1);

/// Bytes in front of the calls: how long to wait, and a word that says that all calls are made.
const HEAD: usize = 24;

/// Offset of that word.
const DONE: usize = 16;

/// Bytes of a call: its number, and six arguments.
const ENTRY: usize = 56;

/// How long it is looked for the last call before a thread is stopped wherever it is.
const PATIENCE: Duration = Duration::from_millis(2);

/// How long the calls of most series take, on another processor.
const AT_ONCE: Duration = Duration::from_micros(30);

/// How often a thread that has not got to the end is looked at again.
const LOOK_INTERVAL: Duration = Duration::from_micros(200);

/// A series that a thread was sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Series {
    /// Where its code lies.
    code: RemoteAddr,
    /// Where its table lies.
    table: RemoteAddr,
    /// How many calls it has.
    count: usize,
}

/// How many calls fit into a table of so many bytes.
pub(super) const fn capacity(bytes: u64) -> usize {
    (to_usize(bytes) - HEAD) / ENTRY
}

impl Series {
    /// Sends a thread that is in the slot at `own` on a series of calls, at least one, whose table is to
    /// lie at `table`; `code` is where the series slot of its process lies.
    pub fn begin(
        process: &Process,
        thread: usize,
        own: RemoteAddr,
        (code, table): (RemoteAddr, RemoteAddr),
        calls: &[Call],
    ) -> Result<Self, InjectError> {
        let tid = process.threads[thread].tid;
        write(process, table, &encode(calls))?;
        let registers = Registers {
            rip: code.0,
            orig_rax: NO_SYSTEM_CALL,
            r12: table.0 + to_u64(HEAD),
            r13: to_u64(calls.len()),
            r14: table.0,
            r15: own.0 + HEAL,
            ..process.threads[thread].registers
        };
        set_registers(tid, &registers)?;
        trace("resume", tid, |tid| ptrace::resume(tid, Resume::Run, 0))?;
        Ok(Self { code, table, count: calls.len() })
    }

    /// Waits until the thread has made its calls, and stops it there: what each returned.
    pub fn end(self, process: &Process, tid: Pid) -> Result<Vec<Outcome>, InjectError> {
        self.await_calls(process);
        loop {
            trace("interrupt", tid, ptrace::interrupt)?;
            let signal = match trace("await", tid, |tid| process.next_stop(tid))? {
                Stop::Trap | Stop::Group(_) => {
                    let found = trace("read the registers of", tid, ptrace::registers)?;
                    let offset = found.rip.wrapping_sub(self.code.0);
                    if (SERIES_DONE..=SERIES_END).contains(&offset) {
                        break;
                    }
                    if offset >= to_u64(SLOT_SIZE) {
                        return Err(InjectError::Late { tid });
                    }
                    0
                }
                // Signals are blocked, but for SIGSTOP, which takes effect, and the stop that follows.
                Stop::Signal(signal) => signal,
                Stop::SystemCall | Stop::Event(_) => 0,
                Stop::Exited(_) | Stop::Killed(_) => return Err(InjectError::Died { tid }),
            };
            trace("resume", tid, |tid| ptrace::resume(tid, Resume::Run, signal))?;
            sleep(LOOK_INTERVAL);
        }
        let mut table = vec![0; HEAD + self.count * ENTRY];
        read(process, self.table, &mut table)?;
        Ok(decode(&table))
    }

    /// Waits for the last call, for a while: on a busy machine that takes long.
    fn await_calls(self, process: &Process) {
        let begun = Instant::now();
        let done = RemoteAddr(self.table.0 + to_u64(DONE));
        // Once the thread has gone back the table is not there any more.
        while process.memory.read_word(done).is_ok_and(|word| word == 0) {
            // It may need this processor. Whoever merely yields may lose its turn for long.
            match begun.elapsed() {
                waited if waited < AT_ONCE => spin_loop(),
                waited if waited < PATIENCE => sleep(AT_ONCE),
                _ => return,
            }
        }
    }
}

fn encode(calls: &[Call]) -> Vec<u8> {
    let mut table = Vec::with_capacity(HEAD + calls.len() * ENTRY);
    // A `struct timespec`.
    table.extend(WAIT.as_secs().to_le_bytes());
    table.extend(u64::from(WAIT.subsec_nanos()).to_le_bytes());
    table.extend([0; 8]);
    for call in calls {
        table.extend(call.number.to_le_bytes());
        table.extend(call.arguments.iter().flat_map(|argument| argument.to_le_bytes()));
    }
    table
}

fn decode(table: &[u8]) -> Vec<Outcome> {
    let (entries, _) = table[HEAD..].as_chunks::<ENTRY>();
    let result = |entry: &[u8; ENTRY]| {
        let mut word = [0; 8];
        word.copy_from_slice(&entry[..8]);
        decode_result(as_signed(u64::from_le_bytes(word)))
    };
    entries.iter().map(result).collect()
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn a_table_holds_numbers_and_then_results() {
        let calls = [Call::new(39, &[]), Call::new(3, &[7, 8])];
        let mut table = encode(&calls);
        assert_eq!(table.len(), HEAD + 2 * ENTRY);
        assert_eq!(decode(&table), [Ok(39), Ok(3)]);
        let second = HEAD + ENTRY;
        assert_eq!(
            table[second + 8..second + 24],
            [7, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]
        );
        table[second..second + 8].copy_from_slice(&(-9_i64).to_le_bytes());
        assert_eq!(decode(&table), [Ok(39), Err(Errno::EBADF)]);
    }

    #[test]
    fn tables_have_room_for_some_calls() {
        assert_eq!(capacity(to_u64(HEAD + 3 * ENTRY)), 3);
        assert_eq!(capacity(to_u64(HEAD + 3 * ENTRY - 1)), 2);
    }
}
