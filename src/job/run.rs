//! `run`: starts a job as this process's child and supervises it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::unistd::Pid;
use thiserror::Error;

use crate::model::id::Bytes;
use crate::sys::launch::{self, Inheritance, LaunchError};

use super::claim::Claim;
use super::directory::{DirectoryError, Identity, JobDirectory, TierError};
use super::journal::Journal;
use super::report::{Event, Observer};
use super::resume::{self, GoOnError, Past, Ways};
use super::root::Root;
use super::start::{self, StartError};
use super::supervisor::{
    Ending, Settings, SuperviseError, Supervised, Supervisor, seconds_since_1970, tracking,
};
use super::{identity, signals};
use crate::model::code::{self, Code};

/// Tells a job where its checkpoints go.
pub const DIRECTORY_VARIABLE: &str = "RCKPT_DIR";
/// Tells a job its identity.
pub const JOB_VARIABLE: &str = "RCKPT_JOB";

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The command line; never empty.
    pub command: Vec<OsString>,
    /// Where checkpoints go; `None`: the default.
    pub directory: Option<PathBuf>,
    /// How to supervise.
    pub settings: Settings,
    /// What to do about an earlier run.
    pub earlier: Earlier,
}

/// What to do when the job has run before in the same directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Earlier {
    /// Nothing is known of that: a directory with checkpoints is another job's.
    #[default]
    Unknown,
    /// Go on from where it was.
    Resume(Ways),
    /// Start over, and keep the old directory aside.
    Forget,
}

/// How a call of [`run`] ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The job was supervised.
    Supervised(Ending),
    /// The job had finished before, with this exit status, and was not run again.
    HadFinished(i32),
}

