//! What users are told when something cannot be done: what, of which process or file, why, and what to
//! do; and that nothing was harmed by the attempt.

use std::fs::{self, Permissions};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{Pid, geteuid};
use serde_json::Value;

use crate::harness::fixture::{Linking, fixture};
use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::rounds::{Case, Running, Start};
use crate::harness::workplace::{Answer, User, Workplace, joined};

/// rckpt refused, and its words contain each of these, whatever their case.
fn check_refused(answer: &Answer, status: i32, words: &[&str]) {
    assert_eq!(answer.status, Some(status), "{answer:#?}");
    let said = answer.words.to_lowercase();
    for word in words {
        assert!(said.contains(&word.to_lowercase()), "{word:?} is missing in {:?}", answer.words);
    }
    assert!(said.contains("error[rckpt-e"), "it has no code: {:?}", answer.words);
    assert!(!said.contains("panicked") && !said.contains("backtrace"), "{:?}", answer.words);
}

/// A job that was dumped into `job` and is gone.
fn dumped_and_gone(place: &Workplace, case: &Case) {
    let job = Running::start(place, case, Start::Alone);
    job.dump(&["--kill"]);
    job.lose();
}

/// Trying to restore starts nothing and says these words.
fn check_not_restored(place: &Workplace, words: &[&str]) {
    check_refused(&place.ask(&["restore", "job"]), 125, words);
    assert!(process::descendants(Pid::this()).is_empty(), "something was started");
    assert!(!place.has("verdict"), "the job ran: {}", place.text("verdict"));
}

#[test]
fn no_such_process() {
    let place = Workplace::new(User::Plain);
    check_refused(&place.ask(&["dump", "4194000"]), 1, &["4194000", "there is none"]);
}

/// People find the code in the message, scripts in the report, and both find out what it means.
#[test]
fn codes_are_told_and_explained() {
    let place = Workplace::new(User::Plain);
    let answer = place.ask(&["dump", "4194000", "--json"]);
    check_refused(&answer, 1, &["error[RCKPT-E0201]: process 4194000"]);
    let report: Value = serde_json::from_str(&answer.output).expect("it is JSON");
    assert_eq!(report["error"]["code"], "RCKPT-E0201");
    assert!(place.tell(&["explain", "RCKPT-E0201"]).contains("What to do: rckpt list shows"));
    assert!(place.tell(&["explain"]).contains("RCKPT-E0401"));
    check_refused(&place.ask(&["explain", "E9999"]), 1, &["no such code"]);
}

/// Each thing that is refused has a code of its own.
#[test]
fn refusals_have_codes_of_their_own() {
    let place = Workplace::new(User::Plain);
    let script = "import os, time; fd = os.open('/proc/1/stat', os.O_RDONLY); \
                  open('ready', 'w'); time.sleep(1000)";
    let child = place.start(place.command("/usr/bin/python3").args(["-c", script]));
    assert!(poll(PATIENCE, || place.has("ready").then_some(())).is_some());
    let answer = place.ask(&["dump", &child.to_string(), "--dir", "job", "--json"]);
    check_refused(&answer, 1, &["error[RCKPT-E0300]", "RCKPT-E0447: process"]);
    let report: Value = serde_json::from_str(&answer.output).expect("it is JSON");
    assert_eq!(report["error"]["details"], serde_json::json!(["RCKPT-E0447"]));
}

#[test]
fn not_a_number_is_a_matter_of_usage() {
    let place = Workplace::new(User::Plain);
    check_refused(&place.ask(&["dump", "simulate"]), 2, &["simulate"]);
}

#[test]
fn not_my_process() {
    // Process 1 belongs to root, who may be running the tests: but not this part of them.
    if geteuid().is_root() {
        let place = Workplace::new(User::Plain);
        check_refused(&place.ask(&["dump", "1"]), 1, &["1", "root"]);
    }
}

#[test]
fn already_traced() {
    refused_as(User::Plain, "traced", &["traced"]);
}

