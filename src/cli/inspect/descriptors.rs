//! What the descriptors of a job refer to, and who shares what.

use std::collections::HashMap;

use serde::Serialize;

use super::report::pids;
use crate::model::file::{
    Fd, FdTable, InodeKind, OpenFile, OpenFileKind, PipeEnd, Stream, StreamTarget,
};
use crate::model::id::{InodeId, OpenFileId, Pid, PipeId};
use crate::model::job::Job;
use crate::model::number::to_usize;
use crate::model::terminal::TerminalEnd;

#[derive(Serialize)]
pub struct TableReport {
    pub number: usize,
    pub processes: Vec<i32>,
    pub descriptors: Vec<DescriptorReport>,
}

#[derive(Serialize)]
pub struct DescriptorReport {
    pub number: i32,
    pub access: &'static str,
    pub close_on_exec: bool,
    /// Number of the open file: descriptors with the same one share their position.
    pub open_file: u32,
    /// Other descriptors that share it, as (table, number).
    pub shared_with: Vec<(usize, i32)>,
    pub what: String,
}

/// Reports every table.
pub fn tables(job: &Job) -> Vec<TableReport> {
    let mut places: HashMap<OpenFileId, Vec<(usize, i32)>> = HashMap::new();
    for (table, FdTable { entries }) in job.fd_tables.iter().enumerate() {
        for entry in entries {
            places.entry(entry.file).or_default().push((table, entry.number));
        }
    }
    let descriptor = |table: usize, entry: &Fd| {
        let file = &job.open_files[to_usize(u64::from(entry.file.0))];
        let mut shared_with = places.get(&entry.file).cloned().unwrap_or_default();
        shared_with.retain(|place| *place != (table, entry.number));
        DescriptorReport {
            number: entry.number,
            access: access_mode(file),
            close_on_exec: entry.close_on_exec,
            open_file: entry.file.0,
            shared_with,
            what: what(job, file),
        }
    };
    let table = |(number, FdTable { entries }): (usize, &FdTable)| TableReport {
        number,
        processes: pids(job, |process| to_usize(u64::from(process.fd_table.0)) == number),
        descriptors: entries.iter().map(|entry| descriptor(number, entry)).collect(),
    };
    job.fd_tables.iter().enumerate().map(table).collect()
}

/// How a description may be used, as `r-`, `-w`, `rw` or `--`.
pub fn access_mode(file: &OpenFile) -> &'static str {
    // O_RDONLY, O_WRONLY and O_RDWR are numbers, not bits: open(2).
    match (&file.kind, file.flags & 3) {
        (OpenFileKind::Path { .. }, _) => "--",
        (_, 0) => "r-",
        (_, 1) => "-w",
        _ => "rw",
    }
}

/// What a description is, in words.
pub fn what(job: &Job, file: &OpenFile) -> String {
    match &file.kind {
        OpenFileKind::Regular { inode, position } => {
            format!("{} at {position}", path_of(job, *inode))
        }
        OpenFileKind::Directory { inode, .. } => format!("{} (directory)", path_of(job, *inode)),
        OpenFileKind::Path { inode } => format!("{} (O_PATH)", path_of(job, *inode)),
        OpenFileKind::Pipe { pipe, end } => pipe_end(job, *pipe, *end),
        OpenFileKind::Fifo { inode, pipe, end } => {
            format!("{} ({})", path_of(job, *inode), pipe_end(job, *pipe, *end))
        }
        OpenFileKind::Device { inode } => path_of(job, *inode),
        OpenFileKind::ControllingTerminal => "/dev/tty".to_owned(),
        OpenFileKind::PseudoTerminal { terminal, end } => {
            let terminal = &job.terminals.own[to_usize(u64::from(terminal.0))];
            let (input, output) = (terminal.input.len(), terminal.output.0.len());
            let end = match end {
                TerminalEnd::Master => format!("master, {output} bytes queued"),
                TerminalEnd::Slave => format!("slave, {input} bytes queued"),
                TerminalEnd::SlaveAsControlling => format!("slave, as /dev/tty, {input} queued"),
            };
            format!("/dev/pts/{} ({end})", terminal.index)
        }
        OpenFileKind::EventFd { count, .. } => format!("eventfd, count {count}"),
        OpenFileKind::TimerFd { ticks, .. } => format!("timerfd, {ticks} ticks unread"),
        OpenFileKind::SignalFd { mask } => {
            let numbers: Vec<String> = mask.numbers().map(|number| number.to_string()).collect();
            format!("signalfd for signals {}", numbers.join(", "))
        }
        OpenFileKind::Epoll { items, .. } => format!("epoll, watches {}", items.len()),
        OpenFileKind::Inotify { watches } => format!("inotify, watches {}", watches.len()),
        OpenFileKind::PidFd { process: Pid(0), .. } => {
            "pidfd of a process that has ended".to_owned()
        }
        OpenFileKind::PidFd { process, .. } => format!("pidfd of process {process}"),
        OpenFileKind::IoUring { ring } => {
            format!("io_uring with room for {} requests", ring.entries)
        }
        OpenFileKind::MessageQueue { queue } => {
            let queue = job.ipc.posix_queues.get(to_usize(u64::from(queue.0)));
            let name = queue.map(|queue| queue.name.to_string()).unwrap_or_default();
            format!("POSIX message queue /{name}")
        }
        OpenFileKind::Stream { stream, target } => {
            let name = match stream {
                Stream::Input => "standard input",
                Stream::Output => "standard output",
                Stream::Error => "standard error",
            };
            match target {
                StreamTarget::Regular { inode, position } => {
                    format!("{name}: {} at {position}", path_of(job, *inode))
                }
                StreamTarget::Terminal { .. } => format!("{name}: terminal"),
                StreamTarget::Other(kernel_name) => format!("{name}: {kernel_name}"),
            }
        }
        OpenFileKind::OwnMemory { position } => format!("/proc/self/mem at {position:#x}"),
        OpenFileKind::Proc { path, position } => format!("{path} at {position}"),
        OpenFileKind::Socket { socket } => super::socket::describe(job, *socket),
    }
}

fn pipe_end(job: &Job, pipe: PipeId, end: PipeEnd) -> String {
    let queued: usize =
        job.pipes[to_usize(u64::from(pipe.0))].queued.iter().map(|bytes| bytes.0.len()).sum();
    let end = match end {
        PipeEnd::Read => "read end",
        PipeEnd::Write => "write end",
        PipeEnd::Both => "both ends",
    };
    format!("pipe {pipe}, {end}, {queued} bytes queued")
}

/// A name for an inode, which its record has been checked to have.
pub fn path_of(job: &Job, inode: InodeId) -> String {
    let record = &job.inodes[to_usize(u64::from(inode.0))];
    match record.kind {
        InodeKind::Linked | InodeKind::MemoryFile => record.path.to_string(),
        InodeKind::Unlinked => format!("{} (deleted)", record.path),
        InodeKind::Memfd { .. } => format!("memfd:{}", record.path),
        InodeKind::AnonymousShared => format!("shared memory {inode}"),
        InodeKind::Segment { id } => format!("System V shared memory {id}"),
    }
}
