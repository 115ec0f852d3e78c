//! Disks that are slow, hang, fail or have silly names: checkpoints fail by name or come late, and the job
//! notices nothing of it. Such a disk is played by a program (FUSE); only root may mount it.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::rounds::{Case, Running, Start};
use crate::harness::workplace::{User, Workplace};

/// The longest that a command may take that is told to end.
const SOON: Duration = Duration::from_secs(20);

/// A disk at `disk`, of which the job's directory `job` is part by a link.
struct Disk<'place> {
    place: &'place Workplace,
}

impl<'place> Disk<'place> {
    /// Mounts it; `None` where that cannot be done. More words are for the program.
    fn mount(place: &'place Workplace, more: &[&str]) -> Option<Self> {
        if !geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            println!("no file system can be mounted here that others see");
            return None;
        }
        for name in ["behind", "disk"] {
            place.make_directory(name);
        }
        let disk = Self { place };
        disk.is("well");
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/moody_disk.py");
        let mut server = place.command("/usr/bin/python3");
        place.start(server.args([program, "behind", "disk", "mood"]).args(more));
        std::fs::write(place.path("behind/there"), "").expect("make a file");
        let mounted = poll(PATIENCE, || place.has("disk/there").then_some(()));
        assert!(mounted.is_some(), "{}", place.text("stderr"));
        place.make_directory("disk/job");
        std::os::unix::fs::symlink("disk/job", place.path("job")).expect("make a link");
        Some(disk)
    }

    /// From now on it behaves like this.
    fn is(&self, mood: &str) {
        self.place.write("mood", mood);
    }

    /// From now on it hangs, and somebody waits for it when this returns, once `ask` has been called.
    fn hangs<T>(&self, ask: impl FnOnce() -> T) -> T {
        self.is("hangs");
        let asked = ask();
        let felt = poll(PATIENCE, || self.place.has("mood.felt").then_some(()));
        assert!(felt.is_some(), "nobody waits for the disk");
        std::fs::remove_file(self.place.path("mood.felt")).expect("remove a mark");
        asked
    }

    /// Nothing half done is left, and what is called a checkpoint is whole.
    fn check_clean(&self) {
        let left = || -> Vec<String> {
            let names = std::fs::read_dir(self.place.path("job")).expect("list a directory");
            let names = names.flatten().map(|it| it.file_name().to_string_lossy().into_owned());
            names.filter(|name| name.starts_with(".tmp-") || name.starts_with(".new-")).collect()
        };
        // Whoever was told to end does so when the disk comes back.
        let clean = poll(PATIENCE, || left().is_empty().then_some(()));
        assert!(clean.is_some(), "left: {:?}", left());
        if self.place.has("job/latest") {
            self.place.tell(&["verify", "--deep", "job"]);
        }
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        self.is("well");
        let disk = self.place.path("disk");
        if let Err(error) = nix::mount::umount2(&disk, nix::mount::MntFlags::MNT_DETACH) {
            println!("{} stays mounted: {error}", disk.display());
        }
    }
}

/// The answer of a fixture while its checkpoint cannot be written, and that nobody holds it.
fn check_unharmed(job: &Running<'_>) {
    let begun = Instant::now();
    job.ping();
    job.check_let_go();
    println!("the job answered after {:?}", begun.elapsed());
}

#[test]
fn a_slow_disk_holds_nobody_up() {
    let place = Workplace::new(User::Caller);
    let Some(disk) = Disk::mount(&place, &[]) else { return };
    let job = Running::start(&place, &Case::new("threads_waiting"), Start::Alone);
    disk.is("slow");
    let root = job.root().to_string();
    let words = ["dump", &root, "--dir", "job", "--compress", "none", "--json"];
    let report = place.tell(&words);
    let report: serde_json::Value = serde_json::from_str(&report).expect("it is JSON");
    let seconds = |name: &str| report[name].as_f64().expect("a number");
    assert!(seconds("pause_seconds") < seconds("seconds") / 2.0, "{report}");
    println!("paused {} s of {} s", seconds("pause_seconds"), seconds("seconds"));
    check_unharmed(&job);
    disk.check_clean();
    job.judge();
}

#[test]
fn a_disk_with_errors_is_named() {
    let place = Workplace::new(User::Caller);
    let Some(disk) = Disk::mount(&place, &[]) else { return };
    let job = Running::start(&place, &Case::new("threads_waiting"), Start::Supervised);
    let root = job.root().to_string();
    for (mood, words) in
        [("EIO", "Input/output error"), ("ENOSPC", "make room"), ("EDQUOT", "quota exceeded")]
    {
        disk.is(mood);
        let answer = place.ask(&["dump", &root]);
        assert_eq!(answer.status, Some(1), "{mood}: {answer:?}");
        assert!(answer.words.contains(words) && answer.words.contains("/job/"), "{answer:?}");
        check_unharmed(&job);
        disk.is("well");
        disk.check_clean();
        job.dump(&[]);
        disk.check_clean();
    }
    job.judge();
}

