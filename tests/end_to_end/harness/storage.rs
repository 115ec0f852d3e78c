//! What a traced command does with files: which are written, brought to the disk, and get their names, in
//! the order in which it happens.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use super::faults::Call;

/// A step on the file system, as it is about to be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Something is written to a file, or its mode or length set.
    Write(PathBuf),
    /// A file or directory is brought to the disk.
    Sync(PathBuf),
    /// Something gets another name.
    Rename(PathBuf, PathBuf),
}

/// The step that a thread is about to take with a call, if it is one.
pub fn step_of(thread: Pid, call: &Call) -> Option<Step> {
    let [first, second, _] = call.arguments;
    let opened = || fs::read_link(format!("/proc/{thread}/fd/{first}")).ok();
    match call.number {
        libc::SYS_write
        | libc::SYS_pwrite64
        | libc::SYS_writev
        | libc::SYS_ftruncate
        | libc::SYS_fallocate
        | libc::SYS_fchmod => opened().map(Step::Write),
        libc::SYS_fsync | libc::SYS_fdatasync => opened().map(Step::Sync),
        libc::SYS_rename => Some(Step::Rename(path_at(thread, first)?, path_at(thread, second)?)),
        _ => None,
    }
}

/// The path that lies at `address` in the memory of a thread.
fn path_at(thread: Pid, address: u64) -> Option<PathBuf> {
    let mut bytes = [0; 512];
    let memory = File::open(format!("/proc/{thread}/mem")).ok()?;
    let length = memory.read_at(&mut bytes, address).ok()?;
    let end = bytes[..length].iter().position(|byte| *byte == 0)?;
    Some(Path::new(OsStr::from_bytes(&bytes[..end])).to_owned())
}
