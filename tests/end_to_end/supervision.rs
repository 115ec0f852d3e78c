//! `run` and `restore` as the job's parent: exit status, signals, streams, checkpoints by the clock, and
//! what the reporting commands say of them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::rounds::{Case, Running, Start};
use crate::harness::workplace::{User, Workplace, joined, rckpt_binary};

/// The names of the complete checkpoints in `job`.
fn generations(place: &Workplace) -> Vec<String> {
    let Ok(entries) = fs::read_dir(place.path("job")) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("gen-"))
        .collect();
    names.sort();
    names
}

fn run_shell(place: &Workplace, script: &str) -> Option<i32> {
    place.ask(&["run", "--dir", "job", "--", "sh", "-c", script]).status
}

#[test]
fn exit_status_is_the_jobs_own() {
    for (script, status) in
        [("exit 0", 0), ("exit 7", 7), ("exit 125", 125), ("kill -9 $$", 137), ("kill $$", 143)]
    {
        let place = Workplace::new(User::Plain);
        assert_eq!(run_shell(&place, script), Some(status), "{script}");
    }
}

#[test]
fn command_that_cannot_be_run() {
    let place = Workplace::new(User::Plain);
    place.write("text", "no program");
    for (command, status) in [("./text", 126), ("./missing", 127), ("no-such-command", 127)] {
        let answer = place.ask(&["run", "--dir", "job", "--", command]);
        assert_eq!(answer.status, Some(status), "{answer:#?}");
        assert!(answer.words.contains(command), "{answer:#?}");
    }
}

#[test]
fn exit_status_after_a_restore() {
    for (script, status) in [("exit 7", 7), ("kill -9 $$", 137)] {
        let place = Workplace::new(User::Plain);
        let script =
            format!("touch ready; while [ ! -e go ]; do sleep 0.01; done; echo ended; {script}");
        let child =
            place.start(place.rckpt(&["run", "--dir", "job", "--", "sh", "-c"]).arg(script));
        assert!(poll(PATIENCE, || place.has("ready").then_some(())).is_some());
        let root = process::children(child)[0].to_string();
        place.tell(&["dump", &root, "--kill"]);
        assert!(process::exit_status(child, PATIENCE).is_some(), "run stays without its job");
        process::kill_descendants();
        place.write("go", "");
        let answer = place.ask(&["restore", "job"]);
        assert_eq!(answer.status, Some(status), "{answer:#?}");
        assert_eq!(answer.output, "ended\n");
    }
}

/// Only what belongs to the command is added to the job's environment, and nothing to its descriptors.
#[test]
fn job_is_started_plainly() {
    let place = Workplace::new(User::Plain);
    let script = "env | grep -v -e ^_= -e ^PWD= -e ^SHLVL= | sort > NAME; \
                  ls /proc/self/fd >> NAME; grep -e ^Sig[BIC] -e ^Shd /proc/self/status >> NAME; \
                  ps -o sid= -p $$ >> NAME";
    let plain = place.start(place.command("sh").args(["-c", &script.replace("NAME", "plain")]));
    assert_eq!(process::exit_status(plain, PATIENCE), Some(0), "{}", place.text("stderr"));
    assert_eq!(run_shell(&place, &script.replace("NAME", "under")), Some(0));
    let under: Vec<String> = place
        .text("under")
        .lines()
        .filter(|line| !line.starts_with("RCKPT_DIR=") && !line.starts_with("RCKPT_JOB="))
        .map(String::from)
        .collect();
    assert_eq!(place.text("plain").lines().collect::<Vec<_>>(), under);
    assert_eq!(place.text("under").matches("RCKPT_").count(), 2, "{}", place.text("under"));
}

