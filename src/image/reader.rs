//! Reading a generation: everything is checked before it is believed.
//!
//! The order is always the same: bounds, then checksum, then decoding, then the cross references.
//! What a [`Reader`] hands out has passed all four, so that later code may index with it. Memory
//! is bounded by lengths that were compared with the files' own.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use nix::fcntl::{AtFlags, OFlag, PosixFadviseAdvice, open, openat, posix_fadvise};
use nix::sys::stat::Mode;
use nix::unistd::{geteuid, linkat};
use serde::de::DeserializeOwned;

use super::codec::{
    Codec, PAGE_HASH_LENGTH, PageHash, checksum, hash_pages, largest_unpacked, unpack,
};
use super::error::{Part, ReadError};
use super::format::{
    GenerationId, IMAGE_FILE, IMAGE_HEADER_LENGTH, ImageHeader, PAGES_FILE, PAGES_HEADER_LENGTH,
    PagesHeader, SECTION_ENTRY_LENGTH, SectionEntry, first_section_offset,
};
use super::index::{CHUNK_PAGES_LIMIT, Chunk, PageIndex, PagesFile, parent_pages_file};
use super::section::{JobHeader, SECTION_LENGTH_LIMIT, SECTIONS, SectionKind, decode};
use super::validate::{check_index, check_job};
use super::watch::Watch;
use crate::model::job::Job;
use crate::model::number::{PAGE_SIZE, page_align_up, to_u64, to_usize};

/// How many chunks ahead of the one that is read others are to be expected: 32 MiB, what a fast disk reads
/// in some milliseconds.
pub const AHEAD: usize = 32;

/// Whose images are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Only those that nobody but this user (or root) owns or could have written: for restoring.
    Own,
    /// Anybody's: for looking at them, which runs nothing.
    Anybody,
}

/// How much [`Reader::verify`] checks of the page data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The checksum of every stored byte.
    Stored,
    /// Also decompresses everything, and compares each page's hash.
    Decoded,
}

/// A generation whose records have been read and checked. Page data is read and checked when asked
/// for, from several threads if wanted.
#[derive(Debug)]
pub struct Reader {
    directory: PathBuf,
    directory_file: File,
    id: GenerationId,
    job: Job,
    hash_seed: u64,
    chunks: Vec<Chunk>,
    /// Zero bytes that must follow each chunk, up to the next one.
    padding: Vec<u32>,
    files: Vec<OpenPages>,
    sections: Vec<SectionEntry>,
    stored_bytes: u64,
    watch: Option<Watch>,
}

#[derive(Debug)]
struct OpenPages {
    id: GenerationId,
    path: PathBuf,
    file: File,
    length: u64,
}

/// How much of a file of page data a generation uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileUse {
    /// The generation that wrote it.
    pub id: GenerationId,
    /// Its length in bytes.
    pub length: u64,
    /// How many of them belong to pages that this generation uses.
    pub used: u64,
}

impl Reader {
    /// Opens the generation in `directory` (itself, not a symbolic link to it) for restoring.
    ///
    /// # Errors
    /// When anything but page data is not exactly as written, belongs to another user or could have
    /// been written by one, or cannot be understood by this program.
    pub fn open(directory: &Path) -> Result<Self, ReadError> {
        Self::open_trusting(directory, Trust::Own)
    }

    /// Opens the generation in `directory`, whoever may have written it according to `trust`.
    ///
    /// # Errors
    /// See [`Reader::open`].
    pub fn open_trusting(directory: &Path, trust: Trust) -> Result<Self, ReadError> {
        let directory_file = open_directory(directory)?;
        if trust == Trust::Own {
            check_trust(&directory_file, directory)?;
        }
        let image = open_image(&directory_file, directory, trust)?;
        let Image { id, job, index, sections, length } = image;

        let image_path = directory.join(IMAGE_FILE);
        let contradiction = |source| ReadError::CheckRecords { path: image_path.clone(), source };
        check_job(&job).map_err(contradiction)?;
        let padding = check_layout(&image_path, id, &index)?;
        check_index(&job, &index).map_err(contradiction)?;

        let mut files = Vec::with_capacity(index.files.len());
        let mut stored_bytes = length;
        for (number, pages) in index.files.iter().enumerate() {
            let name = pages_file_name(number, pages.id);
            files.push(open_pages(&directory_file, directory, &name, pages, trust)?);
            stored_bytes = stored_bytes.saturating_add(pages.length);
        }
        Ok(Self {
            directory: directory.to_owned(),
            directory_file,
            id,
            job,
            hash_seed: index.hash_seed,
            chunks: index.chunks,
            padding,
            files,
            sections,
            stored_bytes,
            watch: None,
        })
    }

