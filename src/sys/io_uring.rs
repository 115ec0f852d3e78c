//! Rings of io_uring: making them, looking into them, and having them do nothing a number of times.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{io, ptr, slice};

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;

use crate::model::number::to_usize;
use crate::model::ring::{REQUEST_SIZE, REQUESTS_OFFSET, RING_OFFSET, RingLayout};

/// IORING_SETUP_CQSIZE: the caller says how many completions there is room for.
const COMPLETIONS_GIVEN: u32 = 1 << 3;
/// IORING_SETUP_NO_SQARRAY (Linux 6.6).
const NO_ARRAY: u32 = 1 << 16;
/// IORING_REGISTER_EVENTFD.
const REGISTER_EVENT_COUNTER: libc::c_uint = 4;
/// Bytes of a completion (`struct io_uring_cqe`).
const COMPLETION_SIZE: u64 = 16;

/// `struct io_uring_params`, with the offsets of both queues in words.
#[repr(C, align(8))]
#[derive(Debug, Default)]
struct Parameters {
    entries: u32,
    completions: u32,
    flags: u32,
    thread: [u32; 2],
    features: u32,
    work_queue: u32,
    reserved: [u32; 3],
    /// head, tail, ring_mask, ring_entries, flags, dropped, array, and words that are not used here.
    requests_at: [u32; 10],
    /// head, tail, ring_mask, ring_entries, overflow, cqes, flags, and words that are not used here.
    completions_at: [u32; 10],
}

/// The sizes and the kind of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Entries for requests.
    pub entries: u32,
    /// Entries for completions.
    pub completions: u32,
    /// Whether requests are found by numbers in an array.
    pub has_array: bool,
}

/// Makes a ring that is closed when a program is executed, and tells where its parts lie.
///
/// # Errors
/// As `io_uring_setup(2)`: EPERM where it is forbidden (/proc/sys/kernel/io_uring_disabled), EINVAL where the
/// kernel has no such rings.
pub fn make(shape: Shape) -> nix::Result<(OwnedFd, RingLayout)> {
    let mut parameters = Parameters {
        completions: shape.completions,
        flags: COMPLETIONS_GIVEN | if shape.has_array { 0 } else { NO_ARRAY },
        ..Parameters::default()
    };
    // SAFETY: the kernel reads and writes one structure of this layout, which outlives the call.
    let made = unsafe {
        libc::syscall(libc::SYS_io_uring_setup, shape.entries, ptr::from_mut(&mut parameters))
    };
    let number = i32::try_from(Errno::result(made)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the descriptor is new, and nobody else knows it.
    let file = unsafe { OwnedFd::from_raw_fd(number) };
    if (parameters.entries, parameters.completions) != (shape.entries, shape.completions) {
        return Err(Errno::EINVAL);
    }
    let [request_head, request_tail, request_mask, request_entries, rest @ ..] =
        parameters.requests_at;
    let [request_flags, request_dropped, array, ..] = rest;
    let [completion_head, completion_tail, completion_mask, completion_entries, rest @ ..] =
        parameters.completions_at;
    let [completion_overflow, completion_entry, completion_flags, ..] = rest;
    let layout = RingLayout {
        request_head,
        request_tail,
        request_mask,
        request_entries,
        request_flags,
        request_dropped,
        array: if shape.has_array { array } else { 0 },
        completion_head,
        completion_tail,
        completion_mask,
        completion_entries,
        completion_overflow,
        completion_entry,
        completion_flags,
    };
    Ok((file, layout))
}

/// Bytes of the memory of a ring of this shape, whose parts lie so.
#[must_use]
pub fn size(shape: Shape, layout: &RingLayout) -> u64 {
    let completions = COMPLETION_SIZE * u64::from(shape.completions);
    let array = if shape.has_array { 4 * u64::from(shape.entries) } else { 0 };
    let end = u64::from(layout.completion_entry) + completions;
    end.max(u64::from(layout.array) + array)
}

/// Memory of a ring, shared with the kernel and with everybody who has the ring mapped.
#[derive(Debug)]
pub struct Window(MmapRaw);

impl Window {
    /// Maps the first `length` bytes of the ring itself.
    ///
    /// # Errors
    /// As `mmap(2)`: EINVAL when the ring is smaller than that.
    pub fn of_ring(file: impl AsFd, length: u64) -> io::Result<Self> {
        Self::map(file, RING_OFFSET, length)
    }

    /// Maps the requests of a ring of so many entries.
    ///
    /// # Errors
    /// As `mmap(2)`.
    pub fn of_requests(file: impl AsFd, entries: u32) -> io::Result<Self> {
        Self::map(file, REQUESTS_OFFSET, REQUEST_SIZE * u64::from(entries))
    }

    fn map(file: impl AsFd, offset: u64, length: u64) -> io::Result<Self> {
        let mut options = MmapOptions::new();
        options.offset(offset).len(to_usize(length));
        Ok(Self(options.map_raw(file.as_fd().as_raw_fd())?))
    }

    /// What it holds.
    #[must_use]
    pub fn copy(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.0.len()];
        // SAFETY: the mapping is as long as the buffer. Should the kernel write to it meanwhile, the copy is
        // one of bytes all the same.
        unsafe { ptr::copy_nonoverlapping(self.0.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
        bytes
    }

    /// Puts `bytes` at its beginning, as far as there is room.
    pub fn put(&self, bytes: &[u8]) {
        let length = bytes.len().min(self.0.len());
        // SAFETY: the mapping can be written, and is at least so long.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.as_mut_ptr(), length) };
    }

    /// Its aligned words from byte `at` on, `count` of them; none beyond its end.
    #[must_use]
    pub fn words(&self, at: u32, count: u32) -> &[AtomicU32] {
        let (start, length) = (to_usize(u64::from(at)), to_usize(u64::from(count)));
        let fits = start.is_multiple_of(4) && start + 4 * length <= self.0.len();
        if !fits {
            return &[];
        }
        // SAFETY: the mapping starts at a page, so the words are aligned, and they lie in it. Everybody
        // takes them for words that others change.
        unsafe { slice::from_raw_parts(self.0.as_ptr().add(start).cast::<AtomicU32>(), length) }
    }

    fn word(&self, at: u32) -> nix::Result<&AtomicU32> {
        self.words(at, 1).first().ok_or(Errno::EINVAL)
    }
}

/// Has a new ring do nothing `times` times, so that its ends stand where that many requests would have
/// brought them. `alive` is called now and then.
///
/// # Errors
/// As `io_uring_enter(2)`; EIO when the ring does not get there.
pub fn do_nothing(
    file: impl AsFd,
    ring: &Window,
    (shape, layout): (Shape, &RingLayout),
    times: u32,
    alive: &dyn Fn(),
) -> nix::Result<()> {
    if shape.has_array {
        for (number, word) in (0..).zip(ring.words(layout.array, shape.entries)) {
            word.store(number, Ordering::Relaxed);
        }
    }
    let tail = ring.word(layout.request_tail)?;
    let head = ring.word(layout.completion_head)?;
    let mut done = 0;
    while done < times {
        // A request of zeros is one that does nothing (IORING_OP_NOP).
        let batch = shape.entries.min(shape.completions).min(times - done);
        tail.store(done + batch, Ordering::Release);
        submit(&file, batch)?;
        done += batch;
        head.store(done, Ordering::Release);
        alive();
    }
    let reached = [layout.request_head, layout.completion_tail];
    for at in reached {
        if ring.word(at)?.load(Ordering::Acquire) != times {
            return Err(Errno::EIO);
        }
    }
    Ok(())
}

/// Has the kernel take `count` requests.
fn submit(file: impl AsFd, count: u32) -> nix::Result<()> {
    // SAFETY: the call takes plain numbers, and no pointer but for signals, which is null.
    let taken = unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            file.as_fd().as_raw_fd(),
            count,
            0,
            0,
            ptr::null::<libc::sigset_t>(),
            0,
        )
    };
    if Errno::result(taken)? == libc::c_long::from(count) { Ok(()) } else { Err(Errno::EIO) }
}

