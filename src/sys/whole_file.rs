//! Files that are whole, or not there, whenever somebody looks: written beside their place under another name.
//! Of one that takes its time nothing is left by whatever ends this process but SIGKILL.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::interruption::Interruption;

/// A file on its way to its name.
#[derive(Debug)]
pub struct NewFile {
    /// The open file.
    pub file: File,
    temporary: PathBuf,
    path: PathBuf,
    interruption: Option<Interruption>,
}

impl NewFile {
    /// Begins a file that will be at `path`, where there must be none; its permissions are `mode` less the umask.
    ///
    /// # Errors
    /// When there is one, or none can be made there.
    pub fn begin(path: &Path, mode: u32) -> io::Result<Self> {
        if path.symlink_metadata().is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let temporary = Self::name_beside(path)?;
        let doomed = temporary.clone();
        // Before there is a file, or a signal might come in between.
        let interruption = Interruption::undone_by(move || remove(&doomed));
        let mut new = Self::make(path, temporary, mode)?;
        new.interruption = Some(interruption);
        Ok(new)
    }

    fn name_beside(path: &Path) -> io::Result<PathBuf> {
        let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.new", std::process::id()));
        Ok(path.with_file_name(hidden))
    }

    fn make(path: &Path, temporary: PathBuf, mode: u32) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        Ok(Self { file, temporary, path: path.to_owned(), interruption: None })
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// When there is another file of that name by now, or the name cannot be given.
    pub fn publish(self) -> io::Result<()> {
        match fs::hard_link(&self.temporary, &self.path) {
            // Not every file system has links.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => self.replace(),
            linked => linked,
        }
    }

    fn replace(&self) -> io::Result<()> {
        fs::rename(&self.temporary, &self.path)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        remove(&self.temporary);
        drop(self.interruption.take());
    }
}

fn remove(path: &Path) {
    // It may have its own name by now.
    fs::remove_file(path).unwrap_or_default();
}

/// Puts a file with these contents at `path`, in the place of one that may be there; what is no regular file (a
/// device, a pipe) is written to. It is a matter of an instant, and signals are left alone. Its permissions are
/// `mode`; `None`: those of any new file.
///
/// # Errors
/// When it cannot be written. What was there before is there still.
pub fn replace(path: &Path, contents: &[u8], mode: Option<u32>) -> io::Result<()> {
    // Where a link leads to is replaced, not the link.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let there = path.metadata().ok();
    if there.as_ref().is_some_and(|there| !there.is_file()) {
        return OpenOptions::new().write(true).open(path)?.write_all(contents);
    }
    let new = NewFile::name_beside(path).and_then(|it| NewFile::make(path, it, 0o666));
    let mut new = match new {
        // A file may be ours in a directory that is not.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && there.is_some() => {
            return fs::write(path, contents);
        }
        new => new?,
    };
    let mode = mode.map(Permissions::from_mode).or(there.map(|there| there.permissions()));
    if let Some(mode) = mode {
        new.file.set_permissions(mode)?;
    }
    new.file.write_all(contents)?;
    new.replace()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::io::{ErrorKind, Write};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::{NewFile, replace};

    #[test]
    fn new_files_are_whole_or_not_there() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("core");
        let names = || fs::read_dir(scratch.path()).unwrap().count();
        drop(NewFile::begin(&path, 0o600).unwrap());
        assert_eq!(names(), 0);
        let mut first = NewFile::begin(&path, 0o600).unwrap();
        let second = NewFile::begin(&path.with_file_name("x"), 0o600).unwrap();
        first.file.write_all(b"whole").unwrap();
        assert!(!path.exists());
        first.publish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(NewFile::begin(&path, 0o600).unwrap_err().kind(), ErrorKind::AlreadyExists);
        drop(second);
        assert_eq!(names(), 1);
    }

    #[test]
    fn files_are_replaced_and_devices_are_not() {
        let scratch = tempfile::tempdir().unwrap();
        let (path, link) = (scratch.path().join("page"), scratch.path().join("link"));
        replace(&path, b"one", None).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        symlink(&path, &link).unwrap();
        replace(&link, b"two", None).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        let mode = || path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o640);
        replace(&path, b"three", Some(0o644)).unwrap();
        assert_eq!(mode(), 0o644);
        replace("/dev/null".as_ref(), b"four", None).unwrap();
        assert!(!std::path::Path::new("/dev/null").is_file());
    }
}
