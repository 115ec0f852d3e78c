//! Rings of io_uring in which no request is under way. The kernel tells of a ring all that must be known
//! for that, but for what its memory holds, which is read through a mapping of our own.

use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use thiserror::Error;

use super::refusal::RefusalKind;
use super::scan::{self, Description};
use super::{Collector, Failure, duplicate};
use crate::model::file::OpenFileKind;
use crate::model::id::{Bytes, OpenFileId};
use crate::model::ring::{RING_ENTRIES_LIMIT, RING_REQUESTS_LIMIT, Ring};
use crate::sys::fdinfo::RingInfo;
use crate::sys::io_uring::{self, Shape, Window};

/// For so long it is waited for requests that the kernel works on while the job stands still.
const PATIENCE: Duration = Duration::from_millis(20);
/// How long between two looks.
const BREATH: Duration = Duration::from_micros(500);

/// Why a ring cannot be saved.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RingRefusal {
    /// Not at rest.
    #[error("requests are under way in it")]
    UnderWay,
    /// The kernel is too old, or does not say all.
    #[error("this kernel does not tell what is under way in it")]
    Untold,
    /// IORING_SETUP_SQPOLL.
    #[error("a thread of the kernel watches it for requests (IORING_SETUP_SQPOLL)")]
    Watched,
    /// IORING_SETUP_SINGLE_ISSUER.
    #[error("it is for a single thread (IORING_SETUP_SINGLE_ISSUER)")]
    SingleThread,
    /// io_uring_register.
    #[error("files, buffers, identities or an eventfd are registered with it")]
    Registered,
    /// It would take too long to bring another one there.
    #[error("it has done {0} requests, too many for another one to be brought to the same place")]
    TooMany(u32),
    /// rckpt cannot have one.
    #[error("rckpt can make no ring like it here: {0}")]
    NotAllowed(Errno),
    /// Its memory is not as the kernel of this machine lays it out.
    #[error("its memory cannot be read: {0}")]
    Unreadable(String),
}

impl RingRefusal {
    /// Whether it will be gone in a moment if the job runs on.
    #[must_use]
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::UnderWay)
    }
}

impl From<RingRefusal> for Failure {
    fn from(refusal: RingRefusal) -> Self {
        Self::Refused(RefusalKind::IoUring(refusal))
    }
}

/// Records a ring, and by which description it is known in mappings.
pub(super) fn collect(
    collector: &mut Collector,
    found: &Description,
    id: OpenFileId,
) -> Result<OpenFileKind, Failure> {
    let info = come_to_rest(found)?;
    let done = info.taken;
    let file = duplicate(found)?;
    match io_uring::has_event_counter(&file) {
        Ok(false) => {}
        Ok(true) => return Err(RingRefusal::Registered.into()),
        Err(Errno::EEXIST) => return Err(RingRefusal::SingleThread.into()),
        Err(errno) => return Err(RingRefusal::NotAllowed(errno).into()),
    }
    let entries = info.request_mask.wrapping_add(1);
    let completions = info.completion_mask.wrapping_add(1);
    let within = |entries: u32, limit| entries.is_power_of_two() && entries <= limit;
    if !within(entries, RING_ENTRIES_LIMIT) || !within(completions, 2 * RING_ENTRIES_LIMIT) {
        return Err(RingRefusal::Unreadable("it has an impossible size".to_owned()).into());
    }
    let unreadable = |source: std::io::Error| RingRefusal::Unreadable(source.to_string());
    // A ring with an array may be taken for the pattern of one without: its other parts lie the same.
    let mut shape = Shape { entries, completions, has_array: true };
    let (_, mut layout) = io_uring::make(shape).map_err(RingRefusal::NotAllowed)?;
    let window = match Window::of_ring(&file, io_uring::size(shape, &layout)) {
        Ok(window) => {
            let words = window.words(layout.array, entries);
            let numbers = words.iter().map(|word| word.load(Ordering::Relaxed));
            shape.has_array = entries == 1 || numbers.clone().any(|number| number != 0);
            window
        }
        Err(_) => {
            shape.has_array = false;
            Window::of_ring(&file, io_uring::size(shape, &layout)).map_err(unreadable)?
        }
    };
    if !shape.has_array {
        layout.array = 0;
    }
    let as_told = word(&window, layout.request_head) == Some(done)
        && word(&window, layout.completion_tail) == Some(done)
        && word(&window, layout.request_flags) == Some(0)
        && word(&window, layout.completion_overflow) == Some(0);
    if !as_told {
        return Err(RingRefusal::UnderWay.into());
    }
    let requests = Window::of_requests(&file, entries).map_err(unreadable)?;
    let ring = Ring {
        entries,
        completions,
        has_array: shape.has_array,
        done,
        layout,
        memory: trimmed(window.copy()),
        requests: trimmed(requests.copy()),
    };
    collector.rings.insert(found.stat.identity(), id);
    Ok(OpenFileKind::IoUring { ring: Box::new(ring) })
}

