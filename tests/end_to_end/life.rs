//! A job's life under one line of shell: lost and started again by the same words, until it is done.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::workplace::{User, Workplace};

/// Thirty lines of output, the last after three seconds, and an exit status to tell it by.
const JOB: &str = "i=0; while [ $i -lt 30 ]; do echo line $i; i=$((i+1)); sleep 0.1; done; exit 7";

/// What the job writes when nothing happens to it.
fn whole_output() -> String {
    (0..30).map(|number| format!("line {number}\n")).collect()
}

const LINE: [&str; 9] = ["run", "--resume", "--every", "1", "--dir", "job", "--", "sh", "-c"];

fn start(place: &Workplace) -> nix::unistd::Pid {
    place.start(place.rckpt(&LINE).arg(JOB))
}

/// The events in the journal of `job`, by their names.
fn events(place: &Workplace) -> Vec<String> {
    place
        .text("job/events.jsonl")
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"))
        .map(|event| event["event"].as_str().expect("an event has a name").to_owned())
        .collect()
}

/// Everything is killed at uneven moments, before the first checkpoint and after, and the same line
/// goes on each time.
fn killed_again_and_again(user: User) {
    let place = Workplace::new(user);
    for round in 0..8_u64 {
        start(&place);
        std::thread::sleep(Duration::from_millis(150 + round * 467 % 1400));
        process::kill_descendants();
    }
    let last = start(&place);
    assert_eq!(process::exit_status(last, PATIENCE), Some(7), "{}", place.text("stderr"));
    assert_eq!(place.text("stdout"), whole_output());

    let again = start(&place);
    assert_eq!(process::exit_status(again, PATIENCE), Some(7), "{}", place.text("stderr"));
    assert_eq!(place.text("stdout"), whole_output(), "a finished job was run again");
    assert_eq!(events(&place).last().map(String::as_str), Some("finished"));
    assert!(place.text("stderr").contains("is not run again"), "{}", place.text("stderr"));
}

#[test]
fn one_line_does_it_all_plain_user() {
    killed_again_and_again(User::Plain);
}

#[test]
fn one_line_does_it_all_caller() {
    killed_again_and_again(User::Caller);
}

/// A pipeline of a walk, a copy of it, and a count, with so many seconds between two steps.
fn walk(seconds: &str) -> String {
    format!("python3 walk.py {seconds} | tee output.copy | awk '{{ print NR, $0; fflush() }}'")
}

/// What a walk has written.
fn walked(place: &Workplace) -> [String; 3] {
    ["stdout", "output.copy", "output.log"].map(|name| place.text(name))
}

/// Twenty times everything is killed at moments that nobody chose, and the same line goes on.
#[test]
fn killed_twenty_times_at_random() {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/walk.py");
    let source = fs::read_to_string(source).expect("read a program");
    let undisturbed = Workplace::new(User::Plain);
    undisturbed.write("walk.py", &source);
    let child = undisturbed.start(undisturbed.command("sh").args(["-c", &walk("0")]));
    assert_eq!(process::exit_status(child, PATIENCE), Some(0), "{}", undisturbed.text("stderr"));
    let expected = walked(&undisturbed);

    let place = undisturbed.another("killed");
    place.write("walk.py", &source);
    let start = || {
        let words =
            ["run", "--resume", "--every", "1", "--outputs", "output.log", "--dir", "job", "--"];
        place.start(place.rckpt(&words).args(["sh", "-c", &walk("0.04")]))
    };
    let mut moments = Vec::new();
    for _ in 0..20 {
        let child = start();
        let moment = Duration::from_millis(200 + u64::from(random()) * 8);
        moments.push(moment);
        std::thread::sleep(moment);
        if process::has_ended(child) {
            // It has come to its end already: on a quick machine little is lost each time.
            let status = process::exit_status(child, PATIENCE);
            assert_eq!(status, Some(0), "killed at {moments:?}: {}", place.text("stderr"));
            break;
        }
        process::kill_descendants();
    }
    let last = start();
    let status = process::exit_status(last, PATIENCE);
    assert_eq!(status, Some(0), "killed at {moments:?}: {}", place.text("stderr"));
    for (expected, found) in expected.iter().zip(walked(&place)) {
        assert!(*expected == found, "killed at {moments:?}: {found}");
    }
}

/// A number that nobody chose.
fn random() -> u8 {
    let mut byte = [0];
    let source = fs::File::open("/dev/urandom").expect("there are random numbers");
    std::io::Read::read_exact(&mut { source }, &mut byte).expect("read one");
    byte[0]
}