#[test]
fn connections_to_outside() {
    let place = Workplace::new(User::Plain);
    let outside = TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = outside.local_addr().expect("it has an address").port();
    place.write("port", &port.to_string());
    let words = ["descriptor 3", "127.0.0.1:", &port.to_string(), "--tcp-close"];
    fixture_refused_in(&place, &Case::new("refused").with_argument("tcp"), &words);
}

/// Whoever gives such connections up finds them reset.
#[test]
fn connections_to_outside_that_are_given_up() {
    let place = Workplace::new(User::Plain);
    let outside = TcpListener::bind("127.0.0.1:0").expect("listen");
    place.write("port", &outside.local_addr().expect("it has an address").port().to_string());
    let peer = std::thread::spawn(move || {
        let (mut stream, _) = outside.accept().expect("accept");
        stream.write_all(b"from outside").expect("send");
        stream
    });
    let mut job = Running::start(&place, &Case::new("tcp_outside"), Start::Alone);
    let stream = peer.join().expect("somebody has connected");
    job.dump(&["--tcp-close", "--kill"]);
    job.lose();
    drop(stream);
    job.restore();
    job.judge();
}

/// A unix socket of somebody outside is refused by name, and closed for whoever gives it up; datagrams
/// find their receiver again, if there is one.
#[test]
fn unix_sockets_to_outside() {
    let place = Workplace::new(User::Plain);
    let server = UnixListener::bind(place.path("outside")).expect("listen");
    let letters = UnixDatagram::bind(place.path("letters")).expect("bind");
    for name in ["outside", "letters"] {
        fs::set_permissions(place.path(name), Permissions::from_mode(0o777)).expect("open it");
    }
    let peer = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().expect("accept");
        stream.write_all(b"from outside").expect("send");
        stream
    });
    let mut job = Running::start(&place, &Case::new("unix_outside"), Start::Alone);
    let stream = peer.join().expect("somebody has connected");
    let answer = place.ask(&["dump", &job.root().to_string(), "--dir", "job"]);
    assert_eq!(answer.status, Some(1), "{answer:?}");
    for word in ["descriptor 3", "outside", "--ext-unix", &std::process::id().to_string()] {
        assert!(answer.words.contains(word), "{word}: {answer:?}");
    }
    job.dump(&["--ext-unix", "--kill"]);
    job.lose();
    drop((stream, letters));
    let answer = place.ask(&["restore", "job"]);
    assert_eq!(answer.status, Some(125), "{answer:?}");
    assert!(answer.words.contains("start that program first"), "{answer:?}");
    fs::remove_file(place.path("letters")).expect("remove a socket");
    let letters = UnixDatagram::bind(place.path("letters")).expect("bind");
    fs::set_permissions(place.path("letters"), Permissions::from_mode(0o777)).expect("open it");
    job.restore();
    job.judge();
    let mut letter = [0; 64];
    let length = letters.recv(&mut letter).expect("receive");
    assert_eq!(&letter[..length], b"written after the restore");
}

/// A restore tells who is in the way of an address before anything is started.
#[test]
fn addresses_that_others_have() {
    let place = Workplace::new(User::Plain);
    let job = Running::start(&place, &Case::new("tcp_listening"), Start::Alone);
    job.dump(&[]);
    let words = ["127.", "another program has this address"];
    check_refused(&place.ask(&["restore", "job"]), 125, &words);
    job.judge();
}

/// Leaves a connection in TIME_WAIT at the address of its first argument, and has the other end's for two
/// seconds more, so that nobody can ask from there.
const LEAVE_REMAINS: &str = "
import socket, sys, time
address, port = sys.argv[1].split(':')
server = socket.socket()
server.bind((address, int(port)))
server.listen()
client = socket.socket()
client.bind(('127.0.0.9', 0))
name = client.getsockname()
client.connect((address, int(port)))
served, _ = server.accept()
served.close()
client.close()
server.close()
held = socket.socket()
held.bind(name)
print('held', flush=True)
time.sleep(2)
";

