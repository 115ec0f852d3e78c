//! Whether a file is still what it was at the checkpoint, and what to do where it is not.
//!
//! Pure functions of what was recorded and what was found. The rules are those that users are told:
//! what grew is cut back, and what changed in place, vanished or was replaced is refused unless the
//! user asked to keep it.

use std::fmt;

use serde::Serialize;
use thiserror::Error;

use super::usage::Usage;
use crate::model::code::{self, Code};
use crate::model::file::{Inode, InodeKind, Output};
use crate::model::id::Bytes;
use crate::model::time::TimeSpec;

/// What to do with files that were written after the checkpoint (`--files`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Policy {
    /// Cut back what grew, and refuse what cannot be brought back.
    #[default]
    Rollback,
    /// Leave every file as it is now.
    Keep,
    /// Refuse whatever is not as it was.
    Fail,
}

/// What was found under a file's path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Inode number.
    pub number: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Device number of a device node.
    pub rdev: u64,
    /// Bytes.
    pub size: u64,
    /// Last change of the content.
    pub mtime: TimeSpec,
    /// GNU build id, looked up only for files that were recorded with one.
    pub build_id: Option<Bytes>,
}

/// What is to be done with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Action {
    /// Nothing; it is used as it is.
    Use,
    /// It is cut back to the recorded size.
    CutBack,
    /// It gets the content that is in the image; what it holds now is kept aside.
    Reset,
    /// It is made again with the content that is in the image.
    Create,
}

/// Why a file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProblemKind {
    /// Nothing is there.
    #[error("it has vanished")]
    Vanished,
    /// Something of another type is there.
    #[error("it was a {recorded} and is a {found} now")]
    AnotherType {
        /// Type at the checkpoint.
        recorded: FileType,
        /// Type now.
        found: FileType,
    },
    /// Another file is there.
    #[error("it was replaced by another file")]
    Replaced,
    /// It is shorter.
    #[error("it had {recorded} bytes at the checkpoint and has {found} now")]
    Shrunk {
        /// Bytes at the checkpoint.
        recorded: u64,
        /// Bytes now.
        found: u64,
    },
    /// It grew, and the user wants no rollback.
    #[error("it has grown by {grown} bytes since the checkpoint")]
    Grown {
        /// Bytes more.
        grown: u64,
    },
    /// It was written to, and the user wants no rollback.
    #[error("it has been written to since the checkpoint")]
    Written,
    /// It was written to where it had content already.
    #[error("it was changed in place since the checkpoint")]
    ChangedInPlace,
    /// A file that the job only reads is not the same.
    #[error("the job reads it, and its size or time of change is not what it was")]
    ChangedInput,
    /// A program or library is not the same.
    #[error(
        "the job has it mapped, and neither its size and time of change nor its build id are what \
         they were"
    )]
    ChangedMapped,
    /// A new file, and the user wants no rollback.
    #[error("it is new since the checkpoint")]
    New,
    /// What is to be cut off cannot be kept.
    #[error(
        "what was written to it since the checkpoint is to be cut off, and cannot be read to be kept: \
         {reason}"
    )]
    EndUnreadable {
        /// Why.
        reason: String,
    },
    /// It is about to be changed under the hands of another process.
    #[error(
        "process {pid} ({name}) is writing to it, and what it holds beyond the checkpoint is to be cut off"
    )]
    WrittenTo {
        /// The process.
        pid: i32,
        /// Its name.
        name: String,
    },
    /// It cannot be looked at.
    #[error("it cannot be looked at: {reason}")]
    Unreadable {
        /// Why.
        reason: String,
    },
    /// Another process has the abstract name of a socket.
    #[error("another process has a socket with this name")]
    NameTaken,
    /// Another process has a socket with this file.
    #[error("another process uses this socket")]
    SocketInUse,
    /// The file of a socket cannot be made.
    #[error("a socket of the job cannot be made there again: {reason}")]
    NoPlace {
        /// Why.
        reason: String,
    },
    /// Nobody receives what a socket sends.
    #[error(
        "the job sends datagrams to this socket of another program, which does not take them: {reason}"
    )]
    NoReceiver {
        /// Why.
        reason: String,
    },
    /// There is no terminal for a job that has one open.
    #[error("the job has its controlling terminal open, and rckpt has none here")]
    NoTerminal,
    /// An internet address that the job has is in use.
    #[error("another program has this address now")]
    AddressTaken,
    /// An internet address that the job has is kept by connections that are over.
    #[error("what is left of connections that are over keeps this address")]
    AddressKept,
    /// An internet address that the job has cannot be had.
    #[error("this address cannot be had here: {reason}")]
    AddressUnavailable {
        /// Why.
        reason: String,
    },
}

