//! `rckpt check`: what is forbidden is found, graded, and comes with its remedy; and what it predicts of a
//! checkpoint comes true.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::harness::fixture::{Linking, build};
use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::rounds::{Case, Running, Start};
use crate::harness::workplace::{User, Workplace, rckpt_binary};

/// The report for scripts of `rckpt check WORDS`, run by `runner` (a program and its first words), and its
/// exit status.
fn report(place: &Workplace, runner: &[&str], words: &[&str]) -> (Value, Option<i32>) {
    let rckpt = rckpt_binary();
    let rckpt = rckpt.to_str().expect("it has a plain path");
    let line = [runner, &[rckpt, "check", "--json"], words].concat();
    let mut command = place.command(line[0]);
    command.args(&line[1..]).stdout(place.stream("report"));
    let status = process::exit_status(place.start(command), Duration::from_secs(60));
    let text = place.text("report");
    std::fs::remove_file(place.path("report")).expect("remove a report");
    let report = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{line:?}: {error}: {text}\n{}", place.text("stderr")));
    (report, status)
}

/// The line of a report whose subject begins with `subject`.
fn line<'report>(report: &'report Value, subject: &str) -> &'report Value {
    let lines = report["lines"].as_array().into_iter().chain(report["job"].as_array()).flatten();
    let begins = |line: &&Value| line["subject"].as_str().is_some_and(|it| it.starts_with(subject));
    lines.into_iter().find(begins).unwrap_or_else(|| panic!("no {subject}: {report:#}"))
}

/// Makes sure of a grade, and that whatever does not just work comes with what to do.
fn check_line(report: &Value, subject: &str, grade: &str, words: &[&str]) {
    let line = line(report, subject);
    assert_eq!(line["grade"], grade, "{line:#}");
    let text = line.to_string();
    for word in words {
        assert!(text.contains(word), "no {word}: {line:#}");
    }
    assert!(grade == "works" || line["remedy"].is_object(), "{line:#}");
}

fn forbid() -> PathBuf {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/forbid.c");
    build(Path::new(source), &[], Linking::Static)
}

/// Each system call that is forbidden shows in the line of its own, in the right grade.
#[test]
fn forbidden_system_calls() {
    let place = Workplace::new(User::Plain);
    let forbid = forbid();
    let run = |number: libc::c_long, subject: &str, grade: &str, words: &[&str]| {
        let number = number.to_string();
        let runner = [forbid.to_str().expect("it has a plain path"), &number, "--"];
        let (report, status) = report(&place, &runner, &[]);
        check_line(&report, subject, grade, words);
        assert_eq!(status, Some(i32::from(grade == "fails")), "{subject}");
    };
    run(libc::SYS_kcmp, "compare descriptors", "fails", &["kcmp", "seccomp=unconfined"]);
    run(libc::SYS_pidfd_getfd, "take descriptors", "fails", &["no job can be saved"]);
    run(libc::SYS_ptrace, "trace one's own", "fails", &["Operation not permitted", "ask_admin"]);
    run(libc::SYS_unshare, "restore with the same", "fails", &["user namespace: refused"]);
    run(libc::SYS_process_vm_readv, "read memory", "less", &["slower"]);
    run(libc::SYS_close_range, "copy running jobs", "less", &["stand still"]);
    run(libc::SYS_userfaultfd, "find written pages", "less", &["reads all memory"]);
    run(libc::SYS_ioprio_set, "write with low priority", "less", &["ioprio_set"]);
    run(libc::SYS_fsync, "disk of", "fails", &["sync a file", "--dir"]);
    run(libc::SYS_flock, "files there", "less", &["cannot be locked"]);
}

/// On a kernel that does not tell of restartable sequences, whoever has registered any is refused by name,
/// and whoever has not comes back.
#[test]
fn restartable_sequences_that_nobody_tells_of() {
    const GET_RSEQ_CONFIGURATION: u32 = 0x420f;
    let place = Workplace::new(User::Plain);
    let forbid = forbid();
    let forbid = forbid.to_str().expect("it has a plain path");
    let number = format!("{}={GET_RSEQ_CONFIGURATION:#x}", libc::SYS_ptrace);
    let (report, _) = report(&place, &[forbid, &number, "--"], &[]);
    check_line(&report, "find rseq areas", "less", &["Linux 5.13"]);
    let dump = |tunables: &str| {
        let mut job = place.command("sleep");
        let job = place.start(job.arg("100").env("GLIBC_TUNABLES", tunables));
        let is_sleep = || (process::proc_text(job, "comm") == "sleep\n").then_some(());
        assert!(poll(PATIENCE, is_sleep).is_some());
        let mut command = place.command(forbid);
        command.args([&number, "--"]).arg(rckpt_binary());
        command.args(["dump", &job.to_string(), "--dir", &format!("job-{job}")]);
        let status = process::exit_status(place.start(command), PATIENCE);
        nix::sys::signal::kill(job, nix::sys::signal::Signal::SIGKILL)
            .expect("it is not reaped yet");
        status
    };
    assert_eq!(dump("glibc.pthread.rseq=0"), Some(0), "{}", place.text("stderr"));
    assert_eq!(dump(""), Some(1), "{}", place.text("stderr"));
    let words = place.text("stderr");
    assert!(words.contains("RCKPT-E0317") && words.contains("glibc.pthread.rseq=0"), "{words}");
}

