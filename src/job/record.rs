//! Small records beside the generations in a job's directory: JSON for people and scripts, each file
//! whole or not there, on the disk when it has its name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::image::format::GenerationId;
use crate::image::reader::Trust;
use crate::model::code::{self, Code};

/// How the names of files begin that are on their way to a final name: each exists for an instant.
pub const RENAMING: &str = ".new-";
/// No record is longer than this, in bytes.
const LIMIT: u64 = 16 << 20;

/// Why a record cannot be read or written.
#[derive(Debug, Error)]
pub enum RecordError {
    /// The file or directory belongs to another user or may be written by others.
    #[error(
        "{} belongs to user {owner} (mode {mode:04o}), and this is user {user}: checkpoints are \
         kept and restored by one user alone", path.display()
    )]
    Trust {
        /// The directory or file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its permission bits.
        mode: u32,
        /// Who we are.
        user: u32,
    },
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// It holds something else.
    #[error("{} is not what rckpt wrote: {source}", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// The parser's word.
        source: serde_json::Error,
    },
    /// It cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// It cannot be removed.
    #[error("cannot remove {}: {source}", path.display())]
    Remove {
        /// The file.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
}

impl RecordError {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Trust { .. } => code::requests::DIRECTORY_NOT_TRUSTED,
            Self::Decode { .. } => code::requests::RECORD_DAMAGED,
            Self::Read { .. } | Self::Write { .. } | Self::Remove { .. } => {
                code::requests::DIRECTORY_UNUSABLE
            }
        }
    }
}

/// Reads the record `path`; `None` when there is none.
///
/// # Errors
/// When it cannot be read, is damaged, or, with [`Trust::Own`], could be somebody else's work.
pub fn read<T: DeserializeOwned>(path: &Path, trust: Trust) -> Result<Option<T>, RecordError> {
    let failed = |source| RecordError::Read { path: path.to_owned(), source };
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if trust == Trust::Own {
        check_owner(path, &file.metadata().map_err(failed)?)?;
    }
    let mut text = Vec::new();
    file.take(LIMIT).read_to_end(&mut text).map_err(failed)?;
    match serde_json::from_slice(&text) {
        Ok(record) => Ok(Some(record)),
        Err(source) => Err(RecordError::Decode { path: path.to_owned(), source }),
    }
}

/// Writes the record `path`, in place of an older one.
///
/// # Errors
/// When that fails; an older one is still there then.
pub fn write(path: &Path, record: &impl Serialize) -> Result<(), RecordError> {
    let failed = |source| RecordError::Write { path: path.to_owned(), source };
    let mut text = serde_json::to_vec_pretty(record).map_err(|error| failed(error.into()))?;
    text.push(b'\n');
    let parent = path.parent().unwrap_or(Path::new("."));
    let temporary = parent.join(format!("{RENAMING}{}", GenerationId::random()));
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(parent)?.sync_all()
    };
    let written = write();
    if written.is_err() && fs::remove_file(&temporary).is_err() {
        // It has its name already, or goes with the leftovers.
    }
    written.map_err(failed)
}

/// Removes the record `path`, if it is there.
///
/// # Errors
/// When it stays.
pub fn remove(path: &Path) -> Result<(), RecordError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome.map_err(|source| RecordError::Remove { path: path.to_owned(), source }),
    }
}

/// Refuses what another user owns, or, where it is a file, may write to.
///
/// # Errors
/// [`RecordError::Trust`].
pub fn check_owner(path: &Path, metadata: &fs::Metadata) -> Result<(), RecordError> {
    let (owner, user, mode) = (metadata.uid(), geteuid().as_raw(), metadata.mode() & 0o7777);
    // A symbolic link's mode says nothing.
    let tells = !metadata.is_dir() && !metadata.is_symlink();
    let writable = tells && mode & 0o022 != 0;
    if (owner == user || owner == 0) && !writable {
        return Ok(());
    }
    Err(RecordError::Trust { path: path.to_owned(), owner, mode, user })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::{RecordError, read, remove, write};
    use crate::image::reader::Trust;

    #[test]
    fn records_come_back_and_what_others_could_have_written_does_not() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("x.json");
        assert_eq!(read::<Vec<u32>>(&path, Trust::Own).unwrap(), None);
        write(&path, &[1, 2]).unwrap();
        write(&path, &[3, 4]).unwrap();
        assert_eq!(read::<Vec<u32>>(&path, Trust::Own).unwrap(), Some(vec![3, 4]));
        assert!(matches!(read::<u32>(&path, Trust::Own), Err(RecordError::Decode { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o622)).unwrap();
        assert!(matches!(read::<Vec<u32>>(&path, Trust::Own), Err(RecordError::Trust { .. })));
        read::<Vec<u32>>(&path, Trust::Anybody).unwrap().unwrap();
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}
