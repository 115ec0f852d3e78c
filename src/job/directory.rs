//! A job's directory: its generations, which of them is the latest, and whose they are.
//!
//! ```text
//! DIR/job.json      which job this is (format 1: id, command, created)
//! DIR/gen-000001/   a complete generation; what is in it is the image room's
//! DIR/latest        symbolic link to the newest complete one
//! DIR/lock          who is in charge of the directory
//! DIR/displaced/    what restores cut off or moved away, a numbered directory for each
//! DIR/.tmp-*        a generation being written: locked by its writer, removed when it died
//! DIR/.old-*        a generation being removed
//! ```
//!
//! A generation gets its name only once all of it is on the disk, so whatever is called `gen-*` was
//! complete then, however the writer or the machine ended. This file knows names, order and owners;
//! it knows nothing of what a checkpoint holds, nor of when one is taken.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::image::ReadError;
use crate::image::format::{GenerationId, IMAGE_FILE};
use crate::image::reader::{Reader, Trust};
use crate::model::id::Bytes;

use super::claim::{Claim, ClaimError, LOCK_FILE};
use super::record::{self, RENAMING, RecordError};

const JOB_FILE: &str = "job.json";
const JOB_FILE_FORMAT: u32 = 1;
const LATEST: &str = "latest";
const GENERATION: &str = "gen-";
const WRITING: &str = ".tmp-";
const REMOVING: &str = ".old-";
const RENAMING_TIME: Duration = Duration::from_secs(60);

/// Which job a directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// [`crate::model::job::Job::id`]: ASCII.
    pub id: Bytes,
    /// The command line, for messages.
    pub command: Vec<Bytes>,
    /// When the directory became the job's, in seconds since 1970.
    pub created: i64,
}

impl Identity {
    /// The command line in one line, for messages.
    #[must_use]
    pub fn command_line(&self) -> String {
        let words: Vec<String> = self.command.iter().map(Bytes::to_string).collect();
        words.join(" ")
    }
}

/// What `job.json` holds. Fields that this version does not know are left alone.
#[derive(Serialize, Deserialize)]
struct JobFile {
    format: u32,
    id: String,
    command: Vec<String>,
    created: i64,
}

/// A complete generation in a job's directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation {
    /// Its number, from 1 on.
    pub number: u64,
    /// Its directory, absolute.
    pub path: PathBuf,
}

impl Generation {
    /// The name of generation `number`: `gen-000001`.
    #[must_use]
    pub fn name(number: u64) -> String {
        format!("{GENERATION}{number:06}")
    }

    fn parse(name: &OsStr) -> Option<u64> {
        let digits = name.to_str()?.strip_prefix(GENERATION)?;
        let number = digits.parse().ok()?;
        // Only the one spelling counts: no sign, no other number of zeros.
        (number > 0 && OsStr::new(&Self::name(number)) == name).then_some(number)
    }
}

/// Why something cannot be done with a job's directory.
#[derive(Debug, Error)]
pub enum DirectoryError {
    /// It cannot be made.
    #[error("cannot create the directory {}: {source}", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// It cannot be opened.
    #[error("cannot open the directory {}: {source}", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// A record in it cannot be read or written, or the directory is another user's.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// It is another job's.
    #[error("{} holds the checkpoints of another job: {}", path.display(), theirs.command_line())]
    AnotherJob {
        /// The directory.
        path: PathBuf,
        /// The job it belongs to.
        theirs: Box<Identity>,
    },
    /// Another rckpt is in charge of it, or nobody can be.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The file that says whose it is was written by a newer program.
    #[error("{} has format {found}, and this rckpt knows {JOB_FILE_FORMAT}", path.display())]
    SupportIdentity {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Its entries cannot be listed.
    #[error("cannot list {}: {source}", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// A new generation cannot be begun.
    #[error("cannot begin a checkpoint in {}: {source}", path.display())]
    Begin {
        /// The temporary directory.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// A directory cannot be brought to the disk.
    #[error("cannot bring {} to the disk (fsync): {source}", path.display())]
    Sync {
        /// The directory.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// A generation cannot be given its name.
    #[error("cannot rename {} to {}: {source}", from.display(), to.display())]
    Rename {
        /// Its name so far.
        from: PathBuf,
        /// Its name to be.
        to: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// The link to the newest generation cannot be moved.
    #[error("cannot make {} name the new checkpoint: {source}", path.display())]
    MoveLatest {
        /// The link.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// A generation cannot be removed.
    #[error("cannot remove {}: {source}", path.display())]
    Remove {
        /// The generation.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
}

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

/// Why a generation cannot be used.
#[derive(Debug, Error)]
pub enum GenerationError {
    /// Its image cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It is another job's than the directory.
    #[error(
        "the checkpoint {} is of another job ({}) than its directory ({})", path.display(),
        String::from_utf8_lossy(found), String::from_utf8_lossy(expected)
    )]
    AnotherJob {
        /// The generation.
        path: PathBuf,
        /// The job in the image.
        found: Vec<u8>,
        /// The job that the directory belongs to.
        expected: Vec<u8>,
    },
}

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
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
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
                directory.write_identity(identity)?;
            }
            None => directory.write_identity(identity)?,
        }
        directory.identity = Some(identity.clone());
        Ok(directory)
    }

