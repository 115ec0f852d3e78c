//! The process that plays everybody's parent: the init of the job's namespaces, or a child of it that
//! has the id of the parent that the job's root knew.
//!
//! It enters the namespaces, opens what the job had open, forks the first processes, and from then on
//! only waits for children to end, so that orphans and zombies are taken care of. It tells how the
//! job's root ended through a pipe, and ends itself when nobody is left.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid as HostPid;
use thiserror::Error;

use super::line::{BuilderSide, Cause, Gate, Report, Stage};
use super::plan::{Plan, clock_offset};
use super::tree::{self, BuildError, Site};
use crate::image::Reader;
use crate::model::id::Pid;
use crate::model::job::Job;
use crate::model::time::{Clocks, TimeSpec};
use crate::sys::clone::{self, Fork};
use crate::sys::{descriptor, procfs};

/// Why the reaper could not do its part.
#[derive(Debug, Error)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum ReaperError {
    #[error("talking to the supervisor: {source}")]
    Talk {
        #[from]
        source: io::Error,
    },
    #[error("keeping mounts apart from the outer ones: {source}")]
    SeparateMounts { source: Errno },
    #[error(
        "mounting /proc for the job's own process ids: {source}; a container that hides parts of \
         /proc forbids this: ask for an unmasked /proc"
    )]
    MountProc { source: Errno },
    #[error("mounting /dev/pts for the job's own terminals: {source}")]
    MountTerminals { source: Errno },
    #[error("mounting /dev/mqueue for the job's own message queues: {source}")]
    MountQueues { source: Errno },
    #[error("setting the job's clocks by a time namespace: {source}; it needs Linux 5.6")]
    SetClocks { source: io::Error },
    #[error("forking a process in the place of the job's parent {parent}: {source}")]
    ForkParent { parent: Pid, source: io::Error },
    #[error("moving rckpt's own descriptors out of the way: {source}; raise ulimit -n")]
    MoveUp { source: io::Error },
    #[error(transparent)]
    Open(#[from] super::files::OpenError),
    #[error(transparent)]
    Build(#[from] BuildError),
}

impl ReaperError {
    /// What somebody else can do something about.
    #[must_use]
    pub fn cause(&self) -> Cause {
        match self {
            Self::Open(error) if error.id_is_taken() => Cause::IdTaken,
            Self::Build(error) => error.cause(),
            _ => Cause::Other,
        }
    }
}

/// What the reaper works from.
#[derive(Debug)]
pub struct Orders<'a> {
    /// The image.
    pub reader: &'a Reader,
    /// The records.
    pub job: &'a Job,
    /// The plan.
    pub plan: &'a Plan,
    /// Decisions about files, made beforehand.
    pub files: &'a super::files::Decisions,
}

/// The whole life of the reaper, in a process of its own that is the first of a new pid namespace.
/// `status` gets the wait status of the job's root as four bytes, least first.
pub fn run(orders: &Orders<'_>, line: BuilderSide, status: OwnedFd) -> ! {
    let line = line
        .leave_supervisor()
        .and_then(|()| Ok(descriptor::raise_limit()?))
        .and_then(|()| line.move_up(orders.plan.private_fds.start));
    let line = match line {
        Ok(line) => line,
        Err(_) => clone::exit_now(1),
    };
    let outcome = move_in(orders, &line).and_then(|place| match place {
        Place::Init => Ok(()),
        Place::Parent => build(orders, &line),
    });
    if let Err(error) = outcome {
        line.report_failure(&error.to_string(), error.cause());
        clone::exit_now(1);
    }
    drop(line);
    // What stays open by mistake does no harm to the job; there is nobody left to tell.
    close_all_but(&status).unwrap_or_default();
    reap(orders.job.root, File::from(status));
    clone::exit_now(0)
}

/// Whether the caller is to have the job's processes as its children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It has been left to another process, and the caller waits for that.
    Init,
    /// It is the caller's.
    Parent,
}

/// Enters the namespaces. The job's root asks for its parent's id now and then, and orphans for
/// theirs: a process with the id of the old parent takes its place, and init only waits for it.
fn move_in(orders: &Orders<'_>, line: &BuilderSide) -> Result<Place, ReaperError> {
    line.report(&Report::Reached(Stage::Entered, None))?;
    line.wait(Gate::Mapped)?;
    prctl::set_name(c"rckpt-init").map_err(io::Error::from)?;
    enter(orders)?;
    let Some(parent) = orders.plan.parent else { return Ok(Place::Parent) };
    match clone::fork(0, libc::SIGCHLD, Some(parent.0)) {
        Ok(Fork::Parent(_)) => Ok(Place::Init),
        Ok(Fork::Child) => {
            clone::set_child_subreaper(true)?;
            prctl::set_name(c"rckpt-parent").map_err(io::Error::from)?;
            Ok(Place::Parent)
        }
        Err(source) => Err(ReaperError::ForkParent { parent, source }),
    }
}

fn build(orders: &Orders<'_>, line: &BuilderSide) -> Result<(), ReaperError> {
    line.report(&Report::Reached(Stage::Housed, None))?;
    line.wait(Gate::Open)?;
    let mut opened = super::files::open_all(orders.job, orders.plan, orders.files)?;
    grow_tree(orders, line, &mut opened)
}

