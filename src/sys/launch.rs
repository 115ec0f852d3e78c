//! Starting a program exactly as it would have started without rckpt in between: same descriptors,
//! environment, session, process group and terminal, same signal mask and dispositions.
//!
//! Rust's runtime ignores SIGPIPE and opens /dev/null in place of closed standard streams before
//! `main` runs, and the supervisor blocks signals. All of that is recorded as it was and put back
//! in the child.
#![allow(unsafe_code)]

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{self, SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{self, AccessFlags, ForkResult, Pid};
use thiserror::Error;

use super::clone;
use super::interruption::Interruption;
use crate::model::code::{self, Code};

/// What was so before `main`: bits 0..=2 for standard streams that were closed, and
/// [`PIPE_IGNORED`].
static BEFORE_MAIN: AtomicU8 = AtomicU8::new(0);
const PIPE_IGNORED: u8 = 1 << 3;

/// How long a process that is to end waits for its child, which was told to.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The C library calls this before Rust's runtime starts.
#[used]
#[unsafe(link_section = ".init_array")]
static RECORD_BEFORE_MAIN: extern "C" fn() = record_before_main;

extern "C" fn record_before_main() {
    let mut facts = 0;
    for (number, bit) in [(0, 1), (1, 2), (2, 4)] {
        // SAFETY: F_GETFD reads a flag of a descriptor, open or not, and touches no memory.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
            facts |= bit;
        }
    }
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action nothing changes; the old one is written to `action`, which is
    // big enough, and all zeroes is a valid value for it should the call fail.
    let handler = unsafe {
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), action.as_mut_ptr());
        action.assume_init().sa_sigaction
    };
    if handler == libc::SIG_IGN {
        facts |= PIPE_IGNORED;
    }
    BEFORE_MAIN.store(facts, Ordering::Relaxed);
}

/// What was recorded of this process.
static INHERITANCE: OnceLock<Inheritance> = OnceLock::new();

/// What this process got from its parent and hands on to the job unchanged.
#[derive(Clone, Debug)]
pub struct Inheritance {
    mask: SigSet,
    child_ignored: bool,
}

impl Inheritance {
    /// Records it, then blocks `signals` in this process, to be read from a descriptor, and sees to
    /// it that ended children stay until they are waited for. Called again, it gives what was recorded
    /// the first time.
    pub fn take(signals: &SigSet) -> Result<Self, Errno> {
        if let Some(taken) = INHERITANCE.get() {
            return Ok(taken.clone());
        }
        let mut mask = SigSet::empty();
        nix::sys::signal::sigprocmask(SigmaskHow::SIG_BLOCK, Some(signals), Some(&mut mask))?;
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: the default disposition runs no code of ours.
        let old = unsafe { nix::sys::signal::sigaction(Signal::SIGCHLD, &default) }?;
        let taken = Self { mask, child_ignored: matches!(old.handler(), SigHandler::SigIgn) };
        Ok(INHERITANCE.get_or_init(|| taken).clone())
    }

    /// Makes the calling process as it would be without rckpt.
    fn hand_on(&self) -> Result<(), Errno> {
        let facts = BEFORE_MAIN.load(Ordering::Relaxed);
        let disposition = |ignored| if ignored { SigHandler::SigIgn } else { SigHandler::SigDfl };
        for (signal, ignored) in
            [(Signal::SIGCHLD, self.child_ignored), (Signal::SIGPIPE, facts & PIPE_IGNORED != 0)]
        {
            let action = SigAction::new(disposition(ignored), SaFlags::empty(), SigSet::empty());
            // SAFETY: neither disposition runs code of ours.
            unsafe { nix::sys::signal::sigaction(signal, &action) }?;
        }
        for (number, bit) in [(0, 1), (1, 2), (2, 4)] {
            if facts & bit != 0 {
                unistd::close(number)?;
            }
        }
        nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.mask), None)
    }
}

/// Has a command of ours start as plainly as the job. Only after [`Inheritance::take`] is there
/// anything to put back.
pub fn hand_on_to(command: &mut Command) {
    let Some(inheritance) = INHERITANCE.get() else { return };
    // SAFETY: what runs between fork and exec is a few system calls on values copied before: no lock is
    // taken and no memory allocated.
    unsafe { command.pre_exec(|| Ok(inheritance.hand_on()?)) };
}