/// Limits that are set for the process itself, and for its own user namespace.
#[test]
fn limits() {
    let place = Workplace::new(User::Plain);
    let run = |script: &str, subject: &str, grade: &str, words: &[&str]| {
        let script = format!("{script}; exec \"$@\"");
        let inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"];
        let (report, _) = report(&place, &inside, &["--dir", "small"]);
        check_line(&report, subject, grade, words);
    };
    place.make_directory("small");
    let none = "echo 0 > /proc/sys/user/max_user_namespaces";
    let words = ["user namespace: refused", "sysctl user.max_user_namespaces to 15000 (it is 0)"];
    run(none, "restore with the same process ids", "fails", &words);
    run("ulimit -n 100", "open files", "less", &["ulimit -n"]);
    run("prlimit --pid $$ --nproc=20", "processes", "less", &["more only", "ulimit -u"]);
    run("ulimit -f 4096", "file size", "less", &["up to 2.0 MiB"]);
    let full = "mount -t tmpfs -o size=64k tmpfs small; head -c 64k /dev/zero > small/fill";
    run(full, "disk of small", "fails", &["make room"]);
    let little = "mount -t tmpfs -o size=512k tmpfs small";
    run(little, "disk of small", "fails", &["tmpfs", "it is full"]);
    run("mount -t tmpfs -o size=8m tmpfs small", "disk of small", "works", &["8.0 MiB free"]);
    run("mount -t tmpfs -o ro tmpfs small", "disk of small", "fails", &["Read-only", "--dir"]);
}

/// People are told the verdict first, the worst next, and no line is too long.
#[test]
fn for_tired_people() {
    let place = Workplace::new(User::Plain);
    let good = place.tell(&["check"]);
    assert!(good.starts_with("rckpt works here"), "{good}");
    let rckpt = rckpt_binary();
    let mut command = place.command(forbid());
    command.args([&libc::SYS_kcmp.to_string(), "--"]).arg(rckpt).arg("check");
    let child = place.start(command.stdout(place.stream("bad")));
    assert_eq!(process::exit_status(child, PATIENCE), Some(1), "{}", place.text("stderr"));
    let bad = place.text("bad");
    assert!(bad.starts_with("rckpt does not work here: compare descriptors (kcmp)\n"), "{bad}");
    assert_eq!(bad.lines().nth(3), Some(" FAILS  compare descriptors (kcmp)"), "{bad}");
    assert!(bad.contains("ask: \"Please allow the system call kcmp"), "{bad}");
    for text in [good, bad] {
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
    for name in place.path("").read_dir().expect("list the directory").flatten() {
        assert!(!name.file_name().to_string_lossy().starts_with(".rckpt"), "{name:?} is left");
    }
}

/// How many times larger the larger of both is.
fn factor(one: f64, other: f64) -> f64 {
    (one / other).max(other / one)
}

/// What `check` says of a checkpoint of `root` comes true: its size nearly, its times as far as that can be
/// said on a machine that does other things, too.
fn comes_true(place: &Workplace, root: &str) {
    let mut told = String::new();
    for round in 0..6 {
        let (checked, status) = report(place, &[], &[root, "--dir", "job"]);
        assert_eq!(status, Some(0), "{checked:#}");
        let directory = format!("job{round}");
        let words = ["dump", root, "--dir", &directory, "--json"];
        let taken: Value = serde_json::from_str(&place.tell(&words)).expect("dump reports");
        let number =
            |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{taken:#} {checked:#}"));
        let prediction = &checked["prediction"];
        let size = factor(number(&prediction["bytes"]), number(&taken["bytes"]));
        // What takes next to no time is not measured, but disturbed.
        let pause = factor(
            number(&prediction["pause_seconds"]).max(0.01),
            number(&taken["pause_seconds"]).max(0.01),
        );
        let all =
            factor(number(&prediction["seconds"]).max(0.1), number(&taken["seconds"]).max(0.1));
        told.push_str(&format!("size {size:.2}, pause {pause:.2}, all {all:.2} times off\n"));
        assert!(size < 1.5, "{told}{prediction:#}{taken:#}");
        if pause < 3.0 && all < 3.0 {
            println!("{told}{prediction:#}{taken:#}");
            return;
        }
    }
    panic!("{told}");
}

const MEMORY: &str = "import os, time\n\
    noise = os.urandom(1 << 20) * 40\n\
    words = b'some words, again and again ' * (1 << 20)\n\
    zeros = bytearray(30 << 20)\n\
    zeros[::4096] = zeros[::4096]\n\
    open('ready', 'w').close()\n\
    while not os.path.exists('go'): time.sleep(0.05)\n";

#[test]
fn what_is_predicted_comes_true() {
    let place = Workplace::new(User::Plain);
    place.write("memory.py", MEMORY);
    let job = place.start(place.command("python3").arg("memory.py"));
    assert!(poll(PATIENCE, || place.has("ready").then_some(())).is_some());
    comes_true(&place, &job.to_string());
    place.write("go", "");
    assert_eq!(process::exit_status(job, PATIENCE), Some(0), "{}", place.text("stderr"));
}

/// Processes that have most of their memory in common.
#[test]
fn a_pool_is_predicted() {
    let place = Workplace::new(User::Plain);
    let case = Case::new("memory_pool").with_argument("30");
    let job = Running::start(&place, &case, Start::Supervised);
    comes_true(&place, &job.root().to_string());
    job.judge();
}
