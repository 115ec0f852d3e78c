//! Who is in the job: processes, threads and zombies, under which ids, and with whose rights.
//!
//! The job may live in a pid namespace of its own, made by an earlier restore. Ids as rckpt sees them
//! are told apart by type from those that the job sees, which are the ones recorded.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use nix::unistd::{Pid, getegid, geteuid, getpid};

use super::error::CollectError;
use super::refusal::{Obstacle, StateRefusal};
use crate::model::id;
use crate::sys::descriptor::{self, Shared};
use crate::sys::procfs::{self, Status};
use crate::sys::{ptrace, task};
use crate::tracer::tree::Tree;

/// Namespaces that a restore makes anew when the job is in others than rckpt.
const OWN_NAMESPACES: [&str; 5] = ["user", "pid", "mnt", "time", "ipc"];

/// Namespaces that the job must share with rckpt.
const COMMON_NAMESPACES: [&str; 3] = ["net", "uts", "cgroup"];

/// Namespaces for children, which differ from a process's own after unshare(2) or setns(2).
const FOR_CHILDREN: [(&str, &str); 2] =
    [("pid", "pid_for_children"), ("time", "time_for_children")];

/// So many threads are not worth another looker.
const FEW_THREADS: usize = 32;

/// A process or zombie of the job.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// Its id as rckpt sees it.
    pub host: Pid,
    /// The task that stands for it, as [`crate::tracer::tree::Process::task`]; itself for a zombie.
    pub task: Pid,
    /// What /proc/PID/status says of that task.
    pub status: Status,
    /// Its place among the tree's processes; `None` for a zombie.
    pub place: Option<usize>,
}

/// Everybody in the job.
#[derive(Debug)]
pub(super) struct Census {
    /// Processes and zombies, each after its parent.
    pub members: Vec<Member>,
    /// Recorded ids of all processes and threads, by those that rckpt sees.
    ids: HashMap<Pid, id::Pid>,
    /// What was seen of each thread.
    threads: HashMap<Pid, Glimpse>,
    /// What processes have in common that are not threads of each other.
    sharing: Sharing,
}

/// What processes have in common that are not threads of each other.
#[derive(Debug, Default)]
struct Sharing {
    /// The number of each living member's memory, in their order; counted by first appearance.
    memories: Vec<usize>,
    /// Those who have their signal actions in common with their parents.
    actions: HashSet<Pid>,
}

/// What is seen of a thread without the help of ptrace.
#[derive(Debug)]
struct Sight {
    /// What /proc/TID/status says.
    status: Status,
    /// Its flags in the kernel.
    flags: u32,
    /// Its core scheduling cookie; 0: none.
    cookie: u64,
    /// What it does not share with the task that stands for its process.
    owns: Vec<&'static str>,
}

/// What /proc says of one thread, as far as its record needs it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Glimpse {
    /// Its flags in the kernel.
    pub flags: u32,
    /// PR_SPEC_* bit of PR_SPEC_STORE_BYPASS; 0: none.
    pub store_bypass: u32,
    /// PR_SPEC_* bit of PR_SPEC_INDIRECT_BRANCH; 0: none.
    pub indirect_branch: u32,
}

impl Census {
    /// The recorded id of a process or thread of the job.
    pub fn recorded(&self, host: Pid) -> Option<id::Pid> {
        self.ids.get(&host).copied()
    }

    /// What was seen of a thread of the job.
    pub fn glimpse(&self, tid: Pid) -> Glimpse {
        self.threads.get(&tid).copied().unwrap_or_default()
    }

