//! The event loop of `run` and `restore`: one thread that sleeps until a signal, a timer, a client
//! of the control socket or the end of the job wakes it. Between checkpoints nothing is attached to
//! the job, and nothing wakes up without a cause.
//!
//! A checkpoint is taken by a second thread, so that signals and clients are served meanwhile. It is
//! a thread and not a process because Yama, where it is on, lets only ancestors trace, and a child
//! of ours is no ancestor of the job. Should that thread panic, the kernel detaches the tracees of
//! a thread that ends, and the loop goes on.

mod alarms;
mod clients;
mod copies;
mod farewell;
mod holds;
mod inquiry;
mod limits;
mod turn;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd;
use thiserror::Error;

use crate::dump::Tracking;
use crate::dump::files::saved::Wanted;
use crate::image::WriteOptions;
use crate::image::watch::Gauge;
use crate::model::id::Bytes;

use self::alarms::Alarms;
use self::holds::Hold;
use self::inquiry::Inquiry;
use super::batch::Batch;
use super::checkpoint::Running;
use super::claim::Claim;
use super::control::discovery::Name;
use super::control::protocol::{Order, Reply};
use super::control::server::{Client, Listener, ServeError};
use super::copy::{Bringing, Route};
use super::directory::Identity;
use super::finish::Finish;
use super::hooks::Hooks;
use super::interval::{Cost, Pace};
use super::report::{Event, Observer, Taken, Totals};
use super::retention::Retention;
use super::root::{Ended, Root, WatchError};
use super::run::JOB_VARIABLE;
use super::signals::{Actions, Farewell};
use super::terminal::SharedTerminal;
use super::{budget, identity, signals};

/// Outcomes of checkpoints asked for from inside the job that are remembered.
const MOST_OUTCOMES: usize = 16;
/// Bytes of the command line that are told to clients.
const COMMAND_LIMIT: usize = 4096;

/// How a job is to be supervised.
#[derive(Clone, Debug)]
pub struct Settings {
    /// When checkpoints are taken by the clock.
    pub pace: Pace,
    /// None is taken by the clock before the supervisor has run so long.
    pub not_before: Duration,
    /// How long the last checkpoint may take.
    pub grace: Duration,
    /// A directory on a fast disk of this machine, absolute, where checkpoints are written first.
    pub local: Option<PathBuf>,
    /// Generations that are kept, in each directory.
    pub retention: Retention,
    /// How generations are written.
    pub write: WriteOptions,
    /// What the user named with `--outputs`, absolute.
    pub outputs: Vec<PathBuf>,
    /// Whether checkpoints give up TCP connections to outside the job.
    pub tcp_close: bool,
    /// Whether they give up connections of unix sockets to outside the job.
    pub ext_unix: bool,
    /// Files to be saved whole.
    pub save: Wanted,
    /// The user's hooks.
    pub hooks: Option<Hooks>,
    /// What is done about signals.
    pub actions: Actions,
    /// What becomes of the job when the batch system's time is over.
    pub farewell: Farewell,
    /// How long the job may run in all, over every start of it.
    pub most_total: Option<Duration>,
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
    /// The local directory that belongs to that one, where they are written first.
    pub local: Option<PathBuf>,
    /// That no other supervisor is in charge of that directory; `None`: nobody else knows it.
    pub claim: Option<Claim>,
    /// Which of its memory was written since its last checkpoint; `None`: nobody takes note of that.
    pub tracking: Option<Arc<Mutex<Tracking>>>,
}

/// What a supervisor keeps of its job's memory. One that is itself part of a job keeps nothing: what it
/// would take note of writes with cannot be saved.
#[must_use]
pub fn tracking() -> Option<Arc<Mutex<Tracking>>> {
    std::env::var_os(JOB_VARIABLE).is_none().then(Arc::default)
}

/// How supervision ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The job ended.
    Ended(Ended),
    /// The job was stopped, and can be resumed from its last checkpoint.
    Suspended {
        /// That checkpoint.
        last: Taken,
        /// Why it was stopped.
        cause: Cause,
    },
}

/// Why a job is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Somebody asked for it.
    Request,
    /// The time that the batch system allows is nearly over.
    Limit,
    /// The time that the user allows the job in all is over.
    Budget,
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
    Listener,
    Checkpoint,
    Inquiry,
    Copy,
    Holder,
    Root,
    Client(u64),
}

/// Who asked for a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    /// The interval has passed, or a signal came that means it.
    Nobody,
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
    listener: Listener,
    batch: Batch,
    /// The terminal that it shares with the job and a shell.
    terminal: Option<SharedTerminal>,
}

/// That the supervisor was told to end.
#[derive(Clone, Debug)]
struct Told {
    farewell: Farewell,
    cause: Cause,
    /// The signals by which it was told.
    signals: Vec<Signal>,
}

