//! The one-line script as it is judged: a job that is lost some twenty times at moments that nobody chose
//! finishes with output that is, byte for byte, that of an undisturbed run. Nothing else helps it along.
//!
//! What is lost is everything at once, as when a node fails; the supervisor alone; the job alone; the
//! process group; a checkpoint or a restore in its middle.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::slurm::Cluster;
use crate::harness::workplace::{User, Workplace, rckpt_binary};

/// How often a job is lost.
const LOSSES: u32 = 20;
/// How long a job works when nothing happens to it.
const WORK: Duration = Duration::from_secs(16);

/// A job, by the shell command that runs it, where `STEPS` and `PAUSE` (seconds) are put in, and by the
/// files that it writes, beside its standard output.
struct Job {
    command: &'static str,
    steps: u32,
    writes: &'static [&'static str],
}

const NUMPY: Job = Job {
    command: "exec /usr/bin/python3 heat.py STEPS PAUSE",
    steps: 400,
    writes: &["plate.npy"],
};

const PIPELINE: Job = Job {
    command: "i=0; while [ $i -lt STEPS ]; do echo $i; i=$((i+1)); sleep PAUSE; done | \
              awk '{ sum += $1; print NR, sum; fflush() }' | tee pipeline.copy | gzip -c | gzip -dc",
    steps: 300,
    writes: &["pipeline.copy"],
};

const APPENDING: Job = Job {
    command: "exec ./append STEPS $(awk 'BEGIN { print PAUSE * 1000000 }')",
    steps: 500,
    writes: &["results.csv", "lengths.log"],
};

/// All three at once, in one job: each writes to a file of its own, for nobody tells who of them is faster.
const ALL: Job = Job {
    command: "/usr/bin/python3 heat.py STEPS PAUSE >heat.out & ./append STEPS \
              $(awk 'BEGIN { print PAUSE * 1000000 }') >append.out & \
              i=0; while [ $i -lt STEPS ]; do echo $i; i=$((i+1)); sleep PAUSE; done | \
              awk '{ sum += $1; print NR, sum; fflush() }' | tee pipeline.copy; wait",
    steps: 200,
    writes: &["heat.out", "plate.npy", "append.out", "pipeline.copy", "results.csv", "lengths.log"],
};

impl Job {
    fn script(&self, work: Duration) -> String {
        let pause = work.as_secs_f64() / f64::from(self.steps);
        self.command
            .replace("STEPS", &self.steps.to_string())
            .replace("PAUSE", &format!("{pause:.4}"))
    }

    /// What it has written, by name.
    fn output(&self, place: &Workplace, stream: &str) -> Vec<(String, Vec<u8>)> {
        let names = [stream].into_iter().chain(self.writes.iter().copied());
        names
            .map(|name| (name.to_owned(), fs::read(place.path(name)).unwrap_or_default()))
            .collect()
    }
}

/// Puts the programs into a place.
fn furnish(place: &Workplace) {
    let programs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
    for name in ["heat.py", "append.c"] {
        let source = fs::read_to_string(programs.join(name)).expect("read a program");
        place.write(name, &source);
    }
    let compiler = place.start(place.command("gcc").args(["-O1", "-o", "append", "append.c"]));
    assert_eq!(process::exit_status(compiler, PATIENCE), Some(0), "{}", place.text("stderr"));
}

/// What the job writes when nothing happens to it.
fn undisturbed(place: &Workplace, job: &Job) -> Vec<(String, Vec<u8>)> {
    let child = place.start(place.command("sh").args(["-c", &job.script(Duration::ZERO)]));
    assert_eq!(process::exit_status(child, PATIENCE), Some(0), "{}", place.text("stderr"));
    job.output(place, "stdout")
}

fn check_same(expected: &[(String, Vec<u8>)], found: &[(String, Vec<u8>)], told: &str) {
    for ((_, expected), (name, found)) in expected.iter().zip(found) {
        let at = expected.iter().zip(found).take_while(|(left, right)| left == right).count();
        assert!(
            expected == found,
            "{name} differs at byte {at}: {} bytes, not {}\n{told}",
            found.len(),
            expected.len()
        );
        assert!(!expected.is_empty(), "{name} is empty");
    }
}

/// A number that nobody chose, below `bound`.
fn random(bound: u64) -> u64 {
    let mut bytes = [0; 8];
    let source = fs::File::open("/dev/urandom").expect("there are random numbers");
    std::io::Read::read_exact(&mut { source }, &mut bytes).expect("read one");
    u64::from_le_bytes(bytes) % bound
}

/// What is lost, and when.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Everything(Duration),
    Supervisor(Duration),
    Job(Duration),
    Group(Duration),
    InCheckpoint,
    InRestore(Duration),
}

impl Loss {
    fn at_random() -> Self {
        let moment = Duration::from_millis(200 + random(1500));
        match random(6) {
            0 => Self::Everything(moment),
            1 => Self::Supervisor(moment),
            2 => Self::Job(moment),
            3 => Self::Group(moment),
            4 => Self::InCheckpoint,
            _ => Self::InRestore(Duration::from_millis(random(400))),
        }
    }

