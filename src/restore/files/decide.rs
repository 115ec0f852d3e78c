//! Looks at every file that a job needs, and decides what is to be done with each before the job can
//! go on. Nothing is touched; everything that stands in the way is found, not only the first.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use thiserror::Error;

use super::judge::{self, Action, Found, Policy, ProblemKind};
use super::names;
use super::socket::inet::{Obstacle, unavailable};
use super::usage::{self, Usage};
use crate::model::file::{Inode, InodeKind, OpenFileKind, Output, Stream, StreamTarget};
use crate::model::id::{Bytes, InodeId};
use crate::model::job::Job;
use crate::model::number::to_usize;
use crate::model::time::TimeSpec;
use crate::restore::plan::moved;
use crate::sys::writers::{self, FileId};
use crate::sys::{build_id, file_tree, procfs, terminal};

/// How long somebody who writes to a file that is to be changed is given to come to an end.
const LAST_WRITES: Duration = Duration::from_secs(2);

/// What the decisions depend on beside the image and the files.
#[derive(Clone, Debug, Default)]
pub struct Choices {
    /// What to do with files that were written after the checkpoint.
    pub policy: Policy,
    /// Places that moved.
    pub moved: Vec<(Bytes, Bytes)>,
    /// Where what is cut off and set aside is kept; made when it is needed.
    pub displaced: PathBuf,
    /// The job's own directory, where no output of the job lies.
    pub job_directory: PathBuf,
}

/// What is to be done with the job's files.
#[derive(Clone, Debug, Default)]
pub struct Decisions {
    /// Where what is cut off and set aside is kept.
    pub displaced: PathBuf,
    /// Files to be cut back.
    pub cuts: Vec<Cut>,
    /// Files to be moved away.
    pub set_aside: Vec<PathBuf>,
    /// Files that get other content: a whole copy of each is kept first.
    pub resets: Vec<PathBuf>,
    /// Files that are not there, and are made again.
    pub creations: Vec<PathBuf>,
    /// What becomes of each file that has a path and gets its content from the image.
    pub contents: BTreeMap<InodeId, Action>,
    /// What each standard stream is connected to, where that is not simply the caller's.
    pub streams: BTreeMap<Stream, Connection>,
    /// The standard streams on terminals whose modes are the caller's to set.
    pub terminals: BTreeSet<Stream>,
}

/// A file to be cut back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cut {
    /// Its path.
    pub path: PathBuf,
    /// The caller's own stream that leads to it, when one does.
    pub through: Option<Stream>,
    /// Its inode number, as it was when this was decided.
    pub number: u64,
    /// Bytes that stay.
    pub size: u64,
    /// The time of its last change that it gets back with them.
    pub mtime: TimeSpec,
}

/// What a standard stream is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// The caller's own stream, which is the file that it was at the checkpoint; reading or writing
    /// goes on where it stood.
    OwnAt {
        /// Position in bytes.
        position: u64,
    },
    /// The file that it was at the checkpoint: the job was reading it, and the caller offers nothing
    /// but a terminal or /dev/null instead.
    Reopened {
        /// The file.
        inode: InodeId,
        /// Position in bytes.
        position: u64,
    },
}

/// Something that stands in the way of a restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub path: Bytes,
    /// What is wrong with it.
    pub kind: ProblemKind,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.path, self.kind, self.kind.remedy())
    }
}

/// Everything that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// Whether all of it will be over in a minute or so.
    #[must_use]
    pub fn will_pass(&self) -> bool {
        self.0.iter().all(|problem| problem.kind == ProblemKind::AddressKept)
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the job's files are not as it needs them")?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {}: {problem}", problem.kind.code()))
    }
}

/// Decides what to do with the files of `job`.
///
/// # Errors
/// All problems that were found.
pub fn decide(job: &Job, choices: &Choices) -> Result<Decisions, Problems> {
    let (decisions, problems) = survey(job, choices);
    if problems.is_empty() { Ok(decisions) } else { Err(Problems(problems)) }
}

