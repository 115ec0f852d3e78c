//! Making hidden copies of frozen processes, and descriptors that watch their memory: the steps through
//! which a process goes for that ([`super::copy`] says why it is done so).
//!
//! The intermediate leaves the process's table of descriptors before it makes a descriptor of its own
//! (userfaultfd(2)), which rckpt takes over from it: so that is never in a table of the job, whatever
//! becomes of rckpt. What the intermediate shares to the end is the memory, which the descriptor belongs
//! to.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::unistd::Pid;

use super::copy::{self, Copy, CopyError};
use super::error::InjectError;
use super::injection::{
    Call, Injector, Outcome, await_system_call_stop, decode_result, set_registers, trace,
};
use super::restart::NO_SYSTEM_CALL;
use super::stub::{self, COPY};
use super::tree::Process;
use crate::model::address::RemoteAddr;
use crate::model::thread::Registers;
use crate::sys::memory::RemoteMemory;
use crate::sys::ptrace::{self, Resume, Stop};
use crate::sys::{descriptor, write_watch};

const CLOSE_RANGE_UNSHARE: u64 = 2;

/// What is to be made of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// A hidden copy.
    pub copy: bool,
    /// A descriptor that its memory can be watched with.
    pub watch: bool,
}

/// What has been made of a process.
#[derive(Debug, Default)]
pub struct Born {
    /// Its copy, if that was wanted.
    pub copy: Option<Copy>,
    /// What userfaultfd(2) gave to it, if that was wanted: a descriptor that nobody else has, or why there
    /// is none.
    pub watch: Option<Result<OwnedFd, Errno>>,
}

/// Makes of each of some frozen processes what is wanted, all at once, as nearly as processors allow.
///
/// # Errors
/// When one of them cannot be copied; then none is.
pub(super) fn bear<'tree>(
    processes: impl Iterator<Item = (&'tree mut Process, Wanted)>,
) -> Result<Vec<Born>, CopyError> {
    let mut births = Vec::new();
    for (process, wanted) in processes {
        let pid = process.pid;
        let birth = Birth::prepare(process, wanted);
        births.push(birth.map_err(|source| CopyError::Inject { pid, source })?);
    }
    // Each step is taken by all before the next, so that they work while others are waited for.
    for step in [
        Birth::begin,
        Birth::make_intermediate,
        Birth::await_intermediate,
        Birth::make_watch,
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
    // All are tried; copies end when they are dropped. A thread that is not back weighs more than a copy
    // that was not made.
    let mut outcomes: Vec<_> = births.into_iter().map(Birth::finish).collect();
    let is_grave = |outcome: &Result<_, CopyError>| {
        matches!(outcome, Err(CopyError::Inject { .. } | CopyError::Use { .. }))
    };
    if let Some(grave) = outcomes.iter().position(is_grave) {
        outcomes.swap(0, grave);
    }
    outcomes.into_iter().collect()
}

/// A process that something is being made of.
struct Birth<'tree> {
    injector: Injector<'tree>,
    wanted: Wanted,
    pid: Pid,
    tid: Pid,
    code: RemoteAddr,
    stage: Stage,
    /// The intermediate, while it is held.
    intermediate: Option<Pid>,
    /// Whether the intermediate runs, on its way to a copy.
    copying: bool,
    born: Born,
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
    /// Stopped in `clone`, with an intermediate made that is not held yet.
    Bearing,
    /// Stopped in `clone`, with the intermediate made.
    Made,
    /// On its way out of `clone` again.
    Leaving,
    /// On its way into `waitid`.
    Turning,
    /// In `waitid`.
    Waiting,
    /// It was killed, or cannot be led any further.
    Dead,
}

