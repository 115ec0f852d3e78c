//! The cross references of a job's records: checked once when an image is written, and again when
//! it is read, so that everything after may index with them and rely on their order.
//!
//! Only what a record says about another record, or about its own shape, is looked at here. Whether
//! this machine can bring it about is the restore plan's question.

use std::collections::{HashMap, HashSet};
use std::fmt;

use thiserror::Error;

use super::index::{PageIndex, Run};
use super::{validate_ipc, validate_sockets, validate_terminals};
use crate::model::address::AddrRange;
use crate::model::event::EpollItem;
use crate::model::file::{
    FileLock, Inode, InodeKind, OpenFile, OpenFileKind, Output, StreamTarget,
};
use crate::model::id::{Bytes, InodeId, ObjectId, Pid};
use crate::model::job::Job;
use crate::model::memory::{AddressSpace, AioContext, Backing, MemoryPolicy, Prot, Vma, VmaFlags};
use crate::model::number::{PAGE_SIZE, to_u64, to_usize};
use crate::model::process::{Process, ProcessState};
use crate::model::ring::{REQUEST_SIZE, RING_ENTRIES_LIMIT, RING_REQUESTS_LIMIT, Ring};
use crate::model::signal::{PendingSignal, SIGINFO_SIZE};
use crate::model::thread::Thread;
use crate::model::time::{TimeSpec, TimerSpec};

/// PID_MAX_LIMIT of include/linux/threads.h.
const PID_LIMIT: i32 = 1 << 22;
/// First address that no x86-64 process can have, with five levels of page tables.
const ADDRESS_LIMIT: u64 = 1 << 56;
/// Longest name that PR_SET_VMA_ANON_NAME takes (ANON_VMA_NAME_MAX_LEN, without the NUL).
const VMA_NAME_LIMIT: usize = 79;
/// TASK_COMM_LEN, without the NUL.
const NAME_LIMIT: usize = 15;
/// Bytes in the mask of as many NUMA nodes as a kernel can be built for.
const NODES_LIMIT: usize = 128;
/// RLIM_NLIMITS.
const RESOURCE_LIMIT: u32 = 16;
/// The legacy region and the header, without which there is no XSAVE area.
const XSTATE_MINIMUM: usize = 576;
/// Far more than any processor's XSAVE area (AMX: 11 KiB).
const XSTATE_LIMIT: usize = 1 << 20;
/// `sizeof(struct termios2)` and `sizeof(struct winsize)`.
const TERMIOS_SIZE: usize = 44;
const WINDOW_SIZE: usize = 8;
/// Bytes of an XXH3 hash of 128 bits.
const DIGEST_SIZE: usize = 16;
/// More bytes than the memory of the largest ring of io_uring has.
const RING_MEMORY_LIMIT: usize = 2 << 20;
/// Largest size of, and position in, a file (`loff_t`).
const FILE_LIMIT: u64 = i64::MAX.cast_unsigned();

/// The record that a contradiction was found in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Each names a record by its number in its table, or by its own id.
pub enum Record {
    Job,
    Process(Pid),
    Thread(Pid),
    AddressSpace(usize),
    Mapping {
        space: usize,
        range: AddrRange,
    },
    Guard {
        space: usize,
        range: AddrRange,
    },
    Descriptor {
        table: usize,
        number: i32,
    },
    Directories(usize),
    OpenFile(usize),
    Inode(usize),
    Socket(usize),
    Terminal(usize),
    Ipc(i32),
    /// A POSIX message queue.
    MessageQueue(usize),
    Output(usize),
    Chunk(usize),
    Pages {
        object: ObjectId,
        first_page: u64,
        pages: u32,
    },
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job => f.write_str("the job"),
            Self::Process(pid) => write!(f, "process {pid}"),
            Self::Thread(tid) => write!(f, "thread {tid}"),
            Self::AddressSpace(number) => write!(f, "address space {number}"),
            Self::Mapping { space, range } => write!(f, "mapping {range} of address space {space}"),
            Self::Guard { space, range } => {
                write!(f, "guard range {range} of address space {space}")
            }
            Self::Descriptor { table, number } => write!(f, "descriptor {number} of table {table}"),
            Self::Directories(number) => write!(f, "directories {number}"),
            Self::OpenFile(number) => write!(f, "open file {number}"),
            Self::Inode(number) => write!(f, "inode {number}"),
            Self::Socket(number) => write!(f, "socket {number}"),
            Self::Terminal(number) => write!(f, "terminal {number}"),
            Self::Ipc(id) => write!(f, "System V IPC object {id}"),
            Self::MessageQueue(number) => write!(f, "POSIX message queue {number}"),
            Self::Output(number) => write!(f, "output {number}"),
            Self::Chunk(number) => write!(f, "page data chunk {number}"),
            Self::Pages { object, first_page, pages } => {
                write!(f, "the {pages} pages of object {object} from page {first_page:#x} on")
            }
        }
    }
}

