//! Puts the records of a frozen job together, in the order in which they depend on each other.

use std::fs;
use std::io;
use std::mem::take;
use std::os::fd::OwnedFd;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::SystemTime;

use nix::unistd::Pid;

use super::census::{self, Census, Member};
use super::courtesy::give_way;
use super::detail::IsOwn;
use super::error::{CollectError, DumpError};
use super::files::later::{self, Later, Room};
use super::files::{self, Collector, Content, MessageQueues, Scope, Subject};
use super::memory::{self, Part};
use super::process::{self, Insight, MemoryInsight};
use super::refusal::{MappingRefusal, Obstacle, Obstacles, StateRefusal};
use super::snapshot::MemoryWatch;
use super::tracking::Known;
use super::{After, Request, aio, clocks, detail, ipc, policy};
use crate::image::error::WriteError;
use crate::image::writer::{Writer, ZeroPages};
use crate::model::address::{AddrRange, RemoteAddr};
use crate::model::births;
use crate::model::file::Outputs;
use crate::model::id::{self, Bytes, MmId, ObjectId};
use crate::model::ipc::{Ipc, PosixQueue};
use crate::model::job::{Job, Machine, VdsoImage};
use crate::model::number::{PAGE_SIZE, to_u64, to_usize};
use crate::model::process::Process;
use crate::model::terminal::Terminals;
use crate::sys::emissary::Emissary;
use crate::sys::machine;
use crate::sys::procfs::{self, Status};
use crate::tracer::copy::Copy;
use crate::tracer::injection::{Call, SCRATCH_SIZE};
use crate::tracer::tree::{self, Tree};

/// A job's records, and where its page data is.
#[derive(Debug)]
pub(super) struct Collected {
    /// The records.
    pub job: Job,
    /// For each address space a process that has it, by its place in the tree.
    pub holders: Vec<usize>,
    /// For each address space the bytes of anonymous memory in it.
    pub sizes: Vec<u64>,
    /// For each address space what is known of writes to it.
    pub known: Vec<Known>,
    /// Address spaces without the details of their mappings.
    postponed: Vec<Postponed>,
    /// For each address space the first process that has it.
    pids: Vec<Pid>,
    /// Contents of files to store.
    pub(super) contents: Vec<Content>,
    /// Those that are stored once the job runs again.
    later: Vec<Later>,
    /// Who has shared memory attached that nobody of the job has.
    emissary: Option<Emissary>,
    /// Descriptors through which some of them are read.
    on_their_way: Vec<OwnedFd>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// When the root process was started.
    pub started: SystemTime,
}

/// The job's directory, which the image goes into a generation of.
fn job_directory(generation: &Path) -> &Path {
    generation.parent().unwrap_or(generation)
}

/// An address space whose details are looked up later.
#[derive(Debug)]
struct Postponed {
    /// Its number.
    space: usize,
    /// The process.
    pid: Pid,
    /// What /proc said of it.
    status: Status,
}

/// Why a job is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To save it while it stands still.
    SaveStopped,
    /// To save it while it runs on: the details of large address spaces are postponed.
    SaveRunning,
    /// To tell what stands in the way of that: what cannot be seen without touching it is left out.
    Look,
}

