//! Another process's memory: reading and writing it, and asking which of its pages hold data.

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use bitflags::bitflags;
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use crate::model::address::{AddrRange, RemoteAddr};
use crate::model::number::{PAGE_SIZE, to_u64, to_usize};

bitflags! {
    /// What the kernel says of a page: PAGE_IS_* of `PAGEMAP_SCAN`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct PageState: u64 {
        /// Writes to its mapping are tracked.
        const WATCHED = 1;
        /// It was written since that was last asked for; always, where it is not tracked.
        const WRITTEN = 1 << 1;
        /// The page belongs to a file or shared memory, not to the process alone.
        const FILE = 1 << 2;
        /// It is in memory.
        const PRESENT = 1 << 3;
        /// It is in swap, or holds a mark of the kernel's.
        const SWAPPED = 1 << 4;
        /// It is the page of zeros that everybody shares.
        const ZERO = 1 << 5;
        /// It is part of a huge page.
        const HUGE = 1 << 6;
        /// It is a guard page (MADV_GUARD_INSTALL).
        const GUARD = 1 << 8;
    }
}

impl PageState {
    /// What [`PageMap::visit`] tells of pages, as far as the kernel knows it.
    const TOLD: Self = Self::all().difference(Self::WATCHED).difference(Self::WRITTEN);
    /// The page holds something.
    const SOMEWHERE: Self = Self::PRESENT.union(Self::SWAPPED);
}

/// Consecutive pages in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// Where they lie.
    pub range: AddrRange,
    /// Their state.
    pub state: PageState,
}

/// The memory of another process, through /proc/PID/mem: needs the right to trace it. Reads and
/// writes ignore the protection of mappings; writing to a private file mapping makes a private
/// copy of the page, as a debugger's breakpoints do.
#[derive(Debug)]
pub struct RemoteMemory {
    file: File,
}

impl RemoteMemory {
    /// Opens the memory of a process.
    ///
    /// # Errors
    /// EACCES or EPERM when it may not be traced, ENOENT when it has ended.
    pub fn open(pid: Pid) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
        Ok(Self { file })
    }

    /// Fills `buffer` from `address` on.
    ///
    /// # Errors
    /// EIO or EFAULT when part of the range cannot be read; UnexpectedEof when the process ended.
    pub fn read(&self, address: RemoteAddr, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, address.0)
    }

    /// Reads as much of `buffer` as can be read without a gap, and says how much.
    ///
    /// # Errors
    /// EIO when nothing can be read at `address`.
    pub fn read_some(&self, address: RemoteAddr, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(buffer, address.0)
    }

    /// One word.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_word(&self, address: RemoteAddr) -> io::Result<u64> {
        let mut word = [0; 8];
        self.read(address, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    /// Writes `bytes` at `address`.
    ///
    /// # Errors
    /// EIO or EFAULT when part of the range cannot be written.
    pub fn write(&self, address: RemoteAddr, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, address.0)
    }
}

/// Reads from another process's memory, as far as that allows reading itself, without opening it
/// first: for a word or two.
///
/// # Errors
/// EFAULT when part of the range cannot be read; EPERM when it may not be traced.
pub fn peek(pid: Pid, address: RemoteAddr, buffer: &mut [u8]) -> nix::Result<()> {
    let length = buffer.len();
    let remote = RemoteIoVec { base: to_usize(address.0), len: length };
    let read = process_vm_readv(pid, &mut [IoSliceMut::new(buffer)], &[remote])?;
    if read == length { Ok(()) } else { Err(Errno::EFAULT) }
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vector: u64,
    vector_length: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_any_of_mask: u64,
    return_mask: u64,
}

const _: () = assert!(size_of::<ScanArguments>() == 96);
const _: () = assert!(size_of::<PageRegion>() == 24);

// The macro writes a function without documentation.
#[allow(missing_docs)]
mod request {
    use super::ScanArguments;
    nix::ioctl_readwrite!(pagemap_scan, b'f', 16, ScanArguments);
}

/// Regions fetched by one scan.
const REGIONS: usize = 1024;

/// Entries of /proc/PID/pagemap read at once.
const ENTRIES: u64 = 4096;

const ENTRY_PRESENT: u64 = 1 << 63;
const ENTRY_SWAPPED: u64 = 1 << 62;
const ENTRY_FILE: u64 = 1 << 61;
const ENTRY_GUARD: u64 = 1 << 58;

/// Tells which pages of a process hold something, through /proc/PID/pagemap.
#[derive(Debug)]
pub struct PageMap {
    file: File,
    /// What a scan may be asked for; `None`: the kernel (before 6.7) cannot scan.
    scan: Option<PageState>,
}

