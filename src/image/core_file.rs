//! A process of a checkpoint as an ELF core file (core(5)), which debuggers open.
//!
//! It has what the image has: private memory, and shared memory whose content is kept; what is mapped from
//! files that the image only names is left to the debugger, which finds these files by their names. Pages
//! of zeros are holes in the file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use thiserror::Error;

use super::core_notes;
use super::error::ReadError;
use super::reader::Reader;
use crate::model::address::AddrRange;
use crate::model::code::{self, Code};
use crate::model::id::{ObjectId, Pid};
use crate::model::job::Job;
use crate::model::memory::{AddressSpace, Backing, Vma};
use crate::model::number::{PAGE_SIZE, page_align_up, to_u64, to_usize};
use crate::model::process::{Process, ProcessState};

/// Bytes of the ELF header, of a program header, and of a section header.
const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
const SECTION_HEADER: u64 = 64;

/// What stands for the number of program headers when it does not fit (PN_XNUM): then it is in the only
/// section header.
const MANY: u64 = 0xffff;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// Why there is no core file.
#[derive(Debug, Error)]
pub enum CoreError {
    /// The checkpoint has no such process.
    #[error("the checkpoint has no process {pid}; it has {}", list(known))]
    NoProcess {
        /// The process.
        pid: Pid,
        /// Those that it has.
        known: Vec<Pid>,
    },
    /// There is nothing left of it.
    #[error("process {pid} had ended when the checkpoint was taken, and has no memory")]
    Ended {
        /// The process.
        pid: Pid,
    },
    /// The image could not be read, or is damaged.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The core file could not be written.
    #[error("write the core file: {source}")]
    Write {
        /// Why.
        source: io::Error,
    },
}

impl CoreError {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::NoProcess { .. } => code::requests::NO_SUCH_PROCESS_INSIDE,
            Self::Ended { .. } => code::requests::PROCESS_HAS_NO_MEMORY,
            Self::Read(error) => error.code(),
            Self::Write { .. } => code::requests::CANNOT_WRITE_FILE,
        }
    }
}

fn list(pids: &[Pid]) -> String {
    let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
    pids.join(", ")
}

/// What a core file came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoreSummary {
    /// Its length in bytes, holes included.
    pub length: u64,
    /// Threads in it.
    pub threads: usize,
}

/// Where the content of a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// In pages of an object, from this one on; what is missing there is zero.
    Pages(ObjectId, u64),
    /// It is the vDSO.
    Vdso,
    /// Not in the image.
    Elsewhere,
}

/// A part of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    range: AddrRange,
    /// PF_* bits.
    flags: u32,
    content: Content,
    /// Where its content begins in the file, as long as the segment is, unless that is elsewhere.
    offset: u64,
}

/// Writes the process `pid`, by its id in the job, of a checkpoint to `file`, which is empty.
///
/// # Errors
/// When there is no such process, or reading or writing fails.
pub fn write(reader: &Reader, pid: Pid, file: &File) -> Result<CoreSummary, CoreError> {
    let failed = |source| CoreError::Write { source };
    let job = reader.job();
    let process = find(job, pid)?;
    let space = &job.address_spaces[to_usize(u64::from(process.mm.0))];
    let notes = core_notes::encode(job, process, space);
    let (segments, length) =
        lay_out(job, space, &stored(reader, space.object), to_u64(notes.len()));

    let headers = encode_headers(&segments, to_u64(notes.len()));
    file.set_len(length).map_err(failed)?;
    file.write_all_at(&headers, 0).map_err(failed)?;
    file.write_all_at(&notes, to_u64(headers.len())).map_err(failed)?;
    for segment in segments.iter().filter(|segment| segment.content == Content::Vdso) {
        let bytes = &job.vdso.bytes;
        let fitting = bytes.len().min(to_usize(segment.range.len()));
        file.write_all_at(&bytes[..fitting], segment.offset).map_err(failed)?;
    }
    write_pages(reader, &segments, file)?;
    Ok(CoreSummary { length, threads: process.threads.len() })
}