/// Has the job's processes forked by the caller, and waits with them until memory is filled.
///
/// # Errors
/// When a file or process cannot be made.
fn grow_tree(
    orders: &Orders<'_>,
    line: &BuilderSide,
    opened: &mut super::files::OpenedJob,
) -> Result<(), ReaperError> {
    let contents = opened.opened.contents.iter().map(|(object, fd)| (*object, *fd)).collect();
    line.report(&Report::Opened(contents))?;
    line.wait(Gate::Fork)?;
    let Orders { reader, job, plan, .. } = *orders;
    let site = Site { reader, job, plan, opened, line };
    let stand_ins = tree::grow(&plan.births, &site)?;
    line.wait(Gate::Find)?;
    super::files::open_late(job, opened)?;
    line.report(&Report::Reached(Stage::Found, None))?;
    line.wait(Gate::Finish)?;
    tree::bury(&stand_ins)?;
    line.wait(Gate::Filled)?;
    super::files::settle(job, plan, opened)?;
    line.report(&Report::Reached(Stage::Settled, None))?;
    Ok(())
}

/// Closes everything but the standard streams and `status`: what was opened for the job, of which the
/// processes have their own names, and what the supervisor had open when it forked the reaper.
fn close_all_but(status: &OwnedFd) -> io::Result<()> {
    let number = status.as_raw_fd().unsigned_abs();
    descriptor::close_range(3, number - 1)?;
    descriptor::close_range(number + 1, u32::MAX)?;
    Ok(())
}

/// Makes the namespaces fit for the job: its own /proc, its own clocks, and, when it has made terminals,
/// its own /dev/pts, where their numbers are free, or, with an ipc namespace of its own, what that shows on
/// /dev/mqueue.
fn enter(Orders { job, plan, .. }: &Orders<'_>) -> Result<(), ReaperError> {
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_SLAVE, nothing)
        .map_err(|source| ReaperError::SeparateMounts { source })?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, nothing)
        .map_err(|source| ReaperError::MountProc { source })?;
    if !job.terminals.own.is_empty() {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        let options = Some("newinstance,ptmxmode=0666,mode=0620");
        mount(Some("devpts"), "/dev/pts", Some("devpts"), flags, options)
            .map_err(|source| ReaperError::MountTerminals { source })?;
    }
    let queues = Path::new("/dev/mqueue");
    if !job.ipc.is_empty() && queues.is_dir() {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("mqueue"), queues, Some("mqueue"), flags, nothing)
            .map_err(|source| ReaperError::MountQueues { source })?;
    }
    match &plan.clocks {
        Some(clocks) => set_clocks(clocks).map_err(|source| ReaperError::SetClocks { source }),
        None => Ok(()),
    }
}

/// Gives the caller's future children clocks that go on from `clocks`.
///
/// # Errors
/// EINVAL from `unshare(2)` without time namespaces; ERANGE for clocks that the kernel refuses.
pub fn set_clocks(clocks: &Clocks) -> io::Result<()> {
    let earlier = procfs::time_offsets(HostPid::this()).map_err(io::Error::other)?;
    unshare(CloneFlags::from_bits_retain(libc::CLONE_NEWTIME))?;
    let mut text = String::new();
    let wanted = [
        ("monotonic", ClockId::CLOCK_MONOTONIC, clocks.monotonic, earlier[0]),
        ("boottime", ClockId::CLOCK_BOOTTIME, clocks.boottime, earlier[1]),
    ];
    for (name, clock, wanted, earlier) in wanted {
        let now = clock_gettime(clock)?;
        let now = TimeSpec { seconds: now.tv_sec(), nanoseconds: now.tv_nsec() };
        // The kernel counts offsets from the initial namespace, whose clock is `earlier` behind.
        let earlier = TimeSpec {
            seconds: i64::try_from(earlier.div_euclid(1_000_000_000)).unwrap_or(0),
            nanoseconds: i64::try_from(earlier.rem_euclid(1_000_000_000)).unwrap_or(0),
        };
        let offset = clock_offset(wanted, clock_offset(now, earlier));
        text.push_str(&format!("{name} {} {}\n", offset.seconds, offset.nanoseconds));
    }
    fs::write("/proc/self/timens_offsets", text)
}

/// Maps the caller's user and group id, and nothing else, into the user namespace of `reaper`.
///
/// # Errors
/// EPERM where user namespaces may be made but not used.
pub fn map_ids(reaper: HostPid, uid: u32, gid: u32) -> io::Result<()> {
    fs::write(format!("/proc/{reaper}/setgroups"), "deny")?;
    fs::write(format!("/proc/{reaper}/uid_map"), format!("{uid} {uid} 1"))?;
    fs::write(format!("/proc/{reaper}/gid_map"), format!("{gid} {gid} 1"))
}

/// Waits for children until there are none.
fn reap(root: Pid, mut status: File) {
    let root = HostPid::from_raw(root.0);
    loop {
        let raw = match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == root => code << 8,
            Ok(WaitStatus::Signaled(pid, signal, dumped)) if pid == root => {
                signal as i32 | i32::from(dumped) << 7
            }
            Err(Errno::ECHILD) => return,
            _ => continue,
        };
        // The supervisor may be gone; then nobody wants to know.
        status.write_all(&raw.to_le_bytes()).unwrap_or_default();
    }
}

/// Runs the reaper's part in the supervisor itself, for a job that is restored in place: the
/// supervisor is its parent.
///
/// # Errors
/// When a file or a process cannot be made.
pub fn open_in_place(orders: &Orders<'_>) -> Result<super::files::OpenedJob, ReaperError> {
    if let Some(clocks) = &orders.plan.clocks {
        set_clocks(clocks).map_err(|source| ReaperError::SetClocks { source })?;
    }
    Ok(super::files::open_all(orders.job, orders.plan, orders.files)?)
}
