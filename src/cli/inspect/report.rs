//! A report of what is in a checkpoint, in the shape that `--json` prints. Only data made of data.

use serde::Serialize;

use crate::image::{Codec, Reader};
use crate::job::history::{History, Made};
use crate::model::file::InodeKind;
use crate::model::id::{Bytes, InodeId};
use crate::model::job::Job;
use crate::model::number::{to_u64, to_usize};
use crate::model::process::{Process, ProcessState};

use super::descriptors::{TableReport, path_of, tables};
use super::displaced::DisplacedReport;
use super::fate::FileFate;
use super::memory::{SpaceReport, Stored, space_report};
use super::objects::{IpcReport, TerminalReport, ipc, terminals};
use super::sharing::{OpenFileReport, PipeReport, SocketReport, open_files, pipes, sockets};
use super::timers::{TimerReport, timers};

/// Everything about a checkpoint that people ask for.
#[derive(Serialize)]
pub struct Report {
    pub path: String,
    pub generation: String,
    pub job: String,
    pub command: String,
    /// Seconds since 1970.
    pub taken: i64,
    pub host: String,
    pub kernel: String,
    pub cpu: String,
    /// How it was made; `None`: nothing is written down about that.
    pub making: Option<Made>,
    pub size: Size,
    pub processes: Vec<ProcessReport>,
    pub address_spaces: Vec<SpaceReport>,
    pub descriptor_tables: Vec<TableReport>,
    /// What the descriptors refer to.
    pub open_files: Vec<OpenFileReport>,
    pub pipes: Vec<PipeReport>,
    pub sockets: Vec<SocketReport>,
    /// Pseudo-terminals that the job has made.
    pub terminals: Vec<TerminalReport>,
    /// What is shared by number or name.
    pub ipc: IpcReport,
    /// Timers that run, of every kind.
    pub timers: Vec<TimerReport>,
    /// Files whose content is in the checkpoint.
    pub contents: Vec<ContentReport>,
    /// Files that the user named as outputs.
    pub outputs: Vec<OutputReport>,
    /// What restores have cut off and set aside, whatever checkpoint they were from.
    pub displaced: Vec<DisplacedReport>,
    /// What a restore here and now would do to files.
    pub files: Vec<FileFate>,
    /// All checkpoints of the job that are known of.
    pub history: History,
}

#[derive(Serialize)]
pub struct Size {
    /// Bytes on the disk.
    pub stored: u64,
    /// Bytes of memory and file contents that they hold.
    pub memory: u64,
    pub chunks: usize,
    pub compressed_chunks: usize,
}

#[derive(Serialize)]
pub struct ProcessReport {
    pub pid: i32,
    pub ppid: i32,
    pub pgid: i32,
    pub sid: i32,
    pub name: String,
    pub state: &'static str,
    pub threads: Vec<i32>,
    /// Status that its parent will get, when it has ended.
    pub wait_status: Option<i32>,
    pub address_space: Option<u32>,
    pub descriptor_table: Option<u32>,
    pub cwd: Option<String>,
}

#[derive(Serialize)]
pub struct ContentReport {
    pub path: String,
    pub kind: &'static str,
    pub bytes: u64,
    pub stored: u64,
}

#[derive(Serialize)]
pub struct OutputReport {
    pub path: String,
    pub bytes: u64,
}

/// Reports what `reader` has. What lies around it is for the caller to add.
pub fn report(reader: &Reader) -> Report {
    let job = reader.job();
    let stored = Stored::of(reader);
    let chunks = reader.chunks();
    Report {
        path: reader.directory().display().to_string(),
        generation: reader.id().to_string(),
        job: job.id.to_string(),
        command: job.command.iter().map(Bytes::to_string).collect::<Vec<_>>().join(" "),
        taken: job.clocks.realtime.seconds,
        host: job.machine.host.to_string(),
        kernel: job.machine.kernel.to_string(),
        cpu: job.machine.cpu.to_string(),
        making: None,
        size: Size {
            stored: reader.stored_bytes(),
            memory: chunks.iter().map(|chunk| to_u64(chunk.length())).sum(),
            chunks: chunks.len(),
            compressed_chunks: chunks.iter().filter(|chunk| chunk.codec == Codec::Lz4).count(),
        },
        processes: job.processes.iter().map(|process| process_report(job, process)).collect(),
        address_spaces: (0..)
            .zip(&job.address_spaces)
            .map(|(number, space)| space_report(job, number, space, &stored))
            .collect(),
        descriptor_tables: tables(job),
        open_files: open_files(job),
        pipes: pipes(job),
        sockets: sockets(job),
        terminals: terminals(job),
        ipc: ipc(job),
        timers: timers(job),
        contents: contents(job, &stored),
        outputs: job
            .outputs
            .files
            .iter()
            .map(|output| OutputReport { path: output.path.to_string(), bytes: output.size })
            .collect(),
        displaced: Vec::new(),
        files: Vec::new(),
        history: History::default(),
    }
}

fn process_report(job: &Job, process: &Process) -> ProcessReport {
    let (state, wait_status) = match process.state {
        ProcessState::Alive => ("running", None),
        ProcessState::Stopped { .. } => ("stopped", None),
        ProcessState::Zombie { wait_status } => ("ended", Some(wait_status)),
    };
    let alive = wait_status.is_none();
    let cwd = alive.then(|| {
        let directories = &job.fs[to_usize(u64::from(process.fs.0))];
        path_of(job, directories.cwd)
    });
    ProcessReport {
        pid: process.pid.0,
        ppid: process.ppid.0,
        pgid: process.pgid.0,
        sid: process.sid.0,
        name: process.name.to_string(),
        state,
        threads: process.threads.iter().map(|thread| thread.tid.0).collect(),
        wait_status,
        address_space: alive.then_some(process.mm.0),
        descriptor_table: alive.then_some(process.fd_table.0),
        cwd,
    }
}

/// Processes that have not ended and satisfy `belongs`.
pub fn pids(job: &Job, belongs: impl Fn(&Process) -> bool) -> Vec<i32> {
    let alive = job.processes.iter().filter(|process| !process.is_zombie());
    alive.filter(|process| belongs(process)).map(|process| process.pid.0).collect()
}

fn contents(job: &Job, stored: &Stored) -> Vec<ContentReport> {
    let kept = job.inodes.iter().enumerate().filter_map(|(number, inode)| {
        let id = InodeId(u32::try_from(number).ok()?);
        let content = inode.content?;
        let kind = match inode.kind {
            InodeKind::Linked => "file",
            InodeKind::Unlinked => "deleted file",
            InodeKind::MemoryFile => "file in memory",
            InodeKind::Memfd { .. } => "memfd",
            InodeKind::AnonymousShared | InodeKind::Segment { .. } => "shared memory",
        };
        Some(ContentReport {
            path: path_of(job, id),
            kind,
            bytes: inode.size,
            stored: stored.bytes(content, 0, u64::MAX),
        })
    });
    kept.collect()
}
