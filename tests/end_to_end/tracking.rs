//! Checkpoints that build on each other: what the kernel has taken note of is all that is read, and nothing
//! that changed is missed. Development builds compare each page that is taken for unchanged.

use std::fs;
use std::os::unix::fs::symlink;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::rounds::{Case, Running, Start};
use crate::harness::workplace::{User, Workplace};

/// Mappings of a process whose pages' writes somebody is told of.
fn watched_mappings(pid: Pid) -> usize {
    let smaps = process::proc_text(pid, "smaps");
    let is_watched =
        |line: &&str| line.strip_prefix("VmFlags:").is_some_and(|codes| codes.contains(" uw"));
    smaps.lines().filter(is_watched).count()
}

/// Descriptors of a process that were made by userfaultfd(2).
fn userfaults(pid: Pid) -> usize {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("it is there");
    let kinds = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    kinds.filter(|target| target.to_string_lossy().contains("userfaultfd")).count()
}

/// Whether this kernel can be told of writes at all.
fn tracking_works(place: &Workplace) -> bool {
    let report: serde_json::Value =
        serde_json::from_str(&place.ask(&["check", "--json"]).output).expect("check reports");
    let text = report.to_string();
    text.contains("by userfaultfd")
}

fn no_change_is_missed(user: User) {
    let place = Workplace::new(user);
    let mut job = Running::start(&place, &Case::new("motion_pages"), Start::Supervised);
    for _ in 0..4 {
        for _ in 0..5 {
            job.dump(&[]);
            for _ in 0..4 {
                job.ping();
            }
        }
        assert!(!tracking_works(&place) || watched_mappings(job.root()) > 0, "not watched");
        job.lose();
        job.restore();
    }
    job.judge();
}

#[test]
fn no_change_is_missed_as_plain_user() {
    no_change_is_missed(User::Plain);
}

#[test]
fn no_change_is_missed_as_caller() {
    no_change_is_missed(User::Caller);
}

/// The line goes on from another checkpoint than the last that was taken: what was written since that one
/// is not enough to know.
#[test]
fn a_line_can_go_on_from_an_older_checkpoint() {
    let place = Workplace::new(User::Plain);
    let mut job = Running::start(&place, &Case::new("motion_pages"), Start::Supervised);
    job.dump(&[]);
    for _ in 0..3 {
        let older = fs::read_link(place.path("job/latest")).expect("a checkpoint");
        job.ping();
        job.dump(&[]);
        fs::remove_file(place.path("job/latest")).expect("it is a link");
        symlink(&older, place.path("job/latest")).expect("a link");
        job.ping();
        job.dump(&[]);
        job.ping();
        job.dump(&[]);
    }
    job.lose();
    job.restore();
    job.judge();
}

/// Checkpoints that go elsewhere have no part in the line, and leave it as it is.
#[test]
fn checkpoints_elsewhere_do_not_matter() {
    let place = Workplace::new(User::Plain);
    let mut job = Running::start(&place, &Case::new("motion_pages"), Start::Supervised);
    for _ in 0..3 {
        job.dump(&[]);
        job.ping();
        job.dump(&["--dir", "elsewhere"]);
        job.ping();
    }
    job.dump(&[]);
    job.lose();
    job.restore();
    job.judge();
}

/// What rckpt watches ends with it; nothing of it is in the job's descriptors at any time.
#[test]
fn nothing_stays_of_a_supervisor_that_was_killed() {
    let place = Workplace::new(User::Plain);
    let job = Running::start(&place, &Case::new("motion_pages"), Start::Supervised);
    job.dump(&[]);
    job.dump(&[]);
    assert_eq!(userfaults(job.root()), 0);
    assert!(!tracking_works(&place) || watched_mappings(job.root()) > 0, "not watched");
    kill(job.child(), Signal::SIGKILL).expect("it is not reaped yet");
    assert!(process::exit_status(job.child(), PATIENCE).is_some(), "it cannot be killed");
    let gone = poll(PATIENCE, || (watched_mappings(job.root()) == 0).then_some(()));
    assert!(gone.is_some(), "still watched");
    job.judge_orphan();
}

/// Whoever asks whether a job can be saved is not irritated by its being watched.
#[test]
fn a_watched_job_can_be_checked() {
    let place = Workplace::new(User::Plain);
    let job = Running::start(&place, &Case::new("memory_large"), Start::Supervised);
    job.dump(&[]);
    let answer = place.ask(&["check", &job.root().to_string()]);
    assert_eq!(answer.status, Some(0), "{answer:#?}");
    job.judge();
}

/// A checkpoint of a large job that has done nothing takes next to no room, also the first one after it was
/// brought back.
#[test]
fn what_did_not_change_is_not_written_again() {
    let place = Workplace::new(User::Plain);
    let mut job = Running::start(&place, &Case::new("memory_large"), Start::Supervised);
    let bytes = |job: &Running<'_>| {
        let answer = place.ask(&["dump", "--json", &job.root().to_string()]);
        assert_eq!(answer.status, Some(0), "{answer:#?}");
        let report: serde_json::Value = serde_json::from_str(&answer.output).expect("a report");
        report["bytes"].as_u64().expect("the report has bytes")
    };
    let whole = bytes(&job);
    assert!(bytes(&job) < whole / 10 && bytes(&job) < whole / 10, "of {whole}");
    job.lose();
    job.restore();
    assert!(bytes(&job) < whole / 10 && bytes(&job) < whole / 10, "of {whole}, brought back");
    job.judge();
}

/// Killed while it begins to watch, or asks: the job goes on, watched by nobody, with no stranger among its
/// children.
#[test]
fn supervisor_killed_while_it_begins_to_watch() {
    for part in 0..8 {
        let place = Workplace::new(User::Plain);
        let job = Running::start(&place, &Case::new("motion_pages"), Start::Supervised);
        let start = Instant::now();
        // The second half of them is killed in a checkpoint on top of another.
        if part % 2 == 1 {
            job.dump(&[]);
        }
        let span = start.elapsed().clamp(Duration::from_millis(50), Duration::from_millis(300));
        place.start(place.rckpt(&["dump", &job.root().to_string()]));
        sleep(span * part / 8);
        kill(job.child(), Signal::SIGKILL).expect("it is not reaped yet");
        assert!(process::exit_status(job.child(), PATIENCE).is_some(), "it cannot be killed");
        job.ping();
        let gone = poll(PATIENCE, || (watched_mappings(job.root()) == 0).then_some(()));
        assert!(gone.is_some(), "still watched");
        assert_eq!(userfaults(job.root()), 0);
        job.judge_orphan();
    }
}
