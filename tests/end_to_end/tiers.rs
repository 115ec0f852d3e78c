//! Two directories for one job: checkpoints are written to a fast local one first and copied to the job's
//! own in the background; whichever is there, the job goes on from the newest that is whole.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::workplace::{User, Workplace};

/// Memory that cannot be compressed, so that copying takes a moment, and a line of output each tenth of a
/// second.
fn program(mebibytes: u32, lines: u32) -> String {
    format!(
        "import os, time\n\
         held = os.urandom({mebibytes} << 20)\n\
         for i in range({lines}):\n    print('line', i, flush=True)\n    time.sleep(0.1)\n"
    )
}

fn whole_output(lines: u32) -> String {
    (0..lines).map(|number| format!("line {number}\n")).collect()
}

/// `run --resume` with both directories; the program in `program.py`.
fn start(place: &Workplace, words: &[&str]) -> Pid {
    let mut command = place.rckpt(&["run", "--resume", "--dir", "job", "--local", "local"]);
    place.start(command.args(words).args(["--", "python3", "program.py"]))
}

/// The numbers of the complete checkpoints in a directory.
fn numbers(place: &Workplace, directory: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(place.path(directory)) else { return Vec::new() };
    let mut numbers: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| {
            entry.file_name().to_string_lossy().strip_prefix("gen-").and_then(|it| it.parse().ok())
        })
        .collect();
    numbers.sort_unstable();
    numbers
}

fn newest(place: &Workplace, directory: &str) -> u32 {
    numbers(place, directory).last().copied().unwrap_or(0)
}

fn await_copy(place: &Workplace, number: u32) {
    // A checkpoint has its name a moment before `latest` leads to it.
    let settled = |directory: &str| {
        let latest = fs::read_link(place.path(directory).join("latest"));
        latest.is_ok_and(|it| it == Path::new(&format!("gen-{:06}", newest(place, directory))))
    };
    let all = || newest(place, "job") >= number && settled("job") && settled("local");
    let came = poll(PATIENCE, || all().then_some(()));
    assert!(came.is_some(), "no copy: {}", place.text("stderr"));
}

fn check_end(place: &Workplace, child: Pid, lines: u32) {
    assert_eq!(process::exit_status(child, PATIENCE), Some(0), "{}", place.text("stderr"));
    assert_eq!(place.text("stdout"), whole_output(lines), "{}", place.text("stderr"));
}

/// The root process of the job that `child` supervises, started or brought back.
fn root_of(place: &Workplace, child: Pid) -> Pid {
    let listed = || {
        let jobs: Value = serde_json::from_str(&place.tell(&["list", "--json"])).expect("JSON");
        let mine = |job: &&Value| job["supervisor"].as_i64() == Some(child.as_raw().into());
        let root = jobs.as_array()?.iter().find(mine)?["root"].as_i64()?;
        i32::try_from(root).ok().map(Pid::from_raw)
    };
    poll(PATIENCE, listed).unwrap_or_else(|| panic!("not listed: {}", place.text("stderr")))
}

/// Saves the job once it has its memory.
fn dump(place: &Workplace, child: Pid) -> String {
    let has_begun = || place.text("stdout").contains("line").then_some(());
    assert!(poll(PATIENCE, has_begun).is_some(), "{}", place.text("stderr"));
    place.tell(&["dump", &root_of(place, child).to_string()]).trim().to_owned()
}