/// What a ring tells once nothing is under way in it. The job stands still, and what the kernel works on is
/// mostly soon done.
fn come_to_rest(found: &Description) -> Result<RingInfo, Failure> {
    let (pid, number) = found.holder;
    let mut info = found.info.ring;
    let begun = Instant::now();
    loop {
        match info.ok_or(RingRefusal::Untold).and_then(|info| at_rest(&info).map(|()| info)) {
            Ok(info) => return Ok(info),
            Err(refusal) if refusal.is_passing() && begun.elapsed() < PATIENCE => {
                sleep(BREATH);
                info = scan::info(pid, number)?.ring;
            }
            Err(refusal) => return Err(refusal.into()),
        }
    }
}

/// Whether a ring is at rest. Requests that nobody has submitted yet are nothing but memory.
fn at_rest(info: &RingInfo) -> Result<(), RingRefusal> {
    if info.watched {
        return Err(RingRefusal::Watched);
    }
    if info.registered {
        return Err(RingRefusal::Registered);
    }
    let done = info.taken;
    // As many completions as requests: those that have more, or none, are not told from those under way.
    if info.pending || info.completed != done || info.completion_tail != done {
        return Err(RingRefusal::UnderWay);
    }
    if done > RING_REQUESTS_LIMIT { Err(RingRefusal::TooMany(done)) } else { Ok(()) }
}

fn word(window: &Window, at: u32) -> Option<u32> {
    window.words(at, 1).first().map(|word| word.load(Ordering::Acquire))
}

/// Without the zeros at the end.
fn trimmed(mut bytes: Vec<u8>) -> Bytes {
    let length = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes.truncate(length);
    Bytes(bytes)
}

impl Collector {
    /// The ring that a mapping shows, by its device and inode number; `None` when no process has it open.
    #[must_use]
    pub fn ring(&self, identity: (u64, u64)) -> Option<OpenFileId> {
        self.rings.get(&identity).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: RingInfo = RingInfo {
        request_mask: 255,
        request_tail: 7,
        taken: 7,
        completion_mask: 511,
        completion_tail: 7,
        completed: 7,
        watched: false,
        registered: false,
        pending: false,
    };

    #[test]
    fn only_what_is_at_rest_is_saved() {
        let check = |info: RingInfo, expected| assert_eq!(at_rest(&info), expected, "{info:?}");
        check(IDLE, Ok(()));
        check(RingInfo { request_tail: 9, ..IDLE }, Ok(()));
        check(RingInfo { taken: 8, request_tail: 8, ..IDLE }, Err(RingRefusal::UnderWay));
        check(RingInfo { completed: 6, completion_tail: 6, ..IDLE }, Err(RingRefusal::UnderWay));
        check(RingInfo { pending: true, ..IDLE }, Err(RingRefusal::UnderWay));
        check(RingInfo { watched: true, ..IDLE }, Err(RingRefusal::Watched));
        check(RingInfo { registered: true, ..IDLE }, Err(RingRefusal::Registered));
        let many = RING_REQUESTS_LIMIT + 1;
        let worn = RingInfo { request_tail: many, taken: many, ..IDLE };
        let worn = RingInfo { completion_tail: many, completed: many, ..worn };
        check(worn, Err(RingRefusal::TooMany(many)));
    }
}
