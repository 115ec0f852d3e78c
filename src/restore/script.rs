//! The script of a restored process: the system calls by which the blob makes it what it was.
//!
//! A pure function of the job's records, of where the blob lies and of which descriptors lead to the
//! mapped files. It makes no call itself. docs/RESTORE-STAGES.md tells the same story in prose.

mod aio;
mod attributes;
mod regions;
mod rings;
mod semaphores;
mod signal_watch;

use std::collections::BTreeMap;
use std::ops::Range;

pub use attributes::{
    PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, PR_CAP_AMBIENT_RAISE, capability_data, numbers,
};
pub use regions::{segment_of, writes_through};

use super::blob::layout::{STEP_SIZE, Step, kind};
use super::blob::{Placement, TASK_SIZE};
use super::inheritance::{Estate, Kept, Share};
use super::numbers;
use super::opened::Mapped;
use super::vdso::{Placed, StandIn};
use crate::model::address::{AddrRange, RemoteAddr};
use crate::model::file::{Fd, FileLock, FileLockKind, OpenFileKind};
use crate::model::id::{Bytes, OpenFileId, Pid};
use crate::model::job::Job;
use crate::model::memory::{AddressSpace, Prot};
use crate::model::number::{PAGE_SIZE, to_u64, to_usize};
use crate::model::process::Process;
use crate::model::thread::Thread;
use crate::model::time::{TimeSpec, TimerSpec};

/// Stack of a task while it carries out its steps, in bytes. The blob needs about a hundred.
const STACK_SIZE: u64 = 1024;

/// `expected` of the stop at which memory is filled.
pub const STOP_FILL: u64 = 1;
/// `expected` of the stop at which a task has nothing left to do.
pub const STOP_READY: u64 = 2;

/// Bytes in the kernel's signal sets.
const SIGNAL_SET_SIZE: u64 = 8;
/// Highest signal number.
const LAST_SIGNAL: u32 = 64;

const ARCH_MAP_VDSO_64: u64 = 0x2003;
const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
const SS_ONSTACK: u32 = 1;
const SS_DISABLE: u32 = 2;

/// The capabilities that the threads of a process are to have, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Inheritable ones.
    pub inheritable: u64,
    /// Permitted ones.
    pub permitted: u64,
    /// Effective ones.
    pub effective: u64,
    /// Ambient ones.
    pub ambient: u64,
    /// Those that leave the bounding set.
    pub surrendered: u64,
}

/// Which ranges of an address space have page data in the image.
#[derive(Clone, Debug, Default)]
pub struct Occupancy {
    /// First page to number of pages; neither overlapping nor, where it can be helped, touching.
    runs: BTreeMap<u64, u64>,
}

impl Occupancy {
    /// Adds `pages` pages from `first_page` on.
    pub fn add(&mut self, first_page: u64, pages: u64) {
        self.runs.insert(first_page, pages);
    }

    /// Whether any page of `range` has data.
    #[must_use]
    pub fn touches(&self, range: &AddrRange) -> bool {
        let first = range.start.0 / PAGE_SIZE;
        let end = first + range.pages();
        self.runs.range(..end).next_back().is_some_and(|(start, pages)| start + pages > first)
    }
}

/// A process that a script rebuilds.
#[derive(Clone, Debug)]
pub struct Member<'a> {
    /// Its records.
    pub process: &'a Process,
    /// Its address space.
    pub space: &'a AddressSpace,
    /// Which of its pages will be filled.
    pub occupancy: &'a Occupancy,
    /// What it has for a vDSO; `None` when it has unmapped it.
    pub vdso: Option<&'a Placed>,
    /// What it keeps of estates, when it does not execute the blob but only enters it.
    pub share: Option<&'a Share>,
    /// The capabilities that its threads are to have, when these are not those that they have.
    pub capabilities: Option<Capabilities>,
    /// Whether its memory is its parent's, which sees to all that concerns it.
    pub shares_memory: bool,
    /// Children that share its table of descriptors or its memory.
    pub sharers: Vec<Sharer<'a>>,
}

