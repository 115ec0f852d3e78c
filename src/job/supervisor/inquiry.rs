//! A question to the batch system: its command runs beside the loop, which reads the answer as it comes.
//!
//! The command is a child of the supervisor, whose other children are taken for orphans of the job; so
//! no checkpoint begins while a question is open, and an open one is closed after a while.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How long an answer may take.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// An answer is far shorter.
const LIMIT: usize = 4096;

/// A question that is open.
#[derive(Debug)]
pub struct Inquiry {
    child: Child,
    output: ChildStdout,
    answer: Vec<u8>,
    /// Whether more may come.
    is_open: bool,
}

impl Inquiry {
    /// Runs a command, in a process group of its own.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn start(mut command: Command) -> io::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.process_group(0).spawn()?;
        let output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { child, output, answer: Vec::new(), is_open: true })
    }

    /// Reads what has come. `Some`: that is all.
    pub fn read(&mut self) -> Option<Vec<u8>> {
        let mut bytes = [0; LIMIT];
        match self.output.read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return None,
            Ok(length) if length > 0 && self.answer.len() < LIMIT => {
                self.answer.extend_from_slice(&bytes[..length]);
                return None;
            }
            // The end; or more than can be an answer, or nothing readable, which is no answer either.
            Ok(_) | Err(_) => {}
        }
        self.is_open = false;
        Some(std::mem::take(&mut self.answer))
    }
}

impl Drop for Inquiry {
    /// Ends the command, if it has not answered.
    fn drop(&mut self) {
        if !self.is_open {
            return;
        }
        // Something holds the other end of the pipe still, and it is of this group: its number has not
        // passed to another one.
        let group = i32::try_from(self.child.id()).map(Pid::from_raw);
        if group.is_ok_and(|group| killpg(group, Signal::SIGKILL).is_err()) {
            // Nobody is left in it.
        }
    }
}

impl AsFd for Inquiry {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }
}