/// Collects everything about a frozen job but its page data, and, for some purposes, the details of
/// large address spaces. `directory` is where the image goes, which is never one of the job's outputs;
/// `is_own` tells which mappings rckpt itself watches.
///
/// # Errors
/// When something cannot be read, or anything cannot be saved.
pub(super) fn collect(
    request: &Request,
    directory: &Path,
    tree: &mut Tree,
    purpose: Purpose,
    is_own: &IsOwn<'_>,
) -> Result<Collected, DumpError> {
    let mut obstacles = Vec::new();
    let census = census::count(tree, request.root, &mut obstacles)?;
    let postpones = purpose == Purpose::SaveRunning;
    let insights = ask_all(tree, &census, postpones, &mut obstacles)?;
    let is_root = |process: &&tree::Process| process.pid == request.root;
    let root = tree.processes().iter().find(is_root).map_or(request.root, tree::Process::task);
    let subjects: Vec<Subject> = census
        .living()
        .map(|(_, member)| Subject {
            pid: member.host,
            task: member.task,
            recorded: member.recorded(),
        })
        .collect();
    let ended = census.members.iter().filter(|member| member.place.is_none());
    let zombies: Vec<_> = ended.map(|member| (member.host, member.recorded())).collect();
    let scope = Scope {
        subjects: &subjects,
        memories: census.memories(),
        zombies: &zombies,
        root,
        supervisor: request.supervisor,
        tcp_close: request.tcp_close,
        ext_unix: request.ext_unix,
        only_looks: purpose == Purpose::Look || !obstacles.is_empty(),
    };
    if !obstacles.is_empty() {
        add_others(&scope, &census, tree, &mut obstacles);
        return Err(DumpError::Refused(Obstacles(obstacles)));
    }
    let clocks = clocks::now(root)?;
    let mut files = Collector::collect(&scope).map_err(CollectError::from)?;
    let sharing = files.sharing().to_vec();

    let mut processes = Vec::with_capacity(census.members.len());
    let mut spaces = Vec::new();
    let mut holders = Vec::new();
    let mut sizes = Vec::new();
    let mut postponed = Vec::new();
    let mut remarks = Vec::new();
    let mut insights = insights.into_iter().zip(census.memories()).zip(sharing);
    for member in &census.members {
        let (Some(place), Some(((insight, memory), (fd_table, fs)))) =
            (member.place, member.place.and_then(|_| insights.next()))
        else {
            processes.push(process::collect_zombie(member, &census)?);
            continue;
        };
        let frozen = &tree.processes()[place];
        let number = *memory;
        let id = u32::try_from(number).map_err(|_| CollectError::TooMany("processes"))?;
        // Others may have the same memory: the first of them stands for all.
        let mut space = None;
        if number == spaces.len() {
            let object = ObjectId(id);
            let mut own =
                memory::collect(frozen, &insight.memory, object, &mut files, &mut obstacles)?;
            match &insight.policies {
                Some(policies) => detail::add(&mut own, frozen, policies, is_own, &mut obstacles)?,
                None => {
                    let status = member.status.clone();
                    postponed.push(Postponed { space: number, pid: frozen.task(), status });
                }
            }
            space = Some(own);
        }
        let record = process::collect(member, frozen, insight, &census)?;
        if let Some(mut space) = space {
            remarks.extend(aio::collect(tree, place, &mut space, &mut obstacles)?);
            spaces.push(space);
            holders.push(place);
            sizes.push(member.status.anonymous.saturating_add(member.status.swapped));
        }
        processes.push(Process { mm: MmId(id), fd_table, fs, ..record });
    }

    let ipc = ipc::collect(root, &census, tree, &mut files, &mut obstacles)?;
    remarks.extend(ipc.remarks.iter().map(ToString::to_string));
    let own = [job_directory(directory).to_owned()];
    let excluded: Vec<PathBuf> = own.iter().chain(&request.job_directories).cloned().collect();
    let saved = files.save(&request.save, &excluded, request.root)?;
    let first_object =
        u32::try_from(spaces.len()).map_err(|_| CollectError::TooMany("processes"))?;
    let files = files.finish(first_object);
    obstacles.extend(files.refusals.into_iter().map(Obstacle::File));
    if !obstacles.is_empty() {
        return Err(DumpError::Refused(Obstacles(obstacles)));
    }
    let mut terminals = match purpose {
        Purpose::SaveStopped | Purpose::SaveRunning => {
            files.terminals.with_queues().map_err(CollectError::from)?
        }
        Purpose::Look => files.terminals.without_queues(),
    };
    terminals.outer_foreground = outer_foreground(&census, request.root, &terminals)?;
    for process in &mut processes {
        let own = terminals.own.iter().any(|terminal| terminal.session == Some(process.pid));
        process.controlling_terminal &= !own;
    }
    let contents =
        u32::try_from(files.contents.len()).map_err(|_| CollectError::TooMany("files"))?;
    let mut outputs = if request.outputs.is_empty() {
        Outputs::default()
    } else {
        files::outputs::find(&request.outputs, &excluded)?
    };
    outputs.saved = saved;
    let message_queues = message_queues(files.message_queues, purpose)?;
    let job = Job {
        id: request.job_id.clone(),
        command: command(root)?,
        root: census.recorded(request.root).unwrap_or_default(),
        machine: Machine { temporary: temporary(request, root)?, ..Machine::default() },
        clocks,
        vdso: vdso(tree)?,
        processes,
        address_spaces: spaces,
        fd_tables: files.fd_tables,
        fs: files.fs,
        open_files: files.open_files,
        inodes: files.inodes,
        pipes: files.pipes,
        sockets: files.sockets,
        terminals,
        ipc: Ipc { posix_queues: message_queues, ..ipc.ipc },
        outputs,
        objects: first_object + contents,
    };
    births::plan(&job)
        .map_err(|error| DumpError::Refused(Obstacles(vec![Obstacle::Tree(error)])))?;
    let warnings = files.warnings.iter().map(ToString::to_string).chain(remarks).collect();
    let started = clocks::started(request.root)?;
    let pids = holders.iter().map(|place| tree.processes()[*place].pid).collect();
    let (contents, emissary) = (files.contents, ipc.emissary);
    let collected = Collected {
        job,
        known: vec![Known::default(); holders.len()],
        holders,
        sizes,
        postponed,
        pids,
        contents,
        later: Vec::new(),
        emissary,
        on_their_way: files.on_their_way,
        warnings,
        started,
    };
    collected.check(Vec::new())?;
    Ok(collected)
}

