//! What kind of thing an open file description is, judged by what /proc and `stat` say.
//!
//! A pure function; looking into the thing comes later.

use super::refusal::RefusalKind;
use super::scan::LONG_PATH;

/// The kinds told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// A regular file of any file system, memory files included.
    Regular,
    /// A directory.
    Directory,
    /// Opened with O_PATH.
    Path,
    /// A pipe without a name.
    Pipe,
    /// A FIFO.
    Fifo,
    /// null, zero, full, random, urandom.
    Device,
    /// /dev/tty.
    ControllingTerminal,
    /// The master of a pseudo-terminal.
    TerminalMaster,
    /// A terminal by its own name.
    Terminal,
    /// A socket.
    Socket,
    /// `eventfd`.
    EventFd,
    /// `timerfd_create`.
    TimerFd,
    /// `signalfd`.
    SignalFd,
    /// `epoll_create`.
    Epoll,
    /// `inotify_init`.
    Inotify,
    /// `io_uring_setup`.
    IoUring,
    /// `pidfd_open`.
    PidFd,
    /// Something that cannot be saved.
    Refused(RefusalKind),
}

/// Judges a description by the target of its link in /proc, `st_mode`, `st_rdev` and its flags.
pub(super) fn classify(link: &[u8], mode: u32, rdev: u64, flags: u32) -> Class {
    if let Some(name) = link.strip_prefix(b"anon_inode:") {
        return anonymous(name);
    }
    let opened_as_path = flags & libc::O_PATH.cast_unsigned() != 0;
    match mode & libc::S_IFMT {
        libc::S_IFIFO if link.starts_with(b"pipe:[") => Class::Pipe,
        libc::S_IFSOCK if link.starts_with(b"socket:[") => Class::Socket,
        _ if link.starts_with(b"pidfd:") => Class::PidFd,
        _ if !link.starts_with(b"/") => Class::Refused(not_a_path(link)),
        _ if opened_as_path => Class::Path,
        libc::S_IFREG => Class::Regular,
        libc::S_IFDIR => Class::Directory,
        libc::S_IFIFO => Class::Fifo,
        libc::S_IFCHR => character_device(link, rdev),
        libc::S_IFBLK => Class::Refused(RefusalKind::BlockDevice),
        _ => Class::Refused(RefusalKind::UnknownFile { mode }),
    }
}

fn anonymous(name: &[u8]) -> Class {
    Class::Refused(match name {
        b"[eventfd]" => return Class::EventFd,
        b"[timerfd]" => return Class::TimerFd,
        b"[signalfd]" => return Class::SignalFd,
        b"[eventpoll]" => return Class::Epoll,
        b"inotify" | b"[inotify]" => return Class::Inotify,
        b"[fanotify]" => RefusalKind::Fanotify,
        b"[pidfd]" => return Class::PidFd,
        b"[io_uring]" => return Class::IoUring,
        b"[perf_event]" => RefusalKind::PerfEvent,
        b"[userfaultfd]" => RefusalKind::UserFault,
        name if name.starts_with(b"bpf") || name.starts_with(b"[bpf") => RefusalKind::Bpf,
        _ => RefusalKind::UnknownKernelObject,
    })
}

/// Links that are no paths: `net:[4026531840]`, `(unreachable)/x`.
fn not_a_path(link: &[u8]) -> RefusalKind {
    const NAMESPACES: [&[u8]; 8] =
        [b"cgroup:", b"ipc:", b"mnt:", b"net:", b"pid:", b"time:", b"user:", b"uts:"];
    if link == LONG_PATH {
        RefusalKind::PathTooLong
    } else if link.starts_with(b"(unreachable)") {
        RefusalKind::NotReachable
    } else if NAMESPACES.iter().any(|prefix| link.starts_with(prefix)) {
        RefusalKind::Namespace
    } else {
        RefusalKind::UnknownKernelObject
    }
}

