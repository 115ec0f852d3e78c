//! Carries out what was decided about files that were written after the checkpoint. Nothing is lost:
//! what is cut off, replaced or moved away is first copied to a directory beside the image, and is on
//! the disk there before the file itself is touched.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec as KernelTime;
use thiserror::Error;

use super::decide::{Cut, Decisions, link_of};
use crate::model::file::Stream;
use crate::model::number::to_u64;
use crate::model::time::TimeSpec;

/// Why files could not be brought back to the checkpoint. Those already dealt with are as they were
/// then; what they held is in the directory for it.
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
}

/// Carries out the decisions. First everything is copied, then everything is cut.
///
/// # Errors
/// The first failure.
pub fn carry_out(decisions: &Decisions) -> Result<(), RollbackError> {
    let mut store = Store { base: &decisions.displaced, directory: None };
    let mut cuts = Vec::new();
    for cut in &decisions.cuts {
        cuts.push((cut, keep_tail(&mut store, cut)?));
    }
    for path in &decisions.resets {
        keep_whole(&mut store, path)?;
    }
    store.sync()?;
    for (cut, file) in cuts {
        file.set_len(cut.size)
            .and_then(|()| set_time(&file, cut.mtime))
            .and_then(|()| file.sync_all())
            .map_err(|source| cut_failed(cut, source))?;
    }
    for path in &decisions.set_aside {
        set_aside(&mut store, path)?;
    }
    store.sync()
}

/// The directory for what is displaced by this restore.
struct Store<'a> {
    base: &'a Path,
    directory: Option<PathBuf>,
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
        if let Some(directory) = &self.directory {
            return Ok(directory.clone());
        }
        make_directories(self.base)?;
        for number in 1_u64.. {
            let path = self.base.join(number.to_string());
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {
                    self.directory = Some(path.clone());
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
        match &self.directory {
            None => Ok(()),
            Some(directory) => sync_directories(directory)
                .and_then(|()| sync_directory(self.base))
                .map_err(|source| RollbackError::MakeDirectory { path: directory.clone(), source }),
        }
    }
}

/// Copies what lies behind the recorded size, and returns the file to be cut.
fn keep_tail(store: &mut Store<'_>, cut: &Cut) -> Result<File, RollbackError> {
    let (file, readable) = open_to_cut(cut).map_err(|source| cut_failed(cut, source))?;
    let metadata = file.metadata().map_err(|source| cut_failed(cut, source))?;
    if metadata.ino() != cut.number || metadata.size() < cut.size {
        return Err(RollbackError::ChangeMeanwhile { path: cut.path.clone() });
    }
    let kept = store.place(&cut.path, &format!(".from-{}", cut.size))?;
    copy(&readable, cut.size, &kept).map_err(|source| RollbackError::KeepContent {
        path: cut.path.clone(),
        kept,
        source,
    })?;
    Ok(file)
}

/// Opens a file to be cut: for writing, and for reading. Whoever called us may have opened a stream
/// that we may not open for writing; then it is cut as it was given to us.
fn open_to_cut(cut: &Cut) -> io::Result<(File, File)> {
    let open = |path: &Path, write: bool| {
        OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
            .open(path)
    };
    let Some(stream) = cut.through else {
        let file = open(&cut.path, true)?;
        return Ok((file.try_clone()?, file));
    };
    let own = match stream {
        Stream::Input => io::stdin().as_fd().try_clone_to_owned(),
        Stream::Output => io::stdout().as_fd().try_clone_to_owned(),
        Stream::Error => io::stderr().as_fd().try_clone_to_owned(),
    }?;
    Ok((own.into(), open(&link_of(stream), false)?))
}

/// Gives a file the time of its last change back, by which another restore from the same checkpoint
/// sees that it is what it was. Only its owner may; without, that restore finds it changed and asks.
fn set_time(file: &File, mtime: TimeSpec) -> io::Result<()> {
    let time = KernelTime::new(mtime.seconds, mtime.nanoseconds);
    match futimens(file, &KernelTime::UTIME_OMIT, &time) {
        Ok(()) | Err(Errno::EPERM) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Copies a whole file.
fn keep_whole(store: &mut Store<'_>, path: &Path) -> Result<(), RollbackError> {
    let kept = store.place(path, "")?;
    File::open(path)
        .and_then(|file| copy(&file, 0, &kept))
        .map_err(|source| RollbackError::KeepContent { path: path.to_owned(), kept, source })
}

/// Moves a file away, by copying it where a name cannot be moved.
fn set_aside(store: &mut Store<'_>, path: &Path) -> Result<(), RollbackError> {
    let kept = store.place(path, "")?;
    let moved = match fs::rename(path, &kept) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => File::open(path)
            .and_then(|file| copy(&file, 0, &kept))
            .and_then(|()| fs::remove_file(path)),
        outcome => outcome,
    };
    moved.map_err(|source| RollbackError::SetAside { path: path.to_owned(), kept, source })
}

/// Copies a file from `start` to its end into a new file, and has that written to the disk.
fn copy(file: &File, start: u64, to: &Path) -> io::Result<()> {
    let copy = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    let mut buffer = vec![0; 1 << 20];
    let (mut from, mut at) = (start, 0);
    loop {
        let count = match file.read_at(&mut buffer, from) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        copy.write_all_at(&buffer[..count], at)?;
        from += to_u64(count);
        at += to_u64(count);
    }
    copy.sync_all()
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

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn cut_failed(cut: &Cut, source: io::Error) -> RollbackError {
    RollbackError::CutBack { path: cut.path.clone(), size: cut.size, source }
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
        let roll_back = || carry_out(&decisions);
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
        carry_out(&decisions).unwrap();
        assert!(!new.exists());
        let kept = base.join("1").join(new.strip_prefix("/").unwrap());
        assert_eq!(fs::read(kept).unwrap(), b"content");
    }

    #[test]
    fn nothing_to_do_leaves_no_trace() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().join("displaced");
        carry_out(&Decisions { displaced: base.clone(), ..Decisions::default() }).unwrap();
        assert!(!base.exists());
    }
}
