//! What runs in the processes that are to become the job, up to the blob.
//!
//! Each is forked by its true parent, takes its session and group, waits at the gates until everybody
//! is as far, lays out its descriptors and executes its blob. It reports to the supervisor and never
//! returns into the program's other business.

use std::fs;
use std::io;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::{Pid as HostPid, chdir, setpgid, setsid};
use thiserror::Error;

use super::blob::{self, Placement};
use super::estate::{self, EstateError, Holdings};
use super::files::OpenedJob;
use super::inheritance::{Share, Work};
use super::line::{BuilderSide, Cause, Gate, Report, Stage};
use super::opened::{keep_for_clone, lay_out};
use super::plan::{Plan, ProcessPlan};
use super::script;
use crate::image::Reader;
use crate::image::error::ReadFault;
use crate::model::births::{Birth, Role};
use crate::model::id::{Bytes, Pid};
use crate::model::job::Job;
use crate::model::process::{Process, ProcessState};
use crate::sys::clone::{self, Fork};
use crate::sys::descriptor::memfd_create;
use crate::sys::own_memory::map_program;
use crate::sys::terminal;

/// Address-space layout without randomisation, so that the blob's place is free in the new program.
const ADDR_NO_RANDOMIZE: u32 = 0x004_0000;

/// Everything that a process being built works from.
#[derive(Debug)]
pub struct Site<'a> {
    /// The image.
    pub reader: &'a Reader,
    /// The records.
    pub job: &'a Job,
    /// The plan.
    pub plan: &'a Plan,
    /// What the reaper has opened.
    pub opened: &'a OpenedJob,
    /// The way to the supervisor.
    pub line: &'a BuilderSide,
}

/// Why a process could not be built.
#[derive(Debug, Error)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum BuildError {
    #[error("forking process {pid}: {source}{}", taken(source))]
    Fork { pid: Pid, source: io::Error },
    #[error("forking a stand-in: {source}")]
    ForkStandIn { source: io::Error },
    #[error("making process {pid} lead session {pid}: {source}")]
    LeadSession { pid: Pid, source: Errno },
    #[error("giving session {pid} its terminal: {source}")]
    TakeControl { pid: Pid, source: Errno },
    #[error("making group {group} the foreground of session {pid}: {source}")]
    SetForeground { pid: Pid, group: Pid, source: Errno },
    #[error("putting process {pid} into group {group}: {source}")]
    JoinGroup { pid: Pid, group: Pid, source: Errno },
    #[error("waiting for child {child} of process {pid}: {source}")]
    AwaitChild { pid: Pid, child: HostPid, source: Errno },
    #[error("talking to the supervisor: {source}")]
    Talk {
        #[from]
        source: io::Error,
    },
    #[error(
        "entering the working directory {path} of process {pid}: {source}; make it again, or give its new place with --map"
    )]
    EnterDirectory { pid: Pid, path: Bytes, source: Errno },
    #[error("writing {value} to {path} for process {pid}: {source}")]
    WriteAttribute { pid: Pid, path: &'static str, value: String, source: io::Error },
    #[error("laying out the descriptors of process {pid}: {source}")]
    LayOut { pid: Pid, source: io::Error },
    #[error(transparent)]
    TakeEstate(#[from] EstateError),
    #[error("preparing the restorer of process {pid}: {source}")]
    Prepare { pid: Pid, source: io::Error },
    #[error("executing the restorer of process {pid}: {source}")]
    Execute { pid: Pid, source: io::Error },
}

impl BuildError {
    /// What somebody else can do something about.
    #[must_use]
    pub fn cause(&self) -> Cause {
        match self {
            Self::Fork { source, .. } if source.raw_os_error() == Some(libc::EEXIST) => {
                Cause::IdTaken
            }
            Self::TakeEstate(EstateError::Read(error)) if error.fault() == ReadFault::Damaged => {
                Cause::Damage
            }
            _ => Cause::Other,
        }
    }
}

fn taken(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EEXIST) => {
            ": another process has that id; end it, or restore as a plain user, in a pid namespace"
        }
        _ => "",
    }
}

/// Forks the job's processes, from the process that is to be the parent of its root and orphans.
/// Returns the stand-ins among them, which end after [`Gate::Finish`] and must be waited for then.
///
/// # Errors
/// When a fork fails; those already born end when the gates close.
pub fn grow(births: &[Birth], site: &Site<'_>) -> Result<Vec<HostPid>, BuildError> {
    grow_with(births, site, &mut Holdings::new())
}