impl ProblemKind {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Vanished => code::restoring::VANISHED,
            Self::AnotherType { .. } => code::restoring::ANOTHER_TYPE,
            Self::Replaced => code::restoring::REPLACED,
            Self::Shrunk { .. } => code::restoring::SHRUNK,
            Self::Grown { .. } => code::restoring::GROWN,
            Self::Written => code::restoring::WRITTEN,
            Self::ChangedInPlace => code::restoring::CHANGED_IN_PLACE,
            Self::ChangedInput => code::restoring::CHANGED_INPUT,
            Self::ChangedMapped => code::restoring::CHANGED_MAPPED,
            Self::New => code::restoring::NEW_FILE,
            Self::EndUnreadable { .. } => code::restoring::END_UNREADABLE,
            Self::WrittenTo { .. } => code::restoring::BEING_WRITTEN,
            Self::Unreadable { .. } => code::restoring::UNREADABLE,
            Self::NameTaken => code::restoring::NAME_TAKEN,
            Self::SocketInUse => code::restoring::SOCKET_IN_USE,
            Self::NoPlace { .. } => code::restoring::NO_PLACE_FOR_SOCKET,
            Self::NoReceiver { .. } => code::restoring::NO_RECEIVER,
            Self::NoTerminal => code::restoring::NO_TERMINAL,
            Self::AddressTaken => code::restoring::ADDRESS_TAKEN,
            Self::AddressKept => code::restoring::ADDRESS_KEPT,
            Self::AddressUnavailable { .. } => code::restoring::ADDRESS_UNAVAILABLE,
        }
    }
}

impl ProblemKind {
    /// What the user can do.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        self.code().remedy()
    }
}

/// Types of files, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileType(pub u32);

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 & libc::S_IFMT {
            libc::S_IFREG => "regular file",
            libc::S_IFDIR => "directory",
            libc::S_IFLNK => "symbolic link",
            libc::S_IFIFO => "FIFO",
            libc::S_IFCHR => "character device",
            libc::S_IFBLK => "block device",
            libc::S_IFSOCK => "socket",
            _ => "file of unknown type",
        })
    }
}

/// Judges a file that has a path, by what it is needed for. `same_ends` tells, when asked, whether the
/// ends of what it held at the checkpoint are what they were.
pub fn judge(
    recorded: &Inode,
    usage: Usage,
    found: Option<&Found>,
    policy: Policy,
    same_ends: impl FnOnce() -> Result<bool, ProblemKind>,
) -> Result<Action, ProblemKind> {
    let Some(found) = found else {
        return if recorded.content.is_some() && policy != Policy::Fail {
            Ok(Action::Create)
        } else {
            Err(ProblemKind::Vanished)
        };
    };
    if found.mode & libc::S_IFMT != recorded.mode & libc::S_IFMT || found.rdev != recorded.rdev {
        return Err(ProblemKind::AnotherType {
            recorded: FileType(recorded.mode),
            found: FileType(found.mode),
        });
    }
    if recorded.mode & libc::S_IFMT != libc::S_IFREG {
        return Ok(Action::Use);
    }
    // Other contents in the image are of temporary files, which may have vanished.
    let changes_unseen = recorded.kind == InodeKind::MemoryFile || usage.writes_through;
    if usage.saved && recorded.content.is_some() {
        return judge_saved(recorded, found, policy, changes_unseen);
    }
    if recorded.content.is_some() && changes_unseen {
        return judge_kept(recorded, found, policy);
    }
    let same = found.size == recorded.size && found.mtime == recorded.mtime;
    if usage.mapped && !same {
        let same_build = recorded.build_id.is_some() && found.build_id == recorded.build_id;
        if !same_build && !usage.writes {
            return Err(ProblemKind::ChangedMapped);
        }
    }
    if usage.writes {
        return judge_written(recorded, found, policy, same_ends);
    }
    if usage.content && !usage.mapped && !same && policy != Policy::Keep {
        return Err(ProblemKind::ChangedInput);
    }
    Ok(Action::Use)
}

