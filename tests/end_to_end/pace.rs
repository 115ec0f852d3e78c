//! When checkpoints are taken by the clock, and what is written and said of them.

use std::time::{Duration, Instant};

use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::workplace::{User, Workplace};

/// The job that `child` supervises, as `list` tells.
fn listed(place: &Workplace, child: Pid) -> Value {
    let found = || -> Option<Value> {
        let jobs: Value = serde_json::from_str(&place.tell(&["list", "--json"])).expect("JSON");
        let mine = |job: &&Value| job["supervisor"].as_i64() == Some(child.as_raw().into());
        jobs.as_array()?.iter().find(mine).cloned()
    };
    poll(PATIENCE, found).unwrap_or_else(|| panic!("not listed: {}", place.text("stderr")))
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.expect("it is later").as_secs()
}

/// The events of one kind.
fn events(place: &Workplace, kind: &str) -> Vec<Value> {
    let text = place.text("job/events.jsonl");
    let all = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    all.filter(|event| event["event"] == kind).collect()
}

/// A start-up that is quickly done again is not saved by the clock, though it is on request.
#[test]
fn none_by_the_clock_in_the_beginning() {
    let place = Workplace::new(User::Plain);
    let words = ["run", "--dir", "job", "--every", "1", "--no-checkpoint-before", "4", "--"];
    let begun = Instant::now();
    let child = place.start(place.rckpt(&words).args(["sleep", "1000"]));
    let job = listed(&place, child);
    assert!(job["next"].as_u64() > Some(now() + 1), "{job}");
    std::thread::sleep(Duration::from_millis(2500));
    assert!(!place.has("job/latest"), "{}", place.text("stderr"));
    place.tell(&["dump", &job["root"].to_string()]);
    assert!(place.has("job/gen-000001") && begun.elapsed() < Duration::from_secs(4));
    let third = poll(PATIENCE, || place.has("job/gen-000003").then_some(()));
    assert!(third.is_some(), "{}", place.text("stderr"));
    assert!(begun.elapsed() > Duration::from_secs(5), "{:?}", begun.elapsed());
}

/// The interval that is chosen grows with the time between interruptions and with what checkpoints cost.
#[test]
fn chosen_by_cost_and_interruptions() {
    let place = Workplace::new(User::Plain);
    let every = |name: &str, words: &[&str]| {
        let place = place.another(name);
        let program = "import os, time\n\
            held = os.urandom(40 << 20)\nopen('ready', 'w').close()\ntime.sleep(1000)\n";
        let mut run = place.rckpt(&["run", "--every", "auto", "--dir", "job"]);
        let child = place.start(run.args(words).args(["--", "python3", "-c", program]));
        assert!(poll(PATIENCE, || place.has("ready").then_some(())).is_some());
        let job = listed(&place, child);
        assert_eq!(job["every"].as_u64(), Some(60), "nothing is known yet: {job}");
        place.tell(&["dump", &job["root"].to_string()]);
        let job = listed(&place, child);
        // It counts from that checkpoint on.
        let every = job["every"].as_u64().expect("there is an interval");
        let next = job["next"].as_u64().expect("there is a next one");
        assert!(next + 5 > now() + every, "{job}");
        every
    };
    let seldom = every("seldom", &["--mtbi", "1000d"]);
    let usually = every("usually", &[]);
    let often = every("often", &["--mtbi", "10m"]);
    assert!(seldom > usually && usually >= often, "{seldom} {usually} {often}");
    assert_eq!(often, 60);
    assert!(seldom <= 3600, "{seldom}");
    let answer = place.ask(&["run", "--every", "5m", "--mtbi", "1h", "--dir", "job", "--", "true"]);
    assert_eq!(answer.status, Some(125), "{answer:#?}");
    assert!(answer.words.contains("--every auto"), "{answer:#?}");
}