/// Bytes of page data that have to be read for the core file of the process `pid`, about.
///
/// # Errors
/// When it has none.
pub fn page_bytes(reader: &Reader, pid: Pid) -> Result<u64, CoreError> {
    let process = find(reader.job(), pid)?;
    let object = reader.job().address_spaces[to_usize(u64::from(process.mm.0))].object;
    let chunks = reader.chunks().iter();
    let of_it = chunks.filter(|chunk| chunk.runs.iter().any(|run| run.object == object));
    Ok(of_it.map(|chunk| to_u64(chunk.length())).sum())
}

fn find(job: &Job, pid: Pid) -> Result<&Process, CoreError> {
    let process = job.processes.iter().find(|process| process.pid == pid);
    let process = process.ok_or_else(|| CoreError::NoProcess {
        pid,
        known: job.processes.iter().map(|process| process.pid).collect(),
    })?;
    match process.state {
        ProcessState::Zombie { .. } => Err(CoreError::Ended { pid }),
        ProcessState::Alive | ProcessState::Stopped { .. } => Ok(process),
    }
}

/// The pages of an object that the image has, ascending.
fn stored(reader: &Reader, object: ObjectId) -> Vec<Range<u64>> {
    let runs = reader.chunks().iter().flat_map(|chunk| &chunk.runs);
    let mut stored: Vec<Range<u64>> =
        runs.filter(|run| run.object == object).map(|run| run.first_page..run.end_page()).collect();
    stored.sort_unstable_by_key(|pages| pages.start);
    stored
}

/// The segments of an address space whose object has the pages `stored`, for a file with so many bytes
/// of notes, and the length of that file.
fn lay_out(
    job: &Job,
    space: &AddressSpace,
    stored: &[Range<u64>],
    notes: u64,
) -> (Vec<Segment>, u64) {
    let mut segments: Vec<Segment> =
        space.vmas.iter().flat_map(|vma| parts(job, space, vma, stored)).collect();
    let mut end = page_align_up(headers_length(segments.len()) + notes);
    for segment in &mut segments {
        segment.offset = end;
        if segment.content != Content::Elsewhere {
            end += segment.range.len();
        }
    }
    (segments, end)
}

/// The parts of a mapping, each with its content.
fn parts(job: &Job, space: &AddressSpace, vma: &Vma, stored: &[Range<u64>]) -> Vec<Segment> {
    // PROT_READ and PROT_EXEC have changed places in PF_*.
    let bits = vma.prot.bits();
    let flags = (bits & 1) << 2 | bits & 2 | (bits & 4) >> 2;
    let part = |range, content| Segment { range, flags, content, offset: 0 };
    let first_page = vma.range.start.0 / PAGE_SIZE;
    match vma.backing {
        Backing::Anonymous => vec![part(vma.range, Content::Pages(space.object, first_page))],
        Backing::File { inode, offset, shared: true } => {
            let content = job.inodes[to_usize(u64::from(inode.0))].content;
            let content = content
                .map_or(Content::Elsewhere, |object| Content::Pages(object, offset / PAGE_SIZE));
            vec![part(vma.range, content)]
        }
        Backing::File { shared: false, .. } => {
            let mut parts = Vec::new();
            let mut next = first_page;
            let end = vma.range.end.0 / PAGE_SIZE;
            let range = |pages: Range<u64>| {
                AddrRange::new(pages.start * PAGE_SIZE, pages.end * PAGE_SIZE)
                    .filter(|range| !range.is_empty())
            };
            let inside = stored.iter().filter(|pages| pages.start < end && first_page < pages.end);
            for pages in inside {
                let own = pages.start.max(next)..pages.end.min(end);
                parts.extend(range(next..own.start).map(|it| part(it, Content::Elsewhere)));
                let content = Content::Pages(space.object, own.start);
                parts.extend(range(own.clone()).map(|it| part(it, content)));
                next = own.end;
            }
            parts.extend(range(next..end).map(|it| part(it, Content::Elsewhere)));
            parts
        }
        Backing::Vdso => vec![part(vma.range, Content::Vdso)],
        // What the kernel shows there changes all the time.
        Backing::Vvar | Backing::AioRing | Backing::IoUring { .. } => {
            vec![part(vma.range, Content::Elsewhere)]
        }
    }
}