/// A contradiction.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// A reference leads nowhere.
    #[error("{record} refers to {target} {index}, of which there are {count}")]
    Dangling {
        /// The record that refers.
        record: Record,
        /// What it refers to.
        target: &'static str,
        /// Which one.
        index: u32,
        /// How many there are.
        count: usize,
    },
    /// A record is not as such records are.
    #[error("{record}: {problem}")]
    Malformed {
        /// The record.
        record: Record,
        /// What is wrong with it.
        problem: &'static str,
    },
}

pub(super) type Checked = Result<(), Violation>;

/// Checks the records of a job.
///
/// # Errors
/// The first contradiction found.
pub fn check_job(job: &Job) -> Checked {
    demand(!has_nul(&job.id), Record::Job, "its id holds a NUL")?;
    for time in [job.clocks.realtime, job.clocks.monotonic, job.clocks.boottime] {
        check_time(Record::Job, time)?;
    }
    check_tree(job)?;
    job.processes.iter().try_for_each(|process| check_process(job, process))?;
    let spaces = job.address_spaces.iter().enumerate();
    spaces.clone().try_for_each(|(number, space)| check_address_space(job, number, space))?;
    check_tables(job)?;
    for (number, file) in job.open_files.iter().enumerate() {
        check_open_file(job, Record::OpenFile(number), file)?;
    }
    for (number, inode) in job.inodes.iter().enumerate() {
        check_inode(job, Record::Inode(number), inode)?;
    }
    validate_sockets::check(job)?;
    validate_terminals::check(job)?;
    validate_ipc::check(job)?;
    for path in &job.outputs.named {
        check_path(Record::Job, path)?;
    }
    for (number, output) in job.outputs.files.iter().enumerate() {
        check_output(Record::Output(number), output)?;
    }
    check_saved(job)?;
    owners(job).map(|_| ())
}

/// Checks the page index against the records of its job, which have been checked.
///
/// # Errors
/// The first contradiction found.
pub fn check_index(job: &Job, index: &PageIndex) -> Checked {
    let owners = owners(job)?;
    let mut all: Vec<Run> = Vec::new();
    for (number, chunk) in index.chunks.iter().enumerate() {
        for run in &chunk.runs {
            let within = run.slot.checked_add(run.pages).is_some_and(|end| end <= chunk.pages);
            let problem = "a run of pages lies outside of it";
            demand(run.pages > 0 && within, Record::Chunk(number), problem)?;
            let owner = owners.get(to_usize(u64::from(run.object.0)));
            owner.unwrap_or(&Owner::Nobody).check(run)?;
        }
        all.extend_from_slice(&chunk.runs);
    }
    all.sort_unstable_by_key(|run| (run.object, run.first_page));
    for pair in all.windows(2) {
        if let [earlier, later] = pair {
            let apart = earlier.object != later.object || earlier.end_page() <= later.first_page;
            demand(apart, pages(later), "some are stored twice")?;
        }
    }
    Ok(())
}

/// What a page object belongs to, and so which pages it can have.
#[derive(Clone)]
enum Owner {
    Nobody,
    /// Ranges of pages that mappings with pages of their own cover, merged.
    AddressSpace(Vec<(u64, u64)>),
    /// Pages in the content.
    Inode(u64),
}

impl Owner {
    fn check(&self, run: &Run) -> Checked {
        match self {
            Self::Nobody => malformed(pages(run), "nothing has such an object"),
            Self::AddressSpace(ranges) => {
                let place = ranges.partition_point(|(_, end)| *end <= run.first_page);
                let inside = ranges
                    .get(place)
                    .is_some_and(|(start, end)| *start <= run.first_page && run.end_page() <= *end);
                demand(inside, pages(run), "no private mapping is there")
            }
            Self::Inode(count) => {
                demand(run.end_page() <= *count, pages(run), "the file ends before")
            }
        }
    }
}

/// Who has each object. Nobody shares one, and there are no more objects than could be had.
fn owners(job: &Job) -> Result<Vec<Owner>, Violation> {
    let most = job.address_spaces.len() + job.inodes.len();
    let count = to_usize(u64::from(job.objects));
    demand(count <= most, Record::Job, "it has more page objects than could be used")?;
    let mut owners = vec![Owner::Nobody; count];
    let spaces = job.address_spaces.iter().enumerate().map(|(number, space)| {
        (Record::AddressSpace(number), space.object, Owner::AddressSpace(private_pages(space)))
    });
    let inodes = job.inodes.iter().enumerate().filter_map(|(number, inode)| {
        let owner = Owner::Inode(inode.size.div_ceil(PAGE_SIZE));
        Some((Record::Inode(number), inode.content?, owner))
    });
    for (record, object, owner) in spaces.chain(inodes) {
        refer(record, "page object", object.0, count)?;
        let place = &mut owners[to_usize(u64::from(object.0))];
        let free = matches!(place, Owner::Nobody);
        demand(free, record, "its page object belongs to another record, too")?;
        *place = owner;
    }
    Ok(owners)
}

