//! Writing a generation: page data, then the records.
//!
//! Page data goes through the pipeline; what need not be stored is found here on the way to it:
//! pages of zeros, pages that are the same in the generation before, and pages that another process
//! of the job has, too. With [`Writer::keep`] the caller says itself what has not changed.
//!
//! The writer fills a directory that it is given; making, naming and publishing that is
//! [`crate::job::directory`]'s. It owns no policy about what to store.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::num::{NonZero, NonZeroU64};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use super::codec::{Codec, Packer, PageHash, checksum};
use super::duplicates::{Duplicates, Place};
use super::error::{Part, WriteError};
use super::format::{
    GenerationId, IMAGE_FILE, ImageHeader, PAGES_FILE, PagesHeader, SectionEntry,
    first_section_offset,
};
use super::index::{PageIndex, PagesFile, Run};
use super::parent::{Inheritance, Parent, Settled};
use super::pipeline::{Filling, Pipeline, WORKER_LIMIT, forget};
use super::reader::Reader;
use super::section::{JobHeader, SECTION_LENGTH_LIMIT, SECTIONS, SectionKind, encode};
use super::validate::{check_index, check_job};
use super::watch::Watch;
use crate::model::id::ObjectId;
use crate::model::job::Job;
use crate::model::number::{PAGE_SIZE, to_u64, to_usize};

static ZERO_PAGE: [u8; to_usize(PAGE_SIZE)] = [0; to_usize(PAGE_SIZE)];

/// How to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteOptions {
    /// What to try on page data and records.
    pub codec: Codec,
    /// Threads that compress, 1..=8; other numbers are brought into that range.
    pub workers: usize,
    /// Bytes a second of page data that are written at most once the writer has been told to give way
    /// ([`Writer::advise`]): as long as a job stands still nothing is gained by taking longer.
    pub rate: Option<NonZeroU64>,
}

impl Default for WriteOptions {
    fn default() -> Self {
        let workers = thread::available_parallelism().map_or(1, NonZero::get);
        Self { codec: Codec::default(), workers: workers.min(WORKER_LIMIT), rate: None }
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
    /// Bytes of the files that were written.
    pub stored_bytes: u64,
    /// Bytes of the stored pages before compression.
    pub raw_bytes: u64,
    /// Pages left out because they hold zeros.
    pub zero_pages: u64,
    /// Pages left out because the earlier generation has them.
    pub kept_pages: u64,
    /// Pages left out because they are stored for another object.
    pub duplicate_pages: u64,
    /// Pages of earlier generations that were stored anew, so that a file could be let go.
    pub folded_pages: u64,
    /// Chunks of page data that were written.
    pub chunks: u64,
}

/// A generation being written. Dropping it unfinished ends its threads and leaves partial files,
/// which no reader takes.
pub struct Writer {
    directory: PathBuf,
    directory_file: File,
    id: GenerationId,
    codec: Codec,
    hash_seed: u64,
    parent: Option<Parent>,
    /// Objects here whose pages are compared with those of an object of the parent.
    compared: BTreeMap<ObjectId, ObjectId>,
    duplicates: Duplicates,
    /// Pages that are stored for others: the number of the chunk, and the run.
    shared: Vec<(usize, Run)>,
    pipeline: Option<Pipeline>,
    filling: Option<Filling>,
    summary: Summary,
    watch: Option<Watch>,
}

impl Writer {
    /// Starts writing into `directory`: it must exist, be private to the user and have no image yet.
    ///
    /// # Errors
    /// When the directory, the file of page data or a thread cannot be had.
    pub fn create(directory: &Path, options: WriteOptions) -> Result<Self, WriteError> {
        Self::create_on(directory, options, None)
    }

    /// Starts writing a generation that builds on an earlier one of the same file system. Where
    /// [`Writer::parent`] tells afterwards that there is none, the generation stands by itself:
    /// the file system knows no hard links, or the earlier generation is being removed.
    ///
    /// # Errors
    /// As for [`Writer::create`].
    pub fn create_on(
        directory: &Path,
        options: WriteOptions,
        parent: Option<Reader>,
    ) -> Result<Self, WriteError> {
        let directory_file = open_directory(directory)?;
        let id = GenerationId::random();
        let parent = match parent {
            Some(reader) => Parent::adopt(reader, &directory_file, directory)?,
            None => None,
        };
        let pages = create_file(&directory_file, directory, PAGES_FILE)?;
        let pages_path = directory.join(PAGES_FILE);
        pages.write_all_at(&PagesHeader { id }.encode(), 0).map_err(|source| {
            WriteError::WriteFile { path: pages_path.clone(), part: Part::Header, source }
        })?;
        let pipeline = Pipeline::start(pages, pages_path, options)?;
        // Hashes can be compared only under one seed, so a whole line of generations has one.
        let hash_seed = match &parent {
            Some(parent) => parent.reader().hash_seed(),
            None => GenerationId::random().seed(),
        };
        Ok(Self {
            directory: directory.to_owned(),
            directory_file,
            id,
            codec: options.codec,
            hash_seed,
            parent,
            compared: BTreeMap::new(),
            duplicates: Duplicates::new(),
            shared: Vec::new(),
            pipeline: Some(pipeline),
            filling: None,
            summary: Summary::default(),
            watch: None,
        })
    }