impl PageMap {
    /// Opens the page map of a process, and finds out how it can be asked.
    ///
    /// # Errors
    /// EACCES or EPERM when it may not be traced, ENOENT when it has ended.
    pub fn open(pid: Pid) -> io::Result<Self> {
        let file = File::open(format!("/proc/{pid}/pagemap"))?;
        let full = PageState::TOLD;
        let scan = [full, full.difference(PageState::GUARD)].into_iter().find(|mask| {
            let mut region = [PageRegion::default(); 1];
            let empty = AddrRange { start: RemoteAddr(0), end: RemoteAddr(0) };
            scan(&file, empty, Wanted::any(*mask), *mask, &mut region).is_ok()
        });
        Ok(Self { file, scan })
    }

    /// Whether [`PageState::ZERO`] and [`PageState::GUARD`] are ever reported.
    #[must_use]
    pub fn tells_guards(&self) -> bool {
        self.scan.is_some_and(|mask| mask.contains(PageState::GUARD))
    }

    /// Whether the kernel scans (PAGEMAP_SCAN).
    #[must_use]
    pub const fn scans(&self) -> bool {
        self.scan.is_some()
    }

    /// Visits the pages in `range` that are in any of the states `wanted`, ascending, in runs of one
    /// state. Of pages never touched there is no state. Memory stays bounded however many runs there
    /// are.
    ///
    /// # Errors
    /// What reading the page map gives (ESRCH when the process has ended), and what `visit` gives.
    pub fn visit<E: From<io::Error>>(
        &self,
        range: AddrRange,
        wanted: PageState,
        visit: &mut dyn FnMut(PageRun) -> Result<(), E>,
    ) -> Result<(), E> {
        match self.scan {
            Some(told) => self.visit_by_scan(range, wanted, told, visit),
            None => self.visit_by_entries(range, wanted, visit),
        }
    }

    /// Whether `range` has any page of the process's own, rather than of a file, that is not all zero
    /// by nature; `None` on a kernel that does not scan.
    ///
    /// # Errors
    /// What reading the page map gives.
    pub fn has_own_page(&self, range: AddrRange) -> io::Result<Option<bool>> {
        let Some(told) = self.scan else { return Ok(None) };
        let foreign = PageState::FILE | PageState::ZERO | PageState::GUARD;
        let mut regions = [PageRegion::default(); 1];
        let wanted = Wanted { none: foreign & told, most: 1, ..Wanted::any(PageState::SOMEWHERE) };
        let (count, _) = scan(&self.file, range, wanted, told, &mut regions)?;
        Ok(Some(count > 0))
    }

    /// Whether writes to the mapping that has the page at `address` are tracked
    /// ([`super::write_watch::WriteWatch`]).
    ///
    /// # Errors
    /// What reading the page map gives.
    pub fn is_watched(&self, address: RemoteAddr) -> io::Result<bool> {
        let end = RemoteAddr(address.0.saturating_add(PAGE_SIZE));
        let range = AddrRange { start: address, end };
        let mut regions = [PageRegion::default(); 1];
        let wanted = Wanted { most: 1, ..Wanted::any(PageState::WATCHED) };
        let (count, _) = scan(&self.file, range, wanted, PageState::WATCHED, &mut regions)?;
        Ok(count > 0)
    }

    /// Whether any page in `range`, all of it watched, holds something and counts as not written.
    ///
    /// # Errors
    /// What reading the page map gives.
    pub fn has_unwritten(&self, range: AddrRange) -> io::Result<bool> {
        let mut regions = [PageRegion::default(); 1];
        let somewhere = Wanted::any(PageState::SOMEWHERE);
        let wanted = Wanted { none: PageState::WRITTEN, most: 1, ..somewhere };
        let (count, _) = scan(&self.file, range, wanted, PageState::SOMEWHERE, &mut regions)?;
        Ok(count > 0)
    }

    /// Visits the pages in `range` that hold something and were written since they were last visited so; from
    /// now on they count as not written. Writes to all of it must be tracked.
    ///
    /// A page that was given back since (MADV_DONTNEED) holds nothing, and is not visited. Huge pages are
    /// visited last, and go on counting as written: a write to one that does not would split it, which costs
    /// its process more than one fault.
    ///
    /// # Errors
    /// EPERM when writes are not tracked there, what reading the page map gives, and what `visit` gives.
    pub fn take_written<E: From<io::Error>>(
        &self,
        range: AddrRange,
        visit: &mut dyn FnMut(AddrRange) -> Result<(), E>,
    ) -> Result<(), E> {
        let guards = if self.tells_guards() { PageState::GUARD } else { PageState::empty() };
        let written = Wanted { all: PageState::WRITTEN, ..Wanted::any(PageState::SOMEWHERE) };
        let small = Wanted { none: guards | PageState::HUGE, takes: true, ..written };
        let huge = Wanted { all: PageState::WRITTEN | PageState::HUGE, ..written };
        for wanted in [small, huge] {
            self.scan_all(range, wanted, PageState::WRITTEN, &mut |run| visit(run.range))?;
        }
        Ok(())
    }