fn events(place: &Workplace) -> Vec<Value> {
    let text = place.text("job/events.jsonl");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// Where the job was brought back from, each time.
fn resumed_from(place: &Workplace) -> Vec<String> {
    let resumed = events(place).into_iter().filter(|event| event["event"] == "resumed");
    resumed
        .map(|event| {
            let path = event["generation"].as_str().expect("a path").to_owned();
            let own = place.path("").display().to_string();
            path.trim_start_matches(&own).trim_start_matches('/').to_owned()
        })
        .collect()
}

/// Written to the local directory, copied, and listed in both; restored from the local one.
#[test]
fn written_here_and_copied_there() {
    let place = Workplace::new(User::Plain);
    place.write("program.py", &program(20, 40));
    let child = start(&place, &["--every", "1", "--keep", "2"]);
    let path = dump(&place, child);
    assert!(path.contains("/local/gen-"), "{path}");
    await_copy(&place, 3);
    process::kill_descendants();
    place.tell(&["verify", "job", "--deep"]);
    place.tell(&["verify", "local", "--deep"]);
    for directory in ["job", "local"] {
        let latest = fs::read_link(place.path(directory).join("latest")).expect("a link");
        assert_eq!(latest, Path::new(&format!("gen-{:06}", newest(&place, directory))));
        assert!(numbers(&place, directory).len() <= 3, "{:?}", numbers(&place, directory));
    }
    let listed: Value =
        serde_json::from_str(&place.tell(&["list", "job", "--json"])).expect("JSON");
    let checkpoints = listed["checkpoints"].as_array().expect("a list");
    let last = checkpoints.last().expect("there is one");
    assert_eq!(last["latest"], true, "{listed:#}");
    assert!(last["path"].as_str().is_some_and(|path| path.contains("/local/")), "{listed:#}");
    assert!(checkpoints.iter().any(|checkpoint| checkpoint["where"] == "both"), "{listed:#}");
    assert!(place.tell(&["list", "job"]).contains("WHERE"));
    let inspected = place.tell(&["inspect", "job"]);
    assert!(inspected.contains("python3"), "{inspected}");
    let copied: Vec<Value> =
        events(&place).into_iter().filter(|event| event["event"] == "copied").collect();
    assert!(copied.iter().all(|event| event["bytes"].as_u64() > Some(0)), "{copied:?}");
    // What two checkpoints share is copied once.
    assert!(copied.iter().any(|event| event["bytes"].as_u64() < Some(10 << 20)), "{copied:?}");

    let child = start(&place, &[]);
    check_end(&place, child, 40);
    let from = resumed_from(&place);
    assert!(from[0].starts_with("local/gen-"), "{from:?}");
}

/// On another node there is no local directory, or one that an earlier start left there.
#[test]
fn on_another_node() {
    let place = Workplace::new(User::Plain);
    place.write("program.py", &program(1, 60));
    let child = start(&place, &[]);
    dump(&place, child);
    await_copy(&place, 1);
    process::kill_descendants();
    // The second node, where nothing is.
    fs::rename(place.path("local"), place.path("local.first")).expect("move it");
    let child = start(&place, &[]);
    let number = |path: &str| path.rsplit('-').next().and_then(|it| it.parse::<u32>().ok());
    assert_eq!(number(&dump(&place, child)), Some(2));
    assert_eq!(number(&dump(&place, child)), Some(3));
    await_copy(&place, 3);
    process::kill_descendants();
    // Back on the first one: what it has is older.
    fs::rename(place.path("local"), place.path("local.second")).expect("move it");
    fs::rename(place.path("local.first"), place.path("local")).expect("move it");
    let listed = place.tell(&["list", "job", "--json"]);
    assert!(!listed.contains("/local/"), "{listed}");
    let child = start(&place, &[]);
    assert_eq!(number(&dump(&place, child)), Some(4));
    // What was left there is gone.
    assert_eq!(numbers(&place, "local"), [4]);
    await_copy(&place, 4);
    process::kill_descendants();
    let child = place.start(place.rckpt(&["restore", "job"]));
    check_end(&place, child, 60);
    let from = resumed_from(&place);
    assert_eq!(from[0], "job/gen-000001");
    assert_eq!(from[1], "job/gen-000003");
    assert_eq!(from[2], "local/gen-000004");
}

/// A damaged checkpoint in one directory is taken from the other.
#[test]
fn either_one_will_do() {
    let place = Workplace::new(User::Plain);
    place.write("program.py", &program(1, 30));
    let child = start(&place, &[]);
    dump(&place, child);
    await_copy(&place, 1);
    process::kill_descendants();
    let damage = |path: &str| {
        let path = place.path(path);
        let mut bytes = fs::read(&path).expect("read the checkpoint");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).expect("damage it");
    };
    damage("local/gen-000001/image.rckpt");
    // The local directory by itself leads to the job, too.
    for directory in ["job", "local"] {
        let answer = place.ask(&["restore", directory, "--dry-run"]);
        assert_eq!(answer.status, Some(0), "{answer:#?}");
        assert!(answer.output.contains("/job/gen-000001"), "{answer:#?}");
    }
    fs::rename(place.path("job/gen-000001"), place.path("hidden")).expect("hide it");
    let answer = place.ask(&["restore", "job"]);
    assert_eq!(answer.status, Some(125), "{answer:#?}");
    fs::rename(place.path("hidden"), place.path("job/gen-000001")).expect("show it");
    let child = start(&place, &[]);
    check_end(&place, child, 30);
    assert_eq!(resumed_from(&place), ["job/gen-000001"]);
    assert!(place.text("stderr").contains("passed over"), "{}", place.text("stderr"));
}

