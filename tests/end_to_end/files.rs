//! Files that change after the checkpoint in every way there is, and places that move: what is brought
//! back, what is refused by name, and that nothing is lost.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::workplace::{User, Workplace, rckpt_binary};

/// A shell's way to wait for a file.
const AWAIT: &str = "await() { while [ ! -e $1 ]; do sleep 0.01; done; }";

/// A job in two parts: it does `first` and is saved, does `second` and is lost.
fn saved_and_lost(place: &Workplace, words: &[&str], first: &str, second: &str) {
    let script = format!(
        "{AWAIT}; {first}; touch ready; await more; {second}; touch done; await go; echo end"
    );
    let mut run = place.rckpt(&["run", "--dir", "job"]);
    let child = place.start(run.args(words).args(["--", "sh", "-c", &script]));
    await_file(place, "ready");
    place.tell(&["dump", &process::children(child)[0].to_string()]);
    place.write("more", "");
    await_file(place, "done");
    process::kill_descendants();
    fs::remove_file(place.path("done")).expect("it is there");
    place.write("go", "");
}

fn await_file(place: &Workplace, name: &str) {
    let came = poll(PATIENCE, || place.has(name).then_some(()));
    assert!(came.is_some(), "no {name}: {}", place.text("stderr"));
}

fn check_end(place: &Workplace, child: Pid) {
    let status = process::exit_status(child, PATIENCE);
    assert_eq!(status, Some(0), "{}", place.text("stderr"));
}

/// The restore is refused, naming the file and the choices.
fn check_refused(place: &Workplace, words: &[&str]) {
    let answer = place.ask(&["restore", "job"]);
    assert_eq!(answer.status, Some(125), "{answer:#?}");
    for word in words {
        assert!(answer.words.contains(word), "{word:?} is missing: {answer:#?}");
    }
}

/// What restores have kept, as `inspect` lists it: ends of paths and contents.
fn kept(place: &Workplace) -> Vec<(String, String)> {
    let report: Value =
        serde_json::from_str(&place.tell(&["inspect", "job", "--json"])).expect("JSON");
    let files = report["displaced"].as_array().expect("a list").clone();
    // rckpt's own words went to a file, too.
    let of_the_job =
        |file: &&Value| !file["path"].as_str().unwrap_or_default().contains("/stderr.");
    files
        .iter()
        .filter(of_the_job)
        .map(|file| {
            let path = file["path"].as_str().expect("a path");
            let name = Path::new(path).file_name().expect("a name").to_string_lossy().into_owned();
            (name, fs::read_to_string(path).expect("read what was kept"))
        })
        .collect()
}

fn pair(name: &str, content: &str) -> (String, String) {
    (name.to_owned(), content.to_owned())
}

/// A log is rotated after the checkpoint.
#[test]
fn renamed_and_begun_anew() {
    let rotate = "exec 5>&-; mv log log.1; exec 5>>log; echo second >&5";
    let place = Workplace::new(User::Plain);
    saved_and_lost(&place, &[], "exec 5>>log; echo first >&5", rotate);
    check_refused(&place, &["/log: it was replaced by another file", "--files keep"]);

    let place = place.another("saved");
    saved_and_lost(&place, &["--save-files", "log*"], "exec 5>>log; echo first >&5", rotate);
    let child = place.start(place.rckpt(&["restore", "job"]));
    check_end(&place, child);
    assert_eq!(place.text("log.1"), "first\n");
    assert_eq!(place.text("log"), "second\n");
    assert_eq!(kept(&place), [pair("log", "second\n"), pair("log.1", "first\n")]);
}

#[test]
fn deleted() {
    let place = Workplace::new(User::Plain);
    saved_and_lost(&place, &[], "exec 5<>data; echo first >&5", "rm data");
    check_refused(&place, &["/data: it has vanished", "put it back"]);

    let place = place.another("saved");
    saved_and_lost(&place, &["--save-files", "auto"], "exec 5<>data; echo first >&5", "rm data");
    fs::remove_file(place.path("more")).expect("it is there");
    let child = place.start(place.rckpt(&["restore", "job", "--pidfile", "pid"]));
    await_file(&place, "pid");
    assert_eq!(place.text("data"), "first\n");
    place.write("more", "");
    check_end(&place, child);
    assert!(!place.has("data"));
}

#[test]
fn replaced_by_renaming() {
    let replace = "echo second > data.new; mv data.new data";
    let place = Workplace::new(User::Plain);
    saved_and_lost(&place, &[], "exec 5<>data; echo first >&5", replace);
    check_refused(&place, &["/data: it was replaced by another file"]);
    let child = place.start(place.rckpt(&["restore", "job", "--files", "keep"]));
    check_end(&place, child);
    assert_eq!(place.text("data"), "second\n");
}

