//! The job is never harmed: nothing is left in it by a checkpoint, whatever becomes of rckpt.

use std::collections::BTreeMap;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::moments::Moments;
use crate::harness::process::{self, Belongings, PATIENCE, poll};
use crate::harness::rounds::{Case, Running, Start};
use crate::harness::stepping::{self, Deed, Point, Scope, Victim};
use crate::harness::workplace::{User, Workplace};

/// What each process of the job has.
fn job_belongings(root: Pid) -> BTreeMap<Pid, Belongings> {
    let mut job = process::descendants(root);
    job.insert(root);
    job.into_iter().map(|pid| (pid, process::belongings(pid))).collect()
}

fn nothing_is_left(fixture: &'static str, user: User) {
    let place = Workplace::new(user);
    let job = Running::start(&place, &Case::new(fixture), Start::Alone);
    job.ping();
    let before = job_belongings(job.root());
    for _ in 0..5 {
        job.dump(&[]);
        assert_eq!(before, job_belongings(job.root()));
        job.ping();
    }
    job.judge();
}

/// Waits until nobody holds any process of the job, and the job has only processes of its own.
fn await_let_go(root: Pid, processes: usize) {
    let free = poll(PATIENCE, || {
        let mut job = process::descendants(root);
        job.insert(root);
        let held = job
            .iter()
            .any(|pid| process::status_number(*pid, "TracerPid").is_some_and(|tracer| tracer != 0));
        (!held && (processes == 0 || job.len() == processes)).then_some(())
    });
    assert!(free.is_some(), "still held: {:?}", process::descendants(root));
}

/// Ends `rckpt dump` by SIGKILL at moments over its whole run. `processes`: how many the job has, 0
/// when their number changes.
fn survives_killed_dumps(fixture: &'static str, user: User, kills: u32, processes: usize) {
    let place = Workplace::new(user);
    let mut job = Running::start(&place, &Case::new(fixture), Start::Alone);
    let start = Instant::now();
    job.dump(&[]);
    let whole = start.elapsed();
    let mut moments = Moments::new();
    for _ in 0..kills {
        let mut dump = place.rckpt(&["dump", &job.root().to_string(), "--dir", "job"]);
        let dump = place.start(&mut dump);
        std::thread::sleep(moments.below(whole));
        kill(dump, Signal::SIGKILL).expect("it is not reaped yet");
        assert!(process::exit_status(dump, PATIENCE).is_some(), "it cannot be killed");
        job.ping();
        await_let_go(job.root(), processes);
    }
    job.dump(&[]);
    job.lose();
    job.restore();
    job.judge();
}

/// Set to 1, this has commands killed at every call that they make, instead of at some.
const EVERY_CALL: &str = "RCKPT_TEST_EVERY_CALL";

/// Runs rckpt with these words to its end, and then again and again, each time until it is killed at one
/// of its system calls: some spread over all of them, which begin anywhere, or every one. `check` looks at
/// what each run has left.
fn kill_at_calls(place: &Workplace, words: &[&str], scope: Scope, check: impl Fn()) {
    let undisturbed = stepping::run(place, words, scope, None);
    assert!(undisturbed.succeeded(), "rckpt {words:?}: {}", undisturbed.words);
    check();
    for point in points(undisturbed.calls.len(), 40) {
        println!("{point:?}");
        stepping::run(place, words, scope, Some(point));
        check();
    }
}

/// About `some` of `whole` calls, spread over all of them and beginning anywhere, or every one.
fn points(whole: usize, some: usize) -> impl Iterator<Item = Point> {
    let stride = match std::env::var(EVERY_CALL) {
        Ok(value) if value == "1" => 1,
        _ => (whole / some).max(1),
    };
    let first = 1 + usize::try_from(Moments::new().any()).expect("it fits") % stride;
    let calls: Vec<usize> = (first..=whole).step_by(stride).collect();
    println!("killed at {} of {whole} calls", calls.len());
    let victims = [Victim::All, Victim::Caller].into_iter().cycle();
    calls.into_iter().zip(victims).map(|(call, victim)| Point { call, deed: Deed::Kill(victim) })
}

/// The supervisor is the job's parent and does the dumping; the job goes on without it.
fn survives_supervisors_killed_at_calls(case: &Case) {
    let ask = |point| {
        let place = Workplace::new(User::Plain);
        let job = Running::start(&place, case, Start::Supervised);
        let root = job.root().to_string();
        let client = || place.start(place.rckpt(&["dump", &root]));
        let calls = stepping::run_supervisor(job.child(), client, point).calls.len();
        job.ping();
        await_let_go(job.root(), 0);
        job.judge_orphan();
        calls
    };
    let whole = ask(None);
    for point in points(whole, 15) {
        ask(Some(point));
    }
}

