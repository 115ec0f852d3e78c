//! Ctrl-C: what a command has begun is gone with it, it ends by the signal, and the job runs on.

use std::fs;

use nix::sys::signal::{Signal, kill};

use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::workplace::{User, Workplace};

/// The names in the test's directory that begin so.
fn names(place: &Workplace, begin: &str) -> Vec<String> {
    let names = fs::read_dir(place.path("")).expect("list the directory");
    let names = names.map(|entry| entry.expect("an entry").file_name().display().to_string());
    names.filter(|name| name.starts_with(begin)).collect()
}

/// Interrupts rckpt as soon as there is a file whose name begins with `sign`, which must be gone afterwards. On a
/// busy machine it may be quicker than this test, and is tried again.
fn interrupt(place: &Workplace, words: &[&str], sign: &str, signal: Signal) {
    let is_caught = (0..20).any(|_| try_to_interrupt(place, words, sign, signal));
    assert!(is_caught, "{words:?} is always quicker: {}", place.text("stderr"));
}

fn try_to_interrupt(place: &Workplace, words: &[&str], sign: &str, signal: Signal) -> bool {
    let command = place.start(place.rckpt(words));
    let begun = poll(PATIENCE, || {
        (!names(place, sign).is_empty() || process::has_ended(command)).then_some(())
    });
    assert!(begun.is_some(), "{words:?}: {}", place.text("stderr"));
    kill(command, signal).expect("interrupt it");
    let status = process::exit_status(command, PATIENCE);
    assert_eq!(names(place, sign), Vec::<String>::new(), "{words:?}");
    let is_caught = status == Some(128 + signal as i32);
    assert!(is_caught || status == Some(0), "{words:?}: {status:?} {}", place.text("stderr"));
    if !is_caught && place.has("core") {
        fs::remove_file(place.path("core")).expect("remove the core file");
    }
    is_caught
}

#[test]
fn nothing_is_left_of_what_was_interrupted() {
    let place = Workplace::new(User::Plain);
    let hold = "import os, time; held = os.urandom(64 << 20); print('ready', flush=True); time.sleep(1000)";
    let job = place.start(place.command("/usr/bin/python3").args(["-c", hold]));
    assert!(poll(PATIENCE, || place.text("stdout").contains("ready").then_some(())).is_some());
    let number = job.to_string();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        interrupt(&place, &["dump", &number, "--dir", "never", "--rate", "8M"], "never", signal);
    }
    let words = place.text("stderr");
    assert!(words.contains("given up, and nothing of it is left; the job runs on"), "{words}");
    assert!(!words.contains("error["), "{words}");
    assert_eq!(process::status_number(job, "TracerPid"), Some(0));
    place.tell(&["dump", &number, "--dir", "job", "--kill"]);
    interrupt(&place, &["core", "job", "-o", "core"], ".core", Signal::SIGINT);
    assert!(!place.has("core"));
    place.tell(&["core", "job", "-o", "core"]);
    assert_eq!(names(&place, ".core"), Vec::<String>::new());
    interrupt(&place, &["check"], ".rckpt-check-", Signal::SIGHUP);
}

#[test]
fn a_demonstration_that_was_interrupted() {
    let place = Workplace::new(User::Plain);
    let mut demo = place.rckpt(&["demo"]);
    demo.env("TMPDIR", place.path(""));
    let demo = place.start(demo);
    assert!(
        poll(PATIENCE, || place.text("stdout").contains("prime 2 is 3").then_some(())).is_some()
    );
    kill(demo, Signal::SIGINT).expect("interrupt it");
    assert_eq!(process::exit_status(demo, PATIENCE), Some(130));
    assert_eq!(names(&place, "rckpt-demo"), Vec::<String>::new());
    let words = format!("{}{}", place.text("stdout"), place.text("stderr"));
    assert!(!words.contains("error["), "{words}");
}
