//! The scripts of docs/CLUSTERS.md, as they stand there: checked by the tools that know their languages,
//! and run under what each batch system does to its jobs, played by the test. tests/end_to_end/slurm.rs
//! gives the one for Slurm to a real one.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::workplace::{User, Workplace, rckpt_binary};

/// The job of all scripts: forty lines in four seconds.
const SIM: &str = "import time\n\
    for i in range(40):\n    print('line', i, flush=True)\n    time.sleep(0.1)\n";

fn whole_output() -> String {
    (0..40).map(|number| format!("line {number}\n")).collect()
}

/// The block of the guide that has this name behind its language.
pub fn block(name: &str) -> String {
    let guide = include_str!("../../docs/CLUSTERS.md");
    let mut lines = guide.lines();
    let is_start = |line: &str| {
        line.strip_prefix("```").and_then(|rest| rest.split_once(' ')).map(|(_, it)| it)
            == Some(name)
    };
    assert!(lines.any(is_start), "no block {name:?} in the guide");
    lines.take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect()
}

/// A place with the job in it, where `rckpt` is found by its name.
pub fn furnished(user: User) -> Workplace {
    let place = Workplace::new(user);
    place.write("sim.py", SIM);
    std::os::unix::fs::symlink(rckpt_binary(), place.path("rckpt")).expect("make a link");
    place
}

/// The PATH of the jobs there.
pub fn path(place: &Workplace) -> String {
    format!("{}:/usr/local/bin:/usr/bin:/bin", place.path("").display())
}

/// A file to which the batch system adds a job's output.
fn appended(path: &Path) -> fs::File {
    OpenOptions::new().append(true).create(true).open(path).expect("open an output file")
}

/// Starts a command as a batch system does: as the leader of a session, its output added to two files.
fn start_in(place: &Workplace, directory: &str, command: &mut Command) -> Pid {
    place.stream(&format!("{directory}/out"));
    place.stream(&format!("{directory}/err"));
    let at = place.path(directory);
    command.env("PATH", path(place)).current_dir(&at);
    command.stdout(appended(&at.join("out"))).stderr(appended(&at.join("err")));
    place.start(command)
}

/// Starts a script of the guide with these variables.
fn start(place: &Workplace, script: &str, variables: &[(&str, &str)]) -> Pid {
    place.write(script, &block(script));
    let mut command = place.command("setsid");
    command.args(["sh", script]).envs(variables.iter().copied());
    start_in(place, ".", &mut command)
}

fn await_lines(place: &Workplace, name: &str, number: usize) {
    let came = poll(PATIENCE, || (place.text(name).lines().count() >= number).then_some(()));
    assert!(came.is_some(), "{}{}", place.text(name), place.text("err"));
}

fn check_status(place: &Workplace, child: Pid, expected: i32) {
    let status = process::exit_status(child, PATIENCE);
    assert_eq!(status, Some(expected), "{}{}", place.text("err"), place.text("stderr"));
}

/// Started, warned after some lines by a signal to all its processes, ended with `status`; started again
/// and warned again; and then left alone to its end.
fn warned_twice(
    place: &Workplace,
    script: &str,
    variables: &[(&str, &str)],
    warning: Signal,
    status: i32,
) {
    for lines in [5, 15] {
        let child = start(place, script, variables);
        await_lines(place, "out", lines);
        killpg(child, warning).expect("it runs");
        check_status(place, child, status);
    }
    let child = start(place, script, variables);
    check_status(place, child, 0);
    assert_eq!(place.text("out"), whole_output(), "{}", place.text("err"));
    assert_eq!(place.text("err").matches("brought back").count(), 2, "{}", place.text("err"));
}

#[test]
fn scripts_are_good_shell() {
    let place = Workplace::new(User::Plain);
    let names =
        ["slurm.sh", "gridengine.sh", "pbs.sh", "lsf.sh", "echkpnt.rckpt", "erestart.rckpt"];
    for name in names {
        place.write(name, &block(name));
    }
    let child = place.start(place.command("shellcheck").args(names));
    assert_eq!(process::exit_status(child, PATIENCE), Some(0), "{}", place.text("stdout"));
}

