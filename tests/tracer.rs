//! Freezing, asking and releasing real processes: what the tracer promises, apart from dumps.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rckpt::model::number::to_usize;
use rckpt::model::process::ResourceLimit;
use rckpt::sys::clone::set_limit;
use rckpt::sys::memory::RemoteMemory;
use rckpt::sys::procfs;
use rckpt::tracer::copy::{CopyError, NAME};
use rckpt::tracer::error::{FreezeError, InjectError};
use rckpt::tracer::injection::Call;
use rckpt::tracer::tree::Tree;
use rckpt::tracer::vdso;

const PATIENCE: Duration = Duration::from_secs(5);

/// A process that sleeps, killed at the end.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Self {
        Self::shell("exec sleep 1000")
    }

    /// A shell that becomes a sleeper.
    fn shell(script: &str) -> Self {
        let mut command = Command::new("sh");
        let child = command.args(["-c", script]).stdin(Stdio::null()).spawn().expect("a shell");
        let sleeper = Self(child);
        await_that(|| procfs::name(sleeper.pid()).is_ok_and(|name| name == b"sleep"));
        await_that(|| sleeper.state() == b'S');
        sleeper
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }

    fn state(&self) -> u8 {
        procfs::status(self.pid()).expect("it is not reaped yet").state
    }

    fn is_free(&self) -> bool {
        procfs::status(self.pid()).expect("it is not reaped yet").tracer == 0
    }

    /// Its mappings, and what lies in the padding of its vDSO.
    fn traces(&self) -> (Vec<procfs::Mapping>, Vec<u8>) {
        let mappings = procfs::mapping_heads(self.pid()).expect("its mappings");
        let vdso = mappings.iter().find(|mapping| mapping.path == b"[vdso]").expect("a vDSO");
        let mut image = vec![0; to_usize(vdso.range.len())];
        let memory = RemoteMemory::open(self.pid()).expect("its memory");
        memory.read(vdso.range.start, &mut image).expect("its vDSO");
        let start = vdso::padding(&image).expect("padding");
        (mappings, image.split_off(start))
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().expect("it is not reaped yet");
        self.0.wait().expect("it is not reaped yet");
    }
}

fn await_that(condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "it never came about");
        thread::sleep(Duration::from_millis(1));
    }
}

fn freeze(sleeper: &Sleeper) -> Tree {
    Tree::freeze(sleeper.pid(), None, PATIENCE).expect("it can be frozen")
}

#[test]
fn a_process_answers_and_keeps_nothing_of_it() {
    let sleeper = Sleeper::start();
    let before = sleeper.traces();
    let mut tree = freeze(&sleeper);
    assert_eq!(sleeper.state(), b't');
    let mut injector = tree.inject(0).expect("there is room");
    let own = injector.call(&Call::new(libc::SYS_getpid, &[])).expect("it answers");
    assert_eq!(own, Ok(u64::from(sleeper.0.id())));
    let scratch = injector.scratch();
    let name = injector.call(&Call::new(libc::SYS_uname, &[scratch.start.0])).expect("it answers");
    assert_eq!(name, Ok(0));
    let mut system = [0; 6];
    injector.read(scratch.start, &mut system).expect("its memory");
    assert_eq!(&system, b"Linux\0");
    let nothing = injector.call(&Call::new(libc::SYS_close, &[9999])).expect("it answers");
    assert_eq!(nothing, Err(nix::errno::Errno::EBADF));
    injector.finish().expect("all is put back");
    tree.thaw().expect("it is let go");
    await_that(|| sleeper.state() == b'S');
    assert!(sleeper.is_free());
    let after = sleeper.traces();
    assert_eq!(before.0, after.0);
    assert!(after.1.iter().all(|byte| *byte == 0));
}

