//! Inside unprivileged containers: a job is run in one, saved, lost with it, and brought back in a fresh
//! one of the same image, or outside; and where a container forbids what is needed, that is said.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::workplace::{User, Workplace, joined, rckpt_binary};

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
        let status = process::exit_status(child, PATIENCE);
        let words = place.text("stderr");
        assert_eq!(status, Some(0), "{words}");
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
    let words = joined(&place.text("words"));
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

/// Podman without root, as it comes from the distribution: an image of busybox alone, made on the spot. A
/// plain user without subordinate ids has one id in it, that of its root.
struct Podman<'place> {
    place: &'place Workplace,
    /// A short name for a directory of the place: Podman takes no more than fifty letters.
    short: PathBuf,
}

impl<'place> Podman<'place> {
    fn new(place: &'place Workplace) -> Self {
        for name in ["image/bin", "image/work", "image/tmp", "image/proc", "image/dev", "run"] {
            place.make_directory(name);
        }
        fs::copy("/bin/busybox", place.path("image/bin/busybox")).expect("copy busybox");
        for name in ["sh", "touch", "sleep"] {
            symlink("busybox", place.path("image/bin").join(name)).expect("make a link");
        }
        let short = std::env::temp_dir().join(format!("rckpt-podman.{}", std::process::id()));
        symlink(place.path("run"), &short).expect("make a link");
        let podman = Self { place, short };
        let import = "tar -C image --owner=0 --group=0 -c . | \"$@\" import - rckpt-test";
        let mut shell = place.command("sh");
        shell.args(["-c", import, "sh"]).args(podman.words()).envs(podman.variables());
        let child = place.start(&mut shell);
        assert_eq!(process::exit_status(child, PATIENCE), Some(0), "{}", place.text("stderr"));
        fs::write(place.path("stdout"), "").expect("forget what it said");
        podman
    }

    fn words(&self) -> Vec<String> {
        let own = |name: &str| self.place.path(name).display().to_string();
        let short = self.short.display().to_string();
        let storage = [("--root", own("storage")), ("--runroot", short)];
        let mut words = vec!["podman".to_owned()];
        words.extend(storage.into_iter().flat_map(|(option, path)| [option.to_owned(), path]));
        // What works on every file system, and whatever control groups there are.
        words.extend(
            ["--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--runtime=runc"]
                .map(String::from),
        );
        words
    }

    fn variables(&self) -> [(&'static str, String); 2] {
        let run = self.short.display().to_string();
        [("XDG_RUNTIME_DIR", run), ("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin".to_owned())]
    }

    /// rckpt in a fresh container, to which this is allowed, as after a start of the machine: what Podman
    /// remembers of running processes is gone.
    fn container(&self, allowed: &[&str]) -> Command {
        let mut command = self.place.command("sh");
        let mount = format!("{}:/work", self.place.path("").display());
        command.args(["-c", "rm -rf run/* && exec \"$@\"", "sh"]).args(self.words());
        command.args(["run", "--rm", "--network=host", "--volume", &mount]);
        command
            .args(["--workdir", "/work"])
            .args(allowed)
            .args(["localhost/rckpt-test", "./rckpt"]);
        command.envs(self.variables());
        command
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        process::kill_descendants();
        fs::remove_file(&self.short).expect("remove a link");
    }
}

#[test]
fn in_podman() {
    let place = workplace();
    let podman = Podman::new(&place);
    let allowed = ["--cap-add=CHECKPOINT_RESTORE", "--security-opt=seccomp=unconfined"];
    // Once: the job's output goes through a pipe of Podman's, from which nothing is taken back.
    let mut again = [podman.container(&allowed)];
    comes_back(&place, &mut podman.container(&allowed), &mut again);
}

/// What Podman does not allow by itself is told, with what allows it.
#[test]
fn what_podman_forbids() {
    let place = workplace();
    let podman = Podman::new(&place);
    let run = |allowed: &[&str], words: &[&str]| {
        let mut command = podman.container(allowed);
        let child = place.start(command.args(words).stdout(place.stream("words")));
        process::exit_status(child, PATIENCE)
    };
    assert_eq!(run(&[], &["check"]), Some(1), "{}", place.text("stderr"));
    let words = joined(&place.text("words"));
    assert!(words.contains("kcmp") && words.contains("seccomp=unconfined"), "{words}");
    assert!(words.contains("mount /proc: refused") && words.contains("unmask=ALL"), "{words}");
    fs::write(place.path("words"), "").expect("forget what it said");

    // With that, it is the capabilities of root in the container.
    let open = ["--security-opt=seccomp=unconfined", "--security-opt=unmask=ALL"];
    assert_eq!(run(&open, &["check"]), Some(1), "{}", place.text("stderr"));
    let words = joined(&place.text("words"));
    assert!(words.contains("--cap-add=CHECKPOINT_RESTORE"), "{words}");
    assert_eq!(run(&open, &["run", "--dir", "job", "--", "sh", "-c", "./rckpt dump"]), Some(0));
    let words = place.text("stderr");
    assert!(
        words.contains("cannot be brought back here") && words.contains("--cap-add"),
        "{words}"
    );
    assert_eq!(run(&open, &["restore", "job"]), Some(125), "{}", place.text("stderr"));
    assert!(place.text("stderr").contains("capabilities"), "{}", place.text("stderr"));
    let allowed = ["--cap-add=CHECKPOINT_RESTORE", "--security-opt=seccomp=unconfined"];
    assert_eq!(run(&allowed, &["restore", "job"]), Some(0), "{}", place.text("stderr"));
}
