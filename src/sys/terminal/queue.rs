//! What waits in a pseudo-terminal, read without anybody missing it, and put into a new one.
//!
//! The kernel lets nobody look into a terminal's queue: what is to be known has to be read, and put
//! back at once. That is done while the job stands still, by a process of its own in a session of its
//! own, the *guardian*, which goes through with it whatever becomes of rckpt meanwhile. Only who
//! kills the guardian itself, in the fraction of a millisecond that it lives, would lose what it
//! holds; and should rckpt be killed in the microseconds in which a terminal is empty, what the job
//! then writes at once may come before what was there. A terminal that shows by itself that nothing
//! waits in it is left alone.
//!
//! The guardian is forked from a process that may have several threads: it allocates nothing and
//! takes no lock.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use thiserror::Error;

use super::feeding::Feeding;
use super::{queued, set_modes, set_packet_mode, set_stopped};
use crate::model::id::Bytes;
use crate::model::number::{to_u64, to_usize};
use crate::model::terminal::{Flow, TerminalInput};
use crate::sys::clone::{self, Fork};
use crate::sys::descriptor;

/// Bytes that fit into a queue with room to spare: the line discipline has 4 KiB, the buffers in front
/// of it not much more than 8 KiB (drivers/tty/pty.c, drivers/tty/tty_buffer.c).
const ROOM: usize = 32 * 1024;

/// Bytes of the length in front of each line.
const PREFIX: usize = 4;

/// Written at once: this fills the kernel's buffers without gaps.
const CHUNK: usize = 256;

/// The last bytes are written at once, because a terminal that has any room takes as much: so that
/// whatever was in a full one finds room again.
const LAST_CHUNK: usize = 2048;

/// How often it is looked whether something has arrived, which takes microseconds unless the machine
/// is very busy: most of these turns take a millisecond.
const PATIENCE: u32 = 5000;

/// Turns that take but some microseconds.
const QUICK_TURNS: u32 = 200;

/// Milliseconds after which a call that waits for ever is interrupted.
const ALARM: i64 = 100;

/// What waits in a pseudo-terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queues {
    /// To be read from the slave.
    pub input: TerminalInput,
    /// To be read from the master.
    pub output: Bytes,
    /// Whether its output stands still.
    pub flow: Flow,
}

/// A pseudo-terminal to look into.
#[derive(Debug)]
pub struct Pair {
    /// The master.
    pub master: OwnedFd,
    /// A slave.
    pub slave: OwnedFd,
    /// How to feed it.
    pub feeding: Feeding,
    /// Whether the master is in packet mode.
    pub packet_mode: bool,
}

impl Pair {
    /// Whether it shows without being touched that nothing waits in it. One that assembles lines does
    /// not show what has been typed of the next one.
    fn is_idle(&self) -> Result<bool, Errno> {
        let (master, slave) = (self.master.as_fd(), self.slave.as_fd());
        // `poll` lets in what waits in front of the line discipline.
        Ok(!self.feeding.lines
            && !readable(slave)?
            && queued(slave)? == 0
            && !readable(master)?
            && writable(slave)?)
    }
}

impl Queues {
    /// Nothing waits, not even for lines.
    fn idle() -> Self {
        let input = TerminalInput::Raw(Bytes::default());
        Self { input, output: Bytes::default(), flow: Flow::Running }
    }
}

/// Why terminals could not be looked into, or be filled.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum QueueError {
    #[error("make room for what is queued in terminals: {0}")]
    MakeRoom(Errno),
    #[error("start a process to look into terminals: {0}")]
    Fork(Errno),
    #[error("wait for the process that looks into terminals: {0}")]
    Wait(Errno),
    #[error("the process that looks into terminals was ended before it was done")]
    Lost,
    #[error("cannot {} of a terminal: {source}", step.words())]
    Step { step: Step, source: Errno },
}