/// Forks children of the caller, which has these holdings.
fn grow_with(
    births: &[Birth],
    site: &Site<'_>,
    holdings: &mut Holdings,
) -> Result<Vec<HostPid>, BuildError> {
    let mut stand_ins = Vec::new();
    for birth in births {
        let child = bear(birth, site, holdings)?;
        if birth.role == Role::StandIn {
            stand_ins.push(child);
        }
    }
    Ok(stand_ins)
}

/// Waits for stand-ins to end.
///
/// # Errors
/// As `waitpid(2)`.
pub fn bury(stand_ins: &[HostPid]) -> Result<(), BuildError> {
    for stand_in in stand_ins {
        retry(|| waitpid(*stand_in, Some(WaitPidFlag::__WALL)).map(drop)).map_err(|source| {
            BuildError::AwaitChild { pid: Pid::default(), child: *stand_in, source }
        })?;
    }
    Ok(())
}

/// Forks one process, which goes its way; only the parent returns.
fn bear(birth: &Birth, site: &Site<'_>, holdings: &mut Holdings) -> Result<HostPid, BuildError> {
    let sharing = if birth.shares_fs { libc::CLONE_FS } else { 0 };
    let set_tid = birth.pid.map(|pid| pid.0);
    match clone::fork(u64::from(sharing.unsigned_abs()), birth.exit_signal, set_tid) {
        Ok(Fork::Parent(child)) => Ok(child),
        Ok(Fork::Child) => {
            if let Err(error) = live(birth, site, holdings) {
                site.line.report_failure(&error.to_string(), error.cause());
            }
            clone::exit_now(1)
        }
        Err(source) => Err(match birth.pid {
            Some(pid) => BuildError::Fork { pid, source },
            None => BuildError::ForkStandIn { source },
        }),
    }
}

/// A process's way from its birth to its blob. Returns only to tell why it failed.
fn live(birth: &Birth, site: &Site<'_>, holdings: &mut Holdings) -> Result<(), BuildError> {
    let pid = birth.pid.unwrap_or_default();
    site.line.leave_supervisor()?;
    take_estates(birth, |share| &share.early, site, holdings)?;
    if birth.adopts {
        clone::set_child_subreaper(true)?;
    }
    let mut stand_ins = grow_with(&birth.earlier, site, holdings)?;
    if birth.new_session {
        setsid().map_err(|source| BuildError::LeadSession { pid, source })?;
    }
    if birth.new_session
        && let Some(terminal) = site.opened.controlling.get(&pid)
    {
        terminal::take_control(terminal)
            .map_err(|source| BuildError::TakeControl { pid, source })?;
    }
    stand_ins.extend(grow_with(&birth.later, site, holdings)?);
    take_estates(birth, |share| &share.late, site, holdings)?;

    reach(Stage::Born, birth, site)?;
    site.line.wait(Gate::Lead)?;
    if birth.group.is_some() && birth.group == birth.pid {
        join_group(pid, pid)?;
    }
    reach(Stage::Led, birth, site)?;
    site.line.wait(Gate::Join)?;
    if let Some(group) = birth.group
        && Some(group) != birth.pid
    {
        join_group(pid, group)?;
    }
    reach(Stage::Joined, birth, site)?;
    site.line.wait(Gate::Finish)?;

    set_foreground(pid, site)?;
    bury(&stand_ins)?;
    let Role::Process(index) = birth.role else { clone::exit_now(0) };
    let process = &site.job.processes[index];
    if let ProcessState::Zombie { wait_status } = process.state {
        end_as(wait_status);
    }
    await_zombies(process, site)?;
    set_attributes(process, site)?;
    become_blob(index, site, holdings)
}

/// Has memory in place: what the caller's children are to share with it, or what is its own.
fn take_estates(
    birth: &Birth,
    part: impl Fn(&Share) -> &Work,
    site: &Site<'_>,
    holdings: &mut Holdings,
) -> Result<(), BuildError> {
    let inheritance = &site.plan.inheritance;
    let Role::Process(index) = birth.role else { return Ok(()) };
    let Some(share) = inheritance.shares.get(&index) else { return Ok(()) };
    // Nobody is there to hear of it only when this process is about to be ended, too.
    let alive = || site.line.report(&Report::Working).unwrap_or_default();
    let pid = birth.pid.unwrap_or_default();
    let sources = (site.reader, inheritance, &site.opened.opened);
    Ok(estate::take(pid, part(share), sources, holdings, &alive)?)
}

/// Gives the terminal that controls the session of its leader `pid` the foreground group that it had.
fn set_foreground(pid: Pid, site: &Site<'_>) -> Result<(), BuildError> {
    let Some(terminal) = site.opened.controlling.get(&pid) else { return Ok(()) };
    let records = &site.job.terminals.own;
    let record = records.iter().find(|record| record.session == Some(pid));
    let Some(group) = record.and_then(|record| record.foreground) else { return Ok(()) };
    terminal::set_foreground(terminal, HostPid::from_raw(group.0))
        .map_err(|source| BuildError::SetForeground { pid, group, source })
}

