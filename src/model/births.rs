//! In which order, and by whom, the processes of a job are forked so that parents, sessions and
//! groups come out as recorded.
//!
//! Pure. A process can only be given its session by being born into it, and its parent by being
//! forked by it or orphaned towards it. Where a session's or group's leader has ended, a stand-in with
//! the leader's id takes its place for a moment. A process that shares its parent's table of descriptors or
//! its memory is cloned by it later than all these, because `execve` would give it its own.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::model::code::{self, Code};
use crate::model::id::Pid;
use crate::model::job::Job;
use crate::model::process::Process;

/// What a forked process is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The process at this index of [`Job::processes`].
    Process(usize),
    /// A stand-in for a leader that has ended, or that passes a child on to the reaper. It ends
    /// before the job runs.
    StandIn,
}

/// One fork and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Birth {
    /// The id to be born with; `None`: any, for a stand-in that leads nothing.
    pub pid: Option<Pid>,
    /// What it is.
    pub role: Role,
    /// Signal that its parent gets at its end.
    pub exit_signal: i32,
    /// Whether it shares working directory, root and umask with the process that forks it.
    pub shares_fs: bool,
    /// Whether it adopts orphans (PR_SET_CHILD_SUBREAPER), which its children's forks rely on.
    pub adopts: bool,
    /// Children forked before `new_session`.
    pub earlier: Vec<Birth>,
    /// Whether it leads a session of its own.
    pub new_session: bool,
    /// Children forked after that.
    pub later: Vec<Birth>,
    /// The process group to join or found, once everybody is born; `None`: the one it was born into.
    pub group: Option<Pid>,
    /// Children that share its table of descriptors or its memory, cloned once it has executed its
    /// restorer.
    pub sharers: Vec<Sharer>,
}

impl Birth {
    /// This birth and all that follow from it.
    pub fn all(&self) -> Box<dyn Iterator<Item = &Self> + '_> {
        let children = self.earlier.iter().chain(&self.later);
        Box::new(std::iter::once(self).chain(children.flat_map(Self::all)))
    }
}

/// A child that shares its parent's table of descriptors, its memory, or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sharer {
    /// Its index in [`Job::processes`].
    pub index: usize,
    /// Whether it shares its parent's table of descriptors.
    pub shares_table: bool,
    /// Whether it shares its parent's memory.
    pub shares_memory: bool,
    /// Whether it shares working directory, root and umask with its parent, too.
    pub shares_fs: bool,
    /// The process group to join or found; `None`: its parent's.
    pub group: Option<Pid>,
    /// Its own children that share its table or its memory.
    pub sharers: Vec<Sharer>,
}

/// What a [`Sharer`] shares, for messages.
const TABLE: &str = "table of descriptors (CLONE_FILES)";
const MEMORY: &str = "memory (CLONE_VM)";

/// Why a tree cannot be built again.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum BirthError {
    #[error(
        "process {pid} belongs to session {session}, whose leader has ended, but its parent {parent} \
         belongs to another one and adopts no orphans: no order of forks leads there"
    )]
    FindSession { pid: Pid, session: Pid, parent: Pid },
    #[error(
        "processes {one} and {other} share one {what} without being parent and child: no order of \
         forks leads there"
    )]
    Share { one: Pid, other: Pid, what: &'static str },
    #[error(
        "process {pid} shares the {what} of its parent {parent} and {obstacle}, which is not supported"
    )]
    Clone { pid: Pid, parent: Pid, what: &'static str, obstacle: &'static str },
    #[error(
        "process {pid} was cloned so that its end is told by signal {signal} instead of SIGCHLD (clone, \
         exit_signal), which is not supported"
    )]
    ExitSignal { pid: Pid, signal: i32 },
}

impl BirthError {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::FindSession { .. } => code::processes::SESSION_WITHOUT_LEADER,
            Self::Share { .. } => code::processes::SHARED_BETWEEN_SIBLINGS,
            Self::Clone { .. } => code::processes::SHARED_TABLE,
            Self::ExitSignal { .. } => code::processes::EXIT_SIGNAL,
        }
    }
}

