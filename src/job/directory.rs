//! A job's directory: its generations, which of them is the latest, and whose they are.
//!
//! ```text
//! DIR/job.json      which job this is (format 1: id, command, created)
//! DIR/gen-000001/   a complete generation; what is in it is the image room's
//! DIR/latest        symbolic link to the newest complete one
//! DIR/lock          who is in charge of the directory
//! DIR/local.json    the node-local directory that belongs to it
//! DIR/events.jsonl  what happened to the job, made.json in each generation how it was made
//! DIR/displaced/    what restores cut off or moved away, a numbered directory for each
//! DIR/.tmp-*        a generation being written: locked by its writer, removed when it died
//! DIR/.old-*        a generation being removed
//! ```
//!
//! A generation gets its name only once all of it is on the disk, so whatever is called `gen-*` was
//! complete then, however the writer or the machine ended. This file knows names, order and owners;
//! it knows nothing of what a checkpoint holds, nor of when one is taken.

mod error;
mod find;
mod generation;
mod identity;
mod pending;
mod steps;
#[cfg(test)]
mod tests;
mod tier;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

pub use self::error::{DirectoryError, GenerationError};
pub use self::find::{FindError, Found, find};
pub use self::generation::Generation;
pub use self::identity::Identity;
pub use self::pending::Pending;
pub use self::tier::{Tie, TierError};

use self::identity::JOB_FILE;
use self::steps::gone;
use self::tier::{HOME_FILE, LOCAL_FILE};
use super::claim::{Claim, LOCK_FILE};
use super::journal::JOURNAL_FILE;
use super::record;
use crate::image::reader::{Reader, Trust};

const LATEST: &str = "latest";

/// A job's directory.
#[derive(Debug)]
pub struct JobDirectory {
    path: PathBuf,
    identity: Option<Identity>,
}

impl JobDirectory {
    /// Makes `path` the directory of the job `identity`: a new directory, an empty one, one that is
    /// the same job's already, or one that another job claimed and left without any checkpoint.
    ///
    /// # Errors
    /// [`DirectoryError::AnotherJob`] when another job's checkpoints are in it, or may come.
    pub fn create(path: &Path, identity: &Identity) -> Result<Self, DirectoryError> {
        let failed = |source| DirectoryError::Create { path: path.to_owned(), source };
        let missing = steps::missing(path);
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        steps::sync_names(&missing)?;
        let mut directory = Self::open(path, Trust::Own)?;
        match &directory.identity {
            Some(theirs) if theirs.id == identity.id => return Ok(directory),
            Some(theirs) => {
                let refused = || DirectoryError::AnotherJob {
                    path: directory.path.clone(),
                    theirs: Box::new(theirs.clone()),
                };
                if !directory.generations()?.is_empty() {
                    return Err(refused());
                }
                let _claim = directory.claim().map_err(|_| refused())?;
                identity::write(&directory.path, identity)?;
            }
            None => identity::write(&directory.path, identity)?,
        }
        directory.identity = Some(identity.clone());
        Ok(directory)
    }

    /// Whether `path` says that it is a job's directory. It may be anybody's.
    #[must_use]
    pub fn is_one(path: &Path) -> bool {
        path.join(JOB_FILE).symlink_metadata().is_ok()
    }

    /// Opens an existing directory.
    ///
    /// # Errors
    /// When it cannot be read, or, with [`Trust::Own`], is another user's.
    pub fn open(path: &Path, trust: Trust) -> Result<Self, DirectoryError> {
        let failed = |source| DirectoryError::Open { path: path.to_owned(), source };
        let named = fs::symlink_metadata(path).map_err(failed)?;
        if trust == Trust::Own && named.is_symlink() {
            // Whoever has put a link here decides where we go.
            record::check_owner(path, &named)?;
        }
        // From here on the name leads to this very directory, wherever we change to.
        let path = path.canonicalize().map_err(failed)?;
        let metadata = fs::metadata(&path).map_err(failed)?;
        if !metadata.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        if trust == Trust::Own {
            // Others may be allowed to add entries here (a umask of 002 is common): each entry that
            // matters is looked at by itself.
            record::check_owner(&path, &metadata)?;
        }
        let identity = identity::read(&path, trust)?;
        Ok(Self { path, identity })
    }

    /// Its absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose it is; `None` when it does not say.
    #[must_use]
    pub const fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Takes charge of the directory until the claim is dropped or this process ends.
    ///
    /// # Errors
    /// [`ClaimError::Held`] when another process has.
    pub fn claim(&self) -> Result<Claim, DirectoryError> {
        Ok(Claim::take(&self.path)?)
    }

    /// The complete generations, oldest first.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn generations(&self) -> Result<Vec<Generation>, DirectoryError> {
        let mut generations: Vec<Generation> = self
            .entries()?
            .iter()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| {
                let number = Generation::parse(&entry.file_name())?;
                Some(Generation { number, path: entry.path() })
            })
            .collect();
        generations.sort_unstable();
        Ok(generations)
    }

    /// The newest complete generation. `latest` is for people and scripts: a writer that was killed before
    /// it had moved the link, or a copy of the directory that left it out, does not make it older.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn latest(&self) -> Result<Option<Generation>, DirectoryError> {
        Ok(self.generations()?.pop())
    }

    /// Reads a generation's records, and checks that it is this job's.
    ///
    /// # Errors
    /// When it is damaged, or another's.
    pub fn read(&self, generation: &Generation, trust: Trust) -> Result<Reader, GenerationError> {
        let reader = Reader::open_trusting(&generation.path, trust)?;
        match &self.identity {
            Some(identity) if identity.id != reader.job().id => Err(GenerationError::AnotherJob {
                path: generation.path.clone(),
                found: reader.job().id.0.clone(),
                expected: identity.id.0.clone(),
            }),
            _ => Ok(reader),
        }
    }

    /// Gives up a directory whose job never started: removes it if nothing but the job's name and its first words are in it.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn abandon(self) -> Result<(), DirectoryError> {
        let failed = |source| DirectoryError::Remove { path: self.path.clone(), source };
        let ours = [JOB_FILE, LOCK_FILE, JOURNAL_FILE, LOCAL_FILE, HOME_FILE];
        if self.entries()?.iter().any(|entry| ours.iter().all(|name| entry.file_name() != *name)) {
            return Ok(());
        }
        for name in ours {
            gone(fs::remove_file(self.path.join(name))).map_err(failed)?;
        }
        fs::remove_dir(&self.path).map_err(failed)
    }

    fn entries(&self) -> Result<Vec<fs::DirEntry>, DirectoryError> {
        let list = || fs::read_dir(&self.path)?.collect::<io::Result<Vec<_>>>();
        list().map_err(|source| DirectoryError::List { path: self.path.clone(), source })
    }
}