    /// Opens an existing directory.
    ///
    /// # Errors
    /// When it cannot be read, or, with [`Trust::Own`], is another user's.
    pub fn open(path: &Path, trust: Trust) -> Result<Self, DirectoryError> {
        let failed = |source| DirectoryError::Open { path: path.to_owned(), source };
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
        let identity = read_identity(&path.join(JOB_FILE), trust)?;
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

    /// The generation that `latest` names; where that link is missing or leads elsewhere, the
    /// newest one.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn latest(&self) -> Result<Option<Generation>, DirectoryError> {
        let mut generations = self.generations()?;
        let named = fs::read_link(self.path.join(LATEST))
            .ok()
            .and_then(|target| Generation::parse(target.as_os_str()))
            .and_then(|number| generations.iter().position(|found| found.number == number));
        Ok(match named {
            Some(place) => Some(generations.swap_remove(place)),
            None => generations.pop(),
        })
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

    /// Gives up a directory whose job never started: removes it if nothing but the job's name is in
    /// it.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn abandon(self) -> Result<(), DirectoryError> {
        let failed = |source| DirectoryError::Remove { path: self.path.clone(), source };
        let ours = [JOB_FILE, LOCK_FILE];
        if self.entries()?.iter().any(|entry| ours.iter().all(|name| entry.file_name() != *name)) {
            return Ok(());
        }
        for name in ours {
            gone(fs::remove_file(self.path.join(name))).map_err(failed)?;
        }
        fs::remove_dir(&self.path).map_err(failed)
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

    /// Whether a generation was begun in it and neither finished nor removed.
    fn has_unfinished(&self) -> bool {
        let unfinished = |entry: &fs::DirEntry| {
            entry.file_name().as_encoded_bytes().starts_with(WRITING.as_bytes())
        };
        self.entries().is_ok_and(|entries| entries.iter().any(unfinished))
    }

    fn entries(&self) -> Result<Vec<fs::DirEntry>, DirectoryError> {
        let list = || fs::read_dir(&self.path)?.collect::<io::Result<Vec<_>>>();
        list().map_err(|source| DirectoryError::List { path: self.path.clone(), source })
    }

    fn write_identity(&self, identity: &Identity) -> Result<(), DirectoryError> {
        let contents = JobFile {
            format: JOB_FILE_FORMAT,
            id: identity.id.to_string(),
            command: identity.command.iter().map(Bytes::to_string).collect(),
            created: identity.created,
        };
        Ok(record::write(&self.path.join(JOB_FILE), &contents)?)
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
    /// moves `latest` to it, each step on the disk before the next.
    ///
    /// # Errors
    /// When a step fails. Until the rename is done there is no new generation; after it there is
    /// one, and an error means only that `latest` may not name it yet.
    pub fn commit(mut self) -> Result<Generation, DirectoryError> {
        let directory = JobDirectory { path: self.parent.clone(), identity: None };
        if let Some(lock) = &self.lock {
            lock.file()
                .sync_all()
                .map_err(|source| DirectoryError::Sync { path: self.path.clone(), source })?;
        }
        let newest = directory.generations()?.last().map_or(0, |generation| generation.number);
        let mut number = newest + 1;
        let path = loop {
            let path = self.parent.join(Generation::name(number));
            match rename(&self.path, &path) {
                Ok(()) => break path,
                // Another writer was faster. No generation is an empty directory, so a rename can
                // never replace one (rename(2)).
                Err(DirectoryError::Rename { source, .. })
                    if matches!(
                        source.kind(),
                        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                    ) =>
                {
                    number += 1;
                }
                Err(error) => return Err(error),
            }
        };
        self.lock = None;
        sync_directory(&self.parent)?;

        let link = self.parent.join(LATEST);
        let temporary = self.parent.join(format!("{RENAMING}{}", GenerationId::random()));
        symlink(Generation::name(number), &temporary)
            .and_then(|()| fs::rename(&temporary, &link))
            .map_err(|source| DirectoryError::MoveLatest { path: link, source })?;
        sync_directory(&self.parent)?;
        Ok(Generation { number, path })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.lock.is_some() && fs::remove_dir_all(&self.path).is_err() {
            // Whoever writes here next finds it without a living writer, and removes it.
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

/// Finds the checkpoint that `path` names: a job's directory (its latest one, or the one called
/// `at`: `3`, `gen-000003` or `latest`), a checkpoint in it, or the link `latest`.
///
/// # Errors
/// When there is no such checkpoint. Nothing has been read of the one that is found.
pub fn find(path: &Path, at: Option<&str>, trust: Trust) -> Result<Found, FindError> {
    let real = path.canonicalize().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => FindError::Absent { path: path.to_owned() },
        _ => DirectoryError::Open { path: path.to_owned(), source }.into(),
    })?;
    let number = real.file_name().and_then(Generation::parse);
    if number.is_some() || real.join(IMAGE_FILE).symlink_metadata().is_ok() {
        if let Some(at) = at {
            return Err(FindError::AtGeneration { path: real, at: at.to_owned() });
        }
        let home = real.parent().filter(|home| home.join(JOB_FILE).symlink_metadata().is_ok());
        let directory = match (number, home) {
            (Some(_), Some(home)) => Some(JobDirectory::open(home, trust)?),
            _ => None,
        };
        let generation = Generation { number: number.unwrap_or(0), path: real };
        return Ok(Found { generation, directory });
    }
    let directory = JobDirectory::open(&real, trust)?;
    let generation = match at {
        None | Some(LATEST) => directory.latest()?,
        Some(at) => Some(choose(&directory, at)?),
    };
    match generation {
        Some(generation) => Ok(Found { generation, directory: Some(directory) }),
        None => Err(FindError::NoCheckpoint { path: real, unfinished: directory.has_unfinished() }),
    }
}

/// The generation called `at`.
fn choose(directory: &JobDirectory, at: &str) -> Result<Generation, FindError> {
    let number = Generation::parse(OsStr::new(at)).or_else(|| at.parse().ok());
    let generations = directory.generations()?;
    if generations.is_empty() {
        let unfinished = directory.has_unfinished();
        return Err(FindError::NoCheckpoint { path: directory.path.clone(), unfinished });
    }
    let have = generations.iter().map(|found| Generation::name(found.number)).collect();
    generations.into_iter().find(|found| Some(found.number) == number).ok_or_else(|| {
        FindError::NoGeneration { path: directory.path.clone(), at: at.to_owned(), have }
    })
}

fn read_identity(path: &Path, trust: Trust) -> Result<Option<Identity>, DirectoryError> {
    let Some(contents) = record::read::<JobFile>(path, trust)? else { return Ok(None) };
    if contents.format != JOB_FILE_FORMAT {
        let found = contents.format;
        return Err(DirectoryError::SupportIdentity { path: path.to_owned(), found });
    }
    let bytes = |text: String| Bytes(text.into_bytes());
    Ok(Some(Identity {
        id: bytes(contents.id),
        command: contents.command.into_iter().map(bytes).collect(),
        created: contents.created,
    }))
}

/// Opens for reading what must not be a symbolic link.
fn open_private(path: &Path, flags: OFlag) -> io::Result<File> {
    let flags = flags | OFlag::O_NOFOLLOW;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

fn rename(from: &Path, to: &Path) -> Result<(), DirectoryError> {
    fs::rename(from, to).map_err(|source| DirectoryError::Rename {
        from: from.to_owned(),
        to: to.to_owned(),
        source,
    })
}

fn sync_directory(path: &Path) -> Result<(), DirectoryError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|source| DirectoryError::Sync { path: path.to_owned(), source })
}

fn remove_tree(path: &Path) -> Result<(), DirectoryError> {
    gone(fs::remove_dir_all(path))
        .map_err(|source| DirectoryError::Remove { path: path.to_owned(), source })
}

/// That something is gone already is as good as having removed it.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::num::{NonZeroU64, NonZeroUsize};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use super::{
        DirectoryError, FindError, GenerationError, Identity, JobDirectory, Pending, RecordError,
        find,
    };
    use crate::image::reader::Trust;
    use crate::image::{WriteOptions, Writer, sample};
    use crate::job::retention;
    use crate::model::id::Bytes;

