//! What a job asks of rckpt itself: a checkpoint at a moment of its own choice, none for a while; and the
//! user's programs around checkpoints and restores.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use nix::unistd::Pid;

use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::workplace::{User, Workplace, rckpt_binary};

/// Starts `rckpt run --dir job` with these words; the job can call `rckpt` by its name.
fn start(place: &Workplace, words: &[&str]) -> Pid {
    let mut command = place.rckpt(&["run", "--dir", "job"]);
    place.start(with_path(place, command.args(words)))
}

fn with_path<'a>(place: &Workplace, command: &'a mut Command) -> &'a mut Command {
    let link = place.path("rckpt");
    if !place.has("rckpt") {
        std::os::unix::fs::symlink(rckpt_binary(), link).expect("make a link");
    }
    command.env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", place.path("").display()))
}

fn await_file(place: &Workplace, name: &str) {
    let came = poll(PATIENCE, || place.has(name).then_some(()));
    assert!(came.is_some(), "no {name}: {}", place.text("stderr"));
}

fn check_end(place: &Workplace, child: Pid, status: i32) {
    assert_eq!(process::exit_status(child, PATIENCE), Some(status), "{}", place.text("stderr"));
}

/// The job asks for a checkpoint, goes on, is lost and brought back: there the same call returns, and
/// says so. Each time the job writes what it was told, a line for each return.
fn told_when_restored(place: &Workplace, command: &[&str], taken: &str) {
    let mut words = vec!["--"];
    words.extend(command);
    start(place, &words);
    await_file(place, "returned");
    assert_eq!(place.text("stdout"), format!("{taken}\n"), "{}", place.text("stderr"));
    process::kill_descendants();
    place.write("go", "");
    for _ in 0..2 {
        let mut restore = place.rckpt(&["restore", "job"]);
        let child = place.start(with_path(place, &mut restore));
        check_end(place, child, 0);
        assert_eq!(place.text("stdout"), "restored\n", "{}", place.text("stderr"));
    }
}

/// What follows the call in each language: tell, and wait to be let go.
const SHELL_REST: &str = "touch returned; while [ ! -e go ]; do sleep 0.01; done";

#[test]
fn shell_is_told() {
    let place = Workplace::new(User::Plain);
    let script = format!("said=$(rckpt dump) || exit 3; echo ${{said##*/}}; {SHELL_REST}");
    told_when_restored(&place, &["sh", "-c", &script], "gen-000001");
}

#[test]
fn python_is_told() {
    let place = Workplace::new(User::Plain);
    place.write(
        "ask.py",
        "import json, os, subprocess, time\n\
         call = subprocess.run(['rckpt', 'dump', '--json'], capture_output=True, check=True)\n\
         said = json.loads(call.stdout)\n\
         print('restored' if said['restored'] else 'taken', flush=True)\n\
         open('returned', 'w').close()\n\
         while not os.path.exists('go'): time.sleep(0.01)\n",
    );
    told_when_restored(&place, &["python3", "ask.py"], "taken");
}

#[test]
fn c_is_told() {
    let place = Workplace::new(User::Plain);
    place.write(
        "ask.c",
        "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n\
         int main(void) {\n\
             char said[4096] = \"\";\n\
             if (system(\"rckpt dump > said\") != 0) return 3;\n\
             FILE *file = fopen(\"said\", \"r\");\n\
             if (!file || !fgets(said, sizeof said, file)) return 4;\n\
             fclose(file);\n\
             puts(strcmp(said, \"restored\\n\") == 0 ? \"restored\" : \"taken\");\n\
             fflush(stdout);\n\
             fclose(fopen(\"returned\", \"w\"));\n\
             while (access(\"go\", F_OK) != 0) usleep(10000);\n\
             return 0;\n\
         }\n",
    );
    let compiler = place.start(place.command("gcc").args(["-O1", "-o", "ask", "ask.c"]));
    check_end(&place, compiler, 0);
    told_when_restored(&place, &["./ask"], "taken");
}