/// Whoever takes a checkpoint onto a disk that hangs can be told to end; the job never notices.
#[test]
fn a_dump_onto_a_disk_that_hangs_can_be_ended() {
    let place = Workplace::new(User::Caller);
    let Some(disk) = Disk::mount(&place, &[]) else { return };
    let job = Running::start(&place, &Case::new("threads_waiting"), Start::Alone);
    let root = job.root().to_string();
    job.dump(&[]);
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let dump = disk.hangs(|| {
            place.start(place.rckpt(&["dump", &root, "--dir", "job", "--compress", "none"]))
        });
        check_unharmed(&job);
        let begun = Instant::now();
        kill(dump, signal).expect("it is there");
        let status = process::exit_status(dump, SOON);
        assert_eq!(status, Some(128 + signal as i32), "{signal}: {}", place.text("stderr"));
        println!("{signal}: ended after {:?}", begun.elapsed());
        check_unharmed(&job);
        disk.is("well");
        job.dump(&[]);
        disk.check_clean();
    }
    job.judge();
}

/// A supervisor whose disk hangs goes on with everything else, and takes its checkpoints when the disk is back.
#[test]
fn a_supervisor_outlives_a_disk_that_hangs() {
    let place = Workplace::new(User::Caller);
    let Some(disk) = Disk::mount(&place, &[]) else { return };
    let job = Running::start(&place, &Case::new("threads_waiting"), Start::Supervised);
    let root = job.root().to_string();
    job.dump(&[]);
    let client = disk.hangs(|| place.start(place.rckpt(&["dump", &root])));
    check_unharmed(&job);
    // It answers, and whoever waits for the checkpoint may go away.
    let listed = place.ask(&["list"]);
    assert_eq!(listed.status, Some(0), "{listed:?}");
    kill(client, Signal::SIGINT).expect("it is there");
    assert!(process::exit_status(client, SOON).is_some(), "{}", place.text("stderr"));
    check_unharmed(&job);
    disk.is("well");
    let taken = poll(PATIENCE, || place.has("job/gen-000002").then_some(()));
    // What nobody waits for any more may also be given up.
    println!("the checkpoint was {}", if taken.is_some() { "taken" } else { "given up" });
    job.dump(&[]);
    disk.check_clean();
    job.judge();
}

/// Where a file that is open does not go when it is removed, but gets a silly name (NFS, `.fuse_hidden`).
#[test]
fn silly_names_do_no_harm() {
    let place = Workplace::new(User::Caller);
    let Some(disk) = Disk::mount(&place, &["silly"]) else { return };
    let mut job = Running::start(&place, &Case::new("threads_waiting"), Start::Alone);
    for _ in 0..3 {
        job.dump(&[]);
        job.ping();
    }
    let old = || {
        let names = std::fs::read_dir(place.path("job")).expect("list a directory").flatten();
        names.filter(|it| it.file_name().as_encoded_bytes().starts_with(b".old-")).count()
    };
    // Somebody reads one that is removed: the others are removed all the same, and it is when it is closed.
    let file = std::fs::File::open(place.path("job/gen-000001/image.rckpt")).expect("open it");
    place.tell(&["prune", "job", "--keep", "1"]);
    assert!(!place.has("job/gen-000001") && !place.has("job/gen-000002"));
    assert_eq!(old(), 1, "it has no silly name here");
    drop(file);
    place.tell(&["prune", "job", "--keep", "1"]);
    assert_eq!(old(), 0);
    disk.check_clean();
    job.dump(&["--kill"]);
    job.restore();
    job.judge();
}

/// Another supervisor's disk is full, too, when one has filled it: each says so, and none touches another's.
#[test]
fn supervisors_that_share_a_small_disk() {
    let place = Workplace::new(User::Plain);
    place.make_directory("small");
    let rckpt = crate::harness::workplace::rckpt_binary();
    let script = format!(
        "mount -t tmpfs -o size=6m tmpfs small || exit 9; \
         for n in 1 2 3; do {rckpt} run --dir small/job$n --every 1 --keep 2 -- \
         /usr/bin/python3 -c 'import os, time\nfor i in range(12):\n held = os.urandom(1 << 20)\n time.sleep(0.5)' \
         2> told$n & pids=\"$pids $!\"; done; \
         for pid in $pids; do wait $pid || exit 8; done; \
         for n in 1 2 3; do [ ! -e small/job$n/latest ] || {rckpt} verify --deep small/job$n || exit 7; done; \
         ls -a small/* > listed",
        rckpt = rckpt.display()
    );
    let words = ["--user", "--map-root-user", "--mount", "sh", "-c", &script];
    let child = place.start(place.command("unshare").args(words));
    let status = process::exit_status(child, Duration::from_secs(100));
    let told: Vec<String> = (1..=3).map(|n| place.text(&format!("told{n}"))).collect();
    assert_eq!(status, Some(0), "{}: {told:?}", place.text("stderr"));
    assert!(told.iter().any(|words| words.contains("make room")), "{told:?}");
    assert!(!place.text("listed").contains(".tmp"), "{}", place.text("listed"));
    assert!(process::descendants(Pid::this()).is_empty());
}