/// The pages that mappings with pages of their own cover, as ascending ranges, neighbours merged.
fn private_pages(space: &AddressSpace) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for vma in &space.vmas {
        let private = vma.backing.is_private();
        let (start, end) = (vma.range.start.0 / PAGE_SIZE, vma.range.end.0 / PAGE_SIZE);
        match ranges.last_mut() {
            _ if !private => {}
            Some((_, last)) if *last == start => *last = end,
            _ => ranges.push((start, end)),
        }
    }
    ranges
}

/// Checks ids and their order: a parent in the job comes before its children.
fn check_tree(job: &Job) -> Checked {
    let mut places: HashMap<Pid, usize> = HashMap::new();
    let mut tids: HashSet<Pid> = HashSet::new();
    for (place, process) in job.processes.iter().enumerate() {
        let record = Record::Process(process.pid);
        let own = places.insert(process.pid, place).is_none() && tids.insert(process.pid);
        demand(own, record, "its id is taken by another process or thread")?;
        for thread in process.threads.iter().filter(|thread| thread.tid != process.pid) {
            let own = tids.insert(thread.tid);
            demand(own, Record::Thread(thread.tid), "its id is taken by another")?;
        }
    }
    for (place, process) in job.processes.iter().enumerate() {
        let early = places.get(&process.ppid).is_none_or(|parent| *parent < place);
        demand(early, Record::Process(process.pid), "it comes before its parent")?;
    }
    demand(places.contains_key(&job.root), Record::Job, "its root is none of its processes")
}

fn check_process(job: &Job, process: &Process) -> Checked {
    let record = Record::Process(process.pid);
    check_id(record, process.pid)?;
    check_name(record, &process.name)?;
    demand((0..=64).contains(&process.exit_signal), record, "its exit signal is none")?;
    let main = process.threads.first().map(|thread| thread.tid);
    match process.state {
        ProcessState::Zombie { .. } => {
            return demand(main.is_none(), record, "it has ended, and has threads");
        }
        ProcessState::Stopped { signal } => check_signal(record, i64::from(signal))?,
        ProcessState::Alive => {}
    }
    demand(main == Some(process.pid), record, "its first thread is not its main one")?;
    let goes_on = process.main_ended.is_none() || process.threads.len() > 1;
    demand(goes_on, record, "its main thread has ended, and there is no other")?;
    refer(record, "address space", process.mm.0, job.address_spaces.len())?;
    refer(record, "descriptor table", process.fd_table.0, job.fd_tables.len())?;
    refer(record, "directories", process.fs.0, job.fs.len())?;

    for action in &process.actions {
        check_signal(record, i64::from(action.signal))?;
    }
    let ordered = ascending(process.actions.iter().map(|action| action.signal));
    demand(ordered, record, "its signal actions are not in order")?;
    check_pending(record, &process.pending)?;
    for timer in &process.interval_timers {
        check_timer(record, timer)?;
    }
    for timer in &process.posix_timers {
        check_timer(record, &timer.timer)?;
        let sound = timer.id >= 0 && (0..=64).contains(&timer.notification.signal);
        demand(sound, record, "a timer has an id or a signal that there is not")?;
    }
    let ordered = ascending(process.posix_timers.iter().map(|timer| timer.id));
    demand(ordered, record, "its timers are not in order")?;
    let ordered = ascending(process.limits.iter().map(|limit| limit.resource));
    let known = process.limits.iter().all(|limit| limit.resource < RESOURCE_LIMIT);
    demand(ordered && known, record, "its resource limits are not in order, or unknown")?;
    process.threads.iter().try_for_each(check_thread)
}

fn check_thread(thread: &Thread) -> Checked {
    let record = Record::Thread(thread.tid);
    check_id(record, thread.tid)?;
    check_name(record, &thread.name)?;
    let sound = (XSTATE_MINIMUM..=XSTATE_LIMIT).contains(&thread.xstate.len());
    demand(sound, record, "its extended state has an impossible size")?;
    let sound = (-20..=19).contains(&thread.scheduling.nice);
    demand(sound, record, "its nice value is none")?;
    demand((0..=64).contains(&thread.parent_death_signal), record, "its death signal is none")?;
    check_policy(record, &thread.memory_policy)?;
    check_pending(record, &thread.pending)
}