    fn identity(id: &str) -> Identity {
        let command = vec![Bytes::from(b"/bin/sample".as_slice()), Bytes::from(b"-x".as_slice())];
        Identity { id: Bytes::from(id.as_bytes()), command, created: 1_700_000_000 }
    }

    fn directory(path: &Path) -> JobDirectory {
        JobDirectory::create(path, &identity("sample")).unwrap()
    }

    fn fill(pending: &Pending) {
        let writer = Writer::create(pending.path(), WriteOptions::default()).unwrap();
        writer.finish(&sample::job()).unwrap();
    }

    fn commit(directory: &JobDirectory) -> u64 {
        let pending = directory.begin_generation().unwrap();
        fill(&pending);
        pending.commit().unwrap().number
    }

    fn numbers(directory: &JobDirectory) -> Vec<u64> {
        directory.generations().unwrap().iter().map(|generation| generation.number).collect()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn generations_are_numbered_and_the_latest_is_named() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("a/b");
        let directory = directory(&path);
        assert_eq!(mode(&path), 0o700);
        assert_eq!(directory.latest().unwrap(), None);
        assert_eq!((commit(&directory), commit(&directory)), (1, 2));
        assert_eq!(numbers(&directory), [1, 2]);
        assert_eq!(directory.latest().unwrap().unwrap().number, 2);
        assert_eq!(fs::read_link(path.join("latest")).unwrap(), Path::new("gen-000002"));
        assert_eq!(mode(&path.join("gen-000002")), 0o700);
    }

