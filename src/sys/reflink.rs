//! Copies of files that share their blocks (FICLONE): made in one step by file systems that can, such as
//! btrfs and XFS, and changed by nobody afterwards.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;

/// `_IOW(0x94, 9, int)`, ioctl_ficlonerange(2).
const FICLONE: libc::c_ulong = 0x4004_9409;

/// A copy of `file` without a name, on the file system of `directory`, which must be that of the file.
///
/// # Errors
/// EXDEV when it is another one, EOPNOTSUPP when it cannot do that, and what else the kernel says.
pub fn clone_file(file: &File, directory: &Path) -> io::Result<File> {
    let copy = OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE)
        .open(directory)?;
    // SAFETY: the request takes the number of a descriptor, and both are open for as long as it lasts.
    let outcome = unsafe { libc::ioctl(copy.as_raw_fd(), FICLONE, file.as_raw_fd()) };
    Errno::result(outcome)?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Read;

    use super::clone_file;

    #[test]
    fn a_copy_is_whole_or_refused() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("file");
        fs::write(&path, vec![7; 100_000]).unwrap();
        // Whether the file system can depends on the machine.
        let Ok(mut copy) = clone_file(&File::open(&path).unwrap(), place.path()) else { return };
        fs::write(&path, "changed").unwrap();
        let mut content = Vec::new();
        copy.read_to_end(&mut content).unwrap();
        assert_eq!(content, vec![7; 100_000]);
    }
}
