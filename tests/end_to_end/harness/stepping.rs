//! Runs a command call by call: its system calls are counted, and it is killed at a chosen one.

use std::collections::HashSet;
use std::fs;

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, gettid};

use super::process;
use super::workplace::{Workplace, rckpt_binary};

/// What has calls told from signals.
const CALLS: Options = Options::PTRACE_O_TRACESYSGOOD;

/// What has threads followed, and new processes that do not tell their parent of their end by SIGCHLD.
const THREADS: Options = CALLS.union(Options::PTRACE_O_TRACECLONE);

/// What has new processes followed.
const PROCESSES: Options = Options::PTRACE_O_TRACEFORK.union(Options::PTRACE_O_TRACEVFORK);

/// Who is killed at the chosen call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// Every process of the command.
    All,
    /// The process that makes the call; the others notice.
    Caller,
}

/// Whose calls are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those of all processes that come from the command.
    All,
    /// Those of the command's own process and of its children, not of theirs: in a restore these become
    /// the job's, and it must hold them itself.
    Children,
}

/// Where a command is killed.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// The number of the call, from 1, at whose entry it happens.
    pub call: u64,
    /// Who is killed.
    pub victim: Victim,
}

/// Runs rckpt with these words to its end, or until it is killed at `point`. Other children of this test must not end meanwhile.
pub fn run(place: &Workplace, words: &[&str], scope: Scope, point: Option<Point>) -> Outcome {
    // It waits until it is held.
    let mut held = place.command("sh");
    held.args(["-c", "kill -STOP $$; exec \"$@\"", "sh"]);
    held.arg(rckpt_binary()).args(words);
    let root = place.start(held);
    let stopped = waitpid(root, Some(WaitPidFlag::WUNTRACED)).expect("it is ours");
    assert!(matches!(stopped, WaitStatus::Stopped(..)), "{stopped:?}");
    ptrace::seize(root, THREADS | PROCESSES).expect("it can be traced");
    kill(root, Signal::SIGCONT).expect("it is not reaped yet");
    let mut steps = Steps::new(root, scope, HashSet::from([root]));
    let ended = steps.run(point);
    Outcome { calls: steps.calls, succeeded: ended == Some(WaitStatus::Exited(root, 0)) }
}

/// Has the supervisor of a job killed at `point` of what it does for `client`, a child of this test that
/// asks it for something, or when that has its answer: how many calls it has made by then.
pub fn run_supervisor(supervisor: Pid, client: impl FnOnce() -> Pid, point: Option<Point>) -> u64 {
    let threads = fs::read_dir(format!("/proc/{supervisor}/task")).expect("its threads");
    let threads = threads.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let living: HashSet<Pid> = threads.map(Pid::from_raw).collect();
    for thread in &living {
        ptrace::seize(*thread, THREADS | PROCESSES).expect("it can be traced");
        ptrace::interrupt(*thread).expect("it is there");
    }
    let mut steps = Steps::new(client(), Scope::All, living);
    steps.run(point);
    steps.calls
}

/// What became of a command.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// How many calls it has made.
    pub calls: u64,
    /// Whether it ended by itself, with exit status 0.
    pub succeeded: bool,
}

/// A command on its way.
struct Steps {
    /// The command, or whoever asked it.
    root: Pid,
    scope: Scope,
    /// Its threads.
    living: HashSet<Pid>,
    /// Those that have stopped before.
    seen: HashSet<Pid>,
    /// Those that are in a call.
    inside: HashSet<Pid>,
    calls: u64,
}

impl Steps {
    fn new(root: Pid, scope: Scope, living: HashSet<Pid>) -> Self {
        Self { root, scope, seen: living.clone(), living, inside: HashSet::new(), calls: 0 }
    }

    /// Goes on to the end of all: how the command ended.
    fn run(&mut self, point: Option<Point>) -> Option<WaitStatus> {
        let mut ended = None;
        while !self.living.is_empty() {
            let status = waitpid(None, Some(WaitPidFlag::__WALL)).expect("it has not ended");
            match status {
                WaitStatus::Exited(thread, _) | WaitStatus::Signaled(thread, ..) => {
                    let traced = self.living.remove(&thread);
                    if thread == self.root {
                        ended = Some(status);
                        if !traced {
                            // Whoever asked has its answer.
                            self.kill(thread, Victim::All);
                        }
                    }
                }
                WaitStatus::PtraceSyscall(thread) => {
                    if self.inside.remove(&thread) {
                        go_on(thread, None);
                        continue;
                    }
                    self.inside.insert(thread);
                    self.calls += 1;
                    if let Some(Point { call, victim }) = point
                        && call == self.calls
                    {
                        self.kill(thread, victim);
                    } else {
                        go_on(thread, None);
                    }
                }
                WaitStatus::PtraceEvent(thread, ..) => {
                    // Known from its birth on, so that it is not forgotten when its parent is killed.
                    if let Some(child) = child_of(thread) {
                        self.living.insert(child);
                    }
                    if self.seen.insert(thread) && self.scope == Scope::Children {
                        tolerate_end(ptrace::setoptions(thread, CALLS));
                    }
                    go_on(thread, None);
                }
                WaitStatus::Stopped(thread, signal) => {
                    self.living.insert(thread);
                    go_on(thread, Some(signal));
                }
                WaitStatus::Continued(_) | WaitStatus::StillAlive => {}
            }
        }
        ended
    }

    fn kill(&self, caller: Pid, victim: Victim) {
        let victims = match victim {
            Victim::All => self.living.iter().copied().collect(),
            Victim::Caller => vec![caller],
        };
        for thread in victims {
            tolerate_end(kill(thread, Signal::SIGKILL));
        }
    }
}

/// The thread or process that a thread which has stopped for that has just made.
fn child_of(thread: Pid) -> Option<Pid> {
    // Other stops have other messages: none is the number of somebody who is traced by us.
    let message = ptrace::getevent(thread).ok()?;
    let child = Pid::from_raw(i32::try_from(message).ok()?);
    let tracer = process::status_number(child, "TracerPid")?;
    (u64::try_from(gettid().as_raw()) == Ok(tracer)).then_some(child)
}

fn go_on(thread: Pid, signal: Option<Signal>) {
    tolerate_end(ptrace::syscall(thread, signal));
}

/// A thread may be killed together with others of its process.
fn tolerate_end(outcome: nix::Result<()>) {
    assert!(matches!(outcome, Ok(()) | Err(Errno::ESRCH)), "{outcome:?}");
}
