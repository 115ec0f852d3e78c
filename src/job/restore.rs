//! `restore`: brings a job back from a checkpoint and supervises it from then on.
//!
//! First everything that can be found out without starting anything ([`prepare`]), then the start
//! and the supervision ([`Prepared::run`]), in between perhaps a step into the background
//! ([`Prepared::detach`]).

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::unistd::{self, ForkResult, Pid};
use thiserror::Error;

use crate::image::Reader;
use crate::image::error::ReadFault;
use crate::image::reader::Trust;
use crate::image::watch::Watch;
use crate::model::id::Bytes;
use crate::model::job::Job;
use crate::restore::environment::{self, ProbeError};
use crate::restore::files::{self, Choices, Decisions, Policy, Problem, Problems};
use crate::restore::inheritance::Hashes;
use crate::restore::plan::{self, Plan, PlanError};
use crate::restore::{self, RestoreError, Restored};
use crate::sys::launch::{self, Inheritance, LaunchError};
use crate::sys::machine;
use crate::sys::whole_file;

use super::claim::{Claim, ClaimError};
use super::directory::{
    self, DirectoryError, FindError, Found, Generation, GenerationError, Identity,
};
use super::hooks::Moment;
use super::journal::Journal;
use super::places::{self, Moved};
use super::report::{Event, Observer};
use super::root::Root;
use super::run::{DIRECTORY_VARIABLE, JOB_VARIABLE, default_directory};
use super::signals;
use super::supervisor::{
    Ending, Settings, SuperviseError, Supervised, Supervisor, seconds_since_1970, tracking,
};
use crate::model::code::{self, Code};

/// Where, in a job's directory, what a rollback takes away is kept.
pub const DISPLACED: &str = "displaced";

/// How long what is left of connections that are over keeps their addresses, and a little more.
const REMAINS: Duration = Duration::from_secs(65);
/// How often it is looked whether the addresses are free.
const LOOK: Duration = Duration::from_millis(500);

/// What to restore, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// A job's directory, or one generation.
    pub path: PathBuf,
    /// The generation in a job's directory; `None`: the latest.
    pub at: Option<String>,
    /// Places that moved: old and new.
    pub moved: Vec<(Bytes, Bytes)>,
    /// What to do with files that were written after the checkpoint.
    pub files: Policy,
    /// Gets the pid of the root process.
    pub pidfile: Option<PathBuf>,
    /// How to supervise. To its outputs come those that the job was saved with.
    pub settings: Settings,
}

