//! Makes files again that no path leads to, and those whose content is in the image: empty, with
//! their sizes. The content comes later.

use std::ffi::{CString, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::Mode;

use super::open::open_path;
use crate::model::file::{ANONYMOUS_SHARED_NAME, Inode, InodeKind};
use crate::model::id::Bytes;
use crate::sys::descriptor;

/// A temporary name is tried this often with another number before another directory is taken.
const ATTEMPTS: u32 = 1000;

/// `MFD_EXEC` (Linux 6.3).
const MFD_EXEC: u32 = 0x10;

/// Makes `inode`, which was under `path` or has that name. `temporary` tells that it was opened with
/// O_TMPFILE.
///
/// # Errors
/// As the calls that make files of its type; EINVAL for types that cannot be made.
pub(super) fn make(inode: &Inode, path: &Bytes, temporary: bool) -> io::Result<OwnedFd> {
    match inode.kind {
        InodeKind::Memfd { .. } => memory(&path.0, inode),
        // Made apart: it has a number instead of a descriptor.
        InodeKind::Segment { .. } => Err(Errno::EINVAL.into()),
        InodeKind::AnonymousShared => memory(ANONYMOUS_SHARED_NAME.as_bytes(), inode),
        InodeKind::Linked | InodeKind::MemoryFile | InodeKind::Unlinked => {
            match inode.mode & libc::S_IFMT {
                libc::S_IFREG if temporary => temporary_file(inode, path),
                libc::S_IFREG => unlinked_file(inode, path),
                libc::S_IFDIR => unlinked_directory(path),
                libc::S_IFIFO => unlinked_fifo(inode, path),
                _ => Err(Errno::EINVAL.into()),
            }
        }
    }
}

/// Opens the file under `path`, which is to get its content from the image, emptied.
///
/// # Errors
/// As open(2) and ftruncate(2).
pub(super) fn prepare(inode: &Inode, path: &Path) -> io::Result<OwnedFd> {
    let file = File::from(open_path(path, libc::O_RDWR)?);
    // Once to nothing, so that pages which are not in the image become holes.
    file.set_len(0)?;
    file.set_len(inode.size)?;
    Ok(file.into())
}

fn memory(name: &[u8], inode: &Inode) -> io::Result<OwnedFd> {
    let name = CString::new(name)?;
    let executable = if inode.mode & 0o111 == 0 { 0 } else { MFD_EXEC };
    // Without permission to seal a memfd has the seal against sealing, which is put on later.
    let flags = libc::MFD_ALLOW_SEALING;
    let file = match descriptor::memfd_create(&name, flags | executable) {
        // Before Linux 6.3 all of them are executable, and the flag is not known.
        Err(Errno::EINVAL) => descriptor::memfd_create(&name, flags)?,
        outcome => outcome?,
    };
    sized(file.into(), inode)
}

/// A file without a name, on the file system that it was on.
fn temporary_file(inode: &Inode, path: &Bytes) -> io::Result<OwnedFd> {
    let parent = path.as_path().parent().unwrap_or(Path::new("/"));
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE)
        .open(parent);
    match opened {
        Ok(file) => sized(file, inode),
        Err(_) => unlinked_file(inode, path),
    }
}

/// A file that gets a name and loses it at once: the old one where that is free, else one beside it,
/// or in a directory for temporary files. Where nothing can be written, memory has to do.
fn unlinked_file(inode: &Inode, path: &Bytes) -> io::Result<OwnedFd> {
    let make = |path: &Path| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(path)?;
        fs::remove_file(path)?;
        Ok(file)
    };
    match under_free_name(path, make) {
        Ok(file) => sized(file, inode),
        Err(_) => memory(path.as_path().file_name().unwrap_or_default().as_encoded_bytes(), inode),
    }
}

fn unlinked_directory(path: &Bytes) -> io::Result<OwnedFd> {
    under_free_name(path, |path| {
        fs::DirBuilder::new().mode(0o700).create(path)?;
        let directory = File::open(path)?;
        fs::remove_dir(path)?;
        Ok(directory.into())
    })
}

