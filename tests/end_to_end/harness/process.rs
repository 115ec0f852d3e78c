//! Processes as /proc shows them: who descends from this test, what they have, and ending them all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// How long anything may take that is expected to happen soon.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks `question` until it has an answer; `None` when there was none in good time.
pub fn poll<T>(patience: Duration, mut question: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        let answer = question();
        if answer.is_some() || start.elapsed() > patience {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// Makes this test the adopter of every process that descends from it, so that none gets away.
pub fn adopt_orphans() {
    prctl::set_child_subreaper(true).expect("become a subreaper");
}

/// The parent of every process, and whether it has ended.
fn parents() -> BTreeMap<i32, (i32, bool)> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc").expect("read /proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that has ended meanwhile has no file, or an empty one.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let parent = fields(&stat).nth(1).and_then(|parent| parent.parse().ok());
        let Some(parent) = parent else { continue };
        parents.insert(pid, (parent, tells_end(&stat)));
    }
    parents
}

/// The fields of a /proc/pid/stat, from the state on.
fn fields(stat: &str) -> impl Iterator<Item = &str> {
    stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace()
}

/// Whether a process has ended, as its /proc/pid/stat tells. It has not when only its main thread has.
fn tells_end(stat: &str) -> bool {
    let (state, threads) = (fields(stat).next(), fields(stat).nth(17));
    state.is_none_or(|state| state == "X" || state == "Z" && threads == Some("1"))
}

/// Every process below `ancestor` that has not ended.
pub fn descendants(ancestor: Pid) -> BTreeSet<Pid> {
    let parents = parents();
    let mut below = BTreeSet::from([ancestor.as_raw()]);
    // Numbers wrap round, so a child's may be lower than its parent's: go on until nothing is new.
    loop {
        let before = below.len();
        for (pid, (parent, _)) in &parents {
            if below.contains(parent) {
                below.insert(*pid);
            }
        }
        if below.len() == before {
            break;
        }
    }
    below.remove(&ancestor.as_raw());
    below
        .into_iter()
        .filter(|pid| parents.get(pid).is_some_and(|(_, ended)| !ended))
        .map(Pid::from_raw)
        .collect()
}

/// The children of `parent` that have not ended, in the order of their numbers.
pub fn children(parent: Pid) -> Vec<Pid> {
    parents()
        .into_iter()
        .filter(|(_, (its_parent, ended))| *its_parent == parent.as_raw() && !ended)
        .map(|(pid, _)| Pid::from_raw(pid))
        .collect()
}

/// The child of `parent` that runs the program `name`: rckpt has others for a moment.
pub fn child_named(parent: Pid, name: &str) -> Option<Pid> {
    children(parent).into_iter().find(|pid| proc_text(*pid, "comm").trim_end() == name)
}

/// Who traces any thread of a process.
pub fn tracer(pid: Pid) -> Option<Pid> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let mut texts =
        tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
    texts.find_map(|text| {
        let word = text.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
        let number = word.trim().parse().ok().filter(|number| *number != 0)?;
        Some(Pid::from_raw(number))
    })
}

/// Ends everything that descends from this test, as if the machine had stopped: none of it sees
/// another end. All are stopped first, then killed, and reaped.
pub fn kill_descendants() {
    let stopped = poll(PATIENCE, || {
        let living = descendants(Pid::this());
        send(&living, Signal::SIGSTOP);
        living.iter().all(|pid| stands_still(*pid)).then_some(())
    });
    assert!(stopped.is_some(), "cannot be stopped: {:?}", descendants(Pid::this()));
    let gone = poll(PATIENCE, || {
        let living = descendants(Pid::this());
        send(&living, Signal::SIGKILL);
        reap_ended();
        living.is_empty().then_some(())
    });
    assert!(gone.is_some(), "still there after SIGKILL: {:?}", descendants(Pid::this()));
}

fn send(pids: &BTreeSet<Pid>, signal: Signal) {
    for pid in pids {
        match kill(*pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => (),
            Err(error) => panic!("{signal} to {pid}: {error}"),
        }
    }
}

/// Whether no thread of a process runs. One in uninterruptible sleep (vfork) does not, either.
fn stands_still(pid: Pid) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['T', 't', 'D', 'Z', 'X']))
    })
}

fn reap_ended() {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            Ok(_) | Err(Errno::EINTR) => (),
            Err(error) => panic!("wait for children: {error}"),
        }
    }
}

/// Waits for a child to end: its exit status as a shell would give it.
pub fn exit_status(pid: Pid, patience: Duration) -> Option<i32> {
    poll(patience, || match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(_, code)) => Some(code),
        Ok(WaitStatus::Signaled(_, signal, _)) => Some(128 + signal as i32),
        Ok(_) | Err(Errno::EINTR) => None,
        Err(error) => panic!("wait for {pid}: {error}"),
    })
}

/// Whether a child has ended, reaped or not.
pub fn has_ended(pid: Pid) -> bool {
    tells_end(&proc_text(pid, "stat"))
}

/// The file `name` of a process in /proc; empty when the process has ended.
pub fn proc_text(pid: Pid, name: &str) -> String {
    fs::read(format!("/proc/{pid}/{name}"))
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// The number after `field` in /proc/pid/status.
pub fn status_number(pid: Pid, field: &str) -> Option<u64> {
    proc_text(pid, "status")
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok())
}

/// What a checkpoint must not change in a process.
#[derive(Debug, PartialEq, Eq)]
pub struct Belongings {
    tracer: Option<u64>,
    state: String,
    mappings: Vec<String>,
    descriptors: BTreeMap<String, PathBuf>,
    children: Vec<Pid>,
    threads: BTreeSet<String>,
}

impl Belongings {
    /// How many mappings, descriptors and threads it has.
    pub fn sizes(&self) -> [usize; 3] {
        [self.mappings.len(), self.descriptors.len(), self.threads.len()]
    }
}

/// What the process has now.
pub fn belongings(pid: Pid) -> Belongings {
    let names = |pid: Pid, directory: &str| -> BTreeSet<String> {
        fs::read_dir(format!("/proc/{pid}/{directory}"))
            .expect("list a living process")
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    };
    let state = proc_text(pid, "status")
        .lines()
        .find_map(|line| line.strip_prefix("State:"))
        .is_some_and(|state| state.contains("(stopped)") || state.contains("(tracing stop)"));
    let threads = names(pid, "task");
    // The main thread may have ended; then any other shows what the process has.
    let last = threads.iter().max_by_key(|tid| (tid.len(), *tid)).and_then(|tid| tid.parse().ok());
    let task = last.map_or(pid, Pid::from_raw);
    Belongings {
        tracer: status_number(pid, "TracerPid"),
        state: String::from(if state { "stopped" } else { "going" }),
        mappings: proc_text(task, "maps").lines().map(String::from).collect(),
        descriptors: names(task, "fd")
            .into_iter()
            .filter_map(|number| {
                let target = fs::read_link(format!("/proc/{task}/fd/{number}")).ok()?;
                Some((number, target))
            })
            .collect(),
        children: children(pid),
        threads,
    }
}