/// The same for looking: all that would be done, and all that stands in the way.
#[must_use]
pub fn survey(job: &Job, choices: &Choices) -> (Decisions, Vec<Problem>) {
    let mut judge = Judge {
        job,
        choices,
        own: [own_stream(io::stdin()), own_stream(io::stdout()), own_stream(io::stderr())],
        decisions: Decisions { displaced: choices.displaced.clone(), ..Decisions::default() },
        problems: Vec::new(),
    };
    judge.inodes();
    judge.streams();
    judge.outputs();
    judge.terminals();
    let names = names::problems(job, |path| judge.place_of(path));
    judge.problems.extend(names);
    judge.addresses();
    judge.writers();
    (judge.decisions, judge.problems)
}

struct Judge<'a> {
    job: &'a Job,
    choices: &'a Choices,
    /// The caller's own standard streams.
    own: [Option<Metadata>; 3],
    decisions: Decisions,
    problems: Vec<Problem>,
}

impl Judge<'_> {
    fn inodes(&mut self) {
        let outputs: BTreeSet<&Bytes> =
            self.job.outputs.files.iter().map(|output| &output.path).collect();
        for ((id, inode), usage) in (0..).zip(&self.job.inodes).zip(usage::of_all(self.job)) {
            let has_path = matches!(inode.kind, InodeKind::Linked | InodeKind::MemoryFile);
            // What becomes of a named output is decided as such, unless it has to be filled.
            let judged_as_output = outputs.contains(&inode.path)
                && inode.content.is_none()
                && !usage.mapped
                && !usage.directory;
            if !has_path || !usage.is_needed() || judged_as_output {
                continue;
            }
            let path = self.place_of(&inode.path);
            match self.judge_inode(inode, usage, path.as_path()) {
                Ok(action) => self.note(InodeId(id), inode, action, path),
                Err(kind) => self.problems.push(Problem { path, kind }),
            }
        }
    }

    fn judge_inode(&self, inode: &Inode, usage: Usage, path: &Path) -> Result<Action, ProblemKind> {
        let follow = inode.mode & libc::S_IFMT != libc::S_IFLNK;
        let mut found = look_at(path, follow)?;
        if let Some(found) = &mut found
            && usage.mapped
            && inode.build_id.is_some()
        {
            // A file that cannot be read has no build id, and is told by its time.
            found.build_id =
                open_to_look(path).and_then(|file| build_id::build_id(&file)).unwrap_or_default();
        }
        let policy = self.choices.policy;
        judge::judge(inode, usage, found.as_ref(), policy, || same_ends(inode, path))
    }

    fn note(&mut self, id: InodeId, inode: &Inode, action: Action, path: Bytes) {
        if matches!(action, Action::Create | Action::Reset) {
            self.decisions.contents.insert(id, action);
        }
        match action {
            Action::CutBack => self.cut(path.as_path(), inode.size, inode.mtime),
            Action::Reset => self.decisions.resets.push(path.as_path().to_owned()),
            Action::Create => self.decisions.creations.push(path.as_path().to_owned()),
            Action::Use => {}
        }
    }

    /// Streams that were regular files. What was written to them after the checkpoint is cut off
    /// whether the job's stream leads there again or not: the restored job writes it once more.
    fn streams(&mut self) {
        for file in &self.job.open_files {
            let OpenFileKind::Stream {
                stream,
                target: StreamTarget::Regular { inode: id, position },
            } = &file.kind
            else {
                continue;
            };
            let Some(inode) = self.job.inodes.get(to_usize(u64::from(id.0))) else { continue };
            let path = self.place_of(&inode.path);
            let found = match self.look_at_stream(inode, path.as_path()) {
                Ok(found) => found,
                Err(kind) => {
                    self.problems.push(Problem { path, kind });
                    continue;
                }
            };
            let reads = file.flags.cast_signed() & libc::O_ACCMODE == libc::O_RDONLY;
            if reads {
                self.input_stream(*stream, *id, inode, *position, found.as_ref(), path);
            } else {
                self.output_stream(*stream, inode, *position, found.as_ref(), path);
            }
        }
    }

    fn input_stream(
        &mut self,
        stream: Stream,
        id: InodeId,
        inode: &Inode,
        position: u64,
        found: Option<&Found>,
        path: Bytes,
    ) {
        let own = self.own_stream(stream);
        if own.is_some_and(|own| is_same(own, found)) {
            self.decisions.streams.insert(stream, Connection::OwnAt { position });
        } else if own.is_none_or(|own| own.mode() & libc::S_IFMT == libc::S_IFCHR) {
            // A terminal or /dev/null is what a caller has who did not think of it. A job in the
            // middle of a file needs the rest of that file.
            let usage = Usage { opened: true, content: true, ..Usage::default() };
            let policy = self.choices.policy;
            match judge::judge(inode, usage, found, policy, || same_ends(inode, path.as_path())) {
                Ok(_) => {
                    let connection = Connection::Reopened { inode: id, position };
                    self.decisions.streams.insert(stream, connection);
                }
                Err(kind) => self.problems.push(Problem { path, kind }),
            }
        }
    }

    fn output_stream(
        &mut self,
        stream: Stream,
        inode: &Inode,
        position: u64,
        found: Option<&Found>,
        path: Bytes,
    ) {
        let Some(found) = found else { return };
        let cut_off = found.size < inode.size;
        if found.number != inode.number || cut_off || self.choices.policy == Policy::Keep {
            // Another file, or one that the caller's shell has emptied for us: it begins anew.
            return;
        }
        if found.size > inode.size
            && let Err(kind) = self.cut_stream(inode, found, path.as_path())
        {
            self.problems.push(Problem { path, kind });
            return;
        }
        if self.own_stream(stream).is_some_and(|own| is_same(own, Some(found))) {
            self.decisions.streams.insert(stream, Connection::OwnAt { position });
        }
    }

    /// Cuts back what was written to a stream, through the caller's own where that is the file: its
    /// path may lead through directories that only others may enter.
    fn cut_stream(&mut self, inode: &Inode, found: &Found, path: &Path) -> Result<(), ProblemKind> {
        if self.choices.policy == Policy::Fail {
            return Err(ProblemKind::Grown { grown: found.size - inode.size });
        }
        let through = self.own_with(inode).filter(|stream| *stream != Stream::Input);
        let link = through.map(link_of);
        let readable = link.as_deref().unwrap_or(path);
        if !judge::still_begins_as_recorded(inode, found, || same_ends(inode, readable))? {
            return Err(ProblemKind::ChangedInPlace);
        }
        match open_to_look(readable) {
            Ok(_) => self.add_cut(Cut {
                path: path.to_owned(),
                through,
                number: found.number,
                size: inode.size,
                mtime: inode.mtime,
            }),
            Err(error) => return Err(ProblemKind::EndUnreadable { reason: error.to_string() }),
        }
        Ok(())
    }

    /// What a stream's file is now, found by the caller's own stream when that is the very file, or
    /// else by its path. A file that only others may look at might as well not be there.
    fn look_at_stream(&self, inode: &Inode, path: &Path) -> Result<Option<Found>, ProblemKind> {
        if let Some(stream) = self.own_with(inode) {
            return Ok(self.own_stream(stream).map(found));
        }
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
            _ => look_at(path, true),
        }
    }

    /// The first of the caller's own streams that is the very file that was recorded.
    fn own_with(&self, inode: &Inode) -> Option<Stream> {
        [Stream::Output, Stream::Error, Stream::Input].into_iter().find(|stream| {
            self.own_stream(*stream)
                .is_some_and(|own| own.dev() == inode.device && own.ino() == inode.number)
        })
    }

    fn outputs(&mut self) {
        let mut known = BTreeSet::new();
        for output in &self.job.outputs.files {
            let path = self.place_of(&output.path);
            known.insert(path.as_path().to_owned());
            match self.judge_output(output, path.as_path()) {
                Ok(Action::CutBack) => self.cut(path.as_path(), output.size, output.mtime),
                Ok(_) => {}
                Err(kind) => self.problems.push(Problem { path, kind }),
            }
        }
        if self.choices.policy == Policy::Keep {
            return;
        }
        let excluded = [self.choices.job_directory.clone(), self.choices.displaced.clone()];
        let outputs = &self.job.outputs;
        for named in outputs.named.iter().chain(&outputs.saved.named) {
            let pattern = self.place_of(named);
            match file_tree::expand(pattern.as_path(), &excluded) {
                Ok(found) => {
                    for path in found {
                        if !known.contains(&path) {
                            self.new_output(path);
                        }
                    }
                }
                Err(error) => {
                    let kind = ProblemKind::Unreadable { reason: error.to_string() };
                    self.problems.push(Problem { path: pattern, kind });
                }
            }
        }
    }

    fn judge_output(&self, output: &Output, path: &Path) -> Result<Action, ProblemKind> {
        let found = look_at(path, true)?;
        if self.own.iter().flatten().any(|own| is_same(own, found.as_ref())) {
            // One of the caller's own streams has been dealt with, and begins as the caller wants.
            return Ok(Action::Use);
        }
        judge::judge_output(output, found.as_ref(), self.choices.policy, || {
            File::open(path)
                .and_then(|file| file_tree::digest_prefix(&file, output.size))
                .map(|digest| digest == *output.digest.0)
                .map_err(unreadable)
        })
    }

    fn new_output(&mut self, path: PathBuf) {
        let Ok(Some(found)) = look_at(&path, true) else { return };
        if self.own.iter().flatten().any(|own| is_same(own, Some(&found))) {
            return;
        }
        // What the job has open or mapped existed at the checkpoint, named or not.
        let place = Bytes::from(path.as_path());
        let in_use = self.job.inodes.iter().any(|inode| self.place_of(&inode.path) == place);
        if in_use || self.decisions.set_aside.contains(&path) {
            return;
        }
        if self.choices.policy == Policy::Fail {
            self.problems.push(Problem { path: place, kind: ProblemKind::New });
        } else {
            self.decisions.set_aside.push(path);
        }
    }

    /// Whose modes are to be set, and whether a terminal is there for a job that has one open.
    fn terminals(&mut self) {
        for file in &self.job.open_files {
            match &file.kind {
                OpenFileKind::Stream { stream, target: StreamTarget::Terminal { .. } } => {
                    let ours = match stream {
                        Stream::Input => in_foreground(io::stdin()),
                        Stream::Output => in_foreground(io::stdout()),
                        Stream::Error => in_foreground(io::stderr()),
                    };
                    if ours {
                        self.decisions.terminals.insert(*stream);
                    }
                }
                OpenFileKind::ControllingTerminal if File::open("/dev/tty").is_err() => {
                    let path = Bytes::from(&b"/dev/tty"[..]);
                    let problem = Problem { path, kind: ProblemKind::NoTerminal };
                    if !self.problems.contains(&problem) {
                        self.problems.push(problem);
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether the internet addresses of the job can be had.
    fn addresses(&mut self) {
        for (endpoint, obstacle) in unavailable(self.job) {
            let path = Bytes(endpoint.to_string().into_bytes());
            let kind = match obstacle {
                Obstacle::Taken => ProblemKind::AddressTaken,
                Obstacle::Remains => ProblemKind::AddressKept,
                Obstacle::Failed(errno) => {
                    ProblemKind::AddressUnavailable { reason: errno.desc().to_owned() }
                }
            };
            self.problems.push(Problem { path, kind });
        }
    }

    /// Nothing is taken from a file that somebody is writing to: most of all not when that is the job
    /// itself, whose supervisor was lost while it ran on.
    fn writers(&mut self) {
        let cut = self.decisions.cuts.iter().map(|cut| &cut.path);
        let changed = cut.chain(&self.decisions.resets).chain(&self.decisions.set_aside);
        let own: Vec<FileId> =
            self.own.iter().flatten().map(|own| (own.dev(), own.ino())).collect();
        // What cannot be looked at by its path any more will fail to be changed, too.
        let files: BTreeMap<FileId, PathBuf> = changed
            .filter_map(|path| Some((path, fs::metadata(path).ok()?)))
            .map(|(path, found)| ((found.dev(), found.ino()), path.clone()))
            .filter(|(file, _)| !own.contains(file))
            .collect();
        let wanted: Vec<FileId> = files.keys().copied().collect();
        for (file, pid) in writers::lasting_writers(&wanted, LAST_WRITES) {
            let name = procfs::name(pid).unwrap_or_default();
            let name = String::from_utf8_lossy(&name).into_owned();
            let kind = ProblemKind::WrittenTo { pid: pid.as_raw(), name };
            self.problems.push(Problem { path: Bytes::from(files[&file].clone()), kind });
        }
    }

    fn cut(&mut self, path: &Path, size: u64, mtime: TimeSpec) {
        match fs::metadata(path) {
            Ok(found) => {
                let (path, number) = (path.to_owned(), found.ino());
                self.add_cut(Cut { path, through: None, number, size, mtime });
            }
            Err(error) => {
                let problem = Problem { path: Bytes::from(path), kind: unreadable(error) };
                self.problems.push(problem);
            }
        }
    }

    fn add_cut(&mut self, cut: Cut) {
        if !self.decisions.cuts.iter().any(|other| other.path == cut.path) {
            self.decisions.cuts.push(cut);
        }
    }

    fn place_of(&self, path: &Bytes) -> Bytes {
        moved(&self.choices.moved, path.clone())
    }

    fn own_stream(&self, stream: Stream) -> Option<&Metadata> {
        match stream {
            Stream::Input => self.own[0].as_ref(),
            Stream::Output => self.own[1].as_ref(),
            Stream::Error => self.own[2].as_ref(),
        }
    }
}

/// What is at a path, a symbolic link there followed or not; `None` when nothing is.
fn look_at(path: &Path, follow: bool) -> Result<Option<Found>, ProblemKind> {
    let metadata = if follow { fs::metadata(path) } else { fs::symlink_metadata(path) };
    match metadata {
        Ok(metadata) => Ok(Some(found(&metadata))),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(None)
        }
        Err(error) => Err(unreadable(error)),
    }
}

/// The link in /proc to one of our own streams.
pub(super) fn link_of(stream: Stream) -> PathBuf {
    let number = match stream {
        Stream::Input => 0,
        Stream::Output => 1,
        Stream::Error => 2,
    };
    PathBuf::from(format!("/proc/self/fd/{number}"))
}

/// Whether the ends of what a file held at the checkpoint are what they were, as far as that is known.
fn same_ends(recorded: &Inode, path: &Path) -> Result<bool, ProblemKind> {
    let Some(ends) = &recorded.ends else { return Ok(true) };
    open_to_look(path)
        .and_then(|file| file_tree::digest_ends(&file, recorded.size))
        .map(|digest| digest == *ends.0)
        .map_err(unreadable)
}

/// Opens what should be a file to read it. Whoever has put a FIFO in its place does not hold us up, nor does
/// a terminal become ours.
fn open_to_look(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

fn found(metadata: &Metadata) -> Found {
    Found {
        number: metadata.ino(),
        mode: metadata.mode(),
        rdev: metadata.rdev(),
        size: metadata.size(),
        mtime: TimeSpec { seconds: metadata.mtime(), nanoseconds: metadata.mtime_nsec() },
        build_id: None,
    }
}

#[allow(clippy::needless_pass_by_value)] // Used where errors are handed over.
fn unreadable(error: io::Error) -> ProblemKind {
    ProblemKind::Unreadable { reason: error.to_string() }
}

/// Whether one of our streams is the file that was found under a path.
fn is_same(own: &Metadata, found: Option<&Found>) -> bool {
    found.is_some_and(|found| own.ino() == found.number && own.mode() == found.mode)
}

fn own_stream(stream: impl AsFd) -> Option<Metadata> {
    let copy = stream.as_fd().try_clone_to_owned().ok()?;
    File::from(copy).metadata().ok()
}

/// Whether a stream is a terminal on which the caller may speak.
fn in_foreground(stream: impl AsFd) -> bool {
    terminal::is_terminal(&stream)
        && nix::unistd::tcgetpgrp(&stream).is_ok_and(|group| group == nix::unistd::getpgrp())
}