/// Puts the pages of all segments in their places.
fn write_pages(reader: &Reader, segments: &[Segment], file: &File) -> Result<(), CoreError> {
    let mut places: BTreeMap<ObjectId, Vec<(Range<u64>, u64)>> = BTreeMap::new();
    for segment in segments {
        if let Content::Pages(object, first) = segment.content {
            let pages = first..first + segment.range.pages();
            places.entry(object).or_default().push((pages, segment.offset));
        }
    }
    let mut buffer = Vec::new();
    for chunk in reader.chunks() {
        if !chunk.runs.iter().any(|run| places.contains_key(&run.object)) {
            continue;
        }
        let decoded = reader.decode(chunk, &mut buffer)?;
        for run in &chunk.runs {
            for (pages, offset) in places.get(&run.object).into_iter().flatten() {
                let Some(part) = run.within(pages) else { continue };
                let place = offset + (part.first_page - pages.start) * PAGE_SIZE;
                file.write_all_at(part.bytes_in(decoded), place)
                    .map_err(|source| CoreError::Write { source })?;
            }
        }
    }
    Ok(())
}

/// Bytes of all headers of a file with so many segments besides the notes.
fn headers_length(segments: usize) -> u64 {
    let count = to_u64(segments) + 1;
    let section = if count < MANY { 0 } else { SECTION_HEADER };
    HEADER + count * PROGRAM_HEADER + section
}

fn encode_headers(segments: &[Segment], notes: u64) -> Vec<u8> {
    let length = headers_length(segments.len());
    let count = to_u64(segments.len()) + 1;
    let many = count >= MANY;
    let section_offset = if many { length - SECTION_HEADER } else { 0 };
    let mut bytes = Vec::with_capacity(to_usize(length));
    // 64 bits, little-endian, version 1; then ET_CORE, EM_X86_64, version 1, no entry point.
    bytes.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([4, 0, 62, 0, 1, 0, 0, 0]);
    for word in [0, HEADER, section_offset] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend([0; 4]);
    let sections = u64::from(many);
    let shown = count.min(MANY);
    for half in [HEADER, PROGRAM_HEADER, shown, SECTION_HEADER * sections, sections, 0] {
        bytes.extend(&half.to_le_bytes()[..2]);
    }
    program_header(&mut bytes, PT_NOTE, 4, [length, 0, notes, 0, 4]);
    for segment in segments {
        let size = segment.range.len();
        let stored = if segment.content == Content::Elsewhere { 0 } else { size };
        let numbers = [segment.offset, segment.range.start.0, stored, size, PAGE_SIZE];
        program_header(&mut bytes, PT_LOAD, segment.flags, numbers);
    }
    if many {
        // Of all its fields only `sh_info` counts.
        let mut section = [0; 64];
        section[44..48].copy_from_slice(&count.to_le_bytes()[..4]);
        bytes.extend(section);
    }
    bytes
}