fn unlinked_fifo(inode: &Inode, path: &Bytes) -> io::Result<OwnedFd> {
    under_free_name(path, |path| {
        nix::unistd::mkfifo(path, Mode::from_bits_truncate(inode.mode & 0o7777 | 0o600))?;
        let fifo =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        fs::remove_file(path)?;
        Ok(fifo.into())
    })
}

/// Calls `make` with the old path and, as long as names are taken or directories cannot be written,
/// with others.
fn under_free_name<Made>(
    path: &Bytes,
    make: impl Fn(&Path) -> io::Result<Made>,
) -> io::Result<Made> {
    let name = path.as_path().file_name().unwrap_or_default();
    let beside = path.as_path().parent().map(Path::to_owned);
    let directories = beside.into_iter().chain([std::env::temp_dir(), PathBuf::from("/dev/shm")]);
    let mut outcome = make(path.as_path());
    for directory in directories {
        for number in 0..ATTEMPTS {
            match outcome {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let mut other = name.as_encoded_bytes().to_vec();
                    other.extend_from_slice(format!(".rckpt-{number}").as_bytes());
                    outcome = make(&directory.join(OsString::from_vec(other)));
                }
                Err(_) => break,
                made => return made,
            }
        }
        if outcome.is_err() {
            // The next directory: any name there will do.
            outcome = Err(io::ErrorKind::AlreadyExists.into());
        }
    }
    outcome
}

fn sized(file: File, inode: &Inode) -> io::Result<OwnedFd> {
    file.set_len(inode.size)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::model::time::TimeSpec;

    fn inode(kind: InodeKind, mode: u32, size: u64) -> Inode {
        Inode {
            kind,
            path: Bytes::default(),
            device: 0,
            number: 0,
            mode,
            rdev: 0,
            size,
            mtime: TimeSpec::default(),
            links: 0,
            build_id: None,
            content: None,
            written: false,
            attributes: Vec::new(),
            ends: None,
        }
    }

    fn check(inode: &Inode, path: &Path, temporary: bool, place: &Path) {
        let made = File::from(make(inode, &Bytes::from(path), temporary).unwrap());
        let metadata = made.metadata().unwrap();
        assert_eq!(metadata.nlink(), 0);
        assert_eq!(metadata.mode() & libc::S_IFMT, inode.mode & libc::S_IFMT);
        if metadata.is_file() {
            assert_eq!(metadata.size(), inode.size);
        }
        let link = fs::read_link(format!("/proc/self/fd/{}", made.as_raw_fd())).unwrap();
        let (link, place) = (link.display().to_string(), place.display().to_string());
        assert!(link.starts_with(&place), "{link} does not begin with {place}");
    }

    #[test]
    fn files_without_a_name_are_made_where_they_were() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path();
        let regular = inode(InodeKind::Unlinked, libc::S_IFREG | 0o644, 10_000);
        check(&regular, &base.join("gone"), false, &base.join("gone"));
        fs::write(base.join("taken"), "").unwrap();
        check(&regular, &base.join("taken"), false, &base.join("taken.rckpt-0"));
        assert!(base.join("taken").exists());
        check(&regular, &base.join("temporary"), true, base);
        check(&regular, &base.join("no/such"), false, &std::env::temp_dir());
        let subdirectory = inode(InodeKind::Unlinked, libc::S_IFDIR | 0o755, 0);
        check(&subdirectory, &base.join("sub"), false, &base.join("sub"));
        let fifo = inode(InodeKind::Unlinked, libc::S_IFIFO | 0o644, 0);
        check(&fifo, &base.join("fifo"), false, &base.join("fifo"));
        assert_eq!(fs::read_dir(base).unwrap().count(), 1);
    }

    #[test]
    fn memory_files_have_their_names() {
        let memfd = inode(InodeKind::Memfd { flags: 0, seals: 0 }, libc::S_IFREG | 0o777, 5000);
        check(&memfd, Path::new("name"), false, Path::new("/memfd:name (deleted)"));
        let anonymous = inode(InodeKind::AnonymousShared, libc::S_IFREG | 0o600, 8192);
        let place = Path::new("/memfd:rckpt-shared-anonymous (deleted)");
        check(&anonymous, Path::new(""), false, place);
    }
}
