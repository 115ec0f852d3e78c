//! Contents of files that are stored once the job runs again, so that it does not stand still for that.
//!
//! What is stored must be what the file held while the job stood still. Four ways, the first that can be
//! had: a copy by the file system itself, which nobody changes; the file, when it was left alone for a
//! while and is found unchanged after it was read; a copy in memory, of little; and else not later.
//!
//! A file that was left alone is one whose times are told by this very kernel, and lie back so far that a
//! change after this moment must give it others: each write gives a file a new time of change (ctime)
//! before it gives it new bytes. A file that somebody has mapped shared may change without that.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::statfs::fstatfs;

use super::content::{Content, ContentReader, PageRun};
use crate::image::error::WriteError;
use crate::image::writer::{Writer, ZeroPages};
use crate::model::code::{self, Code};
use crate::model::id::ObjectId;
use crate::model::number::{PAGE_SIZE, to_usize};
use crate::sys::reflink;

/// Bytes of all contents together that are copied in memory.
const HELD_TOGETHER: u64 = 64 << 20;
/// For so long at least a file must have been left alone: far longer than the steps in which file systems
/// count time (10 ms at most).
const LEFT_ALONE: Duration = Duration::from_secs(1);
/// What is not left alone for as long as reading it takes will hardly be found unchanged. Bytes a second.
const SPEED: u64 = 100 << 20;
/// File systems whose times this kernel tells by itself (`f_type` of statfs(2)): ext2 to 4, XFS, btrfs,
/// F2FS, tmpfs, and overlayfs, which shows theirs.
const OWN_TIMES: [i64; 6] =
    [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994, 0x794c_7630];

/// A content that is stored later.
#[derive(Debug)]
pub struct Later {
    object: ObjectId,
    size: u64,
    way: Way,
}

/// How it stays what it was.
#[derive(Debug)]
enum Way {
    /// In a copy by the file system.
    Cloned(ContentReader),
    /// In the file, if nobody changes it.
    LeftAlone { reader: ContentReader, facts: Facts, path: PathBuf },
    /// In memory.
    Held(Vec<(PageRun, Vec<u8>)>),
}

/// What tells a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Facts {
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What may still be held in memory.
#[derive(Debug)]
pub struct Room(u64);

impl Default for Room {
    fn default() -> Self {
        Self(HELD_TOGETHER)
    }
}

/// Why a content could not be stored later.
#[derive(Debug, thiserror::Error)]
pub enum LaterError {
    /// The job has changed the file meanwhile: what was read is of no use.
    #[error("{} was changed while it was read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// It could not be read, or not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl LaterError {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Changed { .. } => code::writing::FILE_NOT_QUIET,
            Self::Write(error) => error.code(),
        }
    }
}

/// Puts `content` off until the job runs again, if it stays what it is that long; `directory` is where the
/// image goes. The job stands still.
///
/// # Errors
/// When it cannot be read.
pub fn put_off(content: &Content, directory: &Path, room: &mut Room) -> io::Result<Option<Later>> {
    if !content.may_wait {
        return Ok(None);
    }
    let reader = content.open()?;
    let Some(file) = reader.own_file() else { return Ok(None) };
    let size = content.size;
    let of = |way| Ok(Some(Later { object: content.object, size, way }));
    let path = content.source.path().unwrap_or_default();
    if let Some(copy) = clone(file, &path, directory) {
        return of(Way::Cloned(ContentReader::of(copy, size)));
    }
    let metadata = file.metadata()?;
    if is_left_alone(&metadata, SystemTime::now()) && tells_own_times(file) {
        let facts = Facts::of(&metadata);
        // The name by which people know it, where that is a link in /proc.
        let path = path.read_link().unwrap_or(path);
        return of(Way::LeftAlone { reader, facts, path });
    }
    if size > room.0 {
        return Ok(None);
    }
    let mut held = Vec::new();
    for run in reader.runs(&mut |_, _| Err(io::ErrorKind::Unsupported.into()))? {
        let mut bytes = vec![0; to_usize(run.pages * PAGE_SIZE)];
        reader.read(run.first, &mut bytes)?;
        held.push((run, bytes));
    }
    room.0 -= size;
    of(Way::Held(held))
}

