//! Trials of what the kernel tells of memory, and of placing the vDSO.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd;

use crate::model::number::{PAGE_SIZE, to_u64, to_usize};
use crate::sys::{memory, procfs, write_watch};

use super::{Feature, Recorder, Tried, errno_of};

/// Maps a vDSO where there is none: ours is taken away first.
pub(super) fn try_vdso(recorder: &mut Recorder) {
    const ARCH_MAP_VDSO_64: libc::c_int = 0x2003;
    let Ok(mappings) = procfs::mappings(unistd::getpid()) else { return };
    let ours = |path: &[u8]| path == b"[vdso]" || path.starts_with(b"[vvar");
    let mut lowest = None;
    for mapping in mappings.iter().filter(|mapping| ours(&mapping.path)) {
        let start = lowest.get_or_insert(mapping.range.start.0);
        *start = (*start).min(mapping.range.start.0);
        // SAFETY: nothing in this child uses the vDSO any more: it does not ask for the time.
        let gone =
            unsafe { libc::syscall(libc::SYS_munmap, mapping.range.start.0, mapping.range.len()) };
        if let Err(errno) = Errno::result(gone) {
            recorder.record(Feature::MapVdso, Err(errno));
            return;
        }
    }
    let Some(address) = lowest else { return };
    // SAFETY: the addresses have just been freed, so nothing is mapped over.
    let answer = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_MAP_VDSO_64, address) };
    recorder.record(Feature::MapVdso, Errno::result(answer).map(|size| size > 0));
}

/// Two pages of our own memory, both written to.
struct Pages {
    start: *mut u8,
}

impl Pages {
    fn new() -> Result<Self, Errno> {
        // SAFETY: a new mapping anywhere harms nothing.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                to_usize(2 * PAGE_SIZE),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let pages = Self { start: start.cast() };
        pages.write(0);
        pages.write(1);
        Ok(pages)
    }

    fn address(&self) -> u64 {
        to_u64(self.start.addr())
    }

    fn write(&self, page: u64) {
        // SAFETY: the mapping has two pages and `page` is 0 or 1; it is never unmapped.
        unsafe { self.start.add(to_usize(page * PAGE_SIZE)).write_volatile(1) }
    }

    /// What /proc/self/pagemap says of both.
    fn entries(&self) -> Result<[u64; 2], Errno> {
        let file = File::open("/proc/self/pagemap").map_err(|error| errno_of(&error))?;
        let mut bytes = [0; 16];
        file.read_exact_at(&mut bytes, self.address() / PAGE_SIZE * 8)
            .map_err(|error| errno_of(&error))?;
        let entry =
            |at: usize| bytes[at..].first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk));
        Ok([entry(0), entry(8)])
    }
}

pub(super) fn try_memory(recorder: &mut Recorder) {
    let scan = memory::PageMap::open(unistd::getpid())
        .map(|map| map.scans())
        .map_err(|error| errno_of(&error));
    recorder.record(Feature::ScanPages, scan);
    recorder.record(Feature::SoftDirty, find_soft_dirty());
    recorder.record(Feature::TrackWrites, write_watch::works());
}

/// Clears the soft-dirty bits, writes to one of two pages, and looks whether just that one has it.
/// Kernels built without it accept the first step silently.
fn find_soft_dirty() -> Tried {
    const SOFT_DIRTY: u64 = 1 << 55;
    let pages = Pages::new()?;
    fs::write("/proc/self/clear_refs", "4").map_err(|error| errno_of(&error))?;
    pages.write(1);
    let [first, second] = pages.entries()?;
    Ok(first & SOFT_DIRTY == 0 && second & SOFT_DIRTY != 0)
}