fn survives_dumps_killed_at_calls(case: &Case, user: User, processes: usize) {
    let place = Workplace::new(user);
    let mut job = Running::start(&place, case, Start::Alone);
    let root = job.root().to_string();
    kill_at_calls(&place, &["dump", &root, "--dir", "job"], Scope::All, || {
        job.ping();
        await_let_go(job.root(), processes);
    });
    job.dump(&[]);
    job.lose();
    job.restore();
    job.judge();
}

/// Nothing is left of a restore that was killed, and the next one succeeds.
fn survives_restores_killed_at_calls(fixture: &'static str, user: User) {
    let place = Workplace::new(user);
    let job = Running::start(&place, &Case::new(fixture), Start::Alone);
    job.dump(&["--kill"]);
    job.lose();
    // Brought back it looks at itself, and ends.
    place.write("go", "");
    kill_at_calls(&place, &["restore", "job"], Scope::Children, || {
        let none = poll(PATIENCE, || process::descendants(Pid::this()).is_empty().then_some(()));
        let story = |pid: Pid| {
            ["comm", "wchan", "syscall", "status"].map(|name| process::proc_text(pid, name))
        };
        let left: Vec<_> = process::descendants(Pid::this()).into_iter().map(story).collect();
        assert!(none.is_some(), "left: {left:?}");
        let verdict = place.text("verdict");
        // When rckpt is killed the kernel ends its namespace, one process after the other: a parent may
        // live to see that its child was killed.
        let ended = verdict.is_empty() || verdict.contains(": status 0x9 (");
        assert!(ended || verdict == "PASS\n", "{verdict}");
        if place.has("verdict") {
            std::fs::remove_file(place.path("verdict")).expect("remove a verdict");
        }
    });
    let answer = place.ask(&["restore", "job"]);
    assert_eq!(answer.status, Some(0), "{answer:#?}");
    assert_eq!(place.text("verdict"), "PASS\n");
}

macro_rules! fixtures_left_alone {
    ($( $name:ident ; )*) => { $(
        mod $name {
            use super::{User, nothing_is_left};

            #[test]
            fn has_nothing_left_in_it_as_plain_user() {
                nothing_is_left(stringify!($name), User::Plain);
            }

            #[test]
            fn has_nothing_left_in_it_as_caller() {
                nothing_is_left(stringify!($name), User::Caller);
            }
        }
    )* };
}

fixtures_left_alone! {
    memory_flags;
    memory_shared;
    pipe_processes;
    signals_stopped;
    signals_waiting;
    socket_queues;
    socket_rights;
    terminal_closed;
    terminal_modes;
    terminal_sessions;
    threads_registers;
    threads_waiting;
    timers_posix;
    tree_family;
    tree_zombies;
}

#[test]
fn dumps_killed_while_threads_wait() {
    survives_killed_dumps("threads_waiting", User::Plain, 60, 1);
}

#[test]
fn dumps_killed_while_threads_work() {
    survives_killed_dumps("motion_mutexes", User::Plain, 60, 1);
}

#[test]
fn dumps_killed_while_calls_are_made() {
    survives_killed_dumps("motion_calls", User::Plain, 100, 0);
}

#[test]
fn dumps_killed_while_children_are_waited_for() {
    survives_killed_dumps("motion_waits", User::Plain, 150, 0);
}

#[test]
fn dumps_killed_while_memory_changes() {
    survives_killed_dumps("motion_allocation", User::Caller, 60, 1);
}

#[test]
fn dumps_killed_while_terminals_are_used() {
    survives_killed_dumps("motion_terminals", User::Plain, 100, 3);
}

#[test]
fn dumps_killed_while_messages_are_sent() {
    survives_killed_dumps("motion_socket_packets", User::Plain, 30, 6);
}

#[test]
fn dumps_killed_while_messages_wait() {
    survives_killed_dumps("socket_rights", User::Plain, 30, 1);
}

#[test]
fn dumps_killed_while_queues_are_full() {
    survives_killed_dumps("motion_posix_queues", User::Plain, 15, 6);
}

/// How often a dump is killed, or its keeper, while messages are out of their queues.
const ROUNDS: &str = "RCKPT_TEST_ROUNDS";

