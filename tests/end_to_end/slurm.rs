//! One line of shell inside a real Slurm: preempted, requeued, warned, out of time, on a node that fails,
//! the job goes on by itself each time, and its output is that of an undisturbed run.

use std::process::Stdio;

use crate::guide;
use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::slurm::Cluster;
use crate::harness::workplace::{User, Workplace, rckpt_binary};

/// The options of a batch job that goes on by itself; its output is kept apart from Slurm's and rckpt's
/// own words.
const BATCH: [&str; 5] =
    ["--requeue", "--open-mode=append", "--output=out", "--error=err", "--job-name=life"];

/// The line that ends a batch script: so many lines of output, ten a second.
fn line(lines: usize, words: &str) -> String {
    format!(
        "exec {} run --resume --requeue --every 1 {words} -- sh -c \
         'i=0; while [ $i -lt {lines} ]; do echo line $i; i=$((i+1)); sleep 0.1; done'",
        rckpt_binary().display()
    )
}

fn whole_output(lines: usize) -> String {
    (0..lines).map(|number| format!("line {number}\n")).collect()
}

/// Waits until a checkpoint is there that was not when this was called.
fn await_checkpoint(place: &Workplace, cluster: &Cluster<'_>) {
    let latest = || std::fs::read_link(place.path("job/latest")).ok();
    let before = latest();
    let came = poll(PATIENCE * 2, || (latest() != before).then_some(()));
    assert!(came.is_some(), "no new checkpoint: {}", cluster.logs());
}

fn check_output(place: &Workplace, cluster: &Cluster<'_>, lines: usize) {
    assert!(place.text("out") == whole_output(lines), "{}\n{}", place.text("out"), cluster.logs());
}

#[test]
fn requeued_preempted_and_warned() {
    let place = Workplace::new(User::Known);
    let cluster = Cluster::start(&place, 1, "");
    let job = cluster.submit(&BATCH, &line(80, "--dir job"));
    await_checkpoint(&place, &cluster);
    cluster.tell("scontrol", &["requeue", &job]);
    cluster.await_restart(&job, 1);

    await_checkpoint(&place, &cluster);
    let other = ["--partition=high", "--output=/dev/null", "--wrap=sleep 0.5"];
    cluster.tell("sbatch", &other);
    cluster.await_restart(&job, 2);

    // As --signal=B:USR1@SECONDS does it.
    await_checkpoint(&place, &cluster);
    cluster.tell("scancel", &["--batch", "--signal=USR1", &job]);
    cluster.await_restart(&job, 3);

    cluster.await_state(&job, "COMPLETED");
    check_output(&place, &cluster, 80);
    let words = place.text("err");
    assert_eq!(words.matches("brought back").count(), 3, "{words}");
}

#[test]
fn out_of_time() {
    let place = Workplace::new(User::Known);
    let cluster = Cluster::start(&place, 1, "");
    let mut words = BATCH.to_vec();
    words.push("--time=1");
    let job = cluster.submit(&words, &line(400, "--dir job"));
    cluster.await_restart(&job, 1);
    cluster.await_state(&job, "COMPLETED");
    check_output(&place, &cluster, 400);
    assert!(place.text("err").contains("nearly over"), "{}", place.text("err"));
}

#[test]
fn node_fails() {
    let place = Workplace::new(User::Known);
    let cluster = Cluster::start(&place, 1, "");
    let job = cluster.submit(&BATCH, &line(50, "--dir job"));
    await_checkpoint(&place, &cluster);
    await_checkpoint(&place, &cluster);
    cluster.lose_node();
    cluster.await_state(&job, "PENDING");
    cluster.start_node();
    cluster.await_restart(&job, 1);
    cluster.await_state(&job, "COMPLETED");
    check_output(&place, &cluster, 50);
}

#[test]
fn arrays_and_steps() {
    let place = Workplace::new(User::Known);
    let cluster = Cluster::start(&place, 4, "");
    let words = [&BATCH[..2], &["--array=0-2", "--output=out.%a", "--error=err"]].concat();
    let job = cluster.submit(&words, &line(40, "--dir job.$SLURM_ARRAY_TASK_ID"));
    let second = format!("{job}_1");
    let came = poll(PATIENCE, || place.has("job.1/latest").then_some(()));
    assert!(came.is_some(), "{}", cluster.logs());
    cluster.tell("scancel", &["--batch", "--signal=USR1", &second]);
    cluster.await_restart(&second, 1);
    for task in 0..3 {
        cluster.await_state(&format!("{job}_{task}"), "COMPLETED");
        assert!(place.text(&format!("out.{task}")) == whole_output(40), "{}", cluster.logs());
    }

    // The tasks of a step, each with a directory of its own; the first time they are cancelled.
    let script = line(30, "--dir step.$SLURM_PROCID");
    let srun = |name: &str| {
        let words =
            ["--ntasks=2", "--kill-on-bad-exit=0", "--output=step-out.%t", "--open-mode=append"];
        let mut command = cluster.command("srun", &words);
        place.start(command.args([&format!("--job-name={name}"), "sh", "-c", &script]))
    };
    let first = srun("first");
    let came = poll(PATIENCE, || {
        ["step.0/latest", "step.1/latest"].iter().all(|name| place.has(name)).then_some(())
    });
    assert!(came.is_some(), "{}", place.text("stderr"));
    cluster.tell("scancel", &["--name=first"]);
    assert!(process::exit_status(first, PATIENCE).is_some());
    let second = srun("second");
    assert_eq!(process::exit_status(second, PATIENCE), Some(0), "{}", place.text("stderr"));
    for task in 0..2 {
        let written = place.text(&format!("step-out.{task}"));
        let own: String = written
            .lines()
            .filter(|it| it.starts_with("line"))
            .map(|it| format!("{it}\n"))
            .collect();
        assert!(own == whole_output(30), "{written}");
    }
}

/// The script of the guide as it stands there.
#[test]
fn script_of_the_guide() {
    let place = guide::furnished(User::Known);
    place.write("slurm.sh", &guide::block("slurm.sh"));
    let cluster = Cluster::start(&place, 1, "");
    let mut submit = cluster.command("sbatch", &["--parsable", "--export=ALL", "slurm.sh"]);
    submit.env("PATH", guide::path(&place)).env("SCRATCH", place.make_directory("scratch"));
    let output = submit.stdout(Stdio::piped()).output().expect("run sbatch");
    let job = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let lines = || place.text("out").lines().count();
    for (times, enough) in [(1, 5), (2, 15)] {
        assert!(
            poll(PATIENCE * 4, || (lines() >= enough).then_some(())).is_some(),
            "{}",
            cluster.logs()
        );
        cluster.tell("scancel", &["--batch", "--signal=USR1", &job]);
        cluster.await_restart(&job, times);
    }
    cluster.await_state(&job, "COMPLETED");
    check_output(&place, &cluster, 40);
}
