//! Inside unprivileged containers: a job is run in one, saved, lost with it, and brought back in a fresh
//! one of the same image, or outside; and where a container forbids what is needed, that is said.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::workplace::{User, Workplace, rckpt_binary};

/// What the job does: a line before and one after, as its user says so.
const JOB: &str = "echo one; ./rckpt dump > said; echo two >> said; touch ready; \
                   while [ ! -e go ]; do sleep 0.01; done; echo two";

/// Runs the job in one container, saves it there, loses the container, and brings the job back by
/// `again`, the last words of which are added.
fn comes_back(place: &Workplace, first: &mut Command, again: &mut [Command]) {
    let child = place.start(first.args(["run", "--dir", "job", "--", "sh", "-c", JOB]));
    let ready = poll(PATIENCE, || (place.has("ready") || process::has_ended(child)).then_some(()));
    assert!(ready.is_some() && place.has("ready"), "{}", place.text("stderr"));
    assert!(place.text("said").contains("gen-000001"), "{}", place.text("stderr"));
    process::kill_descendants();
    place.write("go", "");
    for again in again {
        let child = place.start(again.args(["restore", "job"]));
        let words = place.text("stderr");
        assert_eq!(process::exit_status(child, PATIENCE), Some(0), "{words}");
        assert_eq!(place.text("said"), "restored\ntwo\n", "{words}");
        assert_eq!(place.text("stdout"), "one\ntwo\n", "{words}");
    }
}

fn workplace() -> Workplace {
    let place = Workplace::new(User::Plain);
    fs::copy(rckpt_binary(), place.path("rckpt")).expect("copy the binary");
    place
}

/// A container by bubblewrap, as Flatpak uses it: this machine's files, and nobody else's processes.
fn bubblewrap(place: &Workplace, more: &[&str]) -> Command {
    let own = place.path("").display().to_string();
    let mut command = place.command("bwrap");
    command
        .args(["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-pid"])
        .args(["--bind", &own, &own, "--chdir", &own, "--die-with-parent"])
        .args(more)
        .arg("./rckpt");
    command
}

#[test]
fn in_bubblewrap() {
    let place = workplace();
    let mut outside = place.command("./rckpt");
    outside.current_dir(place.path(""));
    let mut again = [bubblewrap(&place, &[]), bubblewrap(&place, &[]), outside];
    comes_back(&place, &mut bubblewrap(&place, &[]), &mut again);
}

/// A container by Charliecloud, as on clusters: an image's directory, and the user's own mounted in it.
#[test]
fn in_charliecloud() {
    let place = workplace();
    place.make_directory("image");
    for name in ["usr", "etc", "dev", "proc", "sys", "tmp", "home", "mnt", "root", "run", "work"] {
        place.make_directory(&format!("image/{name}"));
    }
    for name in ["bin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), place.path("image").join(name)).expect("make a link");
    }
    for name in ["passwd", "group"] {
        fs::copy(format!("/etc/{name}"), place.path("image/etc").join(name)).expect("copy a file");
    }
    for name in ["hosts", "resolv.conf"] {
        fs::write(place.path("image/etc").join(name), "").expect("write a file");
    }
    let container = || {
        let bind = format!("{}:/work", place.path("").display());
        let mut command = place.command("ch-run");
        command.env("USER", "somebody").args(["--bind", "/usr:/usr", "--bind", &bind]);
        command.args(["--cd", "/work", "image", "--", "./rckpt"]);
        command
    };
    comes_back(&place, &mut container(), &mut [container(), container()]);
}

/// A container without namespaces of its own, as many runtimes make them: that is said before hours of
/// work depend on it, with what would have to be allowed.
#[test]
fn where_namespaces_are_forbidden() {
    let place = workplace();
    let closed = ["--unshare-user", "--disable-userns"];
    let run = |words: &[&str]| {
        let mut command = bubblewrap(&place, &closed);
        let child = place.start(command.args(words).stdout(place.stream("words")));
        process::exit_status(child, PATIENCE)
    };
    assert_eq!(run(&["check"]), Some(1), "{}", place.text("stderr"));
    let words = place.text("words");
    assert!(words.contains("user namespace: refused") && words.contains("seccomp"), "{words}");
    assert_eq!(run(&["run", "--dir", "job", "--", "./rckpt", "dump"]), Some(125), "refused");
    assert_eq!(run(&["run", "--dir", "job", "--", "sh", "-c", "./rckpt dump"]), Some(0));
    let words = place.text("stderr");
    assert!(words.contains("cannot be brought back here: user namespace"), "{words}");
    assert_eq!(run(&["restore", "job"]), Some(125), "{}", place.text("stderr"));
    assert!(place.text("stderr").contains("rckpt check"), "{}", place.text("stderr"));
    // Outside of it there is no such limit.
    let child = place.start(place.command("./rckpt").args(["restore", "job"]));
    assert_eq!(process::exit_status(child, PATIENCE), Some(0), "{}", place.text("stderr"));
}
