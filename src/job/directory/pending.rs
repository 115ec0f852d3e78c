//! A generation on its way into a job's directory: begun under a temporary name, committed under its own,
//! or removed; and what writers left behind that died on that way.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::error::DirectoryError;
use super::generation::Generation;
use super::steps::{gone, open_private, remove_tree, rename, sync_directory};
use super::{JobDirectory, LATEST};
use crate::image::format::GenerationId;
use crate::job::lock::Locked;
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
            if let Some(pending) = self.try_to_begin()? {
                return Ok(pending);
            }
        }
    }

    /// Makes one more temporary directory. `None`: another writer took it for a leftover.
    fn try_to_begin(&self) -> Result<Option<Pending>, DirectoryError> {
        let path = self.path.join(format!("{WRITING}{}", GenerationId::random()));
        let failed = |source| DirectoryError::Begin { path: path.clone(), source };
        DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        // From here on it goes away again if anything fails.
        let mut pending =
            Pending { parent: self.path.clone(), path: path.clone(), lock: None, published: false };
        // Until the lock is held, another writer may take it for a leftover, and remove it.
        let opened = open_private(&path, OFlag::O_DIRECTORY).and_then(|file| {
            // The umask may have taken bits away.
            file.set_permissions(Permissions::from_mode(0o700))?;
            Ok(file)
        });
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed)?,
        };
        pending.lock = match Locked::take(file) {
            Ok(lock) => Some(Lock::Held(lock)),
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            // No such locks on this file system: nobody can take it for a leftover then.
            Err((file, _)) => Some(Lock::Unsupported(file)),
        };
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(|_| Some(pending)).map_err(failed),
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
        // If the power fails now, it must not have its name again with only half of its files.
        sync_directory(&self.path)?;
        remove_tree(&doomed)
    }

    /// Removes what writers and removers left behind when they died.
    ///
    /// # Errors
    /// When something stays.
    pub fn remove_leftovers(&self) -> Result<(), DirectoryError> {
        for entry in self.entries()? {
            let name = entry.file_name();
            let starts = |prefix: &str| name.as_encoded_bytes().starts_with(prefix.as_bytes());
            let path = entry.path();
            if starts(REMOVING) {
                remove_tree(&path)?;
            } else if starts(WRITING) {
                // Its writer holds a lock as long as it lives.
                let Ok(file) = open_private(&path, OFlag::O_DIRECTORY) else { continue };
                if let Ok(_lock) = Locked::take(file) {
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

    /// Has `latest` name the newest generation; without any, it goes. Several writers at once all bring it
    /// there.
    ///
    /// # Errors
    /// When the link cannot be made or moved.
    pub fn name_latest(&self) -> Result<(), DirectoryError> {
        self.move_latest(None)
    }

    /// Has `latest` name the newest generation, by the link that was made for it if it is that.
    fn move_latest(&self, mut made: Option<Link>) -> Result<(), DirectoryError> {
        while let Some(Generation { number, .. }) = self.latest()? {
            if self.named_latest() == Some(number) {
                return Ok(());
            }
            match made.take().filter(|link| link.number == number) {
                Some(link) => link.put(self)?,
                None => Link::to(self, number)?.put(self)?,
            }
        }
        let link = self.path.join(LATEST);
        gone(fs::remove_file(&link))
            .map_err(|source| DirectoryError::MoveLatest { path: link, source })
    }

    /// The number of the generation that `latest` names.
    fn named_latest(&self) -> Option<u64> {
        Generation::parse(fs::read_link(self.path.join(LATEST)).ok()?.as_os_str())
    }

    /// Whether a generation was begun in it and neither finished nor removed.
    pub(super) fn has_unfinished(&self) -> bool {
        let unfinished = |entry: &fs::DirEntry| {
            entry.file_name().as_encoded_bytes().starts_with(WRITING.as_bytes())
        };
        self.entries().is_ok_and(|entries| entries.iter().any(unfinished))
    }
}

/// A link to a generation that is to become `latest`, under a temporary name until then. Dropping it
/// removes it.
#[derive(Debug)]
struct Link {
    number: u64,
    temporary: PathBuf,
}

impl Link {
    fn to(directory: &JobDirectory, number: u64) -> Result<Self, DirectoryError> {
        let temporary = directory.path.join(format!("{RENAMING}{}", GenerationId::random()));
        symlink(Generation::name(number), &temporary).map_err(|source| {
            DirectoryError::MoveLatest { path: directory.path.join(LATEST), source }
        })?;
        Ok(Self { number, temporary })
    }

    fn put(self, directory: &JobDirectory) -> Result<(), DirectoryError> {
        let link = directory.path.join(LATEST);
        fs::rename(&self.temporary, &link)
            .map_err(|source| DirectoryError::MoveLatest { path: link, source })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // After it was put where it belongs there is nothing here any more; what cannot be removed goes
        // with the leftovers.
        fs::remove_file(&self.temporary).unwrap_or_default();
    }
}

/// A generation being written. Dropping it without [`Pending::commit`] removes it.
#[derive(Debug)]
pub struct Pending {
    parent: PathBuf,
    path: PathBuf,
    /// `None` until it is held.
    lock: Option<Lock>,
    /// Whether it has its name.
    published: bool,
}

#[derive(Debug)]
enum Lock {
    Held(Locked),
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
    /// When a step fails. There is no new generation then: one that had its name already is taken back.
    pub fn commit(mut self, above: u64) -> Result<Generation, DirectoryError> {
        let directory = JobDirectory { path: self.parent.clone(), identity: None };
        let newest = directory.generations()?.last().map_or(0, |generation| generation.number);
        let mut number = newest.max(above) + 1;
        // A link or a file of such a name is nobody's checkpoint, and stays as it is.
        let parent = self.parent.clone();
        let foreign = |number| {
            let found = parent.join(Generation::name(number)).symlink_metadata();
            found.is_ok_and(|metadata| !metadata.is_dir())
        };
        loop {
            while foreign(number) {
                number += 1;
            }
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
        // What needs room comes first, so that nothing has to be taken back for want of it.
        let link = Link::to(directory, number)?;
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
        self.published = true;
        let generation = Generation { number, path };
        let settled = sync_directory(&self.parent)
            .and_then(|()| directory.move_latest(Some(link)))
            .and_then(|()| sync_directory(&self.parent));
        if let Err(error) = settled {
            if directory.remove(&generation).and_then(|()| directory.name_latest()).is_err() {
                // It stays, and is whole.
            }
            return Err(error);
        }
        Ok(Some(generation))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.published && fs::remove_dir_all(&self.path).is_err() {
            // Whoever writes here next finds it without a living writer, and removes it.
        }
    }
}