#[test]
fn a_copy_is_hidden_and_keeps_nothing_of_its_original() {
    let sleeper = Sleeper::start();
    let before = sleeper.traces();
    let mut tree = freeze(&sleeper);
    let mut copies = tree.copy(&[0]).expect("it can be copied");
    let mut copy = copies.pop().expect("a copy");
    tree.thaw().expect("it is let go");
    copy.hide().expect("it can be hidden");
    await_that(|| sleeper.state() == b'S');
    assert!(sleeper.is_free());
    assert_eq!(before, sleeper.traces());
    let children = procfs::children(sleeper.pid(), sleeper.pid()).expect("its children");
    assert!(children.is_none_or(|children| children.is_empty()));

    let pid = copy.pid();
    let status = procfs::status(pid).expect("it is there");
    assert_ne!(status.ppid, sleeper.pid().as_raw());
    assert_eq!(status.ns_sid, [pid.as_raw()]);
    assert_eq!(procfs::name(pid).expect("its name"), NAME);
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors");
    assert_eq!(descriptors.count(), 0);
    let heads = procfs::mapping_heads(pid).expect("its mappings");
    assert_eq!(heads, before.0);
    drop(copy);
    await_that(|| {
        procfs::status(pid).is_err() || procfs::status(pid).is_ok_and(|it| it.state == b'Z')
    });
}

#[test]
fn a_process_that_cannot_be_copied_goes_on() {
    let sleeper = Sleeper::start();
    let before = sleeper.traces();
    // The limit does not hold for root; whoever it holds for has this process already.
    let limit = ResourceLimit { resource: libc::RLIMIT_NPROC, soft: 1, hard: 1 };
    set_limit(sleeper.pid(), &limit).expect("it is ours");
    let mut tree = freeze(&sleeper);
    let outcome = tree.copy(&[0]);
    if !nix::unistd::geteuid().is_root() {
        assert!(matches!(outcome, Err(CopyError::Make { source: Errno::EAGAIN, .. })));
    }
    drop(outcome);
    tree.thaw().expect("it is let go");
    await_that(|| sleeper.state() == b'S');
    assert!(sleeper.is_free());
    assert_eq!(before, sleeper.traces());
}

#[test]
fn what_is_dropped_is_let_go() {
    let sleeper = Sleeper::start();
    let before = sleeper.traces();
    let mut tree = freeze(&sleeper);
    let mut injector = tree.inject(0).expect("there is room");
    injector.call(&Call::new(libc::SYS_getpid, &[])).expect("it answers").expect("an id");
    drop(injector);
    drop(tree);
    await_that(|| sleeper.state() == b'S');
    assert!(sleeper.is_free());
    assert_eq!(before, sleeper.traces());
}

#[test]
fn the_end_of_the_thread_lets_go_what_a_panic_left() {
    let sleeper = Sleeper::start();
    thread::scope(|scope| {
        let outcome = scope
            .spawn(|| {
                let mut tree = freeze(&sleeper);
                std::mem::forget(tree.inject(0).expect("there is room"));
                std::mem::forget(tree);
                panic!("on purpose");
            })
            .join();
        assert!(outcome.is_err());
    });
    await_that(|| sleeper.is_free() && sleeper.state() == b'S');
    // The next one finds what was left, and cleans up.
    freeze(&sleeper).thaw().expect("it is let go");
    assert!(sleeper.traces().1.iter().all(|byte| *byte == 0));
}

#[test]
fn a_stopped_process_stays_stopped() {
    let sleeper = Sleeper::start();
    kill(sleeper.pid(), Signal::SIGTSTP).expect("it is there");
    await_that(|| sleeper.state() == b'T');
    let mut tree = freeze(&sleeper);
    assert_eq!(tree.processes()[0].group_stop(), Some(libc::SIGTSTP));
    let mut injector = tree.inject(0).expect("there is room");
    let own = injector.call(&Call::new(libc::SYS_getpid, &[])).expect("it answers");
    assert_eq!(own, Ok(u64::from(sleeper.0.id())));
    injector.finish().expect("all is put back");
    tree.thaw().expect("it is let go");
    await_that(|| sleeper.state() == b'T');
    assert!(sleeper.is_free());
    kill(sleeper.pid(), Signal::SIGCONT).expect("it is there");
    await_that(|| sleeper.state() == b'S');
}

#[test]
fn a_process_continued_while_frozen_goes_on() {
    let sleeper = Sleeper::start();
    kill(sleeper.pid(), Signal::SIGSTOP).expect("it is there");
    await_that(|| sleeper.state() == b'T');
    let tree = freeze(&sleeper);
    kill(sleeper.pid(), Signal::SIGCONT).expect("it is there");
    tree.thaw().expect("it is let go");
    await_that(|| sleeper.state() == b'S');
}