/// The records of POSIX message queues, with their messages unless it is only looked what cannot be saved.
fn message_queues(queues: MessageQueues, purpose: Purpose) -> Result<Vec<PosixQueue>, DumpError> {
    if purpose == Purpose::Look {
        return Ok(queues.without_messages());
    }
    let mut refusals = Vec::new();
    let records = queues.with_messages(&mut refusals).map_err(CollectError::from)?;
    if refusals.is_empty() {
        return Ok(records);
    }
    let obstacles = refusals.into_iter().map(Obstacle::File).collect();
    Err(DumpError::Refused(Obstacles(obstacles)))
}

/// Adds what files and mappings stand in the way of a checkpoint that something else stands in the way of
/// already. That may keep this from being told, too: then there is less to tell.
fn add_others(scope: &Scope<'_>, census: &Census, tree: &Tree, obstacles: &mut Vec<Obstacle>) {
    let Ok(mut files) = Collector::collect(scope) else { return };
    for (place, _) in census.living() {
        let (unasked, nowhere) = (MemoryInsight::default(), ObjectId(0));
        let process = &tree.processes()[place];
        // Its refusals are noted as it goes.
        if memory::collect(process, &unasked, nowhere, &mut files, obstacles).is_err() {
            break;
        }
    }
    obstacles.extend(files.finish(0).refusals.into_iter().map(Obstacle::File));
}

/// The directories for temporary files: those that the supervisor was given, for it may have been started
/// after the job, or else the job's own.
fn temporary(request: &Request, root: Pid) -> Result<Vec<(Bytes, Bytes)>, CollectError> {
    if request.supervisor == Some(nix::unistd::getpid()) {
        return Ok(machine::temporary(|name| std::env::var_os(name)));
    }
    let environment = procfs::read(root, "environ")?;
    Ok(machine::temporary(|name| {
        let entry = environment.split(|byte| *byte == 0).find_map(|entry| {
            entry.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="))
        })?;
        Some(Bytes::from(entry).as_os_str().to_owned())
    }))
}