#[test]
fn checkpoints_by_the_clock() {
    let place = Workplace::new(User::Plain);
    let mut run = place.rckpt(&["run", "--dir", "job", "--every", "1", "--keep", "2", "--"]);
    run.arg(crate::harness::fixture::fixture(
        "motion_mutexes",
        crate::harness::fixture::Linking::Dynamic,
    ));
    let child = place.start(&mut run);
    let third = poll(PATIENCE, || {
        let names = generations(&place);
        assert!(names.len() <= 3, "more than are kept, and one just made: {names:?}");
        names.iter().any(|name| name.as_str() >= "gen-000003").then_some(())
    });
    assert!(third.is_some(), "{:?}, {}", generations(&place), place.text("stderr"));
    kill(child, Signal::SIGKILL).expect("it runs");
    process::kill_descendants();

    let child = place.start(place.rckpt(&["restore", "job", "--every", "1"]));
    let newest = generations(&place).pop();
    let more = poll(PATIENCE, || (generations(&place).pop() > newest).then_some(()));
    assert!(more.is_some(), "a restored job is not dumped: {}", place.text("stderr"));
    place.write("go", "");
    assert_eq!(process::exit_status(child, PATIENCE), Some(0), "{}", place.text("stderr"));
    assert_eq!(place.text("verdict"), "PASS\n");
}

#[test]
fn term_takes_a_last_checkpoint() {
    let place = Workplace::new(User::Plain);
    let mut job = Running::start(&place, &Case::new("motion_allocation"), Start::Supervised);
    kill(job.child(), Signal::SIGTERM).expect("it runs");
    assert_eq!(process::exit_status(job.child(), PATIENCE), Some(85), "{}", place.text("stderr"));
    assert_eq!(generations(&place).len(), 1);
    assert!(process::descendants(nix::unistd::Pid::this()).is_empty(), "the job still runs");
    job.restore();
    job.judge();
}

/// A job that has been dumped once, and then is told to end without the time for a last checkpoint, ends
/// as it likes; what it had is what can be restored.
#[test]
fn no_time_for_a_last_checkpoint() {
    let place = Workplace::new(User::Plain);
    let script = "trap 'echo told; exit 3' TERM; touch ready; \
                  while [ ! -e go ]; do sleep 0.01; done; echo went on";
    let run = ["run", "--dir", "job", "--grace", "0", "--", "sh", "-c", script];
    let child = place.start(place.rckpt(&run));
    assert!(poll(PATIENCE, || place.has("ready").then_some(())).is_some());
    place.tell(&["dump", &process::children(child)[0].to_string()]);
    kill(child, Signal::SIGTERM).expect("it runs");
    assert_eq!(process::exit_status(child, PATIENCE), Some(3), "{}", place.text("stderr"));
    assert_eq!(place.text("stdout"), "told\n");
    assert!(place.text("stderr").contains("no last checkpoint"), "{}", place.text("stderr"));
    assert_eq!(generations(&place), ["gen-000001"]);
    place.tell(&["verify", "job", "--deep"]);
    place.write("go", "");
    let answer = place.ask(&["restore", "job"]);
    assert_eq!((answer.status, answer.output.as_str()), (Some(0), "went on\n"), "{answer:#?}");
}

/// Whoever says it twice does not wait for a last checkpoint: it is given up, and the job hears of it.
#[test]
fn second_term_is_passed_on_at_once() {
    let place = Workplace::new(User::Plain);
    let script = "import os, signal, sys\n\
                  signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\n\
                  held = os.urandom(512 << 20)\n\
                  open('ready', 'w')\n\
                  while True: signal.pause()\n";
    let run = ["run", "--dir", "job", "--", "python3", "-c", script];
    let child = place.start(place.rckpt(&run));
    assert!(poll(PATIENCE, || place.has("ready").then_some(())).is_some());
    kill(child, Signal::SIGTERM).expect("it runs");
    let begun = poll(PATIENCE, || place.text("stderr").contains("last checkpoint").then_some(()));
    assert!(begun.is_some(), "{}", place.text("stderr"));
    kill(child, Signal::SIGTERM).expect("it runs");
    assert_eq!(process::exit_status(child, PATIENCE), Some(9), "{}", place.text("stderr"));
    assert_eq!(generations(&place), [""; 0]);
}

