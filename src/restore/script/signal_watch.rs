//! The part of a script that adds signal descriptors to epoll instances.
//!
//! An instance that watches a signalfd is woken by the signals of the process that added it, whoever
//! reads it (fs/signalfd.c, `signalfd_poll`). So a process of the job has to do that itself, with its
//! own table of descriptors, while none is marked close-on-exec and no POSIX lock is held.

use super::{Author, Context, Step, call, signed};
use crate::model::event::EpollItem;
use crate::model::file::{FdTable, OpenFileKind};
use crate::model::id::{OpenFileId, Pid};
use crate::model::job::Job;
use crate::model::number::to_usize;
use crate::model::process::Process;

/// Adds what the epoll instances of `process` watch of its own signals.
pub(super) fn steps(
    author: &mut Author,
    steps: &mut Vec<Step>,
    process: &Process,
    context: &Context<'_>,
) {
    let job = context.job;
    let Some(table) = table(job, process) else { return };
    for (file, id) in job.open_files.iter().zip(0..) {
        let OpenFileKind::Epoll { items, .. } = &file.kind else { continue };
        let instance = OpenFileId(id);
        for item in items.iter().filter(|item| tells_of_signals(job, item)) {
            if who_adds(job, instance, item) == Some(process.pid) {
                add(author, steps, table, instance, item);
            }
        }
    }
}

fn add(
    author: &mut Author,
    steps: &mut Vec<Step>,
    table: &FdTable,
    instance: OpenFileId,
    item: &EpollItem,
) {
    let (Some(mut instance), Some(own)) = (number_of(table, instance), number_of(table, item.file))
    else {
        return;
    };
    // struct epoll_event is packed: events, data.
    let mut event = item.events.to_le_bytes().to_vec();
    event.extend_from_slice(&item.data.to_le_bytes());
    let event = author.data(&event);
    let duplicate = |from: i32, to: i32| call(libc::SYS_dup3, &[signed(from), signed(to), 0]);
    let close = |number: i32| call(libc::SYS_close, &[signed(number)]);
    let in_use = table.entries.iter().find(|entry| entry.number == item.number);
    let spare = spare_number(table);
    if let Some(entry) = in_use
        && entry.file != item.file
    {
        steps.push(duplicate(item.number, spare));
        if instance == item.number {
            instance = spare;
        }
    }
    let has_it = in_use.is_some_and(|entry| entry.file == item.file);
    if !has_it {
        steps.push(duplicate(own, item.number));
    }
    let [instance, add, number] = [instance, libc::EPOLL_CTL_ADD, item.number].map(signed);
    steps.push(call(libc::SYS_epoll_ctl, &[instance, add, number, event]));
    match in_use {
        _ if has_it => {}
        Some(_) => steps.extend([duplicate(spare, item.number), close(spare)]),
        None => steps.push(close(item.number)),
    }
}

/// The lowest number that nothing has. The plan leaves the one above all others unused.
fn spare_number(table: &FdTable) -> i32 {
    let taken = |number: i32| table.entries.iter().any(|entry| entry.number == number);
    (0..).find(|number| !taken(*number)).unwrap_or(i32::MAX)
}

fn tells_of_signals(job: &Job, item: &EpollItem) -> bool {
    let file = job.open_files.get(to_usize(u64::from(item.file.0)));
    file.is_some_and(|file| matches!(file.kind, OpenFileKind::SignalFd { .. }))
}

/// The kernel does not tell who added it. It is most likely the first process that has the instance,
/// and the signal descriptor under the same number; or else the first that has both.
fn who_adds(job: &Job, instance: OpenFileId, item: &EpollItem) -> Option<Pid> {
    let rank = |process: &Process| {
        let table = table(job, process)?;
        number_of(table, instance)?;
        number_of(table, item.file)?;
        let same = |number: i32, file: OpenFileId| {
            table.entries.iter().any(|entry| entry.number == number && entry.file == file)
        };
        Some(u8::from(!same(item.number, item.file)))
    };
    let living = job.processes.iter().filter(|process| !process.is_zombie());
    living
        .filter_map(|process| Some((rank(process)?, process.pid)))
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, pid)| pid)
}

