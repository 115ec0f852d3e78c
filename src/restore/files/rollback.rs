//! Carries out what was decided about files that were written after the checkpoint. Nothing is lost:
//! what is cut off, replaced or moved away is first copied to a directory beside the image, and is on
//! the disk there before the file itself is touched.
//!
//! It notes what it does in [`TakenBack`], by which `put_back` undoes it.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec as KernelTime;
use thiserror::Error;

use super::decide::{Cut, Decisions, link_of};
use super::open::open_path;
use super::own_streams::OwnStreams;
use crate::model::file::Stream;
use crate::model::number::to_u64;
use crate::model::time::TimeSpec;

/// Why files could not be brought back to the checkpoint. What those held that were already dealt with is
/// in the directory for it.
#[derive(Debug, Error)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum RollbackError {
    #[error("making {path} to keep what is cut off: {source}")]
    MakeDirectory { path: PathBuf, source: io::Error },
    #[error("keeping what {path} holds in {kept}: {source}")]
    KeepContent { path: PathBuf, kept: PathBuf, source: io::Error },
    #[error("{path} was changed while the restore was being prepared: try again")]
    ChangeMeanwhile { path: PathBuf },
    #[error("cutting {path} back to {size} bytes: {source}")]
    CutBack { path: PathBuf, size: u64, source: io::Error },
    #[error("moving {path} to {kept}: {source}")]
    SetAside { path: PathBuf, kept: PathBuf, source: io::Error },
    #[error("making {path} again: {source}")]
    Make { path: PathBuf, source: io::Error },
}

/// What a restore has done to files so far, by which it can be undone until the job runs.
#[derive(Debug, Default)]
pub struct TakenBack {
    /// In the order in which it was done.
    pub(super) deeds: Vec<Deed>,
    /// Where what was taken away is kept.
    pub(super) kept_in: Option<PathBuf>,
    /// What the caller's own streams were like.
    pub(super) streams: OwnStreams,
    complete: bool,
}

impl TakenBack {
    /// The job is about to run, and to write to its files: nothing is put back any more.
    pub fn job_runs(&mut self) {
        *self = Self { complete: true, ..Self::default() };
    }
}

/// Something that was, or was about to be, done to a file.
#[derive(Debug)]
pub(super) enum Deed {
    /// Its end was cut off, and is in `kept`; then it was like `after`.
    Cut { cut: Cut, kept: PathBuf, before: Facts, after: Option<Facts> },
    /// A whole copy of it is in `kept`, and it may get another content.
    Reset { path: PathBuf, kept: PathBuf, before: Facts },
    /// It is in `kept` now, moved or copied.
    SetAside { path: PathBuf, kept: PathBuf, before: Facts },
    /// There was nothing, and a file or a directory was made, with these facts.
    Made { path: PathBuf, made: Facts },
}

/// What tells a file and its state from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub device: u64,
    pub number: u64,
    pub mode: u32,
    pub size: u64,
    pub mtime: TimeSpec,
    pub ctime: TimeSpec,
}

impl Facts {
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            number: metadata.ino(),
            mode: metadata.mode(),
            size: metadata.size(),
            mtime: TimeSpec { seconds: metadata.mtime(), nanoseconds: metadata.mtime_nsec() },
            ctime: TimeSpec { seconds: metadata.ctime(), nanoseconds: metadata.ctime_nsec() },
        }
    }

    /// Whether both are of one file, whatever became of it.
    pub const fn is_file(&self, other: &Self) -> bool {
        self.device == other.device && self.number == other.number
    }

    /// Whether the content is as old and as long.
    pub fn is_content(&self, other: &Self) -> bool {
        self.size == other.size && self.mtime == other.mtime
    }
}