/// What the job left in one directory is found in another.
#[test]
fn places_can_move() {
    let place = Workplace::new(User::Plain);
    place.make_directory("old");
    let script = "cd old; exec 5>> log; echo before >&5; touch ready; \
                  while [ ! -e ../go ]; do sleep 0.01; done; echo after >&5; echo here > relative; \
                  pwd -P > ../where";
    let child = place.start(place.rckpt(&["run", "--dir", "job", "--", "sh", "-c", script]));
    assert!(poll(PATIENCE, || place.has("old/ready").then_some(())).is_some());
    place.tell(&["dump", &process::children(child)[0].to_string()]);
    process::kill_descendants();
    fs::rename(place.path("old"), place.path("new")).expect("move the directory");
    place.write("go", "");
    let answer = place.ask(&["restore", "job"]);
    assert_eq!(answer.status, Some(125), "{answer:#?}");
    let old = place.path("old").display().to_string();
    assert!(answer.words.contains(&old) && answer.words.contains("--map"), "{answer:#?}");
    let map = format!("{old}={}", place.path("new").display());
    // The same for the line that goes on.
    let words = ["run", "--resume", "--dir", "job", "--map", &map, "--", "sh", "-c", script];
    let child = place.start(place.rckpt(&words));
    assert_eq!(process::exit_status(child, PATIENCE), Some(0), "{}", place.text("stderr"));
    assert_eq!(place.text("new/log"), "before\nafter\n");
    let answer = place.ask(&["restore", "job", "--map", &map]);
    assert_eq!(answer.status, Some(0), "{answer:#?}");
    assert_eq!(place.text("new/log"), "before\nafter\n");
    assert_eq!(place.text("new/relative"), "here\n");
    assert_eq!(place.text("where").trim(), place.path("new").display().to_string());
    assert!(!place.has("old"));
}

#[test]
fn other_signals_are_passed_on() {
    let place = Workplace::new(User::Plain);
    let script = "for s in INT HUP QUIT USR1 USR2 WINCH; do trap \"echo $s >> got\" $s; done; \
                  touch ready; while [ ! -e go ]; do sleep 0.01; done";
    let signals = [
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGWINCH,
    ];
    let mut child = place.start(place.rckpt(&["run", "--dir", "job", "--", "sh", "-c", script]));
    assert!(poll(PATIENCE, || place.has("ready").then_some(())).is_some());
    for restored in [false, true] {
        for (count, signal) in (1..).zip(signals) {
            kill(child, signal).expect("it runs");
            let name = signal.as_str().trim_start_matches("SIG");
            let got = poll(PATIENCE, || (place.text("got").lines().count() >= count).then_some(()));
            assert!(got.is_some() && place.text("got").ends_with(&format!("{name}\n")), "{name}");
        }
        fs::remove_file(place.path("got")).expect("signals came");
        if !restored {
            let root = process::children(child)[0].to_string();
            place.tell(&["dump", &root]);
            process::kill_descendants();
            child = place.start(place.rckpt(&["restore", "job", "--pidfile", "pid"]));
            assert!(poll(PATIENCE, || place.has("pid").then_some(())).is_some());
        }
    }
    place.write("go", "");
    assert_eq!(process::exit_status(child, PATIENCE), Some(0));
}

#[test]
fn stop_leaves_the_job_stopped() {
    let place = Workplace::new(User::Plain);
    let job = Running::start(&place, &Case::new("threads_waiting"), Start::Alone);
    job.dump(&["--stop"]);
    let stopped = poll(PATIENCE, || {
        process::proc_text(job.root(), "status").contains("T (stopped)").then_some(())
    });
    assert!(stopped.is_some(), "{}", process::proc_text(job.root(), "status"));
    kill(job.root(), Signal::SIGCONT).expect("it is there");
    job.ping();
    job.judge();
}

/// The job's own output goes where the restoring command's goes.
#[test]
fn streams_are_the_restorers() {
    let place = Workplace::new(User::Plain);
    let job = Running::start(&place, &Case::new("streams"), Start::Supervised);
    job.dump(&[]);
    job.lose();
    place.write("go", "");
    let answer = place.ask(&["restore", "job"]);
    assert_eq!(answer.status, Some(0), "{answer:#?}");
    assert_eq!(answer.output, "after\nduplicate\n");
    assert!(answer.words.contains("error\n"), "{answer:#?}");
    assert_eq!(place.text("stdout"), "before\n");
}

