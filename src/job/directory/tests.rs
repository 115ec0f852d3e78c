//! What holds of a job's directory as a whole.

use std::fs;
use std::num::{NonZeroU64, NonZeroUsize};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::{DirectoryError, FindError, GenerationError, Identity, JobDirectory, Pending, find};
use crate::image::reader::Trust;
use crate::image::{WriteOptions, Writer, sample};
use crate::job::record::RecordError;
use crate::job::retention;
use crate::model::id::Bytes;

fn identity(id: &str) -> Identity {
    let command = vec![Bytes::from(b"/bin/sample".as_slice()), Bytes::from(b"-x".as_slice())];
    Identity { id: Bytes::from(id.as_bytes()), command, created: 1_700_000_000 }
}

fn directory(path: &Path) -> JobDirectory {
    JobDirectory::create(path, &identity("sample")).unwrap()
}

fn fill(pending: &Pending) {
    let writer = Writer::create(pending.path(), WriteOptions::default()).unwrap();
    writer.finish(&sample::job()).unwrap();
}

fn commit(directory: &JobDirectory) -> u64 {
    let pending = directory.begin_generation().unwrap();
    fill(&pending);
    pending.commit(0).unwrap().number
}

fn numbers(directory: &JobDirectory) -> Vec<u64> {
    directory.generations().unwrap().iter().map(|generation| generation.number).collect()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn generations_are_numbered_and_the_latest_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("a/b");
    let directory = directory(&path);
    assert_eq!(mode(&path), 0o700);
    assert_eq!(directory.latest().unwrap(), None);
    assert_eq!((commit(&directory), commit(&directory)), (1, 2));
    assert_eq!(numbers(&directory), [1, 2]);
    assert_eq!(directory.latest().unwrap().unwrap().number, 2);
    assert_eq!(fs::read_link(path.join("latest")).unwrap(), Path::new("gen-000002"));
    assert_eq!(mode(&path.join("gen-000002")), 0o700);
}

#[test]
fn a_generation_given_up_leaves_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = directory(scratch.path());
    let pending = directory.begin_generation().unwrap();
    fill(&pending);
    drop(pending);
    assert_eq!(numbers(&directory), [0_u64; 0]);
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
}

#[test]
fn leftovers_of_the_dead_are_removed_and_only_those() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = directory(scratch.path());
    fs::create_dir(scratch.path().join(".tmp-dead")).unwrap();
    fs::write(scratch.path().join(".tmp-dead/pages.rckpt"), "half").unwrap();
    fs::create_dir(scratch.path().join(".old-dead")).unwrap();
    let alive = directory.begin_generation().unwrap();
    let second = directory.begin_generation().unwrap();
    assert!(alive.path().exists() && second.path().exists());
    assert!(!scratch.path().join(".tmp-dead").exists());
    assert!(!scratch.path().join(".old-dead").exists());
    fill(&alive);
    fill(&second);
    assert_eq!(second.commit(0).unwrap().number, 1);
    assert_eq!(alive.commit(0).unwrap().number, 2);
}

#[test]
fn another_jobs_directory_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let first = directory(scratch.path());
    let claim = first.claim().unwrap();
    let again = || JobDirectory::create(scratch.path(), &identity("other"));
    // Its supervisor lives, though it has no checkpoint yet.
    assert!(matches!(again(), Err(DirectoryError::AnotherJob { .. })));
    drop(claim);
    again().unwrap();
    let first = directory(scratch.path());
    commit(&first);
    let error = again().unwrap_err().to_string();
    assert!(error.ends_with("holds the checkpoints of another job: /bin/sample -x"), "{error}");
    assert_eq!(
        JobDirectory::open(scratch.path(), Trust::Own).unwrap().identity(),
        Some(&identity("sample"))
    );
}

#[test]
fn old_generations_go_and_the_newest_stays() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = directory(scratch.path());
    for _ in 0..5 {
        commit(&directory);
    }
    let keep = |number| {
        retention::by_number(&directory, NonZeroUsize::new(number).unwrap()).unwrap().len()
    };
    assert_eq!((keep(9), keep(3)), (0, 2));
    assert_eq!(numbers(&directory), [3, 4, 5]);
    fs::remove_file(scratch.path().join("latest")).unwrap();
    symlink("gen-000003", scratch.path().join("latest")).unwrap();
    assert_eq!(keep(1), 2);
    assert_eq!(numbers(&directory), [5]);
    assert_eq!(fs::read_link(scratch.path().join("latest")).unwrap(), Path::new("gen-000005"));
    assert_eq!(commit(&directory), 6);
    let fit =
        |bytes| retention::by_bytes(&directory, NonZeroU64::new(bytes).unwrap()).unwrap().len();
    assert_eq!((fit(1 << 30), fit(1)), (0, 1));
    assert_eq!(numbers(&directory), [6]);
}

