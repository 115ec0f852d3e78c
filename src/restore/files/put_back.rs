//! Undoes what `rollback` has done to files, for a restore that fails before the job runs: what was cut off
//! is appended again, what was set aside has its name again, what was to get another content has its own.
//!
//! What is kept beside the image is removed only when everything is back, and on the disk. Where somebody
//! has written to a file meanwhile, it is left alone, and it is told where the rest of it is.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use thiserror::Error;

use super::decide::Cut;
use super::open::open_path;
use super::rollback::{
    Deed, Facts, TakenBack, facts_of, open_to_cut, set_time, sync_directory, transfer,
};
use crate::model::file::Stream;

/// Why something could not be put back.
#[derive(Debug, Error)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum PutBackError {
    #[error(
        "{path} was changed by another process meanwhile, and is left so; what was taken from it is {kept}"
    )]
    ChangeMeanwhile { path: PathBuf, kept: PathBuf },
    #[error("appending to {path} what was cut off: {source}; that is {kept}")]
    Append { path: PathBuf, kept: PathBuf, source: io::Error },
    #[error("giving {path} its content back: {source}; that is {kept}")]
    Write { path: PathBuf, kept: PathBuf, source: io::Error },
    #[error("moving {kept} back to {path}: {source}")]
    Move { path: PathBuf, kept: PathBuf, source: io::Error },
    #[error("removing {path}, which was made for the job: {source}")]
    Remove { path: PathBuf, source: io::Error },
    #[error("{stream:?}, a standard stream, cannot be put back to where it stood: {source}")]
    MoveStream { stream: Stream, source: Errno },
    #[error("removing {path}, whose content is back in its place: {source}")]
    RemoveKept { path: PathBuf, source: io::Error },
}

/// What could not be put back. Nothing of it is lost.
#[derive(Debug, Error)]
pub struct NotPutBack(pub Vec<PutBackError>);

impl fmt::Display for NotPutBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not everything that was taken back from the job's files could be put back")?;
        self.0.iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}

/// Puts everything back that was taken back. Nothing of the job may be left that could write.
///
/// # Errors
/// All that could not be put back; then what was kept stays, all of it.
pub fn put_back(taken: &TakenBack) -> Result<(), NotPutBack> {
    let mut left: Vec<PutBackError> =
        taken.deeds.iter().rev().filter_map(|deed| undo(deed).err()).collect();
    if let Err((stream, source)) = taken.streams.put_back() {
        left.push(PutBackError::MoveStream { stream, source });
    }
    if left.is_empty()
        && let Some(directory) = &taken.kept_in
        && let Err(source) = remove(directory)
    {
        left.push(PutBackError::RemoveKept { path: directory.clone(), source });
    }
    if left.is_empty() { Ok(()) } else { Err(NotPutBack(left)) }
}

fn undo(deed: &Deed) -> Result<(), PutBackError> {
    let of = |path: &PathBuf, kept: &PathBuf| (path.clone(), kept.clone());
    match deed {
        Deed::Cut { cut, kept, before, after } => append(cut, kept, before, after.as_ref())
            .map_err(|undone| {
                let (path, kept) = of(&cut.path, kept);
                match undone {
                    Undone::Changed => PutBackError::ChangeMeanwhile { path, kept },
                    Undone::Failed(source) => PutBackError::Append { path, kept, source },
                }
            }),
        Deed::Reset { path, kept, before } => write(path, kept, before).map_err(|undone| {
            let (path, kept) = of(path, kept);
            match undone {
                Undone::Changed => PutBackError::ChangeMeanwhile { path, kept },
                Undone::Failed(source) => PutBackError::Write { path, kept, source },
            }
        }),
        Deed::SetAside { path, kept, before } => move_back(path, kept, before).map_err(|undone| {
            let (path, kept) = of(path, kept);
            match undone {
                Undone::Changed => PutBackError::ChangeMeanwhile { path, kept },
                Undone::Failed(source) => PutBackError::Move { path, kept, source },
            }
        }),
        Deed::Made { path, made } => {
            unmake(path, made).map_err(|source| PutBackError::Remove { path: path.clone(), source })
        }
    }
}

