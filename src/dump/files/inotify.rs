//! Inotify instances: which files they watch, by which numbers.
//!
//! The kernel tells the inode numbers of what is watched, and no paths. A file is looked for among those
//! that the job has in use, then around them, and then on the whole file system; whether it is the one
//! is found out by watching it with an instance of our own, which shows the same.

use std::collections::{HashSet, VecDeque};
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::refusal::{Place, RefusalKind};
use super::scan::{Description, FileStat};
use super::{CollectFilesError, Collector, Failure, call_failed, duplicate, inode};
use crate::model::event::FileWatch;
use crate::model::file::OpenFileKind;
use crate::model::id::{Bytes, InodeId, OpenFileId};
use crate::model::number::to_usize;
use crate::sys::fdinfo::InotifyWatch;
use crate::sys::inotify;

/// The largest number of a watch that a restore brings back: those before it must be used up first.
const LARGEST_NUMBER: i32 = 1 << 20;

/// Entries of directories that are looked at, at most, while the job stands still.
const MOST_ENTRIES: usize = 500_000;

/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// What listing a directory is told as, to those who watch it or the directory that it is in.
const LISTING: u32 = libc::IN_OPEN | libc::IN_ACCESS | libc::IN_CLOSE_NOWRITE;

/// An instance whose watched files are still to be found.
#[derive(Debug)]
pub(super) struct Unresolved {
    /// Its record.
    pub file: OpenFileId,
    /// Who has it, for messages.
    pub holder: (nix::unistd::Pid, i32),
    /// The kernel's name for it.
    pub link: Vec<u8>,
    /// What it watches.
    pub watches: Vec<InotifyWatch>,
}

/// Records an instance that watches nothing yet; [`find_watched`] adds what it watches.
pub(super) fn collect(
    collector: &mut Collector,
    found: &Description,
    file: OpenFileId,
) -> Result<OpenFileKind, Failure> {
    let instance = duplicate(found)?;
    let queued = inotify::queued(instance.as_raw_fd()).map_err(call_failed(found, "FIONREAD"))?;
    if queued != 0 {
        return Err(RefusalKind::EventsQueued.into());
    }
    let watches = found.entries[0].info.inotify.clone();
    if let Some(watch) = watches.iter().find(|watch| watch.number > LARGEST_NUMBER) {
        return Err(RefusalKind::WatchNumber { number: watch.number }.into());
    }
    if !watches.is_empty() {
        let (holder, link) = (found.holder, found.link.clone());
        collector.unresolved.push(Unresolved { file, holder, link, watches });
    }
    Ok(OpenFileKind::Inotify { watches: Vec::new() })
}

/// Finds the files that instances watch, and adds them to the records. To be called when all other files
/// of the job are known.
pub(super) fn find_watched(collector: &mut Collector) -> Result<(), CollectFilesError> {
    let instances = std::mem::take(&mut collector.unresolved);
    let sought: HashSet<&Bytes> =
        instances.iter().flat_map(|found| &found.watches).map(|watch| &watch.file).collect();
    if sought.is_empty() {
        return Ok(());
    }
    let mut search = Search::new(&instances);
    search.run(collector.inodes.places());
    for Unresolved { file, holder, link, watches } in &instances {
        let mut found = Vec::new();
        for watch in watches {
            let inode = match search.paths.iter().find(|(sought, _)| *sought == watch.file) {
                Some((_, path)) => intern(collector, path, *holder)?,
                None => Err(RefusalKind::WatchedFileNotFound {
                    number: watch.number,
                    inode: watch.inode,
                }),
            };
            match inode {
                Ok(inode) => {
                    found.push(FileWatch { number: watch.number, inode, mask: watch.mask });
                }
                Err(kind) => collector.refuse(holder.0, Place::Descriptor(holder.1), link, kind),
            }
        }
        found.sort_unstable_by_key(|watch| watch.number);
        let index = to_usize(u64::from(file.0));
        if let OpenFileKind::Inotify { watches } = &mut collector.open_files[index].kind {
            *watches = found;
        }
    }
    Ok(())
}

fn intern(
    collector: &mut Collector,
    path: &Path,
    holder: (nix::unistd::Pid, i32),
) -> Result<Result<InodeId, RefusalKind>, CollectFilesError> {
    // A link in /proc leads to a file that has no path any more.
    let by_descriptor = path.starts_with("/proc");
    let (stat, link) = if by_descriptor {
        (super::scan::stat(path)?, super::scan::read_link(path)?)
    } else {
        let Ok(metadata) = fs::symlink_metadata(path) else {
            return Ok(Err(RefusalKind::NotReachable));
        };
        (FileStat::from(&metadata), Bytes::from(path).0)
    };
    let found = inode::Found {
        stat,
        link: &link,
        proc_path: path.to_owned(),
        readable: None,
        user: (holder.0, Place::Descriptor(holder.1)),
    };
    match collector.inodes.intern(found) {
        Ok(id) => Ok(Ok(id)),
        Err(Failure::Refused(kind)) => Ok(Err(kind)),
        Err(Failure::Failed(error)) => Err(error),
    }
}

/// The search for watched files.
struct Search {
    /// What is still to be found: inode numbers, and what tells the file itself.
    sought: Vec<(u64, Bytes)>,
    /// What has been found.
    paths: Vec<(Bytes, PathBuf)>,
    /// Inode numbers of directories in which looking would be noticed by the job, and below which, too.
    listened: HashSet<u64>,
    /// Devices of what is sought, as far as these are the same as in `stat`.
    devices: HashSet<u64>,
    visited: HashSet<(u64, u64)>,
    entries: usize,
    begun: Instant,
}