/// A file that the user wanted to have whole: whatever became of it, it gets its content back.
fn judge_saved(
    recorded: &Inode,
    found: &Found,
    policy: Policy,
    changes_unseen: bool,
) -> Result<Action, ProblemKind> {
    let same = found.size == recorded.size && found.mtime == recorded.mtime;
    match policy {
        _ if same && !changes_unseen => Ok(Action::Use),
        Policy::Keep => Ok(Action::Use),
        Policy::Fail if !same => Err(ProblemKind::Written),
        Policy::Fail | Policy::Rollback => Ok(Action::Reset),
    }
}

/// A file whose content is in the image because it changes without calls that could be followed.
fn judge_kept(recorded: &Inode, found: &Found, policy: Policy) -> Result<Action, ProblemKind> {
    let same = found.size == recorded.size && found.mtime == recorded.mtime;
    // Where /dev/shm was emptied by a reboot, a number can come again; the rest will tell.
    let replaced = found.number != recorded.number && !same;
    match policy {
        Policy::Keep => Ok(Action::Use),
        Policy::Fail if !same => Err(ProblemKind::Written),
        Policy::Rollback if replaced => Err(ProblemKind::Replaced),
        // Writing through a mapping does not always change the time.
        Policy::Fail | Policy::Rollback => Ok(Action::Reset),
    }
}

/// A file that the job has open for writing. The job itself wrote on after the checkpoint, so it may
/// have grown; but what it held then must still be there. A newer time on a file that did not grow says
/// that it is not, as a rollback sets the time back. Where the content is in the image, it is brought
/// back from there.
fn judge_written(
    recorded: &Inode,
    found: &Found,
    policy: Policy,
    same_ends: impl FnOnce() -> Result<bool, ProblemKind>,
) -> Result<Action, ProblemKind> {
    let same = found.size == recorded.size && found.mtime == recorded.mtime;
    if same || policy == Policy::Keep {
        return Ok(Action::Use);
    }
    // A copy on another machine has another number, but then it has not changed otherwise.
    if found.number != recorded.number {
        return Err(ProblemKind::Replaced);
    }
    let problem = if found.size < recorded.size {
        ProblemKind::Shrunk { recorded: recorded.size, found: found.size }
    } else if policy == Policy::Fail {
        match found.size - recorded.size {
            0 => ProblemKind::Written,
            grown => ProblemKind::Grown { grown },
        }
    } else if still_begins_as_recorded(recorded, found, same_ends)? {
        return Ok(if found.size > recorded.size { Action::CutBack } else { Action::Use });
    } else {
        ProblemKind::ChangedInPlace
    };
    if recorded.content.is_some() && policy == Policy::Rollback {
        Ok(Action::Reset)
    } else {
        Err(problem)
    }
}

/// Whether a file that is not smaller, but newer, begins with what it held at the checkpoint.
pub fn still_begins_as_recorded(
    recorded: &Inode,
    found: &Found,
    same_ends: impl FnOnce() -> Result<bool, ProblemKind>,
) -> Result<bool, ProblemKind> {
    if recorded.size == 0 {
        return Ok(true);
    }
    Ok(found.size > recorded.size && same_ends()?)
}

