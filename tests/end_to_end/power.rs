//! The power fails in the middle of a command that changes a job's directory. Whatever the disk may hold
//! then, what is called a checkpoint is whole, and the newest is the last one or the new one.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use nix::unistd::Pid;
use rckpt::image::reader::{Depth, Reader, Trust};
use rckpt::job::directory::{FindError, JobDirectory, find};

use crate::harness::moments::Moments;
use crate::harness::power::Disk;
use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::rounds::{Case, Running, Start};
use crate::harness::stepping::{self, Scope};
use crate::harness::storage::Step;
use crate::harness::workplace::{User, Workplace, rckpt_binary};

/// Set to 1, all that the disk may hold is looked at, instead of some.
const EVERY_CALL: &str = "RCKPT_TEST_EVERY_CALL";
/// How many different disks are looked at else.
const SOME: usize = 40;

/// The newest checkpoint before a command and after it.
#[derive(Clone, Copy)]
struct Expected {
    before: Option<u64>,
    after: u64,
}

/// Looks at what the disk may hold at each moment of a command that took these steps below `root`, which was
/// `disk` before. In each, the directories `homes` of the job hold nothing broken.
fn check_all(
    place: &Workplace,
    mut disk: Disk,
    root: &Path,
    steps: &[Step],
    homes: &[&str],
    expected: Expected,
) {
    disk.record(root, steps);
    let every = std::env::var(EVERY_CALL).is_ok_and(|value| value == "1");
    let mut moments = Moments::new();
    let failures = disk.failures(&mut moments, if every { 20 } else { 2 });
    let mut seen = HashSet::new();
    let stride = if every { 1 } else { (failures.len() / SOME).max(1) };
    let first = moments.number_below(stride);
    let last = failures.len() - 1;
    let mut looked_at = 0;
    for (number, failure) in failures.iter().enumerate() {
        // The end is always looked at: there only the new one will do.
        if number % stride != first && failures[last].steps != failure.steps {
            continue;
        }
        let remains = disk.after(failure);
        let at_end = failure.steps == disk.steps;
        if !seen.insert((remains.fingerprint(), at_end)) {
            continue;
        }
        looked_at += 1;
        let scratch = place.path("after");
        remains.put(&scratch);
        let what = format!("{failure:?} of {:?}", steps.get(failure.steps.saturating_sub(1)));
        let newest = check_homes(&scratch, homes, &what);
        let allowed = newest == Some(expected.after) || !at_end && newest == expected.before;
        assert!(allowed, "{what}: the newest is {newest:?}");
        // As a user sees it.
        if newest.is_some() && looked_at % 16 == 1 {
            let home = scratch.join(homes[0]).to_string_lossy().into_owned();
            let dry = ["restore", "--dry-run", "--files", "keep", &home];
            for words in [&["verify", "--deep", &home][..], &dry] {
                let answer = place.ask(words);
                assert_eq!(answer.status, Some(0), "{what}: {answer:?}");
            }
        }
        fs::remove_dir_all(&scratch).expect("remove a scratch directory");
    }
    println!("{} steps, {} failures, {looked_at} disks looked at", disk.steps, failures.len());
}

/// The newest checkpoint of a job, when nothing in its directories is broken: now, and when the next writer
/// has cleaned up.
fn check_homes(scratch: &Path, homes: &[&str], what: &str) -> Option<u64> {
    let mut newest = Vec::new();
    for clean in [false, true] {
        for home in homes.iter().map(|home| scratch.join(home)).filter(|home| home.is_dir()) {
            let directory = JobDirectory::open(&home, Trust::Anybody);
            let directory = directory.unwrap_or_else(|error| panic!("{what}: {error}"));
            if clean {
                directory.remove_leftovers().unwrap_or_else(|error| panic!("{what}: {error}"));
                directory.name_latest().unwrap_or_else(|error| panic!("{what}: {error}"));
            }
            for generation in directory.generations().expect("they can be listed") {
                let reader = Reader::open_trusting(&generation.path, Trust::Anybody);
                reader
                    .and_then(|reader| reader.verify(Depth::Decoded, &|_| ()))
                    .unwrap_or_else(|error| panic!("{what}: {generation:?}: {error}"));
            }
            let latest = home.join("latest");
            assert!(!latest.is_symlink() || latest.is_dir(), "{what}: latest leads nowhere");
        }
        newest.push(match find(&scratch.join(homes[0]), None, Trust::Anybody) {
            Ok(found) => Some(found.generation.number),
            Err(FindError::NoCheckpoint { .. } | FindError::Absent { .. }) => None,
            Err(error) => panic!("{what}: {error}"),
        });
    }
    assert_eq!(newest[0], newest[1], "{what}: cleaning up changes it");
    newest[0]
}