/// Each checkpoint's line in the journal has all the facts, and the last words sum them up.
#[test]
fn facts_of_each_checkpoint() {
    let place = Workplace::new(User::Plain);
    let program = "import os, time\nheld = os.urandom(30 << 20)\nopen('ready', 'w').close()\n\
        while not os.path.exists('go'): time.sleep(0.01)\n";
    let words = ["run", "--dir", "job", "--", "python3", "-c", program];
    let child = place.start(place.rckpt(&words));
    assert!(poll(PATIENCE, || place.has("ready").then_some(())).is_some());
    let root = process::children(child)[0].to_string();
    let report: Value =
        serde_json::from_str(&place.tell(&["dump", &root, "--json"])).expect("JSON");
    assert_eq!(report["dirty_share"].as_f64(), Some(1.0), "{report}");
    place.tell(&["dump", &root]);
    place.write("go", "");
    assert_eq!(process::exit_status(child, PATIENCE), Some(0), "{}", place.text("stderr"));
    let taken = events(&place, "checkpoint");
    assert_eq!(taken.len(), 2, "{taken:?}");
    let number = |event: &Value, name: &str| {
        event[name].as_f64().unwrap_or_else(|| panic!("no {name} in {event}"))
    };
    for event in &taken {
        assert!(number(event, "pause_ms") > 0.0 && number(event, "pause_ms") < 60_000.0, "{event}");
        assert!(number(event, "write_ms") >= number(event, "pause_ms"), "{event}");
        assert!(number(event, "bytes") > 0.0 && number(event, "time") > 1e9, "{event}");
        assert!(event["generation"].as_str().is_some_and(|it| it.contains("gen-")), "{event}");
    }
    // Only little of it was written to in between.
    assert!(number(&taken[0], "dirty_share") == 1.0, "{}", taken[0]);
    assert!((0.0..0.3).contains(&number(&taken[1], "dirty_share")), "{}", taken[1]);
    assert!(number(&taken[1], "bytes") < number(&taken[0], "bytes") / 2.0, "{taken:?}");
    let finished = events(&place, "finished");
    assert_eq!(finished.len(), 1);
    assert_eq!(finished[0]["status"].as_i64(), Some(0));
    let words = place.text("stderr");
    let last = words.lines().last().unwrap_or_default();
    assert!(last.contains("exited with status 0") && last.contains("2 checkpoints"), "{words}");
}

/// `--quiet` says what goes wrong, and nothing else.
#[test]
fn quiet() {
    let place = Workplace::new(User::Plain);
    // Whoever runs the tests may have left descriptors open to them, which are warned of.
    let is_quiet = |words: &[&str]| {
        let answer = place.ask(words);
        assert_eq!(answer.status, Some(0), "{answer:#?}");
        assert!(answer.words.lines().all(|line| line.contains("warning: ")), "{answer:#?}");
    };
    is_quiet(&["run", "-q", "--dir", "job", "--every", "1", "--", "sleep", "1.5"]);
    assert!(place.has("job/latest"));
    is_quiet(&["run", "--quiet", "--resume", "--dir", "job", "--", "sleep", "1.5"]);
    // Nothing can be put there.
    let words = ["run", "-q", "--dir", "other", "--every", "1", "--", "sh", "-c"];
    let script = "rm -r other; : > other; sleep 1.5";
    let answer = place.ask(&[&words[..], &[script]].concat());
    assert_eq!(answer.status, Some(0), "{answer:#?}");
    assert!(answer.words.contains("no checkpoint"), "{answer:#?}");
    assert!(!answer.words.contains("to bring the job back"), "{answer:#?}");
}

/// A limit on how much is written in a second holds while the job runs on, and only then.
#[test]
fn a_limit_on_what_is_written() {
    let place = Workplace::new(User::Plain);
    let program = "import os, time\n\
        held = os.urandom(12 << 20)\nopen('ready', 'w').close()\ntime.sleep(1000)\n";
    let mut run = place.rckpt(&["run", "--dir", "job", "--rate", "4M"]);
    let child = place.start(run.args(["--", "python3", "-c", program]));
    assert!(poll(PATIENCE, || place.has("ready").then_some(())).is_some());
    let root = listed(&place, child)["root"].to_string();
    let seconds = |words: &[&str]| {
        let told = place.tell(&[&["dump", "--json", &root], words].concat());
        let report: Value = serde_json::from_str(&told).expect("JSON");
        report["seconds"].as_f64().expect("seconds")
    };
    // Its 12 chunks of random bytes, but for the first.
    assert!(seconds(&["--dir", "one"]) > 2.5);
    assert!(seconds(&["--dir", "two", "--rate", "8M"]) > 1.2);
    let begun = Instant::now();
    place.tell(&["dump", "--dir", "three", "--rate", "1M", "--kill", &root]);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}