/// Carries out the decisions, unless that was done before. First everything is copied, then everything is
/// cut. Files that are to come back are made, without content.
///
/// # Errors
/// The first failure. What was done until then is in `taken`.
pub fn carry_out(decisions: &Decisions, taken: &mut TakenBack) -> Result<(), RollbackError> {
    if taken.complete {
        return Ok(());
    }
    taken.streams = OwnStreams::look_at(&decisions.streams);
    let mut store = Store { base: &decisions.displaced, directory: &mut taken.kept_in };
    let mut tails = Vec::new();
    for cut in &decisions.cuts {
        tails.push((cut, keep_tail(&mut store, cut)?));
    }
    let mut wholes = Vec::new();
    for path in &decisions.resets {
        wholes.push(keep_whole(&mut store, path)?);
    }
    store.sync()?;
    taken.deeds.extend(wholes);
    for (cut, tail) in tails {
        cut_off(cut, tail, &mut taken.deeds)?;
    }
    for path in &decisions.set_aside {
        let (kept, before) = (store.place(path, "")?, facts_of(path));
        let before = before.map_err(|source| aside_failed(path, &kept, source))?;
        let deed = Deed::SetAside { path: path.clone(), kept: kept.clone(), before };
        taken.deeds.push(deed);
        set_aside(path, &kept).map_err(|source| aside_failed(path, &kept, source))?;
    }
    for path in &decisions.creations {
        taken.deeds.extend(make_directory_of(path)?);
        taken.deeds.push(make(path)?);
    }
    store.sync()?;
    taken.complete = true;
    Ok(())
}

/// The directory for what is displaced by this restore.
struct Store<'a> {
    base: &'a Path,
    directory: &'a mut Option<PathBuf>,
}

impl Store<'_> {
    /// A free name for something from `path`, its directories made.
    fn place(&mut self, path: &Path, suffix: &str) -> Result<PathBuf, RollbackError> {
        let mut kept = self.directory()?;
        kept.extend(path.components().filter(|part| matches!(part, Component::Normal(_))));
        if let Some(parent) = kept.parent() {
            make_directories(parent)?;
        }
        let mut name = kept.file_name().unwrap_or_default().to_owned();
        name.push(suffix);
        kept.set_file_name(name);
        Ok(kept)
    }

    /// The directory of this restore: the first free number.
    fn directory(&mut self) -> Result<PathBuf, RollbackError> {
        if let Some(directory) = &*self.directory {
            return Ok(directory.clone());
        }
        make_directories(self.base)?;
        for number in 1_u64.. {
            let path = self.base.join(number.to_string());
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {
                    *self.directory = Some(path.clone());
                    return Ok(path);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(RollbackError::MakeDirectory { path, source }),
            }
        }
        let path = self.base.to_owned();
        Err(RollbackError::MakeDirectory { path, source: io::ErrorKind::QuotaExceeded.into() })
    }

    /// Has the names of everything kept so far written to the disk.
    fn sync(&self) -> Result<(), RollbackError> {
        match &*self.directory {
            None => Ok(()),
            Some(directory) => sync_directories(directory)
                .and_then(|()| sync_directory(self.base))
                .map_err(|source| RollbackError::MakeDirectory { path: directory.clone(), source }),
        }
    }
}

/// The end of a file that is about to be cut off: the file, where the end is kept, and what it was like.
type Tail = (File, PathBuf, Facts);

/// Copies what lies behind the recorded size, and returns the file to be cut.
fn keep_tail(store: &mut Store<'_>, cut: &Cut) -> Result<Tail, RollbackError> {
    let (file, readable) = open_to_cut(cut).map_err(|source| cut_failed(cut, source))?;
    let metadata = file.metadata().map_err(|source| cut_failed(cut, source))?;
    if metadata.ino() != cut.number || metadata.size() < cut.size {
        return Err(RollbackError::ChangeMeanwhile { path: cut.path.clone() });
    }
    let kept = store.place(&cut.path, &format!(".from-{}", cut.size))?;
    copy(&readable, cut.size, &kept).map_err(|source| RollbackError::KeepContent {
        path: cut.path.clone(),
        kept: kept.clone(),
        source,
    })?;
    Ok((file, kept, Facts::of(&metadata)))
}