/// Why a job was not brought back, or cannot be supervised any more.
#[derive(Debug, Error)]
pub enum ResumeError {
    /// The checkpoint was not found.
    #[error(transparent)]
    Find(#[from] FindError),
    /// It cannot be used.
    #[error(transparent)]
    Read(#[from] GenerationError),
    /// It cannot be found out what this machine is like.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// It cannot be brought back here.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Its files are not as it needs them.
    #[error(transparent)]
    Files(#[from] Problems),
    /// The job's directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A call that prepares the supervisor failed.
    #[error("{operation}: {source}")]
    Prepare {
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The supervisor could not be put into the background.
    #[error(transparent)]
    Fork(#[from] LaunchError),
    /// The supervisor in the background ended before the job ran; it has said why.
    #[error("the restore failed in the background")]
    Background,
    /// Bringing it back failed.
    #[error(transparent)]
    Start(#[from] RestoreError),
    /// The file for the root's pid could not be written. The job runs.
    #[error("write the pid to {}: {source}", path.display())]
    WritePid {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// What a supervisor needs cannot be had. The job was not started.
    #[error("preparing to supervise the job: {0}")]
    Supervisor(SuperviseError),
    /// The supervisor cannot go on; the job does.
    #[error(transparent)]
    Supervise(#[from] SuperviseError),
}

impl ResumeError {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Find(error) => error.code(),
            Self::Read(error) => error.code(),
            Self::Plan(error) => error.code(),
            Self::Directory(error) => error.code(),
            Self::Start(error) => error.code(),
            Self::Probe(_) | Self::Prepare { .. } | Self::Fork(_) | Self::Supervisor(_) => {
                code::restoring::RESTORE_UNPREPARED
            }
            Self::Files(_) => code::restoring::FILES_DIFFER,
            Self::Background => code::restoring::FAILED_IN_BACKGROUND,
            Self::WritePid { .. } => code::restoring::PID_FILE,
            Self::Supervise(_) => code::supervising::CANNOT_SUPERVISE,
        }
    }
}

/// A checkpoint that can be restored here, as far as can be told without trying.
#[derive(Debug)]
pub struct Prepared {
    found: Found,
    reader: Reader,
    plan: Plan,
    decisions: Decisions,
    /// Newer checkpoints that are damaged.
    passed: Vec<PassedOver>,
    places: Vec<Moved>,
    pidfile: Option<PathBuf>,
    settings: Settings,
    /// Told once the job runs, when somebody waits for that.
    waiting: Option<File>,
}

/// A damaged checkpoint, and what is wrong with it.
#[derive(Debug)]
struct PassedOver {
    generation: PathBuf,
    reason: String,
}

/// Which side of the step into the background the caller is on.
#[derive(Debug)]
pub enum Detached {
    /// The process in the background, to go on with.
    Background(Box<Prepared>),
    /// The process that was called; the job runs, its root process has this number.
    Foreground(Pid),
}

/// Finds the checkpoint, reads its records and plans the restore. Where only what is left of connections
/// that are over stands in the way, and there is an observer, `observer` is told and that is waited for.
///
/// # Errors
/// When anything is already known to stand in the way. Nothing has been touched.
pub fn prepare(
    options: Options,
    observer: Option<&mut dyn Observer>,
) -> Result<Prepared, ResumeError> {
    let Options { path, at, mut moved, files, pidfile, mut settings } = options;
    let found = directory::find(&path, at.as_deref(), Trust::Own)?;
    let (found, reader, passed) = read_newest(found, &path, at.as_deref())?;
    let here = machine::temporary(|name| std::env::var_os(name));
    let places =
        places::moved(&reader.job().machine.temporary, &here, &moved, |path| path.exists());
    moved.extend(places.iter().map(|place| (place.old.clone(), place.new.clone())));
    let environment = environment::probe(reader.job())?;
    // Whoever reads the chunk itself will say what is wrong with its hashes.
    let hashes = |chunk: usize| {
        let mut hashes = Vec::new();
        let read = reader.chunks().get(chunk).map(|chunk| reader.hashes(chunk, &mut hashes));
        if matches!(read, Some(Ok(()))) { hashes } else { Vec::new() }
    };
    let page_data = (reader.chunks(), &hashes as Hashes<'_>);
    let plan = plan::plan(reader.job(), page_data, &environment, moved.clone())?;
    let decisions = decide(reader.job(), &choices(&found, files, moved), observer)?;
    let named = reader.job().outputs.named.iter().map(|named| named.as_path().to_owned());
    settings.outputs.extend(named);
    settings.save.extend(&reader.job().outputs.saved);
    let waiting = None;
    Ok(Prepared { found, reader, plan, decisions, passed, places, pidfile, settings, waiting })
}

/// Decides what to do with the job's files, once its addresses are free if they are about to be.
fn decide(
    job: &Job,
    choices: &Choices,
    observer: Option<&mut dyn Observer>,
) -> Result<Decisions, Problems> {
    let problems = match (files::decide(job, choices), observer) {
        (Err(problems), Some(observer)) if problems.will_pass() => {
            observer.tell(Event::AddressesKept);
            problems
        }
        (outcome, _) => return outcome,
    };
    let begun = Instant::now();
    let mut outcome = Err(problems);
    while matches!(&outcome, Err(problems) if problems.will_pass()) && begun.elapsed() < REMAINS {
        thread::sleep(LOOK);
        outcome = files::decide(job, choices);
    }
    outcome
}

/// What a restore of a checkpoint that was found would do to files here and now, and what would stand in
/// its way. Nothing is touched.
#[must_use]
pub fn foresee(found: &Found, reader: &Reader) -> (Decisions, Vec<Problem>) {
    let here = machine::temporary(|name| std::env::var_os(name));
    let places = places::moved(&reader.job().machine.temporary, &here, &[], |path| path.exists());
    let moved = places.into_iter().map(|place| (place.old, place.new)).collect();
    files::survey(reader.job(), &choices(found, Policy::default(), moved))
}

/// Reads the checkpoint that was found. Where there are two directories and it is damaged in one of them,
/// the other has it or one before it: the newest that is whole is taken. Gives those passed over, too.
fn read_newest(
    mut found: Found,
    path: &Path,
    at: Option<&str>,
) -> Result<(Found, Reader, Vec<PassedOver>), ResumeError> {
    let mut passed = Vec::new();
    let mut error = match found.read(Trust::Own) {
        Ok(reader) => return Ok((found, reader, passed)),
        Err(error) => ResumeError::from(error),
    };
    let Some(home) = &found.directory else { return Err(error) };
    let names_one = path.canonicalize().is_ok_and(|path| path == found.generation.path);
    let others = match home.local(Trust::Own)? {
        Some(_) if !names_one => home.all_generations(Trust::Own)?,
        _ => Vec::new(),
    };
    let damaged = found.generation.clone();
    let is_candidate = |other: &Generation| match at {
        Some(_) => other.number == damaged.number && *other != damaged,
        None => other.number <= damaged.number && *other != damaged,
    };
    for other in others.into_iter().rev().filter(is_candidate) {
        if !error.is_damage() {
            break;
        }
        let generation = found.generation.path.clone();
        passed.push(PassedOver { generation, reason: error.to_string() });
        found.generation = other;
        error = match found.read(Trust::Own) {
            Ok(reader) => return Ok((found, reader, passed)),
            Err(error) => error.into(),
        };
    }
    Err(error)
}

impl Prepared {
    /// Has somebody told of the bytes of page data that are brought back.
    pub fn watch(&mut self, watch: Watch) {
        self.reader.watch(watch);
    }

    /// The checkpoint's directory.
    #[must_use]
    pub fn generation(&self) -> &Path {
        &self.found.generation.path
    }

    /// What is in it.
    #[must_use]
    pub const fn reader(&self) -> &Reader {
        &self.reader
    }

    /// How it would be brought back.
    #[must_use]
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What would be done with its files first.
    #[must_use]
    pub const fn decisions(&self) -> &Decisions {
        &self.decisions
    }

    /// Goes into the background: a new process in a session of its own, with the standard streams as
    /// they are. The caller's own process returns when the job runs.
    ///
    /// # Errors
    /// In the foreground also when the job did not start; the background has told why.
    pub fn detach(mut self) -> Result<Detached, ResumeError> {
        let preparing =
            |operation| move |source: io::Error| ResumeError::Prepare { operation, source };
        let (mut waiting, told) = io::pipe().map_err(preparing("make a pipe"))?;
        match launch::fork()? {
            ForkResult::Child => {
                drop(waiting);
                unistd::setsid().map_err(|errno| preparing("make a session")(errno.into()))?;
                // What is in the background leaves the terminal to whoever is in the foreground.
                self.decisions.terminals.clear();
                self.waiting = Some(File::from(std::os::fd::OwnedFd::from(told)));
                Ok(Detached::Background(Box::new(self)))
            }
            ForkResult::Parent { .. } => {
                drop(told);
                let mut root = [0; 4];
                match waiting.read_exact(&mut root) {
                    Ok(()) => Ok(Detached::Foreground(Pid::from_raw(i32::from_le_bytes(root)))),
                    Err(_) => Err(ResumeError::Background),
                }
            }
        }
    }

    /// Brings the job back and supervises it to its end, or until it is stopped after a checkpoint.
    ///
    /// # Errors
    /// When it could not be brought back, or cannot be supervised any more.
    pub fn run(self, observer: &mut dyn Observer) -> Result<Ending, ResumeError> {
        let charge = self.take_charge()?;
        self.bring_back()?.supervise(charge, &mut Journal::new(observer))
    }

    /// Takes charge of the job's directory if it is free. A second copy of a running job, or a
    /// checkpoint taken out of its directory, gets a directory of its own as soon as it has something
    /// to put there.
    fn take_charge(&self) -> Result<Option<Claim>, ResumeError> {
        let Some(directory) = &self.found.directory else { return Ok(None) };
        match directory.claim() {
            Ok(claim) => Ok(Some(claim)),
            Err(DirectoryError::Claim(ClaimError::Held { .. })) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Brings the job back.
    ///
    /// # Errors
    /// When that fails; nothing of it runs then.
    pub fn bring_back(self) -> Result<BroughtBack, ResumeError> {
        let Self { found, reader, plan, decisions, passed, places, pidfile, settings, waiting } =
            self;
        Inheritance::take(&signals::handled()).map_err(|errno| ResumeError::Prepare {
            operation: "block signals",
            source: errno.into(),
        })?;
        let identity = identity_of(&found, &reader);
        let supervisor =
            Supervisor::new(&identity.id, settings).map_err(ResumeError::Supervisor)?;
        let restored = restore::start(&reader, &plan, &decisions)?;
        // The image's records are not needed while the job runs.
        Ok(BroughtBack { found, identity, supervisor, restored, passed, places, pidfile, waiting })
    }
}

/// A job that runs again, and that nobody listens for yet.
#[derive(Debug)]
pub struct BroughtBack {
    found: Found,
    identity: Identity,
    supervisor: Supervisor,
    restored: Restored,
    passed: Vec<PassedOver>,
    places: Vec<Moved>,
    pidfile: Option<PathBuf>,
    waiting: Option<File>,
}

impl BroughtBack {
    /// Supervises it to its end, or until it is stopped after a checkpoint. With a claim on the job's
    /// directory its checkpoints go there.
    ///
    /// # Errors
    /// When it cannot be supervised any more.
    pub fn supervise(
        self,
        claim: Option<Claim>,
        observer: &mut dyn Observer,
    ) -> Result<Ending, ResumeError> {
        let Self { found, identity, supervisor, restored, passed, places, pidfile, waiting } = self;
        let root = restored.root;
        let home = found.directory.as_ref().filter(|_| claim.is_some());
        let directory = match home {
            Some(home) => home.path().to_owned(),
            None => {
                let program = identity.command.first().map(Bytes::as_os_str);
                std::path::absolute(default_directory(program, root)).map_err(|source| {
                    ResumeError::Prepare { operation: "find the current directory", source }
                })?
            }
        };
        observer.tell(Event::Resumed {
            generation: &found.generation.path,
            root,
            directory: &directory,
        });
        for PassedOver { generation, reason } in &passed {
            observer.tell(Event::PassedOver { generation, reason });
        }
        let local = match home.map(|home| home.settle(supervisor.local(), &identity)) {
            Some(Ok(local)) => local.map(|local| local.path().to_owned()),
            Some(Err(error)) => {
                observer.tell(Event::NoLocal { reason: &error.to_string() });
                None
            }
            None => None,
        };
        for place in &places {
            observer.tell(Event::PlaceMoved(place));
        }
        // After all that we have to say, for that may not be on the screen.
        supervisor.have_terminal_drawn();
        if let Some(pidfile) = &pidfile {
            write_pid(pidfile, root)
                .map_err(|source| ResumeError::WritePid { path: pidfile.clone(), source })?;
        }
        if let Some(mut waiting) = waiting {
            // Whoever was waiting may have been ended; the job does not depend on it.
            waiting.write_all(&root.as_raw().to_le_bytes()).unwrap_or_default();
        }
        if let Some(hooks) = supervisor.hooks() {
            let facts = [
                (DIRECTORY_VARIABLE, directory.clone().into()),
                (JOB_VARIABLE, identity.id.as_os_str().to_owned()),
                ("RCKPT_ROOT", root.to_string().into()),
                ("RCKPT_GENERATION", found.generation.path.clone().into()),
            ];
            let hook = hooks.run(Moment::AfterRestore, &facts, &AtomicBool::new(false));
            if let Err(error) = hook {
                observer.tell(Event::Trouble(&error.to_string()));
            }
        }
        drop(found);
        let (root, tracking) = (watch(restored), tracking());
        let job = Supervised { identity, root, directory, local, claim, tracking };
        Ok(supervisor.supervise(job, observer)?)
    }
}

impl ResumeError {
    /// Whether the checkpoint itself is at fault, so that an older one may do.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        let fault = match self {
            Self::Read(GenerationError::Read(error)) => Some(error.fault()),
            Self::Start(error) => error.fault_of_checkpoint(),
            _ => None,
        };
        matches!(fault, Some(ReadFault::Damaged | ReadFault::Absent))
    }
}

/// What the decisions about the job's files depend on. What is displaced lies beside the image.
fn choices(found: &Found, policy: Policy, moved: Vec<(Bytes, Bytes)>) -> Choices {
    let image = &found.generation.path;
    let directory = match &found.directory {
        Some(directory) => directory.path(),
        None => image.parent().unwrap_or(image),
    };
    Choices {
        policy,
        moved,
        displaced: directory.join(DISPLACED),
        job_directory: directory.to_owned(),
    }
}

/// How the supervisor learns of the end of a restored job.
fn watch(restored: Restored) -> Root {
    match restored {
        Restored { root, reaper: Some(reaper), status: Some(status) } => {
            Root::Restored { root, reaper, status }
        }
        Restored { root, .. } => Root::Child(root),
    }
}

/// Which job a checkpoint is of.
fn identity_of(found: &Found, reader: &Reader) -> Identity {
    let recorded = found.directory.as_ref().and_then(|directory| directory.identity());
    recorded.cloned().unwrap_or_else(|| Identity {
        id: reader.job().id.clone(),
        command: reader.job().command.clone(),
        created: seconds_since_1970(SystemTime::now()),
    })
}

/// Puts the file in place whole, so that nobody ever reads half a number.
fn write_pid(path: &Path, pid: Pid) -> io::Result<()> {
    whole_file::replace(path, format!("{pid}\n").as_bytes(), None)
}
