//! POSIX message queues that nobody has open: found in their file system, whether that is mounted or not.
//!
//! In a namespace that the job shares with others a plain user finds them only where somebody has
//! mounted it on /dev/mqueue.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::Pid;

use super::super::error::CollectError;
use super::super::files::Collector;
use super::belonging::{Acquaintances, Claims, Whose};
use crate::sys::descriptor;
use crate::sys::emissary::Emissary;
use crate::sys::message_queue;

/// MQUEUE_MAGIC of ipc/mqueue.c.
const MAGIC: FsType = FsType(0x1980_0202);

/// The file system of queues, open, with the names in it that nobody of the job has open.
#[derive(Debug, Default)]
pub(super) struct Unopened {
    directory: Option<OwnedFd>,
    names: Vec<Vec<u8>>,
    /// Whether there may be some that cannot be seen, of a job that uses such queues.
    pub unseen: bool,
}

impl Unopened {
    /// Those of the ipc namespace that rckpt is in.
    pub fn here(files: &Collector) -> Result<Self, CollectError> {
        let directory = message_queue::directory().or_else(|_| mounted()).ok();
        let unseen = directory.is_none() && files.has_message_queues();
        Ok(Self { unseen, ..Self::list(directory, files)? })
    }

    /// Those of the ipc namespace that the emissary is in.
    pub fn elsewhere(emissary: &mut Emissary, files: &Collector) -> Result<Self, CollectError> {
        let directory = directory_of(emissary).map_err(|errno| failed(errno.into()))?;
        Self::list(Some(directory), files)
    }

    fn list(directory: Option<OwnedFd>, files: &Collector) -> Result<Self, CollectError> {
        let mut found = Self { directory, names: Vec::new(), unseen: false };
        let Some(path) = found.path() else { return Ok(found) };
        for entry in fs::read_dir(path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            if !files.knows_message_queue((metadata.dev(), metadata.ino())) {
                found.names.push(entry.file_name().as_bytes().to_vec());
            }
        }
        Ok(found)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    fn path(&self) -> Option<PathBuf> {
        let number = self.directory.as_ref()?.as_raw_fd();
        Some(PathBuf::from(format!("/proc/self/fd/{number}")))
    }

    /// Records those that are the job's, or may be.
    pub fn collect(
        &self,
        root: Pid,
        acquaintances: &mut Acquaintances<'_>,
        files: &mut Collector,
    ) -> Result<(), CollectError> {
        let Some(directory) = self.path() else { return Ok(()) };
        for name in &self.names {
            let path = directory.join(std::ffi::OsStr::from_bytes(name));
            let metadata = match fs::metadata(&path) {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            // Nobody tells who made it.
            let claims =
                Claims { changed: metadata.ctime(), owner: metadata.uid(), ..Claims::default() };
            let is_known = match acquaintances.judge(&claims) {
                Whose::Job => true,
                Whose::Perhaps => false,
                Whose::Others | Whose::Namesake(_) | Whose::Both { .. } => continue,
            };
            files.add_message_queue(name, &path, (root, is_known))?;
        }
        Ok(())
    }
}

/// The file system where systems mount it.
fn mounted() -> Result<OwnedFd, Errno> {
    let directory = File::open("/dev/mqueue")
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    match fstatfs(&directory)?.filesystem_type() {
        MAGIC => Ok(directory.into()),
        _ => Err(Errno::ENODEV),
    }
}

/// The file system of the namespace that the emissary is in, as [`message_queue::directory`].
fn directory_of(emissary: &mut Emissary) -> Result<OwnedFd, Errno> {
    emissary.put(message_queue::FILE_SYSTEM.to_bytes_with_nul());
    let room = emissary.room();
    let opened = emissary.call(libc::SYS_fsopen, &[room, 0])?.cast_unsigned();
    let create = message_queue::CREATE_FILE_SYSTEM;
    emissary.call(libc::SYS_fsconfig, &[opened, create, 0, 0, 0])?;
    let mounted = emissary.call(libc::SYS_fsmount, &[opened, 0, 0])?;
    let number = i32::try_from(mounted).map_err(|_| Errno::EOVERFLOW)?;
    let agent = descriptor::pidfd_open(emissary.agent())?;
    let directory = descriptor::pidfd_getfd(agent, number)?;
    for number in [opened, mounted.cast_unsigned()] {
        emissary.call(libc::SYS_close, &[number])?;
    }
    Ok(directory)
}

const fn failed(source: io::Error) -> CollectError {
    CollectError::ListMessageQueues { source }
}
