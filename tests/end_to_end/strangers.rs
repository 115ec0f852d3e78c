//! Another user on the machine, in directories that both may write to: what they plant, swap or listen
//! under is not followed, not restored and not believed. Needs root, who plays both.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use nix::unistd::{Pid, geteuid};

use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::rounds::{Case, Running, Start};
use crate::harness::workplace::{Answer, User, Workplace};

/// The other user's number, which no account needs to have.
const STRANGER: u32 = 12346;

/// A place with a directory `shared` that everybody may write to; `None` unless root runs the tests.
fn shared() -> Option<Workplace> {
    if !geteuid().is_root() {
        return None;
    }
    let place = Workplace::new(User::Plain);
    let path = place.make_directory("shared");
    chown(&path, Some(0), Some(0)).expect("make it nobody's");
    set_mode(&path, 0o777);
    Some(place)
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("change a mode");
}

/// Has the stranger run a line of shell in the place.
fn stranger(place: &Workplace, line: &str) -> Pid {
    let mut command = std::process::Command::new("setpriv");
    command
        .args([format!("--reuid={STRANGER}"), format!("--regid={STRANGER}")])
        .args(["--clear-groups", "--inh-caps=-all", "--", "sh", "-c", line])
        .current_dir(place.path(""))
        .stdout(place.callers_file("strangers.out"))
        .stderr(place.callers_file("strangers.err"));
    place.start(&mut command)
}

/// The same to its end, which must be good.
fn let_stranger(place: &Workplace, line: &str) {
    let status = process::exit_status(stranger(place, line), PATIENCE);
    assert_eq!(status, Some(0), "{line}: {}", place.text("strangers.err"));
}

fn check_refused(answer: &Answer, status: i32, word: &str) {
    assert!(answer.status == Some(status) && answer.words.contains(word), "{word}: {answer:?}");
}

/// A job of the victim's, saved in `shared/job` and gone.
fn saved(place: &Workplace) {
    let job = Running::start(place, &Case::new("memory_private"), Start::Alone);
    let root = job.root().to_string();
    place.tell(&["dump", &root, "--dir", "shared/job", "--kill"]);
    job.lose();
}

#[test]
fn directories_of_strangers() {
    let Some(place) = shared() else { return };
    let job = Running::start(&place, &Case::new("memory_private"), Start::Alone);
    let root = job.root().to_string();
    for (number, mode) in ["777", "755"].iter().enumerate() {
        let name = format!("shared/theirs{number}");
        let_stranger(&place, &format!("mkdir {name} && chmod {mode} {name}"));
        check_refused(&place.ask(&["dump", &root, "--dir", &name]), 1, &STRANGER.to_string());
        check_refused(
            &place.ask(&["run", "--dir", &name, "--", "true"]),
            125,
            &STRANGER.to_string(),
        );
        let left = fs::read_dir(place.path(&name)).expect("list it").count();
        assert_eq!(left, 0, "something was written to {name}");
    }
    job.ping();
    job.judge();
}

/// A link to a directory of the victim's own, planted under the name that a job is about to use.
#[test]
fn planted_links() {
    let Some(place) = shared() else { return };
    let precious = place.make_directory("precious");
    set_mode(&precious, 0o700);
    let job = Running::start(&place, &Case::new("memory_private"), Start::Alone);
    let root = job.root().to_string();
    let_stranger(&place, "ln -s ../precious shared/job");
    let answer = place.ask(&["dump", &root, "--dir", "shared/job"]);
    check_refused(&answer, 1, "shared/job");
    assert_eq!(fs::read_dir(&precious).expect("list it").count(), 0, "{answer:?}");
    job.ping();
    job.judge();
}

