//! Room on the disk: what checkpoints may take, and what happens when there is none.

use std::fs;
use std::time::Duration;

use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::workplace::{User, Workplace};

/// Memory that cannot be compressed, new each second, a line of output each time.
const RANDOM: &str = "import os, time\n\
    for i in range(8):\n    held = os.urandom(3 << 20)\n    print(i, flush=True)\n    time.sleep(1)\n";

fn numbers(directory: &std::path::Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("gen-")).collect()
}

/// On a small disk of its own the checkpoint is left out, its user told, and the job goes on; when there
/// is room again, the next one is taken.
#[test]
fn full_disk_leaves_the_job_alone() {
    let place = Workplace::new(User::Plain);
    place.make_directory("small");
    place.write("random.py", RANDOM);
    let rckpt = crate::harness::workplace::rckpt_binary();
    let script = format!(
        "mount -t tmpfs -o size=12m tmpfs small && head -c 10M /dev/zero > small/fill && \
         {} run --dir small/job --every 1 --keep 1 -- sh -c 'python3 random.py & echo $! > pid; wait' & \
         while ! grep -q 'no checkpoint' stderr; do sleep 0.05; done; rm small/fill; \
         while [ ! -e small/job/latest ]; do sleep 0.05; done; ls small/job > listed; wait",
        rckpt.display()
    );
    let words = ["--user", "--map-root-user", "--mount", "sh", "-c", &script];
    let child = place.start(place.command("unshare").args(words));
    let status = process::exit_status(child, Duration::from_secs(60));
    let words = place.text("stderr");
    assert_eq!(status, Some(0), "{words}");
    assert_eq!(place.text("stdout"), (0..8).map(|i| format!("{i}\n")).collect::<String>());
    assert!(words.contains("the job runs on") && words.contains("make room"), "{words}");
    assert!(place.text("listed").contains("latest"), "{}", place.text("listed"));
    assert!(!place.text("listed").contains(".tmp"), "{}", place.text("listed"));
}

/// Old checkpoints go when all together take too much.
#[test]
fn no_more_room_than_allowed() {
    let place = Workplace::new(User::Plain);
    place.write("random.py", RANDOM);
    let words =
        ["run", "--dir", "job", "--every", "1", "--keep", "100", "--max-bytes", "10M", "--"];
    let child = place.start(place.rckpt(&words).args(["python3", "random.py"]));
    let fourth = poll(PATIENCE, || place.has("job/gen-000004").then_some(()));
    assert!(fourth.is_some(), "{}", place.text("stderr"));
    assert_eq!(process::exit_status(child, PATIENCE), Some(0), "{}", place.text("stderr"));
    let left = numbers(&place.path("job"));
    assert!((1..=3).contains(&left.len()), "{left:?}, {}", place.text("stderr"));
}

/// Where files may not be so large, that is told as of a full disk, and the job goes on; it is itself under
/// the limit as it would be without rckpt.
#[test]
fn limit_on_the_size_of_files_leaves_the_job_alone() {
    let place = Workplace::new(User::Plain);
    place.write("random.py", &RANDOM.replace("range(8)", "range(3)"));
    let rckpt = crate::harness::workplace::rckpt_binary();
    let job = "python3 random.py & echo $! > pid; wait $!; head -c 9M /dev/zero > own; echo $?";
    let script = format!(
        "ulimit -f 1000; {rckpt} run --dir job --every 1 -- sh -c '{job}' & \
         until grep -q 'no checkpoint' stderr; do sleep 0.05; done; \
         {rckpt} dump $(cat pid) --dir other >answer 2>&1; echo $? > status; wait",
        rckpt = rckpt.display()
    );
    let child = place.start(place.command("sh").args(["-c", &script]));
    assert_eq!(process::exit_status(child, Duration::from_secs(60)), Some(0));
    let words = place.text("stderr");
    let numbers: String = (0..3).map(|i| format!("{i}\n")).collect();
    // 128 and SIGXFSZ.
    assert_eq!(place.text("stdout"), numbers + "153\n", "{words}");
    assert!(words.contains("RCKPT-E0812") && words.contains("the job runs on"), "{words}");
    assert_eq!(place.text("status"), "1\n", "{}", place.text("answer"));
    for directory in ["job", "other"] {
        let left = fs::read_dir(place.path(directory)).into_iter().flatten().flatten();
        let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
        let partial = |name: &std::ffi::OsString| {
            [".tmp", "gen-"].iter().any(|start| name.to_string_lossy().starts_with(start))
        };
        assert!(!left.iter().any(partial), "{directory}: {left:?}");
    }
}

/// A real quota: what is beyond it fails (EDQUOT), is told, and the job goes on. Quotas are for root to set.
#[test]
fn quota_leaves_the_job_alone() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let place = Workplace::new(User::Caller);
    place.make_directory("disk");
    place.write("random.py", RANDOM);
    let rckpt = crate::harness::workplace::rckpt_binary();
    let script = format!(
        "PATH=$PATH:/usr/sbin:/sbin; truncate -s 300M image && mkfs.btrfs -q image >&2 && mount -o loop image disk && \
         btrfs quota enable disk >&2 && btrfs subvolume create disk/own >&2 && \
         btrfs qgroup limit 12M disk/own && chown 12345:12345 disk/own . && cd disk/own && \
         exec setpriv --reuid=12345 --regid=12345 --clear-groups --inh-caps=-all sh -c '\
         head -c 10M /dev/zero > fill; \
         {} run --dir job --every 1 --keep 1 -- sh -c \"python3 ../../random.py & wait\" & \
         until grep -q \"no checkpoint\" ../../stderr; do sleep 0.05; done; \
         rm fill; until [ -e job/latest ]; do sync; sleep 0.05; done; ls job > ../../listed; wait'",
        rckpt.display()
    );
    let child = place.start(place.command("unshare").args(["--mount", "sh", "-c", &script]));
    let status = process::exit_status(child, Duration::from_secs(60));
    let words = place.text("stderr");
    assert_eq!(status, Some(0), "{words}");
    assert_eq!(place.text("stdout"), (0..8).map(|i| format!("{i}\n")).collect::<String>());
    assert!(words.contains("quota exceeded") && words.contains("make room"), "{words}");
    assert!(words.contains("the job runs on"), "{words}");
    assert!(!place.text("listed").contains(".tmp"), "{}", place.text("listed"));
}
