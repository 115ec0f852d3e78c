//! Bringing a job back: a pure plan first, then process tree, descriptors, memory, threads, go.
//!
//! docs/RESTORE-STAGES.md tells the stages in order. `blob`, `plan` and `script` are pure, like
//! the births in the model;
//! `reaper` and `tree` run in the processes that are to become the job; `control` and `fill` are the
//! supervisor's side, and this file drives them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid as HostPid, pipe2};
use thiserror::Error;

use crate::image::Reader;
use crate::image::error::ReadFault;
use crate::model::file::OpenFileKind;
use crate::model::id::{ObjectId, OpenFileId, Pid};
use crate::model::job::Job;
use crate::sys::clone::{self, Fork};
use crate::sys::descriptor::{self, Owner};
use crate::sys::inotify;

use crate::model::births::{self, Birth};
use crate::model::code::{self, Code};
use control::{ControlError, Finish, Rebuilt};
use environment::ProbeError;
use estate::EstateError;
use files::{NotPutBack, RollbackError, TakenBack};
use fill::{FillError, Target};
use line::{BuilderSide, Cause, Gate, Report, Stage, SupervisorSide};
use opened::{ContentPlace, Opened};
use plan::{Identity, Plan, ProcessPlan, Start};
use reaper::{Orders, ReaperError};
use tree::{BuildError, Site};

pub mod blob;
pub mod control;
pub mod environment;
pub mod estate;
pub mod files;
pub mod fill;
pub mod huge;
pub mod inheritance;
pub mod ipc;
pub mod line;
mod numbers;
pub mod opened;
mod owner;
pub mod plan;
pub mod reaper;
pub mod script;
pub mod tree;
pub mod vdso;

/// How long nothing may happen before the restore is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A job that runs again.
#[derive(Debug)]
pub struct Restored {
    /// Its root process, as the caller sees it.
    pub root: HostPid,
    /// The parent of the root and of orphans, the init of the job's namespaces (a child of the caller)
    /// or a child of that; `None` for a job restored in place, whose root is the caller's child.
    pub reaper: Option<HostPid>,
    /// Gives the root's wait status as four bytes, least first, when there is a reaper.
    pub status: Option<File>,
}

