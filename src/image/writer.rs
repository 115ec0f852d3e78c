//! Writing a generation: page data through a pipeline of bounded memory, then the records.
//!
//! The caller's thread fills buffers (it may be the only one allowed to read a tracee), worker
//! threads compress and hash them, one thread writes them in order. A fixed number of buffers goes
//! round and round, so that memory stays bounded and a slow disk holds the caller back.
//!
//! The writer fills a directory that it is given; making, naming and publishing that is
//! [`crate::job::directory`]'s. It owns no policy about what to store.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use super::codec::{Codec, Packer, checksum};
use super::error::{Part, WriteError};
use super::format::{
    GenerationId, IMAGE_FILE, ImageHeader, PAGES_FILE, PAGES_HEADER_LENGTH, PagesHeader,
    SectionEntry, first_section_offset,
};
use super::index::{CHUNK_LENGTH, CHUNK_PAGES, Chunk, PageIndex, PagesFile, Run};
use super::section::{JobHeader, SECTION_LENGTH_LIMIT, SECTIONS, SectionKind, encode};
use super::validate::{check_index, check_job};
use crate::model::id::ObjectId;
use crate::model::job::Job;
use crate::model::number::{PAGE_SIZE, page_align_up, to_u64, to_usize};

/// Most worker threads: each holds about 4 MiB, and a handful outruns any disk.
pub const WORKER_LIMIT: usize = 16;

const PAGE: usize = to_usize(PAGE_SIZE);
static ZERO_PAGE: [u8; PAGE] = [0; PAGE];

/// How to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteOptions {
    /// What to try on page data and records.
    pub codec: Codec,
    /// Threads that compress, 1..=[`WORKER_LIMIT`]; other numbers are brought into that range.
    pub workers: usize,
}

impl Default for WriteOptions {
    fn default() -> Self {
        let workers = thread::available_parallelism().map_or(1, NonZero::get);
        Self { codec: Codec::default(), workers: workers.min(WORKER_LIMIT) }
    }
}

/// What an absent page means in the object that is being stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroPages {
    /// Zero: anonymous memory, holes of a file's content. Pages of zeros are left out.
    Drop,
    /// Something else: a private mapping of a file, where it means the file's own page. Pages of
    /// zeros are stored like any other.
    Keep,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of both files.
    pub stored_bytes: u64,
    /// Bytes of the stored pages before compression.
    pub raw_bytes: u64,
    /// Pages left out because they hold zeros.
    pub zero_pages: u64,
    /// Chunks of page data.
    pub chunks: u64,
}

/// A generation being written. Dropping it unfinished ends its threads and leaves partial files,
/// which no reader takes.
pub struct Writer {
    directory: PathBuf,
    directory_file: File,
    id: GenerationId,
    codec: Codec,
    pipeline: Option<Pipeline>,
    filling: Option<Filling>,
    raw_pages: u64,
    zero_pages: u64,
}

impl Writer {
    /// Starts writing into `directory`: it must exist, be private to the user and have no image yet.
    ///
    /// # Errors
    /// When the directory, the file of page data or a thread cannot be had.
    pub fn create(directory: &Path, options: WriteOptions) -> Result<Self, WriteError> {
        let directory_file = open_directory(directory)?;
        let id = GenerationId::random();
        let pages = create_file(&directory_file, directory, PAGES_FILE)?;
        let pages_path = directory.join(PAGES_FILE);
        pages.write_all_at(&PagesHeader { id }.encode(), 0).map_err(|source| {
            WriteError::WriteFile { path: pages_path.clone(), part: Part::Header, source }
        })?;
        let pipeline = Pipeline::start(pages, pages_path, options)?;
        Ok(Self {
            directory: directory.to_owned(),
            directory_file,
            id,
            codec: options.codec,
            pipeline: Some(pipeline),
            filling: None,
            raw_pages: 0,
            zero_pages: 0,
        })
    }