#[test]
fn names_that_something_else_has_are_left_out() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = directory(scratch.path());
    assert_eq!(commit(&directory), 1);
    symlink("/nowhere", scratch.path().join("gen-000002")).unwrap();
    symlink("gen-000001", scratch.path().join("gen-000003")).unwrap();
    fs::write(scratch.path().join("gen-000005"), "").unwrap();
    assert_eq!((commit(&directory), commit(&directory)), (4, 6));
    assert_eq!(numbers(&directory), [1, 4, 6]);
    assert_eq!(fs::read_link(scratch.path().join("gen-000002")).unwrap(), Path::new("/nowhere"));
}

#[test]
fn writers_at_once_get_numbers_of_their_own() {
    let scratch = tempfile::tempdir().unwrap();
    directory(scratch.path());
    let write = || -> Vec<u64> {
        let directory = JobDirectory::open(scratch.path(), Trust::Own).unwrap();
        (0..15).map(|_| commit(&directory)).collect()
    };
    let mut given: Vec<u64> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4).map(|_| scope.spawn(write)).collect();
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    });
    given.sort_unstable();
    assert_eq!(given, (1..=60).collect::<Vec<_>>());
    let directory = JobDirectory::open(scratch.path(), Trust::Own).unwrap();
    assert_eq!(numbers(&directory), given);
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 62);
}

#[test]
fn checkpoints_are_found_by_every_name() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = directory(scratch.path());
    commit(&directory);
    commit(&directory);
    let check = |name: &str, at: Option<&str>, expected: u64| {
        let found = find(&scratch.path().join(name), at, Trust::Own).unwrap();
        assert_eq!(found.generation.number, expected, "{name} {at:?}");
        found.read(Trust::Own).unwrap();
    };
    check("", None, 2);
    check("", Some("latest"), 2);
    check("", Some("1"), 1);
    check("", Some("gen-000001"), 1);
    check("latest", None, 2);
    check("gen-000001", None, 1);
    fs::rename(scratch.path().join("gen-000001"), scratch.path().join("moved")).unwrap();
    check("moved", None, 0);
    // Without the link, or where its writer was killed before it had moved it, the newest counts.
    fs::remove_file(scratch.path().join("latest")).unwrap();
    check("", None, 2);
    symlink("gen-000002", scratch.path().join("latest")).unwrap();
    commit(&directory);
    fs::remove_file(scratch.path().join("latest")).unwrap();
    symlink("gen-000002", scratch.path().join("latest")).unwrap();
    check("", None, 3);
    check("", Some("latest"), 3);
    check("latest", None, 3);
    directory.name_latest().unwrap();
    let named = fs::read_link(scratch.path().join("latest")).unwrap();
    assert_eq!(named, Path::new("gen-000003"));
}

#[test]
fn what_cannot_be_found_is_told() {
    let scratch = tempfile::tempdir().unwrap();
    let check = |at: Option<&str>, expected: &str| {
        let error = find(scratch.path(), at, Trust::Own).unwrap_err().to_string();
        assert_eq!(error.replace(scratch.path().to_str().unwrap(), "DIR"), expected);
    };
    check(None, "there is no checkpoint in DIR");
    let directory = directory(scratch.path());
    let pending = directory.begin_generation().unwrap();
    check(Some("3"), "there is no checkpoint in DIR (one was begun and not finished)");
    drop(pending);
    commit(&directory);
    check(Some("3"), "there is no checkpoint \"3\" in DIR; there are: gen-000001");
    check(Some("../x"), "there is no checkpoint \"../x\" in DIR; there are: gen-000001");
    let gone = find(&scratch.path().join("gone"), None, Trust::Own);
    assert!(matches!(gone, Err(FindError::Absent { .. })));
    let generation = scratch.path().join("gen-000001");
    let chosen = find(&generation, Some("1"), Trust::Own);
    assert!(matches!(chosen, Err(FindError::AtGeneration { .. })));
}

#[test]
fn a_generation_of_another_job_is_refused() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    commit(&directory(one.path()));
    let other = JobDirectory::create(two.path(), &identity("other")).unwrap();
    fs::rename(one.path().join("gen-000001"), two.path().join("gen-000001")).unwrap();
    let generation = other.latest().unwrap().unwrap();
    let error = other.read(&generation, Trust::Own).unwrap_err();
    assert!(matches!(error, GenerationError::AnotherJob { .. }));
}

#[test]
fn what_others_could_have_written_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = directory(scratch.path());
    commit(&directory);
    let image = scratch.path().join("gen-000001/image.rckpt");
    fs::set_permissions(&image, fs::Permissions::from_mode(0o620)).unwrap();
    let found = find(scratch.path(), None, Trust::Own).unwrap();
    assert!(found.read(Trust::Own).unwrap_err().to_string().contains("mode 0620"));
    found.read(Trust::Anybody).unwrap();
    let job = scratch.path().join("job.json");
    fs::set_permissions(&job, fs::Permissions::from_mode(0o602)).unwrap();
    assert!(matches!(
        JobDirectory::open(scratch.path(), Trust::Own),
        Err(DirectoryError::Record(RecordError::Trust { .. }))
    ));
}