/// A process that is cloned by its parent's blob, with the parent's table of descriptors or memory.
#[derive(Clone, Debug)]
pub struct Sharer<'a> {
    /// The process.
    pub member: Member<'a>,
    /// Whether it shares its parent's table of descriptors.
    pub shares_table: bool,
    /// Its working directory and umask; `None` when it shares these with its parent, too.
    pub places: Option<(Bytes, u32)>,
    /// The process group to join or found; `None`: its parent's.
    pub group: Option<Pid>,
}

/// What a script depends on beside its processes.
#[derive(Clone, Debug)]
pub struct Context<'a> {
    /// The whole job.
    pub job: &'a Job,
    /// Where the blob lies.
    pub placement: Placement,
    /// Descriptors to map with.
    pub mapped: &'a Mapped,
    /// Descriptors of all open file descriptions, in their order.
    pub files: &'a [i32],
    /// Where estates lie that are kept in part, when not in their own places.
    pub places: &'a BTreeMap<usize, RemoteAddr>,
    /// The estates.
    pub estates: &'a [Estate],
    /// Descriptors in this range are closed.
    pub private_fds: Range<i32>,
    /// Whether `timer_create` can be told the id (PR_TIMER_CREATE_RESTORE_IDS).
    pub timer_ids: bool,
}

/// A script, laid out for its placement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// Its bytes, to lie at [`Placement::script`].
    pub bytes: Vec<u8>,
    /// Address of the main thread's first step.
    pub first_step: u64,
    /// Initial stack pointer of the main thread.
    pub stack: u64,
}

/// Writes the script of a process that executes the blob, and of those that it clones.
#[must_use]
pub fn write(member: &Member<'_>, context: &Context<'_>) -> Script {
    let mut author = Author { base: context.placement.script, bytes: Vec::new() };
    let first_step = member_steps(&mut author, Vec::new(), (member, true), context);
    let stack = author.stack();
    Script { bytes: author.bytes, first_step, stack: stack + STACK_SIZE - 8 }
}

