//! Copying a generation to another place, byte for byte. Files of page data that a generation there
//! draws on, too, are not copied again but get another name (a hard link).
//!
//! It fills a directory that it is given, as [`super::writer`] does; naming and publishing that is
//! [`crate::job::directory`]'s.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::linkat;
use thiserror::Error;

use super::error::ReadError;
use super::format::{GenerationId, IMAGE_FILE};
use super::reader::{Reader, Trust, pages_file_name};
use crate::model::number::to_u64;

/// Bytes that are copied at once.
const PIECE: usize = 1 << 20;
/// Pieces after which what was written is brought to the disk, so that no flood of it is kept back.
const PIECES_TO_SYNC: usize = 32;

/// What a copy came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Bytes that were written.
    pub bytes: u64,
    /// Bytes of files that were there already.
    pub shared: u64,
}

/// Why a generation was not copied.
#[derive(Debug, Error)]
pub enum CopyError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// The copy cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// What was written is not the same.
    #[error("the copy is not good: {0}")]
    Check(#[from] ReadError),
    /// What was written is another generation.
    #[error("the copy is of another checkpoint")]
    Mixed,
    /// Nobody wants it any more.
    #[error("the copy was given up")]
    GivenUp,
}

/// Copies the generation `source` into `directory`: it must exist, be private to the user and be empty.
/// `relative` is another generation, on the file system of `directory`, which may draw on the same files.
/// All files are on the disk afterwards, and have been opened and checked as for a restore. Between two
/// pieces it is asked whether to go on.
///
/// # Errors
/// When that fails; what was written is left there, and no reader takes it.
pub fn copy(
    source: &Reader,
    relative: Option<&Reader>,
    directory: &Path,
    goes_on: &dyn Fn() -> bool,
) -> Result<Copied, CopyError> {
    let written = |name: &str, source| CopyError::Write { path: directory.join(name), source };
    let target = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits())
        .open(directory)
        .map_err(|source| written("", source))?;
    let mut copied = Copied::default();
    let files = source
        .pages_files()
        .enumerate()
        .map(|(number, file)| (pages_file_name(number, file.id), Some((file.id, file.length))));
    // The image comes last: without it the rest is nothing.
    for (name, pages) in files.chain([(IMAGE_FILE.to_owned(), None)]) {
        let is_there = |(id, length)| {
            relative.is_some_and(|relative| link(relative, id, length, &target, &name))
        };
        if pages.is_some_and(is_there) {
            copied.shared += pages.map_or(0, |(_, length)| length);
            continue;
        }
        let mut from = open(source, &name).map_err(|error| CopyError::Read {
            path: source.directory().join(&name),
            source: error,
        })?;
        let mut to = create(&target, &name).map_err(|source| written(&name, source))?;
        let places = [source.directory().join(&name), directory.join(&name)];
        copied.bytes += transfer(&mut from, &mut to, &places, goes_on)?;
    }
    target.sync_all().map_err(|source| written("", source))?;
    let check = Reader::open_trusting(directory, Trust::Own)?;
    if check.id() == source.id() { Ok(copied) } else { Err(CopyError::Mixed) }
}

/// Gives the file of page data `id` that `relative` draws on the name `name` in `target`, if it does.
fn link(relative: &Reader, id: GenerationId, length: u64, target: &File, name: &str) -> bool {
    let found = relative.pages_files().position(|file| file.id == id && file.length == length);
    let Some(number) = found else { return false };
    let theirs = pages_file_name(number, id);
    linkat(relative.directory_file(), theirs.as_str(), target, name, AtFlags::empty()).is_ok()
}

/// Opens a file of a generation that somebody may be removing.
fn open(source: &Reader, name: &str) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file: OwnedFd = openat(source.directory_file(), name, flags, Mode::empty())?;
    Ok(file.into())
}

/// Makes a file that only the user may read or write, whatever the umask.
fn create(target: &File, name: &str) -> io::Result<File> {
    let flags =
        OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let private = Mode::S_IRUSR | Mode::S_IWUSR;
    let file: OwnedFd = openat(target, name, flags, private)?;
    let file = File::from(file);
    file.set_permissions(PermissionsExt::from_mode(private.bits()))?;
    Ok(file)
}

/// Copies a file and brings it to the disk. Gives its length.
fn transfer(
    from: &mut File,
    to: &mut File,
    [source, target]: &[PathBuf; 2],
    goes_on: &dyn Fn() -> bool,
) -> Result<u64, CopyError> {
    let read = |error| CopyError::Read { path: source.clone(), source: error };
    let written = |error| CopyError::Write { path: target.clone(), source: error };
    let mut piece = vec![0; PIECE];
    let mut length = 0;
    for number in 1_usize.. {
        if !goes_on() {
            return Err(CopyError::GivenUp);
        }
        let filled = match from.read(&mut piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            filled => filled.map_err(read)?,
        };
        if filled == 0 {
            break;
        }
        to.write_all(&piece[..filled]).map_err(written)?;
        length += to_u64(filled);
        if number.is_multiple_of(PIECES_TO_SYNC) {
            to.sync_data().map_err(written)?;
        }
    }
    to.sync_all().map_err(written)?;
    Ok(length)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use super::{Copied, CopyError, copy};
    use crate::image::reader::{Depth, Reader};
    use crate::image::{WriteOptions, Writer, sample};

    fn write(path: &Path, parent: Option<Reader>) -> Reader {
        fs::create_dir(path).unwrap();
        let writer = Writer::create_on(path, WriteOptions::default(), parent).unwrap();
        writer.finish(&sample::job()).unwrap();
        Reader::open(path).unwrap()
    }

    #[test]
    fn a_copy_is_the_same_and_shares_what_it_can() {
        let scratch = tempfile::tempdir().unwrap();
        let place = |name: &str| scratch.path().join(name);
        let first = write(&place("first"), None);
        for name in ["one", "two", "three"] {
            fs::create_dir(place(name)).unwrap();
        }
        let alone = copy(&first, None, &place("one"), &|| true).unwrap();
        assert_eq!(alone, Copied { bytes: first.stored_bytes(), shared: 0 });
        let one = Reader::open(&place("one")).unwrap();
        one.verify(Depth::Decoded, &|_| ()).unwrap();
        assert_eq!((one.id(), one.job()), (first.id(), first.job()));
        // Somebody removes it meanwhile.
        fs::rename(place("first"), place(".old")).unwrap();
        let again = copy(&first, Some(&one), &place("two"), &|| true).unwrap();
        assert_eq!(again.bytes + again.shared, alone.bytes);
        assert!(again.shared > 0);
        let number = |name: &str| fs::metadata(place(name)).unwrap().ino();
        assert_eq!(number("one/pages.rckpt"), number("two/pages.rckpt"));
        let asked = Cell::new(0);
        let until = || asked.replace(asked.get() + 1) < 1;
        let given_up = copy(&first, None, &place("three"), &until);
        assert!(matches!(given_up, Err(CopyError::GivenUp)));
        assert!(Reader::open(&place("three")).is_err());
    }
}
