//! Names by which records refer to each other, and names that the kernel gives.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A process or thread id as the job itself sees it, in the innermost pid namespace it lives in.
/// Ids as rckpt sees them are `nix::unistd::Pid`; `dump` translates between the two.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Pid(pub i32);

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! record_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

record_id!(
    /// An address space (`mm_struct`): index into [`crate::model::job::Job::address_spaces`].
    MmId
);
record_id!(
    /// A table of descriptors (`files_struct`): index into [`crate::model::job::Job::fd_tables`].
    FdTableId
);
record_id!(
    /// A working directory, root and umask (`fs_struct`): index into [`crate::model::job::Job::fs`].
    FsId
);
record_id!(
    /// An open file description (`struct file`): index into [`crate::model::job::Job::open_files`].
    OpenFileId
);
record_id!(
    /// A file as such (`struct inode`): index into [`crate::model::job::Job::inodes`].
    InodeId
);
record_id!(
    /// A pipe or FIFO buffer: index into [`crate::model::job::Job::pipes`].
    PipeId
);
record_id!(
    /// A socket: index into [`crate::model::job::Job::sockets`].
    SocketId
);
record_id!(
    /// A pseudo-terminal of the job's own: index into [`crate::model::terminal::Terminals::own`].
    TerminalId
);
record_id!(
    /// A POSIX message queue: index into [`crate::model::ipc::Ipc::posix_queues`].
    PosixQueueId
);
record_id!(
    /// A body of page data in the image: an address space, or the content of an inode.
    ObjectId
);

/// A name that the kernel holds: any bytes but NUL, never assumed to be UTF-8.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    /// The bytes as a path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The bytes as the operating system's string.
    #[must_use]
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl From<PathBuf> for Bytes {
    fn from(path: PathBuf) -> Self {
        Self(path.into_os_string().into_vec())
    }
}

impl From<&Path> for Bytes {
    fn from(path: &Path) -> Self {
        Self(path.as_os_str().as_bytes().to_vec())
    }
}

impl From<OsString> for Bytes {
    fn from(name: OsString) -> Self {
        Self(name.into_vec())
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(&self.0).fmt(f)
    }
}
