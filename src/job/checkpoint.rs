//! One checkpoint of a job into its directory: begin a generation, dump into it, commit it.
//!
//! Whatever fails, the job runs on and the partial generation is removed.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use nix::unistd::Pid;
use thiserror::Error;

use crate::dump::files::later::LaterError;
use crate::dump::files::saved::Wanted;
use crate::dump::survey::Survey;
use crate::dump::{self, After, DumpError, NotCommitted, Tracking, Use};
use crate::image::format::IMAGE_FILE;
use crate::image::reader::{Reader, Trust};
use crate::image::watch::Watch;
use crate::image::{Codec, WriteOptions};
use crate::model::number::to_u64;

use super::background::Background;
use super::control::protocol::{Order, Then};
use super::directory::{DirectoryError, Generation, Identity, JobDirectory};
use super::history;
use super::hooks::{HookError, Hooks, Moment};
use super::report::Taken;
use super::retention::Retention;
use super::run::{DIRECTORY_VARIABLE, JOB_VARIABLE};
use super::supervisor::{Settings, Supervised, seconds_since_1970};
use crate::model::code::{self, Code};

/// Why there is no new checkpoint. The job runs on.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The directory or the new generation in it.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The user's hook before it.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The dump itself.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// No thread could be started to take it.
    #[error("start a thread for the checkpoint: {0}")]
    StartThread(#[source] io::Error),
    /// The thread panicked; the kernel released the job when it ended.
    #[error("the checkpoint's thread panicked")]
    Panicked,
}

impl CheckpointError {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Directory(error) => error.code(),
            Self::Dump(error) => error.code(),
            Self::Hook(_) => code::supervising::HOOK_FAILED,
            Self::StartThread(_) => code::attaching::CANNOT_FORK,
            Self::Panicked => code::writing::PANICKED,
        }
    }
}

impl CheckpointError {
    /// Whether it lies in the directory, so that another one may do.
    const fn lies_in_the_place(&self) -> bool {
        match self {
            Self::Directory(_)
            | Self::Dump(
                DumpError::Write(_) | DumpError::Commit(_) | DumpError::Later(LaterError::Write(_)),
            ) => true,
            Self::Hook(_) | Self::Dump(_) | Self::StartThread(_) | Self::Panicked => false,
        }
    }
}

/// Everything that a checkpoint needs to know.
#[derive(Clone, Debug)]
pub struct Task {
    /// The job.
    pub job: Identity,
    /// The root process.
    pub root: Pid,
    /// The supervisor, whose standard streams are the job's.
    pub supervisor: Option<Pid>,
    /// Whoever adopts the job's orphans, when that is known: its other children are of the job.
    pub adopter: Option<Pid>,
    /// Where it goes.
    pub directory: PathBuf,
    /// The other one of the job's own and its local directory: where it goes if it cannot go there.
    pub beside: Option<PathBuf>,
    /// What the user's hooks are told to be the job's directory.
    pub home: PathBuf,
    /// What becomes of the job.
    pub then: Then,
    /// How it is written.
    pub write: WriteOptions,
    /// Named outputs, absolute.
    pub outputs: Vec<PathBuf>,
    /// Whether TCP connections to outside the job are given up.
    pub tcp_close: bool,
    /// Whether connections of unix sockets to outside the job are.
    pub ext_unix: bool,
    /// Files to be saved whole.
    pub save: Wanted,
    /// Generations that are kept.
    pub retention: Retention,
    /// The user's hooks.
    pub hooks: Option<Hooks>,
    /// The parent process, when the checkpoint is for it and given up at its end.
    pub caller: Option<Pid>,
    /// Set from another thread when it is to be given up.
    pub given_up: Arc<AtomicBool>,
    /// What is kept from one checkpoint to the next, by whoever takes more than one.
    pub tracking: Option<Arc<Mutex<Tracking>>>,
    /// Whether this is one of those; one that goes elsewhere is not.
    pub in_line: bool,
    /// Who is told of the bytes that are written.
    pub watch: Option<Watch>,
}

