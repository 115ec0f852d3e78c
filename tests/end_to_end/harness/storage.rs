//! What a traced command does with files: what is written where, what is brought to the disk, and which names
//! come and go, in the order in which it happens.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::sys::ptrace;
use nix::unistd::Pid;

use super::faults::Call;

/// The longest path, with its zero, as the kernel takes it (PATH_MAX).
const PATH_MAX: usize = 4096;

/// What is written, of which messages tell the length only.
#[derive(Clone, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} bytes", self.0.len())
    }
}

/// A step on the file system. All paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// An empty file is made.
    Create(PathBuf),
    /// Bytes are written to a file.
    Write { path: PathBuf, at: u64, bytes: Bytes },
    /// A file gets this length.
    Length(PathBuf, u64),
    /// The mode of a file is set.
    Mode(PathBuf),
    /// A file or directory is brought to the disk: what was done before the step with the number `since`
    /// is there for sure.
    Sync { path: PathBuf, since: usize },
    /// Something gets another name.
    Rename(PathBuf, PathBuf),
    /// A file gets one more name.
    Link(PathBuf, PathBuf),
    /// A symbolic link is made: what it says, and its name.
    Symlink(PathBuf, PathBuf),
    /// A directory is made.
    MakeDirectory(PathBuf),
    /// A name goes.
    Remove(PathBuf),
}

impl Step {
    /// The file that it changes the contents or the mode of.
    pub fn changed(&self) -> Option<&Path> {
        match self {
            Self::Write { path, .. } | Self::Length(path, _) | Self::Mode(path) => Some(path),
            _ => None,
        }
    }

    /// The file or directory that it brings to the disk.
    pub fn synced(&self) -> Option<&Path> {
        match self {
            Self::Sync { path, .. } => Some(path),
            _ => None,
        }
    }
}

/// The step that a thread is about to take with a call, if it is one; `done` have been taken.
pub fn step_of(thread: Pid, call: &Call, done: usize) -> Option<Step> {
    let [first, second, third] = call.arguments;
    let path = |address| path_at(thread, libc::AT_FDCWD, address);
    let path_from = |directory: u64, address| path_at(thread, number(directory), address);
    match call.number {
        libc::SYS_openat => made(path_from(first, second)?, third),
        libc::SYS_open => made(path(first)?, second),
        libc::SYS_creat => Some(Step::Create(path(first)?)),
        libc::SYS_write => write(thread, first, position(thread, first), second, third),
        libc::SYS_pwrite64 => {
            let at = ptrace::getregs(thread).ok()?.r10;
            write(thread, first, Some(at), second, third)
        }
        libc::SYS_writev => gathered(thread, first, second, third),
        libc::SYS_ftruncate => Some(Step::Length(opened(thread, first)?, second)),
        libc::SYS_fchmod => Some(Step::Mode(opened(thread, first)?)),
        libc::SYS_fsync | libc::SYS_fdatasync => {
            Some(Step::Sync { path: opened(thread, first)?, since: done })
        }
        libc::SYS_rename => Some(Step::Rename(path(first)?, path(second)?)),
        libc::SYS_renameat | libc::SYS_renameat2 => {
            let target = ptrace::getregs(thread).ok()?.r10;
            Some(Step::Rename(path_from(first, second)?, path_from(third, target)?))
        }
        libc::SYS_link => Some(Step::Link(path(first)?, path(second)?)),
        libc::SYS_linkat => {
            let target = ptrace::getregs(thread).ok()?.r10;
            Some(Step::Link(path_from(first, second)?, path_from(third, target)?))
        }
        libc::SYS_symlink => Some(Step::Symlink(text_at(thread, first)?, path(second)?)),
        libc::SYS_symlinkat => {
            Some(Step::Symlink(text_at(thread, first)?, path_from(second, third)?))
        }
        libc::SYS_mkdir => Some(Step::MakeDirectory(path(first)?)),
        libc::SYS_mkdirat => Some(Step::MakeDirectory(path_from(first, second)?)),
        libc::SYS_unlink | libc::SYS_rmdir => Some(Step::Remove(path(first)?)),
        libc::SYS_unlinkat => Some(Step::Remove(path_from(first, second)?)),
        // What the harness does not understand would be missing in what it concludes.
        libc::SYS_fallocate | libc::SYS_truncate | libc::SYS_copy_file_range => {
            panic!("{call:?} is not foreseen")
        }
        _ => None,
    }
}