/// No checkpoint falls into a part that must not be interrupted; the one that was due follows.
#[test]
fn held_and_released() {
    let place = Workplace::new(User::Plain);
    let script = "rckpt hold; rckpt hold; touch held; while [ ! -e go ]; do sleep 0.01; done; \
                  rckpt dump && exit 3; rckpt release; rckpt release; \
                  while [ ! -e end ]; do sleep 0.01; done; rckpt release && exit 4; exit 0";
    let child = start(&place, &["--every", "1", "--", "sh", "-c", script]);
    await_file(&place, "held");
    let latest = || std::fs::read_link(place.path("job/latest")).ok();
    let before = latest();
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(latest(), before, "{}", place.text("stderr"));
    assert!(place.text("stderr").contains("put off"), "{}", place.text("stderr"));
    place.write("go", "");
    assert!(poll(PATIENCE, || (latest() != before).then_some(())).is_some());
    place.write("end", "");
    check_end(&place, child, 0);
}

#[test]
fn a_hold_can_end_by_itself() {
    let place = Workplace::new(User::Plain);
    let script = "rckpt hold --for 2; touch held; while [ ! -e end ]; do sleep 0.01; done";
    let child = start(&place, &["--every", "1", "--", "sh", "-c", script]);
    await_file(&place, "held");
    await_file(&place, "job/latest");
    place.write("end", "");
    check_end(&place, child, 0);
}

/// Hooks get the facts, and a checkpoint that one refuses is not taken.
#[test]
fn hooks_are_told_the_facts() {
    let place = Workplace::new(User::Plain);
    let hooks = place.make_directory("hooks");
    for name in ["before-dump", "after-dump", "after-restore"] {
        let script = "#!/bin/sh\n\
            echo $RCKPT_HOOK ${RCKPT_GENERATION##*/} ${RCKPT_FAILURE:+failed} >> \
            ${RCKPT_DIR%/*}/facts\n\
            test ! -e ${RCKPT_DIR%/*}/refuse\n";
        std::fs::write(hooks.join(name), script).expect("write a hook");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(hooks.join(name), mode).expect("make it executable");
    }
    let script = "touch ready; while [ ! -e go ]; do sleep 0.01; done";
    let child = start(&place, &["--hook", "hooks", "--", "sh", "-c", script]);
    await_file(&place, "ready");
    let root = process::children(child)[0].to_string();
    place.tell(&["dump", &root]);
    place.write("refuse", "");
    let answer = place.ask(&["dump", &root]);
    assert_eq!(answer.status, Some(1), "{answer:#?}");
    assert!(answer.words.contains("before-dump failed"), "{answer:#?}");
    std::fs::remove_file(place.path("refuse")).expect("it is there");
    process::kill_descendants();
    place.write("go", "");
    let child = place.start(place.rckpt(&["restore", "job", "--hook", "hooks"]));
    check_end(&place, child, 0);
    assert_eq!(
        place.text("facts"),
        "before-dump\nafter-dump gen-000001\nbefore-dump\nafter-restore gen-000001\n",
        "{}",
        place.text("stderr")
    );
}

/// Puts a program into the directory of hooks.
fn hook(place: &Workplace, name: &str, script: &str) {
    let path = place.make_directory("hooks").join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write a hook");
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, mode).expect("make it executable");
}

/// The names that a hook finds in its environment are those that the guide gives.
#[test]
fn hooks_get_what_the_guide_says() {
    let place = Workplace::new(User::Plain);
    for name in ["before-dump", "after-dump", "after-restore"] {
        let script =
            "echo $RCKPT_HOOK: $(env | grep -o '^RCKPT_[A-Z_]*' | sort) >> ${RCKPT_DIR%/*}/names";
        hook(&place, name, script);
    }
    let script = "touch ready; while [ ! -e go ]; do sleep 0.01; done";
    let child = start(&place, &["--hook", "hooks", "--", "sh", "-c", script]);
    await_file(&place, "ready");
    place.tell(&["dump", &process::children(child)[0].to_string()]);
    process::kill_descendants();
    place.write("go", "");
    let child = place.start(place.rckpt(&["restore", "job", "--hook", "hooks"]));
    check_end(&place, child, 0);

    let guide = include_str!("../../docs/CLUSTERS.md");
    let named = |text: &str| {
        let is_part = |letter: char| letter.is_ascii_uppercase() || letter == '_';
        let mut names: Vec<String> = text
            .match_indices("RCKPT_")
            .map(|(at, _)| text[at..].chars().take_while(|letter| is_part(*letter)).collect())
            .collect();
        names.sort();
        names
    };
    let row = |start: &str| {
        let found = guide.lines().map(str::trim).find(|line| line.starts_with(start));
        found.unwrap_or_else(|| panic!("no row {start:?} in the guide"))
    };
    let all = named(row("| program | when |"));
    let expected: String = ["before-dump", "after-dump", "after-restore"]
        .iter()
        .map(|name| {
            let mut names = all.clone();
            names.extend(named(row(&format!("| `{name}` |"))));
            names.retain(|name| name != "RCKPT_FAILURE");
            names.sort();
            format!("{name}: {}\n", names.join(" "))
        })
        .collect();
    assert_eq!(place.text("names"), expected, "{}", place.text("stderr"));
}