/// Why a program was not started.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// An argument has a NUL byte inside, which no program can be given.
    #[error("argument {0:?} has a NUL byte inside")]
    HoldsNul(OsString),
    /// A pipe to the new process could not be made or used.
    #[error("make a pipe to the new process: {0}")]
    MakePipe(#[source] io::Error),
    /// The process could not be made.
    #[error("fork: {0}")]
    Fork(#[source] Errno),
    /// There are several threads, of which fork would copy one in the middle of anything.
    #[error("fork with {0} threads")]
    SeveralThreads(usize),
    /// The program could not be executed.
    #[error("execute {program:?}: {source}")]
    Execute {
        /// The program as given.
        program: OsString,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The new process ended before it executed the program.
    #[error("process {0} ended before it executed the program")]
    Vanished(Pid),
}

impl LaunchError {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::HoldsNul(_) => code::requests::USAGE,
            Self::Execute { .. } => code::requests::COMMAND_NOT_EXECUTABLE,
            Self::MakePipe(_) | Self::Fork(_) | Self::Vanished(_) => code::supervising::NOT_STARTED,
            Self::SeveralThreads(_) => code::supervising::INTERNAL,
        }
    }
}

/// Looks for the file that `program` names, along PATH as execvp(3) does, so that a wrong name is
/// found before anything is started. Unlike execvp, a directory of PATH that may not be searched is
/// no reason to say that the program may not be executed.
///
/// # Errors
/// [`LaunchError::Execute`] with ENOENT when there is no such file, EACCES when there are only such
/// that may not be executed.
pub fn locate(program: &OsStr) -> Result<PathBuf, LaunchError> {
    let search = if program.is_empty() || program.as_bytes().contains(&b'/') {
        Vec::new()
    } else {
        // What the C library searches without PATH.
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
        std::env::split_paths(&path).collect()
    };
    let mut source = Errno::ENOENT;
    let files = search.iter().map(|directory| directory.join(program));
    for file in files.chain(search.is_empty().then(|| program.into())) {
        let is_file = std::fs::metadata(&file).is_ok_and(|metadata| metadata.is_file());
        match unistd::access(&file, AccessFlags::X_OK) {
            Ok(()) if is_file => return Ok(file),
            _ if file.exists() => source = Errno::EACCES,
            Ok(()) | Err(_) => {}
        }
    }
    Err(LaunchError::Execute { program: program.to_owned(), source })
}

/// A process that exists and has its number, and waits to be told to execute its program. Dropped,
/// it ends without having done anything, and is left to be waited for.
#[derive(Debug)]
pub struct Prepared {
    pid: Pid,
    program: OsString,
    gate: File,
    outcome: File,
}

/// Makes the process that will become `command` (program, found along PATH, and its arguments).
/// Only a process with a single thread may do that.
pub fn prepare(command: &[OsString], inheritance: &Inheritance) -> Result<Prepared, LaunchError> {
    let arguments = command
        .iter()
        .map(|argument| {
            CString::new(argument.as_bytes()).map_err(|_| LaunchError::HoldsNul(argument.clone()))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let program = command.first().cloned().unwrap_or_default();
    let (gate_read, gate) = pipe()?;
    let (outcome, outcome_write) = pipe()?;
    match fork()? {
        ForkResult::Parent { child } => {
            Ok(Prepared { pid: child, program, gate: gate.into(), outcome: outcome.into() })
        }
        ForkResult::Child => {
            drop((gate, outcome));
            let Err(errno) = become_program(&arguments, gate_read.into(), inheritance);
            let told = File::from(outcome_write).write_all(&(errno as i32).to_le_bytes());
            // Nobody is left to tell when that failed; the parent takes silence for a death.
            clone::exit_now(if told.is_ok() { 127 } else { 126 })
        }
    }
}

/// Waits for the word to go, then executes. Gives only the error.
fn become_program(
    arguments: &[CString],
    mut gate: File,
    inheritance: &Inheritance,
) -> Result<Infallible, Errno> {
    let mut added = Vec::new();
    gate.read_to_end(&mut added).map_err(errno_of)?;
    drop(gate);
    // The last variable is followed by one more NUL; without it the parent died or gave up.
    let Some(added) = added.strip_suffix(b"\0") else { return Err(Errno::ECANCELED) };
    let environment = environment_with(added);
    inheritance.hand_on()?;
    let program = arguments.first().ok_or(Errno::ENOENT)?;
    unistd::execvpe(program, arguments, &environment)
}

/// This process's environment in its own order, with variables (`NAME=value`, each followed by NUL)
/// in place of those of the same name, or after all others.
fn environment_with(added: &[u8]) -> Vec<CString> {
    let mut variables: Vec<Vec<u8>> = std::env::vars_os()
        .map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat())
        .collect();
    for variable in added.split(|byte| *byte == 0).filter(|variable| !variable.is_empty()) {
        let name_end = variable.iter().position(|byte| *byte == b'=').map_or(0, |at| at + 1);
        match variables.iter_mut().find(|old| old.starts_with(&variable[..name_end])) {
            Some(old) => *old = variable.to_vec(),
            None => variables.push(variable.to_vec()),
        }
    }
    // None of them can hold a NUL: all came out of NUL-terminated strings.
    variables.into_iter().filter_map(|variable| CString::new(variable).ok()).collect()
}

impl Prepared {
    /// Its number.
    #[must_use]
    pub const fn pid(&self) -> Pid {
        self.pid
    }

    /// Lets it execute its program with `variables` added to the environment, and returns once it
    /// has. After an error the process has ended and been waited for.
    pub fn execute(self, variables: &[(&str, &OsStr)]) -> Result<Pid, LaunchError> {
        let Self { pid, program, mut gate, mut outcome } = self;
        let mut words = Vec::new();
        for (name, value) in variables {
            if value.as_bytes().contains(&0) {
                return Err(LaunchError::HoldsNul((*value).to_owned()));
            }
            words.extend_from_slice(name.as_bytes());
            words.push(b'=');
            words.extend_from_slice(value.as_bytes());
            words.push(0);
        }
        words.push(0);
        gate.write_all(&words).map_err(LaunchError::MakePipe)?;
        drop(gate);
        // The other end closes on exec, or after an error number was written.
        let mut answer = Vec::new();
        outcome.read_to_end(&mut answer).map_err(LaunchError::MakePipe)?;
        if answer.is_empty() {
            return Ok(pid);
        }
        nix::sys::wait::waitpid(pid, None).map_err(LaunchError::Fork)?;
        match <[u8; 4]>::try_from(answer.as_slice()) {
            Ok(errno) => Err(LaunchError::Execute {
                program,
                source: Errno::from_raw(i32::from_le_bytes(errno)),
            }),
            Err(_) => Err(LaunchError::Vanished(pid)),
        }
    }
}

/// Forks this process, which must have a single thread.
pub fn fork() -> Result<ForkResult, LaunchError> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(LaunchError::MakePipe)?.count();
    if threads != 1 {
        return Err(LaunchError::SeveralThreads(threads));
    }
    // SAFETY: with one thread the child is a complete copy, in which no lock is held by a thread
    // that does not exist any more; so it may do anything.
    unsafe { unistd::fork() }.map_err(LaunchError::Fork)
}

