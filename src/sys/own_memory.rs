//! Private memory of the calling process at places that are chosen, which its children inherit.
#![allow(unsafe_code)]

use std::os::fd::RawFd;
use std::ptr;

use nix::errno::Errno;

use crate::model::address::AddrRange;
use crate::model::number::{PAGE_SIZE, to_u64, to_usize};

/// What a mapping shows before anything is written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Zeros.
    Nothing,
    /// A file, from this offset on.
    File {
        /// The file.
        descriptor: RawFd,
        /// The offset.
        offset: u64,
    },
}

/// Memory that stays when this value is gone: the caller's children have it, too, each for itself.
#[derive(Debug)]
pub struct Holding {
    range: AddrRange,
}

impl Holding {
    /// Maps memory, to be read and written, in the free place `range`.
    ///
    /// # Errors
    /// As `mmap(2)`: EEXIST when something is there already.
    pub fn map(range: AddrRange, source: Source, no_reserve: bool) -> nix::Result<Self> {
        let mut flags = libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE;
        if no_reserve {
            flags |= libc::MAP_NORESERVE;
        }
        map(range, libc::PROT_READ | libc::PROT_WRITE, flags, source)?;
        Ok(Self { range })
    }

    /// Where it lies.
    #[must_use]
    pub const fn range(&self) -> AddrRange {
        self.range
    }

    /// Its `length` bytes from `offset` on; `None` when it has not so many.
    pub fn bytes(&mut self, offset: u64, length: u64) -> Option<&mut [u8]> {
        let end = offset.checked_add(length)?;
        if end > self.range.len() {
            return None;
        }
        let start = ptr::with_exposed_provenance_mut(to_usize(self.range.start.0 + offset));
        // SAFETY: the range was free when it was mapped, is never unmapped, and only this value gives
        // references to it, so that the borrow of it guards them all. A child of fork has its own copy
        // of both.
        Some(unsafe { std::slice::from_raw_parts_mut(start, to_usize(length)) })
    }

    /// Says whether it may get huge pages, or none.
    ///
    /// # Errors
    /// As `madvise(2)`: EINVAL from a kernel without huge pages.
    pub fn advise(&mut self, huge: bool) -> nix::Result<()> {
        let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        let bytes = self.bytes(0, self.range.len()).ok_or(Errno::EINVAL)?;
        // SAFETY: this advice changes no content.
        let result = unsafe { libc::madvise(bytes.as_mut_ptr().cast(), bytes.len(), advice) };
        Errno::result(result).map(drop)
    }

    /// Makes `length` bytes from `offset` on show what they did when nothing had been written there.
    ///
    /// # Errors
    /// As `madvise(2)`; EINVAL when it has not so many.
    pub fn forget(&mut self, offset: u64, length: u64) -> nix::Result<()> {
        let bytes = self.bytes(offset, length).ok_or(Errno::EINVAL)?;
        // SAFETY: the pages are private and belong to `bytes`, which nobody else refers to.
        let result =
            unsafe { libc::madvise(bytes.as_mut_ptr().cast(), bytes.len(), libc::MADV_DONTNEED) };
        Errno::result(result).map(drop)
    }
}

/// Has pages where `bytes` have none yet, all in one call, which takes less time than a fault for each of them.
/// Where that cannot be had (before Linux 5.14), they come when they are written to.
pub fn populate(bytes: &mut [u8]) {
    let (start, length) = (bytes.as_mut_ptr(), bytes.len());
    let skipped = start.align_offset(to_usize(PAGE_SIZE));
    let Some(length) = length.checked_sub(skipped).filter(|length| *length > 0) else { return };
    // SAFETY: the range lies in `bytes`, and this advice changes no content.
    unsafe { libc::madvise(start.wrapping_add(skipped).cast(), length, libc::MADV_POPULATE_WRITE) };
}

/// Maps a part of a program at the free place `range`, to be executed, or else to be read and written.
///
/// # Errors
/// As `mmap(2)`: EEXIST when something is there already.
pub fn map_program(
    range: AddrRange,
    descriptor: RawFd,
    offset: u64,
    executable: bool,
) -> nix::Result<()> {
    let prot = libc::PROT_READ | if executable { libc::PROT_EXEC } else { libc::PROT_WRITE };
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE;
    map(range, prot, flags, Source::File { descriptor, offset })
}

fn map(range: AddrRange, prot: i32, flags: i32, source: Source) -> nix::Result<()> {
    let (flags, descriptor, offset) = match source {
        Source::Nothing => (flags | libc::MAP_ANONYMOUS, -1, 0),
        Source::File { descriptor, offset } => {
            (flags, descriptor, i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?)
        }
    };
    let (start, length) = (range.start.0, to_usize(range.len()));
    // SAFETY: MAP_FIXED_NOREPLACE takes nothing away that the caller has.
    let place = unsafe {
        libc::mmap(
            ptr::without_provenance_mut(to_usize(start)),
            length,
            prot,
            flags,
            descriptor,
            offset,
        )
    };
    if place == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    if to_u64(place.expose_provenance()) == start {
        return Ok(());
    }
    // A kernel that does not know the flag takes the place for a wish.
    // SAFETY: the mapping was made by the call above, and nobody knows of it.
    let result = unsafe { libc::munmap(place, length) };
    Errno::result(result)?;
    Err(Errno::EEXIST)
}

#[cfg(test)]
mod tests {
    use super::{Holding, Source, populate};
    use crate::model::address::AddrRange;
    use nix::errno::Errno;

    #[test]
    fn memory_is_held_where_it_was_asked_for() {
        const START: u64 = 0x0012_3000_0000;
        let range = AddrRange::new(START, START + 8192).unwrap();
        let mut holding = Holding::map(range, Source::Nothing, false).unwrap();
        assert_eq!(holding.range(), range);
        holding.bytes(0, 8192).unwrap().fill(7);
        holding.forget(0, 4096).unwrap();
        assert_eq!(holding.bytes(4095, 2), Some(&mut [0, 7][..]));
        assert_eq!(holding.bytes(4096, 4097), None);
        assert_eq!(holding.forget(8192, 4096), Err(Errno::EINVAL));
        let again = Holding::map(range, Source::Nothing, true);
        assert_eq!(again.map(drop), Err(Errno::EEXIST));
    }
    #[test]
    fn pages_that_are_had_beforehand_show_what_they_did() {
        const START: u64 = 0x0012_5000_0000;
        let range = AddrRange::new(START, START + 16384).unwrap();
        let mut holding = Holding::map(range, Source::Nothing, false).unwrap();
        holding.bytes(5000, 1).unwrap()[0] = 7;
        for (offset, length) in [(0, 16384), (1, 16383), (1, 100), (4096, 0)] {
            populate(holding.bytes(offset, length).unwrap());
        }
        let mut expected = [0; 16384];
        expected[5000] = 7;
        assert_eq!(holding.bytes(0, 16384), Some(&mut expected[..]));
    }
}