/// A copy by the file system, where the image goes or beside the file.
fn clone(file: &File, path: &Path, directory: &Path) -> Option<File> {
    let real = path.canonicalize().ok();
    let beside = real.as_deref().and_then(Path::parent);
    [Some(directory), beside]
        .into_iter()
        .flatten()
        .find_map(|place| reflink::clone_file(file, place).ok())
}

impl Later {
    /// Stores it. `check` fails when nobody wants it any more.
    ///
    /// # Errors
    /// [`LaterError::Changed`] when it did not stay what it was.
    pub fn store(
        self,
        writer: &mut Writer,
        check: &(dyn Fn() -> io::Result<()> + Sync),
    ) -> Result<(), LaterError> {
        let Self { object, size, way } = self;
        match way {
            Way::Cloned(reader) => store(object, size, &reader, writer, check),
            Way::LeftAlone { reader, facts, path } => {
                let stored = store(object, size, &reader, writer, check);
                let now = reader.own_file().map(File::metadata).transpose();
                match now {
                    Ok(Some(now)) if Facts::of(&now) == facts => stored,
                    _ => Err(LaterError::Changed { path }),
                }
            }
            Way::Held(held) => {
                for (run, bytes) in held {
                    let mut read = |page: u64, buffer: &mut [u8]| {
                        check()?;
                        let start = to_usize((page - run.first) * PAGE_SIZE);
                        buffer.copy_from_slice(&bytes[start..start + buffer.len()]);
                        Ok(())
                    };
                    writer.store(object, run.first, run.pages, ZeroPages::Drop, &mut read)?;
                }
                Ok(())
            }
        }
    }
}

fn store(
    object: ObjectId,
    size: u64,
    reader: &ContentReader,
    writer: &mut Writer,
    check: &(dyn Fn() -> io::Result<()> + Sync),
) -> Result<(), LaterError> {
    let pages = size.div_ceil(PAGE_SIZE);
    let unreadable = |source| WriteError::ReadPages { object, first_page: 0, pages, source };
    let runs =
        reader.runs(&mut |_, _| Err(io::ErrorKind::Unsupported.into())).map_err(unreadable)?;
    for run in runs {
        let mut read = |page: u64, buffer: &mut [u8]| {
            check()?;
            reader.read(page, buffer)
        };
        writer.store(object, run.first, run.pages, ZeroPages::Drop, &mut read)?;
    }
    Ok(())
}

