//! A report of what is in a checkpoint, in the shape that `--json` prints. Only data made of data.

use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

use crate::image::{Codec, Reader, Run};
use crate::model::file::{
    Fd, FdTable, InodeKind, OpenFile, OpenFileKind, PipeEnd, Stream, StreamTarget,
};
use crate::model::id::{Bytes, InodeId, ObjectId, OpenFileId, Pid, PipeId};
use crate::model::job::Job;
use crate::model::memory::{AddressSpace, Backing, Vma};
use crate::model::number::{PAGE_SIZE, to_u64, to_usize};
use crate::model::process::{Process, ProcessState};
use crate::model::terminal::TerminalEnd;

use super::displaced::DisplacedReport;

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
    pub size: Size,
    pub processes: Vec<ProcessReport>,
    pub address_spaces: Vec<SpaceReport>,
    pub descriptor_tables: Vec<TableReport>,
    /// Files whose content is in the checkpoint.
    pub contents: Vec<ContentReport>,
    /// Files that the user named as outputs.
    pub outputs: Vec<OutputReport>,
    /// What restores have cut off and set aside, whatever checkpoint they were from.
    pub displaced: Vec<DisplacedReport>,
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
pub struct SpaceReport {
    pub number: usize,
    pub processes: Vec<i32>,
    pub executable: String,
    /// By kind of mapping, in a fixed order.
    pub kinds: Vec<KindReport>,
    pub mappings: Vec<MappingReport>,
}

#[derive(Serialize)]
pub struct KindReport {
    pub kind: &'static str,
    pub mappings: u64,
    /// Bytes of address space.
    pub bytes: u64,
    /// Bytes in the checkpoint.
    pub stored: u64,
}

#[derive(Serialize)]
pub struct MappingReport {
    pub start: u64,
    pub end: u64,
    pub access: String,
    pub kind: &'static str,
    pub file: Option<String>,
    pub offset: Option<u64>,
    pub stored: u64,
}

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

/// Reports what `reader` has.
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
        contents: contents(job, &stored),
        outputs: job
            .outputs
            .files
            .iter()
            .map(|output| OutputReport { path: output.path.to_string(), bytes: output.size })
            .collect(),
        displaced: Vec::new(),
    }
}

/// The stored pages of each object, as ascending ranges.
struct Stored(BTreeMap<ObjectId, Vec<(u64, u64)>>);

impl Stored {
    fn of(reader: &Reader) -> Self {
        let mut ranges: BTreeMap<ObjectId, Vec<(u64, u64)>> = BTreeMap::new();
        let runs = reader.chunks().iter().flat_map(|chunk| &chunk.runs);
        for Run { object, first_page, pages, .. } in runs {
            let range = (*first_page, first_page + u64::from(*pages));
            ranges.entry(*object).or_default().push(range);
        }
        ranges.values_mut().for_each(|ranges| ranges.sort_unstable());
        Self(ranges)
    }