/// Writes all steps of one process, beginning with `steps`. Those who share a table of descriptors leave
/// closing what only the restore needed to the one whose parent does not. Returns the address of the first.
fn member_steps(
    author: &mut Author,
    mut steps: Vec<Step>,
    (member, owns_table): (&Member<'_>, bool),
    context: &Context<'_>,
) -> u64 {
    let Member { process, capabilities, sharers, .. } = member;
    let (early, late): (Vec<_>, Vec<_>) =
        sharers.iter().partition(|sharer| !sharer.member.shares_memory);
    for sharer in early {
        clone_sharer(author, &mut steps, sharer, context);
    }
    if !member.shares_memory {
        empty_address_space(&mut steps, member, context);
        rings::map(&mut steps, member, context);
        regions::map(author, &mut steps, member, context);
        steps.push(stop(STOP_FILL));
    }
    for sharer in late {
        clone_sharer(author, &mut steps, sharer, context);
    }
    if !member.shares_memory {
        regions::finish(author, &mut steps, member);
    }
    if owns_table {
        close_descriptors(&mut steps, context);
    }
    signal_watch::steps(author, &mut steps, process, context);
    if owns_table {
        open_own_memory(author, &mut steps, process, context);
    }
    mark_descriptors(author, &mut steps, process, context);
    semaphores::undo(author, &mut steps, process, context.job);
    attributes::process(&mut steps, member);
    signal_actions(author, &mut steps, process);
    for thread in process.threads.iter().skip(1) {
        spawn(author, &mut steps, process, thread, *capabilities);
    }
    if member.share.is_some() {
        forget_own_thread(author, &mut steps);
    }
    if let Some(main) = process.threads.first() {
        thread_steps(author, &mut steps, process, main);
        steps.push(call(libc::SYS_set_tid_address, &[main.clear_child_tid.0]));
    }
    posix_timers(author, &mut steps, process, context);
    interval_timers(author, &mut steps, process);
    process_signals(author, &mut steps, process);
    steps.push(stop(STOP_READY));
    author.steps(&steps)
}

/// Clones a child that shares the table of descriptors or the memory, and goes through its own steps. It
/// starts as a copy of the blob, on a copy of its stack; or, in the same memory, on a stack of its own.
fn clone_sharer(
    author: &mut Author,
    steps: &mut Vec<Step>,
    sharer: &Sharer<'_>,
    context: &Context<'_>,
) {
    let process = sharer.member.process;
    let mut own = Vec::new();
    let mut flags = 0;
    if sharer.shares_table {
        flags |= signed(libc::CLONE_FILES);
    } else {
        lay_out_descriptors(&mut own, process, context);
    }
    if process.shares_actions {
        flags |= signed(libc::CLONE_SIGHAND);
    }
    let mut stack = (0, 0);
    if sharer.member.shares_memory {
        flags |= signed(libc::CLONE_VM);
        stack = (author.stack(), STACK_SIZE);
    }
    match &sharer.places {
        None => flags |= signed(libc::CLONE_FS),
        Some((directory, umask)) => {
            let mut path = directory.0.clone();
            path.push(0);
            let path = author.data(&path);
            own.push(call(libc::SYS_chdir, &[path]));
            own.push(call(libc::SYS_umask, &[u64::from(*umask)]));
        }
    }
    if let Some(group) = sharer.group {
        own.push(call(libc::SYS_setpgid, &[0, signed(group.0)]));
    }
    let owns_table = !sharer.shares_table;
    let first_step = member_steps(author, own, (&sharer.member, owns_table), context);
    let tid = author.data(&process.pid.0.to_le_bytes());
    let exit_signal = signed(process.exit_signal);
    let arguments = author.words(&[flags, 0, 0, 0, exit_signal, stack.0, stack.1, 0, tid, 1, 0]);
    steps.push(step(
        kind::SPAWN,
        libc::SYS_clone3,
        &[arguments, to_u64(size_of::<libc::clone_args>()), first_step],
        signed(process.pid.0),
    ));
}

/// Collects what a script holds beside its steps, and knows the address of each piece.
struct Author {
    base: u64,
    bytes: Vec<u8>,
}

impl Author {
    /// Puts `data` into the script, 16-byte aligned, and returns its address.
    fn data(&mut self, data: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let address = self.base + to_u64(self.bytes.len());
        self.bytes.extend_from_slice(data);
        address
    }

    /// Puts 64-bit words into the script.
    fn words(&mut self, words: &[u64]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.data(&bytes)
    }

    /// Puts steps into the script.
    fn steps(&mut self, steps: &[Step]) -> u64 {
        let mut bytes = Vec::with_capacity(steps.len() * STEP_SIZE);
        for step in steps {
            bytes.extend_from_slice(&step.kind.to_le_bytes());
            bytes.extend_from_slice(&step.number.to_le_bytes());
            for argument in step.arguments {
                bytes.extend_from_slice(&argument.to_le_bytes());
            }
            bytes.extend_from_slice(&step.expected.to_le_bytes());
        }
        self.data(&bytes)
    }

    /// Sets room aside for a stack and returns its lowest address.
    fn stack(&mut self) -> u64 {
        self.data(&[0; to_usize(STACK_SIZE)])
    }
}

fn step(kind: u64, number: i64, arguments: &[u64], expected: u64) -> Step {
    let mut six = [0; 6];
    six[..arguments.len()].copy_from_slice(arguments);
    Step { kind, number: number.cast_unsigned(), arguments: six, expected }
}

/// A call that must not fail.
fn call(number: i64, arguments: &[u64]) -> Step {
    step(kind::CALL, number, arguments, 0)
}

fn stop(which: u64) -> Step {
    step(kind::STOP, 0, &[], which)
}

/// A signed argument, sign-extended as registers hold it.
const fn signed(value: i32) -> u64 {
    (value as i64).cast_unsigned()
}

/// Everything goes but the blob itself and what is kept, and the vDSO comes to its place. Every signal is
/// blocked all the while: the process that executed the blob saw to that.
fn empty_address_space(steps: &mut Vec<Step>, member: &Member<'_>, context: &Context<'_>) {
    let keeps = member.share.map_or(&[][..], |share| &share.keeps);
    let places: Vec<AddrRange> = keeps.iter().map(|kept| place_of(kept, context)).collect();
    let mut spared = places.clone();
    spared.push(context.placement.range);
    spared.sort();
    let mut next = 0;
    for range in &spared {
        steps.push(unmap(next, range.start.0));
        next = range.end.0;
    }
    steps.push(unmap(next, TASK_SIZE));
    for (kept, place) in keeps.iter().zip(places) {
        steps.push(move_memory(place, kept.range));
    }
    let Some(vdso) = member.vdso else { return };
    steps.push(call(libc::SYS_arch_prctl, &[ARCH_MAP_VDSO_64, vdso.own.start.0]));
    if let Some(StandIn { range, .. }) = &vdso.stand_in {
        let prot = Prot::READ | Prot::EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let arguments =
            [range.start.0, range.len(), u64::from(prot.bits()), signed(flags), signed(-1), 0];
        steps.push(step(kind::CALL_EXACT, libc::SYS_mmap, &arguments, range.start.0));
    }
}

/// Where a kept mapping lies until it comes to its place.
fn place_of(kept: &Kept, context: &Context<'_>) -> AddrRange {
    let estate = context.estates.get(kept.estate).map_or(kept.range.start, |it| it.range.start);
    let place = context.places.get(&kept.estate).copied().unwrap_or(estate);
    let start = RemoteAddr(place.0 + (kept.range.start.0 - estate.0));
    AddrRange { start, end: RemoteAddr(start.0 + kept.range.len()) }
}

/// Unmaps what lies between two addresses. There is a step also where that is nothing, so that the length
/// of a script does not depend on where things lie.
fn unmap(start: u64, end: u64) -> Step {
    match end.checked_sub(start) {
        Some(length @ 1..) => call(libc::SYS_munmap, &[start, length]),
        _ => nothing(),
    }
}

/// Moves a mapping to its own place, if it is elsewhere.
fn move_memory(from: AddrRange, to: AddrRange) -> Step {
    if from == to {
        return nothing();
    }
    let flags = signed(libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED);
    let arguments = [from.start.0, from.len(), to.len(), flags, to.start.0];
    step(kind::CALL_EXACT, libc::SYS_mremap, &arguments, to.start.0)
}

/// A step that changes nothing.
fn nothing() -> Step {
    call(libc::SYS_getpid, &[])
}

/// What rckpt's own thread told the kernel about itself, which executing a program would have ended.
fn forget_own_thread(author: &mut Author, steps: &mut Vec<Step>) {
    const ROBUST_LIST_LENGTH: u64 = 24;
    let stack = author.words(&[0, u64::from(SS_DISABLE), 0]);
    steps.push(call(libc::SYS_sigaltstack, &[stack, 0]));
    steps.push(call(libc::SYS_set_robust_list, &[0, ROBUST_LIST_LENGTH]));
}

/// Gives a process with a copy of its parent's table its own descriptors, from where all open file
/// descriptions are. There are as many steps whatever their numbers are.
fn lay_out_descriptors(steps: &mut Vec<Step>, process: &Process, context: &Context<'_>) {
    let tables = &context.job.fd_tables;
    let Some(table) = tables.get(to_usize(u64::from(process.fd_table.0))) else { return };
    let mut next = 0;
    for entry in &table.entries {
        close_between(steps, next, entry.number, context);
        let source = context.files.get(to_usize(u64::from(entry.file.0))).copied().unwrap_or(-1);
        let arguments = [source, entry.number, 0].map(signed);
        steps.push(step(kind::CALL_EXACT, libc::SYS_dup3, &arguments, signed(entry.number)));
        next = entry.number + 1;
    }
    close_between(steps, next, i32::MAX, context);
}

/// Closes what is open in `first..end`, but for what only the restore needs.
fn close_between(steps: &mut Vec<Step>, first: i32, end: i32, context: &Context<'_>) {
    for range in numbers::without(first..end, &context.private_fds) {
        let range = [range.start, range.end - 1, 0].map(signed);
        steps.push(call(libc::SYS_close_range, &range));
    }
}

/// The descriptors that only the restore needed go; the executable's lies below them and stays for
/// PR_SET_MM_MAP.
fn close_descriptors(steps: &mut Vec<Step>, context: &Context<'_>) {
    let private = &context.private_fds;
    let range = [private.start, private.end - 1, 0].map(signed);
    steps.push(call(libc::SYS_close_range, &range));
}

/// A process opens its own memory when that is there, in place of the stopgaps.
fn open_own_memory(
    author: &mut Author,
    steps: &mut Vec<Step>,
    process: &Process,
    context: &Context<'_>,
) {
    let tables = &context.job.fd_tables;
    let Some(table) = tables.get(to_usize(u64::from(process.fd_table.0))) else { return };
    for (file, id) in context.job.open_files.iter().zip(0..) {
        let OpenFileKind::OwnMemory { position } = file.kind else { continue };
        let has = |entry: &&Fd| entry.file == OpenFileId(id);
        let Some(first) = table.entries.iter().find(has) else { continue };
        // What `open` gives is the lowest number that is free.
        let is_free = |number: &i32| table.entries.iter().all(|entry| entry.number != *number);
        let free = signed((0..).find(is_free).unwrap_or_default());
        let path = author.data(b"/proc/self/mem\0");
        let flags = signed(file.flags.cast_signed() & !libc::O_ASYNC);
        let arguments = [signed(libc::AT_FDCWD), path, flags];
        steps.push(step(kind::CALL_EXACT, libc::SYS_openat, &arguments, free));
        for entry in table.entries.iter().filter(has) {
            let number = signed(entry.number);
            steps.push(step(kind::CALL_EXACT, libc::SYS_dup3, &[free, number, 0], number));
        }
        steps.push(call(libc::SYS_close, &[free]));
        if position != 0 {
            let arguments = [signed(first.number), position, signed(libc::SEEK_SET)];
            steps.push(step(kind::CALL_EXACT, libc::SYS_lseek, &arguments, position));
        }
    }
}

/// What belongs to the process's own descriptors and could not be set earlier: executing the blob
/// closes what is marked so, and closing any descriptor of a file gives up its POSIX locks.
fn mark_descriptors(
    author: &mut Author,
    steps: &mut Vec<Step>,
    process: &Process,
    context: &Context<'_>,
) {
    let tables = &context.job.fd_tables;
    let Some(table) = tables.get(to_usize(u64::from(process.fd_table.0))) else { return };
    for entry in table.entries.iter().filter(|entry| entry.close_on_exec) {
        let arguments = [entry.number, libc::F_SETFD, libc::FD_CLOEXEC].map(signed);
        steps.push(call(libc::SYS_fcntl, &arguments));
    }
    for (file, id) in context.job.open_files.iter().zip(0..) {
        let Some(entry) = table.entries.iter().find(|entry| entry.file == OpenFileId(id)) else {
            continue;
        };
        // The kernel tells the number by which this was asked for along with each signal.
        if file.flags.cast_signed() & libc::O_ASYNC != 0 {
            let flags = file.flags.cast_signed();
            let arguments = [entry.number, libc::F_SETFL, flags].map(signed);
            steps.push(call(libc::SYS_fcntl, &arguments));
        }
        for lock in &file.locks {
            if lock.kind == (FileLockKind::Posix { holder: process.pid }) {
                let lock = author.data(&lock_bytes(lock));
                let arguments = [signed(entry.number), signed(libc::F_SETLK), lock];
                steps.push(call(libc::SYS_fcntl, &arguments));
            }
        }
    }
}

/// A lock as `struct flock` (include/uapi/asm-generic/fcntl.h): type, whence, padding, start,
/// length, process, padding.
fn lock_bytes(lock: &FileLock) -> [u8; 32] {
    let length = lock.end.map_or(0, |end| end.saturating_sub(lock.start).saturating_add(1));
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&lock.access.to_le_bytes());
    bytes[8..16].copy_from_slice(&lock.start.to_le_bytes());
    bytes[16..24].copy_from_slice(&length.to_le_bytes());
    bytes
}

