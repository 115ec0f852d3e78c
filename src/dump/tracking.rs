//! Which pages of a job were written since its last checkpoint, as the kernel has taken note of them: the
//! others are taken over from that checkpoint without being read.
//!
//! Between checkpoints only descriptors are kept, one for each large process ([`WriteWatch`]): when rckpt
//! ends, the kernel forgets everything. While the job stands still, each of its private anonymous mappings
//! is looked at. A page counts as unchanged only if all of this is certain:
//!
//! - the kernel says that it has not been written since it was last asked, and it holds something;
//! - its mapping was watched all that time: what is mapped anew, moved by mremap(2), or of a process that
//!   was forked or has executed another program, is not watched, or not by this descriptor;
//! - that was asked for the very checkpoint that the new one builds on, and this one was completed.
//!
//! Anything else counts as written. It is decided here only what was written; what is done about that is
//! [`super::memory`]'s.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::Pid;

use super::memory::{self, Kind};
use crate::image::format::GenerationId;
use crate::model::address::AddrRange;
use crate::model::id::ObjectId;
use crate::model::number::{PAGE_SIZE, to_u64};
use crate::sys::memory::PageMap;
use crate::sys::procfs::{self, Mapping};
use crate::sys::write_watch::{self, WriteWatch};

/// Bytes of memory from which on a process is watched: less is read and compared quickly.
const WORTH_WATCHING: u64 = 8 << 20;
/// Most processes that are watched, each of which takes a descriptor.
const MOST_WATCHES: u64 = 256;
/// The part of the descriptors that this process may have that watches may take.
const PART_OF_DESCRIPTORS: u64 = 4;
/// Most ranges of written pages that are remembered in one checkpoint: 16 MiB of them.
const MOST_RANGES: usize = 1 << 20;

/// What is kept from one checkpoint of a job to the next.
#[derive(Debug, Default)]
pub struct Tracking {
    /// The checkpoint since which writes have been taken note of; `None`: that is not known.
    base: Option<GenerationId>,
    /// Processes by their ids.
    watched: BTreeMap<Pid, Watched>,
    /// Whether this kernel can do it, once that was tried.
    works: Option<bool>,
}

/// A process that is watched.
#[derive(Debug)]
struct Watched {
    started: u64,
    watch: WriteWatch,
    /// Its memory in the checkpoint [`Tracking::base`].
    object: ObjectId,
}

/// What is known of an address space in a checkpoint that is being taken. By default: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// The object that has its memory in the checkpoint before; `None`: everything counts as written.
    pub of: Option<ObjectId>,
    /// What was written or may have been: ascending, not overlapping. Empty without `of`.
    written: Vec<AddrRange>,
    /// The mappings that are watched.
    watched: Vec<AddrRange>,
}

/// What a checkpoint has to do with a [`Tracking`].
#[derive(Debug)]
pub enum Use<'tracking> {
    /// There is none.
    Absent,
    /// It is of the line of checkpoints that each build on the one before.
    InLine(&'tracking mut Tracking),
    /// It is not, and leaves it as it is.
    Aside(&'tracking Tracking),
}

/// The use of [`Tracking`] in one checkpoint.
#[derive(Debug)]
pub(super) struct Session<'tracking> {
    tracking: Use<'tracking>,
    base: Option<GenerationId>,
    /// Those of whom it is known what they have written for this checkpoint.
    looked_at: BTreeMap<Pid, ObjectId>,
    ranges_left: usize,
}

impl Tracking {
    /// The process `pid`, if it is the one that is watched.
    fn find(&self, pid: Pid) -> Option<&Watched> {
        self.watched.get(&pid).filter(|watched| started(pid) == Some(watched.started))
    }
}

impl Use<'_> {
    fn in_line(&mut self) -> Option<&mut Tracking> {
        if let Self::InLine(tracking) = self { Some(tracking) } else { None }
    }
}