    /// Has somebody told of the bytes of page data that are decoded.
    pub fn watch(&mut self, watch: Watch) {
        self.watch = Some(watch);
    }

    /// Bytes of all page data, once decoded.
    #[must_use]
    pub fn page_bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| to_u64(chunk.length())).sum()
    }

    /// The generation's directory, as it was given.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The generation's own number, drawn by its writer.
    #[must_use]
    pub const fn id(&self) -> GenerationId {
        self.id
    }

    /// The job's records. Every reference in them leads somewhere.
    #[must_use]
    pub const fn job(&self) -> &Job {
        &self.job
    }

    /// The page data. No page of an object is in it twice.
    #[must_use]
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The table of sections.
    #[must_use]
    pub fn sections(&self) -> &[SectionEntry] {
        &self.sections
    }

    /// Bytes of all files that the generation consists of, those of earlier ones among them.
    #[must_use]
    pub const fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// Bytes that the generation itself added: what is not in files of earlier ones.
    #[must_use]
    pub fn own_bytes(&self) -> u64 {
        let earlier: u64 = self.files.iter().skip(1).map(|file| file.length).sum();
        self.stored_bytes.saturating_sub(earlier)
    }

    /// The files of page data: the generation's own first, then those of earlier ones.
    #[must_use]
    pub fn files(&self) -> Vec<FileUse> {
        let unused = |file: &OpenPages| FileUse { id: file.id, length: file.length, used: 0 };
        let mut files: Vec<FileUse> = self.files.iter().map(unused).collect();
        for chunk in &self.chunks {
            files[to_usize(u64::from(chunk.file))].used += chunk.used_bytes(&chunk.runs);
        }
        files
    }

    /// Seed of all hashes of pages.
    pub(super) const fn hash_seed(&self) -> u64 {
        self.hash_seed
    }

    /// The directory, which somebody may have given another name.
    pub(super) const fn directory_file(&self) -> &File {
        &self.directory_file
    }

    /// What a child needs to name a file of page data as its own source.
    pub(super) fn pages_files(&self) -> impl Iterator<Item = PagesFile> {
        self.files.iter().map(|file| PagesFile { id: file.id, length: file.length })
    }

    /// Gives the file of page data `number` another name in `directory`, under which a child finds
    /// it. Whether that was possible: not every file system has such links, and somebody may be
    /// removing this generation.
    pub(super) fn link_file(&self, number: usize, directory: &File) -> bool {
        let Some(pages) = self.files.get(number) else { return false };
        let name = pages_file_name(number, pages.id);
        let child = parent_pages_file(pages.id);
        linkat(&self.directory_file, name.as_str(), directory, child.as_str(), AtFlags::empty())
            .is_ok()
    }

    /// Says that a chunk will be read soon, so that the disk can begin with it.
    pub fn expect(&self, chunk: &Chunk) {
        let range = (i64::try_from(chunk.offset), i64::try_from(chunk.end() - chunk.offset));
        let (Ok(offset), Ok(length)) = range else { return };
        let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
        // This is about time only.
        posix_fadvise(&self.file_of(chunk).file, offset, length, advice).unwrap_or_default();
    }

    /// Reads a chunk, one of [`Reader::chunks`], checks it, its hashes and what lies behind it, and gives
    /// its pages, which [`super::index::Run::bytes_in`] finds in them. `buffer` is only room to work in;
    /// reuse it.
    ///
    /// # Errors
    /// When the chunk cannot be read or is not exactly as written.
    pub fn decode<'a>(
        &self,
        chunk: &Chunk,
        buffer: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], ReadError> {
        let length = chunk.length();
        let packed = packed_length(chunk);
        if buffer.len() < length + packed {
            buffer.resize(length + packed, 0);
        }
        let (plain, packed) = buffer[..length + packed].split_at_mut(length);
        self.decode_parts(chunk, plain, packed)?;
        Ok(plain)
    }

    /// The same, into `plain`, which has the chunk's length. `buffer` is room to work in.
    ///
    /// # Errors
    /// As [`Reader::decode`]; `plain` holds anything then.
    ///
    /// # Panics
    /// When `plain` has another length.
    pub fn decode_into(
        &self,
        chunk: &Chunk,
        plain: &mut [u8],
        buffer: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        assert_eq!(plain.len(), chunk.length(), "room for exactly the chunk");
        let packed = packed_length(chunk);
        if buffer.len() < packed {
            buffer.resize(packed, 0);
        }
        self.decode_parts(chunk, plain, &mut buffer[..packed])
    }

    fn decode_parts(
        &self,
        chunk: &Chunk,
        plain: &mut [u8],
        packed: &mut [u8],
    ) -> Result<(), ReadError> {
        match chunk.codec {
            Codec::None => self.read_stored(chunk, plain)?,
            Codec::Lz4 => {
                self.read_stored(chunk, packed)?;
                if !unpack(packed, plain) {
                    return Err(ReadError::Decompress {
                        path: self.path_of(chunk),
                        part: Part::Chunk(self.number_of(chunk)),
                    });
                }
            }
        }
        // A restore has no use for these, but an image in which any byte has changed is not restored.
        self.read_hashes(chunk, &mut Vec::new())?;
        self.check_padding(chunk)?;
        if let Some(watch) = &self.watch {
            watch.tell(to_u64(chunk.length()));
        }
        Ok(())
    }

    /// Reads the hashes of a chunk's pages into `hashes`.
    ///
    /// # Errors
    /// When they cannot be read or are not exactly as written.
    pub fn hashes(&self, chunk: &Chunk, hashes: &mut Vec<PageHash>) -> Result<(), ReadError> {
        let mut table = Vec::new();
        self.read_hashes(chunk, &mut table)?;
        let (words, _) = table.as_chunks::<PAGE_HASH_LENGTH>();
        hashes.clear();
        hashes.extend(words.iter().copied().map(PageHash));
        Ok(())
    }

    /// Checks all page data, on as many threads as the machine has processors. `progress` is told
    /// how many chunks are done, from any thread. Gives the number of stored bytes of page data.
    ///
    /// # Errors
    /// The first damage found.
    pub fn verify(
        &self,
        depth: Depth,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<u64, ReadError> {
        let workers = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = || -> Result<(), ReadError> {
            let (mut buffer, mut table) = (Vec::new(), Vec::new());
            while let Some(chunk) = self.chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.verify_chunk(chunk, depth, &mut buffer, &mut table).inspect_err(|_| {
                    // The other threads need not go on.
                    next.store(self.chunks.len(), Ordering::Relaxed);
                })?;
                progress(done.fetch_add(1, Ordering::Relaxed) + 1);
            }
            Ok(())
        };
        thread::scope(|scope| {
            // With fewer threads than wished for it takes longer, and that is all.
            let start = |_| thread::Builder::new().spawn_scoped(scope, work).ok();
            let threads: Vec<_> = (1..workers.min(self.chunks.len())).map_while(start).collect();
            let own = work();
            threads.into_iter().try_fold(own?, |(), thread| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })?;
        Ok(self.chunks.iter().map(|chunk| u64::from(chunk.stored_length)).sum())
    }

    fn verify_chunk(
        &self,
        chunk: &Chunk,
        depth: Depth,
        buffer: &mut Vec<u8>,
        table: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        match depth {
            Depth::Decoded => {
                let plain = self.decode(chunk, buffer)?;
                hash_pages(plain, self.hash_seed, table);
                if checksum(table) != chunk.checksum {
                    return Err(self.damaged(chunk));
                }
            }
            Depth::Stored => {
                buffer.resize(to_usize(u64::from(chunk.stored_length)), 0);
                self.read_stored(chunk, buffer)?;
                self.read_hashes(chunk, table)?;
                self.check_padding(chunk)?;
            }
        }
        Ok(())
    }

    /// Reads and checks a chunk's stored bytes.
    fn read_stored(&self, chunk: &Chunk, stored: &mut [u8]) -> Result<(), ReadError> {
        self.read_part(chunk, Part::Chunk(self.number_of(chunk)), stored, chunk.offset)?;
        if checksum(stored) != chunk.stored_checksum {
            return Err(self.damaged(chunk));
        }
        Ok(())
    }

    /// Reads and checks a chunk's table of hashes.
    fn read_hashes(&self, chunk: &Chunk, table: &mut Vec<u8>) -> Result<(), ReadError> {
        let part = Part::Hashes(self.number_of(chunk));
        table.resize(chunk.hashes_length(), 0);
        self.read_part(chunk, part, table, chunk.hashes_offset())?;
        if checksum(table) != chunk.checksum {
            return Err(ReadError::MatchChecksum { path: self.path_of(chunk), part });
        }
        Ok(())
    }

    /// Checks that what lies between a chunk and the next one is zero.
    fn check_padding(&self, chunk: &Chunk) -> Result<(), ReadError> {
        let number = self.number_of(chunk);
        let padding = self.padding.get(number).map_or(0, |bytes| to_usize(u64::from(*bytes)));
        let part = Part::Padding(number);
        let mut bytes = [0xff; to_usize(PAGE_SIZE)];
        let bytes = &mut bytes[..padding];
        self.read_part(chunk, part, bytes, chunk.end())?;
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        Err(ReadError::BoundPart { path: self.path_of(chunk), part, problem: "it is not zero" })
    }

    fn read_part(
        &self,
        chunk: &Chunk,
        part: Part,
        bytes: &mut [u8],
        offset: u64,
    ) -> Result<(), ReadError> {
        let OpenPages { path, file, .. } = self.file_of(chunk);
        read_at(file, path, part, bytes, offset)
    }

    fn file_of(&self, chunk: &Chunk) -> &OpenPages {
        &self.files[to_usize(u64::from(chunk.file))]
    }

    fn path_of(&self, chunk: &Chunk) -> PathBuf {
        self.file_of(chunk).path.clone()
    }

    fn damaged(&self, chunk: &Chunk) -> ReadError {
        let part = Part::Chunk(self.number_of(chunk));
        ReadError::MatchChecksum { path: self.path_of(chunk), part }
    }

    /// The chunk's number in the index. Chunks are ascending within a file.
    fn number_of(&self, chunk: &Chunk) -> usize {
        let place = |chunk: &Chunk| (chunk.file, chunk.offset);
        self.chunks.partition_point(|other| place(other) < place(chunk))
    }
}