    /// Has somebody told of the bytes that are looked at, stored or not.
    pub fn watch(&mut self, watch: Watch) {
        self.watch = Some(watch);
    }

    /// The id that the generation will have.
    #[must_use]
    pub const fn id(&self) -> GenerationId {
        self.id
    }

    /// The generation that this one builds on, if it does: pages may be kept from that.
    #[must_use]
    pub fn parent(&self) -> Option<&Reader> {
        self.parent.as_ref().map(Parent::reader)
    }

    /// Has every thread that works on page data call `advice` soon: to make it give way to others, when
    /// there is no hurry any more. The first advice counts.
    pub fn advise(&self, advice: fn()) {
        if let Some(pipeline) = &self.pipeline {
            pipeline.advise(advice);
        }
    }

    /// From now on, pages of `object` given to [`Writer::store`] are left out when the parent has the
    /// same for its object `of`. Equal content is all that counts, so any `of` is right; a good one
    /// is the same process's. Without a parent this does nothing.
    pub fn compare(&mut self, object: ObjectId, of: ObjectId) {
        self.compared.insert(object, of);
    }

    /// `pages` pages of `object` from `first_page` on are what the parent has there for its object
    /// `of`: absent ones, too. The caller knows that none was written since; it need not read them.
    ///
    /// # Errors
    /// When there is no parent, or there are no such pages.
    pub fn keep(
        &mut self,
        object: ObjectId,
        of: ObjectId,
        first_page: u64,
        pages: u64,
    ) -> Result<(), WriteError> {
        let beyond = end_of(object, first_page, pages)?;
        let parent =
            self.parent.as_mut().ok_or(WriteError::FindParent { object, first_page, pages })?;
        parent.keep(object, of, first_page, beyond);
        if let Some(watch) = &self.watch {
            watch.tell(pages.saturating_mul(PAGE_SIZE));
        }
        Ok(())
    }