fn reach(stage: Stage, birth: &Birth, site: &Site<'_>) -> Result<(), BuildError> {
    Ok(site.line.report(&Report::Reached(stage, birth.pid))?)
}

fn join_group(pid: Pid, group: Pid) -> Result<(), BuildError> {
    setpgid(HostPid::from_raw(0), HostPid::from_raw(group.0))
        .map_err(|source| BuildError::JoinGroup { pid, group, source })
}

/// Ends the caller so that its parent will see `wait_status`.
fn end_as(wait_status: i32) -> ! {
    let signal = wait_status & 0x7f;
    if signal == 0 {
        clone::exit_now(wait_status >> 8 & 0xff);
    }
    if let Ok(signal) = Signal::try_from(signal) {
        // Each of these can only fail for arguments that are not these; the last one ends the
        // process, and the status below would show if it did not.
        setrlimit(Resource::RLIMIT_CORE, 0, 0).unwrap_or_default();
        if !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            clone::set_default_action(signal).unwrap_or_default();
        }
        let mut unblocked = SigSet::empty();
        unblocked.add(signal);
        raise(signal).unwrap_or_default();
        sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&unblocked), None).unwrap_or_default();
    }
    clone::exit_now(128 + signal)
}

/// Waits until the children that are to be zombies have ended, and leaves them so.
fn await_zombies(process: &Process, site: &Site<'_>) -> Result<(), BuildError> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::__WALL;
    for zombie in site.job.processes.iter().filter(|child| child.is_zombie()) {
        if zombie.ppid != process.pid {
            continue;
        }
        let child = HostPid::from_raw(zombie.pid.0);
        retry(|| waitid(Id::Pid(child), flags).map(drop))
            .map_err(|source| BuildError::AwaitChild { pid: process.pid, child, source })?;
    }
    Ok(())
}

/// Sets what the blob's execution leaves as it is.
fn set_attributes(process: &Process, site: &Site<'_>) -> Result<(), BuildError> {
    let pid = process.pid;
    let fs = &site.job.fs[index_of(process.fs.0)];
    let space = &site.job.address_spaces[index_of(process.mm.0)];
    umask(Mode::from_bits_truncate(fs.umask));
    let path = match site.opened.opened.directories.get(&fs.cwd) {
        // A directory that was removed has no path but this one.
        Some(number) => Bytes(format!("/proc/self/fd/{number}").into_bytes()),
        None => site.plan.path_of(fs.cwd, site.job),
    };
    chdir(Path::new(path.as_os_str())).map_err(|source| BuildError::EnterDirectory {
        pid,
        path,
        source,
    })?;
    write_attribute(pid, "/proc/self/oom_score_adj", process.oom_score_adj.to_string())?;
    let filter = format!("{:#x}", space.coredump_filter);
    write_attribute(pid, "/proc/self/coredump_filter", filter)?;
    match process.autogroup_nice {
        Some(nice) => set_autogroup_nice(pid, nice),
        None => Ok(()),
    }
}

/// Sets the nice value of the caller's session. The kernel takes but ten a second of these from plain
/// users (`proc_sched_autogroup_set_nice` in kernel/sched/autogroup.c).
fn set_autogroup_nice(pid: Pid, nice: i32) -> Result<(), BuildError> {
    const PATH: &str = "/proc/self/autogroup";
    const PATIENCE: Duration = Duration::from_secs(10);
    let current = fs::read_to_string(PATH).unwrap_or_default();
    let current = current.rsplit(' ').next().and_then(|nice| nice.trim().parse::<i32>().ok());
    if current.is_none_or(|current| current == nice) {
        return Ok(());
    }
    let begun = Instant::now();
    loop {
        match fs::write(PATH, nice.to_string()) {
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock && begun.elapsed() < PATIENCE =>
            {
                sleep(PATIENCE / 100);
            }
            outcome => {
                return outcome.map_err(|source| BuildError::WriteAttribute {
                    pid,
                    path: PATH,
                    value: nice.to_string(),
                    source,
                });
            }
        }
    }
}

fn write_attribute(pid: Pid, path: &'static str, value: String) -> Result<(), BuildError> {
    let current = fs::read_to_string(path).unwrap_or_default();
    if current.trim() == value || current.trim() == value.trim_start_matches("0x") {
        return Ok(());
    }
    fs::write(path, &value).map_err(|source| BuildError::WriteAttribute {
        pid,
        path,
        value,
        source,
    })
}