impl<'tracking> Session<'tracking> {
    /// Begins a checkpoint that builds on `parent`. From now until it is complete nothing is certain.
    pub fn begin(tracking: Use<'tracking>, parent: Option<GenerationId>) -> Self {
        let mut tracking = tracking;
        if let Some(tracking) = tracking.in_line() {
            // Others may go on with the memory of one that has ended, and are not watched.
            tracking.watched.retain(|pid, watched| lives(*pid, watched.started));
        }
        let base = tracking.in_line().and_then(|tracking| tracking.base.take());
        Self {
            tracking,
            base: base.filter(|base| Some(*base) == parent),
            looked_at: BTreeMap::new(),
            ranges_left: MOST_RANGES,
        }
    }

    /// Whether `range`, a mapping of the frozen process `pid` that somebody watches, is watched by us.
    pub fn is_own(&self, pid: Pid, range: AddrRange) -> bool {
        let tracking = match &self.tracking {
            Use::Absent => return false,
            Use::InLine(tracking) => tracking,
            Use::Aside(tracking) => *tracking,
        };
        tracking.find(pid).is_some_and(|watched| watched.watch.watch(range).is_ok())
    }

    /// Looks at what the frozen process `pid`, whose memory will be `object`, has written, and has its
    /// writes taken note of anew. `None` when it is not watched.
    pub fn look(&mut self, pid: Pid, object: ObjectId) -> Option<Known> {
        if let Use::Aside(tracking) = &self.tracking {
            return glance(&tracking.find(pid)?.watch, pid).ok();
        }
        let tracking = self.tracking.in_line()?;
        let watched = tracking.find(pid)?;
        let of = self.base.map(|_| watched.object);
        let Ok(mut known) = survey(&watched.watch, pid, of) else {
            // Its memory is not what it was: the process has executed another program.
            tracking.watched.remove(&pid);
            return None;
        };
        let most = self.ranges_left / 2;
        tidy(&mut known.written, most);
        self.ranges_left -= known.written.len().min(self.ranges_left);
        self.looked_at.insert(pid, object);
        Some(known)
    }

    /// Whether a watch of the process `pid` is wanted, which has so many bytes of memory of its own: it has
    /// none, and here it would work.
    pub fn wants(&mut self, pid: Pid, size: u64) -> bool {
        let Some(tracking) = self.tracking.in_line() else { return false };
        size >= WORTH_WATCHING
            && tracking.find(pid).is_none()
            && to_u64(tracking.watched.len()) < most_watches()
            && *tracking.works.get_or_insert_with(|| write_watch::works() == Ok(true))
    }

    /// Begins to watch the frozen process `pid`, whose memory will be `object`, by what it got from
    /// userfaultfd(2). Where that fails the process is not watched.
    pub fn add(
        &mut self,
        pid: Pid,
        object: ObjectId,
        made: Result<OwnedFd, Errno>,
    ) -> Option<Known> {
        let tracking = self.tracking.in_line()?;
        let started = started(pid)?;
        let watch = WriteWatch::new(made.ok()?).ok()?;
        let known = survey(&watch, pid, None).ok()?;
        tracking.watched.insert(pid, Watched { started, watch, object });
        self.looked_at.insert(pid, object);
        Some(known)
    }

    /// The checkpoint is complete: what is written from now on is written since `generation`. Processes
    /// that were not looked at for it are not watched any more.
    pub fn complete(self, generation: GenerationId) {
        let Self { tracking: Use::InLine(tracking), looked_at, .. } = self else { return };
        tracking.watched.retain(|pid, watched| {
            let object = looked_at.get(pid);
            watched.object = object.copied().unwrap_or_default();
            object.is_some()
        });
        tracking.base = Some(generation);
    }
}

/// How many processes may be watched.
fn most_watches() -> u64 {
    let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    MOST_WATCHES.min(descriptors / PART_OF_DESCRIPTORS)
}

/// Whether the process `supervisor` watches any memory.
pub(super) fn watches(supervisor: Pid) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{supervisor}/fd")) else { return false };
    let target = |entry: fs::DirEntry| fs::read_link(entry.path()).ok();
    let mut targets = descriptors.flatten().filter_map(target);
    targets.any(|target| target.as_os_str() == "anon_inode:[userfaultfd]")
}

/// When a process was started, by which it is told apart from others that had or will have its id; `None`
/// when it has ended.
fn started(pid: Pid) -> Option<u64> {
    procfs::stat(pid).ok().map(|stat| stat.starttime)
}

