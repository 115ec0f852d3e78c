//! The part of a script that makes contexts of asynchronous I/O (io_setup(2)).
//!
//! The kernel chooses where a ring goes, and counts the events in it by itself. So a place is kept free
//! where the ring is to be, the new one is moved there, and as many requests are made that do nothing as
//! it takes for its ends to be where they were. What the events say is written over by the supervisor.

use super::regions::mapped_descriptor;
use super::{Author, Context, Step, call, signed, step};
use crate::model::memory::{AddressSpace, AioContext, Vma};
use crate::model::number::PAGE_SIZE;
use crate::restore::blob::layout::kind;

/// Events that the first page of a ring holds less than others, for its header; the kernel asks for as many
/// again than wanted, and two more (fs/aio.c, `ioctx_alloc` and `aio_setup_ring`).
const EVENTS_IN_PAGE: u64 = 128;

/// Bytes of a `struct io_event` and of a `struct iocb`.
const EVENT_SIZE: usize = 32;
const REQUEST_SIZE: usize = 64;

/// Makes the context whose ring `vma` is.
pub(super) fn make(
    author: &mut Author,
    steps: &mut Vec<Step>,
    (vma, space): (&Vma, &AddressSpace),
    context: &Context<'_>,
) {
    let (start, length) = (vma.range.start.0, vma.range.len());
    let Some(wanted) = space.aio.iter().find(|found| found.start == vma.range.start) else {
        return;
    };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let arguments = [start, length, 0, signed(flags), signed(-1), 0];
    steps.push(step(kind::CALL_EXACT, libc::SYS_mmap, &arguments, start));
    let place = author.words(&[0]);
    steps.push(call(libc::SYS_io_setup, &[requests(length / PAGE_SIZE), place]));
    let flags = signed(libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED);
    let arguments = [place, length, length, flags, start];
    steps.push(step(kind::CALL_LOADED, libc::SYS_mremap, &arguments, start));
    let file = mapped_descriptor(space.executable, false, context);
    turn(author, steps, wanted, file);
}

/// How many requests to ask for to get a ring of so many pages, on a machine with not too many processors.
fn requests(pages: u64) -> u64 {
    let least = (pages.saturating_sub(1) * EVENTS_IN_PAGE).saturating_sub(2) / 2;
    least.max(1)
}

/// Makes requests that are done at once until the ends of the ring are where they were.
fn turn(author: &mut Author, steps: &mut Vec<Step>, wanted: &AioContext, file: i32) {
    let waiting = AioContext::waiting(wanted.places, wanted.head, wanted.tail);
    // Reading nothing from a file, by IOCB_CMD_PREAD, which is 0.
    let mut request = [0; REQUEST_SIZE];
    request[20..24].copy_from_slice(&file.to_ne_bytes());
    let buffer = author.data(&[0; 8]);
    request[24..32].copy_from_slice(&buffer.to_ne_bytes());
    let request = author.data(&request);
    // Less than a ring has room for at once.
    let most = (wanted.places / 8).max(1);
    let requests = author.words(&vec![request; usize::try_from(most).unwrap_or_default()]);
    let room = vec![0; EVENT_SIZE * usize::try_from(most).unwrap_or_default()];
    let events = author.data(&room);
    let ring = wanted.start.0;
    let mut make = |count: u32, taken: bool| {
        let mut left = count;
        while left > 0 {
            let now = u64::from(left.min(most));
            left -= left.min(most);
            let arguments = [ring, now, requests];
            steps.push(step(kind::CALL_EXACT, libc::SYS_io_submit, &arguments, now));
            if taken {
                let arguments = [ring, now, now, events, 0];
                steps.push(step(kind::CALL_EXACT, libc::SYS_io_getevents, &arguments, now));
            }
        }
    };
    make(wanted.head, true);
    make(waiting, false);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::address::RemoteAddr;

    /// `nr` of a ring, as fs/aio.c works it out on a machine with one processor.
    fn pages_of(requests: u64) -> u64 {
        let events = requests.max(4) * 2 + 2;
        (events + 1).div_ceil(EVENTS_IN_PAGE)
    }

    #[test]
    fn rings_get_their_size() {
        for pages in [1, 2, 3, 5, 8, 100, 512] {
            assert_eq!(pages_of(requests(pages)), pages);
        }
    }

    #[test]
    fn ends_come_to_where_they_were() {
        for (head, tail) in [(0, 0), (5, 5), (0, 100), (120, 3), (126, 126), (40, 39)] {
            let mut author = Author { base: 0, bytes: Vec::new() };
            let mut steps = Vec::new();
            let start = RemoteAddr(0x1000);
            let wanted = AioContext { start, places: 127, head, tail, events: Vec::new() };
            turn(&mut author, &mut steps, &wanted, 9);
            let (mut found_head, mut found_tail) = (0, 0);
            for step in steps {
                assert_eq!(step.arguments[0], 0x1000);
                match step.number.cast_signed() {
                    libc::SYS_io_submit => found_tail += step.expected,
                    _ => found_head += step.expected,
                }
                assert!(found_tail - found_head < 127, "more than there is room for");
            }
            assert_eq!((found_head % 127, found_tail % 127), (u64::from(head), u64::from(tail)));
        }
        assert_eq!(crate::model::number::to_u64(EVENT_SIZE) * EVENTS_IN_PAGE, PAGE_SIZE);
    }
}
