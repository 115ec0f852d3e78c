//! Epoll instances: which descriptions they watch, for what, and what has been told of them already.
//!
//! What an instance watches may be known by a number that was closed or used anew since; kcmp(2) tells
//! which description is meant. It is looked for when all descriptions have their records.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use nix::errno::Errno;
use nix::unistd::Pid;

use super::refusal::RefusalKind;
use super::scan::Description;
use super::{CollectFilesError, Collector, Failure, call_failed, duplicate};
use crate::model::event::{EPOLL_MODES, EpollItem};
use crate::model::file::{FdTable, OpenFile, OpenFileKind};
use crate::model::id::OpenFileId;
use crate::model::number::to_usize;
use crate::sys::descriptor;
use crate::sys::epoll::{self, Target};
use crate::sys::fdinfo::Watched;

/// Records an instance that watches nothing yet; [`find_watched`] adds what it watches.
pub(super) fn collect(found: &Description) -> Result<OpenFileKind, Failure> {
    let instance = duplicate(found)?;
    let busy_poll = epoll::busy_poll(&instance).map_err(call_failed(found, "EPIOCGPARAMS"))?;
    Ok(OpenFileKind::Epoll { items: Vec::new(), busy_poll })
}

/// A description and its records: several where it was divided among standard streams.
pub(super) type Entered<'a> = (&'a Description, Vec<OpenFileId>);

