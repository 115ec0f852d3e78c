//! The loop itself: what wakes it, and what it does about that.
//!
//! One event at a time; nothing here waits for anything but the next one.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, raise, sigprocmask};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{Expiration, TimerSetTimeFlags};
use nix::unistd;

use super::{Asker, Ending, Loop, MOST_OUTCOMES, Source, SuperviseError, preparing};
use crate::job::checkpoint::{self, Running};
use crate::job::control::protocol::{Order, Refusal, Reply, Then};
use crate::job::control::server::MOST_CLIENTS;
use crate::job::report::{Event, Taken};
use crate::job::signals::{self, Origin, Reaction};
use crate::sys::relatives;

impl Loop<'_> {
    /// Turns until the supervision is over. Gives its end, and whether the job had been told to end.
    pub(super) fn turn(mut self) -> Result<(Ending, bool), SuperviseError> {
        // The job may have ended before its first SIGCHLD could be read.
        self.look_for_the_end()?;
        loop {
            if let Some(ended) = self.ended {
                self.refuse_all(Refusal::Ending);
                return Ok((Ending::Ended(ended), self.told_to_end));
            }
            self.begin_next()?;
            for source in self.sleep()? {
                match source {
                    Source::Signals => self.read_signals()?,
                    Source::Interval => self.interval_passed()?,
                    Source::Grace => self.grace_passed()?,
                    Source::Listener => self.accept(),
                    Source::Root => self.look_for_the_end()?,
                    Source::Client(number) => self.hear(number),
                    Source::Checkpoint => {
                        if let Some(taken) = self.checkpoint_finished()? {
                            return Ok((Ending::Suspended(taken), true));
                        }
                    }
                }
            }
        }
    }

    /// Looks whether the job has ended, unless a checkpoint is being taken.
    fn look_for_the_end(&mut self) -> Result<(), SuperviseError> {
        if self.running.is_none() && self.ended.is_none() {
            self.ended = self.job.root.ended()?;
        }
        Ok(())
    }

    /// Sleeps until something happens, and tells what.
    fn sleep(&self) -> Result<Vec<Source>, SuperviseError> {
        let mut sources: Vec<(Source, BorrowedFd<'_>)> = vec![
            (Source::Signals, self.own.signals.as_fd()),
            (Source::Interval, self.own.interval.as_fd()),
            (Source::Grace, self.own.grace.as_fd()),
        ];
        if self.guests.len() < MOST_CLIENTS {
            sources.push((Source::Listener, self.own.listener.as_fd()));
        }
        match &self.running {
            Some((_, _, running)) => sources.push((Source::Checkpoint, running.as_fd())),
            // Its end is dealt with once the checkpoint is complete.
            None => sources.extend(self.job.root.descriptor().map(|fd| (Source::Root, fd))),
        }
        sources.extend(
            self.guests
                .iter()
                .map(|(number, guest)| (Source::Client(*number), guest.client.as_fd())),
        );
        let mut polled: Vec<PollFd<'_>> =
            sources.iter().map(|(_, fd)| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) => {}
            // A stop and continuation of ourselves interrupts; there is nothing to read then.
            Err(Errno::EINTR) => return Ok(Vec::new()),
            Err(source) => return Err(preparing("wait for events")(source)),
        }
        let happened = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        Ok(sources
            .iter()
            .zip(&polled)
            .filter(|(_, fd)| happened(fd))
            .map(|((source, _), _)| *source)
            .collect())
    }

    /// Reacts to the signals that have come.
    fn read_signals(&mut self) -> Result<(), SuperviseError> {
        loop {
            let Some(info) = self.own.signals.read_signal().map_err(preparing("read signals"))?
            else {
                return Ok(());
            };
            let number = i32::try_from(info.ssi_signo).unwrap_or_default();
            let Ok(signal) = Signal::try_from(number) else { continue };
            let origin = if info.ssi_code == libc::SI_KERNEL && self.shares_our_group() {
                Origin::SharedTerminal
            } else {
                Origin::Directed
            };
            if signal != Signal::SIGCHLD && origin == Origin::Directed {
                self.observer.tell(Event::Signal(signal));
            }
            match signals::reaction(signal, origin, self.told_to_end) {
                Reaction::Reap => self.look_for_the_end()?,
                Reaction::Nothing => {}
                Reaction::Forward => self.pass_on(signal),
                Reaction::ForwardAndStop => {
                    self.pass_on(signal);
                    stop_like_any_program()?;
                }
                Reaction::Stop => stop_like_any_program()?,
                Reaction::Continue => {
                    if relatives::is_stopped(self.job.root.pid()).unwrap_or(true) {
                        self.pass_on(signal);
                    }
                }
                Reaction::End => self.end()?,
                Reaction::EndAtOnce => self.end_at_once(signal)?,
            }
        }
    }

    /// Whether what the terminal sends to our process group reaches the job, too.
    fn shares_our_group(&self) -> bool {
        unistd::getpgid(Some(self.job.root.pid())) == Ok(unistd::getpgrp())
    }

    /// Passes a signal on to the root process.
    fn pass_on(&mut self, signal: Signal) {
        match kill(self.job.root.pid(), signal) {
            // It has ended, and that is about to be noticed.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => self.trouble(&format!("pass {signal} on to the job: {errno}")),
        }
    }

    /// Takes a last checkpoint and ends the job with it.
    fn end(&mut self) -> Result<(), SuperviseError> {
        self.told_to_end = true;
        self.observer.tell(Event::Ending);
        self.refuse_all(Refusal::Ending);
        if self.own.settings.grace.is_zero() {
            return self.grace_passed();
        }
        self.queue.push_front((Asker::Ending, self.plain_order(Then::Kill)));
        let expiration = Expiration::OneShot(TimeSpec::from_duration(self.own.settings.grace));
        self.own
            .grace
            .set(expiration, TimerSetTimeFlags::empty())
            .map_err(preparing("set the timer"))
    }

    /// The last checkpoint did not fit.
    fn grace_passed(&mut self) -> Result<(), SuperviseError> {
        self.give_up_ending()?;
        self.end_without_checkpoint();
        Ok(())
    }

    /// The job was told to end again: it hears that each time, and now without a checkpoint.
    fn end_at_once(&mut self, signal: Signal) -> Result<(), SuperviseError> {
        self.give_up_ending()?;
        if self.job_told_to_end {
            self.pass_on(signal);
        } else {
            self.end_without_checkpoint();
        }
        Ok(())
    }

    /// Gives up the last checkpoint. It must not see the signal that the job is to end by.
    fn give_up_ending(&mut self) -> Result<(), SuperviseError> {
        self.own.grace.unset().map_err(preparing("set the timer"))?;
        self.queue.retain(|(asker, _)| *asker != Asker::Ending);
        // Whichever is being taken holds the job, which is to end now.
        if let Some((_, _, running)) = &self.running {
            running.give_up();
        }
        Ok(())
    }

    /// Tells the job to end, once: the last checkpoint failed, or did not fit.
    fn end_without_checkpoint(&mut self) {
        if !self.job_told_to_end {
            self.job_told_to_end = true;
            self.observer.tell(Event::Passed);
            self.pass_on(Signal::SIGTERM);
        }
    }

    /// It is time for a checkpoint, unless one is being taken or waits already.
    fn interval_passed(&mut self) -> Result<(), SuperviseError> {
        // Reading is what makes the timer unreadable until it expires again.
        match self.own.interval.wait() {
            Ok(()) | Err(Errno::EAGAIN) => {}
            Err(source) => return Err(preparing("read the timer")(source)),
        }
        if self.running.is_none() && self.queue.is_empty() && !self.told_to_end {
            self.queue.push_back((Asker::Interval, self.plain_order(Then::Continue)));
        }
        Ok(())
    }

    fn plain_order(&self, then: Then) -> Order {
        Order { then, directory: None, compress: None, outputs: Vec::new() }
    }

    /// Begins the next checkpoint that waits, if none is being taken.
    fn begin_next(&mut self) -> Result<(), SuperviseError> {
        if self.running.is_some() {
            return Ok(());
        }
        let Some((asker, order)) = self.queue.pop_front() else { return Ok(()) };
        // A tracer gets SIGCHLD for each stop of each thread; they are not for us.
        self.listen_for_children(false)?;
        let task = checkpoint::Task::new(&self.job, &self.own.settings, &order);
        match Running::start(task) {
            Ok(running) => self.running = Some((asker, order, running)),
            Err(error) => {
                self.listen_for_children(true)?;
                self.settle(asker, Err(error));
            }
        }
        Ok(())
    }

    /// A checkpoint is complete or has failed. `Some`: the job was ended with it.
    fn checkpoint_finished(&mut self) -> Result<Option<Taken>, SuperviseError> {
        let Some((asker, order, running)) = self.running.take() else { return Ok(None) };
        let result = running.join();
        self.listen_for_children(true)?;
        self.look_for_the_end()?;
        let ended = (order.then == Then::Kill).then(|| result.as_ref().ok().cloned()).flatten();
        self.settle(asker, result);
        if ended.is_some() {
            self.refuse_all(Refusal::Ending);
        }
        Ok(ended)
    }

    /// Tells everybody concerned what became of a checkpoint.
    fn settle(&mut self, asker: Asker, result: Result<Taken, checkpoint::CheckpointError>) {
        let reply = match result {
            Ok(taken) => {
                self.observer.tell(Event::Taken(&taken));
                let taken = taken.bounded();
                self.last = Some(taken.clone());
                Reply::Taken(taken)
            }
            Err(error) => {
                let explanation = self.observer.explain(&error);
                // A job that ended meanwhile has no need of it.
                if self.ended.is_none() {
                    let runs_on = asker != Asker::Ending;
                    self.observer.tell(Event::Failed { explanation: &explanation, runs_on });
                }
                Reply::Failed(explanation.bounded())
            }
        };
        match asker {
            Asker::Interval => {}
            Asker::Ending => {
                if matches!(reply, Reply::Failed(_)) && self.ended.is_none() {
                    self.end_without_checkpoint();
                }
            }
            Asker::Client(number) => self.answer(number, &reply),
            Asker::Inside(ticket) => {
                self.outcomes.insert(ticket, reply);
                while self.outcomes.len() > MOST_OUTCOMES {
                    self.outcomes.pop_first();
                }
            }
        }
    }

    /// Starts or stops to be woken by SIGCHLD, which stays blocked, and pending if it comes.
    fn listen_for_children(&mut self, listen: bool) -> Result<(), SuperviseError> {
        let mut signals = signals::handled();
        if !listen {
            signals.remove(Signal::SIGCHLD);
        }
        self.own.signals.set_mask(&signals).map_err(preparing("change the signal descriptor"))
    }

    pub(super) fn trouble(&mut self, words: &str) {
        self.observer.tell(Event::Trouble(words));
    }
}

/// Stops this process with SIGTSTP as a program does that never heard of it, and returns when it was
/// continued. In an orphaned process group, which nobody could continue, the kernel ignores it.
fn stop_like_any_program() -> Result<(), SuperviseError> {
    let only: SigSet = [Signal::SIGTSTP].into_iter().collect();
    let failed = preparing("stop");
    raise(Signal::SIGTSTP).map_err(failed)?;
    sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&only), None).map_err(preparing("stop"))?;
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&only), None).map_err(preparing("stop"))
}
