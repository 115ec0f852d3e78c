//! What is called a checkpoint is whole, and the newest is found, whoever is killed at whatever call, and
//! wherever the power fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::unistd::Pid;
use rckpt::image::reader::{Depth, Reader, Trust};
use rckpt::job::directory::find;

use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::rounds::{Case, Running, Start};
use crate::harness::stepping::{self, Deed, Point, Scope, Victim};
use crate::harness::storage::Step;
use crate::harness::workplace::{User, Workplace};

/// Set to 1, this has commands killed at every call that they make, instead of at some.
const EVERY_CALL: &str = "RCKPT_TEST_EVERY_CALL";

fn points(whole: usize, some: usize) -> impl Iterator<Item = Point> {
    let stride = match std::env::var(EVERY_CALL) {
        Ok(value) if value == "1" => 1,
        _ => (whole / some).max(1),
    };
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is later");
    let first = 1 + usize::try_from(clock.subsec_micros()).expect("it fits") % stride;
    println!("killed at one of {stride} of {whole} calls, from {first} on");
    let calls = (first..=whole).step_by(stride);
    calls.map(|call| Point { call, deed: Deed::Kill(Victim::All) })
}

fn entries(directory: &Path, prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
    names.sort();
    names
}

/// Whatever is called a checkpoint in a directory is whole, and its user gets the newest: its name.
fn check_kept(directory: &Path) -> String {
    let generations = entries(directory, "gen-");
    for name in &generations {
        let reader = Reader::open_trusting(&directory.join(name), Trust::Anybody);
        let reader = reader.unwrap_or_else(|error| panic!("{name}: {error}"));
        reader.verify(Depth::Decoded, &|_| ()).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let newest = generations.last().expect("there is one");
    for path in [directory.to_owned(), directory.join("latest")] {
        let found = find(&path, None, Trust::Anybody).expect("there is one");
        // Of two directories the other may have a newer one.
        let name = found.generation.path.file_name().expect("it has a name").to_string_lossy();
        assert!(*name >= **newest, "{found:?}");
    }
    newest.clone()
}

/// Puts a copy of `from`, hard links and all, in the place of `to`.
fn copy(place: &Workplace, from: &str, to: &str) {
    let words = format!("rm -rf {to} && cp -a {from} {to}");
    let pid = place.start(place.command("sh").args(["-c", &words]));
    assert_eq!(process::exit_status(pid, PATIENCE), Some(0), "{}", place.text("stderr"));
}

#[test]
fn prunes_killed_at_calls() {
    let place = Workplace::new(User::Plain);
    let job = Running::start(&place, &Case::new("threads_waiting"), Start::Alone);
    for _ in 0..4 {
        job.ping();
        job.dump(&[]);
    }
    job.lose();
    copy(&place, "job", "whole");
    let words = ["prune", "job", "--keep", "2"];
    let undisturbed = stepping::run(&place, &words, Scope::All, None);
    assert!(undisturbed.succeeded(), "{}", undisturbed.words);
    for point in points(undisturbed.calls.len(), 25) {
        copy(&place, "whole", "job");
        // A checkpoint whose writer was killed before it had moved the link.
        fs::remove_file(place.path("job/latest")).expect("remove the link");
        std::os::unix::fs::symlink("gen-000003", place.path("job/latest")).expect("make a link");
        stepping::run(&place, &words, Scope::All, Some(point));
        assert_eq!(check_kept(&place.path("job")), "gen-000004", "{point:?}");
        place.tell(&words);
        assert_eq!(check_kept(&place.path("job")), "gen-000004", "{point:?}");
        assert_eq!(entries(&place.path("job"), "gen-").len(), 2, "{point:?}");
        for prefix in [".old-", ".tmp-"] {
            assert_eq!(entries(&place.path("job"), prefix), [""; 0], "{point:?}");
        }
        let latest = fs::read_link(place.path("job/latest")).expect("a link");
        assert_eq!(latest, PathBuf::from("gen-000004"), "{point:?}");
    }
}

/// From a checkpoint in the local directory to its copy in the job's own, with older ones removed in both.
#[test]
fn copies_killed_at_calls() {
    let ask = |point: Option<Point>| {
        let place = Workplace::new(User::Plain);
        let words =
            ["run", "--dir", "job", "--local", "local", "--keep", "1", "--", "sleep", "1000"];
        let supervisor = place.start(place.rckpt(&words));
        let root = poll(PATIENCE, || process::child_named(supervisor, "sleep"));
        let root = root.expect("the job runs").to_string();
        let copied = |number: u32| {
            let is = |home: &str| place.has(&format!("{home}/gen-{number:06}"));
            let named = || fs::read_link(place.path("job/latest")).ok();
            let latest = PathBuf::from(format!("gen-{number:06}"));
            (is("job") && is("local") && named() == Some(latest)).then_some(())
        };
        for number in 1..=2 {
            place.tell(&["dump", &root]);
            poll(PATIENCE, || copied(number)).expect("it is copied");
        }
        let script = "\"$0\" dump \"$1\" && until [ \"$(readlink job/latest)\" = gen-000003 ]; do \
                      sleep 0.05; done; sleep 0.3";
        let client = || -> Pid {
            let rckpt = crate::harness::workplace::rckpt_binary();
            place.start(place.command("sh").args(["-c", script]).arg(rckpt).arg(&root))
        };
        let outcome = stepping::run_supervisor(supervisor, client, point);
        for home in ["job", "local"] {
            check_kept(&place.path(home));
        }
        let found = find(&place.path("job"), None, Trust::Anybody).expect("there is one");
        assert!(found.generation.number >= 2, "{point:?}: {found:?}");
        found.read(Trust::Anybody).expect("it can be read");
        outcome.calls.len()
    };
    let whole = ask(None);
    for point in points(whole, 12) {
        ask(Some(point));
    }
}

/// The order in which a checkpoint comes to the disk: whatever is on the disk when the power fails, what has
/// the name of a checkpoint is whole.
#[test]
fn everything_is_on_the_disk_before_it_has_its_name() {
    let place = Workplace::new(User::Plain);
    let job = Running::start(&place, &Case::new("threads_waiting"), Start::Alone);
    job.dump(&[]);
    let home = place.path("job").canonicalize().expect("it is there");
    // The second one builds on the first.
    let root = job.root().to_string();
    let outcome = stepping::run(&place, &["dump", &root, "--dir", "job"], Scope::All, None);
    assert!(outcome.succeeded(), "{}", outcome.words);
    let steps = outcome.steps;
    let find = |wanted: &dyn Fn(&Step) -> bool| steps.iter().position(wanted).expect("it is done");
    let last = |wanted: &dyn Fn(&Step) -> bool| steps.iter().rposition(wanted);
    let is_named =
        |step: &Step| matches!(step, Step::Rename(_, to) if *to == home.join("gen-000002"));
    let named = find(&is_named);
    let Step::Rename(temporary, _) = &steps[named] else { unreachable!("it is a rename") };

    // Every file that was written is on the disk after that, and before the directory has its name.
    let written: Vec<&Path> = steps
        .iter()
        .filter_map(Step::changed)
        .filter(|path| path.starts_with(temporary) && path != temporary)
        .collect();
    assert!(written.iter().any(|path| path.ends_with("image.rckpt")), "{steps:?}");
    assert!(written.iter().any(|path| path.ends_with("pages.rckpt")), "{steps:?}");
    for path in written {
        let write = last(&|step| step.changed() == Some(path)).expect("it is written");
        let sync = last(&|step| step.synced() == Some(path)).expect("it is synced");
        assert!(write < sync && sync < named, "{}: {write}, {sync}, {named}", path.display());
    }
    let sync = last(&|step| step.synced() == Some(temporary)).expect("it is synced");
    assert!(sync < named, "{sync}, {named}");
    // Its name is on the disk before the link leads there, and the link at the end.
    let is_latest = |step: &Step| matches!(step, Step::Rename(_, to) if *to == home.join("latest"));
    let latest = find(&is_latest);
    let is_home = |step: &Step| step.synced() == Some(home.as_path());
    assert!(steps[named..latest].iter().any(is_home), "{steps:?}");
    assert!(steps[latest..].iter().any(is_home), "{steps:?}");
    // Nothing that a restore reads is touched any more.
    let of_image = |path: &Path| {
        path.starts_with(home.join("gen-000002"))
            && path.extension().is_some_and(|extension| extension == "rckpt")
    };
    assert!(!steps[named..].iter().filter_map(Step::changed).any(of_image), "{steps:?}");
    job.judge();
}