/// Several processes share a position, and one of them writes through a buffer of its own.
#[test]
fn position_shared_by_writers() {
    let place = Workplace::new(User::Plain);
    let script = "import os, sys, time\n\
        log = open('shared', 'w')\n\
        children = []\n\
        for me in range(3):\n\
        \x20   pid = os.fork()\n\
        \x20   if pid == 0:\n\
        \x20       for i in range(40):\n\
        \x20           os.write(log.fileno(), f'{me} {i}\\n'.encode()); time.sleep(0.02)\n\
        \x20       os._exit(0)\n\
        \x20   children.append(pid)\n\
        buffered = open('buffered', 'w', buffering=64)\n\
        for i in range(120): print('line', i, file=buffered); time.sleep(0.008)\n\
        buffered.close()\n\
        sys.exit(any(os.waitpid(pid, 0)[1] for pid in children))\n";
    place.write("writers.py", script);
    let child = place.start(place.rckpt(&["run", "--dir", "job", "--", "python3", "writers.py"]));
    let lines = |name: &str| place.text(name).lines().count();
    assert!(poll(PATIENCE, || (lines("shared") > 20).then_some(())).is_some());
    place.tell(&["dump", &process::children(child)[0].to_string()]);
    assert!(poll(PATIENCE, || (lines("shared") > 60).then_some(())).is_some());
    process::kill_descendants();
    let child = place.start(place.rckpt(&["restore", "job"]));
    check_end(&place, child);
    let mut found: Vec<String> = place.text("shared").lines().map(str::to_owned).collect();
    let mut expected: Vec<String> =
        (0..3).flat_map(|me| (0..40).map(move |i| format!("{me} {i}"))).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    let whole: String = (0..120).map(|i| format!("line {i}\n")).collect();
    assert_eq!(place.text("buffered"), whole);
}

/// A program that changes a file in place, lost after each of several checkpoints, against the same
/// undisturbed.
fn changed_in_place(program: &str, words: &[&str], saved: &str) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(program);
    let source = fs::read_to_string(source).expect("read a program");
    let undisturbed = Workplace::new(User::Plain);
    undisturbed.write(program, &source);
    let arguments = |pause: &str| {
        let mut all = vec!["/usr/bin/python3".to_owned(), program.to_owned()];
        all.extend(words.iter().map(|word| (*word).to_owned()));
        all.push(pause.to_owned());
        all
    };
    let plain = arguments("0");
    let child = undisturbed.start(undisturbed.command(&plain[0]).args(&plain[1..]));
    check_end(&undisturbed, child);

    let place = undisturbed.another("disturbed");
    place.write(program, &source);
    let start = || {
        let words =
            ["run", "--resume", "--every", "1", "--save-files", saved, "--dir", "job", "--"];
        place.start(place.rckpt(&words).args(arguments("0.04")))
    };
    let latest = || fs::read_link(place.path("job/latest")).ok();
    let mut losses = 0;
    for _ in 0..3 {
        let before = latest();
        let child = start();
        // On a busy machine it may have come to its end before its checkpoint.
        let came = poll(PATIENCE, || {
            (latest() != before || process::has_ended(child)).then(|| !process::has_ended(child))
        });
        let came = came.unwrap_or_else(|| panic!("no checkpoint: {}", place.text("stderr")));
        losses += u32::from(came);
        std::thread::sleep(Duration::from_millis(300));
        process::kill_descendants();
    }
    assert!(losses > 0, "never lost: {}", place.text("stderr"));
    check_end(&place, start());
    assert_eq!(place.text("stdout"), undisturbed.text("stdout"), "{}", place.text("stderr"));
}

#[test]
fn sqlite_with_a_journal() {
    changed_in_place("store.py", &["delete"], "auto");
}

#[test]
fn sqlite_with_a_log_ahead() {
    changed_in_place("store.py", &["wal"], "state.db*");
}

#[test]
fn hdf5() {
    changed_in_place("grid.py", &[], "grid.h5");
}