    /// Stored bytes of the pages `start..end` of an object.
    fn bytes(&self, object: ObjectId, start: u64, end: u64) -> u64 {
        let Some(ranges) = self.0.get(&object) else { return 0 };
        let first = ranges.partition_point(|(_, range_end)| *range_end <= start);
        let inside = ranges[first..].iter().take_while(|(range_start, _)| *range_start < end);
        let pages: u64 = inside.map(|(from, to)| to.min(&end) - from.max(&start)).sum();
        pages * PAGE_SIZE
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
fn pids(job: &Job, belongs: impl Fn(&Process) -> bool) -> Vec<i32> {
    let alive = job.processes.iter().filter(|process| !process.is_zombie());
    alive.filter(|process| belongs(process)).map(|process| process.pid.0).collect()
}

/// Kinds of mappings, in the order of the report.
const KINDS: [&str; 8] = [
    "heap",
    "stack",
    "anonymous",
    "private file",
    "shared file",
    "shared memory",
    "deleted file",
    "kernel",
];

fn space_report(job: &Job, number: u32, space: &AddressSpace, stored: &Stored) -> SpaceReport {
    let mut kinds = KINDS.map(|kind| KindReport { kind, mappings: 0, bytes: 0, stored: 0 });
    let mut mappings = Vec::with_capacity(space.vmas.len());
    for vma in &space.vmas {
        let mapping = mapping(job, space, vma, stored);
        if let Some(sum) = kinds.iter_mut().find(|sum| sum.kind == mapping.kind) {
            sum.mappings += 1;
            sum.bytes += vma.range.len();
            sum.stored += mapping.stored;
        }
        mappings.push(mapping);
    }
    SpaceReport {
        number: to_usize(u64::from(number)),
        processes: pids(job, |process| process.mm.0 == number),
        executable: path_of(job, space.executable),
        kinds: kinds.into_iter().filter(|sum| sum.mappings > 0).collect(),
        mappings,
    }
}

fn mapping(job: &Job, space: &AddressSpace, vma: &Vma, stored: &Stored) -> MappingReport {
    let (start, end) = (vma.range.start.0 / PAGE_SIZE, vma.range.end.0 / PAGE_SIZE);
    let own = stored.bytes(space.object, start, end);
    let (kind, inode, bytes) = match vma.backing {
        Backing::Vdso | Backing::Vvar => ("kernel", None, 0),
        Backing::AioRing => ("asynchronous I/O", None, 0),
        Backing::Anonymous if vma.range.contains(space.areas.start_brk) => ("heap", None, own),
        Backing::Anonymous if vma.range.contains(space.areas.start_stack) => ("stack", None, own),
        Backing::Anonymous => ("anonymous", None, own),
        Backing::File { inode, offset, shared } => {
            let record = &job.inodes[to_usize(u64::from(inode.0))];
            let kind = match (&record.kind, shared) {
                (InodeKind::Memfd { .. }, _)
                | (InodeKind::AnonymousShared | InodeKind::MemoryFile, _)
                | (InodeKind::Segment { .. }, _) => "shared memory",
                (InodeKind::Unlinked, _) => "deleted file",
                (InodeKind::Linked, true) => "shared file",
                (InodeKind::Linked, false) => "private file",
            };
            let first = offset / PAGE_SIZE;
            let content = record
                .content
                .map_or(0, |content| stored.bytes(content, first, first + vma.range.pages()));
            (kind, Some((inode, offset)), if shared { content } else { own })
        }
    };
    MappingReport {
        start: vma.range.start.0,
        end: vma.range.end.0,
        access: access(vma),
        kind,
        file: inode.map(|(inode, _)| path_of(job, inode)),
        offset: inode.map(|(_, offset)| offset),
        stored: bytes,
    }
}

/// Access as /proc/pid/maps shows it.
fn access(vma: &Vma) -> String {
    use crate::model::memory::Prot;
    let bit = |bit, letter| if vma.prot.contains(bit) { letter } else { '-' };
    let shared = matches!(vma.backing, Backing::File { shared: true, .. } | Backing::AioRing);
    [
        bit(Prot::READ, 'r'),
        bit(Prot::WRITE, 'w'),
        bit(Prot::EXEC, 'x'),
        if shared { 's' } else { 'p' },
    ]
    .iter()
    .collect()
}

fn tables(job: &Job) -> Vec<TableReport> {
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

fn access_mode(file: &OpenFile) -> &'static str {
    // O_RDONLY, O_WRONLY and O_RDWR are numbers, not bits: open(2).
    match (&file.kind, file.flags & 3) {
        (OpenFileKind::Path { .. }, _) => "--",
        (_, 0) => "r-",
        (_, 1) => "-w",
        _ => "rw",
    }
}

fn what(job: &Job, file: &OpenFile) -> String {
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

/// A name for an inode, which its record has been checked to have.
fn path_of(job: &Job, inode: InodeId) -> String {
    let record = &job.inodes[to_usize(u64::from(inode.0))];
    match record.kind {
        InodeKind::Linked | InodeKind::MemoryFile => record.path.to_string(),
        InodeKind::Unlinked => format!("{} (deleted)", record.path),
        InodeKind::Memfd { .. } => format!("memfd:{}", record.path),
        InodeKind::AnonymousShared => format!("shared memory {inode}"),
        InodeKind::Segment { id } => format!("System V shared memory {id}"),
    }
}