/// Adds the details that are still missing while the job stands still, except where `copies` have all
/// of them.
///
/// # Errors
/// When they cannot be read, or anything cannot be saved.
pub(super) fn add_details(
    collected: &mut Collected,
    tree: &mut Tree,
    copies: &[Option<Copy>],
    is_own: &IsOwn<'_>,
) -> Result<(), DumpError> {
    let mut obstacles = Vec::new();
    for postponed in take(&mut collected.postponed) {
        let space = &mut collected.job.address_spaces[postponed.space];
        let process = (postponed.pid, &postponed.status);
        let copy = copies[postponed.space].as_ref();
        let told = copy.map(|copy| detail::has_all(space, process, copy)).transpose()?;
        if told == Some(true) {
            collected.postponed.push(postponed);
            continue;
        }
        let failed = |source| CollectError::Inject { pid: postponed.pid, source };
        let place = collected.holders[postponed.space];
        let mut injector = tree.inject(place).map_err(failed)?;
        let policies = policy::ask(&mut injector)?;
        injector.finish().map_err(failed)?;
        detail::add(space, &tree.processes()[place], &policies, is_own, &mut obstacles)?;
    }
    collected.check(obstacles)
}

/// Adds the details that are missing from `copies`, of a job that runs again. What only the processes
/// themselves tell is looked up at the same time: each is a walk over all pages.
fn add_copied_details(
    collected: &mut Collected,
    copies: &mut [Option<Copy>],
) -> Result<(), DumpError> {
    let mut obstacles = Vec::new();
    let postponed = take(&mut collected.postponed);
    let known = &collected.known;
    let spaces = &mut collected.job.address_spaces;
    let watchers = thread::scope(|scope| {
        let running: Vec<_> = postponed
            .iter()
            .map(|postponed| (postponed.pid, detail::ranges(&spaces[postponed.space])))
            .collect();
        let look = || {
            let mut obstacles = Vec::new();
            for (Postponed { space, .. }, (pid, ranges)) in postponed.iter().zip(running) {
                detail::check_faults(&ranges, &known[*space], pid, &mut obstacles)?;
            }
            Ok::<_, CollectError>(obstacles)
        };
        let looking = thread::Builder::new()
            .spawn_scoped(scope, look)
            .map_err(|source| WriteError::StartThread { source })?;
        for Postponed { space: number, pid, .. } in &postponed {
            let Some(copy) = &mut copies[*number] else { continue };
            detail::add_from_copy(&mut spaces[*number], *pid, copy, &mut obstacles)?;
        }
        Ok::<_, DumpError>(looking.join().unwrap_or_else(|panic| resume_unwind(panic))?)
    })?;
    obstacles.extend(watchers);
    collected.check(obstacles)
}

impl Collected {
    /// Closes what is held of the job's open files, which must happen before it runs on.
    pub fn let_go_of_files(&mut self) {
        self.on_their_way.clear();
    }

    /// What the user may want to do another time, for a checkpoint in `directory`; the `oldest` that there is
    /// was complete then.
    pub fn hint(&self, directory: &Path, oldest: Option<SystemTime>) -> Option<String> {
        let since = oldest.unwrap_or_else(|| files::unnamed::surely_after(self.started));
        files::unnamed::hint(&files::unnamed::find(&self.job, since, job_directory(directory)))
    }

    /// Refuses what stands in the way, and mappings that disagree, once the details of all are known.
    fn check(&self, mut obstacles: Vec<Obstacle>) -> Result<(), DumpError> {
        let spaces = &self.job.address_spaces;
        if self.postponed.is_empty()
            && let Some((number, range)) = policy::disagreement(spaces)
        {
            let (pid, kind) = (self.pids[number], MappingRefusal::PolicyOfPart);
            obstacles.push(Obstacle::Mapping { pid, range, name: Bytes::default(), kind });
        }
        if obstacles.is_empty() { Ok(()) } else { Err(DumpError::Refused(Obstacles(obstacles))) }
    }
}