/// Bytes of a chunk as they are stored, when these are not its pages.
fn packed_length(chunk: &Chunk) -> usize {
    match chunk.codec {
        Codec::None => 0,
        Codec::Lz4 => to_usize(u64::from(chunk.stored_length)),
    }
}

/// The file with the records, decoded but not yet cross-checked.
struct Image {
    id: GenerationId,
    job: Job,
    index: PageIndex,
    sections: Vec<SectionEntry>,
    length: u64,
}

fn open_image(directory: &File, path: &Path, trust: Trust) -> Result<Image, ReadError> {
    let path = path.join(IMAGE_FILE);
    let (file, length) = open_file(directory, &path, IMAGE_FILE, trust)?;
    let fault = |fault| ReadError::header(&path, fault);

    let mut header_bytes = [0; IMAGE_HEADER_LENGTH];
    check_room(&path, Part::Header, length, to_u64(IMAGE_HEADER_LENGTH))?;
    read_at(&file, &path, Part::Header, &mut header_bytes, 0)?;
    let header = ImageHeader::decode(&header_bytes).map_err(fault)?;

    let mut table = vec![0; header.table_length()];
    let table_end = to_u64(IMAGE_HEADER_LENGTH + table.len());
    check_room(&path, Part::SectionTable, length, table_end)?;
    read_at(&file, &path, Part::SectionTable, &mut table, to_u64(IMAGE_HEADER_LENGTH))?;
    ImageHeader::check(&header_bytes, &table).map_err(fault)?;
    if header.file_length != length {
        return Err(ReadError::MatchLength { path, declared: header.file_length, found: length });
    }

    let sections = decode_table(&path, &table, length)?;
    let mut contents = Contents { path: &path, file: &file, sections: &sections };
    contents.check_unknown()?;
    let job_header: JobHeader = contents.decode(SectionKind::JOB)?;
    let job = Job {
        id: job_header.id,
        command: job_header.command,
        root: job_header.root,
        machine: job_header.machine,
        clocks: job_header.clocks,
        vdso: job_header.vdso,
        objects: job_header.objects,
        processes: contents.decode(SectionKind::PROCESSES)?,
        address_spaces: contents.decode(SectionKind::ADDRESS_SPACES)?,
        fd_tables: contents.decode(SectionKind::FD_TABLES)?,
        fs: contents.decode(SectionKind::DIRECTORIES)?,
        open_files: contents.decode(SectionKind::OPEN_FILES)?,
        inodes: contents.decode(SectionKind::INODES)?,
        pipes: contents.decode(SectionKind::PIPES)?,
        sockets: contents.decode(SectionKind::SOCKETS)?,
        terminals: contents.decode(SectionKind::TERMINALS)?,
        ipc: contents.decode(SectionKind::IPC)?,
        outputs: contents.decode(SectionKind::OUTPUTS)?,
    };
    let index = contents.decode(SectionKind::PAGE_INDEX)?;
    Ok(Image { id: header.id, job, index, sections, length })
}

