//! Collects address spaces: mappings, the areas that the kernel remembers by name, and which pages
//! have to go into the image. What only a walk over all pages tells of mappings is [`super::detail`]'s.

use std::io;

use nix::unistd::Pid;
use thiserror::Error;

use super::detail;
use super::error::{CollectError, DumpError};
use super::files::{Collector, FileMapping};
use super::process::MemoryInsight;
use super::refusal::{MappingRefusal, Obstacle};
use super::tracking::Known;
use crate::image::error::WriteError;
use crate::image::writer::{Writer, ZeroPages};
use crate::model::address::RemoteAddr;
use crate::model::id::{Bytes, InodeId, ObjectId};
use crate::model::memory::{AddressSpace, Backing, GuardRange, MmAreas, Prot, Vma, VmaFlags};
use crate::model::number::PAGE_SIZE;
use crate::sys::memory::{PageMap, PageState, RemoteMemory};
use crate::sys::procfs::{self, Mapping};
use crate::tracer::tree;

/// Bytes in a huge page of the default pool on x86_64.
const HUGE_PAGE_SIZE: u64 = 2 << 20;

/// What the kernel calls mappings of rings of io_uring.
const IO_URING: &[u8] = b"anon_inode:[io_uring]";

/// Codes of VmFlags that a restore has to set again.
const KEPT: [([u8; 2], VmaFlags); 17] = [
    (*b"gd", VmaFlags::GROWS_DOWN),
    (*b"nr", VmaFlags::NO_RESERVE),
    (*b"lo", VmaFlags::LOCKED),
    (*b"lf", VmaFlags::LOCK_ON_FAULT),
    (*b"dd", VmaFlags::DONT_DUMP),
    (*b"dc", VmaFlags::DONT_FORK),
    (*b"wf", VmaFlags::WIPE_ON_FORK),
    (*b"hg", VmaFlags::HUGE_PAGE),
    (*b"nh", VmaFlags::NO_HUGE_PAGE),
    (*b"sr", VmaFlags::SEQUENTIAL),
    (*b"rr", VmaFlags::RANDOM),
    (*b"mg", VmaFlags::MERGEABLE),
    (*b"ht", VmaFlags::HUGETLB),
    (*b"sl", VmaFlags::SEALED),
    (*b"ac", VmaFlags::ACCOUNTED),
    (*b"mw", VmaFlags::MAY_WRITE),
    (*b"dp", VmaFlags::DROPPABLE),
];

/// Codes that follow from the access, the file or the other flags, or that mean nothing for what the
/// program sees: readable, writable, executable, shared; may become each of these; soft-dirty;
/// expansion forbidden (hugetlb); may hold guard pages, which the page map tells one by one; a program's
/// file that nobody may write to (which kernels before 5.16 say of each of its mappings).
const IMPLIED: [[u8; 2]; 11] =
    [*b"rd", *b"wr", *b"ex", *b"sh", *b"mr", *b"me", *b"ms", *b"sd", *b"de", *b"gu", *b"dw"];

/// Collects the address space of a process, without the details of its mappings.
///
/// # Errors
/// When /proc cannot be read. What cannot be saved becomes an obstacle.
pub(super) fn collect(
    process: &tree::Process,
    insight: &MemoryInsight,
    object: ObjectId,
    files: &mut Collector,
    obstacles: &mut Vec<Obstacle>,
) -> Result<AddressSpace, CollectError> {
    let pid = process.task();
    let executable = files.executable(pid)?.unwrap_or_default();
    let mut vmas = Vec::new();
    for mapping in procfs::mapping_heads(pid)? {
        let kind = match classify(&mapping) {
            Ok(Some(kind)) => kind,
            Ok(None) => continue,
            Err(kind) => {
                let name = Bytes(mapping.path);
                obstacles.push(Obstacle::Mapping { pid, range: mapping.range, name, kind });
                continue;
            }
        };
        let (backing, name) = match kind {
            Kind::Vdso => (Backing::Vdso, None),
            Kind::Vvar => (Backing::Vvar, None),
            Kind::AioRing => (Backing::AioRing, None),
            Kind::IoUring => match files.ring((mapping.device, mapping.inode)) {
                Some(file) => (Backing::IoUring { file, offset: mapping.offset }, None),
                None => {
                    let (name, kind) = (Bytes(mapping.path), MappingRefusal::IoUring);
                    obstacles.push(Obstacle::Mapping { pid, range: mapping.range, name, kind });
                    continue;
                }
            },
            Kind::Anonymous { name } => (Backing::Anonymous, name),
            Kind::File => {
                let Some(inode) = file_of(&mapping, pid, files)? else { continue };
                let (offset, shared) = (mapping.offset, is_shared(&mapping));
                (Backing::File { inode, offset, shared }, None)
            }
        };
        let (prot, flags) = properties(&mapping);
        vmas.push(Vma { range: mapping.range, prot, flags, backing, name, policy: None });
    }
    Ok(AddressSpace {
        vmas,
        areas: areas(pid, insight)?,
        executable,
        object,
        aio: Vec::new(),
        guards: Vec::new(),
        dumpable: insight.dumpable,
        thp_disabled: insight.thp_disabled,
        mdwe: insight.mdwe,
        memory_merge: insight.memory_merge,
        coredump_filter: coredump_filter(pid)?,
        membarrier: insight.membarrier,
    })
}

