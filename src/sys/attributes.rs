//! Extended attributes of files (xattr(7)) that belong to their users: the names that begin with `user.`.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

use crate::model::number::to_usize;

/// Names that any owner of a file may give.
const USERS: &[u8] = b"user.";

/// A name, and the value that goes with it.
pub type Attribute = (Vec<u8>, Vec<u8>);

/// Names and values of what `path` has, through links.
///
/// # Errors
/// As listxattr(2) and getxattr(2). A file system that has none gives none.
pub fn of(path: &Path) -> Result<Vec<Attribute>, Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let list = |buffer: *mut libc::c_char, size: usize| {
        // SAFETY: the path ends with NUL, and the kernel writes at most `size` bytes to the buffer.
        unsafe { libc::listxattr(path.as_ptr(), buffer, size) }
    };
    let names = match whole(&list) {
        Err(Errno::EOPNOTSUPP) => return Ok(Vec::new()),
        outcome => outcome?,
    };
    let mut found = Vec::new();
    for name in names.split_inclusive(|byte| *byte == 0).filter(|name| name.starts_with(USERS)) {
        let name = CStr::from_bytes_with_nul(name).map_err(|_| Errno::EINVAL)?;
        let get = |buffer: *mut libc::c_char, size: usize| {
            // SAFETY: both strings end with NUL, and the kernel writes at most `size` bytes to the buffer.
            unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), buffer.cast(), size) }
        };
        found.push((name.to_bytes().to_vec(), whole(&get)?));
    }
    Ok(found)
}

/// What a call gives that tells its length when there is no room.
fn whole(call: &dyn Fn(*mut libc::c_char, usize) -> isize) -> Result<Vec<u8>, Errno> {
    let length = Errno::result(call(std::ptr::null_mut(), 0))?;
    let mut bytes = vec![0_u8; usize::try_from(length).unwrap_or_default()];
    if bytes.is_empty() {
        return Ok(bytes);
    }
    let length = Errno::result(call(bytes.as_mut_ptr().cast(), bytes.len()))?;
    bytes.truncate(to_usize(u64::try_from(length).unwrap_or_default()));
    Ok(bytes)
}

/// Gives a file an attribute.
///
/// # Errors
/// As fsetxattr(2).
pub fn set(file: impl AsFd, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    let number = file.as_fd().as_raw_fd();
    // SAFETY: the name ends with NUL, and the kernel reads as many bytes of the value as it has.
    let outcome =
        unsafe { libc::fsetxattr(number, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(outcome).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(of(file.path()), Ok(Vec::new()));
        match set(file.as_file(), b"user.note", b"kept") {
            Ok(()) => {
                let expected = vec![(b"user.note".to_vec(), b"kept".to_vec())];
                assert_eq!(of(file.path()), Ok(expected));
            }
            Err(errno) => assert_eq!(errno, Errno::EOPNOTSUPP),
        }
    }
}
