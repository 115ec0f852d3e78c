//! Runs a command call by call: its system calls are noted, and at a chosen one it is killed, or told
//! that the call failed.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, gettid};

use super::faults::{self, Call, Fault, Mending};
use super::process::{self, PATIENCE, poll};
use super::storage::{self, Step};
use super::workplace::{Workplace, rckpt_binary};

/// What has calls told from signals.
const CALLS: Options = Options::PTRACE_O_TRACESYSGOOD;

/// What has threads followed, and new processes that do not tell their parent of their end by SIGCHLD.
const THREADS: Options = CALLS.union(Options::PTRACE_O_TRACECLONE);

/// What has new processes followed.
const PROCESSES: Options = Options::PTRACE_O_TRACEFORK.union(Options::PTRACE_O_TRACEVFORK);

/// After so long a command is taken for one that hangs, and killed.
const LONGEST: Duration = Duration::from_secs(100);

/// The status of a command that tells the end of its own child by SIGABRT.
const ABORTED: i32 = 128 + Signal::SIGABRT as i32;

/// The file that holds what a command says.
const WORDS: &str = "stepped.err";

/// Who is killed at the chosen call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// Every process of the command.
    All,
    /// The process that makes the call; the others notice.
    Caller,
}

/// What happens at the chosen call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Somebody is killed.
    Kill(Victim),
    /// The call, or the next one that has this number and can fail, does so: with that of its plausible
    /// errors whose turn it is, counted round and round. No two runs make quite the same calls.
    Fail {
        /// SYS_*.
        number: i64,
        /// Which of the errors.
        turn: usize,
    },
}

/// Whose calls are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those of all processes that come from the command.
    All,
    /// Those of the command's own process only: it makes the job's itself.
    Own,
    /// Those of the command's own process and of its children, not of theirs: in a restore these become
    /// the job's, and it must hold them itself.
    Children,
    /// Those of its grandchildren, too: in namespaces, the one that opens files.
    Grandchildren,
}

impl Scope {
    /// How many generations below the command are looked at.
    const fn depth(self) -> usize {
        match self {
            Self::All => usize::MAX,
            Self::Own => 0,
            Self::Children => 1,
            Self::Grandchildren => 2,
        }
    }
}

/// Where something happens to a command.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// The number of the call, from 1, at whose entry it happens.
    pub call: usize,
    /// What happens.
    pub deed: Deed,
}

/// Runs rckpt with these words to its end, or until it is killed at `point`. Other children of this test must not end meanwhile.
pub fn run(place: &Workplace, words: &[&str], scope: Scope, point: Option<Point>) -> Outcome {
    // It waits until it is held.
    let mut held = place.command("sh");
    held.args(["-c", "kill -STOP $$; exec \"$@\"", "sh"]);
    held.arg(rckpt_binary()).args(words);
    held.stdout(place.stream(WORDS)).stderr(place.stream(WORDS));
    let root = place.start(held);
    let stopped = waitpid(root, Some(WaitPidFlag::WUNTRACED)).expect("it is ours");
    assert!(matches!(stopped, WaitStatus::Stopped(..)), "{stopped:?}");
    let processes = if scope == Scope::Own { Options::empty() } else { PROCESSES };
    ptrace::seize(root, THREADS | processes).expect("it can be traced");
    kill(root, Signal::SIGCONT).expect("it is not reaped yet");
    let patience = watch(root);
    let mut steps = Steps::new(root, scope, HashSet::from([root]), false);
    let ended = steps.run(point);
    drop(patience);
    let words = place.text(WORDS);
    fs::remove_file(place.path(WORDS)).expect("remove what it said");
    Outcome { calls: steps.calls, steps: steps.steps, ended, happened: steps.happened, words }
}

/// Has something happen to the supervisor of a job at `point` of what it does for `client`, a child of this
/// test that asks it for something. Left alone, it is let go when that has its answer.
pub fn run_supervisor(
    supervisor: Pid,
    client: impl FnOnce() -> Pid,
    point: Option<Point>,
) -> Outcome {
    let threads = fs::read_dir(format!("/proc/{supervisor}/task")).expect("its threads");
    let threads = threads.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let living: HashSet<Pid> =
        threads.map(Pid::from_raw).filter(|thread| hold(supervisor, *thread)).collect();
    let client = client();
    let patience = watch(supervisor);
    let mut steps = Steps::new(client, Scope::All, living, true);
    let ended = steps.run(point);
    drop(patience);
    Outcome {
        calls: steps.calls,
        steps: steps.steps,
        ended,
        happened: steps.happened,
        words: String::new(),
    }
}