/// Whoever called rckpt has opened a file where its user may not look: what was written to it is cut
/// back through the stream itself.
#[test]
fn streams_out_of_reach() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let place = Workplace::new(User::Plain);
    fs::create_dir(place.path("closed")).expect("make a directory of root's");
    fs::set_permissions(place.path("closed"), fs::Permissions::from_mode(0o700)).expect("close it");
    let script = "echo one; touch ready; while [ ! -e go ]; do sleep 0.01; done; echo two";
    let mut run = place.rckpt(&["run", "--dir", "job", "--", "sh", "-c", script]);
    let child = place.start(run.stdout(place.callers_file("closed/log")));
    assert!(poll(PATIENCE, || place.has("ready").then_some(())).is_some());
    place.tell(&["dump", &process::children(child)[0].to_string()]);
    place.write("go", "");
    assert_eq!(process::exit_status(child, PATIENCE), Some(0));
    for _ in 0..2 {
        assert_eq!(place.text("closed/log"), "one\ntwo\n");
        let mut restore = place.rckpt(&["restore", "job"]);
        let child = place.start(restore.stdout(place.callers_file("closed/log")));
        assert_eq!(process::exit_status(child, PATIENCE), Some(0), "{}", place.text("stderr"));
    }
    assert_eq!(place.text("closed/log"), "one\ntwo\n");
    // A file that nobody but root may read could not be kept, and so is not cut.
    let closed = fs::Permissions::from_mode(0o600);
    fs::set_permissions(place.path("closed/log"), closed).expect("close it");
    let mut restore = place.rckpt(&["restore", "job"]);
    let child = place.start(restore.stdout(place.callers_file("closed/log")));
    assert_eq!(process::exit_status(child, PATIENCE), Some(125));
    assert!(place.text("stderr").contains("--files keep"), "{}", place.text("stderr"));
    assert_eq!(place.text("closed/log"), "one\ntwo\n");
}

/// A pipe of the caller's takes the place of another one.
#[test]
fn streams_can_be_pipes() {
    let place = Workplace::new(User::Plain);
    let script = "read first; touch ready; while [ ! -e go ]; do sleep 0.01; done; \
                  read second; echo $first $second";
    let mut run = place.rckpt(&["run", "--dir", "job", "--", "sh", "-c", script]);
    let mut child = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("run rckpt");
    let mut input = child.stdin.take().expect("it is a pipe");
    std::io::Write::write_all(&mut input, b"one\n").expect("write to the job");
    assert!(poll(PATIENCE, || place.has("ready").then_some(())).is_some());
    let run = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("small"));
    place.tell(&["dump", &process::children(run)[0].to_string()]);
    drop(input);
    child.kill().expect("it runs");
    child.wait().expect("wait for rckpt");
    process::kill_descendants();
    place.write("go", "");
    let mut restore = place.rckpt(&["restore", "job"]);
    let mut child =
        restore.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("run rckpt");
    let mut input = child.stdin.take().expect("it is a pipe");
    std::io::Write::write_all(&mut input, b"two\n").expect("write to the job");
    drop(input);
    let output = child.wait_with_output().expect("wait for rckpt");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "one two\n", "{}", place.text("stderr"));
    assert!(output.status.success());
}

#[test]
fn detached() {
    let place = Workplace::new(User::Plain);
    let job = Running::start(&place, &Case::new("tree_family"), Start::Supervised);
    job.dump(&[]);
    job.lose();
    place.tell(&["restore", "job", "--detach", "--pidfile", "pid"]);
    let root: i32 = place.text("pid").trim().parse().expect("it is a number");
    let root = nix::unistd::Pid::from_raw(root);
    job.ping();
    place.tell(&["dump", &root.to_string()]);
    job.ping();
    place.write("go", "");
    assert!(poll(PATIENCE, || place.has("verdict").then_some(())).is_some());
    assert_eq!(place.text("verdict"), "PASS\n");
}