/// Judges a named output. `same_start` tells, when asked, whether the file still begins with what it
/// held at the checkpoint.
pub fn judge_output(
    recorded: &Output,
    found: Option<&Found>,
    policy: Policy,
    same_start: impl FnOnce() -> Result<bool, ProblemKind>,
) -> Result<Action, ProblemKind> {
    if policy == Policy::Keep {
        return Ok(Action::Use);
    }
    let Some(found) = found else { return Err(ProblemKind::Vanished) };
    if found.mode & libc::S_IFMT != libc::S_IFREG {
        return Err(ProblemKind::AnotherType {
            recorded: FileType(libc::S_IFREG),
            found: FileType(found.mode),
        });
    }
    if found.size < recorded.size {
        return Err(ProblemKind::Shrunk { recorded: recorded.size, found: found.size });
    }
    let untouched = found.size == recorded.size
        && found.mtime == recorded.mtime
        && found.number == recorded.number;
    if untouched {
        return Ok(Action::Use);
    }
    if !same_start()? {
        return Err(ProblemKind::ChangedInPlace);
    }
    match found.size - recorded.size {
        0 => Ok(Action::Use),
        grown if policy == Policy::Fail => Err(ProblemKind::Grown { grown }),
        _ => Ok(Action::CutBack),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::ObjectId;

    const READ: Usage = Usage {
        opened: true,
        content: true,
        writes: false,
        mapped: false,
        writes_through: false,
        directory: false,
        saved: false,
    };
    const WRITTEN: Usage = Usage { writes: true, ..READ };
    const MAPPED: Usage = Usage { opened: false, content: false, mapped: true, ..READ };

    fn recorded() -> Inode {
        Inode {
            kind: InodeKind::Linked,
            path: Bytes::from(&b"/file"[..]),
            device: 1,
            number: 7,
            mode: libc::S_IFREG | 0o644,
            rdev: 0,
            size: 100,
            mtime: TimeSpec { seconds: 1000, nanoseconds: 0 },
            links: 1,
            build_id: None,
            content: None,
            written: false,
            attributes: Vec::new(),
            ends: None,
        }
    }

    fn found() -> Found {
        let Inode { number, mode, rdev, size, mtime, .. } = recorded();
        Found { number, mode, rdev, size, mtime, build_id: None }
    }

    fn later() -> TimeSpec {
        TimeSpec { seconds: 2000, nanoseconds: 0 }
    }

    #[test]
    fn files_for_reading_must_be_the_same() {
        let check = |found: Option<&Found>, policy, expected| {
            assert_eq!(judge(&recorded(), READ, found, policy, || Ok(false)), expected);
        };
        let touched = Found { mtime: later(), ..found() };
        let copied = Found { number: 8, ..found() };
        check(Some(&found()), Policy::Rollback, Ok(Action::Use));
        check(Some(&copied), Policy::Rollback, Ok(Action::Use));
        check(Some(&touched), Policy::Rollback, Err(ProblemKind::ChangedInput));
        check(Some(&touched), Policy::Keep, Ok(Action::Use));
        check(None, Policy::Keep, Err(ProblemKind::Vanished));
        let directory = Found { mode: libc::S_IFDIR | 0o755, ..found() };
        let recorded = FileType(libc::S_IFREG | 0o644);
        let problem = ProblemKind::AnotherType { recorded, found: FileType(directory.mode) };
        assert_eq!(problem.to_string(), "it was a regular file and is a directory now");
        check(Some(&directory), Policy::Keep, Err(problem));
    }

    #[test]
    fn files_for_writing_are_cut_back() {
        let check = |found: Option<&Found>, policy, expected| {
            assert_eq!(judge(&recorded(), WRITTEN, found, policy, || Ok(true)), expected);
        };
        let grown = Found { size: 150, mtime: later(), ..found() };
        let rewritten = Found { mtime: later(), ..found() };
        let shrunk = Found { size: 50, mtime: later(), ..found() };
        let replaced = Found { number: 8, size: 150, mtime: later(), ..found() };
        check(Some(&found()), Policy::Rollback, Ok(Action::Use));
        check(Some(&grown), Policy::Rollback, Ok(Action::CutBack));
        check(Some(&grown), Policy::Keep, Ok(Action::Use));
        check(Some(&grown), Policy::Fail, Err(ProblemKind::Grown { grown: 50 }));
        check(Some(&rewritten), Policy::Rollback, Err(ProblemKind::ChangedInPlace));
        check(Some(&rewritten), Policy::Keep, Ok(Action::Use));
        check(Some(&rewritten), Policy::Fail, Err(ProblemKind::Written));
        let problem = ProblemKind::Shrunk { recorded: 100, found: 50 };
        check(Some(&shrunk), Policy::Rollback, Err(problem));
        check(Some(&shrunk), Policy::Keep, Ok(Action::Use));
        check(Some(&replaced), Policy::Rollback, Err(ProblemKind::Replaced));
        check(None, Policy::Rollback, Err(ProblemKind::Vanished));
    }

    #[test]
    fn libraries_are_the_same_by_time_or_by_build() {
        let mut library = recorded();
        library.build_id = Some(Bytes::from(&b"id"[..]));
        let check = |found: &Found, expected| {
            for policy in [Policy::Rollback, Policy::Keep, Policy::Fail] {
                assert_eq!(judge(&library, MAPPED, Some(found), policy, || Ok(false)), expected);
            }
        };
        let installed_again = Found { mtime: later(), ..found() };
        check(&found(), Ok(Action::Use));
        check(&installed_again, Err(ProblemKind::ChangedMapped));
        check(&Found { build_id: library.build_id.clone(), ..installed_again }, Ok(Action::Use));
    }

    #[test]
    fn files_in_the_image_are_reset_or_made_again() {
        let mut memory = recorded();
        memory.kind = InodeKind::MemoryFile;
        memory.content = Some(ObjectId(3));
        let check = |found: Option<&Found>, policy, expected| {
            assert_eq!(judge(&memory, WRITTEN, found, policy, || Ok(true)), expected);
        };
        let written = Found { mtime: later(), ..found() };
        check(Some(&written), Policy::Rollback, Ok(Action::Reset));
        check(Some(&written), Policy::Keep, Ok(Action::Use));
        check(Some(&written), Policy::Fail, Err(ProblemKind::Written));
        check(None, Policy::Rollback, Ok(Action::Create));
        let replaced = Found { number: 8, ..written };
        check(Some(&replaced), Policy::Rollback, Err(ProblemKind::Replaced));
    }

    #[test]
    fn files_saved_whole_come_back_whatever_became_of_them() {
        let saved = Inode { content: Some(ObjectId(3)), ..recorded() };
        let usage = Usage { saved: true, ..WRITTEN };
        let check = |found: Option<&Found>, usage, policy, expected| {
            assert_eq!(judge(&saved, usage, found, policy, || Ok(true)), expected);
        };
        let grown = Found { size: 150, mtime: later(), ..found() };
        let replaced = Found { number: 8, ..grown.clone() };
        check(Some(&found()), usage, Policy::Rollback, Ok(Action::Use));
        check(Some(&grown), usage, Policy::Rollback, Ok(Action::Reset));
        check(Some(&replaced), usage, Policy::Rollback, Ok(Action::Reset));
        check(Some(&replaced), usage, Policy::Keep, Ok(Action::Use));
        check(Some(&replaced), usage, Policy::Fail, Err(ProblemKind::Written));
        check(None, usage, Policy::Rollback, Ok(Action::Create));
        // What is written through a mapping may not show.
        let mapped = Usage { writes_through: true, mapped: true, ..usage };
        check(Some(&found()), mapped, Policy::Rollback, Ok(Action::Reset));
    }

    #[test]
    fn temporary_files_may_vanish() {
        let mut temporary = recorded();
        temporary.content = Some(ObjectId(3));
        let check = |found: Option<&Found>, policy, expected| {
            assert_eq!(judge(&temporary, WRITTEN, found, policy, || Ok(true)), expected);
        };
        check(None, Policy::Rollback, Ok(Action::Create));
        check(None, Policy::Fail, Err(ProblemKind::Vanished));
        check(
            Some(&Found { size: 150, mtime: later(), ..found() }),
            Policy::Rollback,
            Ok(Action::CutBack),
        );
        check(Some(&found()), Policy::Rollback, Ok(Action::Use));
        let rewritten = Found { mtime: later(), ..found() };
        check(Some(&rewritten), Policy::Rollback, Ok(Action::Reset));
        check(Some(&rewritten), Policy::Fail, Err(ProblemKind::Written));
        check(Some(&Found { size: 50, ..rewritten }), Policy::Rollback, Ok(Action::Reset));
    }

    #[test]
    fn growth_is_cut_off_only_behind_what_was_there() {
        let check = |size, same_ends, expected| {
            let recorded = Inode { size, ..recorded() };
            let grown = Found { size: 150, mtime: later(), ..found() };
            let verdict =
                judge(&recorded, WRITTEN, Some(&grown), Policy::Rollback, || Ok(same_ends));
            assert_eq!(verdict, expected, "{size} {same_ends}");
        };
        check(100, true, Ok(Action::CutBack));
        check(100, false, Err(ProblemKind::ChangedInPlace));
        check(0, false, Ok(Action::CutBack));
        check(150, true, Err(ProblemKind::ChangedInPlace));
    }

    #[test]
    fn outputs_are_cut_back_when_they_begin_as_before() {
        let output = Output {
            path: Bytes::from(&b"/log"[..]),
            number: 7,
            size: 100,
            mtime: TimeSpec { seconds: 1000, nanoseconds: 0 },
            digest: Bytes::default(),
        };
        let check = |found: Option<&Found>, same, policy, expected| {
            assert_eq!(judge_output(&output, found, policy, || Ok(same)), expected);
        };
        let grown = Found { size: 150, mtime: later(), ..found() };
        check(Some(&found()), false, Policy::Rollback, Ok(Action::Use));
        check(Some(&grown), true, Policy::Rollback, Ok(Action::CutBack));
        check(Some(&grown), false, Policy::Rollback, Err(ProblemKind::ChangedInPlace));
        check(Some(&grown), false, Policy::Keep, Ok(Action::Use));
        check(Some(&grown), true, Policy::Fail, Err(ProblemKind::Grown { grown: 50 }));
        check(None, true, Policy::Rollback, Err(ProblemKind::Vanished));
    }
}
