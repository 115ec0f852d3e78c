//! Huge pages for memory that is about to be filled: where they fit, and how long it is worth trying.
//!
//! A page of 2 MiB is had in one go, rather than 512 small ones one after the other, and the snapshot of
//! the next checkpoint copies a single entry of the page tables for it. Whether that takes less time
//! depends on the machine's memory at the moment, so it is measured while it is done.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;
use std::time::{Duration, Instant};

use super::inheritance::Extent;
use crate::model::number::PAGE_SIZE;
use crate::sys::huge_pages::{HUGE_PAGE_SIZE, Mover, Source};
use crate::sys::own_memory::Holding;

/// What a huge page may take on average: what 512 small ones take on a machine that is not slow.
const PACE: Duration = Duration::from_micros(800);

/// What those that were slow may have taken beyond that before it is given up.
const PATIENCE: Duration = Duration::from_millis(5);

const SMALL_PAGES: u64 = HUGE_PAGE_SIZE / PAGE_SIZE;

/// The first pages of the huge pages all of whose small ones are in `extents`, which ascend.
#[must_use]
pub fn places(extents: &[Extent]) -> Vec<u64> {
    let mut places = Vec::new();
    let mut rest = extents;
    while let Some(first) = rest.first() {
        let mut end = first.first_page + first.pages;
        let mut count = 1;
        while let Some(next) = rest.get(count).filter(|next| next.first_page == end) {
            end += next.pages;
            count += 1;
        }
        let mut page = first.first_page.next_multiple_of(SMALL_PAGES);
        while page + SMALL_PAGES <= end {
            places.push(page);
            page += SMALL_PAGES;
        }
        rest = &rest[count..];
    }
    places
}

/// Puts huge pages at `offsets` of `holding`, where nothing is yet, on `workers` threads, as long as they
/// can be had and that is quick. Whatever comes of it, the memory shows what it did.
pub fn put(holding: &Holding, offsets: &[u64], workers: usize) {
    if offsets.is_empty() {
        return;
    }
    let Ok(mover) = Mover::new(holding) else { return };
    let left = Mutex::new(offsets.iter().copied());
    let work = || {
        let Ok(mut source) = Source::new() else { return };
        let begun = Instant::now();
        let mut allowed = PATIENCE;
        loop {
            let next = left.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(offset) = next else { return };
            allowed += PACE;
            if source.put(&mover, offset).is_err() || begun.elapsed() > allowed {
                return;
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..workers {
            if thread::Builder::new().spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
}

#[cfg(test)]
mod tests {
    use super::places;
    use crate::restore::inheritance::Extent;

    #[test]
    fn huge_pages_are_whole() {
        let check = |extents: &[(u64, u64)], expected: &[u64]| {
            let extents: Vec<Extent> = extents
                .iter()
                .map(|&(first_page, pages)| Extent { first_page, pages, chunk: 0, slot: 0 })
                .collect();
            assert_eq!(places(&extents), expected, "{extents:?}");
        };
        check(&[], &[]);
        check(&[(0x200, 0x200)], &[0x200]);
        check(&[(0x1ff, 0x200)], &[]);
        check(&[(0x1ff, 0x602)], &[0x200, 0x400, 0x600]);
        check(&[(0x200, 0x100), (0x300, 0x100)], &[0x200]);
        check(&[(0x200, 0x100), (0x301, 0x2ff)], &[0x400]);
    }
}