/// The outputs are on another file system than the job's directory.
#[test]
fn outputs_on_another_file_system() {
    let place = Workplace::new(User::Plain);
    place.make_directory("other");
    let rckpt = rckpt_binary();
    let rckpt = rckpt.display();
    let script = format!(
        "{AWAIT}; mount -t tmpfs tmpfs other || exit 9; \
         {rckpt} run --dir job --outputs 'other/*.csv' -- sh -c \
         '{AWAIT}; exec 5>>other/log; echo one >&5; echo one >> other/a.csv; touch ready; await more; \
          echo two >&5; echo two >> other/a.csv; echo two > other/b.csv; touch done; await go' & \
         await ready; root=$(cat /proc/$!/task/$!/children); {rckpt} dump $root || exit 8; \
         touch more; await done; kill -9 $! $root; rm done; touch go; \
         {rckpt} restore job || exit 7; cat other/log other/a.csv other/b.csv"
    );
    let words = ["--user", "--map-root-user", "--mount", "sh", "-c", &script];
    let child = place.start(place.command("unshare").args(words));
    check_end(&place, child);
    assert_eq!(place.text("stdout").replace('\n', " "), "one two one two two ", "{script}");
    let kept = kept(&place);
    for expected in [pair("log.from-4", "two\n"), pair("b.csv", "two\n")] {
        assert!(kept.contains(&expected), "{kept:?}");
    }
}

/// A batch system gives each of its jobs another directory for temporary files.
#[test]
fn temporary_directories_move() {
    for variable in ["TMPDIR", "SLURM_TMPDIR", "_CONDOR_SCRATCH_DIR"] {
        let place = Workplace::new(User::Plain).another(&variable.to_lowercase());
        let (old, new) = (place.make_directory("old"), place.path("new"));
        let script = format!(
            "{AWAIT}; exec 5>>${variable}/log; echo one >&5; touch ready; await go; echo two >&5"
        );
        let mut run = place.rckpt(&["run", "--dir", "job", "--", "sh", "-c", &script]);
        let child = place.start(run.env(variable, &old));
        await_file(&place, "ready");
        place.tell(&["dump", &process::children(child)[0].to_string()]);
        process::kill_descendants();
        fs::rename(&old, &new).expect("move a directory");
        place.write("go", "");
        let child = place.start(place.rckpt(&["restore", "job"]).env(variable, &new));
        check_end(&place, child);
        assert_eq!(place.text("new/log"), "one\ntwo\n", "{}", place.text("stderr"));
        assert!(place.text("stderr").contains("is looked for under"), "{}", place.text("stderr"));
    }
}

/// What programs make for the moment, in a directory made for it, they remove when they are done: also when
/// that was after the checkpoint.
#[test]
fn temporary_files_come_back_with_their_directory() {
    let place = Workplace::new(User::Plain);
    let program = "\
import os, tempfile, time
made = tempfile.mkdtemp(prefix='rckpt-test-', dir='/tmp')
held = open(made + '/held', 'w+')
print('saved', end='', file=held, flush=True)
print(made, end='', file=open('ready', 'w'))
while not os.path.exists('go'):
    time.sleep(0.01)
held.seek(0)
print(held.read(), os.listdir(made))
os.remove(held.name)
os.rmdir(made)
";
    place.write("program.py", program);
    let words = ["run", "--dir", "job", "--", "/usr/bin/python3", "program.py"];
    let child = place.start(place.rckpt(&words));
    await_file(&place, "ready");
    place.tell(&["dump", &process::children(child)[0].to_string()]);
    process::kill_descendants();
    let made = place.text("ready");
    fs::remove_dir_all(&made).expect("remove a directory");
    place.write("go", "");
    let child = place.start(place.rckpt(&["restore", "job"]));
    check_end(&place, child);
    assert_eq!(place.text("stdout"), "saved ['held']\n", "{}", place.text("stderr"));
    assert!(!Path::new(&made).exists());
}

/// A job that was brought back has the environment of the batch job that it was started in.
#[test]
fn stale_environment_is_told() {
    let place = Workplace::new(User::Plain);
    let words = ["run", "--dir", "job", "--", "sh", "-c", "touch ready; sleep 1000"];
    let child =
        place.start(place.rckpt(&words).env("SLURM_JOB_NAME", "life").env("SLURM_NNODES", "1"));
    await_file(&place, "ready");
    place.tell(&["dump", &process::children(child)[0].to_string()]);
    process::kill_descendants();
    let mut restore = place.rckpt(&["restore", "job", "--pidfile", "pid"]);
    let child = place.start(restore.env("SLURM_JOB_NAME", "other").env("SLURM_NNODES", "1"));
    await_file(&place, "pid");
    let stale = poll(PATIENCE, || {
        let jobs: Value = serde_json::from_str(&place.tell(&["list", "--json"])).expect("JSON");
        let mine = |job: &&Value| job["supervisor"].as_i64() == Some(child.as_raw().into());
        jobs.as_array()?.iter().find(mine).map(|job| job["stale"].clone())
    });
    assert_eq!(stale, Some(serde_json::json!(["SLURM_JOB_NAME"])));
    assert!(place.tell(&["list"]).contains("SLURM_JOB_NAME"));
}

