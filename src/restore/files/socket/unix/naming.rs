//! Gives sockets the names that they had, and their files their places.
//!
//! `getsockname` shows the very words that were given to `bind`: a relative path, a path whose file was
//! renamed or removed since, one that another file has now. So a name is bound in a directory of our own
//! that a child has made its root, and the file is moved from there to where it is to be; what stands
//! there by then, a file that no socket is behind any more, is replaced in the same step. Until that
//! nobody else can connect.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open, renameat};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, stat, umask};
use nix::unistd::{Gid, Uid, chdir, chroot, dup3, fchownat, mkdtemp};

use super::duplicate;
use super::stand_in::act_apart;
use crate::model::id::Bytes;
use crate::sys::socket;

/// Bytes of `sun_path`.
const NAME_LIMIT: usize = 108;

/// The file of a socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct SocketFile<'a> {
    /// Where it is to be.
    pub path: &'a Path,
    /// Permission bits.
    pub mode: u32,
    /// Its owner and group.
    pub owner: (u32, u32),
}

/// How a socket with a name is reached from here.
#[derive(Debug)]
pub(super) enum Place {
    /// By its abstract name, an address.
    Abstract(Vec<u8>),
    /// Through its file, whether or not a path leads there.
    File(OwnedFd),
}

impl Place {
    /// Another of the same.
    pub fn try_clone(&self) -> Result<Self, Errno> {
        Ok(match self {
            Self::Abstract(address) => Self::Abstract(address.clone()),
            Self::File(file) => Self::File(duplicate(file)?),
        })
    }

    /// An address to connect or to send to.
    pub fn address(&self) -> Vec<u8> {
        match self {
            Self::Abstract(address) => address.clone(),
            Self::File(file) => {
                let link = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
                address_of(&Bytes(link.into_bytes()))
            }
        }
    }
}

/// The call that failed, and why.
pub(super) type Failed = (&'static str, Errno);

/// A `struct sockaddr_un` for a name. A path is ended by NUL where there is room.
pub(in crate::restore::files) fn address_of(name: &Bytes) -> Vec<u8> {
    let family = u16::try_from(libc::AF_UNIX).unwrap_or(1);
    let mut address = family.to_ne_bytes().to_vec();
    address.extend(&name.0);
    if is_path(name) && name.0.len() < NAME_LIMIT {
        address.push(0);
    }
    address
}

/// Whether a name is a path.
pub(in crate::restore::files) fn is_path(name: &Bytes) -> bool {
    name.0.first().is_some_and(|byte| *byte != 0)
}

/// Gives `socket` a name, and that name's file, if it has one, its place.
pub(super) fn bind(
    socket: &OwnedFd,
    name: &Bytes,
    file: Option<SocketFile<'_>>,
) -> Result<Place, Failed> {
    if !is_path(name) {
        let address = address_of(name);
        socket::bind(socket, &address).map_err(|errno| ("bind", errno))?;
        return Ok(Place::Abstract(address));
    }
    let beside = file.and_then(|file| file.path.parent()).map(Path::to_owned);
    let beside = beside.unwrap_or_else(std::env::temp_dir);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&beside)
        .map_err(|error| ("mkdir", Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))))?;
    let room = mkdtemp(&beside.join(".rckpt-XXXXXX")).map_err(|errno| ("mkdtemp", errno))?;
    let outcome = bind_in(&room, socket, name, file);
    let removed = fs::remove_dir_all(&room)
        .map_err(|error| ("rmdir", Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))));
    let place = outcome?;
    removed?;
    Ok(place)
}

fn bind_in(
    room: &Path,
    socket: &OwnedFd,
    name: &Bytes,
    file: Option<SocketFile<'_>>,
) -> Result<Place, Failed> {
    let path_only = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let parent = file.and_then(|file| file.path.parent()).unwrap_or(room);
    let parent = open(parent, path_only, Mode::empty()).map_err(|errno| ("open", errno))?;
    // The child puts the socket's own file in the place of this.
    let mut found = open(room, path_only, Mode::empty()).map_err(|errno| ("open", errno))?;
    act_apart(|| {
        enter(room)?;
        let name = name.as_path();
        let start = starting_point(name);
        make_directories(&start)?;
        chdir(&start)?;
        make_directories(name.parent().unwrap_or(Path::new("")))?;
        umask(Mode::empty());
        socket::bind(socket, &address_of(&Bytes::from(name)))?;
        let made = open(name, path_only | OFlag::O_NOFOLLOW, Mode::empty())?;
        dup3(&made, &mut found, OFlag::O_CLOEXEC)?;
        match file {
            None => Ok(()),
            Some(file) => put_in_place(name, file, &parent),
        }
    })
    .map_err(|errno| ("bind", errno))?;
    Ok(Place::File(found))
}

/// Gives the file at `name` its owner, its permissions and its place under `parent`.
fn put_in_place(name: &Path, file: SocketFile<'_>, parent: &OwnedFd) -> Result<(), Errno> {
    let found = stat(name)?;
    if (found.st_uid, found.st_gid) != file.owner {
        let (uid, gid) = (Uid::from_raw(file.owner.0), Gid::from_raw(file.owner.1));
        fchownat(AT_FDCWD, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    }
    let mode = Mode::from_bits_truncate(file.mode);
    fchmodat(AT_FDCWD, name, mode, FchmodatFlags::FollowSymlink)?;
    renameat(AT_FDCWD, name, parent, file.path.file_name().unwrap_or_default())
}

/// Makes `room` the caller's root directory. Who may not do that as it is may in a user namespace.
fn enter(room: &Path) -> Result<(), Errno> {
    match chroot(room) {
        Err(Errno::EPERM) => {
            unshare(CloneFlags::CLONE_NEWUSER)?;
            chroot(room)
        }
        outcome => outcome,
    }
}

/// A directory from which the relative path `name` stays below the root: as deep as it climbs.
fn starting_point(name: &Path) -> PathBuf {
    let climbs = name.components().filter(|part| *part == Component::ParentDir).count();
    let mut start = PathBuf::from("/");
    start.extend(std::iter::repeat_n("down", climbs));
    start
}

fn make_directories(path: &Path) -> Result<(), Errno> {
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    fs::create_dir_all(path)
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};

    use super::*;

    fn stream() -> OwnedFd {
        socket::create(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap()
    }

    #[test]
    fn a_name_is_kept_word_by_word_wherever_the_file_is() {
        for name in ["/no/such/directory/name", "name", "../../up/./name"] {
            let socket = stream();
            let name = Bytes::from(name.as_bytes());
            let place = bind(&socket, &name, None).unwrap();
            assert_eq!(socket::local_address(&socket).unwrap(), address_of(&name));
            socket::listen(&socket, 1).unwrap();
            socket::connect(stream(), &place.address()).unwrap();
        }
    }

    #[test]
    fn a_file_gets_its_place_and_permissions_and_replaces_what_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        for mode in [0o640, 0o755] {
            let file = SocketFile { path: &path, mode, owner: own_ids() };
            bind(&stream(), &Bytes::from(&b"old/name"[..]), Some(file)).unwrap();
            let found = fs::metadata(&path).unwrap();
            assert!(found.file_type().is_socket());
            assert_eq!(found.permissions().mode() & 0o777, mode);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    fn own_ids() -> (u32, u32) {
        (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
    }
}
