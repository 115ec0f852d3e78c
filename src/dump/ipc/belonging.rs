//! Whether an object of System V IPC belongs to the job, to others, or to both.
//!
//! The kernel tells who made or used it last and when, in whole seconds, and how often it is attached. That
//! is all there is to judge by: `judge` is a pure function of it.
//!
//! Ids are given out again. A process that began after an object was last changed did not make it, and one
//! that began after its last use did not use it, whatever the number says. The other way round nothing
//! follows: permissions can be changed later (IPC_SET), which counts as a change.

use std::collections::HashMap;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, geteuid};

use super::super::census::Census;
use super::super::error::CollectError;
use crate::model::id;
use crate::sys::procfs;

/// Milliseconds in a tick of the times in /proc/PID/stat (USER_HZ).
const TICK: i64 = 10;

/// Milliseconds in a second.
const SECOND: i64 = 1000;

/// What is known of an object's users.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    /// How often it is attached, and how often by the job.
    pub attached: (u64, u64),
    /// Who made it.
    pub creator: Trace,
    /// Who used it last.
    pub users: Vec<Trace>,
    /// When it was made, or changed hands, in seconds since the epoch.
    pub changed: i64,
    /// The user who made it.
    pub owner: u32,
}

/// The id that a process has left in an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Trace {
    /// The id; 0: not known.
    pub pid: i32,
    /// When it was left at the latest, in seconds since the epoch.
    pub left: i64,
}

/// To whom an object belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// The job alone uses it.
    Job,
    /// Nobody uses it any more, and it may be the job's.
    Perhaps,
    /// The job has nothing to do with it.
    Others,
    /// The same, though a process of the job has the id of one who has made or used it.
    Namesake(i32),
    /// The job and somebody else.
    Both {
        /// Who else, when that is known.
        user: Option<i32>,
    },
}

/// Who a process id stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Nobody,
    Member,
    /// Ended, and a process of the job has its id by now.
    Namesake,
    Outsider,
    Gone,
}

/// The job's processes and what else there is.
#[derive(Debug)]
pub(super) struct Acquaintances<'a> {
    census: &'a Census,
    /// Whether the job shares its ipc namespace with others.
    shared: bool,
    /// Whether ids are those that rckpt sees, rather than the job's own.
    outer_ids: bool,
    /// When each process began that has been asked about, in milliseconds since the epoch.
    begun: HashMap<i32, Option<i64>>,
    /// When the first process of the job began.
    root_began: i64,
    /// Milliseconds between the epoch and the start of this machine.
    booted: i64,
}

impl<'a> Acquaintances<'a> {
    pub fn new(census: &'a Census, shared: bool, outer_ids: bool) -> Result<Self, CollectError> {
        let now = |what, clock| {
            clock_gettime(clock)
                .map_err(|errno| CollectError::Machine { what, source: errno.into() })
        };
        let realtime = now("the clock", ClockId::CLOCK_REALTIME)?;
        let boottime = now("the boot clock", ClockId::CLOCK_BOOTTIME)?;
        let booted = milliseconds(realtime) - milliseconds(boottime);
        let mut all =
            Self { census, shared, outer_ids, begun: HashMap::new(), root_began: 0, booted };
        let members = census.members.iter().map(|member| member.host.as_raw());
        let begun: Vec<i64> = members.filter_map(|pid| all.began(pid)).collect();
        all.root_began = begun.into_iter().min().unwrap_or_default();
        Ok(all)
    }

    /// To whom an object belongs.
    pub fn judge(&mut self, claims: &Claims) -> Whose {
        if !self.shared {
            return Whose::Job;
        }
        let traces: Vec<Trace> =
            [claims.creator].into_iter().chain(claims.users.iter().copied()).collect();
        let found: Vec<Who> = traces.iter().map(|trace| self.who(*trace)).collect();
        let may_be_ours =
            claims.owner == geteuid().as_raw() && !is_before(claims.changed, self.root_began);
        judge(claims.attached, &traces, &found, may_be_ours)
    }

    /// An id that an object tells, as the job sees it.
    pub fn recorded(&self, pid: i32) -> id::Pid {
        let known = self.outer_ids.then(|| self.census.recorded(Pid::from_raw(pid))).flatten();
        known.unwrap_or(id::Pid(pid))
    }