/// Plans the births of all processes of `job`. The result are the processes forked by the job's
/// reaper, the process that plays everybody's parent outside.
///
/// # Errors
/// When no order of forks leads to the recorded tree.
pub fn plan(job: &Job) -> Result<Vec<Birth>, BirthError> {
    check_sharing(job)?;
    let by_pid: BTreeMap<Pid, usize> =
        job.processes.iter().enumerate().map(|(index, process)| (process.pid, index)).collect();
    let outside = Outside::of(job, &by_pid);
    let mut planner =
        Planner { job, by_pid, outside, adopted: BTreeMap::new(), founded: BTreeSet::new() };
    planner.find_adopted();
    let mut births = Vec::new();
    for index in 0..job.processes.len() {
        if planner.parent(index).is_none() && !planner.is_adopted(index) {
            births.push(planner.birth(index)?);
        }
    }
    planner.add_dead_sessions(None, &mut births)?;
    Ok(births)
}

/// Directories, tables of descriptors and memory can only be shared with a parent.
fn check_sharing(job: &Job) -> Result<(), BirthError> {
    let mut users: BTreeMap<(&'static str, u32), BTreeSet<Pid>> = BTreeMap::new();
    for process in job.processes.iter().filter(|process| !process.is_zombie()) {
        for (what, number) in [
            ("table of descriptors", process.fd_table.0),
            ("working directory", process.fs.0),
            ("address space", process.mm.0),
        ] {
            let others = users.entry((what, number)).or_default();
            check_parent_shares(process, others, what)?;
        }
    }
    Ok(())
}

/// Notes that `process` shares something with `others`, which must be nobody or include its parent.
fn check_parent_shares(
    process: &Process,
    others: &mut BTreeSet<Pid>,
    what: &'static str,
) -> Result<(), BirthError> {
    match others.first() {
        Some(other) if !others.contains(&process.ppid) => {
            Err(BirthError::Share { one: *other, other: process.pid, what })
        }
        _ => {
            others.insert(process.pid);
            Ok(())
        }
    }
}

/// Where an adopted orphan is born.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Birthplace {
    /// Under the leader of its session, which lives.
    Leader(usize),
    /// In a new session of this id under who adopted it: a process of the job, or the reaper.
    NewSession(Option<usize>, Pid),
}

/// The session and group that the job's root was started in by others.
struct Outside {
    session: Option<Pid>,
    group: Option<Pid>,
}

impl Outside {
    fn of(job: &Job, by_pid: &BTreeMap<Pid, usize>) -> Self {
        let root = by_pid.get(&job.root).map(|index| &job.processes[*index]);
        let unless_inside = |pid: Pid| (!by_pid.contains_key(&pid)).then_some(pid);
        Self {
            session: root.and_then(|root| unless_inside(root.sid)),
            group: root.and_then(|root| unless_inside(root.pgid)),
        }
    }
}

struct Planner<'a> {
    job: &'a Job,
    by_pid: BTreeMap<Pid, usize>,
    outside: Outside,
    /// Orphans that cannot simply be forked by who adopted them, because their session is another one.
    /// They are forked through a stand-in, in which their session lives: a child of the session's
    /// leader when that lives, or else a new leader with its id.
    adopted: BTreeMap<Birthplace, Vec<usize>>,
    /// Groups whose leaders have ended and that a stand-in founds already.
    founded: BTreeSet<Pid>,
}