/// Writes page data of a job that is still frozen: all of it, or what its copies do not have.
///
/// # Errors
/// When a page cannot be read, writing fails, or nobody wants it any more.
pub(super) fn store(
    request: &Request,
    collected: &mut Collected,
    tree: &mut Tree,
    copies: &[Option<Copy>],
    directory: &Path,
    writer: &mut Writer,
) -> Result<(), DumpError> {
    let spaces = collected.job.address_spaces.iter().zip(&collected.known);
    for (((space, known), holder), copy) in spaces.zip(&collected.holders).zip(copies) {
        let part = if copy.is_some() { Part::NotInherited } else { Part::All };
        let process = &tree.processes()[*holder];
        let source = (process.task(), &process.memory);
        // Which guard pages it has is known, or its copy will tell.
        memory::store(&|| request.check_wanted(), (space, part), known, source, writer)?;
    }
    let swapping = swap_is_on();
    let emissary = &mut collected.emissary;
    let waits = request.after == After::Continue && !request.files_at_once;
    let mut room = Room::default();
    for content in &collected.contents {
        let unreadable = |source| WriteError::ReadPages {
            object: content.object,
            first_page: 0,
            pages: content.size.div_ceil(PAGE_SIZE),
            source,
        };
        if waits
            && let Some(later) =
                later::put_off(content, directory, &mut room).map_err(unreadable)?
        {
            collected.later.push(later);
            continue;
        }
        let reader = content.open().map_err(unreadable)?;
        let runs = reader
            .runs(&mut |pid, range| match emissary {
                Some(emissary) if emissary.agent() == pid && !swapping => {
                    emissary.residency(range).map_err(io::Error::from)
                }
                _ => residency(tree, pid, range, swapping),
            })
            .map_err(unreadable)?;
        for run in runs {
            writer.store(
                content.object,
                run.first,
                run.pages,
                ZeroPages::Drop,
                &mut |page, buffer| {
                    request.check_wanted()?;
                    reader.read(page, buffer)
                },
            )?;
        }
    }
    Ok(())
}

/// Writes the memory of a job that runs on from copies of its processes, ending each when it has been
/// written. This gives way to everything else.
///
/// # Errors
/// When a copy was killed, writing fails, memory becomes short, or nobody wants it any more.
pub(super) fn store_copies(
    request: &Request,
    collected: &mut Collected,
    mut copies: Vec<Option<Copy>>,
    writer: &mut Writer,
) -> Result<(), DumpError> {
    for copy in copies.iter_mut().flatten() {
        copy.hide()?;
    }
    let awaited: Vec<usize> = collected.postponed.iter().map(|it| it.space).collect();
    add_copied_details(collected, &mut copies)?;
    let spaces = collected.job.address_spaces.iter().zip(&collected.known);
    let later = take(&mut collected.later);
    let watch = MemoryWatch::default();
    let check = || request.check_wanted().and_then(|()| watch.check());
    // In a thread of its own, as priority once given up is not had again.
    let guards = thread::scope(|scope| {
        let store = || {
            give_way();
            writer.advise(give_way);
            let mut guards = Vec::new();
            for ((number, (space, known)), copy) in spaces.enumerate().zip(copies) {
                let Some(copy) = copy else { continue };
                let source = (copy.pid(), copy.memory());
                let part = (space, Part::Inherited);
                let found = memory::store(&check, part, known, source, writer)?;
                if awaited.contains(&number) {
                    guards.push((number, found));
                }
            }
            for content in later {
                content.store(writer, &check)?;
            }
            Ok(guards)
        };
        let storing = thread::Builder::new()
            .spawn_scoped(scope, store)
            .map_err(|source| WriteError::StartThread { source })?;
        let stored = storing.join().unwrap_or_else(|panic| resume_unwind(panic));
        match watch.shortage() {
            Some(available) => Err(DumpError::MemoryShort { available }),
            None => stored,
        }
    })?;
    for (number, found) in guards {
        detail::add_guards(&mut collected.job.address_spaces[number], found);
    }
    Ok(())
}