fn check_address_space(job: &Job, number: usize, space: &AddressSpace) -> Checked {
    let record = Record::AddressSpace(number);
    refer_inode(job, record, space.executable)?;
    demand(space.areas.auxv.len().is_multiple_of(16), record, "its auxiliary vector is cut off")?;
    let mut end = 0;
    for vma in &space.vmas {
        let record = Record::Mapping { space: number, range: vma.range };
        check_range(record, vma.range, end)?;
        end = vma.range.end.0;
        check_mapping(job, record, vma)?;
    }
    let mut end = 0;
    for guard in &space.guards {
        check_range(Record::Guard { space: number, range: guard.0 }, guard.0, end)?;
        end = guard.0.end.0;
    }
    check_rings(record, space)
}

/// Each ring has a context, which fits into it.
fn check_rings(record: Record, space: &AddressSpace) -> Checked {
    /// Bytes of `struct aio_ring` before its events, and of an event.
    const STRUCTURE_SIZE: u64 = 32;
    let mut contexts = space.aio.iter();
    for vma in space.vmas.iter().filter(|vma| vma.backing == Backing::AioRing) {
        let context = contexts.next().filter(|context| context.start == vma.range.start);
        let Some(AioContext { places, head, tail, events, .. }) = context else {
            return malformed(record, "an asynchronous I/O ring has no context, or not its own");
        };
        let fits = vma.range.len() / STRUCTURE_SIZE == u64::from(*places) + 1;
        let sound = fits
            && head < places
            && tail < places
            && u32::try_from(events.len()) == Ok(AioContext::waiting(*places, *head, *tail));
        demand(sound, record, "an asynchronous I/O context does not fit its ring")?;
    }
    demand(contexts.next().is_none(), record, "an asynchronous I/O context has no ring")
}

fn check_mapping(job: &Job, record: Record, vma: &Vma) -> Checked {
    // The encoding lets bits through that have no name.
    let known = Prot::all().contains(vma.prot) && VmaFlags::all().contains(vma.flags);
    demand(known, record, "it has unknown flags")?;
    if let Some(name) = &vma.name {
        demand(name.0.len() <= VMA_NAME_LIMIT && !has_nul(name), record, "its name is none")?;
    }
    if let Some(policy) = &vma.policy {
        check_policy(record, policy)?;
    }
    match vma.backing {
        Backing::File { inode, offset, .. } => {
            refer_inode(job, record, inode)?;
            let inside = offset.checked_add(vma.range.len()).is_some_and(|end| end <= FILE_LIMIT);
            let aligned = offset.is_multiple_of(PAGE_SIZE);
            demand(inside && aligned, record, "its offset in the file is impossible")
        }
        Backing::IoUring { file, .. } => {
            refer(record, "open file", file.0, job.open_files.len())?;
            let file = &job.open_files[to_usize(u64::from(file.0))];
            let is_ring = matches!(file.kind, OpenFileKind::IoUring { .. });
            demand(is_ring, record, "what it shows is no ring of io_uring")
        }
        Backing::Anonymous | Backing::Vdso | Backing::Vvar | Backing::AioRing => Ok(()),
    }
}

fn check_policy(record: Record, policy: &MemoryPolicy) -> Checked {
    demand(policy.nodes.len() <= NODES_LIMIT, record, "its memory policy has too many nodes")
}

fn check_tables(job: &Job) -> Checked {
    for (table, entries) in job.fd_tables.iter().map(|table| &table.entries).enumerate() {
        let mut next = 0;
        for entry in entries {
            let record = Record::Descriptor { table, number: entry.number };
            demand(entry.number >= next, record, "it is negative or not in order")?;
            next = entry.number.saturating_add(1);
            refer(record, "open file", entry.file.0, job.open_files.len())?;
        }
    }
    for (number, directories) in job.fs.iter().enumerate() {
        let record = Record::Directories(number);
        refer_inode(job, record, directories.cwd)?;
        check_path(record, &directories.root)?;
        demand(directories.umask <= 0o777, record, "its umask is none")?;
    }
    Ok(())
}