impl Task {
    /// The checkpoint that `order` asks a supervisor to take.
    #[must_use]
    pub fn new(job: &Supervised, settings: &Settings, order: &Order) -> Self {
        let named = order.directory.as_ref().map(|path| path.as_path().to_owned());
        let home = &job.directory;
        // What a job goes on with elsewhere goes where everybody finds it.
        let (directory, beside) = match (named, &job.local) {
            (Some(named), _) => (named, None),
            (None, Some(local)) if order.then == Then::Kill => (home.clone(), Some(local.clone())),
            (None, Some(local)) => (local.clone(), Some(home.clone())),
            (None, None) => (home.clone(), None),
        };
        let mut outputs = settings.outputs.clone();
        outputs.extend(order.outputs.iter().map(|path| path.as_path().to_owned()));
        let mut save = settings.save.clone();
        save.by_itself |= order.saves_by_itself;
        save.named.extend(order.save.iter().map(|path| path.as_path().to_owned()));
        let mut write = settings.write;
        if let Some(compress) = order.compress {
            write.codec = if compress { Codec::Lz4 } else { Codec::None };
        }
        write.rate = order.rate.or(write.rate);
        Self {
            job: job.identity.clone(),
            root: job.root.pid(),
            supervisor: Some(nix::unistd::getpid()),
            adopter: Some(job.root.adopter()),
            retention: match order.directory {
                Some(_) => Retention::default(),
                None => settings.retention,
            },
            home: if order.directory.is_some() { directory.clone() } else { home.clone() },
            directory,
            beside,
            then: order.then,
            write,
            outputs,
            tcp_close: settings.tcp_close || order.tcp_close,
            ext_unix: settings.ext_unix || order.ext_unix,
            save,
            hooks: settings.hooks.clone(),
            caller: None,
            given_up: Arc::default(),
            tracking: job.tracking.clone(),
            in_line: order.directory.is_none(),
            watch: None,
        }
    }

    /// What all hooks are told.
    fn facts(&self) -> Vec<(&'static str, OsString)> {
        let then = match self.then {
            Then::Continue => "continue",
            Then::Kill => "kill",
            Then::Stop => "stop",
        };
        vec![
            (DIRECTORY_VARIABLE, self.home.clone().into()),
            (JOB_VARIABLE, self.job.id.as_os_str().to_owned()),
            ("RCKPT_ROOT", self.root.to_string().into()),
            ("RCKPT_THEN", then.into()),
        ]
    }

    fn request(&self, files_at_once: bool) -> dump::Request {
        dump::Request {
            root: self.root,
            adopter: self.adopter,
            after: match self.then {
                Then::Continue => After::Continue,
                Then::Kill => After::Kill,
                Then::Stop => After::Stop,
            },
            write: self.write,
            outputs: self.outputs.clone(),
            tcp_close: self.tcp_close,
            ext_unix: self.ext_unix,
            save: self.save.clone(),
            files_at_once,
            supervisor: self.supervisor,
            job_id: self.job.id.clone(),
            caller: self.caller,
            given_up: Arc::clone(&self.given_up),
            job_directories: self.beside.iter().chain([&self.home]).cloned().collect(),
            oldest: self.oldest(),
            watch: self.watch.clone(),
        }
    }

    /// When the oldest checkpoint of the job was complete.
    fn oldest(&self) -> Option<SystemTime> {
        // What is not known costs a hint too many.
        let directory = JobDirectory::open(&self.home, Trust::Own).ok()?;
        let oldest = directory.all_generations(Trust::Own).ok()?.into_iter().next()?;
        fs::metadata(oldest.path.join(IMAGE_FILE)).ok()?.modified().ok()
    }
}

/// Finds what stands in the way of a checkpoint. Gives what the user should know besides, and what it
/// would come to.
///
/// # Errors
/// [`DumpError::Refused`] with all that is in the way, or when looking fails.
pub fn examine(task: &Task) -> Result<(Vec<String>, Survey), CheckpointError> {
    Ok(dump::examine(&task.request(false), &task.directory)?)
}