    /// Stores `pages` pages of `object` from `first_page` on.
    ///
    /// `read(page, buffer)` is called on this thread, several times, to fill `buffer` (whole pages,
    /// at most 1 MiB) from page `page` on. `zeros` says whether pages of zeros may be left out.
    ///
    /// # Errors
    /// When `read` fails, or writing has failed meanwhile. The writer is of no more use then.
    pub fn store(
        &mut self,
        object: ObjectId,
        first_page: u64,
        pages: u64,
        zeros: ZeroPages,
        read: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> Result<(), WriteError> {
        let beyond = first_page
            .checked_add(pages)
            .filter(|end| end.checked_mul(PAGE_SIZE).is_some())
            .ok_or(WriteError::BoundPages { object, first_page, pages })?;
        let mut page = first_page;
        while page < beyond {
            let mut filling = match self.filling.take() {
                Some(filling) => filling,
                None => Filling { slot: self.free_slot()?, pages: 0 },
            };
            let count = u64::from(CHUNK_PAGES - filling.pages).min(beyond - page);
            let start = to_usize(u64::from(filling.pages) * PAGE_SIZE);
            let buffer = &mut filling.slot.plain[start..start + to_usize(count * PAGE_SIZE)];
            read(page, buffer).map_err(|source| WriteError::ReadPages {
                object,
                first_page: page,
                pages: count,
                source,
            })?;
            self.zero_pages += filling.keep(object, page, count, zeros);
            page += count;
            if filling.pages == CHUNK_PAGES {
                self.submit(filling)?;
            } else {
                self.filling = Some(filling);
            }
        }
        Ok(())
    }

    /// Writes what is left of the page data, then the records, and brings everything to the disk.
    ///
    /// # Errors
    /// When that fails, or when the records contradict each other, so that no reader would take
    /// them: better now than when they are needed.
    pub fn finish(mut self, job: &Job) -> Result<Summary, WriteError> {
        if let Some(filling) = self.filling.take().filter(|filling| filling.pages > 0) {
            self.submit(filling)?;
        }
        let pipeline = self.pipeline.take().ok_or(WriteError::ContinueWriting)?;
        let written = pipeline.finish()?;
        let index = PageIndex {
            files: vec![PagesFile { id: self.id, length: written.length }],
            chunks: written.chunks,
        };
        check_job(job)
            .and_then(|()| check_index(job, &index))
            .map_err(|source| WriteError::CheckRecords { source })?;
        let image_length = self.write_image(job, &index)?;

        let pages_path = self.directory.join(PAGES_FILE);
        sync(&written.file, pages_path)?;
        sync(&self.directory_file, self.directory.clone())?;
        Ok(Summary {
            stored_bytes: image_length + written.length,
            raw_bytes: self.raw_pages * PAGE_SIZE,
            zero_pages: self.zero_pages,
            chunks: to_u64(index.chunks.len()),
        })
    }

    fn free_slot(&mut self) -> Result<Box<Slot>, WriteError> {
        let pipeline = self.pipeline.as_mut().ok_or(WriteError::ContinueWriting)?;
        match pipeline.free_slot() {
            Some(slot) => Ok(slot),
            None => Err(self.failure()),
        }
    }

    fn submit(&mut self, filling: Filling) -> Result<(), WriteError> {
        self.raw_pages += u64::from(filling.pages);
        let pipeline = self.pipeline.as_mut().ok_or(WriteError::ContinueWriting)?;
        if pipeline.submit(filling) { Ok(()) } else { Err(self.failure()) }
    }

    /// Why the pipeline takes no more.
    fn failure(&mut self) -> WriteError {
        match self.pipeline.take().map(Pipeline::finish) {
            Some(Err(error)) => error,
            Some(Ok(_)) | None => WriteError::ContinueWriting,
        }
    }

    fn write_image(&self, job: &Job, index: &PageIndex) -> Result<u64, WriteError> {
        let path = self.directory.join(IMAGE_FILE);
        let file = create_file(&self.directory_file, &self.directory, IMAGE_FILE)?;
        let write = |part: Part, bytes: &[u8], offset: u64| {
            file.write_all_at(bytes, offset).map_err(|source| WriteError::WriteFile {
                path: path.clone(),
                part,
                source,
            })
        };
        let mut packer = Packer::new(self.codec);
        let mut packed = Vec::new();
        let mut table = Vec::new();
        let mut offset = first_section_offset(SECTIONS.len());
        for (kind, version) in SECTIONS {
            let part = Part::Section(kind);
            let plain = encode_section(kind, job, index)
                .map_err(|source| WriteError::EncodeSection { part, source })?;
            if to_u64(plain.len()) > SECTION_LENGTH_LIMIT {
                return Err(WriteError::BoundSection { part, length: plain.len() });
            }
            let packed_length = packer.pack(&plain, &mut packed);
            let stored = packed_length.map_or(plain.as_slice(), |length| &packed[..length]);
            write(part, stored, offset)?;
            let entry = SectionEntry {
                kind,
                version,
                critical: true,
                compressed: packed_length.is_some(),
                offset,
                stored_length: to_u64(stored.len()),
                length: to_u64(plain.len()),
                checksum: checksum(stored),
            };
            offset += entry.stored_length;
            table.extend_from_slice(&entry.encode());
        }
        let sections = u32::try_from(SECTIONS.len()).expect("there are ten sections");
        let header = ImageHeader { id: self.id, file_length: offset, sections }.encode(&table);
        write(Part::SectionTable, &table, to_u64(header.len()))?;
        write(Part::Header, &header, 0)?;
        sync(&file, path)?;
        Ok(offset)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(pipeline) = self.pipeline.take() {
            // The caller gives this generation up, so how far it came is of no interest.
            drop(pipeline.finish());
        }
    }
}

/// The bytes of the section `kind`, which is one of [`SECTIONS`].
pub(super) fn encode_section(
    kind: SectionKind,
    job: &Job,
    index: &PageIndex,
) -> Result<Vec<u8>, postcard::Error> {
    match kind {
        SectionKind::JOB => encode(&JobHeader::of(job)),
        SectionKind::PROCESSES => encode(&job.processes),
        SectionKind::ADDRESS_SPACES => encode(&job.address_spaces),
        SectionKind::FD_TABLES => encode(&job.fd_tables),
        SectionKind::DIRECTORIES => encode(&job.fs),
        SectionKind::OPEN_FILES => encode(&job.open_files),
        SectionKind::INODES => encode(&job.inodes),
        SectionKind::PIPES => encode(&job.pipes),
        SectionKind::OUTPUTS => encode(&job.outputs),
        SectionKind::PAGE_INDEX => encode(index),
        other => unreachable!("section {other} is not written"),
    }
}

fn open_directory(path: &Path) -> Result<File, WriteError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty())
        .map(File::from)
        .map_err(|errno| WriteError::OpenDirectory { path: path.to_owned(), source: errno.into() })
}