fn check_open_file(job: &Job, record: Record, file: &OpenFile) -> Checked {
    file.locks.iter().try_for_each(|lock| check_lock(record, lock))?;
    if let Some(owner) = &file.owner {
        demand((0..=64).contains(&owner.signal), record, "its signal is none")?;
    }
    match &file.kind {
        OpenFileKind::Regular { inode, position } => {
            check_position(record, *position)?;
            refer_inode(job, record, *inode)
        }
        // Positions in directories are the file system's own, and use all bits.
        OpenFileKind::Directory { inode, .. }
        | OpenFileKind::Path { inode }
        | OpenFileKind::Device { inode } => refer_inode(job, record, *inode),
        OpenFileKind::Pipe { pipe, .. } => refer(record, "pipe", pipe.0, job.pipes.len()),
        OpenFileKind::Fifo { inode, pipe, .. } => {
            refer_inode(job, record, *inode)?;
            refer(record, "pipe", pipe.0, job.pipes.len())
        }
        // What sockets and terminals refer to is checked with them.
        OpenFileKind::ControllingTerminal
        | OpenFileKind::Socket { .. }
        | OpenFileKind::PseudoTerminal { .. } => Ok(()),
        OpenFileKind::EventFd { count, .. } => {
            demand(*count < u64::MAX, record, "its counter is beyond its maximum")
        }
        OpenFileKind::TimerFd { timer, .. } => check_timer(record, timer),
        OpenFileKind::SignalFd { .. } => Ok(()),
        OpenFileKind::Epoll { items, .. } => {
            items.iter().try_for_each(|item| check_watched(job, record, item))
        }
        OpenFileKind::Inotify { watches } => {
            let ordered = ascending(watches.iter().map(|watch| watch.number));
            let positive = watches.iter().all(|watch| watch.number > 0);
            demand(ordered && positive, record, "its watches are not in order")?;
            watches.iter().try_for_each(|watch| refer_inode(job, record, watch.inode))
        }
        OpenFileKind::PidFd { process, .. } => {
            let known = process.0 == 0 || job.processes.iter().any(|found| found.pid == *process);
            demand(known, record, "it stands for a process that there is not")
        }
        OpenFileKind::IoUring { ring } => check_ring(record, ring),
        OpenFileKind::MessageQueue { queue } => {
            refer(record, "message queue", queue.0, job.ipc.posix_queues.len())
        }
        OpenFileKind::Stream { target, .. } => check_stream(job, record, target),
        OpenFileKind::OwnMemory { .. } => Ok(()),
        OpenFileKind::Proc { path, position } => {
            check_position(record, *position)?;
            check_path(record, path)
        }
    }
}

/// A size that the kernel gives rings, a place that one can be brought to, and no more memory than it has.
fn check_ring(record: Record, ring: &Ring) -> Checked {
    let Ring { entries, completions, done, memory, requests, .. } = ring;
    let within = |entries: u32, limit| entries.is_power_of_two() && entries <= limit;
    let sized =
        within(*entries, RING_ENTRIES_LIMIT) && within(*completions, 2 * RING_ENTRIES_LIMIT);
    demand(sized && *done <= RING_REQUESTS_LIMIT, record, "its ring is of an impossible size")?;
    let fits = memory.0.len() <= RING_MEMORY_LIMIT
        && to_u64(requests.0.len()) <= REQUEST_SIZE * u64::from(*entries);
    demand(fits, record, "its ring holds more than it has room for")
}

fn check_watched(job: &Job, record: Record, item: &EpollItem) -> Checked {
    refer(record, "open file", item.file.0, job.open_files.len())?;
    demand(item.number >= 0, record, "it watches something by a negative number")
}

fn check_stream(job: &Job, record: Record, target: &StreamTarget) -> Checked {
    match target {
        StreamTarget::Regular { inode, position } => {
            check_position(record, *position)?;
            refer_inode(job, record, *inode)
        }
        StreamTarget::Terminal { termios, window } => {
            let sound = termios.len() == TERMIOS_SIZE && window.len() == WINDOW_SIZE;
            demand(sound, record, "its terminal settings have another size")
        }
        StreamTarget::Other(_) => Ok(()),
    }
}

fn check_inode(job: &Job, record: Record, inode: &Inode) -> Checked {
    match inode.kind {
        InodeKind::Linked | InodeKind::Unlinked | InodeKind::MemoryFile => {
            check_path(record, &inode.path)?;
        }
        InodeKind::Memfd { .. } | InodeKind::AnonymousShared | InodeKind::Segment { .. } => {
            demand(!has_nul(&inode.path), record, "its name holds a NUL")?;
        }
    }
    if let Some(content) = inode.content {
        refer(record, "page object", content.0, to_usize(u64::from(job.objects)))?;
    }
    demand(inode.size <= FILE_LIMIT, record, "its size is impossible")?;
    let named = |(name, _): &(Bytes, Bytes)| name.0.starts_with(b"user.") && !has_nul(name);
    demand(inode.attributes.iter().all(named), record, "its attributes are not a user's")?;
    check_time(record, inode.mtime)
}

fn check_saved(job: &Job) -> Checked {
    for path in &job.outputs.saved.named {
        check_path(Record::Job, path)?;
    }
    for id in &job.outputs.saved.files {
        refer(Record::Job, "inode", id.0, job.inodes.len())?;
        let kept = job.inodes[to_usize(u64::from(id.0))].content.is_some();
        demand(kept, Record::Job, "a file that was to be saved has no content")?;
    }
    Ok(())
}

