//! Finding out which pages of a process were written: a userfaultfd whose write protection the kernel
//! lifts by itself, without telling anybody (userfaultfd(2), WP_ASYNC, Linux 6.7). The process sees
//! nothing but a page fault at the first write to each page.
//!
//! A watch belongs to the memory of the process that made its descriptor, whoever holds that now. It
//! ends with the descriptor: then the kernel takes back all that was set. Which pages were written is
//! told by [`super::memory::PageMap::take_written`].
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::Pid;

use super::memory::PageMap;
use crate::model::address::{AddrRange, RemoteAddr};
use crate::model::number::{PAGE_SIZE, to_u64, to_usize};

/// What userfaultfd(2) is to be called with to make a descriptor for a watch: UFFD_USER_MODE_ONLY, which
/// needs no privilege, and O_CLOEXEC.
pub const CREATION_FLAGS: u64 = 1 | 0o2_000_000;

const API: u64 = 0xaa;
/// UFFD_FEATURE_WP_UNPOPULATED and UFFD_FEATURE_WP_ASYNC.
const FEATURES: u64 = 1 << 13 | 1 << 15;
/// UFFDIO_REGISTER_MODE_WP.
const TRACK_WRITES: u64 = 1 << 1;

/// `struct uffdio_api`.
#[repr(C)]
#[derive(Default)]
struct ApiArguments {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
#[derive(Default)]
struct RegisterArguments {
    start: u64,
    length: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_writeprotect`.
#[repr(C)]
#[derive(Default)]
struct ProtectArguments {
    start: u64,
    length: u64,
    mode: u64,
}

const _: () = assert!(size_of::<ApiArguments>() == 24);
const _: () = assert!(size_of::<RegisterArguments>() == 32);
const _: () = assert!(size_of::<ProtectArguments>() == 24);

// The macros write functions without documentation.
#[allow(missing_docs)]
mod request {
    use super::{ApiArguments, ProtectArguments, RegisterArguments};
    nix::ioctl_readwrite!(api, 0xaa, 0x3f, ApiArguments);
    nix::ioctl_readwrite!(register, 0xaa, 0x00, RegisterArguments);
    nix::ioctl_readwrite!(protect, 0xaa, 0x06, ProtectArguments);
}

/// A watch over the memory of one process.
#[derive(Debug)]
pub struct WriteWatch {
    file: OwnedFd,
}

impl WriteWatch {
    /// Makes a watch of a descriptor that userfaultfd(2) has just given, to whichever process.
    ///
    /// # Errors
    /// EINVAL when this kernel (before 6.7) tells of each write instead, or when it is no such descriptor.
    pub fn new(file: OwnedFd) -> nix::Result<Self> {
        let mut arguments = ApiArguments { api: API, features: FEATURES, ioctls: 0 };
        // SAFETY: the request reads and writes one `uffdio_api`.
        unsafe { request::api(file.as_raw_fd(), &raw mut arguments)? };
        Ok(Self { file })
    }

    /// A watch over the memory of this process.
    ///
    /// # Errors
    /// As [`Self::new`]; EPERM or ENOSYS where there is no userfaultfd(2) for this user.
    pub fn over_own_memory() -> nix::Result<Self> {
        // SAFETY: the call takes a number; what it gives belongs to nobody else.
        let file = unsafe {
            let number = libc::syscall(libc::SYS_userfaultfd, CREATION_FLAGS);
            let number = i32::try_from(Errno::result(number)?).map_err(|_| Errno::EBADF)?;
            OwnedFd::from_raw_fd(number)
        };
        Self::new(file)
    }

    /// Watches the mapping, or mappings, that make up `range`. To do so again changes nothing.
    ///
    /// # Errors
    /// EBUSY when somebody else watches there, ESRCH when the memory is gone (its process has ended or
    /// executed another program), EINVAL and EPERM where there is nothing that can be watched.
    pub fn watch(&self, range: AddrRange) -> nix::Result<()> {
        let mut arguments = RegisterArguments {
            start: range.start.0,
            length: range.len(),
            mode: TRACK_WRITES,
            ioctls: 0,
        };
        // SAFETY: the request reads and writes one `uffdio_register`. It changes what the kernel notes at
        // page faults in `range`, and nothing that a program sees.
        unsafe { request::register(self.file.as_raw_fd(), &raw mut arguments)? };
        Ok(())
    }

    /// Has all pages in `range`, which is watched, count as written: whatever marks somebody may have left.
    ///
    /// # Errors
    /// ESRCH when the memory is gone, ENOENT or EINVAL when it is not watched.
    pub fn count_all_as_written(&self, range: AddrRange) -> nix::Result<()> {
        let mut arguments = ProtectArguments { start: range.start.0, length: range.len(), mode: 0 };
        // SAFETY: the request reads one `uffdio_writeprotect`; as above.
        unsafe { request::protect(self.file.as_raw_fd(), &raw mut arguments)? };
        Ok(())
    }
}

/// Whether writes can be tracked here: finds exactly the one page of our own that was written, and does
/// not take one that was given back for unchanged.
///
/// # Errors
/// What stands in the way.
pub fn works() -> nix::Result<bool> {
    let pages = Pages::new()?;
    let watch = WriteWatch::over_own_memory()?;
    watch.watch(pages.range())?;
    watch.count_all_as_written(pages.range())?;
    let map = PageMap::open(Pid::this()).map_err(|error| errno_of(&error))?;
    let written = || {
        let mut written = Vec::new();
        map.take_written::<io::Error>(pages.range(), &mut |range| {
            written.extend((range.start.0..range.end.0).step_by(to_usize(PAGE_SIZE)));
            Ok(())
        })
        .map_err(|error| errno_of(&error))?;
        Ok::<_, Errno>(written)
    };
    let address = |page: u64| pages.range().start.0 + page * PAGE_SIZE;
    let all: Vec<u64> = (0..Pages::COUNT).map(address).collect();
    let is_watched = map.is_watched(pages.range().start).map_err(|error| errno_of(&error))?;
    if !is_watched || written()? != all || !written()?.is_empty() {
        return Ok(false);
    }
    pages.write(1);
    pages.give_back(2);
    if written()? != [address(1)] {
        return Ok(false);
    }
    pages.write(2);
    Ok(written()? == [address(2)])
}

/// Some pages of our own memory, all written to.
struct Pages {
    start: *mut u8,
}

impl Pages {
    const COUNT: u64 = 4;

    fn new() -> nix::Result<Self> {
        // SAFETY: a new mapping anywhere harms nothing.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                to_usize(Self::COUNT * PAGE_SIZE),
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
        // SAFETY: the advice changes no content. A kernel without huge pages does not know it.
        unsafe { libc::madvise(start, to_usize(Self::COUNT * PAGE_SIZE), libc::MADV_NOHUGEPAGE) };
        (0..Self::COUNT).for_each(|page| pages.write(page));
        Ok(pages)
    }

    fn range(&self) -> AddrRange {
        let start = to_u64(self.start.addr());
        AddrRange { start: RemoteAddr(start), end: RemoteAddr(start + Self::COUNT * PAGE_SIZE) }
    }

    fn write(&self, page: u64) {
        assert!(page < Self::COUNT);
        // SAFETY: the mapping has that page.
        unsafe { self.start.add(to_usize(page * PAGE_SIZE)).write_volatile(1) }
    }

    fn give_back(&self, page: u64) {
        assert!(page < Self::COUNT);
        // SAFETY: the mapping has that page, and nobody relies on what is in it.
        unsafe {
            let address = self.start.add(to_usize(page * PAGE_SIZE));
            libc::madvise(address.cast(), to_usize(PAGE_SIZE), libc::MADV_DONTNEED);
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the mapping any more.
        unsafe { libc::munmap(self.start.cast(), to_usize(Self::COUNT * PAGE_SIZE)) };
    }
}

fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memory::{PageState, RemoteMemory};

    #[test]
    fn own_writes_are_found_where_that_works() {
        // Where it does not, the kernel or a sandbox says so.
        match WriteWatch::over_own_memory() {
            Ok(_) => assert_eq!(works(), Ok(true)),
            Err(errno) => assert_eq!(works(), Err(errno)),
        }
    }

    /// Finds just the pages `expected` written, of those that were written before, after `change`.
    fn check(change: &dyn Fn(&Pages), expected: &[u64]) {
        let Ok(watch) = WriteWatch::over_own_memory() else { return };
        let pages = Pages::new().expect("memory");
        watch.watch(pages.range()).expect("it can be watched");
        let map = PageMap::open(Pid::this()).expect("own page map");
        let start = pages.range().start.0;
        let taken = || {
            let mut taken = Vec::new();
            map.take_written::<io::Error>(pages.range(), &mut |range| {
                taken
                    .extend((range.start.0 - start) / PAGE_SIZE..(range.end.0 - start) / PAGE_SIZE);
                Ok(())
            })
            .expect("it is watched");
            taken
        };
        assert!(!map.has_unwritten(pages.range()).expect("own pages"));
        taken();
        assert!(map.has_unwritten(pages.range()).expect("own pages"));
        change(&pages);
        assert_eq!(taken(), expected);
        assert_eq!(taken(), [0; 0]);
        watch.count_all_as_written(pages.range()).expect("it is watched");
        assert!(!map.has_unwritten(pages.range()).expect("own pages"));
        assert_eq!(taken(), [0, 1, 2, 3]);
    }

    #[test]
    fn writes_by_a_debugger_count() {
        let poke = |pages: &Pages| {
            let memory = RemoteMemory::open(Pid::this()).expect("own memory");
            let address = RemoteAddr(pages.range().start.0 + 3 * PAGE_SIZE);
            memory.write(address, b"poked").expect("it can be written");
        };
        check(&poke, &[3]);
    }

    #[test]
    fn huge_pages_always_count_as_written() {
        const SIZE: u64 = 2 << 20;
        let Ok(watch) = WriteWatch::over_own_memory() else { return };
        let mut memory = memmap2::MmapMut::map_anon(to_usize(2 * SIZE)).expect("memory");
        let start = to_u64(memory.as_ptr().addr()).next_multiple_of(SIZE);
        let offset = to_usize(start) - memory.as_ptr().addr();
        // Without huge pages in this kernel, or at this moment, there is nothing to be seen.
        if memory.advise(memmap2::Advice::HugePage).is_err() {
            return;
        }
        memory[offset] = 1;
        let range = AddrRange::new(start, start + SIZE).expect("forwards");
        let whole = to_u64(memory.as_ptr().addr());
        let all = AddrRange::new(whole, whole + 2 * SIZE).expect("forwards");
        watch.watch(all).expect("it can be watched");
        let map = PageMap::open(Pid::this()).expect("own page map");
        let is_huge = || {
            let mut is_huge = false;
            map.visit::<io::Error>(range, PageState::HUGE, &mut |_| {
                is_huge = true;
                Ok(())
            })
            .expect("own pages");
            is_huge
        };
        for _ in 0..3 {
            let was_huge = is_huge();
            let mut taken = 0;
            map.take_written::<io::Error>(range, &mut |range| {
                taken += range.pages();
                Ok(())
            })
            .expect("it is watched");
            assert!(!was_huge || taken == range.pages() && is_huge(), "{taken}");
            memory[offset + 5000] = 1;
        }
    }

    #[test]
    fn reading_is_no_write() {
        let read = |pages: &Pages| {
            let mut content = [0; 1];
            let memory = RemoteMemory::open(Pid::this()).expect("own memory");
            memory.read(pages.range().start, &mut content).expect("it can be read");
        };
        check(&read, &[]);
    }
}