/// Without a pid, `dump` means the job that it runs inside.
#[test]
fn dump_from_inside() {
    let place = Workplace::new(User::Plain);
    let rckpt = crate::harness::workplace::rckpt_binary();
    let script = format!("{} dump > report || exit 3; echo one; echo two", rckpt.display());
    let answer = place.ask(&["run", "--dir", "job", "--", "sh", "-c", &script]);
    assert_eq!((answer.status, answer.output.as_str()), (Some(0), "one\ntwo\n"), "{answer:#?}");
    assert_eq!(generations(&place).len(), 1);
    assert!(place.text("report").contains("gen-000001"), "{}", place.text("report"));
}

#[test]
fn older_checkpoints_can_be_restored() {
    let place = Workplace::new(User::Plain);
    let script = "for i in 1 2 3; do touch ready-$i; while [ ! -e go-$i ]; do sleep 0.01; done; \
                  echo $i; done";
    let child = place.start(place.rckpt(&["run", "--dir", "job", "--", "sh", "-c", script]));
    for step in 1..3 {
        assert!(poll(PATIENCE, || place.has(&format!("ready-{step}")).then_some(())).is_some());
        place.tell(&["dump", &process::children(child)[0].to_string()]);
        place.write(&format!("go-{step}"), "");
    }
    assert!(poll(PATIENCE, || place.has("ready-3").then_some(())).is_some());
    process::kill_descendants();
    place.write("go-3", "");
    for (words, output) in [
        (vec!["restore", "job"], "2\n3\n"),
        (vec!["restore", "job/gen-000001"], "1\n2\n3\n"),
        (vec!["restore", "job", "--at", "gen-000001"], "1\n2\n3\n"),
    ] {
        let answer = place.ask(&words);
        assert_eq!((answer.status, answer.output.as_str()), (Some(0), output), "{words:?}");
    }
}

fn json(place: &Workplace, words: &[&str]) -> Value {
    let output = place.tell(words);
    serde_json::from_str(&output).unwrap_or_else(|error| panic!("{words:?}: {error}: {output}"))
}

#[test]
fn reports_as_json() {
    let place = Workplace::new(User::Plain);
    let job = Running::start(&place, &Case::new("tree_family"), Start::Supervised);
    let root = job.root().to_string();
    let dumped = json(&place, &["dump", &root, "--json"]);
    assert!(dumped.to_string().contains("gen-000001"), "{dumped}");
    for words in [
        vec!["list", "--json"],
        vec!["list", "job", "--json"],
        vec!["inspect", "job", "--json"],
        vec!["verify", "job", "--json"],
        vec!["verify", "job", "--deep", "--json"],
        vec!["check", "--json"],
        vec!["check", &root, "--json"],
    ] {
        json(&place, &words);
        // The same for people: something is said, and only on standard output.
        let plain: Vec<&str> = words.into_iter().filter(|word| *word != "--json").collect();
        assert!(!place.tell(&plain).trim().is_empty(), "{plain:?} says nothing");
    }
    assert!(place.tell(&["inspect", "job"]).contains(&root));
    job.judge();
}

/// Files that the job appends to and closes are pointed out, until they are named.
#[test]
fn outputs_are_pointed_out() {
    let place = Workplace::new(User::Plain);
    place.write("notes.txt", "nothing of the job's");
    let script = "sleep 0.1; echo setting > settings; echo one >> run.log; touch ready; \
                  while [ ! -e more ]; do sleep 0.01; done; echo two >> run.log; touch done; \
                  while [ ! -e go ]; do sleep 0.01; done";
    for (named, expected) in [(&[][..], true), (&["--outputs", "run.log"], false)] {
        let run = [&["run", "--fresh", "--dir", "job"], named, &["--", "sh", "-c", script]];
        let child = place.start(place.rckpt(&run.concat()));
        assert!(poll(PATIENCE, || place.has("ready").then_some(())).is_some());
        let root = process::children(child)[0].to_string();
        let checked = place.ask(&["check", &root]);
        assert_eq!(checked.status, Some(0), "{checked:#?}");
        let dumped = place.ask(&["dump", &root]);
        assert_eq!(dumped.status, Some(0), "{dumped:#?}");
        // Only the second checkpoint can tell what is written all the time from what was written once.
        place.write("more", "");
        assert!(poll(PATIENCE, || place.has("done").then_some(())).is_some());
        let again = place.ask(&["dump", &root]);
        assert!(again.status == Some(0) && !again.words.contains("settings"), "{again:#?}");
        place.write("go", "");
        assert_eq!(process::exit_status(child, PATIENCE), Some(0));
        let last = place.text("stderr").lines().last().unwrap_or_default().to_owned();
        for words in [&dumped.words, &again.words, &last] {
            let told = words.contains("run.log") && words.contains("--outputs");
            assert_eq!(told, expected, "{words}");
        }
        assert!(checked.output.contains("run.log"), "{checked:#?}");
        for name in ["ready", "more", "done", "go"] {
            fs::remove_file(place.path(name)).expect("forget it");
        }
        fs::remove_file(place.path("stderr")).expect("forget what was said");
    }
    let checked = place.ask(&["check", "--", "sh"]);
    assert!(joined(&checked.output).contains("notes.txt, run.log"), "{checked:#?}");
}