impl Facts {
    fn of(metadata: &Metadata) -> Self {
        Self {
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Whether a file has been left alone for longer than reading it will take.
fn is_left_alone(metadata: &Metadata, now: SystemTime) -> bool {
    let instant = |seconds: i64, nanoseconds: i64| {
        let span = Duration::new(seconds.try_into().ok()?, nanoseconds.try_into().ok()?);
        UNIX_EPOCH.checked_add(span)
    };
    let changed = instant(metadata.ctime(), metadata.ctime_nsec());
    let modified = instant(metadata.mtime(), metadata.mtime_nsec());
    let reading = Duration::from_millis(metadata.size().saturating_mul(1000) / SPEED);
    let needed = LEFT_ALONE + reading;
    [changed, modified].into_iter().all(|time| {
        time.and_then(|time| now.duration_since(time).ok()).is_some_and(|age| age > needed)
    })
}

fn tells_own_times(file: &File) -> bool {
    fstatfs(file).is_ok_and(|found| OWN_TIMES.contains(&found.filesystem_type().0))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::Write;

    use super::*;
    use crate::dump::files::content::ContentSource;
    use crate::image::reader::Reader;
    use crate::image::{WriteOptions, sample};
    use crate::model::number::to_u64;

    fn content(path: &Path) -> Content {
        let size = fs::metadata(path).unwrap().len();
        let source = ContentSource::File { path: path.to_owned(), readable: None };
        Content { object: ObjectId(0), size, may_wait: true, source }
    }

    fn way(later: &Option<Later>) -> &'static str {
        match later.as_ref().map(|later| &later.way) {
            None => "frozen",
            Some(Way::Cloned(_)) => "cloned",
            Some(Way::LeftAlone { .. }) => "left alone",
            Some(Way::Held(_)) => "held",
        }
    }

    #[test]
    fn only_what_stays_is_put_off() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("file");
        fs::write(&path, vec![1; 100_000]).unwrap();
        let file = content(&path);
        let put_off =
            |file: &Content, room: u64| put_off(file, place.path(), &mut Room(room)).unwrap();
        if way(&put_off(&file, 0)) == "cloned" {
            // This file system can do it all.
            return;
        }
        assert_eq!(way(&put_off(&file, 0)), "frozen");
        assert_eq!(way(&put_off(&file, 100_000)), "held");
        assert_eq!(
            way(&put_off(&Content { may_wait: false, ..content(&path) }, 1 << 20)),
            "frozen"
        );
        std::thread::sleep(LEFT_ALONE + Duration::from_millis(50));
        assert_eq!(way(&put_off(&file, 0)), "left alone");
    }

    #[test]
    fn a_change_meanwhile_is_found() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("file");
        fs::write(&path, vec![1; 100_000]).unwrap();
        std::thread::sleep(LEFT_ALONE + Duration::from_millis(50));
        let store = |change: &dyn Fn()| {
            let file = content(&path);
            let later = put_off(&file, place.path(), &mut Room(0)).unwrap().unwrap();
            change();
            let image = tempfile::tempdir().unwrap();
            let mut writer = Writer::create(image.path(), WriteOptions::default()).unwrap();
            let is_cloned = matches!(later.way, Way::Cloned(_));
            let stored = later.store(&mut writer, &|| Ok(()));
            if is_cloned { None } else { Some(stored) }
        };
        assert!(store(&|| ()).is_none_or(|stored| stored.is_ok()));
        let overwrite = || {
            let mut file = OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all(b"other").unwrap();
            // Who puts a time back cannot put back that of the change.
            file.set_modified(UNIX_EPOCH + Duration::from_secs(1)).unwrap();
        };
        let stored = store(&overwrite);
        assert!(stored.is_none_or(|it| matches!(it, Err(LaterError::Changed { .. }))));
    }

    #[test]
    fn what_is_held_is_stored_as_it_was() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("file");
        fs::write(&path, vec![5; 10_000]).unwrap();
        let mut job = sample::job();
        let object = ObjectId(job.objects);
        job.objects += 1;
        let file = Content { object, ..content(&path) };
        let later = put_off(&file, Path::new("/proc"), &mut Room::default()).unwrap().unwrap();
        fs::write(&path, "changed").unwrap();
        let image = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(image.path(), WriteOptions::default()).unwrap();
        later.store(&mut writer, &|| Ok(())).unwrap();
        let last = job.inodes.len() - 1;
        job.inodes[last].content = Some(object);
        job.inodes[last].size = 10_000;
        writer.finish(&job).unwrap();
        let reader = Reader::open(image.path()).unwrap();
        let chunk =
            reader.chunks().iter().find(|chunk| chunk.runs.iter().any(|run| run.object == object));
        let chunk = chunk.expect("it is there");
        let mut buffer = Vec::new();
        let pages = reader.decode(chunk, &mut buffer).unwrap();
        let run = chunk.runs.iter().find(|run| run.object == object).expect("it is there");
        assert_eq!(&run.bytes_in(pages)[..10_000], vec![5; 10_000]);
        assert_eq!(to_u64(run.bytes_in(pages).len()), 3 * PAGE_SIZE);
    }
}