/// What is left of connections that are over goes away by itself: a restore waits for it, and says so.
#[test]
fn addresses_that_are_about_to_be_free() {
    let place = Workplace::new(User::Plain);
    let job = Running::start(&place, &Case::new("tcp_listening"), Start::Alone);
    job.dump(&[]);
    let taken = place.ask(&["restore", "job"]).words;
    let address = taken.split_whitespace().find(|word| word.starts_with("127."));
    let address = address.expect("an address").trim_end_matches(':');
    job.dump(&["--kill"]);
    job.lose();
    place.write("keeper.py", LEAVE_REMAINS);
    let mut keeper = place.command("/usr/bin/python3");
    keeper.args(["keeper.py", address]).stdout(place.stream("keeper.out"));
    let keeper = place.start(keeper);
    let held = || place.text("keeper.out").contains("held").then_some(());
    assert!(poll(PATIENCE, held).is_some(), "{}", place.text("stderr"));
    let answer = place.ask(&["restore", "--dry-run", "job"]);
    check_refused(&answer, 125, &[address, "connections that are over", "in a minute"]);
    place.write("go", "");
    let answer = place.ask(&["restore", "job"]);
    assert!(answer.words.contains("waiting for them"), "{answer:?}");
    assert_eq!((answer.status, &*place.text("verdict")), (Some(0), "PASS\n"), "{answer:?}");
    assert_eq!(process::exit_status(keeper, PATIENCE), Some(0));
}

#[test]
fn sockets_of_other_kinds() {
    refused("netlink", &["descriptor 3", "NETLINK_KOBJECT_UEVENT"]);
    refused("filter", &["descriptor 3", "SO_ATTACH_FILTER"]);
    refused("rtnetlink", &["descriptor 3", "netlink"]);
}

#[test]
fn events_that_nobody_reads() {
    refused_as(User::Plain, "inotify", &["descriptor 3", "inotify", "events", "again"]);
}

#[test]
fn directories_that_are_watched_in_the_old_way() {
    refused("dnotify", &["descriptor 3", "dnotify", "inotify"]);
}

#[test]
fn streams_that_hide_what_is_in_them() {
    refused("urgent", &["urgent data", "MSG_OOB"]);
    refused("urgent-read", &["urgent data", "MSG_OOB"]);
    refused("tcp-peek", &["SO_PEEK_OFF"]);
}

#[test]
fn connections_over_several_paths() {
    refused("multipath", &["Multipath TCP", "multipathtcp=0"]);
}

#[test]
fn process_descriptors_of_others() {
    refused("pidfd", &["descriptor 3", "pidfd", "outside the job"]);
}

#[test]
fn packet_sockets_and_other_strange_things() {
    refused("fanotify", &["descriptor 3", "fanotify"]);
    refused("perf", &["descriptor 3", "performance counters"]);
    refused("userfaultfd", &["descriptor 3", "userfaultfd"]);
    refused("namespace", &["descriptor 3", "namespace"]);
    refused("queue-notify", &["descriptor 3", "POSIX message queue", "mq_notify"]);
    // These take a privilege to be made.
    if geteuid().is_root() {
        refused_as(User::Caller, "bpf", &["descriptor 3", "BPF"]);
        refused_as(User::Caller, "fuse", &["descriptor 3", "character device 10:229"]);
        refused_as(User::Caller, "packet", &["descriptor 3", "socket"]);
        refused_as(User::Caller, "ports", &["process"]);
        refused_as(User::Caller, "unshared", &["another uts namespace"]);
        refused_as(User::Caller, "unshared-children", &["children", "pid namespace"]);
        refused_as(User::Caller, "raw", &["descriptor 3", "raw"]);
        for (device, word) in
            [("kvm", "10:232"), ("net/tun", "10:200"), ("kmsg", "1:11"), ("loop0", "block device")]
        {
            if Path::new("/dev").join(device).exists() {
                refused_as(User::Caller, device, &["descriptor 3", device, word, "closed"]);
            }
        }
    }
}