/// A warning is for people, who read it once; whoever has lost the place that he is in is told so.
#[test]
fn words_for_people() {
    let place = Workplace::new(User::Plain);
    // The other end of a pipe that somebody outside reads from.
    let read = "import os, time; reader, writer = os.pipe(); os.dup2(reader, 9); os.close(writer); \
                open('made', 'w'); time.sleep(1000)";
    let outside = place.start(place.command("/usr/bin/python3").args(["-c", read]));
    assert!(poll(PATIENCE, || place.has("made").then_some(())).is_some());
    let script = format!(
        "exec 5> /proc/{outside}/fd/9; touch ready; while [ ! -e go ]; do sleep 0.01; done"
    );
    let child = place.start(place.rckpt(&["run", "--dir", "job", "--", "sh", "-c", &script]));
    assert!(poll(PATIENCE, || place.has("ready").then_some(())).is_some());
    let root = process::children(child)[0].to_string();
    let asked = [place.ask(&["dump", &root]), place.ask(&["dump", &root])];
    place.write("go", "");
    assert_eq!(process::exit_status(child, PATIENCE), Some(0));
    let warned = asked[0].words.matches("warning: ").count();
    assert!(warned > 0, "{asked:#?}");
    assert_eq!(
        place.text("stderr").matches("warning: ").count(),
        warned,
        "{}",
        place.text("stderr")
    );
    let gone = "mkdir gone; cd gone; rmdir ../gone; exec \"$0\" run -- true";
    let mut lost = place.command("sh");
    lost.args(["-c", gone]).arg(rckpt_binary());
    assert_eq!(process::exit_status(place.start(lost), PATIENCE), Some(125));
    let words = place.text("stderr");
    assert!(words.contains("cd to one that exists"), "{words}");
}

#[test]
fn dry_run_starts_nothing() {
    let place = Workplace::new(User::Plain);
    let job = Running::start(&place, &Case::new("file_positions"), Start::Alone);
    job.dump(&["--kill"]);
    job.lose();
    let log = fs::read(place.path("log")).expect("the job made it");
    let words = place.tell(&["restore", "job", "--dry-run"]);
    let report = json(&place, &["restore", "job", "--dry-run", "--json"]);
    assert_eq!(report["processes"].as_array().map(Vec::len), Some(2), "{report}");
    assert!(words.contains(report["checkpoint"].as_str().expect("it has a name")), "{words}");
    assert_eq!(report["files"]["cut"].as_array().map(Vec::len), Some(0), "{report}");
    assert!(process::descendants(nix::unistd::Pid::this()).is_empty());
    assert_eq!(fs::read(place.path("log")).expect("it is there"), log);
}

/// Images hold secrets.
#[test]
fn images_are_for_their_owner_alone() {
    let place = Workplace::new(User::Plain);
    let job = Running::start(&place, &Case::new("memory_private"), Start::Alone);
    job.dump(&[]);
    for path in ["job/latest", "job/latest/."] {
        let directory = fs::metadata(place.path(path)).expect("there is a checkpoint");
        assert_eq!(directory.mode() & 0o7777, 0o700);
    }
    for entry in fs::read_dir(place.path("job/latest")).expect("list it").flatten() {
        assert_eq!(entry.metadata().expect("look at it").mode() & 0o7777, 0o600, "{entry:?}");
    }
    job.judge();
}

