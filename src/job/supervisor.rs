//! The event loop of `run` and `restore`: one thread that sleeps until a signal, a timer, a client
//! of the control socket or the end of the job wakes it. Between checkpoints nothing is attached to
//! the job, and nothing wakes up without a cause.
//!
//! A checkpoint is taken by a second thread, so that signals and clients are served meanwhile. It is
//! a thread and not a process because Yama, where it is on, lets only ancestors trace, and a child
//! of ours is no ancestor of the job. Should that thread panic, the kernel detaches the tracees of
//! a thread that ends, and the loop goes on.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, raise, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::unistd;
use thiserror::Error;

use crate::image::WriteOptions;
use crate::model::id::Bytes;
use crate::sys::relatives;

use super::checkpoint::{self, Running};
use super::claim::Claim;
use super::control::discovery::Name;
use super::control::protocol::{self, Order, Refusal, Reply, Request, Status, Then};
use super::control::server::{Client, Listener, MOST_CLIENTS, Received, ServeError};
use super::directory::Identity;
use super::finish::Finish;
use super::identity;
use super::report::{Event, Observer, Taken, Totals};
use super::root::{Ended, Root, WatchError};
use super::signals::{self, Origin, Reaction};

/// Outcomes of checkpoints asked for from inside the job that are remembered.
const MOST_OUTCOMES: usize = 16;
/// Bytes of the command line that are told to clients.
const COMMAND_LIMIT: usize = 4096;

/// How a job is to be supervised.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Time between checkpoints; `None`: only when asked.
    pub every: Option<Duration>,
    /// How long the last checkpoint may take.
    pub grace: Duration,
    /// Generations that are kept; `None`: all.
    pub keep: Option<NonZeroUsize>,
    /// How generations are written.
    pub write: WriteOptions,
    /// What the user named with `--outputs`, absolute.
    pub outputs: Vec<PathBuf>,
}

/// A job to supervise.
#[derive(Debug)]
pub struct Supervised {
    /// Which job it is.
    pub identity: Identity,
    /// Its root process.
    pub root: Root,
    /// Where its checkpoints go, absolute. It need not exist.
    pub directory: PathBuf,
    /// That no other supervisor is in charge of that directory; `None`: nobody else knows it.
    pub claim: Option<Claim>,
}

/// How supervision ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The job ended.
    Ended(Ended),
    /// The job was stopped after a checkpoint, as was asked, and can be resumed from it.
    Suspended(Taken),
}

/// Why a job cannot be supervised any more. The job itself runs on.
#[derive(Debug, Error)]
pub enum SuperviseError {
    /// A descriptor that the loop needs could not be made or used.
    #[error("{operation}: {source}")]
    Prepare {
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// No name for the supervisor could be made.
    #[error("read random numbers: {0}")]
    Name(#[source] std::io::Error),
    /// The control socket does not work.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// It cannot be learnt how the job ended.
    #[error(transparent)]
    Watch(#[from] WatchError),
}

/// What wakes the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Signals,
    Interval,
    Grace,
    Listener,
    Checkpoint,
    Root,
    Client(u64),
}

/// Who asked for a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    /// The interval has passed.
    Interval,
    /// The supervisor was told to end.
    Ending,
    /// A client that waits for the answer.
    Client(u64),
    /// A process of the job, which will ask what became of it.
    Inside(u64),
}

/// A client that is connected.
#[derive(Debug)]
struct Guest {
    client: Client,
    /// What begins when it hangs up.
    on_hang_up: Option<(u64, Order)>,
}

/// The supervisor of one job, listening, with its signals blocked.
#[derive(Debug)]
pub struct Supervisor {
    settings: Settings,
    name: Name,
    started: SystemTime,
    signals: SignalFd,
    interval: TimerFd,
    grace: TimerFd,
    listener: Listener,
}

/// A supervisor at work.
struct Loop<'a> {
    own: Supervisor,
    job: Supervised,
    observer: &'a mut dyn Observer,
    guests: BTreeMap<u64, Guest>,
    next_number: u64,
    queue: VecDeque<(Asker, Order)>,
    running: Option<(Asker, Order, Running)>,
    outcomes: BTreeMap<u64, Reply>,
    last: Option<Taken>,
    told_to_end: bool,
    /// Whether the job was told to end without a last checkpoint.
    job_told_to_end: bool,
    /// How the root process ended, once it has.
    ended: Option<Ended>,
}

