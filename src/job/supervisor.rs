//! The event loop of `run` and `restore`: one thread that sleeps until a signal, a timer, a client
//! of the control socket or the end of the job wakes it. Between checkpoints nothing is attached to
//! the job, and nothing wakes up without a cause.
//!
//! A checkpoint is taken by a second thread, so that signals and clients are served meanwhile. It is
//! a thread and not a process because Yama, where it is on, lets only ancestors trace, and a child
//! of ours is no ancestor of the job. Should that thread panic, the kernel detaches the tracees of
//! a thread that ends, and the loop goes on.

mod clients;
mod turn;

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::unistd;
use thiserror::Error;

use crate::image::WriteOptions;
use crate::model::id::Bytes;

use super::checkpoint::Running;
use super::claim::Claim;
use super::control::discovery::Name;
use super::control::protocol::{Order, Reply};
use super::control::server::{Client, Listener, ServeError};
use super::directory::Identity;
use super::finish::Finish;
use super::report::{Event, Observer, Taken, Totals};
use super::root::{Ended, Root, WatchError};
use super::{identity, signals};

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

fn preparing(operation: &'static str) -> impl Fn(Errno) -> SuperviseError {
    move |source| SuperviseError::Prepare { operation, source }
}

/// Whole seconds since 1970; 0 for a clock that is set before.
pub fn seconds_since_1970(time: SystemTime) -> i64 {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(seconds).unwrap_or(i64::MAX)
}