/// Why a file is not as it was.
#[derive(Debug, Error)]
enum Undone {
    /// Somebody else has written to it, or has put another in its place.
    #[error("it was changed")]
    Changed,
    #[error(transparent)]
    Failed(#[from] io::Error),
}

/// Appends the end of a file again that was cut off, unless it is there. Half of an end is cut off again, so
/// that the file is either as it was or as it was at the checkpoint.
fn append(cut: &Cut, kept: &Path, before: &Facts, after: Option<&Facts>) -> Result<(), Undone> {
    let (file, _) = open_to_cut(cut)?;
    let now = Facts::of(&file.metadata()?);
    if now.is_file(before) && now.is_content(before) {
        return Ok(());
    }
    let as_cut = now.size == cut.size && after.is_none_or(|after| now.is_content(after));
    if !(now.is_file(before) && as_cut) {
        return Err(Undone::Changed);
    }
    let outcome = File::open(kept).and_then(|end| transfer(&end, 0, &file, cut.size));
    if let Err(error) = outcome {
        file.set_len(cut.size).and_then(|()| set_time(&file, now.mtime))?;
        return Err(error.into());
    }
    set_time(&file, before.mtime)?;
    Ok(file.sync_all()?)
}

/// Gives a file its whole content back. Whether another process has written to it since cannot be told from
/// what the restore itself has written.
fn write(path: &Path, kept: &Path, before: &Facts) -> Result<(), Undone> {
    let file = File::from(open_path(path, libc::O_RDWR | libc::O_NONBLOCK)?);
    let now = Facts::of(&file.metadata()?);
    if !now.is_file(before) {
        return Err(Undone::Changed);
    }
    // The other times can be set, and have been.
    if now == *before {
        return Ok(());
    }
    transfer(&File::open(kept)?, 0, &file, 0)?;
    file.set_len(before.size)?;
    set_time(&file, before.mtime)?;
    Ok(file.sync_all()?)
}

/// Gives a file its name again that was set aside, unless another has it.
fn move_back(path: &Path, kept: &Path, before: &Facts) -> Result<(), Undone> {
    match facts_of(path) {
        Ok(now) if now.is_file(before) => return Ok(()),
        Ok(_) => return Err(Undone::Changed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    match rename_to_free(kept, path) {
        Err(Errno::EXDEV) => copy_back(path, kept, before)?,
        Err(Errno::EEXIST) => return Err(Undone::Changed),
        outcome => outcome.map_err(io::Error::from)?,
    }
    let Some(directory) = path.parent() else { return Ok(()) };
    match sync_directory(directory) {
        // Whoever may not list it may not have it written to the disk, either; the kernel does so by itself.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        outcome => Ok(outcome?),
    }
}

/// Renames a file to a name that nobody has. Not every file system can see to that by itself.
fn rename_to_free(from: &Path, to: &Path) -> Result<(), Errno> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            nix::unistd::linkat(AT_FDCWD, from, AT_FDCWD, to, nix::fcntl::AtFlags::empty())?;
            nix::unistd::unlink(from)
        }
        outcome => outcome,
    }
}

/// Copies a file back that could not be moved: what was set aside is a copy, too.
fn copy_back(path: &Path, kept: &Path, before: &Facts) -> io::Result<()> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    let outcome = File::open(kept)
        .and_then(|content| transfer(&content, 0, &file, 0))
        .and_then(|()| file.set_permissions(fs::Permissions::from_mode(before.mode & 0o7777)))
        .and_then(|()| set_time(&file, before.mtime))
        .and_then(|()| file.sync_all());
    if outcome.is_err() {
        fs::remove_file(path)?;
    }
    outcome
}