/// Reads the entries of the table. The sections must cover the rest of the file without gaps.
fn decode_table(path: &Path, table: &[u8], length: u64) -> Result<Vec<SectionEntry>, ReadError> {
    let damaged = |part, problem| ReadError::BoundPart { path: path.to_owned(), part, problem };
    let (entries, _) = table.as_chunks::<SECTION_ENTRY_LENGTH>();
    let mut sections: Vec<SectionEntry> = Vec::with_capacity(entries.len());
    let mut end = first_section_offset(entries.len());
    for bytes in entries {
        let entry = SectionEntry::decode(bytes).ok_or_else(|| {
            damaged(Part::SectionTable, "an entry has flags that this rckpt does not know")
        })?;
        let part = Part::Section(entry.kind);
        if sections.iter().any(|other| other.kind == entry.kind) {
            return Err(ReadError::RepeatSection { path: path.to_owned(), kind: entry.kind });
        }
        if entry.offset != end {
            return Err(damaged(part, "it does not start where the one before it ends"));
        }
        end = entry
            .offset
            .checked_add(entry.stored_length)
            .filter(|end| *end <= length)
            .ok_or_else(|| damaged(part, "it reaches beyond the end of the file"))?;
        let largest = match entry.compressed {
            true => largest_unpacked(entry.stored_length),
            false => entry.stored_length,
        };
        if entry.length > largest
            || entry.length > SECTION_LENGTH_LIMIT
            || entry.stored_length > SECTION_LENGTH_LIMIT
            || (!entry.compressed && entry.length != entry.stored_length)
        {
            return Err(damaged(part, "its declared length is impossible"));
        }
        sections.push(entry);
    }
    if end != length {
        return Err(damaged(Part::SectionTable, "the sections end before the file does"));
    }
    Ok(sections)
}