/// Whether the process that was started then is there and has not ended.
fn lives(pid: Pid, started: u64) -> bool {
    let stat = procfs::stat(pid);
    stat.is_ok_and(|stat| stat.starttime == started && !matches!(stat.state, 'Z' | 'X'))
}

impl Known {
    /// The parts of `range` in ascending order, each with the object of the checkpoint before that has it
    /// unchanged, or `None` where it counts as written.
    pub fn parts(&self, range: AddrRange) -> impl Iterator<Item = (AddrRange, Option<ObjectId>)> {
        let of = self.of;
        let first = self.written.partition_point(|written| written.end <= range.start);
        let mut written = self.written[first..].iter().peekable();
        let mut rest = range;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let (end, unchanged) = match written.peek() {
                None => (rest.end, of),
                Some(next) if next.start <= rest.start => (next.end.min(rest.end), None),
                Some(next) => (next.start.min(rest.end), of),
            };
            if unchanged.is_none() {
                written.next();
            }
            let part = AddrRange { start: rest.start, end };
            rest.start = end;
            Some((part, unchanged))
        })
    }

    /// Whether `range` is part of what is watched.
    pub fn is_watched(&self, range: AddrRange) -> bool {
        let place = self.watched.partition_point(|watched| watched.end <= range.start);
        self.watched.get(place).is_some_and(|watched| watched.overlaps(&range))
    }
}

/// Looks at all mappings of a frozen process. Without `of` nothing is told of what was written, but writes
/// are taken note of from now on.
///
/// # Errors
/// When it cannot be looked at, or nothing of it can be watched.
fn survey(watch: &WriteWatch, pid: Pid, of: Option<ObjectId>) -> io::Result<Known> {
    let map = PageMap::open(pid)?;
    let mappings = procfs::mapping_heads(pid).map_err(io::Error::other)?;
    let mut known = Known { of, written: Vec::new(), watched: Vec::new() };
    for mapping in &mappings {
        let range = mapping.range;
        if !can_be_watched(mapping) {
            known.add(range);
            continue;
        }
        let was_watched = map.is_watched(range.start)?;
        if watch.watch(range).is_err() {
            known.add(range);
            continue;
        }
        known.watched.push(range);
        if was_watched {
            let mut written = Vec::new();
            map.take_written::<io::Error>(range, &mut |range| {
                written.push(range);
                if written.len() > MOST_RANGES {
                    tidy(&mut written, MOST_RANGES / 2);
                }
                Ok(())
            })?;
            tidy(&mut written, MOST_RANGES);
            written.into_iter().for_each(|range| known.add(range));
        } else {
            // Pages may bring marks along from where they were before mremap(2). To find that there are none
            // takes much less time than to take them away.
            if map.has_unwritten(range)? {
                watch.count_all_as_written(range)?;
            }
            map.take_written::<io::Error>(range, &mut |_| Ok(()))?;
            known.add(range);
        }
    }
    if known.watched.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(known) }
}

/// Finds which mappings of a frozen process are watched, and changes nothing.
fn glance(watch: &WriteWatch, pid: Pid) -> io::Result<Known> {
    let map = PageMap::open(pid)?;
    let mut known = Known::default();
    let mappings = procfs::mapping_heads(pid).map_err(io::Error::other)?;
    for Mapping { range, .. } in mappings.into_iter().filter(can_be_watched) {
        if map.is_watched(range.start)? && watch.watch(range).is_ok() {
            known.watched.push(range);
        }
    }
    Ok(known)
}

/// Whether a mapping is private anonymous memory. Shared memory is written through other mappings, too, and
/// the private pages of a file's mapping are few.
fn can_be_watched(mapping: &Mapping) -> bool {
    let anonymous = matches!(memory::classify(mapping), Ok(Some(Kind::Anonymous { .. })));
    anonymous && mapping.inode == 0 && !memory::is_shared(mapping)
}

impl Known {
    fn add(&mut self, range: AddrRange) {
        if self.of.is_none() {
            return;
        }
        match self.written.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.written.push(range),
        }
        if self.written.len() > MOST_RANGES {
            tidy(&mut self.written, MOST_RANGES / 2);
        }
    }
}

