//! A job and its batch system: signals that warn, requeueing, the end of the time that is allowed. The
//! batch system is played by its commands' names; tests/end_to_end/slurm.rs has the real one.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::workplace::{User, Workplace};

/// Thirty lines of output in three seconds.
const JOB: &str = "i=0; while [ $i -lt 30 ]; do echo line $i; i=$((i+1)); sleep 0.1; done";

fn whole_output() -> String {
    (0..30).map(|number| format!("line {number}\n")).collect()
}

/// `rckpt run --resume --dir job` with these words in front of the job.
fn run(place: &Workplace, words: &[&str]) -> Command {
    let mut command = place.rckpt(&["run", "--resume", "--dir", "job"]);
    command.args(words).args(["--", "sh", "-c", JOB]);
    command
}

/// The same as job 7 of a Slurm whose commands are scripts in the test's directory.
fn run_in_slurm(place: &Workplace, words: &[&str]) -> Command {
    let mut command = run(place, words);
    let path = format!("{}:/usr/bin:/bin", place.path("").display());
    command.env("PATH", path).env("SLURM_JOB_ID", "7");
    command
}

/// Puts a command of the batch system in its place.
fn play(place: &Workplace, name: &str, script: &str) {
    place.write(name, &format!("#!/bin/sh\n{script}\n"));
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(place.path(name), mode).expect("make it executable");
}

/// Waits until the job has written its first lines.
fn await_lines(place: &Workplace, number: usize) {
    let came = poll(PATIENCE, || (place.text("stdout").lines().count() >= number).then_some(()));
    assert!(came.is_some(), "{}", place.text("stderr"));
}

fn check_status(place: &Workplace, child: Pid, expected: i32) {
    assert_eq!(process::exit_status(child, PATIENCE), Some(expected), "{}", place.text("stderr"));
}

/// The job goes on to its end, and has then written everything once.
fn check_goes_on(place: &Workplace) {
    let child = place.start(run(place, &[]));
    check_status(place, child, 0);
    assert_eq!(place.text("stdout"), whole_output());
}

#[test]
fn signals_mean_what_the_user_wants() {
    let place = Workplace::new(User::Plain);
    let words = ["--on", "USR2=checkpoint", "--on", "INT=stop", "--exit-code-stopped", "99"];
    let child = place.start(run(&place, &words));
    await_lines(&place, 2);
    for generation in ["job/gen-000001", "job/gen-000002"] {
        kill(child, Signal::SIGUSR2).expect("it runs");
        assert!(poll(PATIENCE, || place.has(generation).then_some(())).is_some(), "{generation}");
    }
    kill(child, Signal::SIGINT).expect("it runs");
    check_status(&place, child, 99);
    assert!(place.has("job/gen-000003"));
    check_goes_on(&place);
}

#[test]
fn signals_that_cannot_be_changed_are_named() {
    let place = Workplace::new(User::Plain);
    let answer = place.ask(&["run", "--on", "KILL=stop", "--dir", "job", "--", "true"]);
    assert_eq!(answer.status, Some(125), "{answer:#?}");
    assert!(answer.words.contains("USR1"), "{answer:#?}");
}

/// A warning: the job is saved and stopped, its batch system asked to start it again, and its end waited
/// for.
#[test]
fn requeued_by_a_warning() {
    let place = Workplace::new(User::Plain);
    play(&place, "squeue", "echo $* >> asked; echo RUNNING 10:00 None");
    play(&place, "scontrol", "echo $* >> requeued");
    let child = place.start(run_in_slurm(&place, &["--requeue"]));
    await_lines(&place, 2);
    kill(child, Signal::SIGUSR1).expect("it runs");
    let requeued = poll(PATIENCE, || place.text("requeued").ends_with('\n').then_some(()));
    assert!(requeued.is_some(), "{}", place.text("stderr"));
    assert!(place.text("asked").contains("--jobs 7"), "{}", place.text("asked"));
    assert_eq!(place.text("requeued"), "requeue 7\n");
    std::thread::sleep(Duration::from_millis(300));
    assert!(!process::has_ended(child), "it does not wait to be ended");
    kill(child, Signal::SIGTERM).expect("it runs");
    check_status(&place, child, 85);
    check_goes_on(&place);
}

/// Whoever cancels a job does not want it back.
#[test]
fn cancelled_jobs_are_not_requeued() {
    let place = Workplace::new(User::Plain);
    play(&place, "squeue", "echo COMPLETING 10:00 None");
    play(&place, "scontrol", "echo $* >> requeued");
    let child = place.start(run_in_slurm(&place, &["--requeue"]));
    await_lines(&place, 2);
    kill(child, Signal::SIGTERM).expect("it runs");
    check_status(&place, child, 85);
    assert!(!place.has("requeued"), "{}", place.text("requeued"));
    assert!(place.text("stderr").contains("not requeued"), "{}", place.text("stderr"));
    check_goes_on(&place);
}

/// Batch systems tell all processes of a job, which may have ended before the supervisor heard.
#[test]
fn job_that_heard_first_has_not_finished() {
    let place = Workplace::new(User::Plain);
    play(&place, "squeue", "echo COMPLETING 10:00 None");
    let script = format!("trap 'exit 3' TERM; {JOB}");
    let mut command = place.rckpt(&["run", "--resume", "--every", "1", "--dir", "job", "--"]);
    let path = format!("{}:/usr/bin:/bin", place.path("").display());
    command.env("PATH", path).env("SLURM_JOB_ID", "7").args(["sh", "-c", &script]);
    let child = place.start(&mut command);
    assert!(poll(PATIENCE, || place.has("job/latest").then_some(())).is_some());
    kill(process::children(child)[0], Signal::SIGTERM).expect("it runs");
    let over = poll(PATIENCE, || process::children(child).is_empty().then_some(()));
    assert!(over.is_some());
    kill(child, Signal::SIGTERM).expect("it waits for last words");
    check_status(&place, child, 3);
    assert!(!place.has("job/finished.json"), "{}", place.text("job/finished.json"));
    let child = place.start(&mut command);
    check_status(&place, child, 0);
    assert_eq!(place.text("stdout"), whole_output());
}

