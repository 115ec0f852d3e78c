//! Who outside the job has a socket open, for messages.

use std::fs;
use std::path::Path;

use nix::unistd::Pid;

/// A process that has the socket with this inode open, and its name; `None` when none can be found, as
/// other users' descriptors cannot be seen.
pub(super) fn holder_of(inode: u64) -> Option<(Pid, String)> {
    let wanted = format!("socket:[{inode}]");
    let is_it = |link: fs::DirEntry| {
        fs::read_link(link.path()).is_ok_and(|target| target == Path::new(&wanted))
    };
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(links) = fs::read_dir(process.path().join("fd")) else { continue };
        if links.flatten().any(is_it) {
            let name = fs::read(process.path().join("comm")).unwrap_or_default();
            let name = String::from_utf8_lossy(&name).trim_end().to_owned();
            return Some((Pid::from_raw(pid), name));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn who_has_a_socket_open_is_found() {
        let socket = UnixDatagram::unbound().unwrap();
        let file = fs::File::from(std::os::fd::OwnedFd::from(socket));
        let inode = file.metadata().unwrap().ino();
        let found = holder_of(inode).map(|(pid, _)| pid);
        assert_eq!(found, Some(nix::unistd::getpid()));
        drop(file);
        assert_eq!(holder_of(inode), None);
    }
}