/// Finds what the instances among `entered` watch, and adds it to their records.
pub(super) fn find_watched(
    collector: &mut Collector,
    entered: &[Entered<'_>],
) -> Result<(), CollectFilesError> {
    let mut instances = Vec::new();
    for (found, ids) in entered {
        let Some(index) = ids.first().map(|id| to_usize(u64::from(id.0))) else { continue };
        if !matches!(collector.open_files[index].kind, OpenFileKind::Epoll { .. }) {
            continue;
        }
        match watched(collector, found, entered) {
            Ok(found) => *items_of(collector, index) = found,
            Err(Failure::Failed(error)) => return Err(error),
            Err(Failure::Refused(kind)) => collector.refuse_description(found, kind),
        }
        instances.push((*found, index));
    }
    for (found, index) in instances {
        match note_told(collector, found, index, entered) {
            Ok(()) => {}
            Err(Failure::Failed(error)) => return Err(error),
            Err(Failure::Refused(kind)) => collector.refuse_description(found, kind),
        }
    }
    Ok(())
}

/// The items of the instance at `index` of the records.
fn items_of(collector: &mut Collector, index: usize) -> &mut Vec<EpollItem> {
    match &mut collector.open_files[index].kind {
        OpenFileKind::Epoll { items, .. } => items,
        _ => unreachable!("only instances have been given to it"),
    }
}

/// What one instance watches.
fn watched(
    collector: &Collector,
    found: &Description,
    entered: &[Entered<'_>],
) -> Result<Vec<EpollItem>, Failure> {
    let mut seen: BTreeMap<i32, u32> = BTreeMap::new();
    let mut items = Vec::new();
    for shown in &found.info.watched {
        let nth = seen.entry(shown.number).or_default();
        let (pid, instance) = found.holder;
        let target = Target { pid, instance, number: shown.number, nth: *nth };
        *nth += 1;
        let Some((_, ids)) = find(shown, target, found, entered)? else {
            return Err(RefusalKind::WatchesOutside { number: shown.number }.into());
        };
        // What is refused has no record, and nothing will come of this one.
        let Some(file) = choose(collector, found, shown.number, ids) else { continue };
        let record = &collector.open_files[to_usize(u64::from(file.0))];
        check_watchable(collector, found, record, file, shown.number)?;
        let &Watched { number, events, data, .. } = shown;
        items.push(EpollItem { file, number, events, data, told: 0 });
    }
    Ok(items)
}

/// Notes what an instance has told of already.
///
/// Asking whether it is ready makes the kernel look at everything on its list of what has happened. When
/// it says no, nothing is waiting to be told; when it says yes, nobody can tell which of the edges have
/// been told, and telling one twice is better than never. A signal descriptor must not be looked at this
/// way: it would show our own signals, and the kernel would take it off the list.
fn note_told(
    collector: &mut Collector,
    found: &Description,
    index: usize,
    entered: &[Entered<'_>],
) -> Result<(), Failure> {
    let items = items_of(collector, index).clone();
    let edges =
        |item: &EpollItem| item.events & libc::EPOLLET.cast_unsigned() != 0 && !item.is_disarmed();
    if !items.iter().any(edges) || shows_signals(&collector.open_files, index, 0) {
        return Ok(());
    }
    let instance = duplicate(found)?;
    let pending = descriptor::poll_now(&instance, libc::POLLIN)
        .map_err(|source| call_failed(found, "poll")(source))?;
    if pending != 0 {
        return Ok(());
    }
    for (place, item) in items.iter().enumerate().filter(|(_, item)| edges(item)) {
        let watched = entered.iter().find(|(_, ids)| ids.contains(&item.file));
        if let Some((watched, _)) = watched {
            items_of(collector, index)[place].told = ready(watched, item.events)?;
        }
    }
    Ok(())
}

/// Whether the file at `index`, or what it watches, tells of signals. The kernel lets instances watch
/// each other five deep at most (EP_MAX_NESTS).
fn shows_signals(files: &[OpenFile], index: usize, depth: u32) -> bool {
    const DEEPEST: u32 = 5;
    match files.get(index).map(|file| &file.kind) {
        Some(OpenFileKind::SignalFd { .. }) => true,
        Some(OpenFileKind::Epoll { items, .. }) => {
            depth > DEEPEST
                || items
                    .iter()
                    .any(|item| shows_signals(files, to_usize(u64::from(item.file.0)), depth + 1))
        }
        _ => false,
    }
}

/// The description that `target` is. Those of the same file, and under the same number, are tried
/// first.
fn find<'a, 'b>(
    shown: &Watched,
    target: Target,
    instance: &Description,
    entered: &'b [Entered<'a>],
) -> Result<Option<&'b Entered<'a>>, CollectFilesError> {
    let table = instance.entries.first().map(|entry| entry.table);
    let mut candidates: Vec<(u8, &Entered<'_>)> = entered
        .iter()
        .map(|candidate| {
            let (found, _) = candidate;
            let same_number = |entry: &super::scan::Entry| {
                Some(entry.table) == table && entry.number == shown.number
            };
            let same_file = found.stat.identity() == (shown.device, shown.inode);
            let rank = match (same_file, found.entries.iter().any(same_number)) {
                (true, true) => 0,
                (true, false) => 1,
                (false, true) => 2,
                (false, false) => 3,
            };
            (rank, candidate)
        })
        .collect();
    candidates.sort_by_key(|(rank, _)| *rank);
    for (_, candidate) in candidates {
        match epoll::compare(candidate.0.holder, target) {
            Ok(Ordering::Equal) => return Ok(Some(candidate)),
            Ok(_) => {}
            Err(source) => return Err(compare_failed(instance.holder, source)),
        }
    }
    Ok(None)
}

const fn compare_failed((pid, number): (Pid, i32), source: Errno) -> CollectFilesError {
    CollectFilesError::CompareDescriptors { pid, number, source }
}

/// Which record of a description is meant: where it was divided among standard streams, the one that
/// the holder of the instance has under this number.
fn choose(
    collector: &Collector,
    instance: &Description,
    number: i32,
    ids: &[OpenFileId],
) -> Option<OpenFileId> {
    let table = instance.entries.first().map(|entry| &collector.fd_tables[entry.table]);
    let entry = table.and_then(|table| table.entries.iter().find(|entry| entry.number == number));
    let own = entry.map(|entry| entry.file).filter(|file| ids.contains(file));
    own.or_else(|| ids.first().copied())
}

/// What can be watched again after a restore.
fn check_watchable(
    collector: &Collector,
    instance: &Description,
    record: &OpenFile,
    file: OpenFileId,
    number: i32,
) -> Result<(), RefusalKind> {
    match record.kind {
        // What pending signals it tells of are those of the process that had it added.
        OpenFileKind::SignalFd { .. } => {
            let has = |table: &FdTable, wanted: OpenFileId| {
                table.entries.iter().any(|entry| entry.file == wanted)
            };
            let both =
                instance.entries.iter().any(|entry| has(&collector.fd_tables[entry.table], file));
            if both { Ok(()) } else { Err(RefusalKind::WatchesSignalsOfOther { number }) }
        }
        _ => Ok(()),
    }
}

/// Which of `events` a description shows now.
fn ready(found: &Description, events: u32) -> Result<u32, Failure> {
    let file = duplicate(found)?;
    let wanted = u16::try_from(events & !EPOLL_MODES & 0xffff).unwrap_or_default();
    let shown = descriptor::poll_now(&file, wanted.cast_signed())
        .map_err(|source| call_failed(found, "poll")(source))?;
    Ok(u32::from(shown.cast_unsigned()))
}