/// What can fail about a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Asking whether anything waits.
    Look,
    /// Reading lines or bytes that wait for the slave.
    ReadInput,
    /// Reading what waits for the master.
    ReadOutput,
    /// Changing modes.
    SetModes,
    /// Typing the input.
    Type,
    /// Writing the output.
    Write,
    /// Waiting for what was written to arrive.
    Arrive,
    /// Letting output go on, or stopping it.
    SetFlow,
}

impl Step {
    const ALL: [Self; 8] = [
        Self::Look,
        Self::ReadInput,
        Self::ReadOutput,
        Self::SetModes,
        Self::Type,
        Self::Write,
        Self::Arrive,
        Self::SetFlow,
    ];

    const fn words(self) -> &'static str {
        match self {
            Self::Look => "look at the queues",
            Self::ReadInput => "read the input",
            Self::ReadOutput => "read the output",
            Self::SetModes => "set the modes",
            Self::Type => "put back the input",
            Self::Write => "put back the output",
            Self::Arrive => "find again what was put back into the queues",
            Self::SetFlow => "stop or start the output",
        }
    }
}

/// A step that failed.
type Fault = (Step, Errno);

fn at(step: Step) -> impl Fn(Errno) -> Fault {
    move |errno| (step, errno)
}

/// Looks into terminals whose readers and writers all stand still. What is in there stays in there.
///
/// # Errors
/// When no guardian can be made, or what is queued cannot be read or put back.
pub fn peek(pairs: &[Pair]) -> Result<Vec<Queues>, QueueError> {
    let mut busy = Vec::new();
    for pair in pairs {
        if !pair.is_idle().map_err(|source| QueueError::Step { step: Step::Look, source })? {
            busy.push(pair);
        }
    }
    let mut found = look_into(&busy)?.into_iter();
    let mut busy = busy.into_iter().peekable();
    let result = pairs.iter().map(|pair| match busy.next_if(|busy| ptr::eq(*busy, pair)) {
        Some(_) => found.next().ok_or(QueueError::Lost),
        None => Ok(Queues::idle()),
    });
    result.collect()
}

/// Has a guardian look into terminals.
fn look_into(pairs: &[&Pair]) -> Result<Vec<Queues>, QueueError> {
    if pairs.is_empty() {
        return Ok(Vec::new());
    }
    let mut slots = Slots::new(pairs.len()).map_err(QueueError::MakeRoom)?;
    let failed = |error: std::io::Error| {
        QueueError::Fork(error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw))
    };
    let parent = nix::unistd::getpid();
    match clone::fork(0, 0, None).map_err(failed)? {
        Fork::Child => {
            guard(parent, pairs, slots.get());
            clone::exit_now(0)
        }
        Fork::Parent(guardian) => loop {
            match waitpid(guardian, Some(WaitPidFlag::__WALL)) {
                Ok(WaitStatus::Exited(_, 0)) => break,
                Ok(_) => return Err(QueueError::Lost),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(QueueError::Wait(errno)),
            }
        },
    }
    pairs.iter().zip(slots.get()).map(|(pair, slot)| slot.result(&pair.feeding)).collect()
}

/// Puts what waits into a new terminal and gives it its modes. Nobody else may use it yet; the master
/// is not in packet mode, and calls on either end do not wait (O_NONBLOCK).
///
/// # Errors
/// When it does not fit, or an end is gone.
pub fn fill(
    master: BorrowedFd<'_>,
    slave: BorrowedFd<'_>,
    feeding: &Feeding,
    queues: &Queues,
) -> Result<(), QueueError> {
    let mut slots = Slots::new(1).map_err(QueueError::MakeRoom)?;
    let failed = |(step, source)| QueueError::Step { step, source };
    let full = || failed((Step::Type, Errno::ENOSPC));
    let [slot] = slots.get() else { return Err(QueueError::MakeRoom(Errno::EINVAL)) };
    slot.found.keep(queues).ok_or_else(full)?;
    let ends = Ends { master, slave };
    set_modes(slave, &feeding.modes).map_err(|errno| failed((Step::SetModes, errno)))?;
    ends.put_back(feeding, &slot.found, &mut slot.typed).map_err(failed)
}