impl<'tree> Birth<'tree> {
    fn prepare(process: &'tree mut Process, wanted: Wanted) -> Result<Self, InjectError> {
        let (pid, tid) = (process.pid, process.threads[0].tid);
        let mut injector = Injector::without_scratch(process)?;
        let code = injector.place(&stub::encode_birth)?;
        trace("follow the children of", tid, |tid| ptrace::follow_births(tid, true))?;
        Ok(Self {
            injector,
            wanted,
            pid,
            tid,
            code,
            stage: Stage::Idle,
            intermediate: None,
            copying: false,
            born: Born::default(),
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
        self.stage = Stage::Bearing;
        self.take_hold()?;
        Ok(None)
    }

    /// Takes hold of the intermediate that has just been made.
    fn take_hold(&mut self) -> Result<(), InjectError> {
        let intermediate = trace("ask for the child of", self.tid, ptrace::event_thread)?;
        self.stage = Stage::Made;
        await_trap(intermediate)?;
        self.intermediate = Some(intermediate);
        Ok(())
    }

    /// Has the intermediate leave the table of descriptors, and makes one that is its own.
    fn make_watch(&mut self) -> Result<(), CopyError> {
        if let Some(intermediate) = self.intermediate.filter(|_| self.wanted.watch) {
            let made = self.take_watch(intermediate);
            self.born.watch = Some(self.inject(made)?);
        }
        Ok(())
    }

    fn take_watch(&self, intermediate: Pid) -> Result<Result<OwnedFd, Errno>, InjectError> {
        let call = |number, arguments: &[u64]| {
            let registers = self.cloning(self.code.0 + COPY, 0);
            let call = Call::new(number, arguments);
            call_in(intermediate, &registers, &call)
        };
        let all = [0, u64::from(u32::MAX), CLOSE_RANGE_UNSHARE];
        if let Err(errno) = call(libc::SYS_close_range, &all)? {
            return Ok(Err(errno));
        }
        let number = match call(libc::SYS_userfaultfd, &[write_watch::CREATION_FLAGS])? {
            Ok(number) => i32::try_from(number).unwrap_or(-1),
            Err(errno) => return Ok(Err(errno)),
        };
        let taken = descriptor::pidfd_open(intermediate)
            .and_then(|pidfd| descriptor::pidfd_getfd(pidfd, number));
        Ok(taken)
    }

    fn make_copy(&mut self) -> Result<(), CopyError> {
        let Some(intermediate) = self.intermediate.filter(|_| self.wanted.copy) else {
            return Ok(());
        };
        let registers = self.cloning(self.code.0 + COPY, 0);
        self.inject(set_registers(intermediate, &registers))?;
        let resumed = trace("resume", intermediate, |tid| ptrace::resume(tid, Resume::Run, 0));
        self.inject(resumed)?;
        self.copying = true;
        Ok(())
    }

    fn await_copy(&mut self) -> Result<(), CopyError> {
        let Some(intermediate) = self.intermediate.filter(|_| self.wanted.copy) else {
            return Ok(());
        };
        self.copying = false;
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
            copy::end(copy);
            return self.inject(Err(error));
        }
        let memory = RemoteMemory::open(copy).map_err(|source| {
            copy::end(copy);
            CopyError::Use { operation: "open the memory of", pid: self.pid, copy, source }
        })?;
        let registers = self.cloning(self.code.0 + COPY, 0);
        self.born.copy = Some(Copy::new(self.pid, copy, memory, self.code, registers));
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
        // As long as nobody lets the intermediate go the thread would wait for it.
        if self.stage == Stage::Bearing {
            self.take_hold()?;
        }
        // Somebody else has failed, and nobody has waited for this one's copy: only who is stopped can be let
        // go. The copy ends with the others.
        if self.copying
            && let Err(error) = self.await_copy()
        {
            self.failure.get_or_insert(error);
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

    /// Puts the thread back, and gives what was made.
    fn finish(self) -> Result<Born, CopyError> {
        let Self { mut injector, wanted, pid, born, failure, stage, .. } = self;
        if stage == Stage::Dead {
            // It may be anywhere on its way, with its intermediate still to be waited for.
            injector.abandon();
        }
        let back = injector.finish().map_err(|source| CopyError::Inject { pid, source });
        match failure {
            // Whoever goes on with this process nevertheless must have it where it was.
            Some(failure @ CopyError::Make { .. }) => back.and(Err(failure)),
            Some(failure) => Err(failure),
            // Somebody else failed, and this one has stopped half way.
            None if wanted.copy && born.copy.is_none() => {
                back.and(Err(CopyError::Make { pid, source: Errno::ECANCELED }))
            }
            None => back.map(|()| born),
        }
    }

    fn await_system_call(&self) -> Result<(), InjectError> {
        await_system_call_stop(self.tid, |tid| self.injector.process().next_stop(tid))
    }

    fn await_stop(&self) -> Result<Stop, InjectError> {
        match trace("await", self.tid, |tid| self.injector.process().next_stop(tid))? {
            Stop::Exited(_) | Stop::Killed(_) => Err(InjectError::Died { tid: self.tid }),
            stop => Ok(stop),
        }
    }
}

/// Makes a system call in a stopped process that is in the part of a birth slot for intermediates and
/// copies, with `registers` but for those that make up the call.
pub(super) fn call_in(
    pid: Pid,
    registers: &Registers,
    call: &Call,
) -> Result<Outcome, InjectError> {
    let registers = call.registers(RemoteAddr(registers.rip), registers);
    set_registers(pid, &registers)?;
    for _ in 0..2 {
        resume_to_system_call(pid)?;
        await_system_call_stop(pid, |pid| ptrace::wait(pid, true))?;
    }
    let result = trace("read the registers of", pid, ptrace::result_register)?;
    Ok(decode_result(result))
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

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread::{self, sleep};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::sys::procfs;
    use crate::tracer::tree::Tree;

    fn freeze(pid: Pid) -> Tree {
        Tree::freeze(pid, None, Duration::from_secs(5)).expect("it can be frozen")
    }

    /// A thread that cannot be led any further, in the middle of bringing forth a copy, waits for its
    /// intermediate and goes back by itself: nothing that it runs through is taken away.
    fn goes_back_after(steps: usize) {
        let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep");
        let pid = Pid::from_raw(child.id().cast_signed());
        let is_sleep = || procfs::name(pid).is_ok_and(|name| name == b"sleep");
        let sleeps = || procfs::status(pid).is_ok_and(|status| status.state == b'S');
        while !(is_sleep() && sleeps()) {
            sleep(Duration::from_millis(1));
        }
        let before = procfs::mapping_heads(pid).expect("its mappings");
        // What it still holds is let go when the thread ends that made the attempt.
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut tree = freeze(pid);
                let wanted = Wanted { copy: true, watch: false };
                let mut birth = Birth::prepare(&mut tree.processes[0], wanted).expect("room");
                let all = [Birth::begin, Birth::make_intermediate, Birth::await_intermediate];
                for step in all.into_iter().take(steps) {
                    assert!(birth.take(step));
                }
                birth.stage = Stage::Dead;
                let born = birth.finish();
                assert!(matches!(born, Err(CopyError::Inject { .. })), "{born:?}");
                drop(tree);
            });
        });
        let end = Instant::now() + Duration::from_secs(10);
        let is_alone =
            || procfs::children(pid, pid).is_ok_and(|it| it.is_none_or(|it| it.is_empty()));
        while !(sleeps() && is_alone()) {
            assert!(Instant::now() < end, "it is not back");
            sleep(Duration::from_millis(1));
        }
        let mut tree = freeze(pid);
        let mut injector = tree.inject(0).expect("there is room");
        let answer = injector.call(&Call::new(libc::SYS_getpid, &[])).expect("it answers");
        assert_eq!(answer, Ok(u64::from(child.id())));
        injector.finish().expect("all is put back");
        tree.thaw().expect("it is let go");
        assert_eq!(procfs::mapping_heads(pid).expect("its mappings"), before);
        assert!(child.try_wait().expect("it is ours").is_none(), "it has ended");
        child.kill().expect("it is not reaped yet");
        child.wait().expect("it is not reaped yet");
    }

    /// Where another process cannot be copied, nobody waits for this one's copy. It does not stay behind.
    #[test]
    fn a_copy_that_nobody_waits_for_ends() {
        let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep");
        let pid = Pid::from_raw(child.id().cast_signed());
        let (told, over) = std::sync::mpsc::channel();
        thread::spawn(move || {
            for _ in 0..20 {
                let mut tree = freeze(pid);
                let wanted = Wanted { copy: true, watch: false };
                let mut birth = Birth::prepare(&mut tree.processes[0], wanted).expect("room");
                for step in [
                    Birth::begin,
                    Birth::make_intermediate,
                    Birth::await_intermediate,
                    Birth::make_copy,
                ] {
                    assert!(birth.take(step));
                }
                for step in [Birth::let_go, Birth::leave_clone, Birth::enter_wait, Birth::end_wait]
                {
                    birth.take_back(step);
                }
                drop(birth.finish().expect("nothing went wrong with it"));
                tree.thaw().expect("it is let go");
                let children = procfs::children(pid, pid).expect("it is there");
                assert!(children.is_none_or(|it| it.is_empty()), "something is left");
            }
            told.send(()).expect("the test waits");
        });
        over.recv_timeout(Duration::from_secs(30)).expect("it hangs, or fails");
        child.kill().expect("it is not reaped yet");
        child.wait().expect("it is not reaped yet");
    }

    #[test]
    fn a_thread_that_is_given_up_in_the_middle_goes_back_by_itself() {
        for steps in 0..=3 {
            goes_back_after(steps);
        }
    }
}
