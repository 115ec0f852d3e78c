//! Who is connected with whom: open file descriptions, and the pipes, sockets and event descriptors that
//! lead from one to another.

use std::collections::HashMap;

use serde::Serialize;

use super::descriptors::{access_mode, what};
use crate::model::file::{OpenFile, OpenFileKind, PipeEnd};
use crate::model::id::{OpenFileId, SocketId};
use crate::model::job::Job;
use crate::model::number::{to_u64, to_usize};
use crate::model::socket::{InetConnection, Socket, SocketDetail, UnixConnection};

/// An open file description.
#[derive(Serialize)]
pub struct OpenFileReport {
    pub number: u32,
    pub kind: &'static str,
    pub access: &'static str,
    pub what: String,
    /// The descriptors that refer to it, as (table, number). None: it is on its way in a message.
    pub descriptors: Vec<(usize, i32)>,
    /// Other open files that it leads to: what it is connected with, and what it watches.
    pub leads_to: Vec<u32>,
}

/// What flows through a pipe or FIFO.
#[derive(Serialize)]
pub struct PipeReport {
    pub number: u32,
    pub capacity: u32,
    pub queued_bytes: u64,
    /// Open files that it is read from.
    pub readers: Vec<u32>,
    /// Open files that it is written to.
    pub writers: Vec<u32>,
}

/// A socket.
#[derive(Serialize)]
pub struct SocketReport {
    pub number: u32,
    pub open_file: Option<u32>,
    pub what: String,
    /// The socket that it is connected with, or that has yet to accept it, when that is of the job.
    pub peer: Option<u32>,
    pub queued_bytes: u64,
}

/// The numbers of a job's open files, by what they are.
struct Numbers {
    sockets: HashMap<SocketId, u32>,
}

impl Numbers {
    fn of(job: &Job) -> Self {
        let sockets = (0..).zip(&job.open_files).filter_map(|(number, file)| match file.kind {
            OpenFileKind::Socket { socket } => Some((socket, number)),
            _ => None,
        });
        Self { sockets: sockets.collect() }
    }
}

/// Reports every open file.
pub fn open_files(job: &Job) -> Vec<OpenFileReport> {
    let numbers = Numbers::of(job);
    let pipes = pipes(job);
    let mut holders: HashMap<OpenFileId, Vec<(usize, i32)>> = HashMap::new();
    for (table, entries) in job.fd_tables.iter().enumerate() {
        for entry in &entries.entries {
            holders.entry(entry.file).or_default().push((table, entry.number));
        }
    }
    let mut report = |(number, file): (u32, &OpenFile)| OpenFileReport {
        number,
        kind: kind_name(&file.kind),
        access: access_mode(file),
        what: what(job, file),
        descriptors: holders.remove(&OpenFileId(number)).unwrap_or_default(),
        leads_to: leads_to(job, number, file, &numbers, &pipes),
    };
    (0..).zip(&job.open_files).map(&mut report).collect()
}

