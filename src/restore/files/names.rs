//! Whether the job's unix sockets can have their names here, and whether those outside that it sends to
//! are there. Nothing is changed: an abstract name is tried and given back at once.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use super::decide::Problem;
use super::judge::{FileType, ProblemKind};
use super::socket::{address_of, has_listener, is_accepted, is_path, unix_records};
use crate::model::id::Bytes;
use crate::model::job::Job;
use crate::model::socket::{UnixBinding, UnixConnection};
use crate::sys::{socket, unix_diag};

/// What stands in the way of the names of `job`. `place_of` tells where a path has moved.
pub(super) fn problems(job: &Job, place_of: impl Fn(&Bytes) -> Bytes) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut check = |path: Bytes, outcome: Result<(), ProblemKind>| {
        if let Err(kind) = outcome {
            problems.push(Problem { path, kind });
        }
    };
    for (_, record, unix) in unix_records(job) {
        let accepted_alone = is_accepted(record, unix) && !has_listener(job, record, unix);
        match &unix.binding {
            UnixBinding::File { path, .. } => {
                let path = place_of(path);
                check(path.clone(), check_place(path.as_path()));
            }
            UnixBinding::None if !accepted_alone => {}
            _ if is_path(&unix.name) => {}
            _ => check(shown(&unix.name), try_name(record.kind, &unix.name)),
        }
        if let UnixConnection::Outside { name } = &unix.connection {
            check(shown(name), try_receiver(name));
        }
    }
    problems
}

/// An abstract name must be free in the network namespace, which the job shares with everybody.
fn try_name(kind: i32, name: &Bytes) -> Result<(), ProblemKind> {
    let outcome = socket::create(libc::AF_UNIX, kind, 0)
        .and_then(|socket| socket::bind(socket, &address_of(name)));
    if outcome == Err(Errno::EADDRINUSE) { Err(ProblemKind::NameTaken) } else { Ok(()) }
}

/// A file must not be there, or be one that no socket is behind any more.
fn check_place(path: &Path) -> Result<(), ProblemKind> {
    // Missing directories are made: some programs have one for a socket alone, and remove it.
    let parent = path.ancestors().skip(1).find(|parent| parent.exists());
    access(parent.unwrap_or(Path::new("/")), AccessFlags::W_OK | AccessFlags::X_OK)
        .map_err(|errno| ProblemKind::NoPlace { reason: errno.to_string() })?;
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        let (recorded, found) = (FileType(libc::S_IFSOCK), FileType(found.mode()));
        return Err(ProblemKind::AnotherType { recorded, found });
    }
    let is_it = |info: &unix_diag::UnixSocketInfo| {
        info.file.is_some_and(|(number, _)| u64::from(number) == found.ino())
    };
    let known = unix_diag::unix_sockets().unwrap_or_default();
    if known.iter().any(is_it) { Err(ProblemKind::SocketInUse) } else { Ok(()) }
}

/// Whether somebody receives datagrams there. Connecting sends none.
fn try_receiver(name: &Bytes) -> Result<(), ProblemKind> {
    let outcome = socket::create(libc::AF_UNIX, libc::SOCK_DGRAM, 0)
        .and_then(|socket| socket::connect(socket, &address_of(name)));
    outcome.map_err(|errno| ProblemKind::NoReceiver { reason: errno.to_string() })
}

/// A name with @ for the NUL of an abstract one.
fn shown(name: &Bytes) -> Bytes {
    match name.0.strip_prefix(&[0]) {
        Some(rest) => Bytes(format!("@{}", rest.escape_ascii()).into_bytes()),
        None => name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn names_that_others_have_are_found() {
        let name = Bytes(format!("\0names-{}", std::process::id()).into_bytes());
        assert_eq!(try_name(libc::SOCK_STREAM, &name), Ok(()));
        let other = socket::create(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        socket::bind(&other, &address_of(&name)).unwrap();
        assert_eq!(try_name(libc::SOCK_STREAM, &name), Err(ProblemKind::NameTaken));
        assert_eq!(try_name(libc::SOCK_DGRAM, &name), Ok(()));
        assert!(try_receiver(&name).is_err());
    }

    #[test]
    fn a_file_may_be_there_when_nobody_uses_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert_eq!(check_place(&path), Ok(()));
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(check_place(&path), Err(ProblemKind::SocketInUse));
        drop(listener);
        assert_eq!(check_place(&path), Ok(()));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert!(matches!(check_place(&path), Err(ProblemKind::AnotherType { .. })));
        assert_eq!(check_place(&directory.path().join("missing/socket")), Ok(()));
    }
}
