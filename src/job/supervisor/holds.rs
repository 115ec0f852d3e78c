//! Times without checkpoints (`rckpt hold`): who asked for each, and that it ends with whoever did.
//!
//! Who asks is `rckpt hold` itself, which ends at once; it holds for its parent. C's `system()` and the
//! like put a shell between the two, which ends at once as well: a holder that ends within a second passes
//! the hold on to its own parent. From outside the job a hold lasts until it is released.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use super::Loop;
use super::alarms::Alarm;
use crate::job::control::protocol::{Refusal, Reply};
use crate::job::report::Event;
use crate::job::root::Root;
use crate::sys::{descriptor, relatives};

/// A process that ends sooner was only in between.
const IN_BETWEEN: Duration = Duration::from_secs(1);

/// A time without checkpoints.
#[derive(Debug)]
pub(super) struct Hold {
    begun: Instant,
    /// The processes for which it was asked, the nearest first, by descriptors that tell of their ends;
    /// `None`: somebody outside of the job.
    holders: Option<Vec<OwnedFd>>,
}

impl Hold {
    /// One that the process `asker` asked for.
    fn of(asker: Pid, root: &Root) -> Self {
        let line = relatives::ancestors(asker).unwrap_or_default();
        let holders = line
            .into_iter()
            .skip(1)
            .take_while(|above| root.is_above(*above))
            // One that has ended meanwhile holds nothing.
            .filter_map(|above| descriptor::pidfd_open(above).ok())
            .collect();
        Self { begun: Instant::now(), holders: Some(holders) }
    }

    /// The descriptor that tells of the end of the process for which it is.
    pub fn holder(&self) -> Option<BorrowedFd<'_>> {
        self.holders.as_ref()?.first().map(AsFd::as_fd)
    }

    /// Whether nobody is left for whom it is.
    fn is_over(&mut self) -> bool {
        let Some(holders) = &mut self.holders else { return false };
        while holders.first().is_some_and(has_ended) {
            if self.begun.elapsed() > IN_BETWEEN {
                return true;
            }
            holders.remove(0);
        }
        holders.is_empty()
    }
}

fn has_ended(process: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

impl Loop<'_> {
    /// Begins no checkpoint from now on. One that is being taken may be about to freeze the asker.
    pub(super) fn hold(&mut self, seconds: Option<u64>, asker: Option<Pid>) -> Reply {
        if self.running.is_some() {
            return Reply::Refused(Refusal::Busy);
        }
        let mut hold = match asker {
            Some(asker) => Hold::of(asker, &self.job.root),
            None => Hold { begun: Instant::now(), holders: None },
        };
        if hold.is_over() {
            // Whoever asked has gone already.
            return Reply::Done;
        }
        self.holds.push(hold);
        if let Some(seconds) = seconds {
            self.alarms.set(Alarm::Hold, Instant::now() + Duration::from_secs(seconds));
        }
        Reply::Done
    }

    /// Takes the newest hold back.
    pub(super) fn release(&mut self) -> Reply {
        if self.holds.pop().is_none() {
            return Reply::Refused(Refusal::NotHeld);
        }
        if self.holds.is_empty() {
            self.free();
        }
        Reply::Done
    }

    /// Nothing holds checkpoints off any more.
    pub(super) fn free(&mut self) {
        self.holds.clear();
        self.has_put_off = false;
        self.alarms.unset(Alarm::Hold);
    }

    /// A process for which checkpoints are held off has ended.
    pub(super) fn holder_ended(&mut self) {
        let before = self.holds.len();
        self.holds.retain_mut(|hold| !hold.is_over());
        if self.holds.len() < before {
            self.observer.tell(Event::HolderEnded);
        }
        if self.holds.is_empty() {
            self.free();
        }
    }
}