/// The sections of an open file.
struct Contents<'a> {
    path: &'a Path,
    file: &'a File,
    sections: &'a [SectionEntry],
}

impl Contents<'_> {
    /// Refuses critical sections that this program does not understand, and checks the bytes of the
    /// others that it does not.
    fn check_unknown(&self) -> Result<(), ReadError> {
        for entry in self.sections {
            if SECTIONS.contains(&(entry.kind, entry.version)) {
                continue;
            }
            if entry.critical {
                return Err(ReadError::SupportSection {
                    path: self.path.to_owned(),
                    kind: entry.kind,
                    version: entry.version,
                });
            }
            self.stored(entry)?;
        }
        Ok(())
    }

    fn decode<T: DeserializeOwned>(&mut self, kind: SectionKind) -> Result<T, ReadError> {
        let path = || self.path.to_owned();
        let part = Part::Section(kind);
        let entry = self
            .sections
            .iter()
            .find(|entry| entry.kind == kind && SECTIONS.contains(&(kind, entry.version)))
            .ok_or_else(|| ReadError::FindSection { path: path(), kind })?;
        let mut bytes = self.stored(entry)?;
        if entry.compressed {
            let mut plain = vec![0; to_usize(entry.length)];
            if !unpack(&bytes, &mut plain) {
                return Err(ReadError::Decompress { path: path(), part });
            }
            bytes = plain;
        }
        decode(&bytes).map_err(|source| ReadError::DecodeSection { path: path(), part, source })
    }

    /// The stored bytes of a section, whose bounds have been checked, once their checksum has been.
    fn stored(&self, entry: &SectionEntry) -> Result<Vec<u8>, ReadError> {
        let part = Part::Section(entry.kind);
        let mut bytes = vec![0; to_usize(entry.stored_length)];
        read_at(self.file, self.path, part, &mut bytes, entry.offset)?;
        if checksum(&bytes) != entry.checksum {
            return Err(ReadError::MatchChecksum { path: self.path.to_owned(), part });
        }
        Ok(bytes)
    }
}

