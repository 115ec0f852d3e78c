//! Whether a job still runs although nobody is in charge of it: its supervisor was killed, and it goes on,
//! as it should. Whoever wants to go on with the job must know, or there would be two of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{Pid, geteuid, getpid};

use super::run::{DIRECTORY_VARIABLE, JOB_VARIABLE};
use crate::model::id::Bytes;
use crate::sys::{procfs, relatives};

/// How often it is looked whether it has ended.
const INTERVAL: Duration = Duration::from_millis(50);
/// How often, at most, and after which time a process is looked at again that is in the middle of an exec.
const EXEC_LOOKS: usize = 20;
const EXEC_MOMENT: Duration = Duration::from_millis(1);

/// A process of `job` on this machine, by the variable that each process of it inherits. One that is
/// about to end is waited for, as long as `patience` lasts.
#[must_use]
pub fn process(job: &Bytes, patience: Duration) -> Option<Pid> {
    let begun = Instant::now();
    loop {
        let found = first(job)?;
        if begun.elapsed() > patience {
            return Some(found);
        }
        thread::sleep(INTERVAL);
    }
}

/// The job that `pid` is the first process of, by the same variable and the one that names its directory;
/// `None`: it is none's, or there are other processes of that job that do not descend from it.
#[must_use]
pub fn led_by(pid: Pid) -> Option<(Bytes, PathBuf)> {
    let (job, directory) = inherited(pid)?;
    let descends = |member: &Pid| relatives::ancestors(*member).is_ok_and(|it| it.contains(&pid));
    members(&job).iter().all(descends).then_some((job, directory))
}

/// The jobs that processes of mine belong to, whether supervised or not, and their directories when they were
/// started.
#[must_use]
pub fn jobs() -> BTreeMap<Bytes, PathBuf> {
    let all = procfs::processes().unwrap_or_default();
    let mine = |pid: &Pid| {
        *pid != getpid()
            && procfs::status(*pid).is_ok_and(|status| status.uids[1] == geteuid().as_raw())
    };
    all.into_iter().filter(mine).filter_map(inherited).collect()
}

/// What a process has inherited from the supervisor of its job: its name, and its directory.
fn inherited(pid: Pid) -> Option<(Bytes, PathBuf)> {
    let environment = environment(pid);
    let value = |name: &str| {
        let mut entries = environment.split(|byte| *byte == 0);
        let found = entries.find_map(|it| it.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
        Some(Bytes::from(found))
    };
    Some((value(JOB_VARIABLE)?, value(DIRECTORY_VARIABLE)?.as_path().to_owned()))
}

/// A process of `job` of which no other is the parent. Those that may not be looked into are of other users.
#[must_use]
pub fn first(job: &Bytes) -> Option<Pid> {
    let all = members(job);
    let is_first = |pid: &&Pid| {
        relatives::parent(**pid).is_ok_and(|parent| parent.is_none_or(|it| !all.contains(&it)))
    };
    all.iter().find(is_first).or(all.first()).copied()
}

/// All processes of a job, but for this one.
fn members(job: &Bytes) -> Vec<Pid> {
    let entry = [JOB_VARIABLE.as_bytes(), b"=", &job.0].concat();
    let mut all = procfs::processes().unwrap_or_default();
    all.retain(|pid| {
        *pid != getpid() && environment(*pid).split(|byte| *byte == 0).any(|other| other == entry)
    });
    all
}

/// What a process was started with; nothing where that may not be looked at. One in the middle of an exec
/// shows nothing for a moment, and is looked at again: a job that is missed would be started a second time.
fn environment(pid: Pid) -> Vec<u8> {
    let read = |name| procfs::read(pid, name).unwrap_or_default();
    // Kernel threads and what has ended have no program.
    let is_in_exec = || read("cmdline").is_empty() && procfs::read_link(pid, "exe").is_ok();
    let mut found = read("environ");
    for _ in 0..EXEC_LOOKS {
        if !(found.is_empty() && is_in_exec()) {
            break;
        }
        thread::sleep(EXEC_MOMENT);
        found = read("environ");
    }
    found
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use nix::unistd::Pid;

    use super::process;
    use crate::job::{identity, run::JOB_VARIABLE};

    #[test]
    fn a_job_is_found_by_what_its_processes_inherit() {
        let job = identity::new_id().unwrap();
        assert_eq!(process(&job, Duration::ZERO), None);
        let mut child =
            Command::new("sleep").arg("1000").env(JOB_VARIABLE, job.as_os_str()).spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        assert_eq!(process(&job, Duration::ZERO), Some(pid));
        assert!(!super::jobs().contains_key(&job), "it does not say where its directory is");
        child.kill().unwrap();
        // One that has ended runs no more, waited for or not.
        assert_eq!(process(&job, Duration::from_secs(10)), None);
        child.wait().unwrap();
    }
}
