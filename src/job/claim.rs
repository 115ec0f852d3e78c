//! Who is in charge of a job's directory: one supervisor at most, on whatever machine.
//!
//! The file `DIR/lock` is locked as long as the supervisor lives, and says who that is. flock(2) ends
//! with its holder, however that ends, and NFS carries it to the server. On a file system without such
//! locks what the file says must do: a holder on this machine can be looked for, one on another is
//! believed. This file knows nothing of what is done with the directory.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::utsname::uname;
use nix::unistd::{Pid, getpid};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::sys::procfs;

use super::lock::Locked;
use super::supervisor::seconds_since_1970;
use crate::model::code::{self, Code};

/// The file's name in the job's directory.
pub const LOCK_FILE: &str = "lock";
/// What it says is far shorter.
const LIMIT: u64 = 4096;

/// The supervisor that is in charge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Name of its machine.
    pub host: String,
    /// Its number there.
    pub pid: i32,
    /// When it took charge, in seconds since 1970.
    pub since: i64,
    /// Ticks after the machine's boot at which it was started, to tell it from a later process.
    started: u64,
}

/// Why nobody can be put in charge.
#[derive(Debug, Error)]
pub enum ClaimError {
    /// Another supervisor is.
    #[error("{} is in use by {}", path.display(), name(holder.as_ref()))]
    Held {
        /// The job's directory.
        path: PathBuf,
        /// Who that is, when it has told.
        holder: Option<Holder>,
    },
    /// The lock file cannot be used.
    #[error("cannot lock {}: {source}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
}

impl ClaimError {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Held { .. } => code::requests::DIRECTORY_IN_USE,
            Self::Lock { .. } => code::requests::DIRECTORY_UNUSABLE,
        }
    }
}

fn name(holder: Option<&Holder>) -> String {
    match holder {
        Some(Holder { host, pid, .. }) => format!("rckpt process {pid} on {host}"),
        None => "another rckpt that runs this job".to_owned(),
    }
}

/// A directory taken charge of. Dropping it gives it free.
#[derive(Debug)]
pub struct Claim {
    file: Held,
}

/// The lock file, as far as the file system goes along.
#[derive(Debug)]
enum Held {
    Lock(Locked),
    Word(File),
}

impl Claim {
    /// Takes charge of `directory`.
    ///
    /// # Errors
    /// [`ClaimError::Held`] when another process has.
    pub fn take(directory: &Path) -> Result<Self, ClaimError> {
        let path = directory.join(LOCK_FILE);
        let failed = |source| ClaimError::Lock { path: path.clone(), source };
        let held = |holder| ClaimError::Held { path: directory.to_owned(), holder };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(&path)
            .map_err(failed)?;
        let holder = read(&mut file).map_err(failed)?;
        let file = match Locked::take(file) {
            Ok(lock) => Held::Lock(lock),
            Err((_, Errno::EWOULDBLOCK)) => return Err(held(holder)),
            Err((_, _)) if holder.as_ref().is_some_and(may_live) => return Err(held(holder)),
            Err((file, _)) => Held::Word(file),
        };
        let mut claim = Self { file };
        claim.sign().map_err(failed)?;
        Ok(claim)
    }

    /// Writes who is in charge.
    fn sign(&mut self) -> io::Result<()> {
        let pid = getpid();
        let started = procfs::stat(pid).map_err(io::Error::other)?.starttime;
        let since = seconds_since_1970(SystemTime::now());
        let holder = Holder { host: host()?, pid: pid.as_raw(), since, started };
        let text = serde_json::to_string(&holder).map_err(io::Error::other)?;
        let file = self.file();
        file.rewind()?;
        file.set_len(0)?;
        writeln!(file, "{text}")
    }

    fn file(&mut self) -> &mut File {
        match &mut self.file {
            Held::Lock(lock) => lock,
            Held::Word(file) => file,
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Where locks work the words mean nothing without one; elsewhere the next supervisor on this
        // machine finds their writer gone.
        self.file().set_len(0).unwrap_or_default();
    }
}

/// Who holds `directory` now, as far as its file says; `None` when nobody has signed it.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn holder(directory: &Path) -> io::Result<Option<Holder>> {
    let flags = OFlag::O_NOFOLLOW.bits();
    match OpenOptions::new().read(true).custom_flags(flags).open(directory.join(LOCK_FILE)) {
        Ok(mut file) => read(&mut file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Who holds `directory` now, unless that is known to have ended. `None`, too, when its file cannot be read.
#[must_use]
pub fn living_holder(directory: &Path) -> Option<Holder> {
    holder(directory).ok().flatten().filter(may_live)
}

fn read(file: &mut File) -> io::Result<Option<Holder>> {
    let mut text = Vec::new();
    file.take(LIMIT).read_to_end(&mut text)?;
    // A writer that died in the middle leaves words that say nothing.
    Ok(serde_json::from_slice(&text).ok())
}

/// Whether the holder may still be there, where no lock tells.
fn may_live(holder: &Holder) -> bool {
    if host().is_ok_and(|host| host != holder.host) {
        return true;
    }
    procfs::stat(Pid::from_raw(holder.pid)).is_ok_and(|stat| stat.starttime == holder.started)
}

/// The name of this machine.
fn host() -> io::Result<String> {
    Ok(uname()?.nodename().to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::{Claim, ClaimError, Holder, holder, host, may_live};
    use crate::sys::procfs;

    #[test]
    fn one_at_a_time_is_in_charge_and_says_who() {
        let scratch = tempfile::tempdir().unwrap();
        let claim = Claim::take(scratch.path()).unwrap();
        let error = Claim::take(scratch.path()).unwrap_err();
        let words = format!("rckpt process {} on {}", std::process::id(), host().unwrap());
        assert!(error.to_string().ends_with(&words), "{error}");
        assert!(matches!(error, ClaimError::Held { holder: Some(_), .. }));
        drop(claim);
        assert_eq!(holder(scratch.path()).unwrap(), None);
        Claim::take(scratch.path()).unwrap();
    }

    #[test]
    fn without_locks_the_living_and_the_distant_are_believed() {
        let own = nix::unistd::getpid();
        let started = procfs::stat(own).unwrap().starttime;
        let check = |host: &str, pid: i32, started: u64, expected: bool| {
            let holder = Holder { host: host.to_owned(), pid, since: 0, started };
            assert_eq!(may_live(&holder), expected, "{holder:?}");
        };
        let here = host().unwrap();
        check(&here, own.as_raw(), started, true);
        check(&here, own.as_raw(), started + 1, false);
        check(&here, i32::MAX, started, false);
        check("elsewhere.example", i32::MAX, started, true);
    }
}