/// Cuts a file whose end is kept.
fn cut_off(cut: &Cut, tail: Tail, deeds: &mut Vec<Deed>) -> Result<(), RollbackError> {
    let (file, kept, before) = tail;
    let deed = |kept, after| Deed::Cut { cut: cut.clone(), kept, before, after };
    let outcome = file
        .set_len(cut.size)
        .and_then(|()| set_time(&file, cut.mtime))
        .and_then(|()| file.sync_all())
        .and_then(|()| file.metadata());
    deeds.push(deed(kept, outcome.as_ref().ok().map(Facts::of)));
    outcome.map(drop).map_err(|source| cut_failed(cut, source))
}

/// Opens a file to be cut: for writing, and for reading. Whoever called us may have opened a stream
/// that we may not open for writing; then it is cut as it was given to us.
pub(super) fn open_to_cut(cut: &Cut) -> io::Result<(File, File)> {
    let Some(stream) = cut.through else {
        let file = File::from(open_path(&cut.path, libc::O_RDWR | libc::O_NONBLOCK)?);
        return Ok((file.try_clone()?, file));
    };
    let own = match stream {
        Stream::Input => io::stdin().as_fd().try_clone_to_owned(),
        Stream::Output => io::stdout().as_fd().try_clone_to_owned(),
        Stream::Error => io::stderr().as_fd().try_clone_to_owned(),
    }?;
    let readable = open_path(&link_of(stream), libc::O_RDONLY | libc::O_NONBLOCK)?;
    Ok((own.into(), readable.into()))
}

/// Gives a file the time of its last change back, by which another restore from the same checkpoint
/// sees that it is what it was. Only its owner may; without, that restore finds it changed and asks.
pub(super) fn set_time(file: &File, mtime: TimeSpec) -> io::Result<()> {
    let time = KernelTime::new(mtime.seconds, mtime.nanoseconds);
    match futimens(file, &KernelTime::UTIME_OMIT, &time) {
        Ok(()) | Err(Errno::EPERM) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Copies a whole file.
fn keep_whole(store: &mut Store<'_>, path: &Path) -> Result<Deed, RollbackError> {
    let kept = store.place(path, "")?;
    let outcome =
        open_path(path, libc::O_RDONLY | libc::O_NONBLOCK).map(File::from).and_then(|file| {
            let before = Facts::of(&file.metadata()?);
            copy(&file, 0, &kept).map(|()| before)
        });
    let path = path.to_owned();
    match outcome {
        Ok(before) => Ok(Deed::Reset { path, kept, before }),
        Err(source) => Err(RollbackError::KeepContent { path, kept, source }),
    }
}

/// Moves a file away, by copying it where a name cannot be moved.
fn set_aside(path: &Path, kept: &Path) -> io::Result<()> {
    match fs::rename(path, kept) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => File::open(path)
            .and_then(|file| copy(&file, 0, kept))
            .and_then(|()| fs::remove_file(path)),
        outcome => outcome,
    }
}

/// Makes a file that is to come back. Its content and its mode come later.
fn make(path: &Path) -> Result<Deed, RollbackError> {
    let failed = |source| RollbackError::Make { path: path.to_owned(), source };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let made = Facts::of(&file.and_then(|file| file.metadata()).map_err(failed)?);
    Ok(Deed::Made { path: path.to_owned(), made })
}

/// Makes the directory again that a file was in, if it is not there: programs make one for their temporary
/// files, and remove it with them.
fn make_directory_of(path: &Path) -> Result<Option<Deed>, RollbackError> {
    let Some(directory) = path.parent() else { return Ok(None) };
    let made = match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
        outcome => outcome.and_then(|()| facts_of(directory)),
    };
    let path = directory.to_owned();
    match made {
        Ok(made) => Ok(Some(Deed::Made { path, made })),
        Err(source) => Err(RollbackError::Make { path, source }),
    }
}

