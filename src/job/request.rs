//! `dump`: a checkpoint of any process, taken by the supervisor of its job if it has one, else by
//! this process.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::{self, Pid, Uid};
use thiserror::Error;

use crate::dump::DumpError;
use crate::dump::files::saved::Wanted;
use crate::dump::survey::Survey;
use crate::image::WriteOptions;
use crate::image::reader::Trust;
use crate::image::watch::Watch;
use crate::model::id::Bytes;
use crate::sys::descriptor;
use crate::sys::launch::{self, LaunchError};
use crate::sys::procfs::{self, ProcError};
use crate::sys::relatives;

use super::alive;
use super::checkpoint::{self, CheckpointError, Task};
use super::control::client::{AskError, Connection};
use super::control::discovery::{self, Name};
use super::control::protocol::{Order, Refusal, Reply, Request, Status, Then};
use super::directory::{Identity, JobDirectory};
use super::identity;
use super::report::{Explanation, Taken};
use super::retention::Retention;
use super::run::{JOB_VARIABLE, default_directory};
use super::supervisor::seconds_since_1970;
use crate::model::code::{self, Code};

/// How long a supervisor may take to say how its job is.
const STATUS_PATIENCE: Duration = Duration::from_secs(2);
/// How long an rckpt that was just called may take to start its job.
const START_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked whether it has.
const START_INTERVAL: Duration = Duration::from_millis(20);
/// How often a process of the job looks whether the checkpoint that it asked for is complete.
const OUTCOME_INTERVAL: Duration = Duration::from_millis(200);

/// What to dump.
#[derive(Clone, Debug)]
pub struct Options {
    /// A process of the job; `None`: the job that this process belongs to.
    pub pid: Option<Pid>,
    /// Where it goes, absolute; `None`: the job's directory.
    pub directory: Option<PathBuf>,
    /// What becomes of the job.
    pub then: Then,
    /// Whether page data is compressed; `None`: as the supervisor was told.
    pub compress: Option<bool>,
    /// How it is written when no supervisor does it.
    pub write: WriteOptions,
    /// Named outputs, absolute.
    pub outputs: Vec<PathBuf>,
    /// Whether TCP connections to outside the job are given up.
    pub tcp_close: bool,
    /// Whether connections of unix sockets to outside the job are given up.
    pub ext_unix: bool,
    /// Files to be saved whole.
    pub save: Wanted,
    /// Who is told of the bytes that are written.
    pub watch: Option<Watch>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A checkpoint, complete.
    Taken(Taken),
    /// This process belongs to the job, and was brought back from the checkpoint it had asked for.
    Restored,
}

