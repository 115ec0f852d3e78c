//! Many at once, and at the wrong moment: a crowd of jobs, two checkpoints of one job, jobs within jobs,
//! and jobs that change, end or cannot be stopped while they are saved.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use crate::harness::fixture::{Linking, fixture};
use crate::harness::moments::Moments;
use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::rounds::{Case, Running, Start};
use crate::harness::workplace::{Answer, User, Workplace};

/// How many times as much is tried; the long form of these tests asks for five and more.
const ROUNDS: &str = "RCKPT_TEST_ROUNDS";

/// The longest that a dump may take that has to give up, or follows a job that keeps changing.
const BOUND: Duration = Duration::from_secs(40);

fn rounds(short: usize) -> usize {
    short * std::env::var(ROUNDS).map_or(1, |rounds| rounds.parse().expect("a number of rounds"))
}

/// A command that was started, to be waited for later; its words are in a file of its own.
struct Begun {
    child: Pid,
    words: String,
}

/// Begins `rckpt` with these words.
fn begin(place: &Workplace, name: &str, words: &[&str]) -> Begun {
    let words_file = format!("{name}.err");
    let mut command = place.rckpt(words);
    command.stderr(place.stream(&words_file));
    Begun { child: place.start(command), words: words_file }
}

impl Begun {
    /// Waits for its end.
    fn end(self, place: &Workplace) -> Answer {
        let status = process::exit_status(self.child, BOUND);
        let words = place.text(&self.words);
        assert!(status.is_some(), "it does not come to an end: {words}");
        assert!(!words.contains("panicked"), "{words}");
        Answer { status, output: String::new(), words }
    }
}

/// Every checkpoint in the job's directory is whole, if there is any.
fn check_whole(place: &Workplace) {
    if place.has("job/latest") {
        place.tell(&["verify", "--deep", "job"]);
    }
}

#[test]
fn jobs_in_a_crowd() {
    const KINDS: [&str; 5] =
        ["motion_mix", "threads_waiting", "timers_posix", "tree_family", "memory_private"];
    let first = Workplace::new(User::Plain);
    let others: Vec<Workplace> =
        (1..rounds(4)).map(|number| first.another(&number.to_string())).collect();
    let places: Vec<&Workplace> = std::iter::once(&first).chain(&others).collect();
    let kinds = || places.iter().zip(KINDS.iter().cycle());
    for (place, kind) in kinds() {
        let program = fixture(kind, Linking::Dynamic);
        let words = ["run", "--every", "2", "--keep", "2", "--dir", "job", "--"];
        place.start(place.rckpt(&words).arg(program));
    }
    let patience = PATIENCE * u32::try_from(1 + places.len() / 10).expect("few");
    for (place, kind) in kinds() {
        // Some have been saved often, and none has not.
        let saved = poll(patience, || place.has("job/gen-000003").then_some(()));
        let others = place.text("stderr");
        assert!(saved.is_some() || place.has("job/latest"), "{kind} is never saved: {others}");
    }
    process::kill_descendants();
    let start = Instant::now();
    let children: Vec<Pid> = places
        .iter()
        .map(|place| {
            place.write("ping", "");
            place.start(place.rckpt(&["restore", "job", "--every", "2"]))
        })
        .collect();
    for (place, kind) in kinds() {
        let runs = poll(patience, || (!place.has("ping")).then_some(()));
        assert!(runs.is_some(), "{kind} is not back: {}", place.text("stderr"));
    }
    println!("{} jobs are back after {:?}", places.len(), start.elapsed());
    places.iter().for_each(|place| place.write("go", ""));
    for ((place, kind), child) in kinds().zip(children) {
        let status = process::exit_status(child, patience);
        let (verdict, words) = (place.text("verdict"), place.text("stderr"));
        assert_eq!((status, verdict.as_str()), (Some(0), "PASS\n"), "{kind}: {words}");
        check_whole(place);
    }
}

/// Dumps of one job that begin at the same time: each is taken, or refused because of the other.
fn dumped_by_several(start: Start) {
    let place = Workplace::new(User::Plain);
    let job = Running::start(&place, &Case::new("motion_mix"), start);
    let root = job.root().to_string();
    let mut taken = 0;
    for round in 0..rounds(3) {
        let dumps: Vec<Begun> = (0..3)
            .map(|number| {
                let (name, directory) = (format!("dump{number}"), format!("job{number}"));
                let mut words = vec!["dump", &root];
                if start == Start::Alone {
                    // Those with the same directory meet there, the other in the job.
                    words.extend(["--dir", if number == 2 { &directory } else { "job" }]);
                }
                begin(&place, &name, &words)
            })
            .collect();
        for dump in dumps {
            let answer = dump.end(&place);
            let named = ["traced", "another rckpt", "being taken", "is being written"];
            let refused = named.iter().any(|words| answer.words.contains(words));
            match answer.status {
                Some(0) => taken += 1,
                Some(1) if refused => {}
                _ => panic!("round {round}: {answer:?}"),
            }
        }
        job.check_let_go();
        job.ping();
    }
    assert!(taken >= rounds(3), "{taken} were taken");
    check_whole(&place);
    job.judge();
}