/// A supervisor at work.
struct Loop<'a> {
    own: &'a Supervisor,
    job: Supervised,
    observer: &'a mut dyn Observer,
    guests: BTreeMap<u64, Guest>,
    next_number: u64,
    queue: VecDeque<(Asker, Order)>,
    running: Option<(Asker, Order, Running)>,
    /// How far that is.
    gauge: Arc<Gauge>,
    outcomes: BTreeMap<u64, Reply>,
    last: Option<Taken>,
    alarms: Alarms,
    inquiry: Option<Inquiry>,
    /// Where checkpoints are brought from the local directory.
    route: Option<Route>,
    copying: Option<Bringing>,
    /// When the time is over that the batch system allows, as far as that is known.
    limit: Option<Instant>,
    /// Whether that is near, unless the batch system has changed its mind.
    is_near: bool,
    /// Whether the job's directory is ours to write to.
    in_charge: bool,
    begun: Instant,
    /// How long the job ran before.
    spent: Duration,
    cost: Cost,
    slowest: Duration,
    told: Option<Told>,
    /// What holds checkpoints off.
    holds: Vec<Hold>,
    /// Whether one was put off by that.
    has_put_off: bool,
    /// Whether the job was told to end without a last checkpoint.
    job_told_to_end: bool,
    /// How the root process ended, once it has.
    ended: Option<Ended>,
}

/// How a loop came to its end.
struct Turned {
    ending: Ending,
    told: Option<Told>,
    /// The last checkpoint that it took.
    last: Option<Taken>,
    /// A copy that is still being made.
    copying: Option<Bringing>,
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
        let batch = Batch::of(|name| std::env::var_os(name));
        let terminal = SharedTerminal::find();
        Ok(Self { settings, name, started: SystemTime::now(), signals, listener, batch, terminal })
    }

    /// Has a job that was brought back draw on the terminal again.
    pub fn have_terminal_drawn(&self) {
        if let Some(terminal) = &self.terminal {
            terminal.have_it_drawn();
        }
    }

    /// The local directory that the user has named.
    #[must_use]
    pub fn local(&self) -> Option<&Path> {
        self.settings.local.as_deref()
    }

    /// The user's hooks.
    #[must_use]
    pub const fn hooks(&self) -> Option<&Hooks> {
        self.settings.hooks.as_ref()
    }

    /// Supervises until the job has ended, or has been ended after a checkpoint.
    ///
    /// # Errors
    /// When a descriptor of the loop fails; the job runs on without a supervisor.
    pub fn supervise(
        self,
        mut job: Supervised,
        observer: &mut dyn Observer,
    ) -> Result<Ending, SuperviseError> {
        let begun = Instant::now();
        let claim = job.claim.take();
        let charge = claim.is_some().then(|| job.directory.clone());
        let mut spent = Duration::ZERO;
        if let Some(directory) = &charge {
            if let Err(error) = Finish::forget(directory) {
                observer.tell(Event::Trouble(&error.to_string()));
            }
            match budget::read(directory) {
                Ok(before) => spent = before,
                Err(error) => observer.tell(Event::Trouble(&error.to_string())),
            }
        }
        let route = job.local.as_ref().map(|local| Route {
            local: local.clone(),
            home: job.directory.clone(),
            retention: self.settings.retention,
        });
        let mut turned =
            Loop::new(&self, job, route.clone(), charge.is_some(), spent, observer).turn()?;
        if let Some(terminal) = &self.terminal {
            let tidied = matches!(turned.ending, Ending::Ended(Ended::Exited(_)));
            // A terminal that is gone needs nothing.
            terminal.take_back(tidied).unwrap_or_default();
        }
        let ran = begun.elapsed();
        let copying = turned.copying.take();
        match (&route, &turned.ending, &turned.told) {
            (Some(route), Ending::Suspended { .. } | Ending::Ended(Ended::Killed(_)), _)
            | (Some(route), _, Some(_)) => copies::bring_home(&self, route, copying, observer)?,
            _ => copies::give_up(copying),
        }
        if let Some(directory) = &charge {
            let finished = match (&turned.ending, &turned.told) {
                (Ending::Ended(Ended::Exited(status)), None) => {
                    Finish::now(*status).write(directory)
                }
                _ => Ok(()),
            };
            if let Err(error) = finished.and_then(|()| budget::write(directory, spent + ran)) {
                observer.tell(Event::Trouble(&error.to_string()));
            }
        }
        let ending = farewell::ending(turned.ending, turned.told.as_ref(), turned.last.as_ref());
        observer.tell(Event::Over { ending: &ending, ran, totals: Totals::default() });
        if let Some(Told { farewell: Farewell::Requeue, cause, .. }) = turned.told {
            // From now on the directory is the next start's.
            drop(claim);
            let went_on = turned.last.is_some();
            farewell::requeue(&self, cause, went_on, observer)?;
        }
        Ok(ending)
    }
}

impl<'a> Loop<'a> {
    /// One that has not turned yet.
    fn new(
        own: &'a Supervisor,
        job: Supervised,
        route: Option<Route>,
        in_charge: bool,
        spent: Duration,
        observer: &'a mut dyn Observer,
    ) -> Self {
        Self {
            own,
            job,
            observer,
            guests: BTreeMap::new(),
            next_number: 0,
            queue: VecDeque::new(),
            running: None,
            gauge: Arc::default(),
            outcomes: BTreeMap::new(),
            last: None,
            alarms: Alarms::default(),
            inquiry: None,
            route,
            copying: None,
            limit: None,
            is_near: false,
            in_charge,
            begun: Instant::now(),
            spent,
            cost: Cost::default(),
            slowest: Duration::ZERO,
            told: None,
            holds: Vec::new(),
            has_put_off: false,
            job_told_to_end: false,
            ended: None,
        }
    }
}

fn preparing(operation: &'static str) -> impl Fn(Errno) -> SuperviseError {
    move |source| SuperviseError::Prepare { operation, source }
}

/// Whole seconds since 1970; 0 for a clock that is set before.
pub fn seconds_since_1970(time: SystemTime) -> i64 {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(seconds).unwrap_or(i64::MAX)
}