#[test]
fn messages_that_nobody_can_look_at() {
    let words = ["descriptor 3", "POSIX message queue", "1 messages wait", "permissions (400)"];
    refused_as(User::Plain, "queue", &words);
}

#[test]
fn memory_of_userfaultfd() {
    refused("fault", &["userfaultfd"]);
}

#[test]
fn asynchronous_input_and_output() {
    refused("aio", &["io_setup"]);
}

#[test]
fn shared_huge_pages() {
    refused("huge-file", &["descriptor 3", "huge pages"]);
}

#[test]
fn io_uring() {
    refused("io_uring", &["descriptor 3", "io_uring", "eventfd", "registered"]);
}

#[test]
fn system_v_shared_memory_in_parts() {
    refused("sysv-part", &["System V shared memory segment", "only a part"]);
    refused("sysv-moved", &["System V shared memory segment", "only a part"]);
}

#[test]
fn system_v_shared_memory_of_others() {
    refused("sysv-shared", &["System V shared memory segment", "outside the job"]);
}

/// What somebody has left who had the id of one of the job's processes before is not the job's.
#[test]
fn system_v_objects_of_a_namesake() {
    if !geteuid().is_root() {
        return;
    }
    let place = Workplace::new(User::Caller);
    let program = fixture("ipc_left_over", Linking::Static);
    let child = place.start(place.command(program));
    assert!(poll(PATIENCE, || place.has("ready").then_some(())).is_some());
    let namesake = process::children(child)[0].to_string();
    let answer = place.ask(&["dump", &namesake, "--dir", "job"]);
    assert_eq!(answer.status, Some(0), "{answer:#?}");
    for word in ["shared memory segment", "semaphore set", "message queue", "before that process"] {
        assert!(answer.words.contains(word), "{word}: {answer:#?}");
    }
    place.write("go", "");
    assert_eq!(process::exit_status(child, PATIENCE), Some(0), "{}", place.text("stderr"));
    assert_eq!(place.text("verdict"), "PASS\n");
}

#[test]
fn seccomp_filters() {
    refused("seccomp", &["seccomp"]);
    refused("strict", &["seccomp"]);
}

#[test]
fn paths_that_no_system_call_takes() {
    let words = ["RCKPT-E0456", "working directory (a path of more than", "descriptor 3 (a path"];
    refused_as(User::Plain, "long-path", &words);
}

#[test]
fn bounds_and_keys_that_nobody_can_read() {
    refused("landlock", &["RCKPT-E0325", "Landlock"]);
    refused("keyring", &["RCKPT-E0326", "keyring", "process"]);
}

#[test]
fn descriptors_of_processes_that_share_descriptors() {
    refused("exit-signal", &["signal 12", "SIGCHLD"]);
    refused("sharer", &["descriptor 3", "descriptor 4", "CLONE_FILES"]);
}

#[test]
fn processes_of_other_users() {
    if geteuid().is_root() {
        refused_as(User::Caller, "user", &["user ids are [12345, 12345, 12345, 12345]", "user 0"]);
    }
}

/// A program that takes another user's rights (setuid) when it is executed.
#[test]
fn programs_with_other_rights() {
    if !geteuid().is_root() {
        return;
    }
    let place = Workplace::new(User::Plain);
    let program = place.path("other");
    fs::copy(fixture("memory_brk", Linking::Dynamic), &program).expect("copy a program");
    std::os::unix::fs::chown(&program, Some(0), Some(0)).expect("give it to root");
    fs::set_permissions(&program, Permissions::from_mode(0o4755)).expect("mark it");
    let sleep = place.path("second");
    fs::copy("/bin/sleep", &sleep).expect("copy a program");
    std::os::unix::fs::chown(&sleep, Some(0), Some(0)).expect("give it to root");
    fs::set_permissions(&sleep, Permissions::from_mode(0o4755)).expect("mark it");
    let script = "./second 1000 & second=$!; ./other & wait $!; kill $second; wait";
    let child = place.start(place.command("sh").args(["-c", script]));
    assert!(poll(PATIENCE, || place.has("ready").then_some(())).is_some());
    let [other, second] = ["other", "second"].map(|name| {
        poll(PATIENCE, || process::child_named(child, name)).expect("it runs").to_string()
    });
    // All are told at once.
    let words = [other.as_str(), &second, "another user", "run rckpt as its owner"];
    check_refused(&place.ask(&["dump", &child.to_string(), "--dir", "job"]), 1, &words);
    let answer = place.ask(&["check", &child.to_string()]);
    assert_eq!(answer.status, Some(1), "{answer:#?}");
    for word in words {
        assert!(joined(&answer.output).contains(word), "{word}: {answer:#?}");
    }
    place.write("go", "");
    assert_eq!(process::exit_status(child, PATIENCE), Some(0), "{}", place.text("stderr"));
    assert_eq!(place.text("verdict"), "PASS\n");
}