    #[test]
    fn a_generation_given_up_leaves_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = directory(scratch.path());
        let pending = directory.begin_generation().unwrap();
        fill(&pending);
        drop(pending);
        assert_eq!(numbers(&directory), [0_u64; 0]);
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
    }

    #[test]
    fn leftovers_of_the_dead_are_removed_and_only_those() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = directory(scratch.path());
        fs::create_dir(scratch.path().join(".tmp-dead")).unwrap();
        fs::write(scratch.path().join(".tmp-dead/pages.rckpt"), "half").unwrap();
        fs::create_dir(scratch.path().join(".old-dead")).unwrap();
        let alive = directory.begin_generation().unwrap();
        let second = directory.begin_generation().unwrap();
        assert!(alive.path().exists() && second.path().exists());
        assert!(!scratch.path().join(".tmp-dead").exists());
        assert!(!scratch.path().join(".old-dead").exists());
        fill(&alive);
        fill(&second);
        assert_eq!(second.commit().unwrap().number, 1);
        assert_eq!(alive.commit().unwrap().number, 2);
    }

    #[test]
    fn another_jobs_directory_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let first = directory(scratch.path());
        let claim = first.claim().unwrap();
        let again = || JobDirectory::create(scratch.path(), &identity("other"));
        // Its supervisor lives, though it has no checkpoint yet.
        assert!(matches!(again(), Err(DirectoryError::AnotherJob { .. })));
        drop(claim);
        again().unwrap();
        let first = directory(scratch.path());
        commit(&first);
        let error = again().unwrap_err().to_string();
        assert!(error.ends_with("holds the checkpoints of another job: /bin/sample -x"), "{error}");
        assert_eq!(
            JobDirectory::open(scratch.path(), Trust::Own).unwrap().identity(),
            Some(&identity("sample"))
        );
    }

    #[test]
    fn old_generations_go_and_the_latest_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = directory(scratch.path());
        for _ in 0..5 {
            commit(&directory);
        }
        let keep = |number| {
            retention::by_number(&directory, NonZeroUsize::new(number).unwrap()).unwrap().len()
        };
        assert_eq!((keep(9), keep(3)), (0, 2));
        assert_eq!(numbers(&directory), [3, 4, 5]);
        fs::remove_file(scratch.path().join("latest")).unwrap();
        symlink("gen-000003", scratch.path().join("latest")).unwrap();
        assert_eq!(keep(1), 1);
        assert_eq!(numbers(&directory), [3, 5]);
        assert_eq!(commit(&directory), 6);
        let fit =
            |bytes| retention::by_bytes(&directory, NonZeroU64::new(bytes).unwrap()).unwrap().len();
        assert_eq!((fit(1 << 30), fit(1)), (0, 2));
        assert_eq!(numbers(&directory), [6]);
    }

    #[test]
    fn writers_at_once_get_numbers_of_their_own() {
        let scratch = tempfile::tempdir().unwrap();
        directory(scratch.path());
        let write = || -> Vec<u64> {
            let directory = JobDirectory::open(scratch.path(), Trust::Own).unwrap();
            (0..15).map(|_| commit(&directory)).collect()
        };
        let mut given: Vec<u64> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4).map(|_| scope.spawn(write)).collect();
            writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
        });
        given.sort_unstable();
        assert_eq!(given, (1..=60).collect::<Vec<_>>());
        let directory = JobDirectory::open(scratch.path(), Trust::Own).unwrap();
        assert_eq!(numbers(&directory), given);
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 62);
    }

    #[test]
    fn checkpoints_are_found_by_every_name() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = directory(scratch.path());
        commit(&directory);
        commit(&directory);
        let check = |name: &str, at: Option<&str>, expected: u64| {
            let found = find(&scratch.path().join(name), at, Trust::Own).unwrap();
            assert_eq!(found.generation.number, expected, "{name} {at:?}");
            found.read(Trust::Own).unwrap();
        };
        check("", None, 2);
        check("", Some("latest"), 2);
        check("", Some("1"), 1);
        check("", Some("gen-000001"), 1);
        check("latest", None, 2);
        check("gen-000001", None, 1);
        fs::rename(scratch.path().join("gen-000001"), scratch.path().join("moved")).unwrap();
        check("moved", None, 0);
        // Without the link, the newest counts.
        fs::remove_file(scratch.path().join("latest")).unwrap();
        check("", None, 2);
    }

    #[test]
    fn what_cannot_be_found_is_told() {
        let scratch = tempfile::tempdir().unwrap();
        let check = |at: Option<&str>, expected: &str| {
            let error = find(scratch.path(), at, Trust::Own).unwrap_err().to_string();
            assert_eq!(error.replace(scratch.path().to_str().unwrap(), "DIR"), expected);
        };
        check(None, "there is no checkpoint in DIR");
        let directory = directory(scratch.path());
        let pending = directory.begin_generation().unwrap();
        check(Some("3"), "there is no checkpoint in DIR (one was begun and not finished)");
        drop(pending);
        commit(&directory);
        check(Some("3"), "there is no checkpoint \"3\" in DIR; there are: gen-000001");
        check(Some("../x"), "there is no checkpoint \"../x\" in DIR; there are: gen-000001");
        let gone = find(&scratch.path().join("gone"), None, Trust::Own);
        assert!(matches!(gone, Err(FindError::Absent { .. })));
        let generation = scratch.path().join("gen-000001");
        let chosen = find(&generation, Some("1"), Trust::Own);
        assert!(matches!(chosen, Err(FindError::AtGeneration { .. })));
    }

    #[test]
    fn a_generation_of_another_job_is_refused() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        commit(&directory(one.path()));
        let other = JobDirectory::create(two.path(), &identity("other")).unwrap();
        fs::rename(one.path().join("gen-000001"), two.path().join("gen-000001")).unwrap();
        let generation = other.latest().unwrap().unwrap();
        let error = other.read(&generation, Trust::Own).unwrap_err();
        assert!(matches!(error, GenerationError::AnotherJob { .. }));
    }

    #[test]
    fn what_others_could_have_written_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = directory(scratch.path());
        commit(&directory);
        let image = scratch.path().join("gen-000001/image.rckpt");
        fs::set_permissions(&image, fs::Permissions::from_mode(0o620)).unwrap();
        let found = find(scratch.path(), None, Trust::Own).unwrap();
        assert!(found.read(Trust::Own).unwrap_err().to_string().contains("mode 0620"));
        found.read(Trust::Anybody).unwrap();
        let job = scratch.path().join("job.json");
        fs::set_permissions(&job, fs::Permissions::from_mode(0o602)).unwrap();
        assert!(matches!(
            JobDirectory::open(scratch.path(), Trust::Own),
            Err(DirectoryError::Record(RecordError::Trust { .. }))
        ));
    }
}