/// Makes a file that only the user may read or write, whatever the umask.
fn create_file(directory: &File, path: &Path, name: &str) -> Result<File, WriteError> {
    let flags =
        OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let private = Mode::S_IRUSR | Mode::S_IWUSR;
    let make = || -> io::Result<File> {
        let file: OwnedFd = openat(directory, name, flags, private)?;
        let file = File::from(file);
        file.set_permissions(PermissionsExt::from_mode(private.bits()))?;
        Ok(file)
    };
    make().map_err(|source| WriteError::CreateFile { path: path.join(name), source })
}

fn sync(file: &File, path: PathBuf) -> Result<(), WriteError> {
    file.sync_all().map_err(|source| WriteError::SyncFile { path, source })
}

/// A pair of buffers that goes round: filled by the caller, compressed by a worker, written, and
/// filled again.
struct Slot {
    plain: Vec<u8>,
    packed: Vec<u8>,
    runs: Vec<Run>,
}

impl Slot {
    fn new() -> Box<Self> {
        Box::new(Self { plain: vec![0; CHUNK_LENGTH], packed: Vec::new(), runs: Vec::new() })
    }
}

/// A slot being filled.
struct Filling {
    slot: Box<Slot>,
    pages: u32,
}

impl Filling {
    /// Takes in `count` pages that were read behind those already here, closing the gaps that pages
    /// of zeros leave. Gives the number of those.
    fn keep(&mut self, object: ObjectId, first_page: u64, count: u64, zeros: ZeroPages) -> u64 {
        let Slot { plain, runs, .. } = &mut *self.slot;
        let first_slot = u64::from(self.pages);
        let mut dropped = 0;
        for number in 0..count {
            let from = to_usize((first_slot + number) * PAGE_SIZE);
            if zeros == ZeroPages::Drop && plain[from..from + PAGE] == ZERO_PAGE {
                dropped += 1;
                continue;
            }
            let to = to_usize(u64::from(self.pages) * PAGE_SIZE);
            if to != from {
                plain.copy_within(from..from + PAGE, to);
            }
            let page = first_page + number;
            match runs.last_mut() {
                Some(run) if run.object == object && run.end_page() == page => run.pages += 1,
                _ => runs.push(Run { object, first_page: page, pages: 1, slot: self.pages }),
            }
            self.pages += 1;
        }
        dropped
    }
}