/// Everything that is in the way is told at once, by `check` and by `dump`.
#[test]
fn several_things_at_once() {
    let place = Workplace::new(User::Plain);
    let job = Running::start(&place, &Case::new("refused").with_argument("several"), Start::Alone);
    let root = job.root().to_string();
    let words = [
        "descriptor 3 (user:[",
        "performance counters",
        "NETLINK_KOBJECT_UEVENT",
        "seccomp filters",
        "take the checkpoint when the program has it closed",
    ];
    for _ in 0..2 {
        let answer = place.ask(&["check", &root]);
        assert_eq!(answer.status, Some(1), "{answer:#?}");
        for word in words {
            assert!(joined(&answer.output).contains(word), "{word}: {answer:#?}");
        }
        check_refused(&place.ask(&["dump", &root, "--dir", "job"]), 1, &words);
        job.check_let_go();
        job.ping();
    }
    job.judge();
}

#[test]
fn system_calls_that_are_caught() {
    refused("dispatch", &["PR_SET_SYSCALL_USER_DISPATCH"]);
}

/// As a plain user and as the caller. What may be gone in a moment is waited for, and so is only tried as one.
fn refused(kind: &'static str, words: &[&str]) {
    refused_as(User::Plain, kind, words);
    if geteuid().is_root() {
        refused_as(User::Caller, kind, words);
    }
}

fn refused_as(user: User, kind: &'static str, words: &[&str]) {
    fixture_refused_in(&Workplace::new(user), &Case::new("refused").with_argument(kind), words);
}

/// A dump of the fixture is refused with these words and the pid of one of its processes, and the job
/// does not notice.
fn fixture_refused_in(place: &Workplace, case: &Case, words: &[&str]) {
    let job = Running::start(place, case, Start::Alone);
    let root = job.root().to_string();
    // `check` tells the same without a trace.
    let told = place.ask(&["check", &root]);
    assert_eq!(told.status, Some(1), "{told:#?}");
    let said = told.output.to_lowercase();
    for word in words {
        assert!(said.contains(&word.to_lowercase()), "check does not tell {word:?}: {told:#?}");
    }
    for _ in 0..2 {
        let answer = place.ask(&["dump", &root, "--dir", "job"]);
        check_refused(&answer, 1, words);
        let named = answer.words.split(|letter: char| !letter.is_ascii_digit()).any(|number| {
            !number.is_empty() && Path::new("/proc").join(number).join("stat").exists()
        });
        assert!(named, "no process is named: {answer:#?}");
        job.ping();
    }
    assert!(!place.has("job/latest"), "a refused checkpoint counts as one");
    job.judge();
}

#[test]
fn directory_of_another_job() {
    let place = Workplace::new(User::Plain);
    dumped_and_gone(&place, &Case::new("memory_private"));
    let latest = fs::read_link(place.path("job/latest")).expect("there is a checkpoint");
    fs::remove_file(place.path("ready")).expect("there was a first job");
    let job = Running::start(&place, &Case::new("memory_brk"), Start::Alone);
    let answer = place.ask(&["dump", &job.root().to_string(), "--dir", "job"]);
    check_refused(&answer, 1, &["job", "another", "--dir"]);
    let answer = place.ask(&["run", "--dir", "job", "--", "true"]);
    check_refused(&answer, 125, &["job", "another", "--dir"]);
    assert_eq!(fs::read_link(place.path("job/latest")).expect("it is still there"), latest);
    job.judge();
}

