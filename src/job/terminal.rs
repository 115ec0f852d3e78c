//! The terminal that a supervisor and its job share with a shell: remembered as it was, handed back when
//! the job is gone, and shown to a restored job anew.
//!
//! A job that ends by itself leaves the terminal as it wants to. One that was killed, or ended with a
//! checkpoint, could not tidy up: then the supervisor does.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, killpg, sigprocmask};
use nix::unistd::{self, Pid};

use crate::model::terminal::{Termios, assembles_lines};
use crate::sys::{procfs, relatives, terminal};

/// What full-screen programs switch on and take back when they may: the other screen, a hidden cursor,
/// keys of the application's own, brackets around what is pasted, the mouse, colours (xterm's control
/// sequences, which the terminals in use understand or ignore).
const RESET: &[u8] =
    b"\x1b[?1047l\x1b[?25h\x1b[?1l\x1b>\x1b[?2004l\x1b[?1000l\x1b[?1002l\x1b[?1003l\
                       \x1b[?1006l\x1b[m\r\n";

/// The terminal in whose foreground we were started.
#[derive(Debug)]
pub struct SharedTerminal {
    file: OwnedFd,
    modes: Termios,
    /// Whether it is as it should be.
    left: Cell<bool>,
}

impl SharedTerminal {
    /// The terminal of our standard streams, when we are in its foreground.
    #[must_use]
    pub fn find() -> Option<Self> {
        let ours = |file: io::Result<OwnedFd>| {
            let file = file.ok()?;
            let foreground = terminal::foreground(&file).ok()??;
            let modes = terminal::modes(&file).ok()?;
            (foreground == unistd::getpgrp()).then(|| Self { file, modes, left: Cell::new(false) })
        };
        ours(io::stdin().as_fd().try_clone_to_owned())
            .or_else(|| ours(io::stdout().as_fd().try_clone_to_owned()))
            .or_else(|| ours(io::stderr().as_fd().try_clone_to_owned()))
    }

    /// Has the job's processes in the foreground draw what they show: the terminal may be another
    /// one than that which they drew on, and of another size.
    ///
    /// Programs redraw when the size has changed (SIGWINCH), or when they were stopped without having
    /// been asked (SIGCONT), as a shell's `fg` tells them. Nobody is told who did not ask for that.
    pub fn have_it_drawn(&self) {
        let Ok(Some(group)) = terminal::foreground(&self.file) else { return };
        let own = unistd::getpid();
        for process in procfs::processes().unwrap_or_default() {
            let is_there = process != own
                && procfs::stat(process).is_ok_and(|stat| {
                    stat.pgrp == group.as_raw() && !matches!(stat.state, 'T' | 'Z')
                })
                && relatives::ancestors(process).is_ok_and(|line| line.contains(&own));
            if is_there {
                // One that has just ended needs nothing drawn.
                kill(process, Signal::SIGWINCH).unwrap_or_default();
                kill(process, Signal::SIGCONT).unwrap_or_default();
            }
        }
    }

    /// Comes into the foreground again when the job is gone, and, unless the job has `tidied` up
    /// itself, gives the terminal the modes that it had. What a shell has taken back is left alone.
    ///
    /// # Errors
    /// When the terminal is gone, which nobody needs to hear.
    pub fn take_back(&self, tidied: bool) -> Result<(), Errno> {
        self.left.set(true);
        let own = unistd::getpgrp();
        let foreground = terminal::foreground(&self.file)?;
        let is_free = match foreground {
            Some(group) => group == own || has_gone(group),
            None => true,
        };
        if !is_free {
            return Ok(());
        }
        // From a background group the kernel would stop us for it.
        let stop: SigSet = [Signal::SIGTTOU].into_iter().collect();
        let mut before = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&stop), Some(&mut before))?;
        let outcome = if foreground == Some(own) {
            Ok(())
        } else {
            terminal::set_foreground(&self.file, own)
        };
        let outcome = outcome.and_then(|()| if tidied { Ok(()) } else { self.tidy_up() });
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
        outcome
    }

    fn tidy_up(&self) -> Result<(), Errno> {
        let now = terminal::modes(&self.file)?;
        if now == self.modes {
            return Ok(());
        }
        if assembles_lines(&self.modes) && !assembles_lines(&now) {
            unistd::write(&self.file, RESET)?;
        }
        terminal::set_modes(&self.file, &self.modes)
    }
}

impl Drop for SharedTerminal {
    fn drop(&mut self) {
        if !self.left.get() {
            // The job was not brought back, or nobody watches it any more. A terminal that is gone needs
            // nothing.
            self.take_back(false).unwrap_or_default();
        }
    }
}

/// Whether a process group has no process any more.
fn has_gone(group: Pid) -> bool {
    killpg(group, None) == Err(Errno::ESRCH)
}
