//! Single steps on the file system that several files of this room take, with the room's errors.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;

use super::error::DirectoryError;

/// Opens for reading what must not be a symbolic link.
pub(super) fn open_private(path: &Path, flags: OFlag) -> io::Result<File> {
    let flags = flags | OFlag::O_NOFOLLOW;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

/// Gives a directory another name.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), DirectoryError> {
    fs::rename(from, to).map_err(|source| DirectoryError::Rename {
        from: from.to_owned(),
        to: to.to_owned(),
        source,
    })
}

/// Brings the entries of a directory to the disk.
pub(super) fn sync_directory(path: &Path) -> Result<(), DirectoryError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|source| DirectoryError::Sync { path: path.to_owned(), source })
}

/// The directories that are not there yet of those that `path` goes through, it first.
pub(super) fn missing(path: &Path) -> Vec<&Path> {
    let named = path.ancestors().filter(|ancestor| !ancestor.as_os_str().is_empty());
    named.take_while(|ancestor| ancestor.symlink_metadata().is_err()).collect()
}

/// Brings the names of these directories to the disk. Where those above may not be read, that is left to the
/// kernel, which does it in its own time.
pub(super) fn sync_names(made: &[&Path]) -> Result<(), DirectoryError> {
    for directory in made {
        let above = directory.parent().filter(|above| !above.as_os_str().is_empty());
        match sync_directory(above.unwrap_or(Path::new("."))) {
            Err(DirectoryError::Sync { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied => {}
            outcome => outcome?,
        }
    }
    Ok(())
}

/// Removes a directory and everything in it, if it is there. A file that somebody has open stays in it on some
/// file systems, under a name of their own (NFS: `.nfs…`), until it is closed; then the directory stays, too,
/// as a leftover for the next writer.
pub(super) fn remove_tree(path: &Path) -> Result<(), DirectoryError> {
    match gone(fs::remove_dir_all(path)) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        outcome => {
            outcome.map_err(|source| DirectoryError::Remove { path: path.to_owned(), source })
        }
    }
}

/// That something is gone already is as good as having removed it.
pub(super) fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