/// Without any signal, the last checkpoint comes before the time is over.
#[test]
fn last_checkpoint_before_the_limit() {
    let place = Workplace::new(User::Plain);
    play(&place, "squeue", "echo RUNNING 0:04 None");
    let begun = Instant::now();
    let child = place.start(run_in_slurm(&place, &[]));
    check_status(&place, child, 85);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert!(place.text("stderr").contains("nearly over"), "{}", place.text("stderr"));
    check_goes_on(&place);
}

/// The same from the environment, as newer versions of Slurm have it.
#[test]
fn limit_in_the_environment() {
    let place = Workplace::new(User::Plain);
    play(&place, "squeue", "exit 1");
    play(&place, "scontrol", "echo $* >> requeued");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is");
    let mut command = run_in_slurm(&place, &["--requeue"]);
    command.env("SLURM_JOB_END_TIME", (now.as_secs() + 4).to_string());
    command.env("SLURM_ARRAY_JOB_ID", "6").env("SLURM_ARRAY_TASK_ID", "3");
    let child = place.start(command);
    let requeued = poll(PATIENCE, || place.text("requeued").ends_with('\n').then_some(()));
    assert!(requeued.is_some(), "{}", place.text("stderr"));
    assert_eq!(place.text("requeued"), "requeue 6_3\n");
    kill(child, Signal::SIGTERM).expect("it runs");
    check_status(&place, child, 85);
    check_goes_on(&place);
}

/// The time that is allowed may grow meanwhile.
#[test]
fn limit_that_moves() {
    let place = Workplace::new(User::Plain);
    play(
        &place,
        "squeue",
        "if [ -e asked ]; then echo RUNNING 10:00 None; else touch asked; echo RUNNING 0:04 None; fi",
    );
    let child = place.start(run_in_slurm(&place, &[]));
    check_status(&place, child, 0);
    assert!(place.has("asked"));
    assert_eq!(place.text("stdout"), whole_output());
}

/// A batch system that does not answer holds up nobody.
#[test]
fn silent_batch_system() {
    let place = Workplace::new(User::Plain);
    play(&place, "squeue", "sleep 1000");
    let child = place.start(run_in_slurm(&place, &[]));
    check_status(&place, child, 0);
    assert_eq!(place.text("stdout"), whole_output());
}

/// All starts together take no longer than the user allows.
#[test]
fn budget_over_all_starts() {
    let place = Workplace::new(User::Plain);
    let begin = |budget| place.start(run(&place, &["--max-total", budget]));
    check_status(&place, begin("2"), 124);
    let written = place.text("stdout");
    check_status(&place, begin("2"), 124);
    assert!(
        place.text("stderr").contains("--max-total allows no more"),
        "{}",
        place.text("stderr")
    );
    assert_eq!(place.text("stdout"), written, "it ran on");
    check_status(&place, begin("1h"), 0);
    assert_eq!(place.text("stdout"), whole_output());
}

#[test]
fn grid_engine_starts_again_by_exit_status() {
    let place = Workplace::new(User::Plain);
    let mut command = run(&place, &["--requeue"]);
    let child = place.start(command.env("JOB_ID", "5").env("SGE_TASK_ID", "undefined"));
    await_lines(&place, 2);
    kill(child, Signal::SIGUSR1).expect("it runs");
    check_status(&place, child, 99);
    check_goes_on(&place);
}

#[test]
fn wrong_ways_round_are_refused() {
    let place = Workplace::new(User::Plain);
    for (command, right) in [("srun", "srun rckpt run"), ("ssh", "ssh HOST rckpt run")] {
        let answer = place.ask(&["run", "--dir", "job", "--", command, "-n", "2", "true"]);
        assert_eq!(answer.status, Some(125), "{answer:#?}");
        assert!(answer.words.contains(right), "{answer:#?}");
    }
    assert!(!place.has("job"));
}

/// The interval comes from what a checkpoint costs, and can be seen.
#[test]
fn interval_by_itself() {
    let place = Workplace::new(User::Plain);
    let words = ["run", "--every", "auto", "--dir", "job", "--", "sleep", "1000"];
    let child = place.start(place.rckpt(&words));
    let listed = || -> Option<Value> {
        let jobs: Value = serde_json::from_str(&place.tell(&["list", "--json"])).expect("JSON");
        let mine = |job: &&Value| job["supervisor"].as_i64() == Some(child.as_raw().into());
        jobs.as_array()?.iter().find(mine).cloned()
    };
    let job = poll(PATIENCE, listed).expect("it is listed");
    let left = |job: &Value| {
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is");
        job["next"].as_u64().expect("there is a next checkpoint") - now.as_secs()
    };
    assert!((50..=60).contains(&left(&job)), "{job}");
    std::thread::sleep(Duration::from_secs(3));
    place.tell(&["dump", &job["root"].to_string()]);
    let job = listed().expect("it is listed");
    assert!(left(&job) >= 58 && job["every"].as_u64() >= Some(60), "{job}");
    assert!(job["pause"].as_f64() > Some(0.0) && job["bytes"].as_u64() > Some(0), "{job}");
}
