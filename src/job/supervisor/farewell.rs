//! What is left to do when a job that was told to end has ended: what its end counts as, and having the
//! batch system start it again.

use std::os::fd::AsFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::{Cause, Ending, SuperviseError, Supervisor, Told, preparing};
use crate::job::batch::{Batch, RequeueError, Requeued, Standing};
use crate::job::report::{Event, Observer, Taken};
use crate::job::signals::Farewell;

/// How long to wait to be ended by a batch system that has promised to.
const PATIENCE: Duration = Duration::from_secs(300);

/// What an end counts as. A job that was to be requeued, and ended without its last checkpoint, goes on
/// from an earlier one just the same.
pub fn ending(ending: Ending, told: Option<&Told>, last: Option<&Taken>) -> Ending {
    match (&ending, told, last) {
        (Ending::Ended(_), Some(Told { farewell: Farewell::Requeue, cause, .. }), Some(last)) => {
            Ending::Suspended { last: last.clone(), cause: *cause }
        }
        _ => ending,
    }
}

/// Has the batch system start the job again, unless it has decided about it by itself, and waits to be
/// ended where it will do that. `went_on`: whether a checkpoint was taken since the last start.
pub fn requeue(
    own: &Supervisor,
    cause: Cause,
    went_on: bool,
    observer: &mut dyn Observer,
) -> Result<(), SuperviseError> {
    if cause == Cause::Budget {
        return Ok(());
    }
    if !went_on {
        let reason = "no checkpoint was taken since it was started, and the next start would get no \
                      further";
        observer.tell(Event::NotRequeued { reason });
        return Ok(());
    }
    if standing(&own.batch) == Standing::Ends {
        observer.tell(Event::NotRequeued { reason: "the batch system is ending it by itself" });
        return Ok(());
    }
    match own.batch.requeue() {
        Ok(Requeued::ByExitStatus) => {
            observer.tell(Event::Requeued);
            Ok(())
        }
        Ok(Requeued::Asked) => {
            observer.tell(Event::Requeued);
            wait_to_be_ended(own)
        }
        Err(error) => {
            observer.tell(Event::NotRequeued { reason: &words(&error) });
            Ok(())
        }
    }
}

fn words(error: &RequeueError) -> String {
    error.to_string()
}

/// Asks the batch system how its job stands.
fn standing(batch: &Batch) -> Standing {
    let Some(mut command) = batch.inquire() else { return Standing::Unknown };
    match command.stdin(Stdio::null()).stderr(Stdio::null()).output() {
        Ok(output) => batch.standing(&output.stdout),
        Err(_) => Standing::Unknown,
    }
}

/// Sleeps until SIGTERM comes. SIGKILL, which may come instead, needs no waiting for.
fn wait_to_be_ended(own: &Supervisor) -> Result<(), SuperviseError> {
    let until = Instant::now() + PATIENCE;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
        let mut polled = [PollFd::new(own.signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, timeout) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(source) => return Err(preparing("wait for events")(source)),
        }
        while let Some(info) = own.signals.read_signal().map_err(preparing("read signals"))? {
            let number = i32::try_from(info.ssi_signo).unwrap_or_default();
            if Signal::try_from(number) == Ok(Signal::SIGTERM) {
                return Ok(());
            }
        }
    }
}
