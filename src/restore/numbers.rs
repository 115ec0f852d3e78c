//! Which descriptor numbers the restore has for itself while it works: pure.
//!
//! Everything that is opened for the job is opened once, at numbers that no process of it uses, and each
//! process takes its own descriptors from there. The numbers above all that the job uses are free, but the
//! hard limit (RLIMIT_NOFILE) may leave too few of them: then it is the widest gap below. What is opened
//! there is not known here.

use std::collections::BTreeSet;
use std::ops::Range;
use std::os::fd::RawFd;

use crate::model::file::OpenFileKind;
use crate::model::job::Job;
use crate::model::number::to_usize;

/// Room for the restore's own: its gates, streams and pipes.
const OWN: usize = 128;

/// The numbers for a restore of `job`, where every number is below `limit`; `None` when too few are free.
pub(super) fn choose(job: &Job, limit: u64) -> Option<Range<RawFd>> {
    let limit = RawFd::try_from(limit).unwrap_or(RawFd::MAX);
    widest(&taken(job), needed(job), limit)
}

/// The numbers in `range` that are not in `private`: two ranges at most, none of them empty.
pub(super) fn without(range: Range<RawFd>, private: &Range<RawFd>) -> Vec<Range<RawFd>> {
    let below = range.start..range.end.min(private.start);
    let above = range.start.max(private.end)..range.end;
    [below, above].into_iter().filter(|range| !range.is_empty()).collect()
}

/// The highest number that the job uses.
pub(super) fn highest(job: &Job) -> RawFd {
    taken(job).last().copied().unwrap_or_default()
}

/// The numbers that the job uses. The caller's own three count, for streams are duplicates of them.
fn taken(job: &Job) -> BTreeSet<RawFd> {
    let in_tables = job.fd_tables.iter().flat_map(|table| &table.entries).map(|entry| entry.number);
    let watched = job.open_files.iter().flat_map(|file| match &file.kind {
        OpenFileKind::Epoll { items, .. } => items.as_slice(),
        _ => &[],
    });
    (0..=2).chain(in_tables).chain(watched.map(|item| item.number)).collect()
}

/// More than a restore opens: each description twice, and once to map it or to fill it; an executable a
/// process; and as many again where sockets and terminals are made.
fn needed(job: &Job) -> usize {
    let inodes = job.inodes.len().saturating_mul(4);
    let files = job.open_files.len().saturating_mul(4);
    [inodes, files, job.sockets.len(), to_usize(u64::from(job.objects)), job.processes.len(), OWN]
        .iter()
        .fold(0, |sum: usize, count| sum.saturating_add(*count))
}

/// The numbers above all that are `taken`, if `needed` of them are below `limit`, or else the widest gap
/// that holds as many. There is no end to what lies above all.
fn widest(taken: &BTreeSet<RawFd>, needed: usize, limit: RawFd) -> Option<Range<RawFd>> {
    let above = taken.last().map_or(0, |last| last.saturating_add(1));
    if (above..limit).len() >= needed {
        return Some(above..RawFd::MAX);
    }
    let gaps = taken.iter().zip(taken.iter().skip(1)).map(|(low, high)| low + 1..*high);
    let below = gaps.filter(|gap| gap.end <= limit);
    below.max_by_key(|gap| (gap.len(), gap.start)).filter(|gap| gap.len() >= needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(taken: &[RawFd], needed: usize, limit: RawFd, expected: Option<Range<RawFd>>) {
        let taken = taken.iter().copied().collect();
        assert_eq!(widest(&taken, needed, limit), expected, "{taken:?}, {needed} below {limit}");
    }

    #[test]
    fn the_numbers_above_all_are_taken_where_they_fit() {
        check(&[0, 1, 2, 9], 100, 1024, Some(10..RawFd::MAX));
        check(&[0, 1, 2, 923], 100, 1024, Some(924..RawFd::MAX));
        check(&[], 100, 1024, Some(0..RawFd::MAX));
    }

    #[test]
    fn private_numbers_are_left_out() {
        let check = |range: Range<RawFd>, private: Range<RawFd>, expected: &[(RawFd, RawFd)]| {
            let left = without(range, &private).into_iter().map(|left| (left.start, left.end));
            assert_eq!(left.collect::<Vec<_>>(), expected);
        };
        check(3..5, 7..9, &[(3, 5)]);
        check(3..12, 7..9, &[(3, 7), (9, 12)]);
        check(7..9, 7..9, &[]);
        check(8..12, 7..9, &[(9, 12)]);
        check(3..8, 7..RawFd::MAX, &[(3, 7)]);
    }

    #[test]
    fn else_it_is_the_widest_gap() {
        check(&[0, 1, 2, 400, 1023], 100, 1024, Some(401..1023));
        check(&[0, 1, 2, 700, 1023], 100, 1024, Some(3..700));
        // A job that has given up a higher limit may have numbers beyond it.
        check(&[0, 1, 2, 5000, 9000], 100, 1024, None);
        check(&[0, 1, 2, 500, 700, 1023], 600, 1024, None);
    }
}