/// Whether an eventfd is told of a ring's completions (IORING_REGISTER_EVENTFD). Asking changes nothing.
///
/// # Errors
/// As `io_uring_register(2)`: EEXIST when the ring is for a single thread (IORING_SETUP_SINGLE_ISSUER).
pub fn has_event_counter(file: impl AsFd) -> nix::Result<bool> {
    let nowhere = ptr::null::<i32>();
    // SAFETY: the kernel reads a number from the address given, finds that it cannot, and does nothing.
    let outcome = unsafe {
        let number = file.as_fd().as_raw_fd();
        libc::syscall(libc::SYS_io_uring_register, number, REGISTER_EVENT_COUNTER, nowhere, 1)
    };
    match Errno::result(outcome) {
        Err(Errno::EBUSY) => Ok(true),
        Err(Errno::EFAULT) => Ok(false),
        Err(other) => Err(other),
        Ok(_) => Err(Errno::EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_does_nothing_as_often_as_it_is_told() {
        let shape = Shape { entries: 8, completions: 16, has_array: true };
        let Ok((file, layout)) = make(shape) else { return };
        let ring = Window::of_ring(&file, size(shape, &layout)).unwrap();
        do_nothing(&file, &ring, (shape, &layout), 1001, &|| ()).unwrap();
        let word = |at| ring.word(at).unwrap().load(Ordering::Relaxed);
        assert_eq!((word(layout.request_head), word(layout.completion_head)), (1001, 1001));
        assert_eq!((word(layout.request_mask), word(layout.completion_mask)), (7, 15));
        assert_eq!(has_event_counter(&file), Ok(false));
        assert_eq!(Window::of_requests(&file, 8).unwrap().copy(), [0; 512]);
    }

    #[test]
    fn words_beyond_the_end_are_none() {
        let shape = Shape { entries: 1, completions: 2, has_array: true };
        let Ok((file, layout)) = make(shape) else { return };
        let ring = Window::of_ring(&file, 64).unwrap();
        assert!(ring.words(layout.request_head, 1 << 20).is_empty() && ring.words(2, 1).is_empty());
    }
}
