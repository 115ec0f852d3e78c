//! Finding the checkpoint that a user names.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::error::{DirectoryError, GenerationError};
use super::generation::Generation;
use super::identity::JOB_FILE;
use super::{JobDirectory, LATEST};
use crate::image::format::IMAGE_FILE;
use crate::image::reader::{Reader, Trust};
use crate::model::code::{self, Code};

/// Why a checkpoint that a user named cannot be had.
#[derive(Debug, Error)]
pub enum FindError {
    /// Nothing is there.
    #[error("{} does not exist", path.display())]
    Absent {
        /// What was named.
        path: PathBuf,
    },
    /// There is no checkpoint in the directory.
    #[error(
        "there is no checkpoint in {}{}", path.display(),
        if *unfinished { " (one was begun and not finished)" } else { "" }
    )]
    NoCheckpoint {
        /// The directory.
        path: PathBuf,
        /// Whether one was begun.
        unfinished: bool,
    },
    /// There is no such checkpoint in the directory.
    #[error("there is no checkpoint \"{at}\" in {}; there are: {}", path.display(), have.join(", "))]
    NoGeneration {
        /// The directory.
        path: PathBuf,
        /// What was asked for.
        at: String,
        /// Those that there are.
        have: Vec<String>,
    },
    /// A generation was named together with one in it.
    #[error("{} is one checkpoint itself, so \"{at}\" cannot be chosen in it", path.display())]
    AtGeneration {
        /// The generation.
        path: PathBuf,
        /// What was asked for.
        at: String,
    },
    /// The directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

impl FindError {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Absent { .. } => code::requests::NOTHING_THERE,
            Self::NoCheckpoint { .. } => code::requests::NO_CHECKPOINT,
            Self::NoGeneration { .. } => code::requests::NO_SUCH_GENERATION,
            Self::AtGeneration { .. } => code::requests::GENERATION_NAMED_TWICE,
            Self::Directory(error) => error.code(),
        }
    }
}

/// A checkpoint that a user named.
#[derive(Debug)]
pub struct Found {
    /// The checkpoint.
    pub generation: Generation,
    /// The job's directory; a checkpoint that was moved elsewhere stands alone.
    pub directory: Option<JobDirectory>,
}

impl Found {
    /// Reads its records, and checks that it is its directory's.
    ///
    /// # Errors
    /// When it is damaged, or another's.
    pub fn read(&self, trust: Trust) -> Result<Reader, GenerationError> {
        match &self.directory {
            Some(directory) => directory.read(&self.generation, trust),
            None => Ok(Reader::open_trusting(&self.generation.path, trust)?),
        }
    }
}

/// Finds the checkpoint that `path` names: a job's directory (the latest one of it and of its local
/// directory, or the one called `at`: `3`, `gen-000003` or `latest`), its local directory, a checkpoint in
/// one of them, or the link `latest`.
///
/// # Errors
/// When there is no such checkpoint. Nothing has been read of the one that is found.
pub fn find(path: &Path, at: Option<&str>, trust: Trust) -> Result<Found, FindError> {
    let path = if at.is_none() { without_link(path) } else { path };
    let real = path.canonicalize().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => FindError::Absent { path: path.to_owned() },
        _ => DirectoryError::Open { path: path.to_owned(), source }.into(),
    })?;
    let number = real.file_name().and_then(Generation::parse);
    if number.is_some() || real.join(IMAGE_FILE).symlink_metadata().is_ok() {
        if let Some(at) = at {
            return Err(FindError::AtGeneration { path: real, at: at.to_owned() });
        }
        let place = real.parent().filter(|home| home.join(JOB_FILE).symlink_metadata().is_ok());
        let directory = match (number, place) {
            (Some(_), Some(place)) => Some(open_home(place, trust)?),
            _ => None,
        };
        let generation = Generation { number: number.unwrap_or(0), path: real };
        return Ok(Found { generation, directory });
    }
    let directory = open_home(&real, trust)?;
    let generation = match at {
        None | Some(LATEST) => directory.latest_of_all(trust)?,
        Some(at) => Some(choose(&directory, at, trust)?),
    };
    match generation {
        Some(generation) => Ok(Found { generation, directory: Some(directory) }),
        None => Err(FindError::NoCheckpoint { path: real, unfinished: directory.has_unfinished() }),
    }
}

/// The job's directory, where `path` is the link in it that names the newest checkpoint: a writer that was
/// killed may not have moved it yet.
fn without_link(path: &Path) -> &Path {
    let is_link = path.file_name() == Some(OsStr::new(LATEST))
        && path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
    let home =
        path.parent().filter(|home| is_link && home.join(JOB_FILE).symlink_metadata().is_ok());
    home.unwrap_or(path)
}

/// The job's directory that `path` is, or is the local one of.
fn open_home(path: &Path, trust: Trust) -> Result<JobDirectory, DirectoryError> {
    let directory = JobDirectory::open(path, trust)?;
    let home = directory.home(trust)?;
    Ok(home.unwrap_or(directory))
}

/// The generation called `at`.
fn choose(directory: &JobDirectory, at: &str, trust: Trust) -> Result<Generation, FindError> {
    let number = Generation::parse(OsStr::new(at)).or_else(|| at.parse().ok());
    let generations = directory.all_generations(trust)?;
    if generations.is_empty() {
        let unfinished = directory.has_unfinished();
        return Err(FindError::NoCheckpoint { path: directory.path().to_owned(), unfinished });
    }
    let mut have: Vec<String> =
        generations.iter().map(|found| Generation::name(found.number)).collect();
    have.dedup();
    // The quicker one of two comes last.
    generations.into_iter().rfind(|found| Some(found.number) == number).ok_or_else(|| {
        FindError::NoGeneration { path: directory.path().to_owned(), at: at.to_owned(), have }
    })
}