/// Goes on in a child process, while this one does nothing but wait for it, and ends as it does. The
/// child is out of reach of what is done to this process: SIGKILL, or a signal of the terminal, as it
/// has a process group of its own. It gets this process's id, and can see by its parent's being
/// another that this process has ended. When this one is to end by a signal of the terminal or the like, the
/// child gets SIGTERM, and this one ends when the child has, or after a moment: a disk that hangs may hold
/// the child.
///
/// # Errors
/// When there are several threads, or the child cannot be made.
pub fn go_on_in_child() -> Result<Pid, LaunchError> {
    let caller = unistd::getpid();
    let child = match fork()? {
        ForkResult::Child => {
            // Nothing forbids that to a new process.
            unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0)).map_err(LaunchError::Fork)?;
            return Ok(caller);
        }
        ForkResult::Parent { child } => child,
    };
    let interruption = Interruption::undone_by(move || {
        signal::kill(child, Signal::SIGTERM).unwrap_or_default();
        // It is waited for by the other thread.
        let told = Instant::now();
        while signal::kill(child, None).is_ok() && told.elapsed() < LAST_WORDS {
            thread::sleep(Duration::from_millis(5));
        }
    });
    let outcome = wait_for(child);
    drop(interruption);
    clone::exit_now(outcome?)
}

fn wait_for(child: Pid) -> Result<i32, LaunchError> {
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, status)) => return Ok(status),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(LaunchError::Fork(errno)),
        }
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), LaunchError> {
    unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| LaunchError::MakePipe(errno.into()))
}

fn errno_of(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use nix::errno::Errno;

    use super::{LaunchError, environment_with, locate};

    #[test]
    fn programs_are_found_as_shells_find_them() {
        let check = |program: &str, expected: Result<(), Errno>| {
            let found = locate(OsStr::new(program)).map(|_| ()).map_err(|error| match error {
                LaunchError::Execute { source, .. } => source,
                other => panic!("{other}"),
            });
            assert_eq!(found, expected, "{program:?}");
        };
        check("sh", Ok(()));
        check("/bin/sh", Ok(()));
        check("there-is-no-such-program", Err(Errno::ENOENT));
        check("/etc/there-is-no-such-program", Err(Errno::ENOENT));
        check("", Err(Errno::ENOENT));
        check("/etc/passwd", Err(Errno::EACCES));
        check("/etc", Err(Errno::EACCES));
    }

    #[test]
    fn added_variables_replace_or_follow() {
        let environment = environment_with(b"PATH=/nowhere\0RCKPT_TEST_ADDED=a=b\0");
        let count = |prefix: &[u8]| {
            environment.iter().filter(|variable| variable.to_bytes().starts_with(prefix)).count()
        };
        assert_eq!(count(b"PATH="), 1);
        assert_eq!(count(b"PATH=/nowhere"), 1);
        let last = environment.last().map(|variable| variable.to_bytes());
        assert_eq!(last, Some(&b"RCKPT_TEST_ADDED=a=b"[..]));
    }
}