impl Search {
    fn new(instances: &[Unresolved]) -> Self {
        let watches = || instances.iter().flat_map(|found| &found.watches);
        let mut sought: Vec<(u64, Bytes)> =
            watches().map(|watch| (watch.inode, watch.file.clone())).collect();
        sought.sort_unstable();
        sought.dedup();
        Self {
            sought,
            paths: Vec::new(),
            listened: watches()
                .filter(|watch| watch.mask & LISTING != 0)
                .map(|watch| watch.inode)
                .collect(),
            devices: watches().map(|watch| watch.device).collect(),
            visited: HashSet::new(),
            entries: 0,
            begun: Instant::now(),
        }
    }

    /// Looks at `known` files, which are in use, then below their directories, then below the places
    /// where the file systems in question are mounted.
    fn run(&mut self, known: Vec<PathBuf>) {
        for path in &known {
            self.try_path(path);
        }
        let mut nearby: Vec<PathBuf> = Vec::new();
        for path in known.iter().filter(|path| !path.starts_with("/proc")) {
            // The path itself, if it is a directory; and all above, nearest first.
            for ancestor in path.ancestors() {
                if !nearby.iter().any(|place| place == ancestor) {
                    nearby.push(ancestor.to_owned());
                }
            }
        }
        for place in &nearby {
            self.try_path(place);
        }
        nearby.sort_by_key(|place| std::cmp::Reverse(place.components().count()));
        // The root directory holds everything: that comes last.
        let nearby = nearby.into_iter().filter(|place| place.parent().is_some());
        for place in nearby.collect::<Vec<_>>().iter().chain(&mounts(&self.devices)) {
            self.search_below(place);
        }
    }

    fn is_over(&self) -> bool {
        self.sought.is_empty() || self.entries > MOST_ENTRIES || self.begun.elapsed() > PATIENCE
    }

    fn search_below(&mut self, place: &Path) {
        let Ok(metadata) = fs::symlink_metadata(place) else { return };
        let device = metadata.dev();
        if !metadata.is_dir() || !self.visited.insert((device, metadata.ino())) {
            return;
        }
        self.try_path(place);
        let above = place.parent().and_then(|parent| fs::symlink_metadata(parent).ok());
        if above.is_some_and(|above| self.listened.contains(&above.ino()))
            || self.listened.contains(&metadata.ino())
        {
            return;
        }
        let mut directories = VecDeque::from([place.to_owned()]);
        while let Some(directory) = directories.pop_front() {
            // What may not be listed holds nothing that could be found.
            let Ok(entries) = fs::read_dir(&directory) else { continue };
            for entry in entries.flatten() {
                if self.is_over() {
                    return;
                }
                self.entries += 1;
                let Ok(metadata) = entry.metadata() else { continue };
                let path = entry.path();
                if self.sought.iter().any(|(number, _)| *number == metadata.ino()) {
                    self.try_path(&path);
                }
                let own = metadata.is_dir() && metadata.dev() == device;
                let heard = self.listened.contains(&metadata.ino());
                if own && !heard && self.visited.insert((device, metadata.ino())) {
                    directories.push_back(path);
                }
            }
        }
    }

    /// Whether a path leads to something that is sought.
    fn try_path(&mut self, path: &Path) {
        let Ok(metadata) = fs::metadata(path) else { return };
        if !self.sought.iter().any(|(number, _)| *number == metadata.ino()) {
            return;
        }
        let Ok(Some(shown)) = inotify::identity(path) else { return };
        if let Some(place) = self.sought.iter().position(|(_, file)| *file == shown.file) {
            let (_, file) = self.sought.remove(place);
            self.paths.push((file, path.to_owned()));
        }
    }
}

/// Where the file systems with these device numbers are mounted; the root directory comes along, for
/// there are file systems that show other numbers.
fn mounts(devices: &HashSet<u64>) -> Vec<PathBuf> {
    let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mut places: Vec<PathBuf> =
        text.split(|byte| *byte == b'\n').filter_map(|line| mount_of(line, devices)).collect();
    places.push(PathBuf::from("/"));
    places
}

/// The mount point in a line of mountinfo, if it is of one of these devices.
fn mount_of(line: &[u8], devices: &HashSet<u64>) -> Option<PathBuf> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split(' ').skip(2);
    let (major, minor) = words.next()?.split_once(':')?;
    let device = nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?);
    let point = words.nth(1)?;
    // Spaces and the like are written as octal numbers; such a place is searched from above.
    (devices.contains(&device) && !point.contains('\\')).then(|| PathBuf::from(point))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_by_what_a_watch_shows() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("one/two/three");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), "").unwrap();
        let shown = inotify::identity(&deep.join("file")).unwrap().unwrap();
        let instance = Unresolved {
            file: OpenFileId(0),
            holder: (nix::unistd::getpid(), 3),
            link: Vec::new(),
            watches: vec![shown.clone()],
        };
        let mut search = Search::new(&[instance]);
        search.run(vec![directory.path().join("one")]);
        assert_eq!(search.paths, vec![(shown.file, deep.join("file"))]);
    }

    #[test]
    fn mounts_of_a_device_are_known() {
        let line = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw";
        let of = |major, minor| HashSet::from([nix::sys::stat::makedev(major, minor)]);
        assert_eq!(mount_of(line, &of(98, 0)), Some(PathBuf::from("/mnt2")));
        assert_eq!(mount_of(line, &of(98, 1)), None);
        assert_eq!(mount_of(b"", &of(98, 1)), None);
    }
}