const fn signed_u32(value: i32) -> u32 {
    value.cast_unsigned()
}

/// Every disposition is set, also the default ones: rckpt itself ignores SIGPIPE, and what is ignored
/// stays ignored over exec.
fn signal_actions(author: &mut Author, steps: &mut Vec<Step>, process: &Process) {
    for signal in 1..=LAST_SIGNAL {
        if [libc::SIGKILL, libc::SIGSTOP].map(signed_u32).contains(&signal) {
            continue;
        }
        let words = process
            .actions
            .iter()
            .find(|action| action.signal == signal)
            .map_or([0; 4], |action| {
                [action.handler.0, action.flags, action.restorer.0, action.mask.0]
            });
        let action = author.words(&words);
        let arguments = [u64::from(signal), action, 0, SIGNAL_SET_SIZE];
        steps.push(call(libc::SYS_rt_sigaction, &arguments));
    }
}

/// Makes a thread, which goes through its own steps.
fn spawn(
    author: &mut Author,
    steps: &mut Vec<Step>,
    process: &Process,
    thread: &Thread,
    capabilities: Option<Capabilities>,
) {
    const FLAGS: i32 = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM;
    let mut own = Vec::new();
    thread_steps(author, &mut own, process, thread);
    if let Some(wanted) = &capabilities {
        attributes::capabilities(author, &mut own, wanted);
    }
    attributes::parent_death_signal(&mut own, thread);
    own.push(stop(STOP_READY));
    let first_step = author.steps(&own);
    let stack = author.stack();
    let tid = author.data(&thread.tid.0.to_le_bytes());
    let mut flags = signed(FLAGS);
    if !thread.clear_child_tid.is_null() {
        flags |= signed(libc::CLONE_CHILD_CLEARTID);
    }
    // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls,
    // set_tid, set_tid_size, cgroup.
    let arguments =
        author.words(&[flags, 0, thread.clear_child_tid.0, 0, 0, stack, STACK_SIZE, 0, tid, 1, 0]);
    steps.push(step(
        kind::SPAWN,
        libc::SYS_clone3,
        &[arguments, to_u64(size_of::<libc::clone_args>()), first_step],
        signed(thread.tid.0),
    ));
}