/// Lays out the descriptors and executes the blob with the script of this process; or, when it keeps
/// memory, has the blob beside itself and waits to be taken there.
fn become_blob(index: usize, site: &Site<'_>, holdings: &Holdings) -> Result<(), BuildError> {
    let process = &site.job.processes[index];
    let pid = process.pid;
    let table = &site.job.fd_tables[index_of(process.fd_table.0)];
    let prepare = |source: io::Error| BuildError::Prepare { pid, source };
    let Some(ProcessPlan { placement, .. }) = &site.plan.processes[index] else {
        return Err(prepare(io::ErrorKind::NotFound.into()));
    };
    let mapped = &site.opened.opened.mapped;
    let places =
        holdings.iter().map(|(estate, holding)| (*estate, holding.range().start)).collect();
    let files = &site.opened.opened.files;
    let context = site.plan.script_context(site.job, *placement, (mapped, files), &places);
    let script = script::write(&site.plan.member(site.job, index), &context);
    let program = memfd_create(c"rckpt-restorer", libc::MFD_CLOEXEC)
        .map_err(|errno| prepare(errno.into()))?;
    let program = crate::sys::descriptor::move_above(program, site.opened.opened.private.start)
        .map_err(|errno| prepare(errno.into()))?;
    let mut file = fs::File::from(program);
    file.write_all(&blob::executable(placement, &script.bytes)).map_err(prepare)?;

    lay_out(table, &site.opened.opened)
        .and_then(|()| keep_for_sharers(index, site))
        .and_then(|()| name_executables(index, site))
        .map_err(|source| BuildError::LayOut { pid, source })?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)
        .map_err(|errno| prepare(errno.into()))?;
    if site.plan.stays(index) {
        map_blob(placement, &file).map_err(prepare)?;
        clone::forget_restartable_sequences();
        site.line.report(&Report::Reached(Stage::Ready, Some(pid)))?;
        site.line.wait(Gate::Execute)?;
        clone::stop_for_tracer();
        return Err(BuildError::Execute { pid, source: io::ErrorKind::Interrupted.into() });
    }
    clone::set_personality(ADDR_NO_RANDOMIZE).map_err(prepare)?;
    if site.plan.lends_capabilities() {
        clone::keep_capabilities_over_exec(&[
            clone::CAP_SYS_ADMIN,
            clone::CAP_SYS_RESOURCE,
            clone::CAP_CHECKPOINT_RESTORE,
            clone::CAP_SETPCAP,
        ])
        .map_err(prepare)?;
    }
    site.line.report(&Report::Reached(Stage::Ready, Some(pid)))?;
    site.line.wait(Gate::Execute)?;
    Err(BuildError::Execute { pid, source: clone::execute(file.as_fd(), c"rckpt-restorer") })
}

/// Maps what executing the file would map.
fn map_blob(placement: &Placement, file: &fs::File) -> io::Result<()> {
    for segment in blob::segments(placement) {
        map_program(segment.range, file.as_raw_fd(), segment.offset, segment.executable)?;
    }
    Ok(())
}

/// Leaves open what those have open that the process at `index` clones with its memory, but with tables of
/// their own.
fn keep_for_sharers(index: usize, site: &Site<'_>) -> io::Result<()> {
    let Some(plan) = &site.plan.processes[index] else { return Ok(()) };
    for sharer in &plan.sharers {
        let table = site.job.processes[sharer.index].fd_table;
        if !sharer.shares_table {
            keep_for_clone(&site.job.fd_tables[index_of(table.0)], &site.opened.opened)?;
        }
        keep_for_sharers(sharer.index, site)?;
    }
    Ok(())
}

/// Gives the executables of the process at `index`, and of those that it clones, the numbers by which
/// they will be set.
fn name_executables(index: usize, site: &Site<'_>) -> io::Result<()> {
    let Some(plan) = &site.plan.processes[index] else { return Ok(()) };
    let space = &site.job.address_spaces[index_of(site.job.processes[index].mm.0)];
    let opened = site.opened.opened.mapped.files.get(&(space.executable, false));
    let opened = opened.ok_or(io::ErrorKind::NotFound)?;
    clone::duplicate_to(*opened, plan.executable_fd, false)?;
    // Who shares memory has the same executable.
    let mut others = plan.sharers.iter().filter(|sharer| !sharer.shares_memory);
    others.try_for_each(|sharer| name_executables(sharer.index, site))
}

/// An index that the image's reader has checked, as one into a slice.
pub(super) fn index_of(id: u32) -> usize {
    usize::try_from(id).expect("32 bits fit")
}

fn retry(mut call: impl FnMut() -> nix::Result<()>) -> nix::Result<()> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            outcome => return outcome,
        }
    }
}
