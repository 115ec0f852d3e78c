//! A file or directory that one process has locked (flock(2)). It knows nothing of what it stands for.

use std::fs::File;
use std::mem::forget;
use std::ops::{Deref, DerefMut};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// A locked file. Dropping it gives it free.
#[derive(Debug)]
pub struct Locked(Option<Flock<File>>);

impl Locked {
    /// Locks a file, without waiting for anybody.
    ///
    /// # Errors
    /// EWOULDBLOCK when somebody else has; others where the file system knows no such locks. The file is
    /// given back.
    pub fn take(mut file: File) -> Result<Self, (File, Errno)> {
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Self(Some(lock))),
                Err((same, Errno::EINTR)) => file = same,
                Err(failed) => return Err(failed),
            }
        }
    }
}

impl Deref for Locked {
    type Target = File;

    fn deref(&self) -> &File {
        self.0.as_ref().expect("it is held until it is dropped")
    }
}

impl DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut File {
        self.0.as_mut().expect("it is held until it is dropped")
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        if let Some(Err((lock, _))) = self.0.take().map(Flock::unlock) {
            // A server may be out of reach. The end of this process gives it free.
            forget(lock);
        }
    }
}