impl Planner<'_> {
    /// The index of a process's parent, when that is in the job.
    fn parent(&self, index: usize) -> Option<usize> {
        self.by_pid.get(&self.job.processes[index].ppid).copied()
    }

    /// Whether `index` has been adopted out of another session than its parent's.
    fn is_adopted(&self, index: usize) -> bool {
        let process = &self.job.processes[index];
        if process.sid == process.pid {
            return false;
        }
        match self.parent(index) {
            None => Some(process.sid) != self.outside.session,
            Some(parent) => {
                let adopter = &self.job.processes[parent];
                adopter.child_subreaper
                    && process.sid != adopter.sid
                    && process.sid != self.native_session(parent)
            }
        }
    }

    fn find_adopted(&mut self) {
        for index in 0..self.job.processes.len() {
            if !self.is_adopted(index) {
                continue;
            }
            let session = self.job.processes[index].sid;
            let place = match self.by_pid.get(&session) {
                Some(leader) => Birthplace::Leader(*leader),
                None => Birthplace::NewSession(self.parent(index), session),
            };
            self.adopted.entry(place).or_default().push(index);
        }
    }

    /// The session that a process is in when it is born.
    fn native_session(&self, index: usize) -> Pid {
        let process = &self.job.processes[index];
        if process.sid != process.pid {
            return process.sid;
        }
        match self.parent(index) {
            Some(parent) => self.job.processes[parent].sid,
            None => self.outside.session.unwrap_or(process.sid),
        }
    }

    fn birth(&mut self, index: usize) -> Result<Birth, BirthError> {
        let process = &self.job.processes[index];
        // A process that executes a program, as the restorer is one, goes back to SIGCHLD.
        let pid = process.pid;
        match process.exit_signal {
            libc::SIGCHLD => {}
            _ if process.is_zombie() || self.parent(index).is_none() => {}
            signal => return Err(BirthError::ExitSignal { pid, signal }),
        }
        let new_session = process.sid == process.pid;
        let mut earlier = Vec::new();
        let mut later = Vec::new();
        let mut sharers = Vec::new();
        for child in 0..self.job.processes.len() {
            if self.parent(child) != Some(index) {
                continue;
            }
            if self.is_adopted(child) {
                continue;
            }
            if self.shares_table(index, child) || self.shares_memory(index, child) {
                sharers.push(self.sharer(index, child)?);
                continue;
            }
            let wanted = &self.job.processes[child];
            let leads = wanted.sid == wanted.pid;
            if leads || wanted.sid == process.sid {
                later.push(self.birth(child)?);
            } else if new_session && wanted.sid == self.native_session(index) {
                earlier.push(self.birth(child)?);
            } else {
                return Err(BirthError::FindSession {
                    pid: wanted.pid,
                    session: wanted.sid,
                    parent: process.pid,
                });
            }
        }
        for orphan in self.adopted.remove(&Birthplace::Leader(index)).unwrap_or_default() {
            later.push(self.passed_on(orphan)?);
        }
        self.add_dead_sessions(Some(index), &mut later)?;
        let group = self.group(process.pgid, process.sid);
        if let Some(group) = group
            && group != process.pid
            && !self.by_pid.contains_key(&group)
            && self.founded.insert(group)
        {
            later.push(stand_in(Some(group), Some(group)));
        }
        Ok(Birth {
            pid: Some(process.pid),
            role: Role::Process(index),
            exit_signal: process.exit_signal,
            shares_fs: self.parent(index).is_some_and(|parent| self.shares_fs(parent, index)),
            adopts: process.child_subreaper,
            earlier,
            new_session,
            later,
            group,
            sharers,
        })
    }

    /// A child that is cloned with its parent's table of descriptors or memory. It has run no program of
    /// ours that could fork others, lead sessions or wait for groups.
    fn sharer(&self, parent: usize, index: usize) -> Result<Sharer, BirthError> {
        let [process, other] = [index, parent].map(|index| &self.job.processes[index]);
        let shares_table = self.shares_table(parent, index);
        let shares_memory = self.shares_memory(parent, index);
        let what = if shares_memory { MEMORY } else { TABLE };
        let unsupported = |obstacle| {
            Err(BirthError::Clone { pid: process.pid, parent: other.pid, what, obstacle })
        };
        if process.sid != other.sid {
            return unsupported("is in another session");
        }
        let known = process.pgid == process.pid || self.by_pid.contains_key(&process.pgid);
        if process.pgid != other.pgid && !known {
            return unsupported("is in a group whose leader has ended");
        }
        let mut sharers = Vec::new();
        for child in 0..self.job.processes.len() {
            if self.parent(child) != Some(index) {
                continue;
            }
            match (self.shares_table(index, child), self.shares_memory(index, child)) {
                (false, false) => return unsupported("has children that do not share it"),
                // Its memory would come after everybody's has been filled.
                (true, false) if shares_memory => {
                    return unsupported(
                        "has children that share its descriptors alone (CLONE_FILES)",
                    );
                }
                // What such a child has open is there as long as nobody has closed it for the table.
                (false, true) if shares_table => {
                    return unsupported("has children that share its memory alone (CLONE_VM)");
                }
                _ => sharers.push(self.sharer(index, child)?),
            }
        }
        Ok(Sharer {
            index,
            shares_table,
            shares_memory,
            shares_fs: self.shares_fs(parent, index),
            group: (process.pgid != other.pgid).then_some(process.pgid),
            sharers,
        })
    }

    /// The group to set: none where it is the outer one, which everybody is born into.
    fn group(&self, group: Pid, session: Pid) -> Option<Pid> {
        let outer = Some(group) == self.outside.group && Some(session) == self.outside.session;
        (!outer && group != session).then_some(group)
    }

    fn shares_fs(&self, one: usize, other: usize) -> bool {
        let [one, other] = [one, other].map(|index| &self.job.processes[index]);
        !one.is_zombie() && !other.is_zombie() && one.fs == other.fs
    }

    fn shares_table(&self, one: usize, other: usize) -> bool {
        let [one, other] = [one, other].map(|index| &self.job.processes[index]);
        !one.is_zombie() && !other.is_zombie() && one.fd_table == other.fd_table
    }

    fn shares_memory(&self, one: usize, other: usize) -> bool {
        let [one, other] = [one, other].map(|index| &self.job.processes[index]);
        !one.is_zombie() && !other.is_zombie() && one.mm == other.mm
    }

    /// A stand-in that forks `orphan` and ends, so that the orphan is the reaper's.
    fn passed_on(&mut self, orphan: usize) -> Result<Birth, BirthError> {
        let mut between = stand_in(None, None);
        between.later.push(self.birth(orphan)?);
        Ok(between)
    }

    /// Sessions whose leaders have ended, of orphans that `adopter` has: a stand-in with the leader's
    /// id founds each.
    fn add_dead_sessions(
        &mut self,
        adopter: Option<usize>,
        births: &mut Vec<Birth>,
    ) -> Result<(), BirthError> {
        let sessions: Vec<Pid> = self
            .adopted
            .keys()
            .filter_map(|place| match place {
                Birthplace::NewSession(by, session) if *by == adopter => Some(*session),
                _ => None,
            })
            .collect();
        for session in sessions {
            let mut leader = stand_in(Some(session), None);
            leader.new_session = true;
            let place = Birthplace::NewSession(adopter, session);
            for orphan in self.adopted.remove(&place).unwrap_or_default() {
                leader.later.push(self.birth(orphan)?);
            }
            births.push(leader);
        }
        Ok(())
    }
}