/// Removes a file or a directory that was made, unless another is there by now, or something in it.
fn unmake(path: &Path, made: &Facts) -> io::Result<()> {
    match facts_of(path) {
        Ok(now) if now.is_file(made) && made.mode & libc::S_IFMT == libc::S_IFDIR => {
            match fs::remove_dir(path) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                outcome => outcome,
            }
        }
        Ok(now) if now.is_file(made) => fs::remove_file(path),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes what was kept by this restore, and the directory of all that is kept when nothing else is in it.
fn remove(directory: &Path) -> io::Result<()> {
    fs::remove_dir_all(directory)?;
    let Some(base) = directory.parent() else { return Ok(()) };
    match fs::remove_dir(base) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::decide::Decisions;
    use super::super::rollback::carry_out;
    use super::*;
    use crate::model::time::TimeSpec;

    /// A directory with a file to be cut, one to get another content, one to be set aside, and one to be
    /// made, and what is decided about them.
    struct Scene {
        directory: tempfile::TempDir,
        decisions: Decisions,
    }

    impl Scene {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = |name: &str| directory.path().join(name);
            fs::write(path("log"), "before, after").unwrap();
            fs::write(path("data"), "changed").unwrap();
            fs::write(path("new"), "new").unwrap();
            let number = fs::metadata(path("log")).unwrap().ino();
            let mtime = TimeSpec { seconds: 1_000_000_000, nanoseconds: 5 };
            let decisions = Decisions {
                displaced: path("displaced"),
                cuts: vec![Cut { path: path("log"), through: None, number, size: 6, mtime }],
                resets: vec![path("data")],
                set_aside: vec![path("new")],
                creations: vec![path("gone"), path("vanished/with")],
                ..Decisions::default()
            };
            Self { directory, decisions }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn write(&self, name: &str, content: &str) {
            fs::write(self.path(name), content).unwrap();
        }

        fn text(&self, name: &str) -> String {
            fs::read_to_string(self.path(name)).unwrap()
        }

        /// What is kept of a file.
        fn kept(&self, name: &str) -> PathBuf {
            let path = self.path(name);
            self.path("displaced/1").join(path.strip_prefix("/").unwrap())
        }

        /// Names, contents and times of all files.
        fn state(&self) -> Vec<(PathBuf, String, u64, i64, i64)> {
            let list = fs::read_dir(self.directory.path()).unwrap().flatten();
            let mut state: Vec<_> = list
                .map(|entry| (entry.path(), entry.metadata().unwrap()))
                .map(|(path, facts)| {
                    let text = fs::read_to_string(&path).unwrap_or_default();
                    (path, text, facts.ino(), facts.mtime(), facts.mtime_nsec())
                })
                .collect();
            state.sort();
            state
        }

        /// Carries everything out, and does what a restore then does.
        fn carry_out(&self) -> TakenBack {
            let mut taken = TakenBack::default();
            carry_out(&self.decisions, &mut taken).unwrap();
            assert_eq!(self.text("log"), "before");
            assert!(!self.path("new").exists());
            assert_eq!(self.text("gone"), "");
            self.write("data", "as saved, and longer");
            self.write("gone", "as saved");
            taken
        }
    }

    #[test]
    fn everything_is_as_it_was() {
        let scene = Scene::new();
        let before = scene.state();
        let taken = scene.carry_out();
        assert_ne!(scene.state(), before);
        put_back(&taken).unwrap();
        assert_eq!(scene.state(), before);
        // Once more does nothing: it is all there.
        put_back(&TakenBack::default()).unwrap();
        assert_eq!(scene.state(), before);
    }

    #[test]
    fn what_other_restores_have_kept_stays() {
        let scene = Scene::new();
        fs::create_dir_all(scene.path("displaced/1")).unwrap();
        put_back(&scene.carry_out()).unwrap();
        assert!(scene.path("displaced/1").exists() && !scene.path("displaced/2").exists());
    }

    #[test]
    fn nothing_is_put_back_once_the_job_runs() {
        let scene = Scene::new();
        let mut taken = scene.carry_out();
        taken.job_runs();
        let before = scene.state();
        put_back(&taken).unwrap();
        assert_eq!(scene.state(), before);
        assert_eq!(fs::read_to_string(scene.kept("log.from-6")).unwrap(), ", after");
    }

    /// Whatever has been done until a step fails is undone.
    #[test]
    fn half_of_it_is_undone() {
        let check = |spoil: fn(&Scene)| {
            let scene = Scene::new();
            spoil(&scene);
            let before = scene.state();
            let mut taken = TakenBack::default();
            carry_out(&scene.decisions, &mut taken).unwrap_err();
            put_back(&taken).unwrap();
            assert_eq!(scene.state(), before);
        };
        check(|scene| fs::remove_file(scene.path("log")).unwrap());
        check(|scene| fs::remove_file(scene.path("data")).unwrap());
        check(|scene| fs::remove_file(scene.path("new")).unwrap());
        check(|scene| scene.write("gone", "somebody else's"));
    }

    #[test]
    fn what_somebody_has_changed_is_left_alone() {
        let check = |change: fn(&Scene), left: &str, content: &str, kept: &str| {
            let scene = Scene::new();
            let taken = scene.carry_out();
            change(&scene);
            let told = put_back(&taken).unwrap_err().to_string();
            let kept = scene.kept(kept);
            for path in [&scene.path(left), &kept] {
                assert!(told.contains(&path.display().to_string()), "{path:?}: {told}");
            }
            assert_eq!(told.lines().count(), 2, "{told}");
            assert_eq!(scene.text(left), content);
            assert!(kept.exists());
            // The others are back, and what was kept of them is kept still.
            let whole = [("log", "before, after"), ("data", "changed"), ("new", "new")];
            for (name, content) in whole.into_iter().filter(|(name, _)| *name != left) {
                assert_eq!(scene.text(name), content);
            }
            assert!(scene.kept("data").exists());
        };
        let append = |scene: &Scene| scene.write("log", "before, and more");
        check(append, "log", "before, and more", "log.from-6");
        let overwrite = |scene: &Scene| scene.write("log", "BEFORE");
        check(overwrite, "log", "BEFORE", "log.from-6");
        let replace = |scene: &Scene| {
            scene.write("other", "before");
            fs::rename(scene.path("other"), scene.path("log")).unwrap();
        };
        check(replace, "log", "before", "log.from-6");
        let replace = |scene: &Scene| {
            scene.write("other", "other");
            fs::rename(scene.path("other"), scene.path("data")).unwrap();
        };
        check(replace, "data", "other", "data");
        check(|scene: &Scene| scene.write("new", "another"), "new", "another", "new");
    }

    #[test]
    fn what_cannot_be_put_back_is_told_and_kept() {
        let scene = Scene::new();
        let taken = scene.carry_out();
        let kept = scene.kept("log.from-6");
        fs::rename(&kept, scene.path("elsewhere")).unwrap();
        let told = put_back(&taken).unwrap_err().to_string();
        assert!(told.contains("appending to ") && told.contains("log.from-6"), "{told}");
        assert_eq!(scene.text("log"), "before");
        assert!(scene.path("displaced/1").exists());
        // It can be done once that is mended: whatever is in place is left so.
        fs::rename(scene.path("elsewhere"), &kept).unwrap();
        put_back(&taken).unwrap();
        assert_eq!(scene.text("log"), "before, after");
        assert!(!scene.path("displaced").exists());
    }

    #[test]
    fn a_file_made_by_somebody_else_is_not_removed() {
        let scene = Scene::new();
        let taken = scene.carry_out();
        scene.write("other", "other");
        fs::rename(scene.path("other"), scene.path("gone")).unwrap();
        put_back(&taken).unwrap();
        assert_eq!(scene.text("gone"), "other");
    }
}
