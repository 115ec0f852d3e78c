//! Content that has to go into the image: where it is read from, and reading it.
//!
//! Everything is read without touching the job: files through descriptions of our own or at
//! explicit offsets, and what only a mapping shows through /proc/PID/mem.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use crate::model::address::AddrRange;
use crate::model::id::ObjectId;
use crate::model::number::{PAGE_SIZE, to_u64, to_usize};
use crate::sys::descriptor;

/// Tells which pages of a range of a process's memory are resident: one byte for each page, as
/// mincore(2) gives them. Where pages may be in swap all must be called resident.
pub type Residency<'a> = dyn FnMut(Pid, AddrRange) -> io::Result<Vec<u8>> + 'a;

/// The content of an inode, to be stored as a page object.
#[derive(Debug)]
pub struct Content {
    /// The object.
    pub object: ObjectId,
    /// Bytes.
    pub size: u64,
    /// Whether only calls change it, so that it may be read once the job runs again if nothing does.
    pub may_wait: bool,
    pub(super) source: ContentSource,
}

/// Where content is read from.
#[derive(Clone, Debug)]
pub(super) enum ContentSource {
    /// A file, opened anew.
    File {
        /// A path, often a link in /proc that leads to a deleted file.
        path: PathBuf,
        /// A readable descriptor of the job, for files that may not be opened anew.
        readable: Option<(Pid, i32)>,
    },
    /// Mappings, together.
    Mapped {
        /// The parts of the file that are mapped.
        segments: Vec<Segment>,
        /// Whether pages that are not resident are holes, as in memory files.
        holes: bool,
    },
}

/// A part of a file that a process has mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// The process.
    pub pid: Pid,
    /// Where.
    pub range: AddrRange,
    /// Page of the file that is mapped at the start of `range`.
    pub first_page: u64,
    /// MAP_SHARED.
    pub shared: bool,
}

impl Segment {
    /// Page after the last one in the file.
    pub const fn end_page(&self) -> u64 {
        self.first_page.saturating_add(self.range.pages())
    }

    const fn covers(&self, page: u64) -> bool {
        self.first_page <= page && page < self.end_page()
    }

    const fn address_of(&self, page: u64) -> u64 {
        self.range.start.0 + (page - self.first_page) * PAGE_SIZE
    }
}

/// Consecutive pages that hold data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// First page.
    pub first: u64,
    /// How many.
    pub pages: u64,
}

/// Content that has been opened for reading.
#[derive(Debug)]
pub struct ContentReader {
    size: u64,
    input: Input,
}

#[derive(Debug)]
enum Input {
    /// A file; `own` when the description is ours, so that its position may be moved.
    File {
        file: File,
        own: bool,
    },
    Mapped {
        segments: Vec<Segment>,
        holes: bool,
        memories: BTreeMap<i32, Memory>,
    },
}

#[derive(Debug)]
struct Memory {
    pages: File,
    page_map: File,
}

impl Content {
    /// Bytes that it takes up, holes not counted where that is told.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        /// Bytes of the blocks that stat(2) counts.
        const BLOCK: u64 = 512;
        match &self.source {
            ContentSource::File { path, .. } => fs::metadata(path)
                .map_or(self.size, |facts| self.size.min(facts.blocks().saturating_mul(BLOCK))),
            ContentSource::Mapped { .. } => self.size,
        }
    }

    /// Opens the content for reading.
    pub fn open(&self) -> io::Result<ContentReader> {
        Ok(ContentReader { size: self.size, input: self.source.open()? })
    }
}

impl ContentSource {
    /// A path that leads to it.
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Self::File { path, .. } => Some(path.clone()),
            Self::Mapped { .. } => None,
        }
    }

    /// Whether anything can be read, found by trying.
    pub fn probe(&self) -> io::Result<()> {
        self.open().map(drop)
    }

    fn open(&self) -> io::Result<Input> {
        match self {
            Self::File { path, readable } => match open_quietly(path) {
                Ok(file) => Ok(Input::File { file, own: true }),
                Err(error) => match readable {
                    Some((pid, number)) if error.kind() == io::ErrorKind::PermissionDenied => {
                        let pidfd = descriptor::pidfd_open_task(*pid)?;
                        let file = descriptor::pidfd_getfd(&pidfd, *number)?;
                        Ok(Input::File { file: file.into(), own: false })
                    }
                    _ => Err(error),
                },
            },
            Self::Mapped { segments, holes } => {
                let mut memories = BTreeMap::new();
                for segment in segments {
                    let pid = segment.pid;
                    if let std::collections::btree_map::Entry::Vacant(place) =
                        memories.entry(pid.as_raw())
                    {
                        place.insert(Memory {
                            pages: File::open(format!("/proc/{pid}/mem"))?,
                            page_map: File::open(format!("/proc/{pid}/pagemap"))?,
                        });
                    }
                }
                Ok(Input::Mapped { segments: segments.clone(), holes: *holes, memories })
            }
        }
    }
}