impl Supervisor {
    /// Prepares to supervise the job of identity `job`: from now on it can be found and waits for
    /// clients. The signals of [`signals::handled`] must be blocked, or they are lost.
    ///
    /// # Errors
    /// When a descriptor cannot be made, or the control socket not be named.
    pub fn new(job: &Bytes, settings: Settings) -> Result<Self, SuperviseError> {
        let instance = identity::new_id().map_err(SuperviseError::Name)?;
        let name = Name { user: unistd::geteuid().as_raw(), job: job.clone(), instance };
        let listener = Listener::bind(&name)?;
        let signals = SignalFd::with_flags(
            &signals::handled(),
            SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
        )
        .map_err(preparing("make a signal descriptor"))?;
        let timer = || {
            TimerFd::new(
                ClockId::CLOCK_MONOTONIC,
                TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK,
            )
            .map_err(preparing("make a timer"))
        };
        let (interval, grace) = (timer()?, timer()?);
        Ok(Self { settings, name, started: SystemTime::now(), signals, interval, grace, listener })
    }

    /// Supervises until the job has ended, or has been ended after a checkpoint.
    ///
    /// # Errors
    /// When a descriptor of the loop fails; the job runs on without a supervisor.
    pub fn supervise(
        self,
        job: Supervised,
        observer: &mut dyn Observer,
    ) -> Result<Ending, SuperviseError> {
        if let Some(every) = self.settings.every {
            let expiration = Expiration::Interval(TimeSpec::from_duration(every));
            self.interval
                .set(expiration, TimerSetTimeFlags::empty())
                .map_err(preparing("set the timer"))?;
        }
        let begun = Instant::now();
        let charge = job.claim.is_some().then(|| job.directory.clone());
        if let Some(directory) = &charge
            && let Err(error) = Finish::forget(directory)
        {
            observer.tell(Event::Trouble(&error.to_string()));
        }
        let (ending, was_told_to_end) = Loop {
            own: self,
            job,
            observer: &mut *observer,
            guests: BTreeMap::new(),
            next_number: 0,
            queue: VecDeque::new(),
            running: None,
            outcomes: BTreeMap::new(),
            last: None,
            told_to_end: false,
            job_told_to_end: false,
            ended: None,
        }
        .turn()?;
        if let (Ending::Ended(Ended::Exited(status)), Some(directory), false) =
            (&ending, &charge, was_told_to_end)
            && let Err(error) = Finish::now(*status).write(directory)
        {
            observer.tell(Event::Trouble(&error.to_string()));
        }
        let ran = begun.elapsed();
        observer.tell(Event::Over { ending: &ending, ran, totals: Totals::default() });
        Ok(ending)
    }
}