    /// The id of a member's parent as the member sees it, be it outside the job; 0 when it is outside
    /// the member's pid namespace, too.
    pub fn parent(&self, member: &Member) -> Result<id::Pid, CollectError> {
        let host = Pid::from_raw(member.status.ppid);
        if let Some(parent) = self.recorded(host) {
            return Ok(parent);
        }
        match procfs::status(host) {
            Ok(parent) if parent.ns_pid.len() == member.status.ns_pid.len() => {
                Ok(innermost(&parent.ns_pid))
            }
            Ok(_) => Ok(id::Pid::default()),
            Err(error) if error.is_gone() => Ok(id::Pid::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// The number of each living member's memory, in their order; counted by first appearance.
    pub fn memories(&self) -> &[usize] {
        &self.sharing.memories
    }

    /// Whether a member has its signal actions in common with its parent.
    pub fn shares_actions(&self, member: &Member) -> bool {
        self.sharing.actions.contains(&member.host)
    }

    /// The members that live.
    pub fn living(&self) -> impl Iterator<Item = (usize, &Member)> {
        self.members.iter().filter_map(|member| Some((member.place?, member)))
    }
}

impl Sight {
    fn glimpse(&self) -> Glimpse {
        Glimpse {
            flags: self.flags,
            store_bypass: self.status.store_bypass,
            indirect_branch: self.status.indirect_branch,
        }
    }
}

impl Member {
    /// Its own recorded id.
    pub fn recorded(&self) -> id::Pid {
        innermost(&self.status.ns_tgid)
    }

    /// Its process group, as the job sees it.
    pub fn group(&self) -> id::Pid {
        innermost(&self.status.ns_pgid)
    }

    /// Its session, as the job sees it.
    pub fn session(&self) -> id::Pid {
        innermost(&self.status.ns_sid)
    }
}

/// Counts everybody, and finds what about them cannot be restored.
///
/// # Errors
/// When /proc cannot be read.
pub(super) fn count(
    tree: &Tree,
    root: Pid,
    obstacles: &mut Vec<Obstacle>,
) -> Result<Census, CollectError> {
    let mut found = Vec::new();
    let mut ids = HashMap::new();
    let mut threads = HashMap::new();
    let mut sights = look_at_all(tree)?.into_iter();
    let own_cookie = task::core_cookie(getpid());
    for (place, process) in tree.processes().iter().enumerate() {
        let task = process.task();
        let of_process: Vec<Sight> = sights.by_ref().take(process.threads.len()).collect();
        let mut refuse = |kind| obstacles.push(Obstacle::State { pid: process.pid, kind });
        let mut status = None;
        for (thread, sight) in process.threads.iter().zip(&of_process) {
            ids.insert(thread.tid, innermost(&sight.status.ns_pid));
            threads.insert(thread.tid, sight.glimpse());
            check_task((process.pid, thread.tid), sight, own_cookie, &mut refuse)?;
            if thread.tid == task {
                status = Some(&sight.status);
            }
        }
        let status = match status {
            Some(status) => status.clone(),
            None => procfs::status(task)?,
        };
        check_rights(&status, &mut refuse);
        for (thread, sight) in process.threads.iter().zip(&of_process) {
            check_thread(thread.tid, (&status, sight), &mut refuse);
        }
        ids.insert(process.pid, innermost(&status.ns_tgid));
        found.push(Member { host: process.pid, task, status, place: Some(place) });
    }
    for zombie in tree.zombies() {
        let status = procfs::status(*zombie)?;
        ids.insert(*zombie, innermost(&status.ns_pid));
        found.push(Member { host: *zombie, task: *zombie, status, place: None });
    }
    // A zombie whose parent is outside of the job is the parent's affair.
    found.retain(|member| {
        member.place.is_some() || ids.contains_key(&Pid::from_raw(member.status.ppid))
    });
    check_namespaces(&found, root, obstacles)?;
    let members = parents_first(found);
    let sharing = find_sharing(&members, obstacles)?;
    Ok(Census { members, ids, threads, sharing })
}

/// Looks at all threads, in their order: on all processors at once, as these have nothing else to do while
/// the job stands still.
fn look_at_all(tree: &Tree) -> Result<Vec<Sight>, CollectError> {
    let mut all = Vec::new();
    for process in tree.processes() {
        all.extend(process.threads.iter().map(|thread| (process.pid, process.task(), thread.tid)));
    }
    let lookers = std::thread::available_parallelism().map_or(1, usize::from);
    let share = all.len().div_ceil(lookers).max(FEW_THREADS);
    let look = |share: &[(Pid, Pid, Pid)]| {
        share.iter().map(|(pid, task, tid)| look_at(*pid, *task, *tid)).collect::<Result<_, _>>()
    };
    let mut shares = all.chunks(share);
    let first = shares.next().unwrap_or_default();
    std::thread::scope(|scope| {
        let others: Vec<_> = shares.map(|share| scope.spawn(move || look(share))).collect();
        let mut sights: Vec<Sight> = look(first)?;
        for other in others {
            let seen: Result<Vec<Sight>, CollectError> =
                other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            sights.extend(seen?);
        }
        Ok(sights)
    })
}

/// Looks at one thread of the process `pid`, for which `task` stands.
fn look_at(pid: Pid, task: Pid, tid: Pid) -> Result<Sight, CollectError> {
    let mut owns = Vec::new();
    for (shared, what) in [
        (Shared::Descriptors, "descriptors"),
        (Shared::FileSystem, "a working directory and umask"),
    ] {
        if tid == task {
            continue;
        }
        let order = descriptor::compare_tasks(shared, task, tid).map_err(|source| {
            CollectError::Ask { operation: "compare the threads", pid: tid, source }
        })?;
        if order.is_ne() {
            owns.push(what);
        }
    }
    Ok(Sight {
        status: procfs::status(tid)?,
        flags: procfs::thread_stat(pid, tid)?.flags,
        cookie: task::core_cookie(tid),
        owns,
    })
}

/// Orders members so that each comes after its parent, keeping the order otherwise.
fn parents_first(mut rest: Vec<Member>) -> Vec<Member> {
    let mut ordered: Vec<Member> = Vec::with_capacity(rest.len());
    while !rest.is_empty() {
        let waiting: Vec<i32> = rest.iter().map(|member| member.host.as_raw()).collect();
        let (ready, later): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(|member| !waiting.contains(&member.status.ppid));
        let stuck = ready.is_empty();
        ordered.extend(ready);
        rest = later;
        // Parents form no circle; should /proc ever say so, the image's own check will refuse it.
        if stuck {
            ordered.append(&mut rest);
        }
    }
    ordered
}

/// The id in the innermost pid namespace.
fn innermost(ids: &[i32]) -> id::Pid {
    id::Pid(ids.last().copied().unwrap_or_default())
}

fn check_rights(status: &Status, refuse: &mut dyn FnMut(StateRefusal)) {
    let (own_user, own_group) = (geteuid().as_raw(), getegid().as_raw());
    if status.uids.iter().any(|uid| *uid != own_user) {
        refuse(StateRefusal::User { uids: status.uids, own: own_user });
    }
    if status.gids.iter().any(|gid| *gid != own_group) {
        refuse(StateRefusal::Group { gids: status.gids, own: own_group });
    }
    if status.seccomp != 0 {
        refuse(StateRefusal::Seccomp);
    }
    if !status.thread_features.is_empty() {
        refuse(StateRefusal::ThreadFeatures(status.thread_features.as_slice().into()));
    }
    if status.untag_mask != u64::MAX {
        refuse(StateRefusal::AddressMasking);
    }
}

/// Checks what each thread may have for itself that is not supported.
fn check_task(
    (pid, tid): (Pid, Pid),
    sight: &Sight,
    own_cookie: u64,
    refuse: &mut dyn FnMut(StateRefusal),
) -> Result<(), CollectError> {
    /// PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE, which together only PR_SET_IO_FLUSHER sets for good.
    const IO_FLUSHER: u32 = 0x0018_0000;
    let ask = |operation| move |source| CollectError::Ask { operation, pid, source };
    if sight.flags & IO_FLUSHER == IO_FLUSHER {
        refuse(StateRefusal::IoFlusher(tid));
    }
    if ptrace::dispatches_system_calls(tid).map_err(ask("read the system call dispatch"))? {
        refuse(StateRefusal::SystemCallDispatch(tid));
    }
    if ptrace::may_use_ports(tid).map_err(ask("read the port permissions"))? {
        refuse(StateRefusal::PortPermissions(tid));
    }
    if sight.cookie != own_cookie {
        refuse(StateRefusal::CoreScheduling(tid));
    }
    Ok(())
}

/// Checks that a thread shares with its process what all threads normally share.
fn check_thread(
    tid: Pid,
    (process, sight): (&Status, &Sight),
    refuse: &mut dyn FnMut(StateRefusal),
) {
    let thread = &sight.status;
    let rights = |status: &Status| {
        (status.uids, status.gids, status.groups.clone(), status.capabilities, status.no_new_privs)
    };
    if rights(process) != rights(thread) {
        refuse(StateRefusal::ThreadOwns { tid, what: "user and group ids or capabilities" });
    }
    if thread.seccomp != process.seccomp {
        refuse(StateRefusal::Seccomp);
    }
    for what in &sight.owns {
        refuse(StateRefusal::ThreadOwns { tid, what });
    }
}

/// Checks that all members live in the namespaces of the root, and that these are either rckpt's own
/// or those that an earlier restore made.
fn check_namespaces(
    members: &[Member],
    root: Pid,
    obstacles: &mut Vec<Obstacle>,
) -> Result<(), CollectError> {
    let me = getpid();
    let root = members.iter().find(|member| member.host == root).map_or(root, |found| found.task);
    let restored = lives_under_restore(root)?;
    for member in members.iter().filter(|member| member.place.is_some()) {
        let (pid, task) = (member.host, member.task);
        let mut refuse = |kind| obstacles.push(Obstacle::State { pid, kind });
        for name in COMMON_NAMESPACES {
            if namespace(task, name)? != namespace(me, name)? {
                refuse(StateRefusal::Namespace(name));
            }
        }
        let home = if restored { root } else { me };
        for name in OWN_NAMESPACES {
            if namespace(task, name)? != namespace(home, name)? {
                refuse(StateRefusal::Namespace(name));
            }
        }
        for (own, children) in FOR_CHILDREN {
            // A restored job's time namespace is entered by exec, as is everybody's.
            if namespace(task, own)? != namespace(task, children)? {
                refuse(StateRefusal::NamespaceForChildren(own));
            }
        }
    }
    Ok(())
}

/// Whether the process of a task descends from the init of a pid namespace other than rckpt's own, through at most
/// the process that has its old parent's id, as the roots of restored jobs do.
fn lives_under_restore(root: Pid) -> Result<bool, CollectError> {
    const GENERATIONS: usize = 2;
    if namespace(root, "pid")? == namespace(getpid(), "pid")? {
        return Ok(false);
    }
    let mut status = procfs::status(root)?;
    for _ in 0..GENERATIONS {
        if status.ppid == 0 {
            return Ok(false);
        }
        status = procfs::status(Pid::from_raw(status.ppid))?;
        if status.ns_pid.len() > 1 && status.ns_pid.last() == Some(&1) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What a namespace is known by; empty on a kernel that does not have that kind.
fn namespace(pid: Pid, name: &str) -> Result<PathBuf, CollectError> {
    match procfs::read_link(pid, &format!("ns/{name}")) {
        Ok(link) => Ok(link),
        Err(error) if error.is_gone() => Ok(PathBuf::new()),
        Err(error) => Err(error.into()),
    }
}

/// Finds processes that share memory without being threads of each other, and those among them that
/// share signal actions, too. Whether a restore can bring that about is decided with the tree's order
/// of births; only of actions no record says with whom they are shared.
fn find_sharing(
    members: &[Member],
    obstacles: &mut Vec<Obstacle>,
) -> Result<Sharing, CollectError> {
    let living: Vec<&Member> = members.iter().filter(|member| member.place.is_some()).collect();
    let compare = |what, operation| {
        move |left: &Member, right: &Member| {
            descriptor::compare_tasks(what, left.task, right.task)
                .map_err(|source| CollectError::Ask { operation, pid: left.host, source })
        }
    };
    let memory = compare(Shared::Memory, "compare the memory");
    let handlers = compare(Shared::SignalHandlers, "compare the signal actions");
    let memories =
        super::files::identity::number_classes(&living, |left, right| memory(left, right))?;
    let mut actions = HashSet::new();
    for (number, member) in living.iter().enumerate() {
        let same_memory = |other: &usize| memories[*other] == memories[number];
        let mut with = Vec::new();
        for other in (0..number).filter(same_memory) {
            if handlers(living[other], member)?.is_eq() {
                with.push(living[other].host);
            }
        }
        if with.contains(&Pid::from_raw(member.status.ppid)) {
            actions.insert(member.host);
        } else if let Some(other) = with.first() {
            let (pid, kind) = (member.host, StateRefusal::SharedActions(*other));
            obstacles.push(Obstacle::State { pid, kind });
        }
    }
    Ok(Sharing { memories, actions })
}