#[test]
fn grid_engine() {
    let place = furnished(User::Plain);
    warned_twice(
        &place,
        "gridengine.sh",
        &[("JOB_ID", "7"), ("SGE_TASK_ID", "undefined")],
        Signal::SIGUSR2,
        99,
    );
}

/// Before Grid Engine suspends a job it warns by USR1, and then stops all its processes.
#[test]
fn suspended_by_grid_engine() {
    let place = furnished(User::Plain);
    let child = start(&place, "gridengine.sh", &[("JOB_ID", "7"), ("SGE_TASK_ID", "undefined")]);
    await_lines(&place, "out", 5);
    killpg(child, Signal::SIGUSR1).expect("it runs");
    let saved = poll(PATIENCE, || place.has("job.7/latest").then_some(()));
    assert!(saved.is_some(), "{}", place.text("err"));
    killpg(child, Signal::SIGSTOP).expect("it runs");
    killpg(child, Signal::SIGCONT).expect("it is stopped");
    check_status(&place, child, 0);
    assert_eq!(place.text("out"), whole_output());
}

#[test]
fn pbs() {
    let place = furnished(User::Plain);
    let here = place.path("").display().to_string();
    let variables =
        [("PBS_JOBID", "7.host"), ("PBS_JOBNAME", "sim"), ("PBS_O_WORKDIR", here.as_str())];
    warned_twice(&place, "pbs.sh", &variables, Signal::SIGTERM, 85);
}

#[test]
fn lsf() {
    let place = furnished(User::Plain);
    warned_twice(
        &place,
        "lsf.sh",
        &[("LSB_JOBID", "7"), ("LSB_JOBNAME", "sim")],
        Signal::SIGUSR2,
        85,
    );
}

/// The pair of programs that LSF calls with the words that its reference gives, for a job that was not
/// started by rckpt.
#[test]
fn checkpoint_and_restart_by_lsf() {
    let place = furnished(User::Plain);
    place.make_directory("checkpoints/7");
    for name in ["echkpnt.rckpt", "erestart.rckpt"] {
        place.write(name, &block(name));
    }
    let call = |words: &[&str]| {
        let mut command = place.command("sh");
        let child = place.start(command.args(words).env("PATH", path(&place)));
        process::exit_status(child, PATIENCE)
    };
    let mut job = place.command("setsid");
    let child = start_in(&place, ".", job.args(["python3", "sim.py"]));
    await_lines(&place, "out", 5);
    let group = child.to_string();
    let save = ["echkpnt.rckpt", "-c", "-f", "-d", "checkpoints/7", "-x", &group];
    assert_eq!(call(&save), Some(0), "{}", place.text("stderr"));
    await_lines(&place, "out", 10);
    assert!(!process::has_ended(child), "it was to run on");
    let save_and_end = ["echkpnt.rckpt", "-k", "-d", "checkpoints/7", &group];
    assert_eq!(call(&save_and_end), Some(0), "{}", place.text("stderr"));
    check_status(&place, child, 137);
    // One that cannot be saved is an error.
    assert_eq!(call(&["echkpnt.rckpt", "-k", "-d", "checkpoints/7", "2147483647"]), Some(1));

    assert_eq!(call(&["erestart.rckpt", "-c", "-f", "checkpoints/7"]), Some(0));
    let file = place.text("checkpoints/7/.restart_cmd");
    let command = file.strip_prefix("LSB_RESTART_CMD=").expect("it names a command").trim_end();
    let mut again = place.command("setsid");
    let child = start_in(&place, ".", again.args(["sh", "-c", command]));
    check_status(&place, child, 0);
    assert_eq!(place.text("out"), whole_output(), "{}", place.text("err"));
}