/// Takes a checkpoint, with the user's hooks around it.
///
/// # Errors
/// When there is none; the partial generation is removed then.
pub fn take(task: &Task) -> Result<Taken, CheckpointError> {
    let Some(hooks) = &task.hooks else { return take_in_either(task) };
    hooks.run(Moment::BeforeDump, &task.facts(), &task.given_up)?;
    let mut outcome = take_in_either(task);
    let mut facts = task.facts();
    match &outcome {
        Ok(taken) => facts.extend(facts_of(taken)),
        Err(error) => facts.push(("RCKPT_FAILURE", error.to_string().into())),
    }
    let after = hooks.run(Moment::AfterDump, &facts, &task.given_up);
    if let (Ok(taken), Err(error)) = (&mut outcome, after) {
        taken.warnings.push(error.to_string());
    }
    outcome
}

/// What hooks are told of a checkpoint.
fn facts_of(taken: &Taken) -> [(&'static str, OsString); 4] {
    let path = taken.path.as_os_str().to_owned();
    [
        ("RCKPT_GENERATION", path),
        ("RCKPT_PAUSE_MS", taken.pause.as_millis().to_string().into()),
        ("RCKPT_BYTES", taken.bytes.to_string().into()),
        ("RCKPT_SECONDS", taken.elapsed.as_secs().to_string().into()),
    ]
}

/// Takes a checkpoint where it is to go or, where that place cannot take it, beside.
fn take_in_either(task: &Task) -> Result<Taken, CheckpointError> {
    let failed = match take_in(task, &task.directory, task.beside.as_deref()) {
        Err(error) if error.lies_in_the_place() => error,
        outcome => return outcome,
    };
    let Some(beside) = &task.beside else { return Err(failed) };
    let mut taken = take_in(task, beside, Some(&task.directory))?;
    let (place, reason) = (task.directory.display(), chain(&failed));
    taken.warnings.push(format!("{place} could not take this checkpoint: {reason}"));
    Ok(taken)
}

/// An error and its causes in one line.
fn chain(error: &CheckpointError) -> String {
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let inner_words = inner.to_string();
        if !words.ends_with(&inner_words) {
            words.push_str(&format!(": {inner_words}"));
        }
        cause = inner.source();
    }
    words
}

/// Takes a checkpoint into a directory. Its number is higher than those in `beside`.
fn take_in(task: &Task, path: &Path, beside: Option<&Path>) -> Result<Taken, CheckpointError> {
    let begun = Instant::now();
    let directory = JobDirectory::create(path, &task.job)?;
    let above = beside.map_or(0, newest_in);
    let mut notes = Vec::new();
    let parent = parent(&directory, &mut notes)?;
    let mut attempt = Attempt { parent, above, files_at_once: false };
    let (report, path, parent) = loop {
        let Attempt { above, files_at_once, .. } = attempt;
        let builds = attempt.parent.is_some();
        let parent = attempt.parent.as_ref().and_then(|parent| parent.directory().file_name());
        let parent = parent.map(|name| name.to_string_lossy().into_owned());
        match write(task, &directory, attempt) {
            Err(CheckpointError::Dump(
                DumpError::Write(error) | DumpError::Later(LaterError::Write(error)),
            )) if builds && error.is_parents_fault() => {
                notes.push(format!("this checkpoint is a full one: {error}"));
                attempt = Attempt { parent: None, above, files_at_once };
            }
            // It is known only now that the job does not leave it alone.
            Err(CheckpointError::Dump(DumpError::Later(error @ LaterError::Changed { .. })))
                if !files_at_once =>
            {
                notes.push(format!("{error}: the job stood still until all its files were stored"));
                let parent = self::parent(&directory, &mut notes)?;
                attempt = Attempt { parent, above, files_at_once: true };
            }
            outcome => {
                let (report, path) = outcome?;
                let parent = parent.filter(|_| report.has_parent);
                break (report, path, parent);
            }
        }
    };
    let mut warnings = report.warnings;
    warnings.extend(notes);
    if let Err(error) = task.retention.apply(&directory) {
        // The checkpoint is complete, and the job may have been ended on its account.
        warnings.push(format!("old checkpoints stay: {error}"));
    }
    let now = SystemTime::now();
    let mut taken = Taken {
        path: path.into(),
        pause: report.pause,
        elapsed: begun.elapsed(),
        bytes: report.bytes,
        raw_bytes: report.raw_bytes,
        kept_bytes: report.kept_bytes,
        parent,
        processes: to_u64(report.processes),
        threads: to_u64(report.threads),
        warnings,
        hint: report.hint,
        at: seconds_since_1970(now),
    };
    if let Err(error) = history::write(&taken, now.duration_since(UNIX_EPOCH).unwrap_or_default()) {
        taken.warnings.push(format!("how this checkpoint was made is not written down: {error}"));
    }
    Ok(taken)
}