fn check_output(record: Record, output: &Output) -> Checked {
    check_path(record, &output.path)?;
    // One that vanished while the job was saved has none.
    let sound = [0, DIGEST_SIZE].contains(&output.digest.0.len());
    demand(sound, record, "its digest has another size")?;
    demand(output.size <= FILE_LIMIT, record, "its size is impossible")?;
    check_time(record, output.mtime)
}

fn check_lock(record: Record, lock: &FileLock) -> Checked {
    let forwards = lock.end.is_none_or(|end| lock.start <= end && end <= FILE_LIMIT);
    demand(forwards && lock.start <= FILE_LIMIT, record, "a lock has an impossible range")
}

fn check_range(record: Record, range: AddrRange, previous_end: u64) -> Checked {
    let (start, end) = (range.start.0, range.end.0);
    let aligned = start.is_multiple_of(PAGE_SIZE) && end.is_multiple_of(PAGE_SIZE);
    demand(aligned && start < end && end <= ADDRESS_LIMIT, record, "its range is impossible")?;
    demand(previous_end <= start, record, "it overlaps the one before, or is not in order")
}

fn check_pending(record: Record, pending: &[PendingSignal]) -> Checked {
    for signal in pending {
        let number = match signal.siginfo.first_chunk::<4>() {
            Some(bytes) if signal.siginfo.len() == SIGINFO_SIZE => i32::from_le_bytes(*bytes),
            _ => return malformed(record, "a pending signal has another size than siginfo_t"),
        };
        check_signal(record, i64::from(number))?;
    }
    Ok(())
}

fn check_signal(record: Record, number: i64) -> Checked {
    demand((1..=64).contains(&number), record, "it names a signal that there is not")
}

fn check_timer(record: Record, timer: &TimerSpec) -> Checked {
    check_time(record, timer.interval)?;
    check_time(record, timer.value)
}

fn check_time(record: Record, time: TimeSpec) -> Checked {
    let sound = (0..1_000_000_000).contains(&time.nanoseconds);
    demand(sound, record, "a time has more nanoseconds than a second")
}

fn check_id(record: Record, id: Pid) -> Checked {
    demand(id.0 > 0 && id.0 <= PID_LIMIT, record, "its id is impossible")
}

fn check_name(record: Record, name: &Bytes) -> Checked {
    demand(name.0.len() <= NAME_LIMIT && !has_nul(name), record, "its name is too long")
}

pub(super) fn check_path(record: Record, path: &Bytes) -> Checked {
    let sound = path.0.starts_with(b"/") && !has_nul(path);
    demand(sound, record, "its path is not absolute, or holds a NUL")
}

fn check_position(record: Record, position: u64) -> Checked {
    demand(position <= FILE_LIMIT, record, "its position is impossible")
}

fn refer_inode(job: &Job, record: Record, inode: InodeId) -> Checked {
    refer(record, "inode", inode.0, job.inodes.len())
}

pub(super) fn refer(record: Record, target: &'static str, index: u32, count: usize) -> Checked {
    if u64::from(index) < to_u64(count) {
        return Ok(());
    }
    Err(Violation::Dangling { record, target, index, count })
}

pub(super) fn demand(holds: bool, record: Record, problem: &'static str) -> Checked {
    if holds { Ok(()) } else { malformed(record, problem) }
}

fn malformed(record: Record, problem: &'static str) -> Checked {
    Err(Violation::Malformed { record, problem })
}

fn ascending<T: PartialOrd>(values: impl Iterator<Item = T>) -> bool {
    values.is_sorted_by(|earlier, later| earlier < later)
}

fn has_nul(bytes: &Bytes) -> bool {
    bytes.0.contains(&0)
}

const fn pages(run: &Run) -> Record {
    Record::Pages { object: run.object, first_page: run.first_page, pages: run.pages }
}

#[cfg(test)]
mod tests {
    use super::{check_index, check_job};
    use crate::image::codec::Codec;
    use crate::image::format::GenerationId;
    use crate::image::index::{Chunk, PageIndex, PagesFile, Run};
    use crate::image::sample;
    use crate::model::address::AddrRange;
    use crate::model::file::{OpenFileKind, PipeEnd, StreamTarget};
    use crate::model::id::{
        Bytes, FdTableId, FsId, InodeId, MmId, ObjectId, OpenFileId, Pid, PipeId,
    };
    use crate::model::job::Job;
    use crate::model::memory::{Backing, Prot, VmaFlags};
    use crate::model::process::ProcessState;

    fn refused(expected: &str, change: fn(&mut Job)) {
        let mut job = sample::job();
        change(&mut job);
        let violation = check_job(&job).expect_err(expected).to_string();
        // How many there are is the sample's affair.
        assert!(violation.starts_with(expected), "{violation:?} instead of {expected:?}");
    }

