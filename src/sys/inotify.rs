//! Inotify instances: making them, watching, and what waits to be read.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

use super::fdinfo::{self, InotifyWatch};

/// A new instance, close-on-exec (inotify_init1(2)).
pub fn create() -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes an integer only.
    let result = unsafe { libc::inotify_init1(libc::IN_CLOEXEC) };
    let number = Errno::result(result)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Watches what `path` leads to: the number of the watch (inotify_add_watch(2)).
pub fn add(instance: RawFd, path: &Path, mask: u32) -> Result<i32, Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: `path` is a NUL-terminated string that outlives the call.
    let result = unsafe { libc::inotify_add_watch(instance, path.as_ptr(), mask) };
    Errno::result(result)
}

/// Ends a watch, which is an event, too (inotify_rm_watch(2)).
pub fn remove(instance: RawFd, watch: i32) -> Result<(), Errno> {
    // SAFETY: the call takes integers only.
    let result = unsafe { libc::inotify_rm_watch(instance, watch) };
    Errno::result(result).map(drop)
}

/// Bytes of events that wait to be read (FIONREAD).
pub fn queued(instance: RawFd) -> Result<usize, Errno> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, which `bytes` is.
    let result = unsafe { libc::ioctl(instance, libc::FIONREAD, &raw mut bytes) };
    Errno::result(result)?;
    Ok(usize::try_from(bytes).unwrap_or_default())
}

/// Reads all events that wait and forgets them.
pub fn drain(instance: RawFd) -> Result<(), Errno> {
    loop {
        let waiting = queued(instance)?;
        if waiting == 0 {
            return Ok(());
        }
        let mut events = vec![0_u8; waiting];
        // SAFETY: the kernel writes at most `waiting` bytes, which `events` has.
        let result = unsafe { libc::read(instance, events.as_mut_ptr().cast(), waiting) };
        Errno::result(result)?;
    }
}

/// What fdinfo would show of a watch on what `path` leads to, tried with an instance of our own.
/// Nobody notices that.
pub fn identity(path: &Path) -> Result<Option<InotifyWatch>, Errno> {
    let instance = create()?;
    add(instance.as_raw_fd(), path, libc::IN_DELETE_SELF)?;
    let shown = fs::read(format!("/proc/self/fdinfo/{}", instance.as_raw_fd()))
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    Ok(fdinfo::parse(&shown).ok().and_then(|info| info.inotify.into_iter().next()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_what_a_watch_shows() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = (directory.path().join("one"), directory.path().join("other"));
        fs::write(&one, "").unwrap();
        fs::hard_link(&one, directory.path().join("link")).unwrap();
        fs::write(&other, "").unwrap();
        let file = |path: &Path| identity(path).unwrap().unwrap().file;
        assert_eq!(file(&one), file(&directory.path().join("link")));
        assert_ne!(file(&one), file(&other));
    }

    #[test]
    fn events_are_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let instance = create().unwrap();
        add(instance.as_raw_fd(), directory.path(), libc::IN_CREATE).unwrap();
        fs::write(directory.path().join("new"), "").unwrap();
        assert_ne!(queued(instance.as_raw_fd()).unwrap(), 0);
        drain(instance.as_raw_fd()).unwrap();
        assert_eq!(queued(instance.as_raw_fd()), Ok(0));
    }
}