/// The highest number in the other directory, as far as that can be told.
fn newest_in(path: &Path) -> u64 {
    let newest =
        || Some(JobDirectory::open(path, Trust::Own).ok()?.generations().ok()?.pop()?.number);
    newest().unwrap_or(0)
}

/// The generation that a new one builds on: the latest, if there is one that can be read.
fn parent(
    directory: &JobDirectory,
    notes: &mut Vec<String>,
) -> Result<Option<Reader>, DirectoryError> {
    let Some(latest) = directory.latest()? else { return Ok(None) };
    match directory.read(&latest, Trust::Own) {
        Ok(reader) => Ok(Some(reader)),
        Err(error) => {
            notes.push(format!("this checkpoint is a full one: {error}"));
            Ok(None)
        }
    }
}

/// How a generation is to be written.
struct Attempt {
    /// The generation that it builds on.
    parent: Option<Reader>,
    /// Numbers up to this are in use elsewhere.
    above: u64,
    /// Whether the job stands still until all files are stored.
    files_at_once: bool,
}

/// Writes a generation. Gives its path, too.
fn write(
    task: &Task,
    directory: &JobDirectory,
    attempt: Attempt,
) -> Result<(dump::Report, PathBuf), CheckpointError> {
    let Attempt { parent, above, files_at_once } = attempt;
    let mut pending = Some(directory.begin_generation()?);
    let path = pending.as_ref().map(|pending| pending.path().to_owned()).unwrap_or_default();
    let mut generation: Option<Generation> = None;
    let mut commit = || -> Result<(), DirectoryError> {
        if let Some(pending) = pending.take() {
            generation = Some(pending.commit(above)?);
        }
        Ok(())
    };
    let mut not_committed = None;
    // A checkpoint that panicked has left nothing in there that counts.
    let mut tracking = task
        .tracking
        .as_ref()
        .map(|tracking| tracking.lock().unwrap_or_else(PoisonError::into_inner));
    let tracking = match tracking.as_deref_mut() {
        None => Use::Absent,
        Some(tracking) if task.in_line => Use::InLine(tracking),
        Some(tracking) => Use::Aside(tracking),
    };
    let outcome = dump::dump(&task.request(files_at_once), &path, parent, tracking, &mut || {
        commit().map_err(|error| {
            not_committed = Some(error);
            NotCommitted
        })
    });
    if let Some(error) = not_committed {
        return Err(error.into());
    }
    let report = outcome?;
    // A dump that lets the job run on leaves this to us.
    commit()?;
    Ok((report, generation.map(|generation| generation.path).unwrap_or_default()))
}

/// A checkpoint that is being taken by a thread of its own.
#[derive(Debug)]
pub struct Running(Background<Result<Taken, CheckpointError>>);

impl Running {
    /// Starts to take one.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn start(task: Task) -> Result<Self, CheckpointError> {
        let given_up = Arc::clone(&task.given_up);
        Background::start("checkpoint", given_up, move || take(&task))
            .map(Self)
            .map_err(CheckpointError::StartThread)
    }

    /// Has it given up as soon as possible, if it is not complete before that: then the job runs on.
    pub fn give_up(&self) {
        self.0.give_up();
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When there is no checkpoint.
    pub fn join(self) -> Result<Taken, CheckpointError> {
        self.0.join().unwrap_or(Err(CheckpointError::Panicked))
    }
}

impl AsFd for Running {
    /// Becomes readable when the checkpoint is complete or has failed.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