fn leads_to(
    job: &Job,
    number: u32,
    file: &OpenFile,
    numbers: &Numbers,
    pipes: &[PipeReport],
) -> Vec<u32> {
    let mut found: Vec<u32> = match &file.kind {
        OpenFileKind::Pipe { pipe, end: PipeEnd::Write | PipeEnd::Both }
        | OpenFileKind::Fifo { pipe, end: PipeEnd::Write | PipeEnd::Both, .. } => pipes
            .get(to_usize(u64::from(pipe.0)))
            .map(|pipe| pipe.readers.clone())
            .unwrap_or_default(),
        OpenFileKind::Epoll { items, .. } => items.iter().map(|item| item.file.0).collect(),
        OpenFileKind::Socket { socket } => {
            let peer = job.sockets.get(to_usize(u64::from(socket.0))).and_then(peer_of);
            peer.and_then(|peer| numbers.sockets.get(&peer).copied()).into_iter().collect()
        }
        OpenFileKind::PseudoTerminal { terminal, .. } => (0..)
            .zip(&job.open_files)
            .filter_map(|(other, file)| match file.kind {
                OpenFileKind::PseudoTerminal { terminal: its, .. } if its == *terminal => {
                    Some(other)
                }
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    };
    found.retain(|other| *other != number);
    found.sort_unstable();
    found.dedup();
    found
}

/// Reports every pipe.
pub fn pipes(job: &Job) -> Vec<PipeReport> {
    let mut reports: Vec<PipeReport> = (0..)
        .zip(&job.pipes)
        .map(|(number, pipe)| PipeReport {
            number,
            capacity: pipe.capacity,
            queued_bytes: pipe.queued.iter().map(|bytes| to_u64(bytes.0.len())).sum(),
            readers: Vec::new(),
            writers: Vec::new(),
        })
        .collect();
    for (number, file) in (0..).zip(&job.open_files) {
        let (OpenFileKind::Pipe { pipe, end } | OpenFileKind::Fifo { pipe, end, .. }) = &file.kind
        else {
            continue;
        };
        let Some(report) = reports.get_mut(to_usize(u64::from(pipe.0))) else { continue };
        if matches!(end, PipeEnd::Read | PipeEnd::Both) {
            report.readers.push(number);
        }
        if matches!(end, PipeEnd::Write | PipeEnd::Both) {
            report.writers.push(number);
        }
    }
    reports
}

/// Reports every socket.
pub fn sockets(job: &Job) -> Vec<SocketReport> {
    let numbers = Numbers::of(job);
    let report = |(number, socket): (u32, &Socket)| SocketReport {
        number,
        open_file: numbers.sockets.get(&SocketId(number)).copied(),
        what: super::socket::describe(job, SocketId(number)),
        peer: peer_of(socket).map(|peer| peer.0),
        queued_bytes: queued(socket),
    };
    (0..).zip(&job.sockets).map(report).collect()
}

fn queued(socket: &Socket) -> u64 {
    let lengths: Vec<usize> = match &socket.detail {
        SocketDetail::Unix(unix) => {
            unix.queued.iter().map(|message| message.data.0.len()).collect()
        }
        SocketDetail::Inet(inet) => {
            inet.queued.iter().map(|message| message.data.0.len()).collect()
        }
        SocketDetail::Netlink(_) => Vec::new(),
    };
    lengths.into_iter().map(to_u64).sum()
}

/// The socket of the job that a socket leads to.
fn peer_of(socket: &Socket) -> Option<SocketId> {
    match &socket.detail {
        SocketDetail::Unix(unix) => match unix.connection {
            UnixConnection::Peer(peer) | UnixConnection::Pending(peer) => Some(peer),
            _ => None,
        },
        SocketDetail::Inet(inet) => match inet.connection {
            InetConnection::Peer(peer) => Some(peer),
            _ => None,
        },
        SocketDetail::Netlink(_) => None,
    }
}

const fn kind_name(kind: &OpenFileKind) -> &'static str {
    match kind {
        OpenFileKind::Regular { .. } => "file",
        OpenFileKind::Directory { .. } => "directory",
        OpenFileKind::Path { .. } => "path",
        OpenFileKind::Pipe { .. } => "pipe",
        OpenFileKind::Fifo { .. } => "fifo",
        OpenFileKind::Device { .. } => "device",
        OpenFileKind::ControllingTerminal | OpenFileKind::PseudoTerminal { .. } => "terminal",
        OpenFileKind::EventFd { .. } => "eventfd",
        OpenFileKind::TimerFd { .. } => "timerfd",
        OpenFileKind::SignalFd { .. } => "signalfd",
        OpenFileKind::Epoll { .. } => "epoll",
        OpenFileKind::Inotify { .. } => "inotify",
        OpenFileKind::PidFd { .. } => "pidfd",
        OpenFileKind::IoUring { .. } => "io_uring",
        OpenFileKind::MessageQueue { .. } => "message queue",
        OpenFileKind::Stream { .. } => "stream",
        OpenFileKind::OwnMemory { .. } => "own memory",
        OpenFileKind::Proc { .. } => "proc",
        OpenFileKind::Socket { .. } => "socket",
    }
}