/// What each thread sets for itself.
fn thread_steps(author: &mut Author, steps: &mut Vec<Step>, process: &Process, thread: &Thread) {
    let mut name = thread.name.0.clone();
    name.push(0);
    let name = author.data(&name);
    steps.push(call(libc::SYS_prctl, &[signed(libc::PR_SET_NAME), name]));
    if !thread.robust_list.is_null() {
        let arguments = [thread.robust_list.0, thread.robust_list_length];
        steps.push(call(libc::SYS_set_robust_list, &arguments));
    }
    if let Some(rseq) = &thread.rseq {
        let (length, signature) = (u64::from(rseq.length), u64::from(rseq.signature));
        steps.push(call(libc::SYS_rseq, &[rseq.area.0, length, 0, signature]));
    }
    let stack = &thread.signal_stack;
    if stack.flags & SS_DISABLE == 0 {
        // The thread may have been running on it; here it does not, and the kernel works out anew.
        let flags = u64::from(stack.flags & !SS_ONSTACK);
        let stack = author.words(&[stack.base.0, flags, stack.size]);
        steps.push(call(libc::SYS_sigaltstack, &[stack, 0]));
    }
    attributes::thread(author, steps, thread);
    for signal in &thread.pending {
        let info = author.data(&signal.siginfo);
        let (process, thread) = (signed(process.pid.0), signed(thread.tid.0));
        let arguments = [process, thread, signal_number(&signal.siginfo), info];
        steps.push(call(libc::SYS_rt_tgsigqueueinfo, &arguments));
    }
}

