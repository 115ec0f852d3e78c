//! What belongs to no descriptor alone: terminals of the job's own, and what is shared by number or name.

use serde::Serialize;

use crate::model::job::Job;
use crate::model::number::to_u64;
use crate::model::terminal::TerminalState;

/// A pseudo-terminal that the job has made.
#[derive(Serialize)]
pub struct TerminalReport {
    pub path: String,
    pub state: &'static str,
    pub session: Option<i32>,
    pub foreground: Option<i32>,
    /// Bytes that wait to be read by the programs in it.
    pub input: u64,
    /// Bytes that wait to be read by whoever shows it.
    pub output: u64,
}

/// System V IPC and POSIX message queues.
#[derive(Serialize)]
pub struct IpcReport {
    pub segments: Vec<SegmentReport>,
    pub semaphores: Vec<SemaphoresReport>,
    pub queues: Vec<QueueReport>,
    pub posix_queues: Vec<PosixQueueReport>,
}

#[derive(Serialize)]
pub struct SegmentReport {
    pub id: i32,
    pub key: i32,
    pub bytes: u64,
    /// Whether it goes when nobody has it attached any more.
    pub removed: bool,
}

#[derive(Serialize)]
pub struct SemaphoresReport {
    pub id: i32,
    pub key: i32,
    pub values: Vec<u16>,
}

#[derive(Serialize)]
pub struct QueueReport {
    pub id: i32,
    pub key: i32,
    pub messages: usize,
    pub bytes: u64,
}

#[derive(Serialize)]
pub struct PosixQueueReport {
    /// Its name, with the slash.
    pub name: String,
    pub messages: usize,
    pub bytes: u64,
}

impl IpcReport {
    /// Whether there is nothing to tell.
    pub const fn is_empty(&self) -> bool {
        self.segments.is_empty()
            && self.semaphores.is_empty()
            && self.queues.is_empty()
            && self.posix_queues.is_empty()
    }
}

/// Reports the terminals.
pub fn terminals(job: &Job) -> Vec<TerminalReport> {
    let all = job.terminals.own.iter().map(|terminal| TerminalReport {
        path: format!("/dev/pts/{}", terminal.index),
        state: match terminal.state {
            TerminalState::Fresh => "never opened",
            TerminalState::Open => "open",
            TerminalState::SlaveClosed => "left by its programs",
            TerminalState::HungUp => "hung up",
        },
        session: terminal.session.map(|session| session.0),
        foreground: terminal.foreground.map(|group| group.0),
        input: to_u64(terminal.input.len()),
        output: to_u64(terminal.output.0.len()),
    });
    all.collect()
}

/// Reports the objects of interprocess communication.
pub fn ipc(job: &Job) -> IpcReport {
    let ipc = &job.ipc;
    let segments = ipc.segments.iter().map(|segment| SegmentReport {
        id: segment.identity.id,
        key: segment.identity.key,
        bytes: segment.size,
        removed: segment.removed,
    });
    let semaphores = ipc.semaphores.iter().map(|set| SemaphoresReport {
        id: set.identity.id,
        key: set.identity.key,
        values: set.semaphores.iter().map(|semaphore| semaphore.value).collect(),
    });
    let queues = ipc.queues.iter().map(|queue| QueueReport {
        id: queue.identity.id,
        key: queue.identity.key,
        messages: queue.messages.len(),
        bytes: queue.messages.iter().map(|message| to_u64(message.text.0.len())).sum(),
    });
    let posix_queues = ipc.posix_queues.iter().map(|queue| PosixQueueReport {
        name: format!("/{}", queue.name),
        messages: queue.messages.len(),
        bytes: queue.messages.iter().map(|message| to_u64(message.text.0.len())).sum(),
    });
    IpcReport {
        segments: segments.collect(),
        semaphores: semaphores.collect(),
        queues: queues.collect(),
        posix_queues: posix_queues.collect(),
    }
}
