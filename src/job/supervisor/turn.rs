//! The loop itself: what wakes it, and what it does about that.
//!
//! One event at a time; nothing here waits for anything but the next one.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, raise, sigprocmask};
use nix::unistd;

use super::alarms::Alarm;
use super::holds::Hold;
use super::{
    Asker, Cause, Ending, Loop, MOST_OUTCOMES, Source, SuperviseError, Told, Turned, preparing,
};
use crate::job::batch::Batch;
use crate::job::checkpoint::{self, Running};
use crate::job::control::protocol::{Order, Refusal, Reply, Then};
use crate::job::control::server::MOST_CLIENTS;
use crate::job::interval::Pace;
use crate::job::report::{Event, Taken};
use crate::job::signals::{self, Farewell, Origin, Reaction};
use crate::sys::{heap, relatives};

/// How long the last words of a batch system may take to reach the supervisor after the job.
const LAST_WORDS: u8 = 100;

/// How long it waits before it asks the kernel again that had no memory for it.
const MEMORY_PAUSE: Duration = Duration::from_millis(100);

impl Loop<'_> {
    /// Turns until the supervision is over.
    pub(super) fn turn(mut self) -> Result<Turned, SuperviseError> {
        if let Some(interval) = self.own.settings.pace.interval(self.cost) {
            let first = self.own.settings.not_before.max(interval);
            self.alarms.set(Alarm::Interval, self.begun + first);
        }
        self.set_limits();
        self.begin_copy();
        // The job may have ended before its first SIGCHLD could be read.
        self.look_for_the_end()?;
        loop {
            if let Some(ended) = self.ended {
                self.refuse_all(Refusal::Ending);
                self.hear_last_words()?;
                return Ok(self.over(Ending::Ended(ended)));
            }
            self.begin_next()?;
            for source in self.sleep()? {
                match source {
                    Source::Signals => self.read_signals()?,
                    Source::Listener => self.accept(),
                    Source::Root => self.look_for_the_end()?,
                    Source::Inquiry => self.read_answer(),
                    Source::Copy => self.copy_finished(),
                    Source::Holder => self.holder_ended(),
                    Source::Client(number) => self.hear(number),
                    Source::Checkpoint => {
                        if let Some(ending) = self.checkpoint_finished()? {
                            return Ok(self.over(ending));
                        }
                    }
                }
            }
            for (alarm, at) in self.alarms.take_due(Instant::now()) {
                match alarm {
                    Alarm::Interval => self.interval_passed(at),
                    Alarm::Grace => self.grace_passed(),
                    Alarm::Hold => self.free(),
                    Alarm::Limit => self.limit_is_near(),
                    Alarm::Budget => self.budget_is_spent(),
                    Alarm::Inquiry => self.answer_is_late(),
                    Alarm::Copy => self.begin_copy(),
                }
            }
        }
    }

    fn over(self, ending: Ending) -> Turned {
        Turned { ending, told: self.told, last: self.last, copying: self.copying }
    }

    /// Hears whether the job may have ended because it was told to. A batch system tells all processes
    /// of a job, in some order: the job may have ended before the supervisor heard.
    fn hear_last_words(&mut self) -> Result<(), SuperviseError> {
        if self.told.is_none() && self.own.batch != Batch::None {
            let mut polled = [PollFd::new(self.own.signals.as_fd(), PollFlags::POLLIN)];
            match poll(&mut polled, LAST_WORDS) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(source) => return Err(preparing("wait for events")(source)),
            }
        }
        self.read_signals()
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
        let mut sources: Vec<(Source, BorrowedFd<'_>)> =
            vec![(Source::Signals, self.own.signals.as_fd())];
        sources.extend(self.inquiry.as_ref().map(|inquiry| (Source::Inquiry, inquiry.as_fd())));
        sources.extend(self.copying.as_ref().map(|copying| (Source::Copy, copying.as_fd())));
        let holders = self.holds.iter().filter_map(Hold::holder);
        sources.extend(holders.map(|holder| (Source::Holder, holder)));
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
        match poll(&mut polled, self.alarms.timeout(Instant::now())) {
            Ok(_) => {}
            // A stop and continuation of ourselves interrupts; there is nothing to read then.
            Err(Errno::EINTR) => return Ok(Vec::new()),
            // There is more memory in a moment, or the kernel ends somebody.
            Err(Errno::ENOMEM) => {
                thread::sleep(MEMORY_PAUSE);
                return Ok(Vec::new());
            }
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
            let told = self.told.as_ref().map(|told| told.signals.as_slice());
            match self.own.settings.actions.reaction(signal, origin, told) {
                Reaction::Reap => self.look_for_the_end()?,
                Reaction::Nothing => self.note(signal),
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
                Reaction::Checkpoint => self.queue_checkpoint(),
                Reaction::End(farewell) => self.end(farewell, Cause::Request, Some(signal)),
                Reaction::EndAtOnce => self.end_at_once(signal),
            }
        }
    }

    /// Whether what the terminal sends to our process group reaches the job, too.
    fn shares_our_group(&self) -> bool {
        unistd::getpgid(Some(self.job.root.pid())) == Ok(unistd::getpgrp())
    }

    /// Passes a signal on to the root process.
    fn pass_on(&mut self, signal: Signal) {
        if self.ended.is_some() {
            // Its number may be another process's by now.
            return;
        }
        match kill(self.job.root.pid(), signal) {
            // It has ended, and that is about to be noticed.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => self.trouble(&format!("pass {signal} on to the job: {errno}")),
        }
    }

    /// Takes a last checkpoint and ends the job with it.
    pub(super) fn end(&mut self, farewell: Farewell, cause: Cause, signal: Option<Signal>) {
        self.told = Some(Told { farewell, cause, signals: signal.into_iter().collect() });
        self.observer.tell(Event::Ending { cause });
        self.refuse_all(Refusal::Ending);
        if self.ended.is_some() {
            return;
        }
        let allowed = self.allowance(signal != Some(Signal::SIGTERM));
        if allowed.is_zero() {
            return self.grace_passed();
        }
        self.queue.push_front((Asker::Ending, self.plain_order(Then::Kill)));
        self.alarms.set(Alarm::Grace, Instant::now() + allowed);
    }

    /// Remembers a signal that told once more to end, by another number.
    fn note(&mut self, signal: Signal) {
        if let Some(told) = &mut self.told {
            told.signals.push(signal);
        }
    }

    /// The last checkpoint did not fit.
    fn grace_passed(&mut self) {
        self.give_up_ending();
        self.end_without_checkpoint();
    }

    /// The job was told to end again: it hears that each time, and now without a checkpoint.
    fn end_at_once(&mut self, signal: Signal) {
        self.give_up_ending();
        if self.job_told_to_end {
            self.pass_on(signal);
        } else {
            self.end_without_checkpoint();
        }
    }

    /// Gives up the last checkpoint. It must not see the signal that the job is to end by.
    fn give_up_ending(&mut self) {
        self.alarms.unset(Alarm::Grace);
        self.queue.retain(|(asker, _)| *asker != Asker::Ending);
        // Whichever is being taken holds the job, which is to end now.
        if let Some((_, _, running)) = &self.running {
            running.give_up();
        }
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
    fn interval_passed(&mut self, at: Instant) {
        if let Some(interval) = self.own.settings.pace.interval(self.cost) {
            // Times that were slept through are left out.
            self.alarms.set(Alarm::Interval, (at + interval).max(Instant::now()));
        }
        if self.running.is_none() && self.queue.is_empty() {
            self.queue_checkpoint();
        }
    }

    /// Has a checkpoint taken that nobody waits for, after those that are waited for.
    fn queue_checkpoint(&mut self) {
        let waits = self.queue.iter().any(|(asker, _)| *asker == Asker::Nobody);
        if self.told.is_none() && !waits {
            self.queue.push_back((Asker::Nobody, self.plain_order(Then::Continue)));
        }
    }

    fn plain_order(&self, then: Then) -> Order {
        Order {
            then,
            directory: None,
            compress: None,
            rate: None,
            outputs: Vec::new(),
            save: Vec::new(),
            tcp_close: false,
            saves_by_itself: false,
            ext_unix: false,
        }
    }

    /// Begins the next checkpoint that waits, if none is being taken.
    fn begin_next(&mut self) -> Result<(), SuperviseError> {
        if self.running.is_some() || self.inquiry.is_some() {
            return Ok(());
        }
        if !self.holds.is_empty() && !self.queue.is_empty() {
            if !std::mem::replace(&mut self.has_put_off, true) {
                self.observer.tell(Event::PutOff);
            }
            return Ok(());
        }
        let Some((asker, order)) = self.queue.pop_front() else { return Ok(()) };
        if order.then == Then::Kill
            && let Some(copying) = &self.copying
        {
            // The last checkpoint goes there itself, and needs the disk.
            copying.give_up();
        }
        // A tracer gets SIGCHLD for each stop of each thread; they are not for us.
        self.listen_for_children(false)?;
        let mut task = checkpoint::Task::new(&self.job, &self.own.settings, &order);
        self.gauge = Arc::default();
        task.watch = Some(self.gauge.watch());
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
    fn checkpoint_finished(&mut self) -> Result<Option<Ending>, SuperviseError> {
        let Some((asker, order, running)) = self.running.take() else { return Ok(None) };
        let result = running.join();
        heap::give_back();
        self.listen_for_children(true)?;
        self.look_for_the_end()?;
        let ended = (order.then == Then::Kill).then(|| result.as_ref().ok().cloned()).flatten();
        self.settle(asker, result);
        if ended.is_some() {
            self.refuse_all(Refusal::Ending);
        }
        // A client that had the job ended asked for it, too.
        let cause = self.told.as_ref().map_or(Cause::Request, |told| told.cause);
        Ok(ended.map(|last| Ending::Suspended { last, cause }))
    }

    /// Tells everybody concerned what became of a checkpoint.
    fn settle(&mut self, asker: Asker, result: Result<Taken, checkpoint::CheckpointError>) {
        let reply = match result {
            Ok(taken) => {
                self.observer.tell(Event::Taken(&taken));
                self.learn(&taken);
                self.begin_copy();
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
            Asker::Nobody => {}
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

    /// Learns what checkpoints cost, and when the next is worth it.
    fn learn(&mut self, taken: &Taken) {
        self.cost.learn(taken.pause, taken.elapsed, processors());
        self.slowest = self.slowest.max(taken.elapsed);
        if let Pace::Auto { .. } = self.own.settings.pace
            && let Some(interval) = self.own.settings.pace.interval(self.cost)
        {
            self.alarms.set(Alarm::Interval, Instant::now() + interval);
        }
        self.keep_account();
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

/// The processors that this process may run on.
fn processors() -> u32 {
    thread::available_parallelism().map_or(1, |number| u32::try_from(number.get()).unwrap_or(1))
}
