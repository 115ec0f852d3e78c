//! `run --resume`: whatever became of the job before, go on from there.
//!
//! Finished: it is not run again. Saved: it is brought back from the newest checkpoint that is whole.
//! Neither: it is started. The same line in a batch script does for the first time and for every other.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Pid;
use thiserror::Error;

use crate::model::id::Bytes;
use crate::restore::files::Policy;

use super::alive;
use super::budget;
use super::claim::Claim;
use super::directory::{DirectoryError, Generation, Identity, JobDirectory};
use super::finish::Finish;
use super::journal::Journal;
use super::record::RecordError;
use super::report::{Event, Observer};
use super::restore::{self, ResumeError};
use super::supervisor::{Ending, Settings};
use crate::image::reader::Trust;
use crate::model::code::{self, Code};
use crate::sys::procfs;

/// How long processes of a lost job may take to end.
const LAST_BREATH: Duration = Duration::from_secs(5);

/// Why it cannot be found out how to go on, or why that failed.
#[derive(Debug, Error)]
pub enum GoOnError {
    /// The directory holds the checkpoints of another command.
    #[error(
        "{} belongs to another command: {}", path.display(), theirs.command_line()
    )]
    AnotherCommand {
        /// The directory.
        path: PathBuf,
        /// The job in it.
        theirs: Box<Identity>,
    },
    /// The directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// It still runs, without a supervisor.
    #[error(
        "the job in {} still runs, without a supervisor: process {pid} ({name})", path.display()
    )]
    StillRuns {
        /// The directory.
        path: PathBuf,
        /// A process of it.
        pid: Pid,
        /// What that runs.
        name: String,
    },
    /// It cannot be read how the job finished.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The job could not be brought back, or not be supervised any more.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// The job has run as long as it may.
    #[error(
        "the job in {} has run for {} s in all, and --max-total allows no more", path.display(),
        spent.as_secs()
    )]
    BudgetSpent {
        /// The directory.
        path: PathBuf,
        /// For how long.
        spent: Duration,
    },
    /// The old directory cannot be moved aside.
    #[error("cannot move {} aside: {source}", path.display())]
    MoveAside {
        /// The directory.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
}

impl GoOnError {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::AnotherCommand { .. } => code::requests::ANOTHER_COMMAND,
            Self::Directory(error) => error.code(),
            Self::Record(error) => error.code(),
            Self::Resume(error) => error.code(),
            Self::StillRuns { .. } => code::requests::STILL_RUNS,
            Self::BudgetSpent { .. } => code::requests::BUDGET_SPENT,
            Self::MoveAside { .. } => code::requests::CANNOT_MOVE_ASIDE,
        }
    }
}

/// How a job is brought back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// Places that moved: old and new.
    pub moved: Vec<(Bytes, Bytes)>,
    /// What to do with files that were written after the checkpoint.
    pub files: Policy,
}

/// What there was to go on from.
#[derive(Debug)]
pub enum Past {
    /// Nothing: the job is to be started.
    Nothing,
    /// The directory was the job's, and there is nothing in it to go on from: the job is to be started
    /// over, under the same identity.
    Started(Identity, Claim),
    /// The job had finished with this exit status.
    Finished(i32),
    /// The job was brought back, and this is how that ended.
    WentOn(Ending),
}

/// Goes on with the job in `path`, as far as there is anything to go on with.
///
/// # Errors
/// When the directory is another command's or in use, or the job cannot be brought back although a
/// checkpoint is whole.
pub fn go_on(
    path: &Path,
    command: &[Bytes],
    settings: &Settings,
    ways: &Ways,
    observer: &mut dyn Observer,
) -> Result<Past, GoOnError> {
    if !path.exists() {
        return Ok(Past::Nothing);
    }
    let directory = JobDirectory::open(path, Trust::Own)?;
    let Some(identity) = directory.identity().cloned() else { return Ok(Past::Nothing) };
    let claim = directory.claim()?;
    let words = |command: &[Bytes]| command.iter().map(Bytes::to_string).collect::<Vec<_>>();
    if words(&identity.command) != words(command) {
        let path = directory.path().to_owned();
        return Err(GoOnError::AnotherCommand { path, theirs: Box::new(identity) });
    }
    if let Some(finish) = Finish::read(directory.path())? {
        observer.tell(Event::HadFinished { finish: &finish, directory: directory.path() });
        return Ok(Past::Finished(finish.status));
    }
    if let Some(most) = settings.most_total {
        let spent = budget::read(directory.path())?;
        if spent >= most {
            return Err(GoOnError::BudgetSpent { path: directory.path().to_owned(), spent });
        }
    }
    if let Some(pid) = alive::process(&identity.id, LAST_BREATH) {
        let name = String::from_utf8_lossy(&procfs::name(pid).unwrap_or_default()).into_owned();
        return Err(GoOnError::StillRuns { path: directory.path().to_owned(), pid, name });
    }
    let mut journal = Journal::new(observer);
    journal.open(directory.path());
    let mut passed: Vec<(Generation, ResumeError)> = Vec::new();
    let mut back = None;
    for generation in directory.all_generations(Trust::Own)?.into_iter().rev() {
        match bring_back(&generation, settings, ways, &mut journal) {
            Ok(running) => {
                back = Some(running);
                break;
            }
            Err(error) if error.is_damage() => passed.push((generation, error)),
            Err(error) => return Err(error.into()),
        }
    }
    // Only now: what was said before may have gone to a file that was cut back to the checkpoint.
    for (generation, error) in &passed {
        let reason = &error.to_string();
        journal.tell(Event::PassedOver { generation: &generation.path, reason });
    }
    match back {
        Some(running) => Ok(Past::WentOn(running.supervise(Some(claim), &mut journal)?)),
        None => Ok(Past::Started(identity, claim)),
    }
}

fn bring_back(
    generation: &Generation,
    settings: &Settings,
    ways: &Ways,
    observer: &mut dyn Observer,
) -> Result<restore::BroughtBack, ResumeError> {
    let options = restore::Options {
        path: generation.path.clone(),
        at: None,
        moved: ways.moved.clone(),
        files: ways.files,
        pidfile: None,
        settings: settings.clone(),
    };
    restore::prepare(options, Some(observer))?.bring_back()
}

/// Moves a job's old directory aside: `DIR.old-1` and on. Gives its new name; `None`: there was none.
///
/// # Errors
/// When the directory is in use, or cannot be renamed.
pub fn move_aside(path: &Path) -> Result<Option<PathBuf>, GoOnError> {
    if !path.exists() {
        return Ok(None);
    }
    let directory = JobDirectory::open(path, Trust::Own)?;
    if directory.identity().is_none() {
        return Ok(None);
    }
    let _claim = directory.claim()?;
    let path = directory.path();
    for number in 1_u32.. {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".old-{number}"));
        let aside = PathBuf::from(name);
        if aside.symlink_metadata().is_ok() {
            continue;
        }
        return match std::fs::rename(path, &aside) {
            Ok(()) => Ok(Some(aside)),
            Err(source) => Err(GoOnError::MoveAside { path: path.to_owned(), source }),
        };
    }
    let source = io::ErrorKind::AlreadyExists.into();
    Err(GoOnError::MoveAside { path: path.to_owned(), source })
}