/// Why a job could not be brought back. Nothing of it is left running.
#[derive(Debug, Error)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum RestoreError {
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error("setting up the way between rckpt's processes: {source}")]
    Connect { source: io::Error },
    #[error(
        "making namespaces for the job's process ids: {source}; as a plain user a restore needs \
         unprivileged user namespaces (sysctl user.max_user_namespaces, \
         kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
    )]
    MakeNamespaces { source: io::Error },
    #[error("mapping user and group ids into the job's user namespace: {source}")]
    MapIds { source: io::Error },
    #[error(transparent)]
    Rollback(#[from] RollbackError),
    #[error("{error}\n{left}")]
    NotPutBack { error: Box<Self>, left: NotPutBack },
    #[error(transparent)]
    Reaper(#[from] ReaperError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error("{message}")]
    Builder { message: String, cause: Cause },
    #[error("waiting for the job's processes: {source}")]
    Await { source: io::Error },
    #[error("the processes being restored ended before they had come to {stage:?}")]
    Lost { stage: Stage },
    #[error("nothing happened for {} s while waiting for {stage:?}", PATIENCE.as_secs())]
    Stalled { stage: Stage },
    #[error("letting the processes go on to {gate:?}: {source}")]
    OpenGate { gate: Gate, source: io::Error },
    #[error("taking over the content of object {object}: {source}")]
    TakeContent { object: ObjectId, source: io::Error },
    #[error("telling a thread about events on open file {file} of the image: {source}")]
    SetOwner { file: OpenFileId, source: Errno },
    #[error("reading what the restore has done from an inotify instance: {source}")]
    ForgetEvents { source: Errno },
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Fill(#[from] FillError),
    #[error("the job's root process {root} is not among its processes")]
    FindRoot { root: Pid },
}

impl RestoreError {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Probe(_) | Self::Connect { .. } => code::restoring::RESTORE_UNPREPARED,
            Self::MakeNamespaces { .. } => code::restoring::NAMESPACES_FORBIDDEN,
            Self::MapIds { .. } => code::restoring::NAMESPACE_SETUP,
            Self::Rollback(_) => code::restoring::NOT_TAKEN_BACK,
            Self::NotPutBack { error, .. } => error.code(),
            Self::Fill(FillError::Read(error))
            | Self::Build(BuildError::TakeEstate(EstateError::Read(error))) => error.code(),
            Self::Builder { cause: Cause::Damage, .. } => code::images::WRONG_CHECKSUM,
            Self::Reaper(_)
            | Self::Build(_)
            | Self::Builder { .. }
            | Self::TakeContent { .. }
            | Self::SetOwner { .. }
            | Self::ForgetEvents { .. } => code::restoring::NOT_BUILT,
            Self::Await { .. }
            | Self::Lost { .. }
            | Self::Stalled { .. }
            | Self::OpenGate { .. } => code::restoring::RESTORE_STALLED,
            Self::Control(_) | Self::FindRoot { .. } => code::restoring::NOT_CONTROLLED,
            Self::Fill(_) => code::restoring::NOT_FILLED,
        }
    }

    /// Whether the checkpoint is to blame, and not the machine.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self.fault_of_checkpoint(), Some(ReadFault::Damaged))
    }

    /// What is wrong with the checkpoint, when it could not be read.
    #[must_use]
    pub fn fault_of_checkpoint(&self) -> Option<ReadFault> {
        match self {
            Self::Fill(FillError::Read(error)) => Some(error.fault()),
            _ if self.cause() == Cause::Damage => Some(ReadFault::Damaged),
            Self::NotPutBack { error, .. } => error.fault_of_checkpoint(),
            _ => None,
        }
    }

    /// Whether the job's files are not what they were before the restore, which did not succeed.
    #[must_use]
    pub const fn has_changed_files(&self) -> bool {
        matches!(self, Self::NotPutBack { .. })
    }
}

impl RestoreError {
    /// Whether somebody else has an id that the job needs.
    fn id_is_taken(&self) -> bool {
        match self {
            Self::Control(error) => error.id_is_taken(),
            _ => self.cause() == Cause::IdTaken,
        }
    }

    /// What somebody else can do something about, as those say who build the job.
    fn cause(&self) -> Cause {
        match self {
            Self::Builder { cause, .. } => *cause,
            Self::Build(error) => error.cause(),
            Self::Reaper(error) => error.cause(),
            _ => Cause::Other,
        }
    }
}

/// Brings the job of `reader` back according to `plan`, or in namespaces when an id that it needs in
/// place has been taken since the plan was made. The caller must have one thread only, and
/// becomes the subreaper of what it starts.
///
/// # Errors
/// When any stage fails; everything that was started is ended before this returns, and what was taken back
/// from files is put back, unless the job had begun to run.
pub fn start(
    reader: &Reader,
    plan: &Plan,
    decisions: &files::Decisions,
) -> Result<Restored, RestoreError> {
    let before = descriptor::open_numbers().map_err(|source| RestoreError::Connect { source })?;
    let mut taken = TakenBack::default();
    let outcome = match attempt(reader, plan, decisions, &mut taken) {
        Err(error) if error.id_is_taken() && plan.identity == Identity::InPlace => {
            let plan = plan.in_namespaces(reader.job());
            close_others(&before).and_then(|()| attempt(reader, &plan, decisions, &mut taken))
        }
        outcome => outcome,
    };
    outcome.map_err(|error| {
        if plan.identity == Identity::InPlace {
            // A lease on a file is in the way for a while, and that is all.
            close_others(&before).unwrap_or_default();
        }
        match files::put_back(&taken) {
            Ok(()) => error,
            Err(left) => RestoreError::NotPutBack { error: Box::new(error), left },
        }
    })
}