/// Why a job could not be run.
#[derive(Debug, Error)]
pub enum RunError {
    /// A call that prepares the supervisor failed.
    #[error("{operation}: {source}")]
    Prepare {
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The current directory is not known.
    #[error("find the current directory: {0}")]
    FindDirectory(#[source] io::Error),
    /// The job's directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The local directory cannot be used.
    #[error("--local: {0}")]
    Local(#[from] TierError),
    /// To go on from an earlier run one must know where that left its checkpoints.
    #[error("--resume and --fresh need the job's directory: give --dir DIR, or set RCKPT_DIR")]
    NameDirectory,
    /// It could not be gone on with.
    #[error(transparent)]
    GoOn(#[from] GoOnError),
    /// What an earlier run had written could not be taken back.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The command was not started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The supervisor cannot go on; the job does.
    #[error(transparent)]
    Supervise(#[from] SuperviseError),
}

impl RunError {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Prepare { .. } => code::supervising::NOT_STARTED,
            Self::FindDirectory(_) => code::requests::NOTHING_THERE,
            Self::Directory(error) => error.code(),
            Self::Local(error) => error.code(),
            Self::GoOn(error) => error.code(),
            Self::Start(error) => error.code(),
            Self::Launch(error) => error.code(),
            Self::NameDirectory => code::requests::DIRECTORY_NOT_NAMED,
            Self::Supervise(_) => code::supervising::CANNOT_SUPERVISE,
        }
    }
}

/// Runs a job to its end, or until it is stopped after a checkpoint on request.
///
/// # Errors
/// When it could not be started, or cannot be supervised any more.
pub fn run(options: Options, observer: &mut dyn Observer) -> Result<Outcome, RunError> {
    let Options { command, directory, settings, earlier } = options;
    let directory = directory.or_else(directory_of_environment);
    let words: Vec<Bytes> = command.iter().cloned().map(Bytes::from).collect();
    let past = match (&earlier, &directory) {
        (Earlier::Unknown, _) => Past::Nothing,
        (_, None) => return Err(RunError::NameDirectory),
        (Earlier::Forget, Some(path)) => {
            resume::move_aside(path)?;
            Past::Nothing
        }
        (Earlier::Resume(ways), Some(path)) => {
            resume::go_on(path, &words, &settings, ways, observer)?
        }
    };
    let started = match past {
        Past::Finished(status) => return Ok(Outcome::HadFinished(status)),
        Past::WentOn(ending) => return Ok(Outcome::Supervised(ending)),
        Past::Started(identity, claim) => Some((identity, claim)),
        Past::Nothing => None,
    };
    let start = Start { command: &command, words, directory, settings, earlier };
    Ok(Outcome::Supervised(start.run(started, &mut Journal::new(observer))?))
}

/// A job that is to be started.
struct Start<'a> {
    command: &'a [OsString],
    words: Vec<Bytes>,
    directory: Option<PathBuf>,
    settings: Settings,
    earlier: Earlier,
}

impl Start<'_> {
    /// Starts it, perhaps over, and supervises it.
    fn run(
        self,
        started: Option<(Identity, Claim)>,
        observer: &mut dyn Observer,
    ) -> Result<Ending, RunError> {
        // Nothing is made, and nothing promised, for a command that is not there.
        if let Some(program) = self.command.first() {
            launch::locate(program)?;
        }
        let inheritance =
            Inheritance::take(&signals::handled()).map_err(of_kernel("block signals"))?;
        nix::sys::prctl::set_child_subreaper(true).map_err(of_kernel("adopt the job's orphans"))?;
        let is_over = started.is_some();
        let (identity, claim) = match started {
            Some((identity, claim)) => (identity, Some(claim)),
            None => (self.new_identity()?, None),
        };

        // The process comes first: its number is part of the default name of the directory. It waits.
        let prepared = launch::prepare(self.command, &inheritance)?;
        let path = self.directory.unwrap_or_else(|| {
            default_directory(self.command.first().map(OsString::as_os_str), prepared.pid())
        });
        let path = std::path::absolute(path).map_err(RunError::FindDirectory)?;
        let directory = JobDirectory::create(&path, &identity)?;
        let claim = match claim {
            Some(claim) => claim,
            None => directory.claim()?,
        };
        let wanted = self.settings.local.clone();
        let local = match directory.settle(wanted.as_deref(), &identity) {
            Ok(local) => local,
            Err(error) if error.is_misuse() => return Err(error.into()),
            // The node may lack the disk; the job can do without.
            Err(error) => {
                observer.tell(Event::NoLocal { reason: &error.to_string() });
                None
            }
        };
        let outputs = self.settings.outputs.clone();
        let supervisor = Supervisor::new(&identity.id, self.settings)?;
        if is_over {
            start::take_back(directory.path())?;
        }
        observer.tell(Event::Started { directory: directory.path() });
        if is_over {
            observer.tell(Event::StartedOver);
        }
        if self.earlier != Earlier::Unknown {
            start::record(directory.path(), &outputs)?;
        }
        let variables = [
            (DIRECTORY_VARIABLE, directory.path().as_os_str()),
            (JOB_VARIABLE, identity.id.as_os_str()),
        ];
        let root = match prepared.execute(&variables) {
            Ok(root) => Root::Child(root),
            Err(error) => {
                if let Some(local) = local {
                    local.abandon()?;
                }
                directory.abandon()?;
                return Err(error.into());
            }
        };
        let directory = directory.path().to_owned();
        let local = local.map(|local| local.path().to_owned());
        let (claim, tracking) = (Some(claim), tracking());
        let job = Supervised { identity, root, directory, local, claim, tracking };
        Ok(supervisor.supervise(job, observer)?)
    }

    fn new_identity(&self) -> Result<Identity, RunError> {
        Ok(Identity {
            id: identity::new_id().map_err(preparing("read random numbers"))?,
            command: self.words.clone(),
            created: seconds_since_1970(SystemTime::now()),
        })
    }
}

fn preparing(operation: &'static str) -> impl Fn(io::Error) -> RunError {
    move |source| RunError::Prepare { operation, source }
}

fn of_kernel(operation: &'static str) -> impl Fn(Errno) -> RunError {
    move |errno| RunError::Prepare { operation, source: errno.into() }
}

/// The directory that the user named in the environment. One that an outer job was told is that
/// job's, not ours.
fn directory_of_environment() -> Option<PathBuf> {
    let named = std::env::var_os(DIRECTORY_VARIABLE).filter(|path| !path.is_empty())?;
    std::env::var_os(JOB_VARIABLE).is_none().then(|| named.into())
}

/// `rckpt-NAME-PID`, relative to the current directory.
#[must_use]
pub fn default_directory(program: Option<&OsStr>, pid: Pid) -> PathBuf {
    let name = program.and_then(|program| Path::new(program).file_name()).unwrap_or_default();
    let mut directory = OsString::from("rckpt-");
    directory.push(OsStr::from_bytes(&name.as_bytes()[..name.len().min(64)]));
    directory.push(format!("-{pid}"));
    directory.into()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::path::Path;

    use nix::unistd::Pid;

    use super::default_directory;

    #[test]
    fn directories_are_named_after_program_and_process() {
        let check = |program: &str, expected: &str| {
            let directory = default_directory(Some(OsStr::new(program)), Pid::from_raw(42));
            assert_eq!(directory, Path::new(expected));
        };
        check("/usr/bin/python3", "rckpt-python3-42");
        check("./a.out", "rckpt-a.out-42");
        check("/", "rckpt--42");
        check(&"x".repeat(300), &format!("rckpt-{}-42", "x".repeat(64)));
    }
}