    /// Who has left a trace.
    fn who(&mut self, trace: Trace) -> Who {
        if trace.pid == 0 {
            return Who::Nobody;
        }
        if !self.outer_ids {
            return Who::Member;
        }
        let began = self.began(trace.pid);
        match (began, self.is_member(trace.pid)) {
            (None, _) => Who::Gone,
            (Some(began), true) if is_before(trace.left, began) => Who::Namesake,
            (Some(_), true) => Who::Member,
            (Some(began), false) if is_before(trace.left, began) => Who::Gone,
            (Some(_), false) => Who::Outsider,
        }
    }

    fn is_member(&self, pid: i32) -> bool {
        self.census.recorded(Pid::from_raw(pid)).is_some()
    }

    /// When a process began; `None` when there is none any more.
    fn began(&mut self, pid: i32) -> Option<i64> {
        let booted = self.booted;
        *self.begun.entry(pid).or_insert_with(|| {
            let stat = procfs::stat(Pid::from_raw(pid)).ok()?;
            // So is the copy of a process that an earlier checkpoint was read from.
            if matches!(stat.state, 'Z' | 'X') {
                return None;
            }
            Some(booted + i64::try_from(stat.starttime).ok()?.saturating_mul(TICK))
        })
    }
}

fn milliseconds(time: TimeSpec) -> i64 {
    time.tv_sec() * SECOND + time.tv_nsec() / 1_000_000
}

/// Whether the whole second `seconds` was over before `moment`, in milliseconds, with a second to spare
/// for clocks that are being corrected.
const fn is_before(seconds: i64, moment: i64) -> bool {
    const SPARE: i64 = 2;
    seconds.saturating_add(SPARE).saturating_mul(SECOND) <= moment
}

fn judge(
    (attached, by_job): (u64, u64),
    traces: &[Trace],
    found: &[Who],
    may_be_ours: bool,
) -> Whose {
    let left_by = |wanted: Who| {
        let place = found.iter().position(|who| *who == wanted)?;
        traces.get(place).map(|trace| trace.pid)
    };
    let outsider = left_by(Who::Outsider);
    let outside = attached > by_job || outsider.is_some();
    let inside = by_job > 0 || found.contains(&Who::Member);
    match (inside, outside) {
        (true, true) => Whose::Both { user: outsider },
        (true, false) => Whose::Job,
        (false, true) => Whose::Others,
        // Whoever used it has ended. If it is as old as the job at most, and its user's, it may be
        // the work of a helper of the job's; to save more than belongs to the job does no harm.
        (false, false) if may_be_ours => Whose::Perhaps,
        (false, false) => left_by(Who::Namesake).map_or(Whose::Others, Whose::Namesake),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_find_their_owners() {
        use Who::{Gone, Member, Namesake, Nobody, Outsider};
        let check = |attached, found: &[Who], may_be_ours, expected| {
            let traces = [5, 6].map(|pid| Trace { pid, left: 0 });
            let judged = judge(attached, &traces, found, may_be_ours);
            assert_eq!(judged, expected, "{attached:?} {found:?}");
        };
        check((0, 0), &[Member, Nobody], true, Whose::Job);
        check((2, 2), &[Gone, Gone], false, Whose::Job);
        check((3, 2), &[Member, Member], true, Whose::Both { user: None });
        check((0, 0), &[Member, Outsider], true, Whose::Both { user: Some(6) });
        check((1, 0), &[Gone, Gone], true, Whose::Others);
        check((0, 0), &[Outsider, Gone], true, Whose::Others);
        check((0, 0), &[Gone, Nobody], true, Whose::Perhaps);
        check((0, 0), &[Gone, Nobody], false, Whose::Others);
        check((0, 0), &[Gone, Namesake], false, Whose::Namesake(6));
        check((0, 0), &[Namesake, Gone], true, Whose::Perhaps);
        check((0, 0), &[Namesake, Member], false, Whose::Job);
        check((1, 0), &[Namesake, Gone], false, Whose::Others);
        check((1, 1), &[Namesake, Gone], false, Whose::Job);
    }

    #[test]
    fn a_second_that_was_cut_off_proves_nothing() {
        // Anything from 7.000 to 7.999, and a second to spare.
        assert!(is_before(7, 9_000));
        assert!(!is_before(7, 8_999));
        assert!(!is_before(7, 1_000));
        assert!(!is_before(i64::MAX, 1_000));
    }
}