/// The last checkpoint goes where everybody finds it; a job that was killed leaves its newest there.
#[test]
fn what_is_left_when_the_job_stops() {
    let place = Workplace::new(User::Plain);
    place.write("program.py", &program(1, 60));
    let child = start(&place, &[]);
    dump(&place, child);
    kill(child, Signal::SIGTERM).expect("it runs");
    assert_eq!(process::exit_status(child, PATIENCE), Some(85), "{}", place.text("stderr"));
    assert_eq!(newest(&place, "job"), 2);
    fs::remove_dir_all(place.path("local")).expect("the node is gone");

    // The copy is not complete yet when a signal ends the job.
    let child = start(&place, &[]);
    let root = root_of(&place, child);
    place.tell(&["dump", &root.to_string()]);
    kill(root, Signal::SIGKILL).expect("it runs");
    assert_eq!(process::exit_status(child, PATIENCE), Some(137), "{}", place.text("stderr"));
    assert_eq!((newest(&place, "local"), newest(&place, "job")), (3, 3));
    fs::remove_dir_all(place.path("local")).expect("the node is gone");
    let child = start(&place, &[]);
    check_end(&place, child, 60);
}

/// The supervisor is killed while it copies: half a copy is none, the job runs on, and the next start
/// goes on from the local directory and copies what was not.
#[test]
fn killed_in_mid_copy() {
    let place = Workplace::new(User::Plain);
    place.write("program.py", &program(200, 100));
    let child = start(&place, &[]);
    dump(&place, child);
    let begun = || {
        let entries = fs::read_dir(place.path("job")).ok()?;
        let mut names = entries.flatten().map(|entry| entry.file_name());
        names.any(|name| name.to_string_lossy().starts_with(".tmp-")).then_some(())
    };
    assert!(poll(PATIENCE, begun).is_some(), "{}", place.text("stderr"));
    let root = process::children(child)[0];
    kill(child, Signal::SIGKILL).expect("it runs");
    assert!(process::exit_status(child, PATIENCE).is_some());
    assert_eq!(numbers(&place, "job"), [0_u32; 0], "it was too quick");
    // The job runs on, and is not started a second time.
    let lines = || place.text("stdout").lines().count();
    let before = lines();
    assert!(poll(PATIENCE, || (lines() > before).then_some(())).is_some(), "the job stands still");
    let again = start(&place, &[]);
    assert_eq!(process::exit_status(again, PATIENCE), Some(125), "{}", place.text("stderr"));
    let words = place.text("stderr");
    assert!(words.contains("still runs") && words.contains(&root.to_string()), "{words}");
    process::kill_descendants();

    let child = start(&place, &[]);
    await_copy(&place, 1);
    place.tell(&["verify", "job", "--deep"]);
    assert!(begun().is_none(), "what was left is not removed");
    check_end(&place, child, 100);
    assert_eq!(resumed_from(&place), ["local/gen-000001"]);
}

