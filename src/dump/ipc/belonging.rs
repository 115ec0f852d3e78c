//! Whether an object of System V IPC belongs to the job, to others, or to both.
//!
//! The kernel tells who made or used it last, and how often it is attached. That is all there is to
//! judge by: `judge` is a pure function of it.

use std::collections::HashMap;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, geteuid};

use super::super::census::Census;
use super::super::error::CollectError;
use crate::model::id;
use crate::sys::procfs;

/// Ticks in a second of the times in /proc/PID/stat (USER_HZ).
const TICKS: i64 = 100;

/// What is known of an object's users.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    /// How often it is attached, and how often by the job.
    pub attached: (u64, u64),
    /// Who made it; 0: not known.
    pub creator: i32,
    /// Who used it last.
    pub users: Vec<i32>,
    /// When it was made, or changed hands, in seconds since the epoch.
    pub changed: i64,
    /// The user who made it.
    pub owner: u32,
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
    /// When each process began that has been asked about, in seconds since the epoch.
    begun: HashMap<i32, Option<i64>>,
    /// When the first process of the job began.
    root_began: i64,
    /// Seconds between the epoch and the start of this machine.
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
        let booted = realtime.tv_sec() - boottime.tv_sec();
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
        let creator = self.who(claims.creator, claims.changed);
        let users: Vec<Who> =
            claims.users.iter().map(|pid| self.who(*pid, claims.changed)).collect();
        let ids: Vec<i32> = [claims.creator].iter().chain(&claims.users).copied().collect();
        let found: Vec<Who> = [creator].into_iter().chain(users).collect();
        // Times are cut off to whole seconds.
        let may_be_ours =
            claims.owner == geteuid().as_raw() && claims.changed + 1 >= self.root_began;
        judge(claims.attached, &ids, &found, may_be_ours)
    }

    /// An id that an object tells, as the job sees it.
    pub fn recorded(&self, pid: i32) -> id::Pid {
        let known = self.outer_ids.then(|| self.census.recorded(Pid::from_raw(pid))).flatten();
        known.unwrap_or(id::Pid(pid))
    }

    /// Who had this id when the object was last changed, or has had it since.
    fn who(&mut self, pid: i32, changed: i64) -> Who {
        if pid == 0 {
            return Who::Nobody;
        }
        if !self.outer_ids {
            return Who::Member;
        }
        match self.began(pid) {
            None => Who::Gone,
            // Another process that has the id by now.
            Some(began) if began > changed + 1 && !self.is_member(pid) => Who::Gone,
            Some(_) if self.is_member(pid) => Who::Member,
            Some(_) => Who::Outsider,
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
            Some(booted + i64::try_from(stat.starttime).ok()? / TICKS)
        })
    }
}

fn judge((attached, by_job): (u64, u64), ids: &[i32], found: &[Who], may_be_ours: bool) -> Whose {
    let outsider = found.iter().position(|who| *who == Who::Outsider);
    let outside = attached > by_job || outsider.is_some();
    let inside = by_job > 0 || found.contains(&Who::Member);
    match (inside, outside) {
        (true, true) => Whose::Both { user: outsider.and_then(|place| ids.get(place).copied()) },
        (true, false) => Whose::Job,
        (false, true) => Whose::Others,
        // Whoever used it has ended. If it is as old as the job at most, and its user's, it may be
        // the work of a helper of the job's; to save more than belongs to the job does no harm.
        (false, false) if may_be_ours => Whose::Perhaps,
        (false, false) => Whose::Others,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_find_their_owners() {
        use Who::{Gone, Member, Nobody, Outsider};
        let check = |attached, found: &[Who], may_be_ours, expected| {
            let judged = judge(attached, &[5, 6], found, may_be_ours);
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
    }
}