fn stand_in(pid: Option<Pid>, group: Option<Pid>) -> Birth {
    Birth {
        pid,
        role: Role::StandIn,
        exit_signal: libc::SIGCHLD,
        shares_fs: false,
        adopts: false,
        earlier: Vec::new(),
        new_session: false,
        later: Vec::new(),
        group,
        sharers: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Birth, BirthError, Role, plan};
    use crate::model::id::{Bytes, FdTableId, FsId, MmId, Pid};
    use crate::model::job::Job;
    use crate::model::process::{Credentials, Process, ProcessState};

    /// A job of processes given as (pid, ppid, pgid, sid); the first is the root.
    fn job(processes: &[(i32, i32, i32, i32)]) -> Job {
        let mut job = Job { root: Pid(processes[0].0), ..Job::default() };
        for (index, (pid, ppid, pgid, sid)) in (0..).zip(processes) {
            job.processes.push(Process {
                pid: Pid(*pid),
                ppid: Pid(*ppid),
                pgid: Pid(*pgid),
                sid: Pid(*sid),
                exit_signal: libc::SIGCHLD,
                state: ProcessState::Alive,
                threads: Vec::new(),
                main_ended: None,
                name: Bytes::default(),
                mm: MmId(index),
                fd_table: FdTableId(index),
                fs: FsId(index),
                shares_actions: false,
                actions: Vec::new(),
                pending: Vec::new(),
                interval_timers: Default::default(),
                posix_timers: Vec::new(),
                limits: Vec::new(),
                credentials: Credentials::default(),
                personality: 0,
                child_subreaper: false,
                oom_score_adj: 0,
                tsc_mode: 0,
                cpuid_faults: false,
                autogroup_nice: None,
                controlling_terminal: false,
            });
        }
        job
    }

    /// Writes births as `pid[earlier|s later]gGROUP`, `s` for a new session.
    fn shape(births: &[Birth]) -> String {
        births
            .iter()
            .map(|birth| {
                let name = match (birth.role, birth.pid) {
                    (Role::Process(_), Some(pid)) => pid.to_string(),
                    (_, Some(pid)) => format!("~{pid}"),
                    (_, None) => "~".to_owned(),
                };
                let session = if birth.new_session { "s" } else { "" };
                let group = birth.group.map(|group| format!("g{group}")).unwrap_or_default();
                let (earlier, later) = (shape(&birth.earlier), shape(&birth.later));
                format!("{name}[{earlier}|{session} {later}]{group}")
            })
            .collect::<Vec<_>>()
            .join(",")
    }

    #[test]
    fn trees_are_born_in_an_order_that_works() {
        let check = |processes: &[(i32, i32, i32, i32)], expected: &str| {
            let births = plan(&job(processes)).map(|births| shape(&births));
            assert_eq!(births.as_deref(), Ok(expected), "{processes:?}");
        };
        // A root in the shell's session and group.
        check(&[(10, 9, 9, 5)], "10[| ]");
        // It leads its own session, with a child in it and one in a group of its own.
        check(&[(10, 9, 10, 10), (11, 10, 10, 10), (12, 10, 12, 10)], "10[|s 11[| ],12[| ]g12]");
        // A child that was forked before its parent's setsid.
        check(&[(10, 9, 9, 5), (11, 10, 11, 11), (12, 11, 9, 5)], "10[| 11[12[| ]|s ]]");
        // A group whose leader has ended: one stand-in for both members.
        check(
            &[(10, 9, 10, 10), (11, 10, 20, 10), (12, 10, 20, 10)],
            "10[|s 11[| ~20[| ]g20]g20,12[| ]g20]",
        );
        // A daemon: session leader gone, adopted by the reaper.
        check(&[(10, 9, 9, 5), (31, 9, 30, 30)], "10[| ],~30[|s 31[| ]]");
        // An orphan that is still in its live leader's session.
        check(&[(10, 9, 10, 10), (31, 9, 10, 10)], "10[|s ~[| 31[| ]]]");
    }

    #[test]
    fn a_subreaper_adopts_out_of_other_sessions() {
        let mut adopting =
            job(&[(10, 9, 9, 5), (31, 10, 30, 30), (40, 10, 40, 40), (41, 10, 40, 40)]);
        adopting.processes[0].child_subreaper = true;
        let births = plan(&adopting).unwrap();
        assert_eq!(shape(&births), "10[| 40[|s ~[| 41[| ]]],~30[|s 31[| ]]]");
        assert!(births[0].adopts);
    }

    #[test]
    fn sharers_of_a_table_are_cloned_by_their_parents() {
        let mut shared = job(&[(10, 9, 9, 5), (11, 10, 11, 5), (12, 11, 11, 5), (13, 10, 9, 5)]);
        for index in [1, 2] {
            shared.processes[index].fd_table = FdTableId(0);
        }
        let births = plan(&shared).unwrap();
        assert_eq!(shape(&births), "10[| 13[| ]]");
        let [sharer] = births[0].sharers.as_slice() else { panic!("{births:?}") };
        assert_eq!((sharer.index, sharer.group), (1, Some(Pid(11))));
        assert_eq!(sharer.sharers[0].index, 2);

        // Brothers without their parent, and a sharer with a child of its own kind.
        let mut brothers = job(&[(10, 9, 9, 5), (11, 10, 9, 5), (12, 10, 9, 5)]);
        brothers.processes[2].fd_table = FdTableId(1);
        assert!(matches!(plan(&brothers), Err(BirthError::Share { .. })));
        shared.processes[2].fd_table = FdTableId(2);
        assert!(matches!(plan(&shared), Err(BirthError::Clone { .. })));
    }

    #[test]
    fn sharers_of_memory_are_cloned_by_their_parents() {
        // 11 shares everything with 10, as does 12 with 11; 13 only the memory.
        let mut shared = job(&[(10, 9, 9, 5), (11, 10, 9, 5), (12, 11, 9, 5), (13, 10, 9, 5)]);
        for index in [1, 2] {
            shared.processes[index].fd_table = FdTableId(0);
        }
        shared.processes.iter_mut().for_each(|process| process.mm = MmId(0));
        let births = plan(&shared).unwrap();
        assert_eq!(shape(&births), "10[| ]");
        let kinds = |sharers: &[super::Sharer]| -> Vec<(usize, bool, bool)> {
            let kind = |it: &super::Sharer| (it.index, it.shares_table, it.shares_memory);
            sharers.iter().map(kind).collect()
        };
        assert_eq!(kinds(&births[0].sharers), [(1, true, true), (3, false, true)]);
        assert_eq!(kinds(&births[0].sharers[0].sharers), [(2, true, true)]);

        // Brothers, a child that shares nothing, and one whose table is its own below a shared one.
        let mut brothers = job(&[(10, 9, 9, 5), (11, 10, 9, 5), (12, 10, 9, 5)]);
        brothers.processes[2].mm = MmId(1);
        assert!(matches!(plan(&brothers), Err(BirthError::Share { .. })));
        let refused = |change: fn(&mut Process)| {
            let mut job = shared.clone();
            change(&mut job.processes[2]);
            assert!(matches!(plan(&job), Err(BirthError::Clone { .. })));
        };
        refused(|process| process.fd_table = FdTableId(2));
        refused(|process| process.mm = MmId(2));
        refused(|process| (process.fd_table, process.mm) = (FdTableId(2), MmId(2)));
        refused(|process| process.sid = Pid(12));
    }

    #[test]
    fn what_no_order_reaches_is_refused() {
        let error = plan(&job(&[(10, 9, 9, 5), (11, 10, 30, 30)])).unwrap_err();
        let expected = BirthError::FindSession { pid: Pid(11), session: Pid(30), parent: Pid(10) };
        assert_eq!(error, expected);
    }

    #[test]
    fn a_signal_that_no_program_keeps_is_refused() {
        let mut family = job(&[(10, 9, 9, 5), (11, 10, 9, 5)]);
        family.processes[0].exit_signal = 0;
        plan(&family).unwrap();
        family.processes[1].exit_signal = libc::SIGUSR2;
        let expected = BirthError::ExitSignal { pid: Pid(11), signal: libc::SIGUSR2 };
        assert_eq!(plan(&family), Err(expected));
        family.processes[1].state = ProcessState::Zombie { wait_status: 0 };
        plan(&family).unwrap();
    }
}