/// What is at a path, a symbolic link there not followed.
pub(super) fn facts_of(path: &Path) -> io::Result<Facts> {
    fs::symlink_metadata(path).map(|metadata| Facts::of(&metadata))
}

/// Copies a file from `start` to its end into a new file, and has that written to the disk.
fn copy(file: &File, start: u64, to: &Path) -> io::Result<()> {
    let copy = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    transfer(file, start, &copy, 0)?;
    copy.sync_all()
}

/// Writes what a file holds from byte `from` on into another, at byte `at` and on.
pub(super) fn transfer(file: &File, mut from: u64, copy: &File, mut at: u64) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = match file.read_at(&mut buffer, from) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        copy.write_all_at(&buffer[..count], at)?;
        from += to_u64(count);
        at += to_u64(count);
    }
}

fn make_directories(path: &Path) -> Result<(), RollbackError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| RollbackError::MakeDirectory { path: path.to_owned(), source })
}

fn sync_directories(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_directories(&entry.path())?;
        }
    }
    sync_directory(path)
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn cut_failed(cut: &Cut, source: io::Error) -> RollbackError {
    RollbackError::CutBack { path: cut.path.clone(), size: cut.size, source }
}

fn aside_failed(path: &Path, kept: &Path, source: io::Error) -> RollbackError {
    RollbackError::SetAside { path: path.to_owned(), kept: kept.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_off_is_kept_first() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        fs::write(&log, "before, after").unwrap();
        let number = fs::metadata(&log).unwrap().ino();
        let base = directory.path().join("displaced");
        let mtime = TimeSpec { seconds: 1_000_000_000, nanoseconds: 5 };
        let cut = Cut { path: log.clone(), through: None, number, size: 6, mtime };
        let decisions =
            Decisions { displaced: base.clone(), cuts: vec![cut], ..Decisions::default() };
        let roll_back = || carry_out(&decisions, &mut TakenBack::default());
        roll_back().unwrap();
        assert_eq!(fs::read(&log).unwrap(), b"before");
        let facts = fs::metadata(&log).unwrap();
        assert_eq!((facts.mtime(), facts.mtime_nsec()), (mtime.seconds, mtime.nanoseconds));
        let kept = |number: &str| {
            let path = base.join(number).join(log.strip_prefix("/").unwrap());
            fs::read_to_string(path.with_file_name("log.from-6")).unwrap()
        };
        assert_eq!(kept("1"), ", after");
        fs::write(&log, "before again").unwrap();
        roll_back().unwrap();
        assert_eq!(kept("2"), " again");
        // A file that was replaced in the meantime is left alone.
        fs::remove_file(directory.path().join("log")).unwrap();
        fs::write(directory.path().join("other"), "").unwrap();
        fs::write(&log, "another file").unwrap();
        if fs::metadata(&log).unwrap().ino() != number {
            assert!(matches!(roll_back(), Err(RollbackError::ChangeMeanwhile { .. })));
            assert_eq!(fs::read(&log).unwrap(), b"another file");
        }
    }

    #[test]
    fn new_files_are_moved_away() {
        let directory = tempfile::tempdir().unwrap();
        let new = directory.path().join("new");
        fs::write(&new, "content").unwrap();
        let base = directory.path().join("displaced");
        let decisions = Decisions {
            displaced: base.clone(),
            set_aside: vec![new.clone()],
            ..Decisions::default()
        };
        carry_out(&decisions, &mut TakenBack::default()).unwrap();
        assert!(!new.exists());
        let kept = base.join("1").join(new.strip_prefix("/").unwrap());
        assert_eq!(fs::read(kept).unwrap(), b"content");
    }

    #[test]
    fn nothing_to_do_leaves_no_trace() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().join("displaced");
        let decisions = Decisions { displaced: base.clone(), ..Decisions::default() };
        carry_out(&decisions, &mut TakenBack::default()).unwrap();
        assert!(!base.exists());
    }
}