/// HTCondor: a new scratch directory on each machine, the files of a checkpoint brought along.
#[test]
fn htcondor() {
    let place = furnished(User::Plain);
    let submit = block("condor.submit");
    let value = |key: &str| {
        let mut lines = submit.lines().filter_map(|line| line.split_once(" = "));
        lines.find(|(name, _)| *name == key).map(|(_, value)| value.trim_matches('"').to_owned())
    };
    let of = |key: &str| value(key).unwrap_or_else(|| panic!("no {key} in {submit}"));
    assert!(of("executable").ends_with("/rckpt"));
    let again: i32 = of("checkpoint_exit_code").parse().expect("a status");
    place.make_directory("spool");
    for name in of("transfer_input_files").split(", ") {
        fs::copy(place.path(name), place.path("spool").join(name)).expect("copy an input");
    }
    for (machine, lines) in [("machine.1", 5), ("machine.2", 15), ("machine.3", 40)] {
        let scratch = place.make_directory(machine);
        let mut bring = place.command("cp");
        let child = place.start(bring.args(["-a", "spool/.", machine]));
        check_status(&place, child, 0);
        let mut job = place.command("setsid");
        job.arg(rckpt_binary()).args(of("arguments").split(' '));
        let child = start_in(&place, machine, job.env("_CONDOR_SCRATCH_DIR", &scratch));
        if lines < 40 {
            await_lines(&place, &format!("{machine}/out"), lines);
            kill(child, Signal::SIGTERM).expect("it runs");
            check_status(&place, child, again);
        } else {
            check_status(&place, child, 0);
        }
        let files =
            format!("{}, {}, {}", of("transfer_checkpoint_files"), of("output"), of("error"));
        for name in files.split(", ") {
            let from = format!("{machine}/{name}");
            let child = place.start(place.command("cp").args(["-a", &from, "spool"]));
            check_status(&place, child, 0);
        }
        process::kill_descendants();
        fs::remove_dir_all(&scratch).expect("the machine is another's now");
    }
    assert_eq!(place.text("spool/out"), whole_output(), "{}", place.text("spool/err"));
}

/// systemd: the unit is valid, stopping it keeps what was done, and it is started again when it fails.
#[test]
fn systemd() {
    let place = furnished(User::Plain);
    let state = place.path("").display().to_string().trim_end_matches('/').to_owned();
    let rckpt = rckpt_binary().display().to_string();
    let unit = block("sim.service").replace("/usr/local/bin/rckpt", &rckpt);
    place.write("sim.service", &unit);
    let mut verify = place.command("systemd-analyze");
    let child = place.start(verify.args(["verify", "--man=no", "./sim.service"]));
    assert_eq!(process::exit_status(child, PATIENCE), Some(0), "{}", place.text("stderr"));
    assert!(!place.text("stderr").contains("sim.service"), "{}", place.text("stderr"));

    let setting = |name: &str| {
        let mut lines = unit.lines().filter_map(|line| line.split_once('='));
        let found = lines.find(|(key, _)| *key == name).map(|(_, it)| it.replace("%S", &state));
        found.unwrap_or_else(|| panic!("no {name}= in {unit}"))
    };
    place.make_directory("sim");
    assert_eq!(setting("WorkingDirectory"), format!("{state}/sim"));
    fs::write(place.path("sim/sim.py"), SIM).expect("write the program");
    let start = || {
        let line = setting("ExecStart");
        let mut words = line.split(' ');
        let program = words.next().expect("there is a program");
        start_in(&place, "sim", place.command("setsid").arg(program).args(words))
    };
    // systemctl stop: with KillMode=mixed, to the main process alone.
    assert_eq!(setting("KillMode"), "mixed");
    let child = start();
    await_lines(&place, "sim/out", 5);
    kill(child, Signal::SIGTERM).expect("it runs");
    check_status(&place, child, setting("SuccessExitStatus").parse().expect("a status"));
    // systemctl start; then it is killed with all that is in its control group, and started again.
    let child = start();
    await_lines(&place, "sim/out", 15);
    kill(child, Signal::SIGKILL).expect("it runs");
    check_status(&place, child, 137);
    process::kill_descendants();
    assert_eq!(setting("Restart"), "on-failure");
    check_status(&place, start(), 0);
    assert_eq!(place.text("sim/out"), whole_output(), "{}", place.text("sim/err"));
}