    fn visit_by_scan<E: From<io::Error>>(
        &self,
        range: AddrRange,
        wanted: PageState,
        told: PageState,
        visit: &mut dyn FnMut(PageRun) -> Result<(), E>,
    ) -> Result<(), E> {
        self.scan_all(range, Wanted::any(wanted & told), told, visit)
    }

    fn scan_all<E: From<io::Error>>(
        &self,
        range: AddrRange,
        wanted: Wanted,
        told: PageState,
        visit: &mut dyn FnMut(PageRun) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut regions = [PageRegion::default(); REGIONS];
        let mut rest = range;
        while !rest.is_empty() {
            let (count, walked) = scan(&self.file, rest, wanted, told, &mut regions)?;
            for region in &regions[..count] {
                let range =
                    AddrRange { start: RemoteAddr(region.start), end: RemoteAddr(region.end) };
                visit(PageRun { range, state: PageState::from_bits_truncate(region.categories) })?;
            }
            // The kernel's own buffer is smaller. When it was full in between, a scan that came to its
            // end tells that place (do_pagemap_scan in fs/proc/task_mmu.c, Linux 6.18).
            let told = regions[..count].last().map_or(0, |last| last.end);
            let walked = walked.max(told);
            if walked <= rest.start.0 {
                return Err(io::Error::from(io::ErrorKind::InvalidData).into());
            }
            rest.start = RemoteAddr(walked.min(rest.end.0));
        }
        Ok(())
    }

    fn visit_by_entries<E: From<io::Error>>(
        &self,
        range: AddrRange,
        wanted: PageState,
        visit: &mut dyn FnMut(PageRun) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut address = range.start.0;
        let mut buffer = vec![0_u8; to_usize(ENTRIES * 8)];
        while address < range.end.0 {
            let pages = ENTRIES.min((range.end.0 - address) / PAGE_SIZE);
            let bytes = &mut buffer[..to_usize(pages * 8)];
            self.file.read_exact_at(bytes, address / PAGE_SIZE * 8)?;
            let entries = bytes.as_chunks::<8>().0;
            let states: Vec<PageState> =
                entries.iter().map(|raw| entry_state(u64::from_le_bytes(*raw))).collect();
            for alike in states.chunk_by(|left, right| left == right) {
                let start = RemoteAddr(address);
                address += to_u64(alike.len()) * PAGE_SIZE;
                if alike[0].intersects(wanted) {
                    let range = AddrRange { start, end: RemoteAddr(address) };
                    visit(PageRun { range, state: alike[0] })?;
                }
            }
        }
        Ok(())
    }
}

/// What one entry of /proc/PID/pagemap says (Documentation/admin-guide/mm/pagemap.rst).
fn entry_state(entry: u64) -> PageState {
    let mut state = PageState::empty();
    state.set(PageState::PRESENT, entry & ENTRY_PRESENT != 0);
    state.set(PageState::SWAPPED, entry & ENTRY_SWAPPED != 0);
    state.set(PageState::GUARD, entry & ENTRY_GUARD != 0);
    // The bit means nothing for a page that is nowhere.
    let somewhere = state.intersects(PageState::PRESENT | PageState::SWAPPED);
    state.set(PageState::FILE, somewhere && entry & ENTRY_FILE != 0);
    state
}

/// Which pages a scan is to report.
#[derive(Clone, Copy)]
struct Wanted {
    /// Those in any of these states,
    any: PageState,
    /// in all of these,
    all: PageState,
    /// and in none of these.
    none: PageState,
    /// How many at most; 0: all.
    most: u64,
    /// Whether they count as not written from now on.
    takes: bool,
}

impl Wanted {
    const fn any(any: PageState) -> Self {
        let nothing = PageState::empty();
        Self { any, all: nothing, none: nothing, most: 0, takes: false }
    }
}