/// Closes what an attempt in place has opened for the job in this process: locks, addresses and names would
/// be in the way of the next one.
fn close_others(before: &BTreeSet<RawFd>) -> Result<(), RestoreError> {
    let failed = |source| RestoreError::Connect { source };
    let now = descriptor::open_numbers().map_err(failed)?;
    for number in now.difference(before).map(|number| number.unsigned_abs()) {
        descriptor::close_range(number, number).map_err(|errno| failed(errno.into()))?;
    }
    Ok(())
}

fn attempt(
    reader: &Reader,
    plan: &Plan,
    decisions: &files::Decisions,
    taken: &mut TakenBack,
) -> Result<Restored, RestoreError> {
    let connect = |source: io::Error| RestoreError::Connect { source };
    let (supervisor, builder) = line::connect().map_err(connect)?;
    let (status, status_writer) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| connect(errno.into()))?;
    clone::set_child_subreaper(true).map_err(connect)?;
    let mut site = Supervisor {
        reader,
        job: reader.job(),
        plan,
        line: supervisor,
        init: None,
        reaper: None,
        hosts: BTreeMap::new(),
        contents: BTreeMap::new(),
        taken,
    };
    let orders = Orders { reader, job: reader.job(), plan, files: decisions };
    let outcome = match plan.identity {
        Identity::Namespaces { user } => site
            .start_reaper(&orders, builder, status_writer, user)
            .and_then(|()| site.rebuild(None)),
        Identity::InPlace => site
            .open_in_place(&orders, builder)
            .and_then(|(opened, stand_ins)| site.rebuild(Some((opened, stand_ins)))),
    };
    match outcome {
        Ok(root) => {
            let status = site.reaper.is_some().then(|| File::from(status));
            Ok(Restored { root, reaper: site.reaper, status })
        }
        Err(error) => {
            site.end_all();
            Err(error)
        }
    }
}

/// The supervisor's side of a restore.
struct Supervisor<'a> {
    reader: &'a Reader,
    job: &'a Job,
    plan: &'a Plan,
    line: SupervisorSide,
    init: Option<HostPid>,
    /// The parent of the job's root and orphans: init, or a child of it.
    reaper: Option<HostPid>,
    /// Every process born so far, by its id in the job.
    hosts: BTreeMap<Pid, HostPid>,
    /// Where the content of inodes goes.
    contents: BTreeMap<ObjectId, Target>,
    /// What was done to the job's files.
    taken: &'a mut TakenBack,
}

/// What was opened in the supervisor itself, and the stand-ins that it forked.
type InPlace = (files::OpenedJob, Vec<HostPid>);

impl<'a> Supervisor<'a> {
    fn start_reaper(
        &mut self,
        orders: &Orders<'_>,
        builder: BuilderSide,
        status: OwnedFd,
        user: bool,
    ) -> Result<(), RestoreError> {
        let mut flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS;
        if !self.job.ipc.is_empty() {
            flags |= libc::CLONE_NEWIPC;
        }
        if user {
            flags |= libc::CLONE_NEWUSER;
        }
        match clone::fork(u64::from(flags.unsigned_abs()), libc::SIGCHLD, None) {
            Ok(Fork::Child) => reaper::run(orders, builder, status),
            Ok(Fork::Parent(init)) => self.init = Some(init),
            Err(source) => return Err(RestoreError::MakeNamespaces { source }),
        }
        drop((builder, status));
        self.await_all(Stage::Entered, 1)?;
        if user && let Some(init) = self.init {
            let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
            reaper::map_ids(init, uid, gid).map_err(|source| RestoreError::MapIds { source })?;
        }
        self.open_gate(Gate::Mapped, 1)?;
        self.await_all(Stage::Housed, 1)?;
        files::carry_out(orders.files, self.taken)?;
        self.open_gate(Gate::Open, 1)?;
        let (reaper, contents) = self.await_opened()?;
        self.reaper = Some(reaper);
        self.take_contents(contents)?;
        self.open_gate(Gate::Fork, 1)
    }

