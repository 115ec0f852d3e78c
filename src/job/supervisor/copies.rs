//! Checkpoints on their way from the local directory to the job's own: begun whenever the local one has a
//! newer one, one at a time, and brought to an end when the job has stopped and is to go on elsewhere.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::alarms::Alarm;
use super::{Loop, SuperviseError, Supervisor, preparing};
use crate::job::copy::{BringError, Bringing, Brought, Route};
use crate::job::report::{Event, Observer};

/// When a copy that failed is tried again, unless there is a new checkpoint before.
const BREATH: Duration = Duration::from_secs(60);

impl Loop<'_> {
    /// Begins to copy the newest checkpoint, if it is only in the local directory.
    pub(super) fn begin_copy(&mut self) {
        let Some(route) = self.route.as_ref().filter(|_| self.copying.is_none()) else { return };
        self.alarms.unset(Alarm::Copy);
        let begun = match route.is_behind() {
            Ok(false) => return,
            Ok(true) => route.start(),
            Err(error) => Err(error.into()),
        };
        match begun {
            Ok(copying) => self.copying = Some(copying),
            Err(error) => self.copy_failed(&error),
        }
    }

    /// A copy is complete or has failed.
    pub(super) fn copy_finished(&mut self) {
        let Some(copying) = self.copying.take() else { return };
        match outcome(copying) {
            Ok(brought) => {
                if let Some(brought) = &brought {
                    self.observer.tell(Event::Copied(brought));
                }
                self.begin_copy();
            }
            Err(error) => self.copy_failed(&error),
        }
    }

    fn copy_failed(&mut self, error: &BringError) {
        // One that was given up made room for a checkpoint that goes there itself.
        if !error.is_given_up() {
            self.observer.tell(Event::NotCopied { reason: &error.to_string() });
        }
        self.alarms.set(Alarm::Copy, Instant::now() + BREATH);
    }
}

fn outcome(copying: Bringing) -> Result<Option<Brought>, BringError> {
    copying.join().unwrap_or(Err(BringError::Panicked))
}

/// Gives up what is being copied: nobody will need it.
pub fn give_up(copying: Option<Bringing>) {
    if let Some(copying) = copying {
        copying.give_up();
        // It removes what it had written.
        copying.join();
    }
}

/// Sees to it that the newest checkpoint is in the job's own directory: whoever goes on with the job may
/// do so on another machine. Whoever does not want to wait for that says so by SIGTERM.
///
/// # Errors
/// When nothing can be waited for.
pub fn bring_home(
    own: &Supervisor,
    route: &Route,
    mut copying: Option<Bringing>,
    observer: &mut dyn Observer,
) -> Result<(), SuperviseError> {
    let mut has_told = false;
    loop {
        let current = match copying.take() {
            Some(current) => Ok(current),
            None => match route.is_behind() {
                Ok(false) => return Ok(()),
                Ok(true) => route.start(),
                Err(error) => Err(error.into()),
            },
        };
        if current.is_ok() && !std::mem::replace(&mut has_told, true) {
            observer.tell(Event::BringingHome { directory: &route.home });
        }
        let outcome = match current {
            Ok(current) => {
                await_end(own, &current)?;
                outcome(current)
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(Some(brought)) => observer.tell(Event::Copied(&brought)),
            Ok(None) => return Ok(()),
            Err(error) => {
                observer.tell(Event::NotCopied { reason: &error.to_string() });
                return Ok(());
            }
        }
    }
}

/// Sleeps until a copy has ended; SIGTERM has it given up.
fn await_end(own: &Supervisor, copying: &Bringing) -> Result<(), SuperviseError> {
    loop {
        let mut polled = [
            PollFd::new(copying.as_fd(), PollFlags::POLLIN),
            PollFd::new(own.signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(source) => return Err(preparing("wait for events")(source)),
        }
        if polled[0].any() == Some(true) {
            return Ok(());
        }
        while let Some(info) = own.signals.read_signal().map_err(preparing("read signals"))? {
            let number = i32::try_from(info.ssi_signo).unwrap_or_default();
            if Signal::try_from(number) == Ok(Signal::SIGTERM) {
                copying.give_up();
            }
        }
    }
}