/// A chunk on its way: numbered by the caller, so that the file has the caller's order.
struct Numbered<T> {
    number: usize,
    slot: Box<Slot>,
    work: T,
}

/// What is to be packed: so many pages.
struct Filled {
    pages: u32,
}

/// What is to be written.
struct Packed {
    pages: u32,
    /// Bytes in the slot's packed buffer; `None`: store the plain ones.
    packed_length: Option<usize>,
    checksum: u64,
    stored_checksum: u64,
}

struct Written {
    file: File,
    length: u64,
    chunks: Vec<Chunk>,
}

/// The threads and the channels between them. When one end of a channel is gone its other end
/// fails, so an error in the writing thread reaches the caller by itself, and nobody waits forever.
struct Pipeline {
    filled: Sender<Numbered<Filled>>,
    free: Receiver<Box<Slot>>,
    slots_left: usize,
    next_number: usize,
    workers: Vec<JoinHandle<()>>,
    writing: JoinHandle<Result<Written, WriteError>>,
}

impl Pipeline {
    fn start(file: File, path: PathBuf, options: WriteOptions) -> Result<Self, WriteError> {
        let workers = options.workers.clamp(1, WORKER_LIMIT);
        // One in each worker's hands and one waiting for it; one being filled, one being written.
        let slots = 2 * workers + 2;
        let (filled, to_pack) = bounded(slots);
        let (packed, to_write) = bounded(slots);
        let (emptied, free) = bounded(slots);
        let writing = spawn("rckpt-write", move || write_chunks(file, path, to_write, emptied))?;
        let workers = (0..workers)
            .map(|_| {
                let (to_pack, packed) = (to_pack.clone(), packed.clone());
                spawn("rckpt-pack", move || pack_chunks(options.codec, &to_pack, &packed))
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { filled, free, slots_left: slots, next_number: 0, workers, writing })
    }

    /// An empty slot, waiting for one if all are under way; `None` when writing has failed.
    fn free_slot(&mut self) -> Option<Box<Slot>> {
        if let Ok(slot) = self.free.try_recv() {
            return Some(slot);
        }
        if self.slots_left > 0 {
            self.slots_left -= 1;
            return Some(Slot::new());
        }
        self.free.recv().ok()
    }

    /// Hands over a slot; false when writing has failed.
    fn submit(&mut self, filling: Filling) -> bool {
        let Filling { slot, pages } = filling;
        let number = self.next_number;
        self.next_number += 1;
        self.filled.send(Numbered { number, slot, work: Filled { pages } }).is_ok()
    }

    /// Waits for everything handed over to be written.
    fn finish(self) -> Result<Written, WriteError> {
        drop(self.filled);
        drop(self.free);
        for worker in self.workers {
            join(worker);
        }
        join(self.writing)
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, WriteError> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|source| WriteError::StartThread { source })
}

/// The thread's result. Its panic is a bug in this file, and goes on in the caller.
fn join<T>(thread: JoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn pack_chunks(
    codec: Codec,
    to_pack: &Receiver<Numbered<Filled>>,
    packed: &Sender<Numbered<Packed>>,
) {
    let mut packer = Packer::new(codec);
    for Numbered { number, mut slot, work } in to_pack {
        let plain = &slot.plain[..to_usize(u64::from(work.pages) * PAGE_SIZE)];
        let sum = checksum(plain);
        let packed_length = packer.pack(plain, &mut slot.packed);
        let stored_checksum = packed_length.map_or(sum, |length| checksum(&slot.packed[..length]));
        let work = Packed { pages: work.pages, packed_length, checksum: sum, stored_checksum };
        if packed.send(Numbered { number, slot, work }).is_err() {
            // The writing thread has failed, and says why itself.
            return;
        }
    }
}

fn write_chunks(
    file: File,
    path: PathBuf,
    to_write: Receiver<Numbered<Packed>>,
    emptied: Sender<Box<Slot>>,
) -> Result<Written, WriteError> {
    let mut early = BTreeMap::new();
    let mut chunks: Vec<Chunk> = Vec::new();
    let mut end = to_u64(PAGES_HEADER_LENGTH);
    for arrived in to_write {
        early.insert(arrived.number, arrived);
        while let Some(Numbered { number, mut slot, work }) = early.remove(&chunks.len()) {
            let pages = work.pages;
            // Plain chunks start on a page. The hole before them reads as zeros.
            let (codec, offset, stored) = match work.packed_length {
                Some(length) => (Codec::Lz4, end, &slot.packed[..length]),
                None => {
                    let length = to_usize(u64::from(pages) * PAGE_SIZE);
                    (Codec::None, page_align_up(end), &slot.plain[..length])
                }
            };
            file.write_all_at(stored, offset).map_err(|source| WriteError::WriteFile {
                path: path.clone(),
                part: Part::Chunk(number),
                source,
            })?;
            end = offset + to_u64(stored.len());
            chunks.push(Chunk {
                file: 0,
                offset,
                stored_length: u32::try_from(stored.len()).expect("a chunk has at most 1 MiB"),
                codec,
                pages,
                stored_checksum: work.stored_checksum,
                checksum: work.checksum,
                runs: std::mem::take(&mut slot.runs),
            });
            if emptied.send(slot).is_err() {
                // The caller fills no more; what is under way is still written.
            }
        }
    }
    Ok(Written { file, length: end, chunks })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::{CHUNK_PAGES, PAGE, WriteOptions, Writer, ZeroPages};
    use crate::image::codec::Codec;
    use crate::image::reader::{Depth, Reader};
    use crate::image::sample;
    use crate::model::id::ObjectId;

    /// Stores pages whose content tells which they are, and finds every one again.
    fn round_trip(codec: Codec, fill: fn(u64, &mut [u8])) {
        let directory = tempfile::tempdir().unwrap();
        let mut writer =
            Writer::create(directory.path(), WriteOptions { codec, workers: 3 }).unwrap();
        let memory = sample::MEMORY_PAGES;
        let mut read = |first: u64, buffer: &mut [u8]| {
            for (number, page) in (first..).zip(buffer.chunks_exact_mut(PAGE)) {
                fill(number, page);
            }
            Ok(())
        };
        let (start, pages) = memory;
        writer.store(ObjectId(0), start, 100, ZeroPages::Drop, &mut read).unwrap();
        writer.store(ObjectId(0), start + 120, pages - 120, ZeroPages::Drop, &mut read).unwrap();
        writer
            .store(ObjectId(1), 0, 2, ZeroPages::Keep, &mut |_, page| {
                page.fill(0);
                Ok(())
            })
            .unwrap();
        let job = sample::job();
        let summary = writer.finish(&job).unwrap();
        assert_eq!(summary.zero_pages, 0);
        assert_eq!(summary.raw_bytes, (pages - 18) * 4096);

        for file in ["image.rckpt", "pages.rckpt"] {
            let metadata = std::fs::metadata(directory.path().join(file)).unwrap();
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        }
        let reader = Reader::open(directory.path()).unwrap();
        assert_eq!(*reader.job(), job);
        assert_eq!(reader.stored_bytes(), summary.stored_bytes);
        assert!(reader.chunks().iter().all(|chunk| chunk.pages <= CHUNK_PAGES));
        let mut found = Vec::new();
        let (mut buffer, mut expected) = (Vec::new(), vec![0; PAGE]);
        for chunk in reader.chunks() {
            let bytes = reader.decode(chunk, &mut buffer).unwrap();
            for run in &chunk.runs {
                for (number, page) in (run.first_page..).zip(run.bytes_in(bytes).chunks_exact(PAGE))
                {
                    match run.object {
                        ObjectId(0) => fill(number, &mut expected),
                        _ => expected.fill(0),
                    }
                    assert!(page == expected, "page {number:#x}");
                    found.push((run.object, number));
                }
            }
        }
        let kept = (start..start + 100).chain(start + 120..start + pages);
        let all: Vec<_> = kept
            .map(|page| (ObjectId(0), page))
            .chain([(ObjectId(1), 0), (ObjectId(1), 1)])
            .collect();
        assert_eq!(found, all);
        reader.verify(Depth::Stored, &|_| ()).unwrap();
        reader.verify(Depth::Decoded, &|_| ()).unwrap();
    }

    #[test]
    fn pages_that_compress_come_back() {
        round_trip(Codec::Lz4, |number, page| page.fill(number.to_le_bytes()[0] | 1));
        round_trip(Codec::None, |number, page| page.fill(number.to_le_bytes()[0] | 1));
    }

    #[test]
    fn pages_that_do_not_compress_come_back() {
        round_trip(Codec::Lz4, sample::noise);
    }

    #[test]
    fn chunks_are_plain_where_compression_does_not_pay() {
        round_trip(Codec::Lz4, |number, page| {
            if number.is_multiple_of(700) { page.fill(3) } else { sample::noise(number, page) }
        });
    }

    #[test]
    fn zero_pages_are_left_out_where_they_mean_absence() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(directory.path(), WriteOptions::default()).unwrap();
        let (start, _) = sample::MEMORY_PAGES;
        let mut read = |first: u64, buffer: &mut [u8]| {
            for (number, page) in (first..).zip(buffer.chunks_exact_mut(PAGE)) {
                page.fill(0);
                if number % 3 == 0 {
                    page[4095] = 1;
                }
            }
            Ok(())
        };
        writer.store(ObjectId(0), start, 900, ZeroPages::Drop, &mut read).unwrap();
        let summary = writer.finish(&sample::job()).unwrap();
        assert_eq!((summary.zero_pages, summary.raw_bytes), (600, 300 * 4096));
        let reader = Reader::open(directory.path()).unwrap();
        let runs: Vec<_> = reader.chunks().iter().flat_map(|chunk| &chunk.runs).collect();
        assert_eq!(runs.len(), 300);
        assert!(runs.iter().all(|run| run.first_page % 3 == 0 && run.pages == 1));
    }

    #[test]
    fn a_failing_source_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(directory.path(), WriteOptions::default()).unwrap();
        let error = writer
            .store(ObjectId(0), 7, 1, ZeroPages::Drop, &mut |_, _| {
                Err(std::io::Error::other("gone"))
            })
            .unwrap_err();
        assert_eq!(error.to_string(), "cannot read 1 pages from page 0x7 of object 0: gone");
    }

    #[test]
    fn an_unfinished_writer_leaves_nothing_that_a_reader_takes() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(directory.path(), WriteOptions::default()).unwrap();
        let (start, pages) = sample::MEMORY_PAGES;
        let mut read = |_, buffer: &mut [u8]| {
            buffer.fill(1);
            Ok(())
        };
        writer.store(ObjectId(0), start, pages, ZeroPages::Drop, &mut read).unwrap();
        drop(writer);
        assert!(Reader::open(directory.path()).is_err());
    }

    #[test]
    fn a_full_disk_is_told_as_such() {
        // Every write to this device fails with ENOSPC; the pipeline has to hand that on.
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let options = WriteOptions { codec: Codec::None, workers: 2 };
        let mut pipeline = super::Pipeline::start(full, "pages.rckpt".into(), options).unwrap();
        let mut taken = 0;
        while let Some(slot) = pipeline.free_slot() {
            assert!(taken < 100, "nobody noticed that the disk is full");
            taken += 1;
            if !pipeline.submit(super::Filling { slot, pages: 1 }) {
                break;
            }
        }
        let error = pipeline.finish().map(|_| ()).unwrap_err();
        assert!(error.is_out_of_space(), "{error}");
    }
}