#[test]
fn a_process_stopped_while_it_answers_is_stopped_after() {
    let sleeper = Sleeper::start();
    let mut tree = freeze(&sleeper);
    let mut injector = tree.inject(0).expect("there is room");
    kill(sleeper.pid(), Signal::SIGSTOP).expect("it is there");
    let own = injector.call(&Call::new(libc::SYS_getpid, &[])).expect("it answers");
    assert_eq!(own, Ok(u64::from(sleeper.0.id())));
    injector.finish().expect("all is put back");
    tree.thaw().expect("it is let go");
    await_that(|| sleeper.state() == b'T');
}

#[test]
fn a_process_killed_while_it_answers_is_told() {
    let sleeper = Sleeper::start();
    let mut tree = freeze(&sleeper);
    let mut injector = tree.inject(0).expect("there is room");
    kill(sleeper.pid(), Signal::SIGKILL).expect("it is there");
    let outcome = injector.call(&Call::new(libc::SYS_getpid, &[]));
    assert!(matches!(outcome, Err(InjectError::Died { tid }) if tid == sleeper.pid()));
    drop(injector);
    tree.thaw().expect("there is nothing to let go");
    // Its end is still there for its parent.
    let status = waitpid(sleeper.pid(), None).expect("its end");
    assert_eq!(status, WaitStatus::Signaled(sleeper.pid(), Signal::SIGKILL, false));
    std::mem::forget(sleeper);
}

#[test]
fn children_and_zombies_are_found() {
    let sleeper = Sleeper::shell("true & sleep 1001 & exec sleep 1000");
    let children = || {
        procfs::children(sleeper.pid(), sleeper.pid())
            .expect("its children")
            .expect("a kernel that lists them")
    };
    let is_zombie = |pid: &Pid| procfs::status(*pid).is_ok_and(|status| status.state == b'Z');
    await_that(|| children().iter().any(is_zombie) && children().len() == 2);
    let tree = freeze(&sleeper);
    assert_eq!((tree.processes().len(), tree.zombies().len()), (2, 1));
    assert_eq!(tree.processes()[0].pid, sleeper.pid());
    let child = tree.processes()[1].pid;
    tree.thaw().expect("it is let go");
    kill(child, Signal::SIGKILL).expect("it is there");
}

#[test]
fn a_whole_tree_is_killed_or_stopped() {
    let sleeper = Sleeper::shell("sleep 1001 & exec sleep 1000");
    let tree = freeze(&sleeper);
    let child = tree.processes()[1].pid;
    tree.stop_all().expect("it can be stopped");
    let is_stopped = |pid: Pid| {
        procfs::status(pid).is_ok_and(|status| status.state == b'T' && status.tracer == 0)
    };
    await_that(|| is_stopped(sleeper.pid()) && is_stopped(child));
    freeze(&sleeper).kill_all().expect("it can be killed");
    // The end of our own child is left for us to see; the other's is its new parent's affair.
    let status = waitpid(sleeper.pid(), None).expect("its end");
    assert_eq!(status, WaitStatus::Signaled(sleeper.pid(), Signal::SIGKILL, false));
    std::mem::forget(sleeper);
    await_that(|| procfs::status(child).is_err() || !is_stopped(child));
}

#[test]
fn refusals_name_the_process() {
    let sleeper = Sleeper::start();
    let pid = sleeper.pid();
    let other = thread::spawn(move || {
        let tree = Tree::freeze(pid, None, PATIENCE).expect("it can be frozen");
        let second = thread::spawn(move || Tree::freeze(pid, None, PATIENCE).map(drop));
        let outcome = second.join().expect("no panic");
        tree.thaw().expect("it is let go");
        outcome
    });
    let outcome = other.join().expect("no panic");
    assert!(matches!(outcome, Err(FreezeError::AlreadyTraced { pid: found, .. }) if found == pid));

    let nobody = Pid::from_raw(i32::MAX - 1);
    let outcome = Tree::freeze(nobody, None, PATIENCE);
    assert!(matches!(outcome, Err(FreezeError::NoSuchProcess { pid }) if pid == nobody));
}