fn program_header(
    bytes: &mut Vec<u8>,
    kind: u32,
    flags: u32,
    [offset, address, stored, size, alignment]: [u64; 5],
) {
    bytes.extend(kind.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    for word in [offset, address, 0, stored, size, alignment] {
        bytes.extend(word.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use goblin::elf::Elf;
    use goblin::elf::program_header as ph;

    use super::*;
    use crate::model::file::{Inode, InodeKind};
    use crate::model::id::{Bytes, InodeId};
    use crate::model::memory::{Prot, VmaFlags};
    use crate::model::time::TimeSpec;

    fn vma(pages: Range<u64>, backing: Backing) -> Vma {
        Vma {
            range: AddrRange::new(pages.start * PAGE_SIZE, pages.end * PAGE_SIZE).unwrap(),
            prot: Prot::READ | Prot::EXEC,
            flags: VmaFlags::empty(),
            backing,
            name: None,
            policy: None,
        }
    }

    fn inode(content: Option<ObjectId>) -> Inode {
        Inode {
            kind: InodeKind::Linked,
            path: Bytes::from(&b"/file"[..]),
            device: 0,
            number: 0,
            mode: 0,
            rdev: 0,
            size: 0,
            mtime: TimeSpec::default(),
            links: 1,
            build_id: None,
            content,
            written: false,
            attributes: Vec::new(),
            ends: None,
        }
    }

    #[test]
    fn mappings_of_files_are_divided_by_what_is_stored() {
        let job = Job { inodes: vec![inode(None)], ..Job::default() };
        let space = AddressSpace { object: ObjectId(3), ..AddressSpace::default() };
        let private = Backing::File { inode: InodeId(0), offset: 0, shared: false };
        let check = |stored: &[Range<u64>], expected: &[(u64, u64, bool)]| {
            let found: Vec<_> = parts(&job, &space, &vma(10..20, private), stored)
                .iter()
                .map(|part| {
                    let pages = part.range.start.0 / PAGE_SIZE;
                    assert!(
                        matches!(part.content, Content::Pages(ObjectId(3), first) if first == pages)
                            || part.content == Content::Elsewhere
                    );
                    (pages, part.range.end.0 / PAGE_SIZE, part.content != Content::Elsewhere)
                })
                .collect();
            assert_eq!(found, expected, "{stored:?}");
        };
        check(&[], &[(10, 20, false)]);
        check(
            &[8..12, 15..16, 19..30],
            &[(10, 12, true), (12, 15, false), (15, 16, true), (16, 19, false), (19, 20, true)],
        );
        check(&[0..15, 15..40], &[(10, 15, true), (15, 20, true)]);
        check(&[0..10, 20..21], &[(10, 20, false)]);
    }

    #[test]
    fn headers_are_understood_by_others() {
        let job = Job { inodes: vec![inode(Some(ObjectId(9)))], ..Job::default() };
        let shared = Backing::File { inode: InodeId(0), offset: 2 * PAGE_SIZE, shared: true };
        let space = AddressSpace {
            vmas: vec![vma(1..3, Backing::Anonymous), vma(4..6, Backing::Vvar), vma(7..8, shared)],
            ..AddressSpace::default()
        };
        let (segments, length) = lay_out(&job, &space, &[], 100);
        assert_eq!(segments[2].content, Content::Pages(ObjectId(9), 2));
        let mut bytes = encode_headers(&segments, 100);
        bytes.resize(to_usize(length), 0);
        let elf = Elf::parse(&bytes).unwrap();
        assert_eq!(elf.header.e_type, goblin::elf::header::ET_CORE);
        let loads: Vec<_> = elf
            .program_headers
            .iter()
            .filter(|header| header.p_type == ph::PT_LOAD)
            .map(|header| {
                (
                    header.p_vaddr / PAGE_SIZE,
                    header.p_filesz / PAGE_SIZE,
                    header.p_memsz / PAGE_SIZE,
                )
            })
            .collect();
        assert_eq!(loads, [(1, 2, 2), (4, 0, 2), (7, 1, 1)]);
        assert!(
            elf.program_headers.iter().all(|header| header.p_offset + header.p_filesz <= length)
        );
        assert_eq!(elf.program_headers[1].p_flags, ph::PF_R | ph::PF_X);
    }

    #[test]
    fn many_segments_are_counted_in_a_section_header() {
        let segment = Segment {
            range: AddrRange::new(0, PAGE_SIZE).unwrap(),
            flags: 4,
            content: Content::Elsewhere,
            offset: 0,
        };
        let segments = vec![segment; 70_000];
        let bytes = encode_headers(&segments, 0);
        assert_eq!(to_u64(bytes.len()), headers_length(segments.len()));
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        assert_eq!((half(56), half(60)), (0xffff, 1));
        let section = &bytes[bytes.len() - 64..];
        assert_eq!(section[44..48], 70_001_u32.to_le_bytes());
    }
}