/// Runs counters.py, has it saved once while it begins to hurry, loses it and brings it back. Gives what
/// was told of the checkpoint.
fn counted_exactly(place: &Workplace, blocks: u32) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/counters.py");
    let copy = fs::read_to_string(source).expect("read a program");
    place.write("counters.py", &copy);
    let words = ["run", "--dir", "job", "--save-files", "auto", "--"];
    let blocks = blocks.to_string();
    let mut run = place.rckpt(&words);
    let child = place.start(run.args(["/usr/bin/python3", "counters.py", &blocks]));
    await_file(place, "ready");
    let root = process::children(child)[0].to_string();
    let report = place.tell(&["dump", &root, "--json"]);
    await_file(place, "done");
    process::kill_descendants();
    fs::remove_file(place.path("done")).expect("it is there");
    place.write("go", "");
    let child = place.start(place.rckpt(&["restore", "job"]));
    check_end(place, child);
    assert_eq!(place.text("stdout"), "good\n", "{}", place.text("stderr"));
    report
}

/// Whether files here can share their blocks.
fn shares_blocks(place: &Workplace) -> bool {
    place.write("original", "x");
    let mut copy = place.command("cp");
    let child =
        place.start(copy.args(["--reflink=always", "original", "shared"]).stderr(Stdio::null()));
    process::exit_status(child, PATIENCE) == Some(0)
}

/// A file that was left alone is read once the job runs again; if the job changes it just then, what was
/// read does not count.
#[test]
fn changed_while_it_is_read() {
    let place = Workplace::new(User::Plain);
    let shares = shares_blocks(&place);
    let report = counted_exactly(&place, 30_000);
    assert!(shares || report.contains("counters was changed while it was read"), "{report}");
}

/// A large file that nobody touches does not make the job stand still.
#[test]
fn pause_is_not_that_of_its_files() {
    let place = Workplace::new(User::Plain);
    let program = "import os, time\n\
        file = os.open('large', os.O_RDWR | os.O_CREAT)\n\
        for i in range(200): os.write(file, os.urandom(1 << 20))\n\
        os.fsync(file); time.sleep(4); open('ready', 'w').close()\n\
        while not os.path.exists('go'): time.sleep(0.01)\n\
        os.lseek(file, 0, 0); print(sum(os.read(file, 200 << 20)) > 0, flush=True)\n";
    place.write("large.py", program);
    let words = ["run", "--dir", "job", "--save-files", "auto", "--", "python3", "large.py"];
    let child = place.start(place.rckpt(&words));
    await_file(&place, "ready");
    let root = process::children(child)[0].to_string();
    let report = place.tell(&["dump", &root, "--json"]);
    let report: Value = serde_json::from_str(&report).expect("JSON");
    let (seconds, pause) = (report["seconds"].as_f64(), report["pause_seconds"].as_f64());
    assert!(pause < seconds.map(|seconds| seconds / 4.0), "{report:#}");
    process::kill_descendants();
    let expected = fs::read(place.path("large")).expect("read the file");
    fs::remove_file(place.path("large")).expect("it is there");
    place.write("go", "");
    let child = place.start(place.rckpt(&["restore", "job"]));
    check_end(&place, child);
    assert!(fs::read(place.path("large")).expect("read the file") == expected);
    assert_eq!(place.text("stdout"), "True\n");
}

/// Where the file system shares blocks, a file that changes all the time is copied in one step. Mounting
/// one is for root.
#[test]
fn blocks_are_shared_where_they_can_be() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let outside = Workplace::new(User::Caller);
    outside.make_directory("disk");
    fs::copy(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/counters.py"),
        outside.path("counters.py"),
    )
    .expect("copy a program");
    let script = format!(
        "PATH=$PATH:/usr/sbin:/sbin; truncate -s 900M image && mkfs.btrfs -q image >&2 && \
         mount -o loop image disk && chown 12345:12345 disk && cp counters.py disk && cd disk && \
         exec setpriv --reuid=12345 --regid=12345 --clear-groups --inh-caps=-all sh -c '\
         {0} run --dir job --save-files auto -- /usr/bin/python3 counters.py 8000 & \
         until [ -e ready ]; do sleep 0.05; done; root=$(cat /proc/$!/task/$!/children); \
         {0} dump $root --json || exit 8; until [ -e done ]; do sleep 0.05; done; \
         kill -9 $! $root; rm done; touch go; {0} restore job'",
        rckpt_binary().display()
    );
    let child = outside.start(outside.command("unshare").args(["--mount", "sh", "-c", &script]));
    let status = process::exit_status(child, PATIENCE * 3);
    assert_eq!(status, Some(0), "{}", outside.text("stderr"));
    let report = outside.text("stdout");
    assert!(report.ends_with("good\n"), "{report}");
    // Nothing had to be done twice.
    assert!(!report.contains("changed while it was read"), "{report}");
}