/// One PAGEMAP_SCAN for the pages `wanted`, each reported with what is in `told` of its state: how many
/// regions were filled, and how far the walk came.
fn scan(
    file: &File,
    range: AddrRange,
    wanted: Wanted,
    told: PageState,
    regions: &mut [PageRegion],
) -> io::Result<(usize, u64)> {
    // PM_SCAN_WP_MATCHING, and PM_SCAN_CHECK_WPASYNC: fail where that cannot be done.
    let taking = 1 << 0 | 1 << 1;
    let mut arguments = ScanArguments {
        flags: if wanted.takes { taking } else { 0 },
        size: to_u64(size_of::<ScanArguments>()),
        start: range.start.0,
        end: range.end.0,
        vector: to_u64(regions.as_mut_ptr().expose_provenance()),
        vector_length: to_u64(regions.len()),
        max_pages: wanted.most,
        category_inverted: wanted.none.bits(),
        category_mask: (wanted.none | wanted.all).bits(),
        category_any_of_mask: wanted.any.bits(),
        return_mask: told.bits(),
        ..ScanArguments::default()
    };
    // SAFETY: the ioctl reads and writes one `pm_scan_arg` and writes at most `vector_length`
    // regions to `vector`; both lead to as much.
    let outcome = unsafe { request::pagemap_scan(file.as_raw_fd(), &raw mut arguments) };
    let count = outcome.map_err(io::Error::from)?;
    let count = usize::try_from(count).map_err(|_| io::Error::from(Errno::EOVERFLOW))?;
    Ok((count.min(regions.len()), arguments.walk_end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_find_the_pages_that_hold_something() {
        let length = 64 * to_usize(PAGE_SIZE);
        let mut memory = memmap2::MmapMut::map_anon(length).expect("anonymous memory");
        memory[3 * 4096] = 1;
        memory[4 * 4096] = 1;
        memory[40 * 4096] = 1;
        let start = to_u64(memory.as_ptr().addr());
        let range = AddrRange::new(start, start + to_u64(length)).expect("forward range");
        let map = PageMap::open(Pid::this()).expect("own page map");
        let mut by_entries = Vec::new();
        map.visit_by_entries(range, PageState::PRESENT, &mut |run| {
            by_entries.extend(pages_of(run, start));
            Ok::<(), io::Error>(())
        })
        .expect("entries");
        // Huge pages may make more of it present than was touched.
        assert!([3, 4, 40].iter().all(|page| by_entries.contains(page)), "{by_entries:?}");
        let mut visited = Vec::new();
        map.visit(range, PageState::PRESENT, &mut |run| {
            visited.extend(pages_of(run, start));
            Ok::<(), io::Error>(())
        })
        .expect("runs");
        assert_eq!(visited, by_entries);
    }

    #[test]
    fn each_of_many_pages_is_visited_once() {
        let pages = 6001;
        let length = pages * to_usize(PAGE_SIZE);
        let mut memory = memmap2::MmapMut::map_anon(length).expect("anonymous memory");
        let advice = memmap2::Advice::NoHugePage;
        memory.advise(advice).expect("a kernel that has huge pages");
        let expected: Vec<u64> = (0..to_u64(pages)).filter(|page| page % 3 != 0).collect();
        for page in &expected {
            let place = to_usize(page * PAGE_SIZE);
            // Some are read only: a state of its own.
            if page % 4 == 0 {
                std::hint::black_box(memory[place]);
            } else {
                memory[place] = 1;
            }
        }
        let start = to_u64(memory.as_ptr().addr());
        for first in [0, 7, 2000, 4711, 5990] {
            let begin = start + first * PAGE_SIZE;
            let range = AddrRange::new(begin, start + to_u64(length)).expect("forward range");
            let map = PageMap::open(Pid::this()).expect("own page map");
            let mut visited = Vec::new();
            map.visit(range, PageState::PRESENT, &mut |run| {
                visited.extend(pages_of(run, start));
                Ok::<(), io::Error>(())
            })
            .expect("runs");
            let expected = expected.iter().filter(|page| **page >= first).copied();
            assert_eq!(visited, expected.collect::<Vec<_>>());
        }
    }

    fn pages_of(run: PageRun, start: u64) -> Vec<u64> {
        assert!(run.state.contains(PageState::PRESENT));
        (run.range.start.0..run.range.end.0)
            .step_by(4096)
            .map(|page| (page - start) / 4096)
            .collect()
    }

    #[test]
    fn own_memory_can_be_read() {
        let value = 0x0123_4567_89ab_cdef_u64;
        let address = RemoteAddr(to_u64((&raw const value).addr()));
        let memory = RemoteMemory::open(Pid::this()).expect("own memory");
        assert_eq!(memory.read_word(address).expect("a word"), value);
        assert!(memory.read_word(RemoteAddr(8)).is_err());
    }
}
