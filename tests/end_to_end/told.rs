//! What is said and where: -q, -v, --log, colours, progress, metrics.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::workplace::{User, Workplace, rckpt_binary};

/// A process to be saved.
fn sleeper(place: &Workplace) -> String {
    let job = place.start(place.command("sleep").arg("1000"));
    poll(PATIENCE, || (process::proc_text(job, "comm") == "sleep\n").then_some(()));
    job.to_string()
}

#[test]
fn as_much_is_said_as_was_asked_for() {
    let place = Workplace::new(User::Plain);
    let job = sleeper(&place);
    let words = |more: &[&str]| {
        let answer = place.ask(&[&["dump", &job, "--dir", "job"], more].concat());
        assert_eq!(answer.status, Some(0), "{answer:#?}");
        assert!(answer.output.contains("/job/gen-"), "{answer:#?}");
        answer.words
    };
    let quiet = words(&["-q"]);
    assert!(quiet.lines().all(|line| line.contains("warning: ")), "{quiet}");
    let usual = words(&["--log", "log"]);
    assert!(usual.contains("rckpt: checkpoint ") && !usual.contains("was called"), "{usual}");
    assert!(words(&["-vv"]).contains("ends with status 0"));
    words(&["-q", "--log", "log"]);
    let log = place.text("log");
    for (expected, times) in [("was called: ", 2), ("] checkpoint ", 2), ("ends with status 0", 2)]
    {
        assert_eq!(log.matches(expected).count(), times, "{expected} in {log}");
    }
    assert!(log.lines().all(|line| line.contains("Z [")), "{log}");
    // What goes wrong is said in any case, and is in the log.
    let answer = place.ask(&["inspect", "absent", "-q", "--log", "log"]);
    assert!(answer.status == Some(1) && answer.words.contains("error["), "{answer:#?}");
    assert!(place.text("log").contains("absent does not exist"), "{}", place.text("log"));
    let answer = place.ask(&["list", "--log", "absent/log"]);
    assert!(answer.status == Some(1) && answer.words.contains("open the log"), "{answer:#?}");

    let run = place.rckpt(&["run", "-v", "--dir", "verbose", "--", "sh", "-c", "sleep 1; exit 3"]);
    let run = place.start(run);
    let child = poll(PATIENCE, || process::child_named(run, "sh")).expect("it has started");
    place.tell(&["dump", &child.to_string()]);
    assert_eq!(process::exit_status(run, PATIENCE), Some(3));
    assert!(
        place.text("stderr").contains("it was made in full: 100.0 %"),
        "{}",
        place.text("stderr")
    );
}

#[test]
fn colours_are_for_those_who_want_them() {
    let place = Workplace::new(User::Plain);
    let check = |variables: &[(&str, &str)], expected: bool| {
        let mut command: Command = place.rckpt(&["inspect", "absent"]);
        command.envs(variables.iter().copied()).stderr(place.stream("words"));
        assert_eq!(process::exit_status(place.start(command), PATIENCE), Some(1));
        let words = place.text("words");
        assert_eq!(words.contains("\u{1b}["), expected, "{variables:?}: {words:?}");
        fs::remove_file(place.path("words")).expect("remove it");
    };
    check(&[], false);
    check(&[("CLICOLOR_FORCE", "1")], true);
    check(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], false);
}

/// Runs a line of a shell on a terminal, and passes on what it shows.
const TERMINAL: &str =
    "import pty, sys; sys.exit(pty.spawn(['sh', '-c', 'exec ' + sys.argv[1]]) >> 8)";

/// What takes its time says how far it is, on a terminal and nowhere else.
#[test]
fn progress_on_a_terminal() {
    let place = Workplace::new(User::Plain);
    let hold = "import os, time; held = os.urandom(96 << 20); print('ready', flush=True); time.sleep(1000)";
    let job = place.start(place.command("/usr/bin/python3").args(["-c", hold]));
    assert!(poll(PATIENCE, || place.text("stdout").contains("ready").then_some(())).is_some());
    place.tell(&["dump", &job.to_string(), "--dir", "job", "--kill", "--compress", "none"]);
    let line = format!("{} verify --deep job", rckpt_binary().display());
    let shown = |more: &str| {
        let mut terminal = place.command("/usr/bin/python3");
        terminal.args(["-c", TERMINAL, &format!("{line}{more}")]).stdout(place.stream("shown"));
        let terminal = place.start(terminal);
        let name = rckpt_binary().file_name().expect("it has one").display().to_string();
        let name = &name[..name.len().min(15)];
        // Where it can be caught at its work, it is held up for longer than anybody would wait without a
        // word.
        let at_work = |it: &Pid| {
            let read = process::proc_text(*it, "io");
            let read = read.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok());
            process::proc_text(*it, "comm").trim_end() == name
                && read.is_some_and(|read: u64| read > 2 << 20)
        };
        while !process::has_ended(terminal) {
            let caught = process::descendants(terminal).into_iter().find(at_work);
            if let Some(caught) = caught.filter(|it| kill(*it, Signal::SIGSTOP).is_ok()) {
                std::thread::sleep(Duration::from_millis(1100));
                kill(caught, Signal::SIGCONT).expect("let it go on");
                break;
            }
        }
        assert_eq!(process::exit_status(terminal, PATIENCE), Some(0));
        let shown = place.text("shown");
        fs::remove_file(place.path("shown")).expect("remove it");
        assert!(shown.contains("whole"), "{shown}");
        shown
    };
    let words = (0..20).map(|_| shown("")).find(|words| words.contains("rckpt: checking: "));
    assert!(words.is_some_and(|words| words.contains(" left")), "nothing was shown");
    assert!(!shown(" -q").contains("checking"));
    assert!(!shown(" 2>words").contains("checking"));
    assert_eq!(place.text("words"), "");
}