#[test]
fn no_checkpoint_in_directory() {
    let place = Workplace::new(User::Plain);
    place.make_directory("job");
    check_not_restored(&place, &["job", "no checkpoint"]);
}

#[test]
fn no_directory() {
    let place = Workplace::new(User::Plain);
    check_not_restored(&place, &["job", "does not exist"]);
}

/// The files of the newest checkpoint.
fn image_files(place: &Workplace) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(place.path("job/latest"))
        .expect("there is a checkpoint")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|name| name == "rckpt"))
        .collect();
    files.sort();
    files
}

#[test]
fn damaged_image() {
    let place = Workplace::new(User::Plain);
    dumped_and_gone(&place, &Case::new("memory_private"));
    for file in image_files(&place) {
        let good = fs::read(&file).expect("read an image's file");
        let name = file.file_name().expect("it has a name").to_string_lossy().into_owned();
        let last = good.len() - 1;
        let mut damaged = vec![good[..last].to_vec(), good[..good.len() / 2].to_vec(), Vec::new()];
        for at in [0, 9, good.len() / 3, good.len() / 2, last] {
            let mut altered = good.clone();
            altered[at] ^= 0x10;
            damaged.push(altered);
        }
        for content in damaged {
            fs::write(&file, &content).expect("damage an image's file");
            check_not_restored(&place, &[&name]);
            let verdict = place.ask(&["verify", "--deep", "job"]);
            assert_eq!(verdict.status, Some(1), "{verdict:#?}");
            assert!((verdict.output + &verdict.words).contains(&name), "{name} is not named");
        }
        fs::remove_file(&file).expect("remove an image's file");
        check_not_restored(&place, &[&name]);
        fs::write(&file, &good).expect("mend an image's file");
    }
    place.tell(&["verify", "--deep", "job"]);
}

#[test]
fn image_that_others_could_have_written() {
    let place = Workplace::new(User::Plain);
    dumped_and_gone(&place, &Case::new("memory_brk"));
    let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    let directory = fs::canonicalize(place.path("job/latest")).expect("there is a checkpoint");
    fs::set_permissions(&directory, mode(0o777)).expect("open it for all");
    check_not_restored(&place, &["written by"]);
}

#[test]
fn changed_executable() {
    let place = Workplace::new(User::Plain);
    let program = place.path("program");
    fs::copy(fixture("memory_brk", Linking::Dynamic), &program).expect("copy a program");
    let child = place.start(place.command(&program));
    assert!(poll(PATIENCE, || place.has("ready").then_some(())).is_some());
    place.tell(&["dump", &child.to_string(), "--dir", "job", "--kill"]);
    process::kill_descendants();
    let path = program.display().to_string();
    fs::copy(fixture("memory_cow", Linking::Dynamic), &program).expect("build it anew");
    check_not_restored(&place, &[&path, "build id"]);
    fs::remove_file(&program).expect("remove the program");
    check_not_restored(&place, &[&path, "vanished"]);
}

#[test]
fn missing_working_directory() {
    let place = Workplace::new(User::Plain);
    dumped_and_gone(&place, &Case::new("attributes"));
    fs::remove_dir(place.path("elsewhere")).expect("remove the working directory");
    check_not_restored(&place, &[&place.path("elsewhere").display().to_string()]);
}

