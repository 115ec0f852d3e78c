//! Names of unix sockets, and the files that lead to them.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use crate::model::id::Bytes;
use crate::model::socket::UnixBinding;
use crate::sys::unix_diag::UnixSocketInfo;

/// A name as records keep it: a path without the NUL that ends it.
pub(super) fn recorded(name: &[u8]) -> Bytes {
    let path = name.first().is_some_and(|byte| *byte != 0);
    Bytes::from(if path { name.strip_suffix(&[0]).unwrap_or(name) } else { name })
}

/// The name in a `struct sockaddr_un`; empty without one.
pub(super) fn of_address(address: &[u8]) -> Bytes {
    recorded(address.get(size_of::<libc::sa_family_t>()..).unwrap_or_default())
}

/// How a socket that was bound came by its name. A relative path was relative to the working directory
/// of some process, one of `directories` unless that has changed.
pub(super) fn binding(info: &UnixSocketInfo, directories: &[PathBuf]) -> UnixBinding {
    let name = recorded(&info.name);
    let Some((number, _)) = info.file else { return UnixBinding::Name };
    let mut places = directories.iter().map(|directory| directory.join(name.as_path()));
    let found = places.find_map(|place| find(&place, u64::from(number)));
    found.map_or(UnixBinding::Name, |(path, facts)| UnixBinding::File {
        path: Bytes::from(path),
        mode: facts.mode() & 0o7777,
        uid: facts.uid(),
        gid: facts.gid(),
    })
}

/// The working directories of some processes, each once.
pub(super) fn working_directories(pids: impl Iterator<Item = Pid>) -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> =
        pids.filter_map(|pid| fs::read_link(format!("/proc/{pid}/cwd")).ok()).collect();
    directories.sort_unstable();
    directories.dedup();
    directories
}

/// The file of a socket: at `place`, or under another name beside it (some programs bind a temporary
/// name and rename it when they are ready).
fn find(place: &Path, number: u64) -> Option<(PathBuf, Metadata)> {
    let facts_of = |path: &Path| {
        let is_it = |facts: &Metadata| facts.file_type().is_socket() && facts.ino() == number;
        fs::symlink_metadata(path).ok().filter(is_it)
    };
    if let Some(facts) = facts_of(place) {
        return Some((place.to_owned(), facts));
    }
    let beside = fs::read_dir(place.parent()?).ok()?;
    beside.flatten().find_map(|entry| {
        let path = entry.path();
        facts_of(&path).map(|facts| (path, facts))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn names_are_recorded_without_the_end_of_a_path() {
        let check = |name: &[u8], expected: &[u8]| assert_eq!(recorded(name).0, expected);
        check(b"", b"");
        check(b"/run/x\0", b"/run/x");
        check(b"/run/x", b"/run/x");
        check(b"\0abstract\0", b"\0abstract\0");
        assert_eq!(of_address(&[1, 0]).0, b"");
        assert_eq!(of_address(&[1, 0, b'x', 0]).0, b"x");
    }

    #[test]
    fn a_file_is_found_where_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("socket");
        let _listener = UnixListener::bind(&place).unwrap();
        let number = u32::try_from(fs::metadata(&place).unwrap().ino()).unwrap();
        let info = UnixSocketInfo {
            name: b"./socket\0".to_vec(),
            file: Some((number, 0)),
            ..UnixSocketInfo::default()
        };
        let path_of = || match binding(&info, &["/nowhere".into(), directory.path().into()]) {
            UnixBinding::File { path, .. } => path.as_path().file_name().map(ToOwned::to_owned),
            _ => None,
        };
        assert_eq!(path_of(), Some("socket".into()));
        fs::rename(&place, directory.path().join("renamed")).unwrap();
        assert_eq!(path_of(), Some("renamed".into()));
        fs::remove_file(directory.path().join("renamed")).unwrap();
        fs::write(&place, "another").unwrap();
        assert_eq!(path_of(), None);
    }
}