/// What the guardian needs for one terminal.
#[repr(C)]
struct Slot {
    /// 1 more than the place of the failed step in [`Step::ALL`]; 0: none.
    failed_step: u32,
    failed_errno: i32,
    found: Found,
    /// What is typed to put the input back.
    typed: [u8; 2 * ROOM],
}

/// What is queued in one terminal. Lines stand in `input` each behind its length.
#[repr(C)]
struct Found {
    /// 0, 1 or 2, as in [`Flow`].
    flow: u32,
    /// Complete lines in `input`.
    complete: u32,
    input_length: u32,
    output_length: u32,
    input: [u8; ROOM],
    output: [u8; ROOM],
}

impl Slot {
    /// Keeps the first error.
    fn note(&mut self, outcome: Result<(), Fault>) {
        if let Err((step, errno)) = outcome
            && self.failed_step == 0
        {
            let place = Step::ALL.iter().zip(1..).find(|(known, _)| **known == step);
            self.failed_step = place.map_or(1, |(_, place)| place);
            self.failed_errno = errno as i32;
        }
    }

    /// What was found, for whoever may allocate.
    fn result(&self, feeding: &Feeding) -> Result<Queues, QueueError> {
        match self.failed_step.checked_sub(1) {
            None => Ok(self.found.queues(feeding)),
            Some(place) => {
                let step = Step::ALL.get(to_usize(u64::from(place))).copied();
                Err(QueueError::Step {
                    step: step.unwrap_or(Step::ReadInput),
                    source: Errno::from_raw(self.failed_errno),
                })
            }
        }
    }
}

impl Found {
    fn input(&self) -> &[u8] {
        self.input.get(..to_usize(u64::from(self.input_length))).unwrap_or_default()
    }

    fn output(&self) -> &[u8] {
        self.output.get(..to_usize(u64::from(self.output_length))).unwrap_or_default()
    }

    /// Adds a line.
    fn push_line(&mut self, line: &[u8]) -> Option<()> {
        let start = to_usize(u64::from(self.input_length));
        let length = u32::try_from(line.len()).ok()?;
        let end = start + PREFIX + line.len();
        let place = self.input.get_mut(start..end)?;
        place[..PREFIX].copy_from_slice(&length.to_ne_bytes());
        place[PREFIX..].copy_from_slice(line);
        self.input_length = u32::try_from(end).ok()?;
        Some(())
    }

    /// Adds bytes without a length.
    fn push_bytes(&mut self, bytes: &[u8]) -> Option<()> {
        let start = to_usize(u64::from(self.input_length));
        self.input.get_mut(start..start + bytes.len())?.copy_from_slice(bytes);
        self.input_length = u32::try_from(start + bytes.len()).ok()?;
        Some(())
    }

    fn push_output(&mut self, bytes: &[u8]) -> Option<()> {
        let start = to_usize(u64::from(self.output_length));
        self.output.get_mut(start..start + bytes.len())?.copy_from_slice(bytes);
        self.output_length = u32::try_from(start + bytes.len()).ok()?;
        Some(())
    }

    /// The line at `offset`, and where the next one begins.
    fn line(&self, offset: usize) -> Option<(&[u8], usize)> {
        let rest = self.input().get(offset..)?;
        let (length, rest) = rest.split_at_checked(PREFIX)?;
        let length = to_usize(u64::from(u32::from_ne_bytes(length.try_into().ok()?)));
        Some((rest.get(..length)?, offset + PREFIX + length))
    }

    /// Takes what is to be put into a terminal.
    fn keep(&mut self, queues: &Queues) -> Option<()> {
        match &queues.input {
            TerminalInput::Raw(bytes) => self.push_bytes(&bytes.0)?,
            TerminalInput::Lines { complete, begun } => {
                for line in complete {
                    self.push_line(&line.0)?;
                    self.complete += 1;
                }
                self.push_line(&begun.0)?;
            }
        }
        self.flow = match queues.flow {
            Flow::Running => 0,
            Flow::StoppedByKey => 1,
            Flow::StoppedByProgram => 2,
        };
        self.push_output(&queues.output.0)
    }