#[test]
fn changed_files() {
    let place = Workplace::new(User::Plain);
    place.write("input", "one\ntwo\n");
    let script = "exec 5< input 6> output; read line <&5; echo $line >&6; touch ready; \
                  while :; do sleep 0.01; done";
    let child = place.start(place.command("sh").args(["-c", script]));
    assert!(poll(PATIENCE, || place.has("ready").then_some(())).is_some());
    place.tell(&["dump", &child.to_string(), "--dir", "job", "--kill"]);
    process::kill_descendants();
    let (input, output) = (place.path("input"), place.path("output"));
    let refused = |path: &Path, word: &str| {
        check_not_restored(&place, &[&path.display().to_string(), word]);
    };
    let facts = fs::metadata(&input).expect("look at a file");
    let set_time = |seconds| {
        let file = fs::File::options().write(true).open(&input).expect("open a file");
        let time = facts.modified().expect("it has a time") + Duration::from_secs(seconds);
        file.set_modified(time).expect("set its time");
    };
    set_time(5);
    refused(&input, "not what it was");
    set_time(0);
    let rewrite = |text: &str| {
        let file = fs::File::options().write(true).open(&output).expect("open a file");
        std::os::unix::fs::FileExt::write_all_at(&file, text.as_bytes(), 0).expect("write");
    };
    rewrite("One\n");
    refused(&output, "changed in place");
    rewrite("One\ntwo\n");
    refused(&output, "changed in place");
    fs::write(&output, "").expect("empty a file");
    refused(&output, "0 now");
    fs::remove_file(&output).expect("remove a file");
    refused(&output, "vanished");
    fs::create_dir(&output).expect("make a directory");
    refused(&output, "directory");
    fs::remove_file(&input).expect("remove a file");
    refused(&input, "vanished");
}

/// A file is what it was at the checkpoint once it has been rolled back, however often.
#[test]
fn the_same_checkpoint_twice() {
    let place = Workplace::new(User::Plain);
    let script = "exec 6> output; echo one >&6; touch ready; \
                  while [ ! -e go ]; do sleep 0.01; done; echo two >&6";
    let child = place.start(place.command("sh").args(["-c", script]));
    assert!(poll(PATIENCE, || place.has("ready").then_some(())).is_some());
    place.tell(&["dump", &child.to_string(), "--dir", "job"]);
    place.write("go", "");
    assert_eq!(process::exit_status(child, PATIENCE), Some(0));
    for lost_early in [true, true, false] {
        if lost_early {
            fs::remove_file(place.path("go")).expect("it is there");
            let child = place.start(place.rckpt(&["restore", "job", "--pidfile", "pid"]));
            let runs = || (place.has("pid") || process::has_ended(child)).then_some(());
            assert!(poll(PATIENCE, runs).is_some() && place.has("pid"), "{}", place.text("stderr"));
            process::kill_descendants();
            assert_eq!(place.text("output"), "one\n");
            place.write("go", "");
            fs::remove_file(place.path("pid")).expect("it is there");
        } else {
            place.tell(&["restore", "job"]);
        }
    }
    assert_eq!(place.text("output"), "one\ntwo\n");
}

/// Only root can be in a group that is not its own.
#[test]
fn group_that_is_missing() {
    if !geteuid().is_root() {
        return;
    }
    let place = Workplace::new(User::Caller);
    let rckpt = crate::harness::workplace::rckpt_binary();
    let mut run = place.command("setpriv");
    run.args(["--groups", "4711", "--"]).arg(rckpt).args(["run", "--dir", "job", "--"]);
    let child = place.start(run.args(["sleep", "1000"]));
    let job = poll(PATIENCE, || process::child_named(child, "sleep")).expect("it starts");
    place.tell(&["dump", &job.to_string(), "--kill"]);
    process::kill_descendants();
    check_not_restored(&place, &["supplementary group", "4711"]);
}

/// Namespaces are what a plain user needs to have the same process numbers again.
#[test]
fn namespaces_forbidden() {
    let place = Workplace::new(User::Plain);
    dumped_and_gone(&place, &Case::new("memory_brk"));
    // In a user namespace of its own the limit can be set without an effect on anybody else.
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && \
                  exec setpriv --ambient-caps=-all --inh-caps=-all --bounding-set=-all -- \
                  \"$0\" restore job";
    let mut command = place.command("unshare");
    command.args(["--user", "--map-current-user", "--keep-caps", "--", "sh", "-c", script]);
    command.arg(crate::harness::workplace::rckpt_binary());
    let child = place.start(&mut command);
    assert_eq!(process::exit_status(child, PATIENCE), Some(125), "{}", place.text("stderr"));
    let words = place.text("stderr");
    for word in ["namespace", "max_user_namespaces"] {
        assert!(words.contains(word), "{word} is missing in {words:?}");
    }
}