/// POSIX timers get their ids back: either the kernel takes the id, or, before Linux 6.16, ids are
/// counted up from zero in each new process and those in between are made and deleted again.
fn posix_timers(
    author: &mut Author,
    steps: &mut Vec<Step>,
    process: &Process,
    context: &Context<'_>,
) {
    if process.posix_timers.is_empty() {
        return;
    }
    if context.timer_ids {
        steps.push(call(libc::SYS_prctl, &[PR_TIMER_CREATE_RESTORE_IDS, 1]));
    }
    let mut next_id = 0;
    for timer in &process.posix_timers {
        while !context.timer_ids && next_id < timer.id {
            let id = author.words(&[0]);
            steps.push(call(libc::SYS_timer_create, &[signed(libc::CLOCK_MONOTONIC), 0, id]));
            steps.push(call(libc::SYS_timer_delete, &[signed(next_id)]));
            next_id += 1;
        }
        next_id = timer.id + 1;
        let notification = &timer.notification;
        // struct sigevent: sigev_value, sigev_signo, sigev_notify, sigev_notify_thread_id.
        let event = author.words(&[
            notification.value,
            u64::from(notification.signal.cast_unsigned())
                | u64::from(notification.method.cast_unsigned()) << 32,
            notification.thread.map_or(0, |tid| u64::from(tid.0.cast_unsigned())),
            0,
            0,
            0,
            0,
            0,
        ]);
        let id = author.words(&[u64::from(timer.id.cast_unsigned())]);
        steps.push(call(libc::SYS_timer_create, &[signed(timer.clock), event, id]));
        if !timer.timer.value.is_zero() {
            let spec = author.words(&timer_words(&timer.timer, |time| time.nanoseconds));
            steps.push(call(libc::SYS_timer_settime, &[signed(timer.id), 0, spec, 0]));
        }
    }
    if context.timer_ids {
        steps.push(call(libc::SYS_prctl, &[PR_TIMER_CREATE_RESTORE_IDS, 0]));
    }
}