/// What was written after the checkpoint is cut off, and kept beside the image.
#[test]
fn cut_bytes_are_kept() {
    let place = Workplace::new(User::Plain);
    let script = "exec 5>> log; echo before >&5; echo first >> named; touch ready; \
                  while [ ! -e more ]; do sleep 0.01; done; \
                  echo after >&5; echo second >> named; touch written; \
                  while [ ! -e go ]; do sleep 0.01; done";
    let run = ["run", "--dir", "job", "--outputs", "named", "--", "sh", "-c", script];
    let child = place.start(place.rckpt(&run));
    assert!(poll(PATIENCE, || place.has("ready").then_some(())).is_some());
    place.tell(&["dump", &process::children(child)[0].to_string()]);
    place.write("more", "");
    assert!(poll(PATIENCE, || place.has("written").then_some(())).is_some());
    process::kill_descendants();
    for name in ["more", "written"] {
        fs::remove_file(place.path(name)).expect("forget it");
    }
    let child = place.start(place.rckpt(&["restore", "job", "--pidfile", "pid"]));
    assert!(
        poll(PATIENCE, || place.has("pid").then_some(())).is_some(),
        "{}",
        place.text("stderr")
    );
    assert_eq!((place.text("log").as_str(), place.text("named").as_str()), ("before\n", "first\n"));
    let mut kept = Vec::new();
    let mut open = vec![place.path("job")];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).expect("list the job's directory").flatten() {
            if entry.path().is_dir() && !entry.path().is_symlink() {
                open.push(entry.path());
            } else {
                kept.push(fs::read(entry.path()).unwrap_or_default());
            }
        }
    }
    for bytes in [&b"after\n"[..], b"second\n"] {
        assert!(kept.iter().any(|content| content == bytes), "cut bytes are lost");
    }
    place.write("more", "");
    place.write("go", "");
    assert_eq!(process::exit_status(child, PATIENCE), Some(0), "{}", place.text("stderr"));
    assert_eq!(place.text("log"), "before\nafter\n");
    assert_eq!(place.text("named"), "first\nsecond\n");
}

/// A job whose supervisor was lost runs on. Nothing is taken from the files that it writes.
#[test]
fn job_that_still_runs_is_not_disturbed() {
    let place = Workplace::new(User::Plain);
    let script = "exec 5> log; echo one >&5; touch ready; while [ ! -e more ]; do sleep 0.01; done; \
                  echo two >&5; touch written; while [ ! -e go ]; do sleep 0.01; done; echo three >&5";
    let child = place.start(place.rckpt(&["run", "--dir", "job", "--", "sh", "-c", script]));
    assert!(poll(PATIENCE, || place.has("ready").then_some(())).is_some());
    let root = process::children(child)[0];
    place.tell(&["dump", &root.to_string()]);
    place.write("more", "");
    assert!(poll(PATIENCE, || place.has("written").then_some(())).is_some());
    kill(child, Signal::SIGKILL).expect("it runs");
    let answer = place.ask(&["restore", "job"]);
    assert_eq!(answer.status, Some(125), "{answer:#?}");
    let process = format!("process {root} (sh)");
    assert!(answer.words.contains(&process) && answer.words.contains("log"), "{answer:#?}");
    assert_eq!(place.text("log"), "one\ntwo\n");
    kill(root, Signal::SIGKILL).expect("it runs");
    process::kill_descendants();
    place.write("go", "");
    place.tell(&["restore", "job"]);
    assert_eq!(place.text("log"), "one\ntwo\nthree\n");
}

/// A job that sleeps long is not waited for by the supervisor.
#[test]
fn sleepers_do_not_hold_up_a_checkpoint() {
    let place = Workplace::new(User::Plain);
    let child = place.start(place.rckpt(&["run", "--dir", "job", "--", "sleep", "1000"]));
    let root = poll(PATIENCE, || process::child_named(child, "sleep")).expect("it starts");
    let start = std::time::Instant::now();
    place.tell(&["dump", &root.to_string()]);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}