/// How many bytes of a file the segments show: up to its end, if that can be found, else to the end
/// of the last mapping.
pub(super) fn mapped_size(segments: &[Segment]) -> io::Result<u64> {
    let source = ContentSource::Mapped { segments: segments.to_vec(), holes: false };
    let Input::Mapped { segments, memories, .. } = source.open()? else {
        return Ok(0);
    };
    let readable = |page: u64| {
        let Some(segment) = segments.iter().find(|segment| segment.covers(page)) else {
            return true;
        };
        let memory = &memories[&segment.pid.as_raw()].pages;
        memory.read_exact_at(&mut [0], segment.address_of(page)).is_ok()
    };
    let end = segments.iter().map(Segment::end_page).max().unwrap_or(0);
    // Pages past the end of a file can be mapped but not read, and all of them lie at the end.
    let (mut low, mut high) = (0, end);
    while low < high {
        let last = if high == end { end - 1 } else { low + (high - low) / 2 };
        if readable(last) {
            low = last + 1;
        } else {
            high = last;
        }
    }
    Ok(low * PAGE_SIZE)
}

impl ContentReader {
    /// A reader of a file of ours.
    pub(super) const fn of(file: File, size: u64) -> Self {
        Self { size, input: Input::File { file, own: true } }
    }

    /// The file, if it was opened by us.
    pub(super) const fn own_file(&self) -> Option<&File> {
        match &self.input {
            Input::File { file, own: true } => Some(file),
            Input::File { .. } | Input::Mapped { .. } => None,
        }
    }

    /// The pages that hold data, ascending. What lies between is a hole.
    pub fn runs(&self, residency: &mut Residency<'_>) -> io::Result<Vec<PageRun>> {
        let pages = self.size.div_ceil(PAGE_SIZE);
        let mut runs = Vec::new();
        match &self.input {
            Input::File { own: false, .. } => add(&mut runs, 0, pages),
            Input::File { file, own: true } => {
                let mut offset = 0;
                while offset < self.size {
                    let (start, end) = match descriptor::next_data(file, offset) {
                        Ok(Some(data)) => data,
                        Ok(None) => break,
                        // Not every file system can tell (proc, some network file systems).
                        Err(nix::errno::Errno::EINVAL | nix::errno::Errno::EOPNOTSUPP) => {
                            (offset, self.size)
                        }
                        Err(error) => return Err(error.into()),
                    };
                    add(&mut runs, start / PAGE_SIZE, end.div_ceil(PAGE_SIZE).min(pages));
                    offset = end;
                }
            }
            Input::Mapped { segments, holes, .. } => {
                for segment in segments {
                    if *holes {
                        add_resident(&mut runs, segment, residency)?;
                    } else {
                        add(&mut runs, segment.first_page, segment.end_page());
                    }
                }
                for run in &mut runs {
                    run.pages = run.pages.min(pages.saturating_sub(run.first));
                }
                runs = union(runs);
            }
        }
        Ok(runs)
    }

    /// Reads whole pages from page `first` on. Past the end of the content there are zeros.
    pub fn read(&self, first: u64, buffer: &mut [u8]) -> io::Result<()> {
        match &self.input {
            Input::File { file, .. } => {
                let filled = descriptor::read_at(file, first * PAGE_SIZE, buffer)?;
                buffer[filled..].fill(0);
                Ok(())
            }
            Input::Mapped { segments, memories, .. } => {
                let (mut page, mut rest) = (first, buffer);
                while !rest.is_empty() {
                    let wanted = to_u64(rest.len()).div_ceil(PAGE_SIZE);
                    let (segment, pages) = best_segment(segments, memories, page, wanted)?;
                    let length = to_usize(pages * PAGE_SIZE).min(rest.len());
                    let (chunk, others) = rest.split_at_mut(length);
                    match segment {
                        Some(segment) => memories[&segment.pid.as_raw()]
                            .pages
                            .read_exact_at(chunk, segment.address_of(page))?,
                        None => chunk.fill(0),
                    }
                    (page, rest) = (page + pages, others);
                }
                Ok(())
            }
        }
    }
}

/// The mapping through which page `page` of the file is seen as it is in the file, and for how many
/// pages that holds, at most `wanted`.
///
/// A shared mapping always shows the file. A private one does until a page is written; then the
/// process has its own copy, which pagemap shows as anonymous. If everybody has its own copy,
/// nobody can see the file's page any more, and any of them will do.
fn best_segment<'a>(
    segments: &'a [Segment],
    memories: &BTreeMap<i32, Memory>,
    page: u64,
    wanted: u64,
) -> io::Result<(Option<&'a Segment>, u64)> {
    let covering = || segments.iter().filter(|segment| segment.covers(page));
    if let Some(segment) = covering().find(|segment| segment.shared) {
        return Ok((Some(segment), wanted.min(segment.end_page() - page)));
    }
    for segment in covering() {
        let pages = wanted.min(segment.end_page() - page);
        let mut entries = vec![0; to_usize(pages * 8)];
        let memory = &memories[&segment.pid.as_raw()];
        memory.page_map.read_exact_at(&mut entries, segment.address_of(page) / PAGE_SIZE * 8)?;
        let shown = entries.as_chunks::<8>().0.iter().take_while(|entry| shows_file(**entry));
        match to_u64(shown.count()) {
            0 => {}
            shown => return Ok((Some(segment), shown)),
        }
    }
    Ok((covering().next(), 1))
}