/// Checks where the index says that chunks lie. Gives the padding behind each chunk.
fn check_layout(path: &Path, id: GenerationId, index: &PageIndex) -> Result<Vec<u32>, ReadError> {
    let damaged = |part, problem| ReadError::BoundPart { path: path.to_owned(), part, problem };
    let whole = |problem| damaged(Part::Section(SectionKind::PAGE_INDEX), problem);
    let own = index.files.first().ok_or_else(|| whole("it names no file of page data"))?;
    if own.id != id {
        return Err(whole("it names the page data of another checkpoint as its own"));
    }
    let parents = &index.files[1..];
    let repeated = |number: usize, file: &PagesFile| {
        file.id == id || parents[..number].iter().any(|other| other.id == file.id)
    };
    if parents.iter().enumerate().any(|(number, file)| repeated(number, file)) {
        return Err(whole("it names a file of page data twice"));
    }

    let mut padding = vec![0_u32; index.chunks.len()];
    let mut before: Option<(usize, &Chunk)> = None;
    for (number, chunk) in index.chunks.iter().enumerate() {
        let damaged = |problem| damaged(Part::Chunk(number), problem);
        let file = index
            .files
            .get(to_usize(u64::from(chunk.file)))
            .ok_or_else(|| damaged("it lies in a file that is not named"))?;
        let length = to_u64(chunk.length());
        let stored = u64::from(chunk.stored_length);
        let fits = match chunk.codec {
            Codec::None => stored == length && chunk.offset.is_multiple_of(PAGE_SIZE),
            Codec::Lz4 => stored > 0 && stored < length && length <= largest_unpacked(stored),
        };
        if chunk.pages == 0 || chunk.pages > CHUNK_PAGES_LIMIT || !fits {
            return Err(damaged("its declared length is impossible"));
        }
        let first = to_u64(PAGES_HEADER_LENGTH);
        if chunk.offset < first || chunk.end() > file.length {
            return Err(damaged("it reaches beyond its file"));
        }
        let same_file = before.filter(|(_, earlier)| earlier.file == chunk.file);
        if before.is_some_and(|(_, earlier)| earlier.file > chunk.file)
            || same_file.is_some_and(|(_, earlier)| earlier.end() > chunk.offset)
        {
            return Err(damaged("it lies before the end of the chunk before it"));
        }
        if chunk.file == 0 {
            // Every byte of the own file belongs to a chunk, or is padding before a plain one.
            let end = same_file.map_or(first, |(_, earlier)| earlier.end());
            let start = match chunk.codec {
                Codec::None => page_align_up(end),
                Codec::Lz4 => end,
            };
            if chunk.offset != start {
                return Err(damaged("it does not start where the chunk before it ends"));
            }
            if let Some((earlier, _)) = same_file {
                padding[earlier] = u32::try_from(start - end).expect("less than a page");
            }
        }
        before = Some((number, chunk));
    }
    let own_end = index
        .chunks
        .iter()
        .rfind(|chunk| chunk.file == 0)
        .map_or(to_u64(PAGES_HEADER_LENGTH), Chunk::end);
    if own_end != own.length {
        return Err(whole("its chunks end before their file does"));
    }
    Ok(padding)
}