/// The local disk is full: the checkpoint goes to the job's own directory. Its own disk is full: the
/// checkpoint stays in the local one. Both are told, and the job goes on.
#[test]
fn one_disk_is_full() {
    let first = Workplace::new(User::Plain);
    for (small, words) in [("local", "could not take"), ("home", "local directory only")] {
        let place = first.another(small);
        place.write("program.py", &program(8, 60));
        for name in ["small", "large"] {
            place.make_directory(name);
        }
        let (home, local) =
            if small == "local" { ("large", "small/job") } else { ("small/job", "large") };
        let rckpt = crate::harness::workplace::rckpt_binary();
        let script = format!(
            "mount -t tmpfs -o size=4m tmpfs small && \
             {} run --dir {home} --local {local} -- python3 program.py & \
             until grep -q 'line 2' stdout; do sleep 0.05; done; \
             {} dump $(cat /proc/$!/task/$!/children) > said; \
             until grep -q '{words}' stderr; do sleep 0.05; done; wait $!",
            rckpt.display(),
            rckpt.display()
        );
        let unshare = ["--user", "--map-root-user", "--mount", "sh", "-c", &script];
        let child = place.start(place.command("unshare").args(unshare));
        check_end(&place, child, 60);
        assert!(place.text("said").contains("large/gen-000001"), "{}", place.text("said"));
        assert!(place.has("large/gen-000001"), "{}", place.text("stderr"));
    }
}

/// Copying gives way: its thread has the lowest priority.
#[test]
fn copies_give_way() {
    let place = Workplace::new(User::Plain);
    place.write("program.py", &program(100, 50));
    let child = start(&place, &[]);
    dump(&place, child);
    let nice = || {
        let tasks = fs::read_dir(format!("/proc/{child}/task")).ok()?;
        tasks.flatten().find_map(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).ok()?;
            let (name, rest) = stat.rsplit_once(") ")?;
            let nice = rest.split(' ').nth(16)?.to_owned();
            name.ends_with("(copy").then_some(nice).filter(|nice| nice != "0")
        })
    };
    assert_eq!(poll(PATIENCE, nice).as_deref(), Some("19"), "{}", place.text("stderr"));
    check_end(&place, child, 50);
}

/// A directory that is another job's, or the job's own, is refused before anything runs.
#[test]
fn wrong_directories_are_refused() {
    let place = Workplace::new(User::Plain);
    place.write("program.py", &program(1, 20));
    let other = ["run", "--dir", "other", "--every", "1", "--", "sleep", "1.5"];
    assert_eq!(place.ask(&other).status, Some(0));
    for (local, words) in [("other", "another job: sleep 1.5"), ("job", "job's directory itself")] {
        let answer =
            place.ask(&["run", "--dir", "job", "--local", local, "--", "touch", "started"]);
        assert_eq!(answer.status, Some(125), "{answer:#?}");
        assert!(answer.words.contains(words) && answer.words.contains("--local"), "{answer:#?}");
    }
    assert!(!place.has("started"));
    // One that cannot be run leaves nothing behind.
    let words = ["run", "--dir", "none", "--local", "none.local", "--", "./missing"];
    assert_eq!(place.ask(&words).status, Some(127));
    assert!(!place.has("none") && !place.has("none.local"));
    // A disk that this node does not have is no reason not to run.
    let words = ["run", "--dir", "job", "--local", "/proc/none", "--every", "1", "--"];
    let answer = place.ask(&[&words[..], &["sleep", "1.5"]].concat());
    assert_eq!(answer.status, Some(0), "{answer:#?}");
    assert!(answer.words.contains("not written to a local directory"), "{answer:#?}");
    assert_eq!(newest(&place, "job"), 1);
}

/// `--fresh` begins anew in both.
#[test]
fn fresh_starts_take_over_the_local_directory() {
    let place = Workplace::new(User::Plain);
    place.write("program.py", &program(1, 20));
    let run = |words: &[&str]| {
        let command = ["run", "--dir", "job", "--local", "local", "--every", "1"];
        place.ask(&[&command[..], words, &["--", "sleep", "2"]].concat())
    };
    assert_eq!(run(&[]).status, Some(0));
    let before = fs::metadata(place.path("local/gen-000001/image.rckpt")).expect("it is there");
    assert_eq!(run(&["--fresh"]).status, Some(0));
    let after = fs::metadata(place.path("local/gen-000001/image.rckpt")).expect("it is there");
    assert_ne!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
    // Its checkpoints are those of the new job only.
    let listed = place.tell(&["list", "job.old-1", "--json"]);
    assert!(!listed.contains("/local/"), "{listed}");
}