/// Kubernetes: the description says what it should, and its command is good as process 1 of a container.
#[test]
fn kubernetes() {
    let place = furnished(User::Plain);
    place.write("sim.yaml", &block("sim.yaml"));
    let parse = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open('sim.yaml'))))";
    let mut python = place.command("/usr/bin/python3");
    let output = python.args(["-c", parse]).stdout(Stdio::piped()).output().expect("run python3");
    let job: Value = serde_json::from_slice(&output.stdout).expect("it is YAML");
    assert_eq!((&job["kind"], &job["apiVersion"]), (&"Job".into(), &"batch/v1".into()));
    let pod = &job["spec"]["template"]["spec"];
    // A policy on failures is allowed with this only.
    assert!(job["spec"]["podFailurePolicy"].is_object());
    assert_eq!(pod["restartPolicy"], "Never");
    let container = &pod["containers"][0];
    assert_eq!(container["volumeMounts"][0]["name"], pod["volumes"][0]["name"]);
    assert_eq!(container["volumeMounts"][0]["mountPath"], container["workingDir"]);
    assert!(pod["terminationGracePeriodSeconds"].as_u64() > Some(100));

    let words: Vec<&str> =
        container["command"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    // A pod: a pid namespace, in which the command is process 1.
    let start = || {
        let mut pod = place.command("unshare");
        pod.args(["--user", "--map-current-user", "--pid", "--fork", "--mount", "--mount-proc"]);
        let pod = place.start(pod.arg("--kill-child").args(&words).env("PATH", path(&place)));
        let first = poll(PATIENCE, || process::children(pod).first().copied());
        (pod, first.expect("there is a process 1"))
    };
    for lines in [5, 15] {
        let (pod, first) = start();
        await_lines(&place, "out", lines);
        kill(first, Signal::SIGTERM).expect("it runs");
        check_status(&place, pod, 85);
    }
    let (pod, _) = start();
    check_status(&place, pod, 0);
    assert_eq!(place.text("out"), whole_output(), "{}", place.text("err"));
}

/// cron calls again and again; only a job that does not run is started.
#[test]
fn cron() {
    let place = furnished(User::Plain);
    place.make_directory("sim");
    fs::write(place.path("sim/sim.py"), SIM).expect("write the program");
    let table = block("sim.cron");
    let commands: Vec<String> = table
        .lines()
        .map(|line| {
            let fields = if line.starts_with('@') { 1 } else { 5 };
            let mut rest = line;
            for _ in 0..fields {
                rest = rest.trim_start().split_once(' ').expect("fields and a command").1;
            }
            rest.trim_start().to_owned()
        })
        .collect();
    let call = |command: &str| {
        let mut shell = place.command("setsid");
        place.start(shell.args(["sh", "-c", command]).env("PATH", path(&place)))
    };
    let first = call(&commands[0]);
    await_lines(&place, "sim/out", 5);
    check_status(&place, call(&commands[1]), 125);
    assert!(place.text("sim/err").contains("in use by"), "{}", place.text("sim/err"));
    // The machine is switched off in good order: init tells everybody.
    let all = process::descendants(first);
    for pid in all.iter().filter(|pid| process::proc_text(**pid, "comm").starts_with("rckpt")) {
        kill(*pid, Signal::SIGTERM).expect("it runs");
    }
    check_status(&place, first, 85);
    let second = call(&commands[1]);
    await_lines(&place, "sim/out", 15);
    check_status(&place, second, 0);
    assert_eq!(place.text("sim/out"), whole_output(), "{}", place.text("sim/err"));
    check_status(&place, call(&commands[1]), 0);
    assert_eq!(place.text("sim/out"), whole_output(), "it was run again");
}