/// Puts ranges in order, and brings their number down to `most`, or one, by counting narrow gaps between
/// them as written.
fn tidy(ranges: &mut Vec<AddrRange>, most: usize) {
    ranges.sort_unstable();
    let mut narrow = PAGE_SIZE;
    while ranges.len() > most.max(1) {
        ranges.dedup_by(|next, last| {
            let joins = next.start.0 - last.end.0 <= narrow;
            if joins {
                last.end = next.end;
            }
            joins
        });
        narrow = narrow.saturating_mul(2);
    }
}

#[cfg(test)]
mod tests {
    use super::{Known, Session, Tracking, Use, tidy};
    use crate::image::format::GenerationId;
    use crate::model::address::AddrRange;
    use crate::model::id::ObjectId;

    #[test]
    fn only_the_checkpoint_that_was_asked_for_is_built_on() {
        let (one, other) = (GenerationId::random(), GenerationId::random());
        let mut tracking = Tracking { base: Some(one), ..Tracking::default() };
        assert_eq!(Session::begin(Use::InLine(&mut tracking), Some(one)).base, Some(one));
        assert_eq!(tracking.base, None, "it was not completed");
        let check = |parent| {
            let mut tracking = Tracking { base: Some(one), ..Tracking::default() };
            let session = Session::begin(Use::InLine(&mut tracking), parent);
            assert_eq!(session.base, None);
            session.complete(other);
            assert_eq!(tracking.base, Some(other));
        };
        check(Some(other));
        check(None);
    }

    fn range(start: u64, end: u64) -> AddrRange {
        AddrRange::new(start * 4096, end * 4096).expect("forwards")
    }

    fn known(written: &[(u64, u64)]) -> Known {
        let written = written.iter().map(|(start, end)| range(*start, *end)).collect();
        Known { of: Some(ObjectId(7)), written, watched: vec![range(0, 100)] }
    }

    #[test]
    fn ranges_are_divided_by_what_was_written() {
        let check = |written: &[(u64, u64)], whole: (u64, u64), expected: &[(u64, u64, bool)]| {
            let known = known(written);
            let parts: Vec<_> = known.parts(range(whole.0, whole.1)).collect();
            let unchanged = |written: bool| (!written).then_some(ObjectId(7));
            let expected: Vec<_> = expected
                .iter()
                .map(|(start, end, written)| (range(*start, *end), unchanged(*written)))
                .collect();
            assert_eq!(parts, expected, "{written:?}");
        };
        check(&[], (3, 9), &[(3, 9, false)]);
        check(&[(0, 3), (9, 12)], (3, 9), &[(3, 9, false)]);
        check(&[(0, 4), (8, 12)], (3, 9), &[(3, 4, true), (4, 8, false), (8, 9, true)]);
        check(&[(5, 6)], (3, 9), &[(3, 5, false), (5, 6, true), (6, 9, false)]);
        check(&[(0, 20)], (3, 9), &[(3, 9, true)]);
        check(&[(3, 5), (5, 9)], (3, 9), &[(3, 5, true), (5, 9, true)]);
        check(&[(3, 5)], (3, 3), &[]);
        assert_eq!(Known::default().parts(range(3, 9)).collect::<Vec<_>>(), [(range(3, 9), None)]);
    }

    #[test]
    fn mappings_that_grew_are_watched_still() {
        let known = known(&[]);
        assert!(known.is_watched(range(99, 120)));
        assert!(!known.is_watched(range(100, 120)));
    }

    #[test]
    fn too_many_ranges_become_fewer_and_lose_nothing() {
        let all: Vec<AddrRange> =
            (0..1000).map(|at| range(at * 3 + at / 100, at * 3 + at / 100 + 1)).collect();
        let mut fewer = all.clone();
        tidy(&mut fewer, 1000);
        assert_eq!(fewer, all);
        tidy(&mut fewer, 20);
        assert!((1..=20).contains(&fewer.len()), "{}", fewer.len());
        let covers = |one: &AddrRange| {
            fewer.iter().any(|range| range.start <= one.start && one.end <= range.end)
        };
        assert!(all.iter().all(covers));
        assert!(fewer.windows(2).all(|two| two[0].end < two[1].start));
        tidy(&mut fewer, 0);
        assert_eq!(fewer.len(), 1);
    }
}
