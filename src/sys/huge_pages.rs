//! Huge pages for memory of the calling process that has not asked for them: each is had in a mapping
//! that has, and moved from there (UFFDIO_MOVE, since Linux 6.8). So the mapping that gets it keeps the
//! setting that it had, which madvise(2) could not give back.
#![allow(unsafe_code)]

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;

use super::own_memory::Holding;
use crate::model::number::{to_u64, to_usize};

/// Bytes in a huge page.
pub const HUGE_PAGE_SIZE: u64 = 2 << 20;

const UFFD_API: u64 = 0xaa;
const UFFD_USER_MODE_ONLY: i32 = 1;
const UFFD_FEATURE_MOVE: u64 = 1 << 16;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    length: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_move`.
#[repr(C)]
struct Move {
    destination: u64,
    source: u64,
    length: u64,
    mode: u64,
    moved: i64,
}

const _: () = assert!(size_of::<Api>() == 24);
const _: () = assert!(size_of::<Register>() == 32);
const _: () = assert!(size_of::<Move>() == 40);

// The macros write functions without documentation.
#[allow(missing_docs)]
mod request {
    nix::ioctl_readwrite!(api, 0xaa, 0x3f, super::Api);
    nix::ioctl_readwrite!(register, 0xaa, 0x00, super::Register);
    nix::ioctl_readwrite!(move_pages, 0xaa, 0x05, super::Move);
}

/// Whether the administrator lets programs ask for huge pages.
#[must_use]
pub fn may_be_asked_for() -> bool {
    let setting = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    setting.is_ok_and(|setting| !setting.contains("[never]"))
}

/// The right to move pages into a holding. As long as it is there, nobody may touch what the holding has
/// no page for yet.
#[derive(Debug)]
pub struct Mover<'a> {
    holding: &'a Holding,
    descriptor: OwnedFd,
}

impl<'a> Mover<'a> {
    /// Gets ready to move pages into `holding`.
    ///
    /// # Errors
    /// ENOSYS, EPERM or EINVAL where the kernel cannot, or does not let the caller.
    pub fn new(holding: &'a Holding) -> nix::Result<Self> {
        // SAFETY: the call takes flags only.
        let number =
            unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | UFFD_USER_MODE_ONLY) };
        let number = i32::try_from(Errno::result(number)?).map_err(|_| Errno::EBADF)?;
        // SAFETY: the kernel has just made this descriptor for the caller.
        let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
        let mut api = Api { api: UFFD_API, features: UFFD_FEATURE_MOVE, ioctls: 0 };
        let mut register = Register {
            start: holding.range().start.0,
            length: holding.range().len(),
            mode: UFFDIO_REGISTER_MODE_MISSING,
            ioctls: 0,
        };
        // SAFETY: both requests read and write one structure of the size that they name.
        unsafe {
            request::api(descriptor.as_raw_fd(), &raw mut api)?;
            request::register(descriptor.as_raw_fd(), &raw mut register)?;
        }
        Ok(Self { holding, descriptor })
    }
}

/// Where a huge page is had before it is moved.
#[derive(Debug)]
pub struct Source {
    mapping: *mut libc::c_void,
    page: u64,
}

impl Source {
    /// Enough for one huge page wherever it begins.
    const LENGTH: u64 = 2 * HUGE_PAGE_SIZE;

    /// Maps memory that asks for huge pages.
    ///
    /// # Errors
    /// As `mmap(2)` and `madvise(2)`; EINVAL from a kernel without huge pages.
    pub fn new() -> nix::Result<Self> {
        let (prot, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let length = to_usize(Self::LENGTH);
        // SAFETY: the kernel chooses a free place.
        let mapping = unsafe { libc::mmap(ptr::null_mut(), length, prot, flags, -1, 0) };
        if mapping == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let page = to_u64(mapping.expose_provenance()).next_multiple_of(HUGE_PAGE_SIZE);
        let source = Self { mapping, page };
        // SAFETY: the range is the mapping just made.
        let result = unsafe { libc::madvise(mapping, length, libc::MADV_HUGEPAGE) };
        Errno::result(result)?;
        Ok(source)
    }

    /// Puts a huge page of zeros at `offset` of the mover's holding, where nothing is yet. The place in
    /// memory must be a multiple of [`HUGE_PAGE_SIZE`].
    ///
    /// # Errors
    /// When no huge page can be had, or there is something already: the holding shows zeros, as before.
    pub fn put(&mut self, mover: &Mover<'_>, offset: u64) -> nix::Result<()> {
        let place = mover.holding.range();
        if offset.checked_add(HUGE_PAGE_SIZE).is_none_or(|end| end > place.len()) {
            return Err(Errno::EINVAL);
        }
        let byte = ptr::with_exposed_provenance_mut::<u8>(to_usize(self.page));
        // SAFETY: the page lies in the mapping, which only this value refers to.
        unsafe { byte.write_volatile(0) };
        let mut request = Move {
            destination: place.start.0 + offset,
            source: self.page,
            length: HUGE_PAGE_SIZE,
            mode: 0,
            moved: 0,
        };
        // SAFETY: the request reads and writes one structure. It takes zeros away from the mapping, and
        // puts them where the holding shows zeros for want of pages: nothing that is seen changes.
        unsafe { request::move_pages(mover.descriptor.as_raw_fd(), &raw mut request) }.map(drop)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // SAFETY: nobody else refers to the mapping. There is nobody to tell if it stays.
        unsafe { libc::munmap(self.mapping, to_usize(Self::LENGTH)) };
    }
}

#[cfg(test)]
mod tests {
    use super::{HUGE_PAGE_SIZE, Mover, Source, may_be_asked_for};
    use crate::model::address::AddrRange;
    use crate::sys::own_memory::{self, Holding};
    use nix::errno::Errno;

    #[test]
    fn a_huge_page_shows_nothing_but_zeros() {
        const START: u64 = 0x0015_4000_0000;
        let range = AddrRange::new(START, START + 2 * HUGE_PAGE_SIZE).unwrap();
        let mut holding = Holding::map(range, own_memory::Source::Nothing, false).unwrap();
        holding.bytes(HUGE_PAGE_SIZE, 1).unwrap()[0] = 7;
        let mut source = Source::new().unwrap();
        let Ok(mover) = Mover::new(&holding) else { return };
        let put = source.put(&mover, 0);
        // Memory for one may be missing, or the machine have none.
        assert!(put.is_ok() || !may_be_asked_for() || put != Err(Errno::EINVAL), "{put:?}");
        assert!(source.put(&mover, HUGE_PAGE_SIZE).is_err(), "something is there");
        assert_eq!(source.put(&mover, 2 * HUGE_PAGE_SIZE), Err(Errno::EINVAL));
        drop(mover);
        assert!(holding.bytes(0, HUGE_PAGE_SIZE).unwrap().iter().all(|byte| *byte == 0));
        assert_eq!(holding.bytes(HUGE_PAGE_SIZE, 1).unwrap()[0], 7);
    }
}