/// Device numbers are those of Documentation/admin-guide/devices.txt.
fn character_device(link: &[u8], rdev: u64) -> Class {
    const ACCELERATORS: [&[u8]; 5] =
        [b"/dev/nvidia", b"/dev/dri/", b"/dev/kfd", b"/dev/accel", b"/dev/infiniband/"];
    let (major, minor) = (nix::sys::stat::major(rdev), nix::sys::stat::minor(rdev));
    match (major, minor) {
        (1, 3 | 5 | 7 | 8 | 9) => Class::Device,
        (5, 0) => Class::ControllingTerminal,
        (5, 2) => Class::TerminalMaster,
        // Consoles and serial lines; the console; pseudo-terminals.
        (4, _) | (5, 1) | (136..=143, _) => Class::Terminal,
        _ if ACCELERATORS.iter().any(|prefix| link.starts_with(prefix)) => {
            Class::Refused(RefusalKind::Accelerator)
        }
        _ => Class::Refused(RefusalKind::CharacterDevice { major, minor }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(link: &str, mode: u32, device: (u64, u64), expected: Class) {
        let rdev = nix::sys::stat::makedev(device.0, device.1);
        assert_eq!(classify(link.as_bytes(), mode, rdev, 0), expected, "{link}");
    }

    #[test]
    fn every_kind_is_told_from_the_others() {
        let none = (0, 0);
        check("/tmp/x", libc::S_IFREG | 0o644, none, Class::Regular);
        check("/memfd:x (deleted)", libc::S_IFREG | 0o777, none, Class::Regular);
        check("/tmp", libc::S_IFDIR | 0o755, none, Class::Directory);
        check("pipe:[12]", libc::S_IFIFO | 0o600, none, Class::Pipe);
        check("/tmp/fifo", libc::S_IFIFO | 0o600, none, Class::Fifo);
        check("socket:[12]", libc::S_IFSOCK | 0o777, none, Class::Socket);
        check("anon_inode:[eventfd]", 0o600, none, Class::EventFd);
        check("anon_inode:[timerfd]", 0o600, none, Class::TimerFd);
        check("anon_inode:[signalfd]", 0o600, none, Class::SignalFd);
        check("anon_inode:[eventpoll]", 0o600, none, Class::Epoll);
        check("anon_inode:inotify", 0o600, none, Class::Inotify);
        check("anon_inode:[pidfd]", 0o600, none, Class::PidFd);
        check("anon_inode:[io_uring]", 0o600, none, Class::IoUring);
        check("pidfd:[12]", libc::S_IFREG | 0o600, none, Class::PidFd);
        check("/dev/null", libc::S_IFCHR | 0o666, (1, 3), Class::Device);
        check("/dev/tty", libc::S_IFCHR | 0o666, (5, 0), Class::ControllingTerminal);
        check("/dev/ptmx", libc::S_IFCHR | 0o666, (5, 2), Class::TerminalMaster);
        check("/dev/pts/4", libc::S_IFCHR | 0o620, (136, 4), Class::Terminal);
    }

    #[test]
    fn what_cannot_be_saved_is_named() {
        let none = (0, 0);
        let refused = |link, mode, device, kind| check(link, mode, device, Class::Refused(kind));
        refused("anon_inode:[fanotify]", 0o600, none, RefusalKind::Fanotify);
        refused("anon_inode:bpf-map", 0o600, none, RefusalKind::Bpf);
        refused("anon_inode:[new]", 0o600, none, RefusalKind::UnknownKernelObject);
        refused("net:[4026531840]", libc::S_IFREG | 0o444, none, RefusalKind::Namespace);
        refused("(unreachable)/x", libc::S_IFREG | 0o444, none, RefusalKind::NotReachable);
        refused("/dev/nvidia0", libc::S_IFCHR, (195, 0), RefusalKind::Accelerator);
        refused("/dev/vda", libc::S_IFBLK, (254, 0), RefusalKind::BlockDevice);
        refused(
            "/dev/fuse",
            libc::S_IFCHR,
            (10, 229),
            RefusalKind::CharacterDevice { major: 10, minor: 229 },
        );
    }

    #[test]
    fn o_path_wins_over_the_type_of_the_file() {
        let flags = libc::O_PATH.cast_unsigned();
        for mode in [libc::S_IFREG, libc::S_IFDIR, libc::S_IFLNK, libc::S_IFBLK, libc::S_IFSOCK] {
            assert_eq!(classify(b"/x", mode, 0, flags), Class::Path);
        }
    }
}