/// The stranger may rename what is in the shared directory, and puts a copy in its place.
#[test]
fn swapped_directories() {
    let Some(place) = shared() else { return };
    saved(&place);
    let_stranger(&place, "mv shared/job shared/away && mkdir -m 755 shared/job");
    // The stranger cannot read the checkpoint. Suppose that they could.
    let copied = std::process::Command::new("cp")
        .args(["-r", "shared/away/.", "shared/job/"])
        .current_dir(place.path(""))
        .status();
    assert!(copied.expect("run cp").success());
    let owned = std::process::Command::new("chown")
        .args(["-Rh", &format!("{STRANGER}:{STRANGER}"), "shared/job"])
        .current_dir(place.path(""))
        .status();
    assert!(owned.expect("run chown").success());
    for words in [&["restore", "shared/job"][..], &["restore", "shared/job/gen-000001"]] {
        check_refused(&place.ask(words), 125, &STRANGER.to_string());
    }
    assert!(process::descendants(Pid::this()).is_empty() && !place.has("verdict"));
}

/// Each file and directory of a checkpoint: another's, writable by others, or a link to what was there.
#[test]
fn parts_that_others_could_have_written() {
    let Some(place) = shared() else { return };
    saved(&place);
    let generation = "shared/job/gen-000001";
    let parts = ["shared/job", generation]
        .map(str::to_owned)
        .into_iter()
        .chain(["image.rckpt", "pages.rckpt"].map(|name| format!("{generation}/{name}")));
    let refused = |part: &str, word: &str| {
        let answer = place.ask(&["restore", generation]);
        let name =
            Path::new(part).file_name().expect("it has a name").to_string_lossy().into_owned();
        check_refused(&answer, 125, word);
        assert!(answer.words.contains(&name), "{part}: {answer:?}");
        assert!(process::descendants(Pid::this()).is_empty() && !place.has("verdict"));
    };
    for part in parts {
        let path = place.path(&part);
        let facts = fs::metadata(&path).expect("look at it");
        chown(&path, Some(STRANGER), Some(STRANGER)).expect("give it away");
        refused(&part, "");
        chown(&path, Some(facts.uid()), Some(facts.gid())).expect("take it back");
        // Others may be allowed to put things beside the checkpoints, but not into them.
        for mode in [0o020, 0o002].into_iter().filter(|_| part != "shared/job") {
            set_mode(&path, facts.mode() & 0o777 | mode);
            refused(&part, "");
        }
        set_mode(&path, facts.mode() & 0o777);
        if facts.is_file() {
            let away = place.path("shared/away");
            fs::rename(&path, &away).expect("move it");
            std::os::unix::fs::symlink(&away, &path).expect("put a link there");
            refused(&part, "");
            fs::rename(&away, &path).expect("put it back");
        }
    }
    place.write("go", "");
    assert_eq!(place.ask(&["restore", generation]).status, Some(0));
    assert_eq!(place.text("verdict"), "PASS\n");
}

/// In a directory of the victim's to which others may write, they plant checkpoints and links, which are
/// neither restored nor followed, and do not keep the next checkpoint from being taken.
#[test]
fn things_planted_beside_checkpoints() {
    let Some(place) = shared() else { return };
    let precious = place.make_directory("precious");
    place.write("kept", "precious");
    let job = Running::start(&place, &Case::new("memory_private"), Start::Alone);
    let root = job.root().to_string();
    place.tell(&["dump", &root, "--dir", "shared/job"]);
    set_mode(&place.path("shared/job"), 0o777);
    let_stranger(
        &place,
        "cd shared/job && mkdir gen-000007 && ln -s ../../precious .tmp-planted \
         && ln -s ../../precious .old-planted && rm latest && ln -s gen-000007 latest \
         && rm -f events.jsonl && ln -s ../../kept events.jsonl",
    );
    let answer = place.ask(&["dump", &root, "--dir", "shared/job", "--kill"]);
    assert_eq!(answer.status, Some(0), "{answer:?}");
    job.lose();
    assert_eq!(place.text("kept"), "precious", "a planted link was written through");
    assert!(precious.is_dir(), "a planted link was followed to be removed");
    let answer = place.ask(&["restore", "shared/job/gen-000007"]);
    assert_eq!(answer.status, Some(125), "{answer:?}");
    place.write("go", "");
    let answer = place.ask(&["restore", "shared/job"]);
    assert_eq!(
        (answer.status, place.text("verdict")),
        (Some(0), String::from("PASS\n")),
        "{answer:?}"
    );
}