#[test]
fn several_dumps_of_a_job_at_once() {
    dumped_by_several(Start::Alone);
}

#[test]
fn several_dumps_of_a_supervised_job_at_once() {
    dumped_by_several(Start::Supervised);
}

/// Whoever is just being made is not to be dumped: the dump fails, or the restore does, and neither
/// leaves anything behind.
#[test]
fn dumps_during_a_restore() {
    let place = Workplace::new(User::Plain);
    let job = Running::start(&place, &Case::new("tree_family"), Start::Alone);
    job.dump(&["--kill"]);
    job.lose();
    place.write("go", "");
    let mut moments = Moments::new();
    let start = Instant::now();
    assert_eq!(place.ask(&["restore", "job"]).status, Some(0), "{}", place.text("stderr"));
    let whole = start.elapsed();
    let (mut disturbed, mut dumped) = (0, 0);
    for _ in 0..rounds(3) {
        std::fs::remove_file(place.path("verdict")).expect("remove a verdict");
        let restore = begin(&place, "restore", &["restore", "job"]);
        std::thread::sleep(moments.below(whole));
        let victim = process::descendants(restore.child).pop_last().unwrap_or(restore.child);
        let dump =
            begin(&place, "dump", &["dump", &victim.to_string(), "--dir", "other"]).end(&place);
        assert!(matches!(dump.status, Some(0 | 1)), "{dump:?}");
        dumped += usize::from(dump.status == Some(0));
        let restored = restore.end(&place);
        disturbed += usize::from(restored.status != Some(0));
        let none = poll(PATIENCE, || process::descendants(Pid::this()).is_empty().then_some(()));
        assert!(none.is_some(), "left: {:?}", process::descendants(Pid::this()));
        if restored.status != Some(0) {
            assert_eq!(place.ask(&["restore", "job"]).status, Some(0), "{restored:?}");
        }
        assert_eq!(place.text("verdict"), "PASS\n");
    }
    println!("{dumped} dumps succeeded, {disturbed} restores were disturbed");
}

/// A supervised job that is part of a job: each can be saved, and a restore of the outer one brings the
/// inner supervisor back.
#[test]
fn jobs_within_jobs() {
    let place = Workplace::new(User::Plain);
    let program = fixture("threads_waiting", Linking::Dynamic);
    let rckpt = crate::harness::workplace::rckpt_binary();
    let mut command = place.rckpt(&["run", "--dir", "outer", "--"]);
    command.arg(rckpt).args(["run", "--dir", "inner", "--"]).arg(program);
    let outer = place.start(command);
    assert!(poll(PATIENCE, || place.has("ready").then_some(())).is_some(), "it is not ready");
    let inner = process::child_named(outer, "rckpt").or_else(|| process::children(outer).pop());
    let inner = inner.expect("the inner supervisor runs");
    let job = process::children(inner).pop().expect("the inner job runs").to_string();
    for words in [["dump", &job], ["dump", &outer.to_string()], ["dump", &job]] {
        let answer = place.ask(&words);
        assert_eq!(answer.status, Some(0), "rckpt {words:?}: {answer:?}");
    }
    assert!(place.has("inner/gen-000001") && place.has("outer/gen-000001"));
    process::kill_descendants();
    place.write("ping", "");
    let restored = place.start(place.rckpt(&["restore", "outer"]));
    let runs = poll(PATIENCE, || (!place.has("ping")).then_some(()));
    assert!(runs.is_some(), "it is not back: {}", place.text("stderr"));
    place.write("go", "");
    assert_eq!(process::exit_status(restored, PATIENCE), Some(0), "{}", place.text("stderr"));
    assert_eq!(place.text("verdict"), "PASS\n");
}

/// A dump follows a job that keeps making processes, or gives up by name in good time.
fn followed_or_refused(fixture: &'static str) {
    let place = Workplace::new(User::Plain);
    let job = Running::start(&place, &Case::new(fixture), Start::Supervised);
    let (mut taken, mut longest) = (0, Duration::ZERO);
    for _ in 0..rounds(3) {
        let start = Instant::now();
        let answer = begin(&place, "dump", &["dump", &job.root().to_string()]).end(&place);
        longest = longest.max(start.elapsed());
        match answer.status {
            Some(0) => taken += 1,
            Some(1) if answer.words.contains("new processes") => {}
            _ => panic!("{answer:?}"),
        }
        std::fs::remove_file(place.path("dump.err")).expect("remove an answer");
        job.check_let_go();
        job.ping();
    }
    println!("{taken} of {} were taken, the slowest in {longest:?}", rounds(3));
    check_whole(&place);
    job.judge();
}