/// Which mappings of an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All.
    All,
    /// Those that a fork gives to the child.
    Inherited,
    /// The others.
    NotInherited,
}

impl Part {
    /// Mappings that a fork leaves out or empties, and huge pages of the pool, which the kernel takes
    /// away from a child when the parent writes and the pool is empty.
    const NOT_INHERITED: VmaFlags =
        VmaFlags::DONT_FORK.union(VmaFlags::WIPE_ON_FORK).union(VmaFlags::HUGETLB);

    /// Whether a mapping belongs to it.
    pub(super) const fn has(self, vma: &Vma) -> bool {
        match self {
            Self::All => true,
            Self::Inherited => !vma.flags.intersects(Self::NOT_INHERITED),
            Self::NotInherited => vma.flags.intersects(Self::NOT_INHERITED),
        }
    }
}

/// Which mappings have pages that only the process has: for each, whether pages of zeros mean something.
pub(super) const fn zeros_of(vma: &Vma) -> Option<ZeroPages> {
    match vma.backing {
        Backing::Anonymous if vma.flags.contains(VmaFlags::DROPPABLE) => None,
        Backing::Anonymous => Some(ZeroPages::Drop),
        // An absent page is the file's.
        Backing::File { shared: false, .. } => Some(ZeroPages::Keep),
        Backing::File { shared: true, .. }
        | Backing::Vdso
        | Backing::Vvar
        | Backing::AioRing
        | Backing::IoUring { .. } => None,
    }
}

/// Writes the pages in a part of an address space that only the process has, read from a process that
/// has it, or its copy. Those that are known not to have been written are taken over. Gives the guard pages
/// that it came by, as far as the kernel tells them.
///
/// `check` is called before each piece is read.
///
/// # Errors
/// When a page cannot be read, writing fails, or `check` does.
pub(super) fn store(
    check: &dyn Fn() -> io::Result<()>,
    (space, part): (&AddressSpace, Part),
    known: &Known,
    (pid, memory): (Pid, &RemoteMemory),
    writer: &mut Writer,
) -> Result<Vec<GuardRange>, DumpError> {
    let failed = |source| CollectError::Memory { operation: "read the page map", pid, source };
    let mut guards = Vec::new();
    let page_map = PageMap::open(pid).map_err(failed)?;
    let read = &mut |page: u64, buffer: &mut [u8]| -> io::Result<()> {
        check()?;
        memory.read(RemoteAddr(page * PAGE_SIZE), buffer)
    };
    for vma in space.vmas.iter().filter(|vma| part.has(vma)) {
        let Some(zeros) = zeros_of(vma) else { continue };
        let somewhere = PageState::PRESENT | PageState::SWAPPED;
        let not_stored = PageState::FILE | PageState::ZERO | PageState::GUARD;
        page_map
            .visit::<StoreError>(vma.range, somewhere, &mut |run| {
                if run.state.contains(PageState::GUARD) {
                    detail::add_guard(&mut guards, run.range);
                }
                if run.state.intersects(not_stored) {
                    return Ok(());
                }
                for (range, unchanged) in known.parts(run.range) {
                    let (first_page, pages) = (range.start.0 / PAGE_SIZE, range.pages());
                    match unchanged {
                        None => writer.store(space.object, first_page, pages, zeros, read)?,
                        Some(of) => keep(writer, (space.object, of), (first_page, pages), read)?,
                    }
                }
                Ok(())
            })
            .map_err(|error| match error {
                StoreError::ReadPageMap(source) => failed(source).into(),
                StoreError::Write(error) => DumpError::from(error),
                StoreError::Changed(page) => DumpError::Changed { pid, page },
            })?;
    }
    Ok(guards)
}

