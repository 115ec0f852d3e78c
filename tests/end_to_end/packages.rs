//! What `packaging/build` makes of the built program, put where a machine would have it: Debian's package
//! installed under a root of its own, the archive unpacked and found through its module file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::harness::process;
use crate::harness::workplace::{User, Workplace, rckpt_binary};

/// Runs a command to its end, which must be a good one: what it said on both streams.
fn said(place: &Workplace, command: &mut Command) -> String {
    command.stdout(place.stream("said")).stderr(place.stream("said"));
    let status = process::exit_status(place.start(&mut *command), Duration::from_secs(120));
    let said = place.text("said");
    fs::remove_file(place.path("said")).expect("remove it");
    assert_eq!(status, Some(0), "{command:?}: {said}");
    said
}

/// The two packages of the built program.
fn packages(place: &Workplace) -> [PathBuf; 2] {
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/build");
    let mut build = Command::new(build);
    let made = said(place, build.arg(rckpt_binary()).arg(place.path("packages")));
    let made: Vec<PathBuf> = made.lines().map(PathBuf::from).collect();
    made.try_into().unwrap_or_else(|made| panic!("not two: {made:?}"))
}

/// The program of a package saves a job and brings it back.
fn works(place: &Workplace, program: &Path, name: &str) {
    let script = format!(
        "'{program}' run -q --dir {name} -- sh -c \
         'echo one; \"$0\" dump -q > /dev/null; echo two; exit 3' '{program}' > {name}.out; \
         '{program}' restore -q {name} >> {name}.out || [ $? = 3 ] && cat {name}.out",
        program = program.display()
    );
    assert_eq!(said(place, place.command("sh").args(["-c", &script])), "one\ntwo\n");
}

/// What dpkg installs under another root, and removes again, as root of a user namespace.
fn installed_by_dpkg(place: &Workplace, package: &Path) {
    let root = place.make_directory("root");
    let dpkg = |words: &[&str]| {
        let mut command = place.command("unshare");
        command.args(["--user", "--map-root-user", "dpkg"]);
        command.arg(format!("--root={}", root.display())).args(words);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        said(place, &mut command)
    };
    let prepare =
        "mkdir -p root/var/lib/dpkg/info root/var/lib/dpkg/updates && : > root/var/lib/dpkg/status";
    said(place, place.command("sh").args(["-c", prepare]));
    dpkg(&["--install", &package.display().to_string()]);
    assert!(dpkg(&["--status", "rckpt"]).contains("Status: install ok installed"));
    assert_eq!(dpkg(&["--verify", "rckpt"]), "");

    works(place, &root.join("usr/bin/rckpt"), "installed");
    for (page, words) in [("rckpt", "EXIT STATUS"), ("rckpt-run", "rckpt run [OPTIONS] -- <CMD>")] {
        let page = root.join(format!("usr/share/man/man1/{page}.1.gz"));
        let mut man = place.command("man");
        man.args(["--warnings", "--local-file"]).arg(&page).env("MANPAGER", "cat");
        let text = said(place, &mut man);
        assert!(text.contains(words), "no {words} in {text}");
        assert!(!text.contains("warning"), "{text}");
    }
    let complete = "source \"$0\"; COMP_WORDS=(rckpt du) COMP_CWORD=1; _rckpt rckpt du rckpt; \
                    complete -p rckpt; echo \"${COMPREPLY[@]}\"";
    let completions = root.join("usr/share/bash-completion/completions/rckpt");
    let mut bash = place.command("bash");
    let found = said(place, bash.args(["--norc", "-c", complete]).arg(completions));
    assert!(found.ends_with("-F _rckpt rckpt\ndump\n"), "{found}");

    dpkg(&["--purge", "rckpt"]);
    assert!(!root.join("usr").exists(), "something was left behind");
}

/// The archive is unpacked anywhere, and Environment Modules finds the program in it.
fn found_by_its_module(place: &Workplace, archive: &Path) {
    let apps = place.make_directory("apps");
    said(place, place.command("tar").arg("-C").arg(&apps).arg("-xf").arg(archive));
    let modules = "export MODULEPATH=$(echo apps/*/modulefiles); MODULEPATH=$PWD/$MODULEPATH; \
                   . /usr/share/modules/init/sh; unset MANPATH XDG_DATA_DIRS; \
                   module load rckpt && command -v rckpt && man -w rckpt-run && manpath && \
                   module help rckpt && module unload rckpt && ! command -v rckpt";
    let found = said(place, place.command("sh").args(["-c", modules]));
    let unpacked = fs::read_dir(&apps).expect("list it").next().expect("there is one");
    let prefix = unpacked.expect("list it").path();
    let program = prefix.join("bin/rckpt");
    let page = prefix.join("share/man/man1/rckpt-run.1");
    for expected in [&program, &page] {
        let expected = expected.display().to_string();
        assert!(found.lines().any(|line| line == expected), "no {expected} in {found}");
    }
    // What the system itself has is still found.
    for expected in [":/usr/share/man", "Begin with: rckpt demo"] {
        assert!(found.contains(expected), "no {expected} in {found}");
    }
    works(place, &program, "unpacked");
    assert!(prefix.join("share/doc/rckpt/docs/TUTORIAL.md").exists());
}

#[test]
fn packages_work_where_they_are_installed() {
    let place = Workplace::new(User::Plain);
    let [package, archive] = packages(&place);
    installed_by_dpkg(&place, &package);
    found_by_its_module(&place, &archive);
}