    fn flow(&self) -> Flow {
        match self.flow {
            0 => Flow::Running,
            1 => Flow::StoppedByKey,
            _ => Flow::StoppedByProgram,
        }
    }

    /// The same as records.
    fn queues(&self, feeding: &Feeding) -> Queues {
        let input = if feeding.lines {
            let mut lines = Vec::new();
            let mut offset = 0;
            while let Some((line, next)) = self.line(offset) {
                lines.push(Bytes::from(line));
                offset = next;
            }
            let begun = lines.split_off(to_usize(u64::from(self.complete)).min(lines.len()));
            TerminalInput::Lines {
                complete: lines,
                begun: begun.into_iter().next().unwrap_or_default(),
            }
        } else {
            TerminalInput::Raw(Bytes::from(self.input()))
        };
        Queues { input, output: Bytes::from(self.output()), flow: self.flow() }
    }
}

/// Slots in memory that the guardian shares with who made it.
struct Slots {
    start: *mut Slot,
    count: usize,
}

impl Slots {
    fn new(count: usize) -> Result<Self, Errno> {
        let length = count * size_of::<Slot>();
        // SAFETY: the kernel chooses where a new mapping goes, so it replaces nothing.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(Self { start: start.cast(), count })
    }

    fn get(&mut self) -> &mut [Slot] {
        // SAFETY: the mapping has room for `count` slots, is aligned to pages, and zero bytes are a
        // valid slot. The other process that has it mapped writes only before it is waited for.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.count) }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length, and no reference to it outlives `self`.
        unsafe { libc::munmap(self.start.cast(), self.count * size_of::<Slot>()) };
    }
}

/// The life of the guardian. Errors go into the slots.
fn guard(parent: Pid, pairs: &[&Pair], slots: &mut [Slot]) {
    stand_apart();
    for (pair, slot) in pairs.iter().zip(slots) {
        // The job runs again: it is too late to begin with another one.
        if nix::unistd::getppid() != parent {
            return;
        }
        let ends = Ends {
            // SAFETY: both descriptors are open as long as the pair is.
            master: unsafe { BorrowedFd::borrow_raw(pair.master.as_raw_fd()) },
            // SAFETY: as above.
            slave: unsafe { BorrowedFd::borrow_raw(pair.slave.as_raw_fd()) },
        };
        // Turning packet mode on again forgets events that nobody has read; the caller has seen that
        // there are none.
        if pair.packet_mode {
            slot.note(set_packet_mode(ends.master, false).map_err(at(Step::SetModes)));
        }
        let taken = ends.take(&pair.feeding, &mut slot.found);
        slot.note(taken);
        let put_back = ends.put_back(&pair.feeding, &slot.found, &mut slot.typed);
        slot.note(put_back);
        if pair.packet_mode {
            slot.note(set_packet_mode(ends.master, true).map_err(at(Step::SetModes)));
        }
    }
}

/// Leaves the group and session of rckpt, so that what ends those does not reach the caller, and sees
/// to it that nothing waits for ever.
fn stand_apart() {
    extern "C" fn nothing(_: c_int) {}
    let mut all_others = SigSet::all();
    all_others.remove(Signal::SIGALRM);
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    let interval = libc::timeval { tv_sec: 0, tv_usec: ALARM * 1000 };
    let timer = libc::itimerval { it_interval: interval, it_value: interval };
    // None of these calls can fail for these arguments: a process that was just forked leads no
    // group. Should one do, the work is done all the same.
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all_others), None)
        .unwrap_or_default();
    if nix::unistd::setsid().is_err() {
        return;
    }
    // SAFETY: the handler does nothing, which is allowed at any moment.
    if unsafe { nix::sys::signal::sigaction(Signal::SIGALRM, &action) }.is_err() {
        return;
    }
    // SAFETY: the call reads one `itimerval`, which `timer` is.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, ptr::null_mut()) };
}

