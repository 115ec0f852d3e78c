//! Ctrl-C, SIGTERM and SIGHUP while a command has begun something that must not stay: it is undone, and then the
//! command ends by that signal, as it would have. This file knows nothing of what is undone.

use std::io::{self, PipeWriter};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::getpid;

use super::procfs;

/// The signals with which people and batch systems end a command.
const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// As long as this exists the first of these signals has something undone before it ends the process; the
/// second ends it at once. Signals that this process was started to ignore stay ignored.
#[derive(Debug)]
pub struct Interruption {
    listener: Option<(PipeWriter, JoinHandle<()>)>,
    has_come: Arc<AtomicBool>,
    /// The signals that this thread had blocked before.
    before: SigSet,
}

impl Interruption {
    /// Has `undo` called by another thread at the first signal. That thread needs memory and descriptors; where
    /// it cannot be had, signals do what they always do.
    #[must_use]
    pub fn undone_by(undo: impl FnOnce() + Send + 'static) -> Self {
        let before = SigSet::thread_get_mask().unwrap_or_else(|_| SigSet::empty());
        let has_come = Arc::<AtomicBool>::default();
        let told = Arc::clone(&has_come);
        let undo = move || {
            told.store(true, Ordering::Relaxed);
            undo();
        };
        let listener = listen(before, undo).ok();
        let this = Self { listener, has_come, before };
        if this.listener.is_none() {
            this.as_before();
        }
        this
    }

    /// Does something that new processes inherit signals from: with these as they were.
    pub fn with_signals_as_before<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                self.as_before();
                work()
            });
            match worker.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Never returns when a signal has come: what this process does from then on is of no use.
    pub fn stop_if_it_has_come(&self) {
        while self.has_come.load(Ordering::Relaxed) {
            thread::park();
        }
    }

    fn as_before(&self) {
        // The kernel knows no reason to refuse a mask that it has given.
        self.before.thread_set_mask().unwrap_or_default();
    }
}

impl Drop for Interruption {
    fn drop(&mut self) {
        if let Some((writer, listener)) = self.listener.take() {
            drop(writer);
            // If a signal has come, this never returns: the listener ends the process.
            listener.join().unwrap_or_default();
            self.as_before();
        }
    }
}

/// Blocks the signals in this thread, and those that it makes from now on, and starts one that waits for them.
fn listen(
    before: SigSet,
    undo: impl FnOnce() + Send + 'static,
) -> io::Result<(PipeWriter, JoinHandle<()>)> {
    let ignored = procfs::status(getpid()).map_err(io::Error::other)?.ignored;
    let heard = ENDING.into_iter().filter(|signal| !ignored.contains(signal_number(*signal)));
    let heard: SigSet = heard.collect();
    let signals = SignalFd::with_flags(&heard, SfdFlags::SFD_CLOEXEC)?;
    let (over, writer) = io::pipe()?;
    heard.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let listener = thread::Builder::new().name("rckpt-signals".to_owned()).spawn(move || {
        let mut polled = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(over.as_fd(), PollFlags::POLLIN),
        ];
        while poll(&mut polled, PollTimeout::NONE) == Err(Errno::EINTR) {}
        let has_come = polled[0].any() == Some(true);
        let Some(come) = has_come.then(|| signals.read_signal().ok().flatten()).flatten() else {
            return;
        };
        // Whoever asks again does not want to wait.
        before.thread_set_mask().unwrap_or_default();
        undo();
        let number = i32::try_from(come.ssi_signo).unwrap_or(libc::SIGTERM);
        signal_hook::low_level::emulate_default_handler(number).unwrap_or_default();
    })?;
    Ok((writer, listener))
}

fn signal_number(signal: Signal) -> u32 {
    u32::try_from(signal as i32).unwrap_or_default()
}