/// Whether an entry of pagemap is a page of the mapped file rather than a private copy: not in
/// swap (bit 62), and if present (bit 63) then with the bit for file pages (61). See
/// Documentation/admin-guide/mm/pagemap.rst.
fn shows_file(entry: [u8; 8]) -> bool {
    let entry = u64::from_le_bytes(entry);
    let bit = |number: u32| entry >> number & 1 == 1;
    !bit(62) && (!bit(63) || bit(61))
}

fn add(runs: &mut Vec<PageRun>, first: u64, end: u64) {
    if let Some(last) = runs.last_mut()
        && last.first + last.pages == first
    {
        last.pages = end.max(first) - last.first;
    } else if first < end {
        runs.push(PageRun { first, pages: end - first });
    }
}

fn add_resident(
    runs: &mut Vec<PageRun>,
    segment: &Segment,
    residency: &mut Residency<'_>,
) -> io::Result<()> {
    let resident = residency(segment.pid, segment.range)?;
    let mut page = segment.first_page;
    for stretch in resident.chunk_by(|left, right| left & 1 == right & 1) {
        let end = page + to_u64(stretch.len());
        if stretch[0] & 1 == 1 {
            add(runs, page, end);
        }
        page = end;
    }
    Ok(())
}

/// Sorts runs and merges those that overlap or touch.
fn union(mut runs: Vec<PageRun>) -> Vec<PageRun> {
    runs.sort_unstable_by_key(|run| run.first);
    let mut merged: Vec<PageRun> = Vec::with_capacity(runs.len());
    for run in runs.into_iter().filter(|run| run.pages > 0) {
        match merged.last_mut() {
            Some(last) if run.first <= last.first + last.pages => {
                let end = (run.first + run.pages).max(last.first + last.pages);
                last.pages = end - last.first;
            }
            _ => merged.push(run),
        }
    }
    merged
}

/// Opens a file for reading, without changing its access time where we may ask for that.
fn open_quietly(path: &Path) -> io::Result<File> {
    let open = |flags| OpenOptions::new().read(true).custom_flags(flags).open(path);
    match open(libc::O_NOATIME | libc::O_NONBLOCK) {
        // Only the owner may ask for O_NOATIME.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => open(libc::O_NONBLOCK),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_residency(_: Pid, _: AddrRange) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    #[test]
    fn runs_are_sorted_and_merged() {
        let run = |first, pages| PageRun { first, pages };
        assert_eq!(
            union(vec![run(8, 2), run(0, 2), run(1, 3), run(5, 0), run(10, 1)]),
            vec![run(0, 4), run(8, 3)]
        );
    }

    #[test]
    fn files_are_read_by_page_and_holes_are_left_out() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        file.as_file().write_all_at(b"data", 1 << 19).unwrap();
        let content = Content {
            object: ObjectId(0),
            size: 1 << 20,
            may_wait: false,
            source: ContentSource::File { path: file.path().to_owned(), readable: None },
        };
        let reader = content.open().unwrap();
        let runs = reader.runs(&mut no_residency).unwrap();
        let stored: u64 = runs.iter().map(|run| run.pages).sum();
        assert!((1..128).contains(&stored), "{runs:?}");
        let mut page = vec![1; to_usize(PAGE_SIZE)];
        reader.read((1 << 19) / PAGE_SIZE, &mut page).unwrap();
        assert_eq!(&page[..5], b"data\0");
        reader.read(1 << 20, &mut page).unwrap();
        assert!(page.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn pages_of_mappings_come_from_the_file() {
        assert!(shows_file([0; 8]));
        let entry = |bits: u64| bits.to_le_bytes();
        assert!(shows_file(entry(1 << 63 | 1 << 61)));
        assert!(!shows_file(entry(1 << 63)));
        assert!(!shows_file(entry(1 << 62)));
    }

    #[test]
    fn resident_pages_of_memory_files_are_stored() {
        let segment = Segment {
            pid: nix::unistd::getpid(),
            range: AddrRange::new(0x10000, 0x16000).unwrap(),
            first_page: 100,
            shared: true,
        };
        let mut runs = Vec::new();
        add_resident(&mut runs, &segment, &mut |_, _| Ok(vec![1, 1, 0, 0, 1, 0])).unwrap();
        assert_eq!(runs, vec![PageRun { first: 100, pages: 2 }, PageRun { first: 104, pages: 1 }]);
    }
}