/// Whoever takes messages out of queues to look at them is killed just then: rckpt, or the process that it has
/// for that. The job finds all of them, at every moment.
#[test]
fn dumps_killed_while_messages_are_out() {
    let rounds = std::env::var(ROUNDS).map_or(12, |rounds| rounds.parse().expect("a number"));
    let place = Workplace::new(User::Plain);
    let case = Case::new("motion_posix_queues").with_argument("many");
    let mut job = Running::start(&place, &case, Start::Alone);
    let root = job.root().to_string();
    let mut seen = [0, 0];
    for round in 0..rounds {
        let dump = place.start(place.rckpt(&["dump", &root, "--dir", "job"]));
        // It does its work in a child.
        let child =
            poll(PATIENCE, || process::children(dump).first().copied()).expect("it has one");
        // As long as messages are out, their keeper traces it.
        let keeper = loop {
            let keeper = process::tracer(child);
            if keeper.is_some() || process::has_ended(child) {
                break keeper;
            }
        };
        if let Some(keeper) = keeper {
            // It may have done its work meanwhile.
            let done = kill([child, keeper][round % 2], Signal::SIGKILL);
            seen[round % 2] += usize::from(done.is_ok());
        }
        assert!(process::exit_status(dump, PATIENCE).is_some(), "it does not end");
        job.ping();
        await_let_go(job.root(), 6);
    }
    println!("rckpt was killed {} times, its keeper {} times", seen[0], seen[1]);
    assert!(seen[0] > 0 && seen[1] > 0, "the moment was always missed");
    job.dump(&[]);
    job.lose();
    job.restore();
    job.judge();
}

#[test]
fn dumps_killed_while_a_family_waits() {
    survives_killed_dumps("tree_family", User::Plain, 40, 14);
}

#[test]
fn dumps_killed_while_pipes_are_full() {
    survives_killed_dumps("motion_ping_pong", User::Plain, 60, 4);
}

#[test]
fn dumps_killed_at_calls_while_threads_wait() {
    survives_dumps_killed_at_calls(&Case::new("threads_waiting"), User::Plain, 1);
}

/// More threads than make calls at a time: each lot of them has scratch memory that others answered for.
#[test]
fn dumps_of_many_threads_killed_at_calls_leave_nothing() {
    let place = Workplace::new(User::Plain);
    let job = Running::start(&place, &Case::new("threads_identity"), Start::Alone);
    job.ping();
    let root = job.root();
    let before = job_belongings(root);
    let words = ["dump", &root.to_string(), "--dir", "job"];
    kill_at_calls(&place, &words, Scope::All, || {
        await_let_go(root, 1);
        job.ping();
        let whole = poll(PATIENCE, || (before == job_belongings(root)).then_some(()));
        assert!(whole.is_some(), "{before:?}\n{:?}", job_belongings(root));
    });
    job.judge();
}

#[test]
fn dumps_killed_at_calls_while_calls_are_made() {
    survives_dumps_killed_at_calls(
        &Case::new("motion_calls").with_argument("restarted"),
        User::Plain,
        0,
    );
}

#[test]
fn dumps_killed_at_calls_while_children_are_waited_for() {
    survives_dumps_killed_at_calls(&Case::new("motion_waits"), User::Plain, 0);
}

#[test]
fn dumps_killed_at_calls_while_registers_are_used() {
    survives_dumps_killed_at_calls(&Case::new("motion_vectors"), User::Caller, 1);
}

#[test]
fn supervisors_killed_at_calls_while_threads_wait() {
    survives_supervisors_killed_at_calls(&Case::new("threads_waiting"));
}

#[test]
fn supervisors_killed_at_calls_while_calls_are_made() {
    let case = Case::new("motion_calls").with_argument("restarted");
    survives_supervisors_killed_at_calls(&case);
}

#[test]
fn restores_of_threads_killed_at_calls() {
    survives_restores_killed_at_calls("threads_waiting", User::Plain);
}

#[test]
fn restores_of_a_family_killed_at_calls() {
    survives_restores_killed_at_calls("tree_family", User::Plain);
}

/// The supervisor is the job's parent and does the dumping; the job goes on without it.
#[test]
fn supervisor_killed_in_mid_dump() {
    let mut moments = Moments::new();
    for _ in 0..10 {
        let place = Workplace::new(User::Plain);
        let job = Running::start(&place, &Case::new("motion_calls"), Start::Supervised);
        let start = Instant::now();
        job.dump(&[]);
        let whole = start.elapsed();
        place.start(place.rckpt(&["dump", &job.root().to_string()]));
        std::thread::sleep(moments.below(whole));
        kill(job.child(), Signal::SIGKILL).expect("it is not reaped yet");
        assert!(process::exit_status(job.child(), PATIENCE).is_some(), "it cannot be killed");
        job.ping();
        await_let_go(job.root(), 0);
        job.judge_orphan();
    }
}
