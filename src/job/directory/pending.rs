//! A generation on its way into a job's directory: begun under a temporary name, committed under its own,
//! or removed; and what writers left behind that died on that way.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

use super::error::DirectoryError;
use super::generation::Generation;
use super::steps::{gone, open_private, remove_tree, rename, sync_directory};
use super::{JobDirectory, LATEST};
use crate::image::format::GenerationId;
use crate::job::record::RENAMING;

/// How the names of generations begin that are being written.
const WRITING: &str = ".tmp-";
/// How those begin that are being removed.
const REMOVING: &str = ".old-";
/// A file that is on its way to its name for so long has no living writer.
const RENAMING_TIME: Duration = Duration::from_secs(60);

impl JobDirectory {
    /// Begins a generation: an empty private directory under a temporary name. What earlier writers
    /// left behind when they died is removed.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn begin_generation(&self) -> Result<Pending, DirectoryError> {
        if self.remove_leftovers().is_err() {
            // No reason not to take a checkpoint: the next writer tries again.
        }
        loop {
            let path = self.path.join(format!("{WRITING}{}", GenerationId::random()));
            let failed = |source| DirectoryError::Begin { path: path.clone(), source };
            DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
            // Until the lock is held, another writer may take it for a leftover, and remove it.
            let opened = open_private(&path, OFlag::O_DIRECTORY).and_then(|file| {
                // The umask may have taken bits away.
                file.set_permissions(Permissions::from_mode(0o700))?;
                Ok(file)
            });
            let file = match opened {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(failed)?,
            };
            let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => Lock::Held(lock),
                Err((_, Errno::EWOULDBLOCK)) => continue,
                // No such locks on this file system: nobody can take it for a leftover then.
                Err((file, _)) => Lock::Unsupported(file),
            };
            match fs::symlink_metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(failed)?,
            };
            return Ok(Pending { parent: self.path.clone(), path: path.clone(), lock: Some(lock) });
        }
    }

    /// Removes a generation.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, generation: &Generation) -> Result<(), DirectoryError> {
        // Under its own name it would look complete while it is being taken apart.
        let doomed = self.path.join(format!("{REMOVING}{}", GenerationId::random()));
        rename(&generation.path, &doomed)?;
        remove_tree(&doomed)
    }

    /// Removes what writers and removers left behind when they died.
    fn remove_leftovers(&self) -> Result<(), DirectoryError> {
        for entry in self.entries()? {
            let name = entry.file_name();
            let starts = |prefix: &str| name.as_encoded_bytes().starts_with(prefix.as_bytes());
            let path = entry.path();
            if starts(REMOVING) {
                remove_tree(&path)?;
            } else if starts(WRITING) {
                // Its writer holds a lock as long as it lives.
                let Ok(file) = open_private(&path, OFlag::O_DIRECTORY) else { continue };
                if let Ok(_lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                    remove_tree(&path)?;
                }
            } else if starts(RENAMING) {
                let age = fs::symlink_metadata(&path)
                    .and_then(|metadata| metadata.modified())
                    .ok()
                    .and_then(|time| time.elapsed().ok());
                if age.is_some_and(|age| age > RENAMING_TIME) {
                    gone(fs::remove_file(&path))
                        .map_err(|source| DirectoryError::Remove { path: path.clone(), source })?;
                }
            }
        }
        Ok(())
    }

    /// Has `latest` name the newest generation. Several writers at once all bring it there.
    fn name_latest(&self) -> Result<(), DirectoryError> {
        let link = self.path.join(LATEST);
        let newest = |generations: &[Generation]| generations.last().map(|newest| newest.number);
        let mut generations = self.generations()?;
        while let Some(number) = newest(&generations) {
            let temporary = self.path.join(format!("{RENAMING}{}", GenerationId::random()));
            symlink(Generation::name(number), &temporary)
                .and_then(|()| fs::rename(&temporary, &link))
                .map_err(|source| DirectoryError::MoveLatest { path: link.clone(), source })?;
            generations = self.generations()?;
            if newest(&generations) == Some(number) {
                break;
            }
        }
        Ok(())
    }

    /// Whether a generation was begun in it and neither finished nor removed.
    pub(super) fn has_unfinished(&self) -> bool {
        let unfinished = |entry: &fs::DirEntry| {
            entry.file_name().as_encoded_bytes().starts_with(WRITING.as_bytes())
        };
        self.entries().is_ok_and(|entries| entries.iter().any(unfinished))
    }
}

/// A generation being written. Dropping it without [`Pending::commit`] removes it.
#[derive(Debug)]
pub struct Pending {
    parent: PathBuf,
    path: PathBuf,
    /// `None` once committed.
    lock: Option<Lock>,
}

#[derive(Debug)]
enum Lock {
    Held(Flock<File>),
    Unsupported(File),
}

impl Lock {
    fn file(&self) -> &File {
        match self {
            Self::Held(lock) => lock,
            Self::Unsupported(file) => file,
        }
    }
}

impl Pending {
    /// The directory to write into, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the generation, whose files are on the disk, the job's newest: gives it its name, then
    /// moves `latest` to it, each step on the disk before the next. Numbers up to `above` are in use
    /// elsewhere.
    ///
    /// # Errors
    /// When a step fails. Until the rename is done there is no new generation; after it there is
    /// one, and an error means only that `latest` may not name it yet.
    pub fn commit(mut self, above: u64) -> Result<Generation, DirectoryError> {
        let directory = JobDirectory { path: self.parent.clone(), identity: None };
        let newest = directory.generations()?.last().map_or(0, |generation| generation.number);
        let mut number = newest.max(above) + 1;
        loop {
            if let Some(generation) = self.publish(&directory, number)? {
                return Ok(generation);
            }
            // Another writer was faster.
            number += 1;
        }
    }

    /// Gives the generation, a copy of the one with this number elsewhere, the same number here. `None`:
    /// there is one; this one is removed. `latest` moves on only if there is no newer one.
    ///
    /// # Errors
    /// As for [`Pending::commit`].
    pub fn commit_as(mut self, number: u64) -> Result<Option<Generation>, DirectoryError> {
        let directory = JobDirectory { path: self.parent.clone(), identity: None };
        self.publish(&directory, number)
    }

    /// Gives it the name with this number. `None`: that is in use.
    fn publish(
        &mut self,
        directory: &JobDirectory,
        number: u64,
    ) -> Result<Option<Generation>, DirectoryError> {
        if let Some(lock) = &self.lock {
            lock.file()
                .sync_all()
                .map_err(|source| DirectoryError::Sync { path: self.path.clone(), source })?;
        }
        let path = self.parent.join(Generation::name(number));
        match rename(&self.path, &path) {
            Ok(()) => {}
            // No generation is an empty directory, so a rename can never replace one (rename(2)).
            Err(DirectoryError::Rename { source, .. })
                if matches!(
                    source.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        self.lock = None;
        sync_directory(&self.parent)?;
        directory.name_latest()?;
        sync_directory(&self.parent)?;
        Ok(Some(Generation { number, path }))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.lock.is_some() && fs::remove_dir_all(&self.path).is_err() {
            // Whoever writes here next finds it without a living writer, and removes it.
        }
    }
}