#[test]
fn a_job_that_forks_as_fast_as_it_can() {
    followed_or_refused("crowd_forks");
}

#[test]
fn a_job_that_is_never_the_same_process() {
    followed_or_refused("crowd_relay");
}

/// What becomes of a job in the middle of its checkpoint.
#[derive(Clone, Copy, PartialEq)]
enum Change {
    Ends,
    Execs,
    IsKilled,
}

/// Changes a job at random moments of its dumps. Each dump comes to an end soon, with the job as it was
/// before, as it is after, or not at all; and what has a name in the directory is whole.
fn changed_in_mid_dump(change: Change) {
    let mut moments = Moments::new();
    let mut whole = Duration::from_millis(100);
    let mut taken = 0;
    for round in 0..=rounds(6) {
        let place = Workplace::new(User::Plain);
        let word = if change == Change::Execs { "exec" } else { "end" };
        let case = Case::new("crowd_changes").with_argument(word);
        let job = Running::start(&place, &case, Start::Alone);
        let root = job.root();
        if round == 0 {
            let start = Instant::now();
            job.dump(&[]);
            whole = start.elapsed();
        }
        let dump = begin(&place, "dump", &["dump", &root.to_string(), "--dir", "job"]);
        std::thread::sleep(moments.below(whole));
        match change {
            Change::IsKilled => kill(root, Signal::SIGKILL).expect("it is not reaped yet"),
            Change::Ends | Change::Execs => place.write("go", ""),
        }
        let answer = dump.end(&place);
        let named = answer.words.contains(&root.to_string());
        assert!(answer.status == Some(0) || answer.status == Some(1) && named, "{answer:?}");
        taken += usize::from(answer.status == Some(0));
        if change == Change::Execs {
            let anew = poll(PATIENCE, || place.has("anew").then_some(()));
            assert!(anew.is_some(), "it did not come through its exec: {answer:?}");
            job.ping();
            job.check_let_go();
        } else {
            place.write("go", "");
            assert!(process::exit_status(root, PATIENCE).is_some(), "it does not end");
            let none =
                poll(PATIENCE, || process::descendants(Pid::this()).is_empty().then_some(()));
            assert!(none.is_some(), "left: {:?}", process::descendants(Pid::this()));
        }
        check_whole(&place);
    }
    println!("{taken} of {} were taken", 1 + rounds(6));
}

#[test]
fn jobs_that_end_in_mid_dump() {
    changed_in_mid_dump(Change::Ends);
}

#[test]
fn jobs_that_exec_in_mid_dump() {
    changed_in_mid_dump(Change::Execs);
}

#[test]
fn jobs_that_are_killed_in_mid_dump() {
    changed_in_mid_dump(Change::IsKilled);
}

/// A dump of a job with a thread that cannot be stopped gives up by name, and leaves it as it was.
fn given_up(place: &Workplace, word: &'static str, expected: &str) {
    let case = Case::new("crowd_hanging").with_argument(word);
    let job = Running::start(place, &case, Start::Alone);
    let start = Instant::now();
    let dump = begin(place, "dump", &["dump", &job.root().to_string(), "--dir", "job"]);
    let answer = dump.end(place);
    println!("given up after {:?}", start.elapsed());
    assert_eq!(answer.status, Some(1), "{answer:?}");
    let named = answer.words.contains(&job.root().to_string());
    assert!(named && answer.words.contains(expected), "{answer:?}");
    job.check_let_go();
    job.ping();
    assert!(!place.has("job/latest"));
    job.judge();
}

#[test]
fn a_parent_in_the_middle_of_vfork() {
    given_up(&Workplace::new(User::Plain), "vfork", "in the middle of vfork");
}

/// Only root may mount a file system that others see.
#[test]
fn a_reader_of_a_file_server_that_hangs() {
    let place = Workplace::new(User::Plain);
    if !geteuid().is_root() || !std::path::Path::new("/dev/fuse").exists() {
        return;
    }
    let mut server = std::process::Command::new(fixture("crowd_hanging", Linking::Dynamic));
    server.arg("serve").current_dir(place.path(""));
    let server = place.start(&mut server);
    let mounted = poll(PATIENCE, || {
        (place.has("mounted") || process::has_ended(server)).then(|| place.has("mounted"))
    });
    assert_eq!(mounted, Some(true), "it is not mounted");
    given_up(&place, "read", "uninterruptible sleep");
}