/// What opening a file makes of it.
fn made(path: PathBuf, flags: u64) -> Option<Step> {
    let has = |flag: i32| flags & u64::from(flag.unsigned_abs()) == u64::from(flag.unsigned_abs());
    let exists = path.symlink_metadata().is_ok();
    if has(libc::O_CREAT) && !exists {
        return Some(Step::Create(path));
    }
    (has(libc::O_TRUNC) && exists).then_some(Step::Length(path, 0))
}

/// Bytes from `address` on go to a file.
fn write(thread: Pid, descriptor: u64, at: Option<u64>, address: u64, length: u64) -> Option<Step> {
    let path = opened(thread, descriptor)?;
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    memory(thread)?.read_exact_at(&mut bytes, address).ok()?;
    Some(Step::Write { path, at: at?, bytes: Bytes(bytes) })
}

/// As [`write`], for pieces that `count` structures at `address` tell of (struct iovec).
fn gathered(thread: Pid, descriptor: u64, address: u64, count: u64) -> Option<Step> {
    let path = opened(thread, descriptor)?;
    let memory = memory(thread)?;
    let mut bytes = Vec::new();
    for index in 0..count {
        let mut pair = [0; 16];
        memory.read_exact_at(&mut pair, address + 16 * index).ok()?;
        let [start, length] = [0, 8].map(|at| {
            u64::from_ne_bytes(pair[at..at + 8].try_into().expect("it is eight bytes long"))
        });
        let mut piece = vec![0; usize::try_from(length).ok()?];
        memory.read_exact_at(&mut piece, start).ok()?;
        bytes.extend(piece);
    }
    Some(Step::Write { path, at: position(thread, descriptor)?, bytes: Bytes(bytes) })
}

/// Where a thread writes to next: the end of a file that is appended to.
fn position(thread: Pid, descriptor: u64) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{thread}/fdinfo/{descriptor}")).ok()?;
    let field = |name| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let flags = i32::from_str_radix(field("flags:")?, 8).ok()?;
    if flags & libc::O_APPEND != 0 {
        return Some(fs::metadata(format!("/proc/{thread}/fd/{descriptor}")).ok()?.len());
    }
    field("pos:")?.parse().ok()
}

/// The file or directory that a descriptor of a thread leads to.
fn opened(thread: Pid, descriptor: u64) -> Option<PathBuf> {
    let link = PathBuf::from(format!("/proc/{thread}/fd/{descriptor}"));
    let kind = link.metadata().ok()?;
    let path = fs::read_link(link).ok()?;
    let on_disk = path.is_absolute() && !path.starts_with("/proc");
    (on_disk && (kind.is_file() || kind.is_dir())).then_some(path)
}

/// The path that lies at `address` in the memory of a thread, seen from a directory it has open.
fn path_at(thread: Pid, directory: i32, address: u64) -> Option<PathBuf> {
    let path = text_at(thread, address)?;
    let from = if directory == libc::AT_FDCWD {
        format!("/proc/{thread}/cwd")
    } else {
        format!("/proc/{thread}/fd/{directory}")
    };
    let whole = if path.is_absolute() { path } else { fs::read_link(from).ok()?.join(path) };
    // The last name may be a link, or not be there.
    let Some((parent, name)) = whole.parent().zip(whole.file_name()) else { return Some(whole) };
    Some(parent.canonicalize().ok()?.join(name))
}

fn text_at(thread: Pid, address: u64) -> Option<PathBuf> {
    let mut bytes = [0; PATH_MAX];
    // What follows may not be mapped.
    let page = usize::try_from(address % 4096).ok()?;
    let mut length = memory(thread)?.read_at(&mut bytes[..PATH_MAX - page], address).ok()?;
    if !bytes[..length].contains(&0) {
        length += memory(thread)?
            .read_at(&mut bytes[length..], address + u64::try_from(length).ok()?)
            .ok()?;
    }
    let end = bytes[..length].iter().position(|byte| *byte == 0)?;
    Some(Path::new(OsStr::from_bytes(&bytes[..end])).to_owned())
}

fn memory(thread: Pid) -> Option<File> {
    File::open(format!("/proc/{thread}/mem")).ok()
}

/// A descriptor as it is passed: the upper half of the register means nothing.
fn number(register: u64) -> i32 {
    let [a, b, c, d, ..] = register.to_ne_bytes();
    i32::from_ne_bytes([a, b, c, d])
}