/// A checkpoint that is written slowly says how long it will still take, whether a supervisor takes it or the
/// command itself.
#[test]
fn progress_of_a_checkpoint() {
    let place = Workplace::new(User::Plain);
    let hold = "import os, time; held = os.urandom(48 << 20); print('ready', flush=True); time.sleep(1000)";
    let words = ["run", "-q", "--dir", "supervised", "--", "/usr/bin/python3", "-c", hold];
    let supervisor = place.start(place.rckpt(&words));
    let alone = place.start(place.command("/usr/bin/python3").args(["-c", hold]));
    let ready = || place.text("stdout").matches("ready").count() == 2;
    assert!(poll(PATIENCE, || ready().then_some(())).is_some());
    let shown = |dump: String| {
        let line = format!("{} {dump} --compress none", rckpt_binary().display());
        let mut terminal = place.command("/usr/bin/python3");
        terminal.args(["-c", TERMINAL, &line]).stdout(place.stream("shown"));
        assert_eq!(process::exit_status(place.start(terminal), PATIENCE), Some(0));
        let shown = place.text("shown");
        fs::remove_file(place.path("shown")).expect("remove it");
        shown
    };
    for dump in [format!("dump {supervisor}"), format!("dump {alone} --dir alone")] {
        let words = shown(format!("{dump} --rate 16M"));
        let line = words.split("writing the checkpoint: ").nth(1).unwrap_or_else(|| {
            panic!("nothing was shown: {words:?}");
        });
        assert!(line.contains(" of ") && line.contains(" left"), "{line:?}");
        assert!(words.contains("/gen-000001"), "{words:?}");
    }
}

/// The metrics as Prometheus's own library reads them: a line for each, name, labels, value.
const PARSE: &str = "from prometheus_client.parser import text_string_to_metric_families as parse\n\
    for family in parse(open('job.prom').read()):\n    \
    for it in family.samples:\n        \
    print(family.type, it.name, it.labels['directory'].split('/')[-1], it.value, it.labels.get('program'))\n";

#[test]
fn metrics_for_a_node_exporter() {
    let place = Workplace::new(User::Plain);
    let read = || {
        let mut python = place.command("/usr/bin/python3");
        python.args(["-c", PARSE]).stdout(place.stream("read"));
        let status = process::exit_status(place.start(python), PATIENCE);
        assert_eq!(status, Some(0), "{}\n{}", place.text("job.prom"), place.text("stderr"));
        let read = place.text("read");
        fs::remove_file(place.path("read")).expect("remove it");
        read
    };
    let run =
        ["run", "-q", "--dir", "my \"job\"\\", "--metrics", "job.prom", "--", "sleep", "1000"];
    let supervisor = place.start(place.rckpt(&run));
    assert!(poll(PATIENCE, || place.has("job.prom").then_some(())).is_some());
    let job = poll(PATIENCE, || process::child_named(supervisor, "sleep")).expect("it has started");
    let found = read();
    for expected in [
        "gauge rckpt_job_info my \"job\"\\ 1.0 sleep\n",
        "gauge rckpt_job_running my \"job\"\\ 1.0 None\n",
        "counter rckpt_checkpoints_total my \"job\"\\ 0.0 None\n",
    ] {
        assert!(found.contains(expected), "no {expected}: {found}");
    }
    place.tell(&["dump", &job.to_string()]);
    let found = poll(PATIENCE, || {
        Some(read()).filter(|it| it.contains("checkpoints_total my \"job\"\\ 1.0"))
    });
    let found = found.expect("the checkpoint is counted");
    for expected in ["last_checkpoint_pause_seconds", "last_checkpoint_timestamp_seconds"] {
        assert!(found.contains(expected), "no {expected}: {found}");
    }
    kill(job, Signal::SIGKILL).expect("end it");
    assert_eq!(process::exit_status(supervisor, PATIENCE), Some(137));
    assert!(read().contains("rckpt_job_running my \"job\"\\ 0.0"));
    let left: Vec<_> = fs::read_dir(place.path("")).expect("list it").flatten().collect();
    assert!(
        !left.iter().any(|it| it.file_name().display().to_string().ends_with(".new")),
        "{left:?}"
    );
    // A place that cannot be written to is told of once, and the job goes on.
    let run = ["run", "--dir", "other", "--metrics", "absent/x.prom", "--", "sh", "-c", "exit 4"];
    assert_eq!(process::exit_status(place.start(place.rckpt(&run)), PATIENCE), Some(4));
    assert_eq!(place.text("stderr").matches("write the metrics to").count(), 1);
}