    fn open_in_place(
        &mut self,
        orders: &Orders<'_>,
        builder: BuilderSide,
    ) -> Result<InPlace, RestoreError> {
        descriptor::raise_limit()
            .map_err(|source| RestoreError::Connect { source: source.into() })?;
        let first = self.plan.private_fds.start;
        let builder = builder.move_up(first).map_err(|source| RestoreError::Connect { source })?;
        files::carry_out(orders.files, self.taken)?;
        let opened = reaper::open_in_place(orders)?;
        let contents = opened.opened.contents.iter();
        self.take_contents(contents.map(|(object, place)| (*object, *place)).collect())?;
        let (reader, job, plan) = (self.reader, self.job, self.plan);
        let site = Site { reader, job, plan, opened: &opened, line: &builder };
        let stand_ins = tree::grow(&self.plan.births, &site)?;
        Ok((opened, stand_ins))
    }

    /// Takes duplicates of the descriptors into which the content of inodes is to be written.
    fn take_contents(
        &mut self,
        contents: Vec<(ObjectId, ContentPlace)>,
    ) -> Result<(), RestoreError> {
        let owner = self.reaper.unwrap_or_else(HostPid::this);
        for (object, ContentPlace { number, base }) in contents {
            let file = descriptor::pidfd_open(owner)
                .and_then(|pidfd| descriptor::pidfd_getfd(pidfd.as_fd(), number))
                .map_err(|errno| RestoreError::TakeContent { object, source: errno.into() })?;
            self.contents.insert(object, Target { file, base });
        }
        Ok(())
    }

    /// From the birth of all processes to their first own instruction. Returns the root.
    fn rebuild(&mut self, mut in_place: Option<InPlace>) -> Result<HostPid, RestoreError> {
        let everybody = self.plan.births.iter().flat_map(Birth::all).count();
        let living = self.plan.processes.iter().flatten().filter(|plan| executes(plan)).count();
        let reaper = usize::from(self.reaper.is_some());
        self.await_all(Stage::Born, everybody)?;
        self.open_gate(Gate::Lead, everybody)?;
        self.await_all(Stage::Led, everybody)?;
        self.open_gate(Gate::Join, everybody)?;
        self.await_all(Stage::Joined, everybody)?;
        match &mut in_place {
            Some((opened, _)) => {
                files::open_late(self.job, opened).map_err(ReaperError::from)?;
            }
            None => {
                self.open_gate(Gate::Find, 1)?;
                self.await_all(Stage::Found, 1)?;
            }
        }
        self.open_gate(Gate::Finish, everybody + reaper)?;
        if let Some((_, stand_ins)) = &in_place {
            tree::bury(stand_ins)?;
        }
        self.await_all(Stage::Ready, living)?;

        let mut rebuilt = self.seize_all()?;
        self.open_gate(Gate::Execute, living)?;
        for (index, process) in &mut rebuilt {
            let Some(plan) = &self.plan.processes[*index] else { continue };
            if let Start::Execute { first_step, stack } = plan.start {
                process.start_blob(first_step, stack, self.plan.stays(*index))?;
            }
        }
        self.await_sharers(&mut rebuilt, |sharer| !sharer.shares_memory)?;
        for process in rebuilt.values_mut() {
            process.await_mapped()?;
        }
        for (index, process) in &rebuilt {
            let plan = self.plan.processes[*index].as_ref();
            plan.and_then(|plan| plan.vdso.as_ref()).map_or(Ok(()), |it| process.fill_vdso(it))?;
            process.fill_rings()?;
        }
        let filled = &self.plan.inheritance;
        fill::fill(self.reader, self.job, &rebuilt, filled, &self.contents)?;
        self.contents.clear();
        match &mut in_place {
            Some((opened, _)) => {
                files::settle(self.job, self.plan, opened).map_err(ReaperError::from)?;
                opened.let_go();
                close_opened(&opened.opened)?;
            }
            None => {
                self.open_gate(Gate::Filled, 1)?;
                self.await_all(Stage::Settled, 1)?;
            }
        }
        for process in rebuilt.values_mut() {
            process.go_on()?;
        }
        self.await_sharers(&mut rebuilt, |sharer| sharer.shares_memory)?;
        for process in rebuilt.values_mut() {
            process.await_threads()?;
        }
        self.set_late_owners(&rebuilt)?;
        self.finish_all(&rebuilt)?;
        self.forget_events()?;
        let root = self.hosts.get(&self.job.root).copied();
        let root = root.ok_or(RestoreError::FindRoot { root: self.job.root })?;
        self.taken.job_runs();
        for process in rebuilt.into_values() {
            process.release()?;
        }
        Ok(root)
    }