/// Takes hold of a thread of a supervisor, unless that is just coming to its end: what an earlier checkpoint
/// needed goes when it is over.
fn hold(supervisor: Pid, thread: Pid) -> bool {
    match ptrace::seize(thread, THREADS | PROCESSES) {
        Ok(()) => {
            tolerate_end(ptrace::interrupt(thread));
            true
        }
        Err(error) => {
            let place = format!("/proc/{supervisor}/task/{thread}");
            let gone = poll(PATIENCE, || (!Path::new(&place).exists()).then_some(()));
            assert!(gone.is_some(), "it can be traced: {error}");
            false
        }
    }
}

/// Kills what does not end, and says what it was about; to be dropped when all has ended.
fn watch(root: Pid) -> Sender<()> {
    let (patience, ended) = mpsc::channel();
    let tracer = u64::try_from(gettid().as_raw()).ok();
    thread::spawn(move || {
        if ended.recv_timeout(LONGEST) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        let mut all = process::descendants(Pid::this());
        all.insert(root);
        for pid in all.into_iter().filter(|pid| process::status_number(*pid, "TracerPid") == tracer)
        {
            let tells =
                ["comm", "stat", "wchan", "syscall"].map(|name| process::proc_text(pid, name));
            println!("{pid} hangs, and is killed: {tells:?}");
            tolerate_end(kill(pid, Signal::SIGKILL));
        }
    });
    patience
}

/// What became of a command.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The calls that it has made.
    pub calls: Vec<Call>,
    /// What it has done with files, in the order of the ends of its calls.
    pub steps: Vec<Step>,
    /// How it ended, or whoever asked it.
    pub ended: Option<WaitStatus>,
    /// The call that failed, and how.
    pub happened: Option<(Call, Fault)>,
    /// What the command said; nothing of a supervisor's.
    pub words: String,
}

impl Outcome {
    /// Whether it ended by itself, with exit status 0.
    pub fn succeeded(&self) -> bool {
        matches!(self.ended, Some(WaitStatus::Exited(_, 0)))
    }

    /// Whether it ended by a signal: where there is no memory for the libraries that it stands on they see
    /// no other way.
    pub fn was_killed(&self) -> bool {
        matches!(self.ended, Some(WaitStatus::Signaled(..) | WaitStatus::Exited(_, ABORTED)))
    }
}

/// A command on its way.
struct Steps {
    /// The command, or whoever asked it.
    root: Pid,
    scope: Scope,
    /// Its threads.
    living: HashSet<Pid>,
    /// How many generations below the command those are that have stopped before.
    depths: HashMap<Pid, usize>,
    /// Those that are in a call, and what is to be put right at its end.
    inside: HashMap<Pid, Option<Mending>>,
    /// The steps that these are about to take.
    about_to: HashMap<Pid, Step>,
    calls: Vec<Call>,
    steps: Vec<Step>,
    done: bool,
    happened: Option<(Call, Fault)>,
    /// Whether the command is there, and not only the shell that becomes it.
    begun: bool,
    /// Whether they are to be let go.
    letting_go: bool,
}

impl Steps {
    fn new(root: Pid, scope: Scope, living: HashSet<Pid>, begun: bool) -> Self {
        Self {
            root,
            scope,
            depths: living.iter().map(|thread| (*thread, 0)).collect(),
            living,
            inside: HashMap::new(),
            about_to: HashMap::new(),
            calls: Vec::new(),
            steps: Vec::new(),
            done: false,
            happened: None,
            begun,
            letting_go: false,
        }
    }