fn table<'a>(job: &'a Job, process: &Process) -> Option<&'a FdTable> {
    job.fd_tables.get(to_usize(u64::from(process.fd_table.0)))
}

fn number_of(table: &FdTable, file: OpenFileId) -> Option<i32> {
    table.entries.iter().find(|entry| entry.file == file).map(|entry| entry.number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::BusyPoll;
    use crate::model::file::{Fd, OpenFile};
    use crate::model::id::FdTableId;
    use crate::model::signal::SignalSet;

    /// Open file 0 watches open file 1, a signal descriptor that was added by number 5; 2 is another.
    fn job(tables: &[&[(i32, u32)]]) -> Job {
        let item = EpollItem { file: OpenFileId(1), number: 5, events: 1, data: 9, told: 0 };
        let open = |kind| OpenFile { flags: 2, kind, owner: None, locks: Vec::new() };
        let signals = || OpenFileKind::SignalFd { mask: SignalSet(1) };
        let busy_poll = BusyPoll::default();
        let entry = |(number, file): &(i32, u32)| Fd {
            number: *number,
            file: OpenFileId(*file),
            close_on_exec: false,
        };
        Job {
            open_files: vec![
                open(OpenFileKind::Epoll { items: vec![item], busy_poll }),
                open(signals()),
                open(signals()),
            ],
            fd_tables: tables
                .iter()
                .map(|table| FdTable { entries: table.iter().map(entry).collect() })
                .collect(),
            processes: (1..)
                .zip(tables)
                .map(|(number, _)| Process {
                    pid: Pid(number),
                    fd_table: FdTableId(number.unsigned_abs() - 1),
                    ..crate::image::sample::job().processes[0].clone()
                })
                .collect(),
            ..Job::default()
        }
    }

    #[test]
    fn the_process_with_the_same_number_adds() {
        let check = |tables: &[&[(i32, u32)]], expected: Option<i32>| {
            let job = job(tables);
            let OpenFileKind::Epoll { items, .. } = &job.open_files[0].kind else { unreachable!() };
            assert_eq!(who_adds(&job, OpenFileId(0), &items[0]), expected.map(Pid));
        };
        check(&[&[(3, 0), (5, 1)], &[(3, 0), (5, 1)]], Some(1));
        check(&[&[(3, 0), (6, 1)], &[(3, 0), (5, 1)]], Some(2));
        check(&[&[(3, 0)], &[(3, 0), (6, 1)]], Some(2));
        check(&[&[(3, 0)], &[(5, 1)]], None);
    }

    #[test]
    fn every_number_is_given_back_to_what_had_it() {
        let check = |entries: &[(i32, u32)], expected: &[i64]| {
            let job = job(&[entries]);
            let mut author = Author { base: 0, bytes: Vec::new() };
            let mut found = Vec::new();
            let OpenFileKind::Epoll { items, .. } = &job.open_files[0].kind else { unreachable!() };
            add(&mut author, &mut found, &job.fd_tables[0], OpenFileId(0), &items[0]);
            let numbers: Vec<i64> = found.iter().map(|step| step.number.cast_signed()).collect();
            assert_eq!(numbers, expected, "{entries:?}");
        };
        let (add, dup, close) = (libc::SYS_epoll_ctl, libc::SYS_dup3, libc::SYS_close);
        check(&[(3, 0), (5, 1)], &[add]);
        check(&[(3, 0), (7, 1)], &[dup, add, close]);
        check(&[(3, 0), (5, 2), (7, 1)], &[dup, dup, add, dup, close]);
        check(&[(5, 0), (7, 1)], &[dup, dup, add, dup, close]);
    }
}