    /// The first of `pages` pages from `first_page` on that the parent has not for its object `of` as `read`
    /// gives it, where absence means zeros: with this, tests see that [`Writer::keep`] is told the truth.
    ///
    /// # Errors
    /// When `read` fails, or the parent cannot be read.
    pub fn find_difference(
        &mut self,
        of: ObjectId,
        first_page: u64,
        pages: u64,
        read: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> Result<Option<u64>, WriteError> {
        let Some(parent) = self.parent.as_mut() else { return Ok(Some(first_page)) };
        let mut content = ZERO_PAGE;
        for page in first_page..first_page.saturating_add(pages) {
            read(page, &mut content).map_err(|source| WriteError::ReadPages {
                object: of,
                first_page: page,
                pages: 1,
                source,
            })?;
            let there = parent.hash_of(of, page);
            let same = match there.map_err(|source| WriteError::ReadParent { source })? {
                Some(hash) => hash == PageHash::of(&content, self.hash_seed),
                None => content == ZERO_PAGE,
            };
            if !same {
                return Ok(Some(page));
            }
        }
        Ok(None)
    }

    /// Stores `pages` pages of `object` from `first_page` on, but for those that need not be.
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
        let beyond = end_of(object, first_page, pages)?;
        let mut page = first_page;
        while page < beyond {
            let mut filling = match self.filling.take() {
                Some(filling) => filling,
                None => self.begin()?,
            };
            let room = filling.room();
            let count = u32::try_from(beyond - page).map_or(room, |left| left.min(room));
            read(page, filling.space(count)).map_err(|source| WriteError::ReadPages {
                object,
                first_page: page,
                pages: u64::from(count),
                source,
            })?;
            self.sift(&mut filling, object, page, count, zeros)?;
            if let Some(watch) = &self.watch {
                watch.tell(u64::from(count) * PAGE_SIZE);
            }
            page += u64::from(count);
            if filling.room() == 0 {
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
        let inherited = self.take_over()?;
        if let Some(filling) = self.filling.take().filter(|filling| filling.pages() > 0) {
            self.submit(filling)?;
        }
        let pipeline = self.pipeline.take().ok_or(WriteError::ContinueWriting)?;
        let mut written = pipeline.finish()?;
        for (number, run) in std::mem::take(&mut self.shared) {
            Run::append(&mut written.chunks[number].runs, run);
        }
        let own = PagesFile { id: self.id, length: written.length };
        let own_chunks = to_u64(written.chunks.len());
        let index = PageIndex {
            hash_seed: self.hash_seed,
            files: [vec![own], inherited.files].concat(),
            chunks: written.chunks.into_iter().chain(inherited.chunks).collect(),
        };
        let pages_path = self.directory.join(PAGES_FILE);
        let image_length = thread::scope(|scope| {
            // Both files wait for the disk: not one after the other.
            let syncing = thread::Builder::new()
                .spawn_scoped(scope, || sync(&written.file, pages_path))
                .map_err(|source| WriteError::StartThread { source })?;
            check_job(job)
                .and_then(|()| check_index(job, &index))
                .map_err(|source| WriteError::CheckRecords { source })?;
            let length = self.write_image(job, &index)?;
            syncing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok(length)
        })?;
        if written.gives_way {
            forget(&written.file, 0, written.length);
        }
        sync(&self.directory_file, self.directory.clone())?;
        Ok(Summary {
            stored_bytes: image_length + written.length,
            chunks: own_chunks,
            ..self.summary
        })
    }

    /// Takes out of `count` pages that were read behind those of `filling` what has to be stored.
    fn sift(
        &mut self,
        filling: &mut Filling,
        object: ObjectId,
        first_page: u64,
        count: u32,
        zeros: ZeroPages,
    ) -> Result<(), WriteError> {
        let first = filling.pages();
        let compared = self.compared.get(&object).copied();
        for (place, number) in (first..first + count).zip(first_page..) {
            let page = filling.page(place);
            if zeros == ZeroPages::Drop && *page == ZERO_PAGE {
                self.summary.zero_pages += 1;
                continue;
            }
            let hash = PageHash::of(page, self.hash_seed);
            if let (Some(parent), Some(of)) = (self.parent.as_mut(), compared) {
                let found = parent.find(of, number, hash);
                if let Some(origin) = found.map_err(|source| WriteError::ReadParent { source })? {
                    parent.keep_page(object, number, origin);
                    continue;
                }
            }
            let mut run = Run { object, first_page: number, pages: 1, slot: filling.pages() };
            if let Some(other) = self.duplicates.find(object, hash) {
                run.slot = other.slot;
                self.shared.push((other.chunk, run));
                self.summary.duplicate_pages += 1;
                continue;
            }
            let stored = Place { chunk: filling.number(), slot: run.slot };
            self.duplicates.note(object, hash, stored);
            filling.take(place, hash, run);
        }
        Ok(())
    }

    /// Settles what is taken over from the parent, and stores anew what is folded.
    fn take_over(&mut self) -> Result<Inheritance, WriteError> {
        let Some(parent) = self.parent.take() else {
            return Ok(Inheritance { files: Vec::new(), chunks: Vec::new() });
        };
        self.summary.kept_pages = parent.kept_pages();
        let Settled { reader, inherited, folded } =
            parent.settle(&self.directory_file, &self.directory)?;
        let mut buffer = Vec::new();
        for chunk in &folded {
            let pages = reader
                .decode(chunk, &mut buffer)
                .map_err(|source| WriteError::ReadParent { source })?;
            for run in &chunk.runs {
                let bytes = run.bytes_in(pages);
                let copy = &mut |page: u64, space: &mut [u8]| {
                    let start = to_usize((page - run.first_page) * PAGE_SIZE);
                    space.copy_from_slice(&bytes[start..start + space.len()]);
                    Ok(())
                };
                let pages = u64::from(run.pages);
                self.store(run.object, run.first_page, pages, ZeroPages::Keep, copy)?;
                self.summary.folded_pages += pages;
            }
        }
        Ok(inherited)
    }

    fn begin(&mut self) -> Result<Filling, WriteError> {
        let pipeline = self.pipeline.as_mut().ok_or(WriteError::ContinueWriting)?;
        match pipeline.begin() {
            Some(filling) => Ok(filling),
            None => Err(self.failure()),
        }
    }

    fn submit(&mut self, filling: Filling) -> Result<(), WriteError> {
        self.summary.raw_bytes += u64::from(filling.pages()) * PAGE_SIZE;
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
        SectionKind::SOCKETS => encode(&job.sockets),
        SectionKind::TERMINALS => encode(&job.terminals),
        SectionKind::IPC => encode(&job.ipc),
        other => unreachable!("section {other} is not written"),
    }
}

/// The first page after `pages` pages of `object` from `first_page` on.
fn end_of(object: ObjectId, first_page: u64, pages: u64) -> Result<u64, WriteError> {
    first_page
        .checked_add(pages)
        .filter(|end| end.checked_mul(PAGE_SIZE).is_some())
        .ok_or(WriteError::BoundPages { object, first_page, pages })
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::{WriteOptions, Writer, ZeroPages};
    use crate::image::codec::Codec;
    use crate::image::index::CHUNK_PAGES;
    use crate::image::reader::{Depth, Reader};
    use crate::image::sample;
    use crate::model::id::ObjectId;

    const PAGE: usize = 4096;

    /// Stores pages whose content tells which they are, and finds every one again.
    fn round_trip(codec: Codec, fill: fn(u64, &mut [u8])) {
        let directory = tempfile::tempdir().unwrap();
        let mut writer =
            Writer::create(directory.path(), WriteOptions { codec, workers: 3, rate: None })
                .unwrap();
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
}