    #[test]
    fn the_sample_is_sound() {
        assert_eq!(check_job(&sample::job()), Ok(()));
    }

    #[test]
    fn a_broken_tree_is_refused() {
        refused("the job: its root is none of its processes", |job| job.root = Pid(7));
        refused("the job: its root is none of its processes", |job| job.processes.clear());
        refused("process 100: it comes before its parent", |job| {
            job.processes[0].ppid = Pid(110);
        });
        refused("process 100: it comes before its parent", |job| {
            job.processes[0].ppid = Pid(100);
        });
        refused("process 100: its id is taken by another process or thread", |job| {
            job.processes[1].pid = Pid(100);
        });
        refused("thread 110: its id is taken by another", |job| {
            job.processes[1].pid = Pid(112);
            job.processes[0].threads[1].tid = Pid(110);
            job.processes[2].ppid = Pid(112);
        });
        refused("process 110: its first thread is not its main one", |job| {
            job.processes[1].threads.clear();
        });
        refused("process 110: its main thread has ended, and there is no other", |job| {
            job.processes[1].main_ended = Some(0);
        });
        refused("process 111: it has ended, and has threads", |job| {
            job.processes[2].threads = job.processes[1].threads.clone();
            job.processes[2].threads[0].tid = Pid(111);
        });
        refused("process -5: its id is impossible", |job| {
            job.processes[2].pid = Pid(-5);
        });
    }

    #[test]
    fn references_that_lead_nowhere_are_refused() {
        refused("process 100 refers to address space 1, of which there are 1", |job| {
            job.processes[0].mm = MmId(1);
        });
        refused("process 100 refers to descriptor table 9, of which there are 1", |job| {
            job.processes[0].fd_table = FdTableId(9);
        });
        refused("process 100 refers to directories 4294967295, of which there are 1", |job| {
            job.processes[0].fs = FsId(u32::MAX);
        });
        refused("address space 0 refers to inode 6, of which there are 6", |job| {
            job.address_spaces[0].executable = InodeId(6);
        });
        refused("address space 0 refers to page object 3, of which there are 3", |job| {
            job.address_spaces[0].object = ObjectId(3);
        });
        refused(
            "mapping 400000-404000 of address space 0 refers to inode 8, of which there are",
            |job| {
                let inode = InodeId(8);
                job.address_spaces[0].vmas[0].backing =
                    Backing::File { inode, offset: 0, shared: false };
            },
        );
        refused("descriptor 3 of table 0 refers to open file 99, of which there are", |job| {
            job.fd_tables[0].entries[3].file = OpenFileId(99);
        });
        refused("directories 0 refers to inode 6, of which there are 6", |job| {
            job.fs[0].cwd = InodeId(6);
        });
        refused("open file 0 refers to inode 6, of which there are 6", |job| {
            job.open_files[0].kind = OpenFileKind::Regular { inode: InodeId(6), position: 0 };
        });
        refused("open file 3 refers to pipe 1, of which there are 1", |job| {
            job.open_files[3].kind = OpenFileKind::Pipe { pipe: PipeId(1), end: PipeEnd::Read };
        });
        refused("inode 0 refers to page object 3, of which there are 3", |job| {
            job.inodes[0].content = Some(ObjectId(3));
        });
        refused("inode 2: its page object belongs to another record, too", |job| {
            job.inodes[2].content = Some(ObjectId(0));
        });
        refused("the job: it has more page objects than could be used", |job| {
            job.objects = u32::MAX;
        });
    }

    #[test]
    fn impossible_address_spaces_are_refused() {
        refused("mapping 10000001-10007000 of address space 0: its range is impossible", |job| {
            job.address_spaces[0].vmas[1].range = AddrRange::new(0x1000_0001, 0x1000_7000).unwrap();
        });
        refused("mapping 10000000-10000000 of address space 0: its range is impossible", |job| {
            job.address_spaces[0].vmas[1].range = AddrRange::new(0x1000_0000, 0x1000_0000).unwrap();
        });
        refused(
            "mapping 403000-405000 of address space 0: it overlaps the one before, or is not in \
             order",
            |job| {
                job.address_spaces[0].vmas[1].range = AddrRange::new(0x40_3000, 0x40_5000).unwrap()
            },
        );
        refused("mapping 400000-404000 of address space 0: it has unknown flags", |job| {
            job.address_spaces[0].vmas[0].prot = Prot::from_bits_retain(8);
        });
        refused("mapping 400000-404000 of address space 0: it has unknown flags", |job| {
            job.address_spaces[0].vmas[0].flags = VmaFlags::from_bits_retain(1 << 31);
        });
        refused(
            "mapping 400000-404000 of address space 0: its offset in the file is impossible",
            |job| {
                let (inode, offset) = (InodeId(0), u64::MAX - 4095);
                job.address_spaces[0].vmas[0].backing =
                    Backing::File { inode, offset, shared: false };
            },
        );
        refused(
            "mapping 10000000-107d0000 of address space 0: its memory policy has too many nodes",
            |job| {
                let policy = job.address_spaces[0].vmas[1].policy.as_mut();
                policy.unwrap().nodes = vec![1; 129];
            },
        );
        refused("address space 0: its auxiliary vector is cut off", |job| {
            job.address_spaces[0].areas.auxv.pop();
        });
    }