/// A FIFO in the place of a program or file of the job must not hold a restore up.
#[test]
fn fifos_in_the_place_of_files() {
    let Some(place) = shared() else { return };
    let sleep = fs::read("/bin/sleep").expect("read a program");
    for name in ["program", "input"] {
        place.write("new", "");
        fs::write(place.path("new"), &sleep).expect("copy a program");
        set_mode(&place.path("new"), 0o755);
        fs::rename(place.path("new"), place.path("shared").join(name)).expect("put it there");
    }
    let line =
        "exec 3< shared/input; head -c 100 <&3 > /dev/null; touch ready; exec shared/program 1000";
    let child = place.start(place.command("sh").args(["-c", line]));
    assert!(poll(PATIENCE, || place.has("ready").then_some(())).is_some(), "it is not ready");
    let named = || process::proc_text(child, "comm").starts_with("program").then_some(());
    assert!(poll(PATIENCE, named).is_some(), "it has not begun");
    place.tell(&["dump", &child.to_string(), "--dir", "job", "--kill"]);
    process::kill_descendants();
    for name in ["program", "input"] {
        let_stranger(&place, &format!("mv shared/{name} shared/kept && mkfifo shared/{name}"));
        let restore = place.start(place.rckpt(&["restore", "job"]));
        let status = process::exit_status(restore, Duration::from_secs(20));
        assert_eq!(status, Some(125), "{name}: {}", place.text("stderr"));
        assert!(
            place
                .text("stderr")
                .contains(&format!("shared/{name}: it was a regular file and is a FIFO")),
            "{name}: {}",
            place.text("stderr")
        );
        let_stranger(&place, &format!("rm shared/{name} && mv shared/kept shared/{name}"));
    }
}

/// Connects to every supervisor that it finds, asks each how its job is, and prints what is answered.
const ASK: &str = "
import socket, struct
for line in open('/proc/net/unix').read().split('\\n'):
    name = line.split(' ')[-1]
    if not name.startswith('@rckpt-12345-'): continue
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.settimeout(10)
    client.connect('\\0' + name[1:])
    try:
        client.send(b'rckpt\\0\\1\\0\\0')
        print('answer', client.recv(65536))
    except (BrokenPipeError, ConnectionResetError):
        print('answer', b'')
";

#[test]
fn control_sockets_answer_their_user_alone() {
    let Some(place) = shared() else { return };
    let job = Running::start(&place, &Case::new("memory_private"), Start::Supervised);
    place.write("ask.py", ASK);
    let_stranger(&place, "/usr/bin/python3 ask.py");
    let said = place.text("strangers.out");
    assert!(said.contains("answer b''"), "nobody was asked: {said}");
    assert!(said.lines().all(|line| line == "answer b''"), "{said}");
    let rckpt = crate::harness::workplace::rckpt_binary();
    let line = format!("cd / && {} dump {}", rckpt.display(), job.root());
    let status = process::exit_status(stranger(&place, &line), PATIENCE);
    let words = place.text("strangers.err");
    assert!(status == Some(1) && words.contains(&job.root().to_string()), "{status:?}: {words}");
    assert!(!place.has("job/latest"));
    job.ping();
    job.judge();
}

/// Listens under a supervisor's name of somebody else's, and never says a word.
const SQUAT: &str = "
import socket, time
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind('\\0rckpt-12345-' + 32 * 'a' + '-' + 32 * 'b')
listener.listen(5)
open('shared/listening', 'w').close()
time.sleep(100)
";

#[test]
fn names_that_strangers_listen_under() {
    let Some(place) = shared() else { return };
    let job = Running::start(&place, &Case::new("memory_private"), Start::Supervised);
    place.write("squat.py", SQUAT);
    stranger(&place, "/usr/bin/python3 squat.py");
    let listening = poll(PATIENCE, || place.has("shared/listening").then_some(()));
    assert!(listening.is_some(), "{}", place.text("strangers.err"));
    let listed = place.tell(&["list"]);
    assert!(listed.contains("job") && !listed.contains("aaaa"), "{listed}");
    job.dump(&[]);
    job.judge();
}