/// Takes pages over from the generation before. Development builds make sure that this is right.
fn keep(
    writer: &mut Writer,
    (object, of): (ObjectId, ObjectId),
    (first_page, pages): (u64, u64),
    read: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> Result<(), StoreError> {
    if cfg!(debug_assertions)
        && let Some(page) = writer.find_difference(of, first_page, pages, read)?
    {
        return Err(StoreError::Changed(RemoteAddr(page * PAGE_SIZE)));
    }
    Ok(writer.keep(object, of, first_page, pages)?)
}

/// What can go wrong between the page map and the image.
#[derive(Debug, Error)]
enum StoreError {
    #[error("cannot read the page map")]
    ReadPageMap(#[from] io::Error),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("page {0} has changed")]
    Changed(RemoteAddr),
}

/// What a mapping shows, before it is known which file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Anonymous { name: Option<Bytes> },
    File,
    Vdso,
    Vvar,
    AioRing,
    IoUring,
}

/// Tells what a mapping is; `None` for what is no part of the process, but of every process.
pub(super) fn classify(mapping: &Mapping) -> Result<Option<Kind>, MappingRefusal> {
    match mapping.path.as_slice() {
        b"[vsyscall]" => return Ok(None),
        b"[vdso]" => return Ok(Some(Kind::Vdso)),
        b"[vvar]" | b"[vvar_vclock]" => return Ok(Some(Kind::Vvar)),
        b"[uprobes]" => return Err(MappingRefusal::Uprobes),
        _ => {}
    }
    for code in &mapping.codes {
        match code {
            b"mm" if mapping.path == IO_URING => {}
            b"io" | b"pf" | b"mm" | b"sf" => return Err(MappingRefusal::Device),
            b"um" | b"uw" | b"ui" => return Err(MappingRefusal::UserFault),
            b"ss" => return Err(MappingRefusal::ShadowStack),
            code if IMPLIED.contains(code) => {}
            code if KEPT.iter().any(|(kept, _)| kept == code) => {}
            code => {
                let code = String::from_utf8_lossy(code).into_owned();
                return Err(MappingRefusal::UnknownFlag(code));
            }
        }
    }
    if mapping.protection_key != 0 {
        return Err(MappingRefusal::ProtectionKey(mapping.protection_key));
    }
    if mapping.codes.contains(b"ht") && mapping.page_size != HUGE_PAGE_SIZE {
        return Err(MappingRefusal::HugePageSize(mapping.page_size));
    }
    if [&b"/[aio] (deleted)"[..], b"/[aio]"].contains(&mapping.path.as_slice()) {
        return Ok(Some(Kind::AioRing));
    }
    if mapping.path == IO_URING {
        return Ok(Some(Kind::IoUring));
    }
    if mapping.path.starts_with(b"anon_inode:") {
        return Err(MappingRefusal::KernelObject);
    }
    // A private mapping of /dev/zero is anonymous memory under another name, and so is what
    // MAP_HUGETLB makes, which the kernel gives a file to take huge pages from.
    let nameless: [&[u8]; 2] = [b"/dev/zero", b"/anon_hugepage (deleted)"];
    if nameless.contains(&mapping.path.as_slice()) && !is_shared(mapping) {
        return Ok(Some(Kind::Anonymous { name: None }));
    }
    if mapping.inode != 0 {
        return Ok(Some(Kind::File));
    }
    match mapping.path.as_slice() {
        b"" | b"[heap]" | b"[stack]" => Ok(Some(Kind::Anonymous { name: None })),
        path => match path.strip_prefix(b"[anon:").and_then(|path| path.strip_suffix(b"]")) {
            Some(name) => Ok(Some(Kind::Anonymous { name: Some(Bytes::from(name)) })),
            None => Err(MappingRefusal::Special),
        },
    }
}

pub(super) fn properties(mapping: &Mapping) -> (Prot, VmaFlags) {
    let mut prot = Prot::empty();
    prot.set(Prot::READ, mapping.permissions[0] == b'r');
    prot.set(Prot::WRITE, mapping.permissions[1] == b'w');
    prot.set(Prot::EXEC, mapping.permissions[2] == b'x');
    let kept = KEPT.iter().filter(|(code, _)| mapping.codes.contains(code));
    (prot, kept.map(|(_, flag)| *flag).collect())
}

pub(super) fn is_shared(mapping: &Mapping) -> bool {
    mapping.permissions[3] == b's'
}

fn file_of(
    mapping: &Mapping,
    pid: Pid,
    files: &mut Collector,
) -> Result<Option<InodeId>, CollectError> {
    let shared = is_shared(mapping);
    let writable = mapping.permissions[1] == b'w';
    // A mapping that is not writable may become it, when the file was open for writing.
    let may_write = writable || shared && procfs::is_mapped_for_writing(pid, mapping.range)?;
    Ok(files.mapping(&FileMapping {
        pid,
        range: mapping.range,
        offset: mapping.offset,
        device: mapping.device,
        inode: mapping.inode,
        path: &mapping.path,
        shared,
        writable,
        may_write,
    })?)
}

fn areas(pid: Pid, insight: &MemoryInsight) -> Result<MmAreas, CollectError> {
    let stat = procfs::stat(pid)?;
    let area = |value: Option<u64>| RemoteAddr(value.unwrap_or_default());
    Ok(MmAreas {
        start_code: RemoteAddr(stat.startcode),
        end_code: RemoteAddr(stat.endcode),
        start_data: area(stat.start_data),
        end_data: area(stat.end_data),
        start_brk: area(stat.start_brk),
        brk: insight.brk,
        start_stack: RemoteAddr(stat.startstack),
        arg_start: area(stat.arg_start),
        arg_end: area(stat.arg_end),
        env_start: area(stat.env_start),
        env_end: area(stat.env_end),
        auxv: procfs::read(pid, "auxv")?,
    })
}

fn coredump_filter(pid: Pid) -> Result<u32, CollectError> {
    let value = procfs::single_number(pid, "coredump_filter", 16)?;
    // The kernel has a dozen bits of it.
    Ok(u32::try_from(value).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::address::AddrRange;

    fn mapping(permissions: &[u8; 4], path: &[u8], inode: u64, codes: &[&[u8; 2]]) -> Mapping {
        Mapping {
            range: AddrRange { start: RemoteAddr(0x1000), end: RemoteAddr(0x2000) },
            permissions: *permissions,
            offset: 0,
            device: 0,
            inode,
            path: path.to_vec(),
            codes: codes.iter().map(|code| **code).collect(),
            page_size: PAGE_SIZE,
            protection_key: 0,
        }
    }

    #[test]
    fn mappings_are_told_apart() {
        let check = |permissions: &[u8; 4], path: &[u8], inode: u64, expected| {
            let mapping = mapping(permissions, path, inode, &[b"rd", b"mr"]);
            assert_eq!(classify(&mapping), expected, "{}", path.escape_ascii());
        };
        let anonymous =
            |name: Option<&[u8]>| Ok(Some(Kind::Anonymous { name: name.map(Bytes::from) }));
        check(b"rw-p", b"", 0, anonymous(None));
        check(b"rw-p", b"[heap]", 0, anonymous(None));
        check(b"rw-p", b"[stack]", 0, anonymous(None));
        check(b"rw-p", b"[anon:glibc: malloc]", 0, anonymous(Some(b"glibc: malloc")));
        check(b"rw-p", b"/dev/zero", 5, anonymous(None));
        check(b"rw-s", b"/dev/zero (deleted)", 5, Ok(Some(Kind::File)));
        check(b"r-xp", b"/usr/bin/true", 5, Ok(Some(Kind::File)));
        check(b"r-xp", b"[vdso]", 0, Ok(Some(Kind::Vdso)));
        check(b"r--p", b"[vvar_vclock]", 0, Ok(Some(Kind::Vvar)));
        check(b"--xp", b"[vsyscall]", 0, Ok(None));
        check(b"rw-s", b"anon_inode:[perf_event]", 9, Err(MappingRefusal::KernelObject));
        check(b"rw-s", b"/[aio] (deleted)", 9, Ok(Some(Kind::AioRing)));
        check(b"r-xp", b"[uprobes]", 0, Err(MappingRefusal::Uprobes));
        check(b"r-xp", b"[gate]", 0, Err(MappingRefusal::Special));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let program = mapping(b"r-xp", b"/usr/bin/true", 5, &[b"rd", b"ex", b"mr", b"dw"]);
        assert_eq!(classify(&program), Ok(Some(Kind::File)));
        let check = |code: &[u8; 2], expected: MappingRefusal| {
            let mapping = mapping(b"rw-p", b"", 0, &[b"rd", code]);
            assert_eq!(classify(&mapping), Err(expected));
        };
        check(b"io", MappingRefusal::Device);
        check(b"uw", MappingRefusal::UserFault);
        check(b"ss", MappingRefusal::ShadowStack);
        check(b"zz", MappingRefusal::UnknownFlag("zz".to_owned()));
        let keyed = Mapping { protection_key: 2, ..mapping(b"rw-p", b"", 0, &[]) };
        assert_eq!(classify(&keyed), Err(MappingRefusal::ProtectionKey(2)));
    }

    #[test]
    fn flags_are_kept() {
        let mapping = mapping(b"r-xs", b"", 0, &[b"rd", b"nr", b"gd", b"mw"]);
        let (prot, flags) = properties(&mapping);
        assert_eq!(prot, Prot::READ | Prot::EXEC);
        assert_eq!(flags, VmaFlags::NO_RESERVE | VmaFlags::GROWS_DOWN | VmaFlags::MAY_WRITE);
    }
}