/// Both ends of a terminal that nobody else uses at the moment.
#[derive(Clone, Copy)]
struct Ends<'a> {
    master: BorrowedFd<'a>,
    slave: BorrowedFd<'a>,
}

impl Ends<'_> {
    /// Takes out all that is queued. The terminal is left in the modes in which it is fed.
    fn take(&self, feeding: &Feeding, found: &mut Found) -> Result<(), Fault> {
        let mut buffer = [0; 4096];
        if feeding.lines {
            self.take_lines(found, &mut buffer)?;
        } else {
            take_bytes(self.slave, &mut buffer, Step::ReadInput, |bytes| found.push_bytes(bytes))?;
        }
        take_bytes(self.master, &mut buffer, Step::ReadOutput, |bytes| found.push_output(bytes))?;
        self.start(found)?;
        if feeding.lines {
            self.take_begun(feeding, found, &mut buffer)?;
        }
        set_modes(self.slave, &feeding.modes).map_err(at(Step::SetModes))
    }

    /// Each read gives one line, and an end of file alone gives nothing.
    fn take_lines(&self, found: &mut Found, buffer: &mut [u8]) -> Result<(), Fault> {
        let failed = at(Step::ReadInput);
        while readable(self.slave).map_err(&failed)? {
            let length = read(self.slave, buffer).map_err(&failed)?;
            found.push_line(&buffer[..length]).ok_or((Step::ReadInput, Errno::ENOSPC))?;
            found.complete += 1;
        }
        Ok(())
    }

    /// What is begun of a line shows only when lines do not matter. Nothing else is queued by now, so
    /// that the kernel forgets where lines end does no harm.
    fn take_begun(
        &self,
        feeding: &Feeding,
        found: &mut Found,
        buffer: &mut [u8],
    ) -> Result<(), Fault> {
        let failed = at(Step::ReadInput);
        set_modes(self.slave, &feeding.bare).map_err(at(Step::SetModes))?;
        let begun = to_usize(queued(self.slave).map_err(&failed)?).min(buffer.len());
        let begun = match begun {
            0 => 0,
            _ => read(self.slave, &mut buffer[..begun]).map_err(&failed)?,
        };
        found.push_line(&buffer[..begun]).ok_or((Step::ReadInput, Errno::ENOSPC))
    }

    /// Finds out whether output stands still, now that it cannot be because it is full, and if so,
    /// why. What a program has stopped goes on by the same way; what a key has stopped, as soon as the
    /// modes that follow give no key that meaning (`n_tty_set_termios` in drivers/tty/n_tty.c).
    fn start(&self, found: &mut Found) -> Result<(), Fault> {
        let failed = at(Step::SetFlow);
        if writable(self.slave).map_err(&failed)? {
            return Ok(());
        }
        set_stopped(self.slave, false).map_err(&failed)?;
        found.flow = if writable(self.slave).map_err(&failed)? { 2 } else { 1 };
        Ok(())
    }

    /// Types the key that stops the output, and waits until it has worked.
    fn press_stop(&self, feeding: &Feeding) -> Result<(), Fault> {
        let failed = at(Step::SetFlow);
        set_modes(self.slave, &feeding.stop).map_err(&failed)?;
        write_all(self.master, &[super::feeding::STOP_KEY]).map_err(&failed)?;
        for turn in 0..PATIENCE {
            if !writable(self.slave).map_err(&failed)? {
                return Ok(());
            }
            pause(turn);
        }
        Err((Step::SetFlow, Errno::ETIMEDOUT))
    }

    /// Puts in what is kept; the terminal is in the modes for that, and gets its own at the end,
    /// also when something fails.
    fn put_back(&self, feeding: &Feeding, found: &Found, typed: &mut [u8]) -> Result<(), Fault> {
        let input = if feeding.lines {
            self.type_lines(feeding, found, typed)
        } else {
            self.type_bytes(found)
        };
        let output = self.write_output(found);
        let flow = match found.flow() {
            Flow::Running => Ok(()),
            Flow::StoppedByKey => self.press_stop(feeding),
            Flow::StoppedByProgram => set_stopped(self.slave, true).map_err(at(Step::SetFlow)),
        };
        let modes = set_modes(self.slave, &feeding.own).map_err(at(Step::SetModes));
        input.and(output).and(flow).and(modes)
    }

    fn type_bytes(&self, found: &Found) -> Result<(), Fault> {
        let input = found.input();
        if input.is_empty() {
            return Ok(());
        }
        write_all(self.master, input).map_err(at(Step::Type))?;
        self.await_queued(self.slave, input.len())
    }

    /// A character more is typed and taken back. Once the terminal has echoed that, all before it has
    /// arrived.
    fn type_lines(&self, feeding: &Feeding, found: &Found, typed: &mut [u8]) -> Result<(), Fault> {
        let (mut offset, mut number, mut length, mut echoed) = (0, 0, 0, 0);
        let full = (Step::Type, Errno::ENOSPC);
        while let Some((line, next)) = found.line(offset) {
            let place = typed.get_mut(length..).ok_or(full)?;
            let done = feeding.type_text(line, number < found.complete, place).ok_or(full)?;
            (offset, number) = (next, number + 1);
            (length, echoed) = (length + done.length, echoed + done.echoed);
        }
        if length == 0 {
            return Ok(());
        }
        let fence = typed.get_mut(length..length + 2).ok_or(full)?;
        fence.copy_from_slice(&[b'x', feeding.erase]);
        echoed += 2;
        write_all(self.master, &typed[..length + 2]).map_err(at(Step::Type))?;
        let mut buffer = [0; 4096];
        for turn in 0..PATIENCE {
            let room = echoed.min(buffer.len());
            let waiting = readable(self.master).map_err(at(Step::Arrive))?;
            if waiting {
                echoed -= read(self.master, &mut buffer[..room]).map_err(at(Step::Arrive))?;
                if echoed == 0 {
                    return Ok(());
                }
            } else {
                pause(turn);
            }
        }
        Err((Step::Arrive, Errno::ETIMEDOUT))
    }

    fn write_output(&self, found: &Found) -> Result<(), Fault> {
        let output = found.output();
        if output.is_empty() {
            return Ok(());
        }
        write_all(self.slave, output).map_err(at(Step::Write))?;
        self.await_queued(self.master, output.len())
    }

    /// Waits until `count` bytes have come to the line discipline, or as many as it takes.
    fn await_queued(&self, file: BorrowedFd<'_>, count: usize) -> Result<(), Fault> {
        const LINE_DISCIPLINE_TAKES: usize = 4095;
        let failed = at(Step::Arrive);
        let wanted = to_u64(count.min(LINE_DISCIPLINE_TAKES));
        for turn in 0..PATIENCE {
            if queued(file).map_err(&failed)? >= wanted {
                return Ok(());
            }
            pause(turn);
        }
        Err((Step::Arrive, Errno::ETIMEDOUT))
    }
}