/// A job that has been saved so often.
fn saved(place: &Workplace, times: u32) -> Running<'_> {
    let job = Running::start(place, &Case::new("eventfd"), Start::Alone);
    for _ in 0..times {
        job.ping();
        job.dump(&[]);
    }
    job
}

/// The power fails while rckpt does what these words say, in a place where the job is in `job`.
fn fails_during(place: &Workplace, words: &[&str], expected: Expected) {
    let root = place.path("").canonicalize().expect("it is there");
    let disk = Disk::new(&root);
    let outcome = stepping::run(place, words, Scope::All, None);
    assert!(outcome.succeeded(), "{}", outcome.words);
    check_all(place, disk, &root, &outcome.steps, &["job"], expected);
}

#[test]
fn power_fails_in_the_first_checkpoint() {
    let place = Workplace::new(User::Caller);
    let job = saved(&place, 0);
    let words = ["dump", &job.root().to_string(), "--dir", "job"];
    fails_during(&place, &words, Expected { before: None, after: 1 });
    job.judge();
}

#[test]
fn power_fails_in_a_checkpoint_upon_others() {
    let place = Workplace::new(User::Caller);
    let job = saved(&place, 2);
    let words = ["dump", &job.root().to_string(), "--dir", "job"];
    fails_during(&place, &words, Expected { before: Some(2), after: 3 });
    job.judge();
}

#[test]
fn power_fails_while_old_checkpoints_are_removed() {
    let place = Workplace::new(User::Caller);
    saved(&place, 4).lose();
    // One whose writer was killed before it had moved the link.
    fs::remove_file(place.path("job/latest")).expect("remove the link");
    std::os::unix::fs::symlink("gen-000003", place.path("job/latest")).expect("make a link");
    let words = ["prune", "job", "--keep", "2"];
    fails_during(&place, &words, Expected { before: Some(4), after: 4 });
}

/// From a checkpoint in the local directory to its copy in the job's own, with older ones removed in both.
#[test]
fn power_fails_while_a_checkpoint_is_copied() {
    let place = Workplace::new(User::Caller);
    let words = ["run", "--dir", "job", "--local", "local", "--keep", "1", "--", "sleep", "1000"];
    let supervisor = place.start(place.rckpt(&words));
    let root = poll(PATIENCE, || process::child_named(supervisor, "sleep"));
    let root = root.expect("the job runs").to_string();
    let is_settled = |number: u32| {
        let alone = |home: &str| {
            let names = fs::read_dir(place.path(home)).map_or(0, |names| {
                let names = names.flatten().map(|name| name.file_name());
                names.filter(|name| name.as_encoded_bytes().starts_with(b"gen-")).count()
            });
            place.has(&format!("{home}/gen-{number:06}")) && names == 1
        };
        (alone("job") && alone("local")).then_some(())
    };
    for number in 1..=2 {
        place.tell(&["dump", &root]);
        poll(PATIENCE, || is_settled(number)).expect("it is copied");
    }
    let base = place.path("").canonicalize().expect("it is there");
    let disk = Disk::new(&base);
    let script = "\"$0\" dump \"$1\" && until [ \"$(echo job/gen-* local/gen-*)\" = \
                  'job/gen-000003 local/gen-000003' ]; do sleep 0.05; done; sleep 0.3";
    let client = || -> Pid {
        place.start(place.command("sh").args(["-c", script]).arg(rckpt_binary()).arg(&root))
    };
    let outcome = stepping::run_supervisor(supervisor, client, None);
    let expected = Expected { before: Some(2), after: 3 };
    check_all(&place, disk, &base, &outcome.steps, &["job", "local"], expected);
}