/// ITIMER_REAL, ITIMER_VIRTUAL and ITIMER_PROF, which count microseconds.
fn interval_timers(author: &mut Author, steps: &mut Vec<Step>, process: &Process) {
    const REAL: u64 = 0;
    for (which, timer) in (0..).zip(&process.interval_timers) {
        let mut timer = *timer;
        // ITIMER_REAL waits with its next period until the signal of the last one has been taken.
        if timer.value.is_zero() && which == REAL {
            timer.value = timer.interval;
        }
        if timer.value.is_zero() {
            continue;
        }
        let mut words = timer_words(&timer, |time| time.nanoseconds / 1000);
        if words[2] == 0 && words[3] == 0 {
            words[3] = 1; // Less than a microsecond was left: that is not "disarmed".
        }
        let spec = author.words(&words);
        steps.push(call(libc::SYS_setitimer, &[which, spec, 0]));
    }
}

fn timer_words(timer: &TimerSpec, fraction: impl Fn(&TimeSpec) -> i64) -> [u64; 4] {
    let TimerSpec { interval, value } = timer;
    [interval.seconds, fraction(interval), value.seconds, fraction(value)].map(i64::cast_unsigned)
}

/// Signals queued for the whole process. All are blocked now, so they stay queued.
fn process_signals(author: &mut Author, steps: &mut Vec<Step>, process: &Process) {
    for signal in &process.pending {
        let info = author.data(&signal.siginfo);
        let arguments = [signed(process.pid.0), signal_number(&signal.siginfo), info];
        steps.push(call(libc::SYS_rt_sigqueueinfo, &arguments));
    }
}

/// `si_signo`, the first field of a `siginfo_t`.
fn signal_number(siginfo: &[u8]) -> u64 {
    siginfo.first_chunk::<4>().map_or(0, |bytes| u64::from(u32::from_le_bytes(*bytes)))
}