    /// Takes hold of every process that waits to execute its blob, by its index.
    fn seize_all(&self) -> Result<BTreeMap<usize, Rebuilt<'a>>, RestoreError> {
        let mut rebuilt = BTreeMap::new();
        for (index, plan) in self.plan.processes.iter().enumerate() {
            let Some(plan) = plan.as_ref().filter(|plan| executes(plan)) else { continue };
            let process = &self.job.processes[index];
            let host = self.hosts.get(&process.pid).copied();
            let host = host.ok_or(RestoreError::Lost { stage: Stage::Ready })?;
            let space = &self.job.address_spaces[tree::index_of(process.mm.0)];
            rebuilt.insert(index, Rebuilt::seize(process, space, plan.placement, host)?);
        }
        Ok(rebuilt)
    }

    /// Waits until those that share tables of descriptors or memory have been cloned by their parents, all
    /// those of the `wanted` kind. A parent comes before its children in the job, and so does its own birth.
    fn await_sharers(
        &mut self,
        rebuilt: &mut BTreeMap<usize, Rebuilt<'a>>,
        wanted: fn(&births::Sharer) -> bool,
    ) -> Result<(), RestoreError> {
        for index in 0..self.plan.processes.len() {
            let Some(plan) = &self.plan.processes[index] else { continue };
            for sharer in plan.sharers.iter().filter(|sharer| wanted(sharer)) {
                let record = &self.job.processes[sharer.index];
                let space = &self.job.address_spaces[tree::index_of(record.mm.0)];
                let parent =
                    rebuilt.get_mut(&index).ok_or(RestoreError::Lost { stage: Stage::Ready })?;
                let child = parent.await_sharer(record, space)?;
                self.hosts.insert(record.pid, child.host());
                rebuilt.insert(sharer.index, child);
            }
        }
        Ok(())
    }

    /// Has descriptions tell the threads and processes that they told, which all exist by now.
    fn set_late_owners(&self, rebuilt: &BTreeMap<usize, Rebuilt<'_>>) -> Result<(), RestoreError> {
        for late in owner::late(self.job) {
            let file = late.file;
            let thread = rebuilt.values().find_map(|process| process.thread(late.thread));
            let thread = thread.ok_or(RestoreError::SetOwner { file, source: Errno::ESRCH })?;
            let (holder, number) = late.holder;
            let holder = self.hosts.get(&holder).copied();
            let holder = holder.ok_or(RestoreError::SetOwner { file, source: Errno::ESRCH })?;
            let owner = Owner { kind: late.kind, id: thread.as_raw() };
            descriptor::pidfd_open(holder)
                .and_then(|pidfd| descriptor::pidfd_getfd(pidfd, number))
                .and_then(|description| descriptor::set_owner(description, owner))
                .map_err(|source| RestoreError::SetOwner { file, source })?;
        }
        Ok(())
    }

    fn finish_all(&self, rebuilt: &BTreeMap<usize, Rebuilt<'_>>) -> Result<(), RestoreError> {
        for (index, process) in rebuilt {
            let Some(plan) = &self.plan.processes[*index] else { continue };
            process.finish(&Finish {
                limits: &self.plan.limits[*index],
                vdso: (&self.plan.vdso, plan.vdso.as_ref().map(|vdso| vdso.code)),
                executable: (!self.plan.shares_memory(self.job, *index))
                    .then_some(plan.executable_fd),
                capabilities: plan.capabilities,
                stayed: self.plan.stays(*index),
            })?;
        }
        Ok(())
    }

    /// Has inotify instances forget what the restore itself has done to files that they watch.
    fn forget_events(&self) -> Result<(), RestoreError> {
        for (number, file) in (0..).zip(&self.job.open_files) {
            if !matches!(file.kind, OpenFileKind::Inotify { .. }) {
                continue;
            }
            let holder = self.job.processes.iter().find_map(|process| {
                let table = self.job.fd_tables.get(tree::index_of(process.fd_table.0))?;
                let entry = table.entries.iter().find(|entry| entry.file == OpenFileId(number))?;
                Some((*self.hosts.get(&process.pid)?, entry.number))
            });
            let Some((host, number)) = holder else { continue };
            descriptor::pidfd_open(host)
                .and_then(|pidfd| descriptor::pidfd_getfd(pidfd.as_fd(), number))
                .and_then(|instance| inotify::drain(instance.as_raw_fd()))
                .map_err(|source| RestoreError::ForgetEvents { source })?;
        }
        Ok(())
    }

    fn open_gate(&mut self, gate: Gate, waiting: usize) -> Result<(), RestoreError> {
        self.line.open(gate, waiting).map_err(|source| RestoreError::OpenGate { gate, source })
    }

    /// Waits until `count` processes have reported `stage`, and notes who they are.
    fn await_all(&mut self, stage: Stage, count: usize) -> Result<(), RestoreError> {
        let mut reached_by = 0;
        while reached_by < count {
            let (sender, report) = self.next_report(stage)?;
            reached_by += usize::from(!matches!(report, Report::Working));
            match report {
                Report::Working => {}
                Report::Reached(reached, pid) if reached == stage => {
                    if let Some(pid) = pid {
                        self.hosts.insert(pid, sender);
                    }
                }
                Report::Failed { message, cause } => {
                    return Err(RestoreError::Builder { message, cause });
                }
                _ => return Err(RestoreError::Lost { stage }),
            }
        }
        Ok(())
    }

    /// Waits until the reaper has opened the job's files; tells who it is and where content goes.
    fn await_opened(&self) -> Result<(HostPid, Vec<(ObjectId, ContentPlace)>), RestoreError> {
        match self.next_report(Stage::Housed)? {
            (reaper, Report::Opened(contents)) => Ok((reaper, contents)),
            (_, Report::Failed { message, cause }) => Err(RestoreError::Builder { message, cause }),
            (_, Report::Reached(stage, _)) => Err(RestoreError::Lost { stage }),
            (_, Report::Working) => Err(RestoreError::Lost { stage: Stage::Housed }),
        }
    }

    fn next_report(&self, stage: Stage) -> Result<(HostPid, Report), RestoreError> {
        let wait = |source| RestoreError::Await { source };
        if !self.line.ready(PATIENCE).map_err(wait)? {
            return Err(RestoreError::Stalled { stage });
        }
        let received = self.line.receive().map_err(wait)?;
        let received = received.ok_or(RestoreError::Lost { stage })?;
        Ok((received.sender, received.report))
    }

    /// Ends everything that was started, after a failure.
    fn end_all(&mut self) {
        // Those that have not reported yet are not known, and wait.
        self.line.close();
        let started = self.init.into_iter().chain(self.hosts.values().copied());
        for process in started {
            // One that has ended already is as it should be.
            kill(process, Signal::SIGKILL).unwrap_or_default();
        }
        // Waiting for what is no child (any more) fails at once, and children end soon.
        while waitpid(None, Some(WaitPidFlag::__WALL)).is_ok() {}
    }
}

/// Whether a process executes its blob, rather than being cloned into it.
const fn executes(plan: &ProcessPlan) -> bool {
    matches!(plan.start, Start::Execute { .. })
}

/// Closes what was opened for the job in the supervisor.
fn close_opened(opened: &Opened) -> Result<(), RestoreError> {
    let contents = opened.contents.values().map(|place| &place.number);
    let mapped = opened.mapped.files.values().chain(opened.mapped.rings.values());
    let numbers = opened.files.iter().chain(mapped).chain(contents);
    for number in numbers {
        let number = number.unsigned_abs();
        descriptor::close_range(number, number)
            .map_err(|errno| RestoreError::Connect { source: errno.into() })?;
    }
    Ok(())
}