#[test]
fn disk_full() {
    let place = Workplace::new(User::Plain);
    place.make_directory("small");
    let program = fixture("memory_private", Linking::Dynamic);
    // Memory that is mounted in a namespace of the test's own: any user may do that.
    let script = "mount -t tmpfs -o size=1M tmpfs small && { \"$1\" & \
                  while [ ! -e ready ]; do sleep 0.01; done; \
                  \"$0\" dump $! --dir small/job 2> words; echo $? > status; \
                  ls -A small/job > left; touch go; wait; }";
    let mut command = place.command("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--", "sh", "-c", script]);
    command.arg(crate::harness::workplace::rckpt_binary()).arg(program);
    let child = place.start(&mut command);
    assert_eq!(process::exit_status(child, PATIENCE), Some(0), "{}", place.text("stderr"));
    assert_eq!(place.text("status"), "1\n", "{}", place.text("words"));
    let words = place.text("words").to_lowercase();
    assert!(words.contains("no space left"), "{words:?}");
    assert_eq!(place.text("verdict"), "PASS\n", "the job was harmed");
    assert!(!place.text("left").contains("latest"), "{}", place.text("left"));
}

/// A number may be taken by a process group alone, which nobody sees before it is asked for. What the attempt
/// in place has locked and opened is then in nobody's way.
#[test]
fn number_that_is_taken_by_a_group() {
    if !geteuid().is_root() {
        return;
    }
    let place = Workplace::new(User::Caller);
    let program = fixture("tcp_listening", Linking::Static);
    let mut leader = place.command("perl");
    let child = place.start(leader.args(["-e", "setpgrp(0, 0); exec @ARGV"]).arg(program));
    assert!(poll(PATIENCE, || place.has("ready").then_some(())).is_some());
    let join = "setpgrp(0, $ARGV[0]) or die; open(F, '>joined'); sleep 1000";
    let mut member = place.command("perl");
    place.start(member.args(["-e", join, &child.to_string()]));
    assert!(poll(PATIENCE, || place.has("joined").then_some(())).is_some());
    place.tell(&["dump", &child.to_string(), "--dir", "job", "--kill"]);
    assert_eq!(process::exit_status(child, PATIENCE), Some(137));
    let restore = place.start(place.rckpt(&["restore", "job", "--pidfile", "pid"]));
    let known = poll(PATIENCE, || (place.has("pid") || process::has_ended(restore)).then_some(()));
    assert!(known.is_some() && place.has("pid"), "{}", place.text("stderr"));
    place.write("go", "");
    assert_eq!(process::exit_status(restore, PATIENCE), Some(0), "{}", place.text("stderr"));
    assert_eq!(place.text("verdict"), "PASS\n");
}

/// As root in place when the numbers are free, else, as here, in a namespace; plain users always so.
#[test]
fn restored_twice_at_once() {
    let place = Workplace::new(User::Plain);
    dumped_and_gone(&place, &Case::new("memory_private"));
    let restores: Vec<Pid> = ["one", "two"]
        .map(|pidfile| place.start(place.rckpt(&["restore", "job", "--pidfile", pidfile])))
        .to_vec();
    for (pidfile, restore) in ["one", "two"].iter().zip(&restores) {
        let known = poll(PATIENCE, || {
            (place.text(pidfile).ends_with('\n') || process::has_ended(*restore)).then_some(())
        });
        assert!(known.is_some() && place.has(pidfile), "{}", place.text("stderr"));
    }
    assert_ne!(place.text("one"), place.text("two"));
    place.write("go", "");
    for restore in restores {
        assert_eq!(process::exit_status(restore, PATIENCE), Some(0), "{}", place.text("stderr"));
    }
    assert_eq!(place.text("verdict"), "PASS\n");
}