#[test]
fn damaged_checkpoint_is_passed_over() {
    let place = Workplace::new(User::Plain);
    start(&place);
    let two = poll(PATIENCE, || place.has("job/gen-000002").then_some(()));
    assert!(two.is_some(), "{}", place.text("stderr"));
    process::kill_descendants();
    // Only what is its own: the one before may share the pages, by hard links.
    let path = place.path("job/gen-000002/image.rckpt");
    let mut bytes = fs::read(&path).expect("read the checkpoint");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).expect("damage it");
    let last = start(&place);
    assert_eq!(process::exit_status(last, PATIENCE), Some(7), "{}", place.text("stderr"));
    assert_eq!(place.text("stdout"), whole_output());
    let words = place.text("stderr");
    assert!(words.contains("is damaged, and passed over"), "{words}");
    assert!(events(&place).contains(&"passed_over".to_owned()));
}

#[test]
fn second_one_is_refused_by_host_and_pid() {
    let place = Workplace::new(User::Plain);
    let first = start(&place);
    assert!(poll(PATIENCE, || place.has("job/latest").then_some(())).is_some());
    let mut words = LINE.to_vec();
    words.push(JOB);
    let answer = place.ask(&words);
    assert_eq!(answer.status, Some(125), "{answer:#?}");
    let host = nix::unistd::gethostname().expect("a host has a name");
    let expected = format!("rckpt process {first} on {}", host.to_string_lossy());
    assert!(answer.words.contains(&expected), "{answer:#?}");
    assert_eq!(process::exit_status(first, PATIENCE), Some(7));
    assert_eq!(place.text("stdout"), whole_output());
}

#[test]
fn fresh_start_keeps_the_old_directory() {
    let place = Workplace::new(User::Plain);
    assert_eq!(
        place.ask(&["run", "--dir", "job", "--every", "1", "--", "sleep", "1.5"]).status,
        Some(0)
    );
    let other = ["run", "--resume", "--dir", "job", "--", "echo", "other"];
    let answer = place.ask(&other);
    assert_eq!(answer.status, Some(125), "{answer:#?}");
    assert!(answer.words.contains("another command: sleep 1.5"), "{answer:#?}");
    assert!(answer.words.contains("--fresh"), "{answer:#?}");
    let answer = place.ask(&["run", "--fresh", "--dir", "job", "--", "echo", "other"]);
    assert_eq!((answer.status, answer.output.as_str()), (Some(0), "other\n"), "{answer:#?}");
    assert!(place.has("job.old-1/gen-000001") && !place.has("job/gen-000001"));
}

/// A job that a signal ended has not finished: it goes on where it was.
#[test]
fn killed_job_has_not_finished() {
    let place = Workplace::new(User::Plain);
    let first = start(&place);
    assert!(poll(PATIENCE, || place.has("job/latest").then_some(())).is_some());
    kill(process::children(first)[0], Signal::SIGKILL).expect("the job runs");
    assert_eq!(process::exit_status(first, PATIENCE), Some(137));
    let last = start(&place);
    assert_eq!(process::exit_status(last, PATIENCE), Some(7), "{}", place.text("stderr"));
    assert_eq!(place.text("stdout"), whole_output());
}

/// A job goes on when its supervisor is killed. As long as it does nobody brings it back beside itself;
/// saved and ended in one step, it goes on from there, first as it was started and then as brought back.
#[test]
fn job_that_still_runs_is_not_started_again() {
    let place = Workplace::new(User::Plain);
    let job = JOB.replace("-lt 30", "-lt 150");
    let start = || place.start(place.rckpt(&LINE).arg(&job));
    for round in 1..=2 {
        let first = start();
        let lines = || place.text("stdout").lines().count();
        let before = lines();
        let goes_on = || (lines() > before + 2).then_some(());
        assert!(poll(PATIENCE, goes_on).is_some(), "{}", place.text("stderr"));
        kill(first, Signal::SIGKILL).expect("it runs");
        assert!(process::exit_status(first, PATIENCE).is_some());
        let mut words = LINE.to_vec();
        words.push(&job);
        let answer = place.ask(&words);
        assert_eq!(answer.status, Some(125), "{answer:#?}");
        assert!(answer.words.contains("still runs, without a supervisor: process "), "{answer:#?}");
        let named = answer.words.split("supervisor: process ").nth(1).expect("it is named");
        let pid = named.split(' ').next().expect("a number").to_owned();
        assert!(answer.words.contains(&format!("rckpt dump {pid} --kill")), "{answer:#?}");
        let path = place.tell(&["dump", &pid, "--kill"]);
        assert!(path.contains("/job/gen-"), "round {round}: {path}");
        process::kill_descendants();
    }
    let last = start();
    assert_eq!(process::exit_status(last, PATIENCE), Some(7), "{}", place.text("stderr"));
    let whole: String = (0..150).map(|number| format!("line {number}\n")).collect();
    assert_eq!(place.text("stdout"), whole);
}

#[test]
fn going_on_needs_a_directory() {
    let place = Workplace::new(User::Plain);
    let answer = place.ask(&["run", "--resume", "--", "true"]);
    assert_eq!(answer.status, Some(125), "{answer:#?}");
    assert!(answer.words.contains("--dir DIR"), "{answer:#?}");
}