/// Takes all that can be read from an end that gives bytes.
fn take_bytes(
    file: BorrowedFd<'_>,
    buffer: &mut [u8],
    step: Step,
    mut keep: impl FnMut(&[u8]) -> Option<()>,
) -> Result<(), Fault> {
    let failed = at(step);
    loop {
        // Lets in what waits in front of the line discipline.
        readable(file).map_err(&failed)?;
        // As much as is there: a terminal may wait for more than one byte (VMIN).
        let there = to_usize(queued(file).map_err(&failed)?).min(buffer.len());
        if there == 0 {
            return Ok(());
        }
        let length = read(file, &mut buffer[..there]).map_err(&failed)?;
        keep(&buffer[..length]).ok_or((step, Errno::ENOSPC))?;
    }
}

fn readable(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(descriptor::poll_now(file, libc::POLLIN)? & libc::POLLIN != 0)
}

fn writable(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(descriptor::poll_now(file, libc::POLLOUT)? & libc::POLLOUT != 0)
}

fn read(file: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    nix::unistd::read(file, buffer)
}

/// Writes everything, a little at a time, so that no call has to wait.
fn write_all(file: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), Errno> {
    let mut rest = bytes;
    let mut turns = 0;
    while !rest.is_empty() {
        if !writable(file)? {
            turns += 1;
            if turns > PATIENCE {
                return Err(Errno::ETIMEDOUT);
            }
            pause(turns);
            continue;
        }
        let now = if rest.len() > LAST_CHUNK { CHUNK } else { rest.len() };
        match nix::unistd::write(file, &rest[..now]) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Lets the kernel's own threads run, which carry the bytes.
fn pause(turn: u32) {
    let span = if turn < QUICK_TURNS { 20_000 } else { 1_000_000 };
    let moment = libc::timespec { tv_sec: 0, tv_nsec: span };
    // SAFETY: the call reads one `timespec`; a null pointer says that the rest is not wanted. That it
    // may be interrupted does not matter.
    unsafe { libc::nanosleep(&raw const moment, ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, tcgetattr, tcsetattr};

    use super::*;
    use crate::sys::terminal::{self, modes};

    /// A terminal whose calls do not wait, in the modes that `change` makes of a new one's.
    fn terminal(change: impl FnOnce(&mut nix::sys::termios::Termios)) -> Pair {
        let pair = nix::pty::openpty(None, None).unwrap();
        for end in [&pair.master, &pair.slave] {
            descriptor::set_status_flags(end, libc::O_RDWR | libc::O_NONBLOCK).unwrap();
        }
        let mut termios = tcgetattr(&pair.slave).unwrap();
        change(&mut termios);
        tcsetattr(&pair.slave, SetArg::TCSANOW, &termios).unwrap();
        let feeding = Feeding::new(&modes(&pair.slave).unwrap());
        Pair { master: pair.master, slave: pair.slave, feeding, packet_mode: false }
    }

    /// Reads everything, each `read` by itself.
    fn reads(file: &OwnedFd) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        let mut buffer = [0; 8192];
        while readable(file.as_fd()).unwrap() {
            let length = nix::unistd::read(file, &mut buffer).unwrap();
            found.push(buffer[..length].to_vec());
        }
        found
    }

    fn queues(complete: &[&[u8]], begun: &[u8], output: &[u8]) -> Queues {
        Queues {
            input: TerminalInput::Lines {
                complete: complete.iter().map(|line| Bytes::from(*line)).collect(),
                begun: Bytes::from(begun),
            },
            output: Bytes::from(output),
            flow: Flow::Running,
        }
    }

    fn settle(pair: &Pair, count: usize) {
        let ends = Ends { master: pair.master.as_fd(), slave: pair.slave.as_fd() };
        ends.await_queued(pair.master.as_fd(), count).unwrap();
    }

    #[test]
    fn lines_are_seen_and_stay() {
        let pair = terminal(|_| {});
        nix::unistd::write(&pair.master, b"one\ntwo\x04\x04a\x16\nb\nbegun").unwrap();
        nix::unistd::write(&pair.slave, b"out\n").unwrap();
        let echo = b"one\r\ntwoa^\x08^Jb\r\nbegun".len() + "out\r\n".len();
        settle(&pair, echo);
        for _ in 0..3 {
            let found = peek(std::slice::from_ref(&pair)).unwrap();
            let [found] = &found[..] else { panic!("one terminal") };
            let lines: &[&[u8]] = &[b"one\n", b"two", b"", b"a\nb\n"];
            assert_eq!(found.input, queues(lines, b"begun", b"").input);
            assert_eq!(found.output.0.len(), echo);
            assert_eq!(modes(&pair.slave).unwrap(), pair.feeding.own);
        }
        assert_eq!(reads(&pair.master).concat().len(), echo);
        assert_eq!(reads(&pair.slave), [&b"one\n"[..], b"two", b"", b"a\nb\n"]);
        nix::unistd::write(&pair.master, b"\x7fn!\n").unwrap();
        settle(&pair, 5);
        assert_eq!(reads(&pair.slave), [b"begun!\n"]);
    }

    #[test]
    fn bytes_are_seen_and_stay() {
        let pair = terminal(|termios| {
            nix::sys::termios::cfmakeraw(termios);
            termios.control_chars[SpecialCharacterIndices::VMIN as usize] = 100;
        });
        let all: Vec<u8> = (0..=255).collect();
        nix::unistd::write(&pair.master, &all).unwrap();
        nix::unistd::write(&pair.slave, &all).unwrap();
        settle(&pair, 256);
        for _ in 0..3 {
            let found = peek(std::slice::from_ref(&pair)).unwrap();
            assert_eq!(found[0].input, TerminalInput::Raw(Bytes::from(&all[..])));
            assert_eq!(found[0].output.0, all);
        }
        assert_eq!(reads(&pair.master).concat(), all);
        // Fewer than are wanted at once are not shown by poll.
        let mut input = Vec::new();
        while queued(&pair.slave).unwrap() > 0 {
            input.extend(descriptor::read_once(&pair.slave, 256).unwrap());
        }
        assert_eq!(input, all);
    }

    #[test]
    fn a_full_terminal_keeps_everything() {
        let pair = terminal(nix::sys::termios::cfmakeraw);
        let mut written = Vec::new();
        while let Ok(length) = nix::unistd::write(&pair.slave, &[b'a'; 100]) {
            written.resize(written.len() + length, b'a');
            pause(0);
        }
        assert!(written.len() > 4096);
        let found = peek(std::slice::from_ref(&pair)).unwrap();
        assert_eq!((&found[0].output.0, found[0].flow), (&written, Flow::Running));
        let mut rest = 0;
        while rest < written.len() {
            rest += reads(&pair.master).concat().len();
        }
        assert_eq!(rest, written.len());
    }

    #[test]
    fn stopped_output_stays_stopped() {
        let pair = terminal(|termios| termios.local_flags.remove(LocalFlags::ECHO));
        let flow = || peek(std::slice::from_ref(&pair)).unwrap()[0].flow;
        assert_eq!(flow(), Flow::Running);
        terminal::set_stopped(&pair.slave, true).unwrap();
        assert_eq!([flow(), flow()], [Flow::StoppedByProgram; 2]);
        terminal::set_stopped(&pair.slave, false).unwrap();
        assert_eq!(flow(), Flow::Running);
        nix::unistd::write(&pair.master, b"\x13").unwrap();
        while writable(pair.slave.as_fd()).unwrap() {}
        assert_eq!([flow(), flow()], [Flow::StoppedByKey; 2]);
        nix::unistd::write(&pair.master, b"\x11").unwrap();
        while !writable(pair.slave.as_fd()).unwrap() {}
        assert_eq!(flow(), Flow::Running);
    }

    #[test]
    fn a_new_terminal_is_filled() {
        let lines: &[&[u8]] = &[b"one\n", b"", b"\x01\x02\x03\x04\n", b"end"];
        let wanted = queues(lines, b"beg\tun", b"output\r\n");
        let pair = terminal(|_| {});
        fill(pair.master.as_fd(), pair.slave.as_fd(), &pair.feeding, &wanted).unwrap();
        assert_eq!(peek(std::slice::from_ref(&pair)).unwrap(), [wanted]);
        assert_eq!(reads(&pair.slave), lines);
        assert_eq!(reads(&pair.master), [b"output\r\n"]);
    }

    #[test]
    fn an_empty_terminal_is_left_alone() {
        let pair = terminal(|_| {});
        let found = peek(std::slice::from_ref(&pair)).unwrap();
        assert_eq!(found, [queues(&[], b"", b"")]);
        assert_eq!(modes(&pair.slave).unwrap(), pair.feeding.own);
        assert!(!readable(pair.slave.as_fd()).unwrap() && !readable(pair.master.as_fd()).unwrap());
        assert_eq!(peek(&[]).unwrap(), []);
    }
}