/// Why there is no checkpoint.
#[derive(Debug, Error)]
pub enum RequestError {
    /// No process was named, and this one does not run inside a job.
    #[error("no process is named, and this command does not run inside a job")]
    NotInsideJob,
    /// The process belongs to no job that rckpt supervises.
    #[error("process {0}: it belongs to no job that rckpt supervises")]
    NotSupervised(Pid),
    /// The job that this process belongs to has no supervisor any more.
    #[error("the supervisor of job {0} does not run any more")]
    SupervisorGone(Bytes),
    /// The process is an rckpt without a job.
    #[error("process {0}: an rckpt that supervises no job")]
    NoJob(Pid),
    /// The supervisor is stopped, and answers nobody.
    #[error("process {0}: the job's supervisor is stopped (Ctrl-Z)")]
    SupervisorStopped(Pid),
    /// There is no such process.
    #[error("process {0}: there is none")]
    NoProcess(Pid),
    /// The process is somebody else's.
    #[error("process {0}: it is not yours")]
    NotMine(Pid),
    /// This process would have to freeze itself.
    #[error("process {0}: this command runs under it, and cannot freeze itself")]
    AboveMe(Pid),
    /// /proc could not be read.
    #[error(transparent)]
    ReadProc(#[from] ProcError),
    /// The identity of this boot could not be read.
    #[error("read the boot id: {0}")]
    ReadBoot(#[source] io::Error),
    /// The current directory is not known.
    #[error("find the current directory: {0}")]
    FindDirectory(#[source] io::Error),
    /// The supervisor could not be asked.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The supervisor refused.
    #[error("the job's supervisor refused: {0}")]
    Refused(Refusal),
    /// The supervisor tried, and failed.
    #[error("{}", .0.message)]
    Failed(Explanation),
    /// No process could be made to take it.
    #[error(transparent)]
    StartProcess(#[from] LaunchError),
    /// This process tried, and failed.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl RequestError {
    /// Whether the command that asked was ended meanwhile.
    #[must_use]
    pub const fn is_given_up(&self) -> bool {
        matches!(self, Self::Checkpoint(CheckpointError::Dump(DumpError::GivenUp)))
    }

    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::NotInsideJob => code::attaching::NOT_INSIDE_JOB,
            Self::NotSupervised(_) => code::attaching::NOT_SUPERVISED,
            Self::SupervisorGone(_) => code::attaching::SUPERVISOR_GONE,
            Self::NoJob(_) => code::attaching::NO_JOB,
            Self::SupervisorStopped(_) => code::attaching::SUPERVISOR_STOPPED,
            Self::NoProcess(_) => code::attaching::NO_SUCH_PROCESS,
            Self::NotMine(_) => code::attaching::NOT_YOURS,
            Self::AboveMe(_) => code::attaching::ABOVE_ITSELF,
            Self::ReadProc(_) => code::attaching::PROC_UNREADABLE,
            Self::ReadBoot(_) => code::attaching::MACHINE_UNREADABLE,
            Self::FindDirectory(_) => code::requests::NOTHING_THERE,
            Self::Ask(_) => code::attaching::SUPERVISOR_SILENT,
            Self::Refused(error) => error.code(),
            Self::Checkpoint(error) => error.code(),
            Self::Failed(error) => error.code,
            Self::StartProcess(_) => code::attaching::CANNOT_FORK,
        }
    }
}

/// Takes a checkpoint.
///
/// # Errors
/// When there is none; the job runs on.
pub fn dump(options: &Options) -> Result<Outcome, RequestError> {
    let Some(pid) = options.pid else { return dump_own_job(options) };
    let begun = Instant::now();
    loop {
        if let Some(connection) = supervisor_of(pid)? {
            return ask(connection, options);
        }
        let outcome = if is_rckpt(pid) {
            Err(RequestError::NoJob(pid))
        } else {
            check_reachable(pid)?;
            dump_directly(pid, options).map(Outcome::Taken)
        };
        // `rckpt run & rckpt dump $!`: it is about to start its job, or has just seen it end. It may
        // even have become an rckpt while we looked.
        if outcome.is_ok() || !is_rckpt(pid) || begun.elapsed() > START_PATIENCE {
            return outcome;
        }
        thread::sleep(START_INTERVAL);
    }
}

/// Finds what stands in the way of a checkpoint of the job that `pid` belongs to, and gives what its
/// user should know besides, and what it would come to. Nothing is written, and the job runs on.
///
/// # Errors
/// When something does, or looking fails.
pub fn examine(pid: Pid, directory: &Path) -> Result<(Vec<String>, Survey), RequestError> {
    let (root, supervisor) = match supervisor_of(pid)? {
        Some(connection) => match connection.ask(&Request::Status, Some(STATUS_PATIENCE))? {
            Reply::Status(status) => (Pid::from_raw(status.root), connection.supervisor()),
            reply => return Err(outcome_of(reply).err().unwrap_or(AskError::Unexpected.into())),
        },
        None => (pid, None),
    };
    check_reachable(root)?;
    // Under supervision the root's parent adopts the orphans: the supervisor, or the init of a
    // restored job's namespaces.
    let adopter = match supervisor {
        Some(_) => relatives::parent(root)?,
        None => None,
    };
    let job = identity_of(root)?;
    Ok(checkpoint::examine(&Task {
        job,
        root,
        supervisor,
        adopter,
        directory: directory.to_owned(),
        beside: None,
        home: directory.to_owned(),
        then: Then::Continue,
        write: WriteOptions::default(),
        outputs: Vec::new(),
        tcp_close: false,
        ext_unix: false,
        save: Wanted::default(),
        retention: Retention::default(),
        hooks: None,
        caller: None,
        given_up: Arc::default(),
        tracking: None,
        in_line: true,
        watch: None,
    })?)
}

/// Whether `pid` runs the same program file as this process.
fn is_rckpt(pid: Pid) -> bool {
    let program = |process: &str| {
        let file = fs::metadata(format!("/proc/{process}/exe")).ok()?;
        Some((file.dev(), file.ino()))
    };
    program("self").is_some_and(|own| program(&pid.to_string()) == Some(own))
}

/// Makes sure that `pid` can be asked for at all.
fn check_reachable(pid: Pid) -> Result<(), RequestError> {
    match kill(pid, None) {
        Err(Errno::ESRCH) => return Err(RequestError::NoProcess(pid)),
        Err(Errno::EPERM) => return Err(RequestError::NotMine(pid)),
        // Whatever else kill may say, the tracer finds out for itself.
        Ok(()) | Err(_) => {}
    }
    if relatives::ancestors(unistd::getpid())?.contains(&pid) {
        return Err(RequestError::AboveMe(pid));
    }
    Ok(())
}

/// The supervisor of the job that `pid` belongs to: the nearest above it that supervises. Its own
/// number stands for its job.
fn supervisor_of(pid: Pid) -> Result<Option<Connection>, RequestError> {
    let user = Uid::effective();
    let listeners =
        discovery::listeners((!user.is_root()).then_some(user)).map_err(AskError::ListNames)?;
    if listeners.is_empty() {
        return Ok(None);
    }
    for above in relatives::ancestors(pid)? {
        // Nobody is disturbed who only has such a name.
        let sockets = descriptor::sockets_of(above);
        for listener in listeners.iter().filter(|it| sockets.contains(&it.inode)) {
            let connection = match Connection::open(&listener.name) {
                Err(AskError::TakesNone) if relatives::is_stopped(above)? => {
                    return Err(RequestError::SupervisorStopped(above));
                }
                outcome => outcome?,
            };
            if let Some(connection) = connection.filter(|it| it.supervisor() == Some(above)) {
                return Ok(Some(connection));
            }
        }
    }
    Ok(None)
}

/// Has the job saved that this process belongs to.
fn dump_own_job(options: &Options) -> Result<Outcome, RequestError> {
    let job = Bytes::from(std::env::var_os(JOB_VARIABLE).ok_or(RequestError::NotInsideJob)?);
    for name in names_of(&job)? {
        let Some(connection) = Connection::open(&name)? else { continue };
        // Of several jobs brought back from one checkpoint, one knows this process as its own.
        match ask(connection, options) {
            Err(RequestError::Refused(Refusal::NotInside)) => {}
            outcome => return outcome,
        }
    }
    Err(RequestError::SupervisorGone(job))
}

/// The names of the supervisors of `job`.
fn names_of(job: &Bytes) -> Result<Vec<Name>, RequestError> {
    let listeners = discovery::listeners(Some(Uid::effective())).map_err(AskError::ListNames)?;
    Ok(listeners.into_iter().map(|it| it.name).filter(|name| name.job == *job).collect())
}

/// Has a supervisor take the checkpoint.
fn ask(connection: Connection, options: &Options) -> Result<Outcome, RequestError> {
    if let Some(supervisor) = connection.supervisor()
        && relatives::is_stopped(supervisor)?
    {
        return Err(RequestError::SupervisorStopped(supervisor));
    }
    let order = Order {
        then: options.then,
        directory: options.directory.clone().map(Bytes::from),
        compress: options.compress,
        rate: options.write.rate,
        outputs: options.outputs.iter().cloned().map(Bytes::from).collect(),
        tcp_close: options.tcp_close,
        ext_unix: options.ext_unix,
        save: options.save.named.iter().cloned().map(Bytes::from).collect(),
        saves_by_itself: options.save.by_itself,
    };
    let request = Request::Dump(order.clone());
    let reply = match &options.watch {
        Some(watch) => {
            let (name, mut told) = (connection.name(), 0);
            connection.ask_with_time(&request, &mut || tell_progress(name, watch, &mut told))?
        }
        None => connection.ask(&request, None)?,
    };
    match reply {
        Reply::Refused(Refusal::Inside) => {}
        reply => return outcome_of(reply).map(Outcome::Taken),
    }
    match connection.ask(&Request::DumpFromInside(order), None)? {
        Reply::Accepted { ticket, instance } => {
            let job = connection.name().job.clone();
            // This process is about to be saved itself: it must hold nothing that cannot be.
            drop(connection);
            await_outcome(&job, ticket, &instance)
        }
        reply => outcome_of(reply).map(Outcome::Taken),
    }
}

/// Tells `watch` how far the supervisor of that name is with its checkpoint, if it says so: nothing depends on
/// that. `told` is what it has been told before.
fn tell_progress(name: &Name, watch: &Watch, told: &mut u64) {
    let Ok(Some(connection)) = Connection::open(name) else { return };
    let reply = connection.ask(&Request::Status, Some(STATUS_PATIENCE));
    let Ok(Reply::Status(Status { busy: true, progress: (done, expected), .. })) = reply else {
        return;
    };
    if expected > 0 {
        watch.expect(expected);
    }
    watch.tell(done.saturating_sub(*told));
    *told = done;
}

/// Waits until the checkpoint is complete that was asked for from inside the job. Nothing is held
/// open meanwhile, so this works on in the job that is brought back: there another supervisor
/// answers for the job.
fn await_outcome(job: &Bytes, ticket: u64, instance: &Bytes) -> Result<Outcome, RequestError> {
    loop {
        thread::sleep(OUTCOME_INTERVAL);
        let mut alive = false;
        for name in names_of(job)? {
            let Some(connection) = Connection::open(&name)? else { continue };
            let reply = connection.ask(&Request::Outcome { ticket }, Some(STATUS_PATIENCE));
            match reply {
                // Another job brought back from the same checkpoint, or just ended.
                Ok(Reply::Refused(Refusal::NotInside)) | Err(AskError::HungUp) => {}
                Err(error) => return Err(error.into()),
                Ok(_) if name.instance != *instance => return Ok(Outcome::Restored),
                Ok(Reply::Pending) => alive = true,
                Ok(reply) => return outcome_of(reply).map(Outcome::Taken),
            }
        }
        if !alive {
            return Err(RequestError::SupervisorGone(job.clone()));
        }
    }
}

/// Has no checkpoint taken of the job of `pid`, or of the one that this process runs inside, until it
/// is released, or `at_most` so long.
///
/// # Errors
/// When its supervisor does not go along.
pub fn hold(pid: Option<Pid>, at_most: Option<Duration>) -> Result<(), RequestError> {
    let request = Request::Hold { seconds: at_most.map(|span| span.as_secs()) };
    loop {
        match tell(pid, &request) {
            // A checkpoint is about to begin, and this process must not be in its way.
            Err(RequestError::Refused(Refusal::Busy)) => thread::sleep(START_INTERVAL),
            outcome => return outcome,
        }
    }
}

/// Lets checkpoints be taken again that [`hold`] has put off.
///
/// # Errors
/// When its supervisor does not go along.
pub fn release(pid: Option<Pid>) -> Result<(), RequestError> {
    tell(pid, &Request::Release)
}

/// Tells a supervisor something that it does at once.
fn tell(pid: Option<Pid>, request: &Request) -> Result<(), RequestError> {
    let connection = match pid {
        Some(pid) => supervisor_of(pid)?.ok_or(RequestError::NotSupervised(pid))?,
        None => own_supervisor()?,
    };
    match connection.ask(request, Some(STATUS_PATIENCE))? {
        Reply::Done => Ok(()),
        reply => Err(outcome_of(reply).err().unwrap_or(AskError::Unexpected.into())),
    }
}

/// The supervisor of the job that this process runs inside.
fn own_supervisor() -> Result<Connection, RequestError> {
    let job = Bytes::from(std::env::var_os(JOB_VARIABLE).ok_or(RequestError::NotInsideJob)?);
    for name in names_of(&job)? {
        let Some(connection) = Connection::open(&name)? else { continue };
        // Of several jobs brought back from one checkpoint, one knows this process as its own.
        match connection.ask(&Request::Outcome { ticket: 0 }, Some(STATUS_PATIENCE)) {
            Ok(Reply::Refused(Refusal::NotInside)) | Err(AskError::HungUp) => {}
            Ok(_) => return Ok(connection),
            Err(error) => return Err(error.into()),
        }
    }
    Err(RequestError::SupervisorGone(job))
}

fn outcome_of(reply: Reply) -> Result<Taken, RequestError> {
    match reply {
        Reply::Taken(taken) => Ok(taken),
        Reply::Refused(refusal) => Err(RequestError::Refused(refusal)),
        Reply::Failed(explanation) => Err(RequestError::Failed(explanation)),
        Reply::Status(_) | Reply::Accepted { .. } | Reply::Pending | Reply::Done => {
            Err(AskError::Unexpected.into())
        }
    }
}

/// Takes the checkpoint of a process that no supervisor is responsible for.
fn dump_directly(pid: Pid, options: &Options) -> Result<Taken, RequestError> {
    // A job that has lost its supervisor is the same job still.
    let lost = lost_job(pid);
    let job = match &lost {
        Some(home) => home.identity().cloned(),
        None => None,
    };
    let job = job.map_or_else(|| identity_of(pid), Ok)?;
    let directory = match (&options.directory, &lost) {
        (Some(directory), _) => directory.clone(),
        (None, Some(home)) => home.path().to_owned(),
        (None, None) => {
            let name = OsString::from_vec(procfs::name(pid)?);
            std::path::absolute(default_directory(Some(&name), pid))
                .map_err(RequestError::FindDirectory)?
        }
    };
    // Some calls of a program fail when whoever stops it is killed just then (signal(7) lists them).
    // So this process, which anybody may kill, is not the one that stops it.
    let caller = launch::go_on_in_child()?;
    let given_up = Arc::<AtomicBool>::default();
    // Where this cannot be had, the signal ends it, and the next checkpoint tidies up.
    signal_hook::flag::register(libc::SIGTERM, Arc::clone(&given_up)).map(drop).unwrap_or_default();
    let was_there = directory.exists();
    let place = directory.clone();
    let taken = checkpoint::take(&Task {
        job,
        root: pid,
        supervisor: None,
        adopter: None,
        home: directory.clone(),
        directory,
        beside: None,
        then: options.then,
        write: options.write,
        outputs: options.outputs.clone(),
        tcp_close: options.tcp_close,
        ext_unix: options.ext_unix,
        save: options.save.clone(),
        retention: Retention::default(),
        hooks: None,
        caller: Some(caller),
        given_up,
        tracking: None,
        in_line: true,
        watch: options.watch.clone(),
    });
    if taken.is_err() && !was_there {
        // A directory that was made for nothing. What stays of it harms nobody.
        let made = JobDirectory::open(&place, Trust::Own);
        made.and_then(JobDirectory::abandon).unwrap_or_default();
    }
    Ok(taken?)
}

/// The directory of the job that `pid` leads and that has lost its supervisor.
fn lost_job(pid: Pid) -> Option<JobDirectory> {
    let (job, path) = alive::led_by(pid)?;
    let home = JobDirectory::open(&path, Trust::Own).ok()?;
    let is_it = home.identity().is_some_and(|identity| identity.id == job);
    // Nobody else is in charge of it.
    (is_it && home.claim().is_ok()).then_some(home)
}

/// The identity of a job that nobody supervises.
fn identity_of(pid: Pid) -> Result<Identity, RequestError> {
    let stat = procfs::stat(pid)?;
    let boot = identity::boot().map_err(RequestError::ReadBoot)?;
    let command = procfs::read(pid, "cmdline")?;
    Ok(Identity {
        id: identity::of_process(&boot, pid, stat.starttime),
        command: command
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty())
            .map(Bytes::from)
            .collect(),
        created: seconds_since_1970(SystemTime::now()),
    })
}