/// The name that the file of page data `number`, written by generation `id`, has in a generation.
pub(super) fn pages_file_name(number: usize, id: GenerationId) -> String {
    match number {
        0 => PAGES_FILE.to_owned(),
        _ => parent_pages_file(id),
    }
}

fn open_pages(
    directory: &File,
    path: &Path,
    name: &str,
    expected: &PagesFile,
    trust: Trust,
) -> Result<OpenPages, ReadError> {
    let path = path.join(name);
    let (file, length) = open_file(directory, &path, name, trust)?;
    let mut header = [0; PAGES_HEADER_LENGTH];
    check_room(&path, Part::Header, length, to_u64(PAGES_HEADER_LENGTH))?;
    read_at(&file, &path, Part::Header, &mut header, 0)?;
    let header = PagesHeader::decode(&header).map_err(|fault| ReadError::header(&path, fault))?;
    if header.id != expected.id {
        let (found, expected) = (header.id, expected.id);
        return Err(ReadError::MatchGeneration { path, found, expected });
    }
    if length != expected.length {
        return Err(ReadError::MatchLength { path, declared: expected.length, found: length });
    }
    Ok(OpenPages { id: header.id, path, file, length })
}

fn open_directory(path: &Path) -> Result<File, ReadError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty())
        .map(File::from)
        .map_err(|errno| ReadError::OpenDirectory { path: path.to_owned(), source: errno.into() })
}

/// Opens a file of the image, and gives its length. O_NONBLOCK keeps a FIFO put in its place from
/// holding us up.
fn open_file(
    directory: &File,
    path: &Path,
    name: &str,
    trust: Trust,
) -> Result<(File, u64), ReadError> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => ReadError::FindFile { path: path.to_owned() },
        _ => ReadError::OpenFile { path: path.to_owned(), source },
    };
    let file = openat(directory, name, flags, Mode::empty())
        .map(File::from)
        .map_err(|errno| failed(errno.into()))?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(ReadError::TrustKind { path: path.to_owned() });
    }
    if trust == Trust::Own {
        check_trust(&file, path)?;
    }
    Ok((file, metadata.len()))
}

/// Refuses what another user owns or may write to. Root's is taken: root needs no trick.
fn check_trust(file: &File, path: &Path) -> Result<(), ReadError> {
    let metadata =
        file.metadata().map_err(|source| ReadError::OpenFile { path: path.to_owned(), source })?;
    let (owner, user) = (metadata.uid(), geteuid().as_raw());
    if owner != user && owner != 0 {
        return Err(ReadError::TrustOwner { path: path.to_owned(), owner, user });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(ReadError::TrustMode { path: path.to_owned(), mode });
    }
    Ok(())
}

fn check_room(path: &Path, part: Part, length: u64, needed: u64) -> Result<(), ReadError> {
    if length >= needed {
        return Ok(());
    }
    let problem = "the file ends inside it";
    Err(ReadError::BoundPart { path: path.to_owned(), part, problem })
}

fn read_at(
    file: &File,
    path: &Path,
    part: Part,
    bytes: &mut [u8],
    offset: u64,
) -> Result<(), ReadError> {
    file.read_exact_at(bytes, offset).map_err(|source| ReadError::ReadFile {
        path: path.to_owned(),
        part,
        source,
    })
}