/// Asks every process, in the order of the census, for what only it can tell.
fn ask_all(
    tree: &mut Tree,
    census: &Census,
    postpones: bool,
    obstacles: &mut Vec<Obstacle>,
) -> Result<Vec<Insight>, CollectError> {
    let mut insights = Vec::new();
    for (place, member) in census.living() {
        let pid = member.host;
        // A filter may end who makes a call that it does not expect.
        let is_filtered =
            |obstacle: &Obstacle| *obstacle == Obstacle::State { pid, kind: StateRefusal::Seccomp };
        if obstacles.iter().any(is_filtered) {
            continue;
        }
        if tree.processes()[place].vdso().is_none() {
            obstacles.push(Obstacle::State { pid, kind: StateRefusal::NoVdso });
            continue;
        }
        let failed = |source| CollectError::Inject { pid, source };
        let mut injector = tree.inject(place).map_err(failed)?;
        let mut insight = process::ask(&mut injector, &member.status, census, obstacles)?;
        if !(postpones && detail::is_large(&member.status)) {
            insight.policies = Some(policy::ask(&mut injector)?);
        }
        insights.push(insight);
        injector.finish().map_err(failed)?;
    }
    Ok(insights)
}

/// Which pages of a mapping are in memory, as mincore(2) tells the process: reading them to find out
/// would fill holes.
fn residency(tree: &mut Tree, pid: Pid, range: AddrRange, swapping: bool) -> io::Result<Vec<u8>> {
    let mut resident = vec![1; to_usize(range.pages())];
    // What is in swap is not resident, and no hole either.
    if swapping {
        return Ok(resident);
    }
    let place = tree.processes().iter().position(|process| process.task() == pid);
    let place = place.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let mut injector = tree.inject(place).map_err(io::Error::other)?;
    let answer = injector.scratch().start;
    let mut page = 0;
    for part in resident.chunks_mut(to_usize(SCRATCH_SIZE)) {
        let start = range.start.0 + page * PAGE_SIZE;
        let pages = to_u64(part.len());
        let call = Call::new(libc::SYS_mincore, &[start, pages * PAGE_SIZE, answer.0]);
        injector.call(&call).map_err(io::Error::other)?.map_err(io::Error::from)?;
        injector.read(answer, part).map_err(io::Error::other)?;
        page += pages;
    }
    injector.finish().map_err(io::Error::other)?;
    Ok(resident)
}

/// The group in the foreground of the outer terminal, when it is one of the job's.
fn outer_foreground(
    census: &Census,
    root: Pid,
    terminals: &Terminals,
) -> Result<Option<id::Pid>, CollectError> {
    let stat = procfs::stat(root)?;
    let session = census.members.iter().find(|member| member.host == root).map(Member::session);
    let is_own = terminals
        .own
        .iter()
        .any(|terminal| terminal.session.is_some() && terminal.session == session);
    if stat.tty_nr == 0 || is_own {
        return Ok(None);
    }
    let member = |member: &&Member| member.status.ns_pgid.first() == Some(&stat.tpgid);
    Ok(census.members.iter().find(member).map(Member::group).filter(|group| group.0 > 0))
}

/// Whether this machine has swap space; assumed when that cannot be told.
fn swap_is_on() -> bool {
    fs::read("/proc/swaps").map_or(true, |text| text.split(|byte| *byte == b'\n').count() > 2)
}

/// The command line of the process of a task.
fn command(task: Pid) -> Result<Vec<Bytes>, CollectError> {
    let mut line = procfs::read(task, "cmdline")?;
    if line.last() == Some(&0) {
        line.pop();
    }
    Ok(line.split(|byte| *byte == 0).map(Bytes::from).collect())
}

/// The vDSO of the job, which is the same in all its processes, without anything put into its padding.
fn vdso(tree: &Tree) -> Result<VdsoImage, CollectError> {
    let Some(process) = tree.processes().first() else { return Ok(VdsoImage::default()) };
    let Some(range) = process.vdso() else { return Ok(VdsoImage::default()) };
    let mut bytes = vec![0; to_usize(range.len())];
    let start: RemoteAddr = range.start;
    process.memory.read(start, &mut bytes).map_err(|source| CollectError::Memory {
        operation: "read the vDSO",
        pid: process.pid,
        source,
    })?;
    if let Some(padding) = crate::tracer::vdso::padding(&bytes) {
        bytes[padding..].fill(0);
    }
    Ok(VdsoImage { bytes })
}