    /// Loses it. `child` is the supervisor.
    fn happen(self, place: &Workplace, child: Pid, again: &dyn Fn() -> Pid) {
        match self {
            Self::Everything(moment) | Self::InRestore(moment) => std::thread::sleep(moment),
            Self::InCheckpoint => await_checkpoint_begun(place, child),
            Self::Supervisor(moment) => {
                std::thread::sleep(moment);
                kill(child, Signal::SIGKILL).expect("it is not reaped");
                assert!(process::exit_status(child, PATIENCE).is_some());
                // As long as the job runs, nobody brings it back beside itself.
                if !members(place).is_empty() {
                    let refused = again();
                    assert_eq!(process::exit_status(refused, PATIENCE), Some(125));
                }
            }
            Self::Job(moment) => {
                std::thread::sleep(moment);
                for pid in members(place) {
                    // It may have ended with another one.
                    kill(pid, Signal::SIGKILL).unwrap_or_default();
                }
                // The supervisor tells how it ended; one that was just starting it finds it gone.
                assert!(process::exit_status(child, PATIENCE).is_some());
            }
            Self::Group(moment) => {
                std::thread::sleep(moment);
                killpg(child, Signal::SIGKILL).expect("it leads a group");
            }
        }
        // What is left is ended by the batch system.
        process::kill_descendants();
    }
}

/// The processes of the job, as its variable tells.
fn members(place: &Workplace) -> Vec<Pid> {
    let own = format!("RCKPT_DIR={}", place.path("job").display());
    let all = process::descendants(Pid::this()).into_iter();
    all.filter(|pid| process::proc_text(*pid, "environ").split('\0').any(|word| word == own))
        .collect()
}

fn await_checkpoint_begun(place: &Workplace, child: Pid) {
    let begun = || {
        let entries = fs::read_dir(place.path("job")).ok()?;
        let mut names = entries.flatten().map(|entry| entry.file_name());
        let is_there = names.any(|name| name.to_string_lossy().starts_with(".tmp-"));
        (is_there || process::has_ended(child)).then_some(())
    };
    assert!(poll(PATIENCE, begun).is_some(), "no checkpoint: {}", place.text("stderr"));
}

fn lost_twenty_times(job: &Job) {
    let reference = Workplace::new(User::Plain);
    furnish(&reference);
    let expected = undisturbed(&reference, job);

    let place = reference.another("lost");
    furnish(&place);
    let script = job.script(WORK);
    let start = || {
        let words = ["run", "--resume", "--every", "1", "--outputs", "results.csv", "--dir", "job"];
        let mut command = place.command("setsid");
        command.arg(rckpt_binary()).args(words).args(["--", "sh", "-c", &script]);
        place.start(command)
    };
    let mut losses = Vec::new();
    let begun = Instant::now();
    for _ in 0..LOSSES {
        let child = start();
        let loss = Loss::at_random();
        losses.push(loss);
        loss.happen(&place, child, &start);
    }
    let told = || format!("lost by {losses:?}\n{}", place.text("stderr"));
    let last = start();
    let status = process::exit_status(last, PATIENCE + WORK);
    assert_eq!(status, Some(0), "{}", told());
    println!("lost {LOSSES} times in {:?}", begun.elapsed());
    check_same(&expected, &job.output(&place, "stdout"), &told());
    // It has finished, and is not run again.
    assert_eq!(process::exit_status(start(), PATIENCE), Some(0), "{}", told());
    check_same(&expected, &job.output(&place, "stdout"), &told());
}

#[test]
fn numpy_lost_twenty_times() {
    lost_twenty_times(&NUMPY);
}

#[test]
fn pipeline_lost_twenty_times() {
    lost_twenty_times(&PIPELINE);
}

#[test]
fn appending_lost_twenty_times() {
    lost_twenty_times(&APPENDING);
}

/// The same three programs as one job of a real Slurm, which preempts it and requeues it.
#[test]
fn preempted_and_requeued_by_slurm() {
    let reference = Workplace::new(User::Known);
    furnish(&reference);
    let expected = undisturbed(&reference, &ALL);

    let place = reference.another("slurm");
    furnish(&place);
    let cluster = Cluster::start(&place, 1, "");
    place.write("job.sh", &ALL.script(WORK));
    let words = [
        "--requeue",
        "--open-mode=append",
        "--output=out",
        "--error=err",
        "--job-name=judged",
        "--signal=B:USR1@30",
    ];
    let script = format!(
        "exec {} run --resume --requeue --every 1 --outputs results.csv --dir job -- sh job.sh",
        rckpt_binary().display()
    );
    let job = cluster.submit(&words, &script);
    cluster.await_restart(&job, 0);
    std::thread::sleep(Duration::from_millis(1000 + random(1000)));
    for times in 1..=6 {
        if times % 2 == 0 {
            let other = ["--partition=high", "--output=/dev/null", "--wrap=sleep 0.5"];
            cluster.tell("sbatch", &other);
        } else {
            cluster.tell("scontrol", &["requeue", &job]);
        }
        cluster.await_restart(&job, times);
        std::thread::sleep(Duration::from_millis(500 + random(2500)));
    }
    cluster.await_state(&job, "COMPLETED");
    check_same(&expected, &ALL.output(&place, "out"), &cluster.logs());
}