impl Loop<'_> {
    /// Turns until the supervision is over. Gives its end, and whether the job had been told to end.
    fn turn(mut self) -> Result<(Ending, bool), SuperviseError> {
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

    fn accept(&mut self) {
        while self.guests.len() < MOST_CLIENTS {
            let Some(client) = self.own.listener.accept() else { break };
            self.next_number += 1;
            self.guests.insert(self.next_number, Guest { client, on_hang_up: None });
        }
    }

    /// Hears what a client has to say.
    fn hear(&mut self, number: u64) {
        let Some(guest) = self.guests.get(&number) else { return };
        let pid = guest.client.pid();
        match guest.client.receive() {
            Received::Nothing => {}
            Received::HangUp => self.hang_up(number),
            Received::Unreadable(error) => {
                self.trouble(&format!("a client of the control socket sent {error}"));
                self.answer(number, &Reply::Refused(Refusal::Unreadable));
            }
            Received::Request(request) => {
                let inside = pid.is_some_and(|pid| self.job.root.is_above(pid));
                if let Some(reply) = self.serve(number, request, inside) {
                    self.answer(number, &reply);
                }
            }
        }
    }

    /// Does what a client asks. `None`: the answer comes later.
    fn serve(&mut self, number: u64, request: Request, inside: bool) -> Option<Reply> {
        match request {
            Request::Status => Some(Reply::Status(self.status())),
            Request::Outcome { .. } if !inside => Some(Reply::Refused(Refusal::NotInside)),
            Request::Outcome { ticket } => Some(self.outcome(ticket)),
            Request::Dump(_) | Request::DumpFromInside(_) if self.told_to_end => {
                Some(Reply::Refused(Refusal::Ending))
            }
            Request::Dump(_) | Request::DumpFromInside(_) if self.queue.len() >= MOST_CLIENTS => {
                Some(Reply::Refused(Refusal::Busy))
            }
            Request::Dump(_) if inside => Some(Reply::Refused(Refusal::Inside)),
            Request::DumpFromInside(_) if !inside => Some(Reply::Refused(Refusal::NotInside)),
            Request::Dump(order) => {
                self.queue.push_back((Asker::Client(number), order));
                None
            }
            Request::DumpFromInside(order) => {
                self.next_number += 1;
                let ticket = self.next_number;
                let guest = self.guests.get_mut(&number)?;
                guest.on_hang_up = Some((ticket, order));
                Some(Reply::Accepted { ticket, instance: self.own.name.instance.clone() })
            }
        }
    }

    fn outcome(&self, ticket: u64) -> Reply {
        let is_it = |asker: &Asker| *asker == Asker::Inside(ticket);
        let waits = self.queue.iter().any(|(asker, _)| is_it(asker))
            || self.running.as_ref().is_some_and(|(asker, _, _)| is_it(asker));
        match self.outcomes.get(&ticket) {
            Some(reply) => reply.clone(),
            None if waits => Reply::Pending,
            None => Reply::Refused(Refusal::UnknownTicket),
        }
    }

    fn status(&self) -> Status {
        Status {
            job: self.job.identity.id.clone(),
            instance: self.own.name.instance.clone(),
            directory: self.job.directory.clone().into(),
            root: self.job.root.pid().as_raw(),
            supervisor: unistd::getpid().as_raw(),
            command: protocol::shorten(&self.job.identity.command, COMMAND_LIMIT),
            started: seconds_since_1970(self.own.started),
            every: self.own.settings.every.map(|every| every.as_secs()),
            last: self.last.clone(),
            busy: self.running.is_some(),
        }
    }

    /// A client has gone; one from inside the job has made room for its checkpoint by that.
    fn hang_up(&mut self, number: u64) {
        if let Some(Guest { on_hang_up: Some((ticket, order)), .. }) = self.guests.remove(&number) {
            self.queue.push_back((Asker::Inside(ticket), order));
        }
    }

    /// Answers a client, and lets go of one that does not take the answer.
    fn answer(&mut self, number: u64, reply: &Reply) {
        if self.guests.get(&number).is_some_and(|guest| !guest.client.reply(reply)) {
            self.guests.remove(&number);
        }
    }

    /// Refuses all checkpoints that wait.
    fn refuse_all(&mut self, refusal: Refusal) {
        for (asker, _) in std::mem::take(&mut self.queue) {
            match asker {
                Asker::Client(number) => self.answer(number, &Reply::Refused(refusal)),
                Asker::Inside(ticket) => {
                    self.outcomes.insert(ticket, Reply::Refused(refusal));
                }
                Asker::Interval | Asker::Ending => {}
            }
        }
    }

    fn trouble(&mut self, words: &str) {
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

fn preparing(operation: &'static str) -> impl Fn(Errno) -> SuperviseError {
    move |source| SuperviseError::Prepare { operation, source }
}

/// Whole seconds since 1970; 0 for a clock that is set before.
pub fn seconds_since_1970(time: SystemTime) -> i64 {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(seconds).unwrap_or(i64::MAX)
}