/// A hook that hangs is ended with all that it started, and holds nobody up for longer than it may.
#[test]
fn hooks_that_hang() {
    let place = Workplace::new(User::Plain);
    hook(&place, "before-dump", "touch begun; sleep 1000 & wait");
    let script = "touch ready; while [ ! -e go ]; do sleep 0.01; done";
    let words = ["--hook", "hooks", "--hook-limit", "1", "--", "sh", "-c", script];
    let child = start(&place, &words);
    await_file(&place, "ready");
    let root = process::children(child)[0];
    let begun = std::time::Instant::now();
    let answer = place.ask(&["dump", &root.to_string()]);
    assert_eq!(answer.status, Some(1), "{answer:#?}");
    assert!(answer.words.contains("before-dump was ended: it took too long"), "{answer:#?}");
    assert!((1..10).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    let sleeping = |pid: &Pid| process::proc_text(*pid, "cmdline").contains("1000");
    let left = || (!process::descendants(Pid::this()).iter().any(sleeping)).then_some(());
    assert!(poll(PATIENCE, left).is_some(), "what it started is still there");

    // One that comes too late, or fails, spoils nothing.
    hook(&place, "before-dump", "exit 0");
    hook(&place, "after-dump", "exit 7");
    hook(&place, "after-restore", "sleep 1000");
    place.tell(&["dump", &root.to_string()]);
    assert!(place.text("stderr").contains("after-dump failed"), "{}", place.text("stderr"));
    process::kill_descendants();
    place.write("go", "");
    let words = ["restore", "job", "--hook", "hooks", "--hook-limit", "1"];
    let child = place.start(place.rckpt(&words));
    check_end(&place, child, 0);
    assert!(place.text("stderr").contains("after-restore was ended"), "{}", place.text("stderr"));
}

/// A hold ends with the process that asked for it, however that ends; a shell in between is none.
#[test]
fn a_hold_ends_with_its_holder() {
    let place = Workplace::new(User::Plain);
    place.write(
        "hold.py",
        "import os, time\n\
         os.system('rckpt hold; true')\n\
         open('held', 'w').close()\n\
         time.sleep(2.5)\n\
         os.kill(os.getpid(), 9)\n",
    );
    let script = "python3 hold.py; touch lost; while [ ! -e end ]; do sleep 0.01; done";
    let child = start(&place, &["--every", "1", "--", "sh", "-c", script]);
    await_file(&place, "held");
    let latest = || std::fs::read_link(place.path("job/latest")).ok();
    let before = latest();
    await_file(&place, "lost");
    assert_eq!(latest(), before, "{}", place.text("stderr"));
    assert!(poll(PATIENCE, || (latest() != before).then_some(())).is_some());
    let words = place.text("stderr");
    assert!(
        words.contains("put off") && words.contains("held checkpoints off has ended"),
        "{words}"
    );
    place.write("end", "");
    check_end(&place, child, 0);
    assert!(place.text("job/events.jsonl").contains("holder_ended"));
}

/// A hold from outside the job belongs to nobody, and lasts until it is released.
#[test]
fn a_hold_from_outside_lasts() {
    let place = Workplace::new(User::Plain);
    let script = "touch ready; while [ ! -e end ]; do sleep 0.01; done";
    let child = start(&place, &["--every", "1", "--", "sh", "-c", script]);
    await_file(&place, "ready");
    let root = process::children(child)[0].to_string();
    place.tell(&["hold", &root]);
    let latest = || std::fs::read_link(place.path("job/latest")).ok();
    let before = latest();
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(latest(), before, "{}", place.text("stderr"));
    place.tell(&["release", &root]);
    assert!(poll(PATIENCE, || (latest() != before).then_some(())).is_some());
    assert_eq!(place.ask(&["release", &root]).status, Some(1));
    place.write("end", "");
    check_end(&place, child, 0);
}