    /// Goes on to the end of all: how the command ended.
    fn run(&mut self, point: Option<Point>) -> Option<WaitStatus> {
        let mut ended = None;
        while !self.living.is_empty() {
            let status = waitpid(None, Some(WaitPidFlag::__WALL)).expect("it has not ended");
            match status {
                WaitStatus::Exited(thread, _) | WaitStatus::Signaled(thread, ..) => {
                    let traced = self.living.remove(&thread);
                    self.inside.remove(&thread);
                    if thread == self.root {
                        ended = Some(status);
                        if !traced {
                            // Whoever asked has its answer.
                            self.finish(point);
                        }
                    }
                }
                WaitStatus::PtraceSyscall(thread) => {
                    if let Some(mending) = self.inside.remove(&thread) {
                        self.leave(thread);
                        mending.into_iter().for_each(|mending| faults::mend(thread, mending));
                    } else if self.enter(thread, point) {
                        continue;
                    }
                    self.go_on(thread, None);
                }
                WaitStatus::PtraceEvent(thread, ..) => {
                    self.note(thread);
                    self.go_on(thread, None);
                }
                WaitStatus::Stopped(thread, signal) => {
                    self.living.insert(thread);
                    self.go_on(thread, Some(signal));
                }
                WaitStatus::Continued(_) | WaitStatus::StillAlive => {}
            }
        }
        ended
    }

    /// A thread is about to make a call. Whether somebody was killed for it.
    fn enter(&mut self, thread: Pid, point: Option<Point>) -> bool {
        let Some(call) = faults::call_of(thread) else { return true };
        let mut mending = None;
        if self.begun {
            self.calls.push(call);
            let step = storage::step_of(thread, &call, self.steps.len());
            self.about_to.extend(step.map(|step| (thread, step)));
        }
        self.begun |= call.number == libc::SYS_execve;
        if let Some(Point { call: chosen, deed }) = point
            && !self.done
            && self.calls.len() >= chosen
        {
            match deed {
                Deed::Kill(victim) => {
                    self.done = true;
                    self.kill(thread, victim);
                    return true;
                }
                Deed::Fail { number, turn } if number == call.number => {
                    let faults = faults::plausible(&call);
                    if let Some(fault) = faults.get(turn % faults.len().max(1)) {
                        self.done = true;
                        self.happened = Some((call, *fault));
                        mending = faults::inflict(thread, *fault);
                    }
                }
                Deed::Fail { .. } => {}
            }
        }
        self.inside.insert(thread, mending);
        false
    }

    /// A thread has come to the end of a call: a step has been taken if that succeeded.
    fn leave(&mut self, thread: Pid) {
        let Some(step) = self.about_to.remove(&thread) else { return };
        let succeeded = ptrace::getregs(thread).is_ok_and(|it| it.rax.cast_signed() >= 0);
        self.steps.extend(succeeded.then_some(step));
    }

    /// A thread has stopped that has just been born, or has made another.
    fn note(&mut self, thread: Pid) {
        // Known from its birth on, so that it is not forgotten when its parent is killed.
        self.living.extend(child_of(thread));
        if self.depths.contains_key(&thread) {
            return;
        }
        let depth = self.depth(thread);
        self.depths.insert(thread, depth);
        // What it makes is no concern of ours.
        if depth >= self.scope.depth() {
            tolerate_end(ptrace::setoptions(thread, CALLS));
        }
    }

    /// How many generations below the command a thread is that was not seen before.
    fn depth(&self, thread: Pid) -> usize {
        let number = |field| {
            let number =
                process::status_number(thread, field).and_then(|it| i32::try_from(it).ok());
            number.map(Pid::from_raw)
        };
        match number("Tgid") {
            Some(process) if process != thread => self.depths.get(&process).copied().unwrap_or(0),
            _ => number("PPid")
                .and_then(|parent| self.depths.get(&parent))
                .map_or(0, |depth| depth + 1),
        }
    }

    /// Nothing more is to be seen.
    fn finish(&mut self, point: Option<Point>) {
        if point.is_some_and(|point| matches!(point.deed, Deed::Kill(_))) {
            self.kill(self.root, Victim::All);
            return;
        }
        self.letting_go = true;
        for thread in &self.living {
            tolerate_end(ptrace::interrupt(*thread));
        }
    }

    fn go_on(&mut self, thread: Pid, signal: Option<Signal>) {
        // At the entry of a call that goes wrong it is not let go yet.
        if self.letting_go && !matches!(self.inside.get(&thread), Some(Some(_))) {
            tolerate_end(ptrace::detach(thread, signal));
            self.living.remove(&thread);
        } else {
            tolerate_end(ptrace::syscall(thread, signal));
        }
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

/// A thread may be killed together with others of its process.
fn tolerate_end(outcome: nix::Result<()>) {
    assert!(matches!(outcome, Ok(()) | Err(Errno::ESRCH)), "{outcome:?}");
}