    #[test]
    fn impossible_values_are_refused() {
        refused("thread 101: a pending signal has another size than siginfo_t", |job| {
            job.processes[0].threads[1].pending[0].siginfo.pop();
        });
        refused("process 100: it names a signal that there is not", |job| {
            job.processes[0].pending[0].siginfo[0] = 65;
        });
        refused("process 100: its signal actions are not in order", |job| {
            let again = job.processes[0].actions[0];
            job.processes[0].actions.push(again);
        });
        refused("process 100: it names a signal that there is not", |job| {
            job.processes[0].state = ProcessState::Stopped { signal: 0 };
        });
        refused("thread 100: its extended state has an impossible size", |job| {
            job.processes[0].threads[0].xstate.truncate(575);
        });
        refused("process 100: a time has more nanoseconds than a second", |job| {
            job.processes[0].interval_timers[2].value.nanoseconds = -1;
        });
        refused("open file 9: its terminal settings have another size", |job| {
            let target = StreamTarget::Terminal { termios: vec![0; 43], window: vec![0; 8] };
            let stream = crate::model::file::Stream::Input;
            job.open_files[9].kind = OpenFileKind::Stream { stream, target };
        });
        refused("descriptor 1 of table 0: it is negative or not in order", |job| {
            job.fd_tables[0].entries[2].number = 1;
            job.fd_tables[0].entries[1].number = 2;
        });
        refused("inode 0: its path is not absolute, or holds a NUL", |job| {
            job.inodes[0].path = Bytes(b"/bin/a\0b".to_vec());
        });
        let mut vanished = sample::job();
        vanished.outputs.files[0].digest = Bytes::default();
        assert_eq!(check_job(&vanished), Ok(()));
        refused("output 0: its digest has another size", |job| {
            job.outputs.files[0].digest.0.pop();
        });
        refused("the job: a file that was to be saved has no content", |job| {
            job.outputs.saved.files[0] = InodeId(0);
        });
    }

    fn index(runs: Vec<Run>) -> PageIndex {
        let chunk = Chunk {
            file: 0,
            offset: 4096,
            stored_length: 65536,
            codec: Codec::None,
            pages: 16,
            stored_checksum: 0,
            checksum: 0,
            runs,
        };
        let file = PagesFile { id: GenerationId([0; 16]), length: 69632 };
        PageIndex { hash_seed: 0, files: vec![file], chunks: vec![chunk] }
    }

    #[test]
    fn runs_outside_of_their_chunk_or_object_are_refused() {
        let (first, count) = sample::MEMORY_PAGES;
        let check = |object: u32, first_page: u64, pages: u32, slot: u32, sound: bool| {
            let run = Run { object: ObjectId(object), first_page, pages, slot };
            let checked = check_index(&sample::job(), &index(vec![run]));
            assert_eq!(checked.is_ok(), sound, "{run:?} {checked:?}");
        };
        check(0, first, 16, 0, true);
        check(0, first, 15, 1, true);
        check(0, first, 0, 0, false);
        check(0, first, 16, 1, false);
        check(0, first, 17, 0, false);
        check(0, first, 2, u32::MAX, false);
        check(0, first - 1, 2, 0, false);
        check(0, first + count - 1, 1, 0, true);
        check(0, first + count - 1, 2, 0, false);
        check(0, u64::MAX, 2, 0, false);
        check(0, 0x400, 4, 0, true);
        // A shared mapping keeps its pages with the file.
        check(0, 0x7_f000_0000, 1, 0, false);
        check(1, 0, 2, 0, true);
        check(1, 1, 2, 0, false);
        check(2, 0, 2, 0, true);
        check(3, 0, 1, 0, false);
    }

    #[test]
    fn a_page_stored_twice_is_refused() {
        let (first, _) = sample::MEMORY_PAGES;
        let run = |first_page, slot| Run { object: ObjectId(0), first_page, pages: 4, slot };
        let check = |runs| check_index(&sample::job(), &index(runs)).is_ok();
        assert!(check(vec![run(first + 4, 4), run(first, 0)]));
        // Equal pages may share their place.
        assert!(check(vec![run(first + 4, 0), run(first, 0)]));
        assert!(!check(vec![run(first + 3, 4), run(first, 0)]));
    }
}
