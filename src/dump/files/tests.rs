//! The collector against real processes, which sleep instead of being frozen.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::model::file::{FileLockKind, InodeKind, PipeEnd, Stream, StreamTarget};

/// Closes what the tests' own surroundings have left open from 3 on.
const CLOSE_OTHERS: &str =
    "for fd in /proc/$$/fd/*; do fd=${fd##*/}; [ $fd -gt 2 ] && eval \"exec $fd>&-\"; done";

/// A shell that has executed `script` and become `sleep`; killed at the end.
struct Sleeper(Child);

impl Sleeper {
    fn start(directory: &Path, script: &str) -> Self {
        Self::start_with(directory, script, Stdio::null(), Stdio::null())
    }

    fn start_with(directory: &Path, script: &str, input: Stdio, output: Stdio) -> Self {
        let script = format!("{CLOSE_OTHERS}\n{script}\nexec sleep 1000");
        let mut command = Command::new("bash");
        command.args(["-c", &script]).current_dir(directory);
        command.stdin(input).stdout(output).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        // It has become what it was to become when it sleeps in clock_nanosleep.
        wait_for_call(child.id(), libc::SYS_clock_nanosleep);
        Self(child)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.0.id()).unwrap())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn wait_for_call(pid: u32, number: i64) {
    let path = format!("/proc/{pid}/syscall");
    while !std::fs::read_to_string(&path).unwrap().starts_with(&format!("{number} ")) {
        std::thread::yield_now();
    }
}

fn collect(pids: &[Pid], supervisor: Option<Pid>) -> Collector {
    let subjects: Vec<Subject> = pids
        .iter()
        .map(|pid| Subject { pid: *pid, task: *pid, recorded: id::Pid(pid.as_raw()) })
        .collect();
    let (zombies, root) = (&[], pids[0]);
    Collector::collect(&Scope {
        memories: &[],
        subjects: &subjects,
        zombies,
        root,
        supervisor,
        tcp_close: false,
        only_looks: false,
        ext_unix: false,
    })
    .unwrap()
}

fn file(found: &Collected, table: usize, number: i32) -> &OpenFile {
    let entry = found.fd_tables[table].entries.iter().find(|entry| entry.number == number);
    &found.open_files[usize::try_from(entry.unwrap().file.0).unwrap()]
}

fn inode(found: &Collected, id: InodeId) -> &Inode {
    &found.inodes[usize::try_from(id.0).unwrap()]
}

#[test]
fn regular_files_are_recorded_with_what_they_share() {
    // So deep down they are not taken for temporary ones.
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path().join("below");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("in"), "line 1\nline 2\n").unwrap();
    let job = Sleeper::start(
        &directory,
        "umask 027; exec 5<in 6>>log 7<&5 8<in; read x <&5; echo abc >&6; flock -s 6; rm in",
    );
    let found = collect(&[job.pid()], None).finish(10);
    assert_eq!(found.refusals, vec![]);
    assert_eq!(found.fd_tables[0].entries.len(), 7);
    let entries = &found.fd_tables[0].entries;
    assert_eq!(entries[3].file, entries[5].file, "5 and 7 share a description");
    assert_ne!(entries[3].file, entries[6].file, "8 was opened apart");
    let OpenFileKind::Regular { inode: input, position } = file(&found, 0, 5).kind else {
        panic!("{:?}", file(&found, 0, 5));
    };
    // The shell reads byte by byte.
    assert_eq!(position, 7);
    let input = inode(&found, input);
    assert_eq!(input.kind, InodeKind::Unlinked);
    assert_eq!(input.path.as_path(), directory.join("in"));
    assert_eq!(input.content, Some(id::ObjectId(10)));
    assert!(!input.written);
    let mut page = vec![0; 4096];
    let reader = found.contents[0].open().unwrap();
    let runs = reader.runs(&mut |_, _| unreachable!("a file needs no residency")).unwrap();
    assert_eq!(runs, vec![PageRun { first: 0, pages: 1 }]);
    reader.read(0, &mut page).unwrap();
    assert_eq!(&page[..15], b"line 1\nline 2\n\0");
    let log = file(&found, 0, 6);
    assert_eq!(log.flags.cast_signed() & libc::O_APPEND, libc::O_APPEND);
    assert_eq!(log.locks.len(), 1);
    assert_eq!(log.locks[0].kind, FileLockKind::Flock);
    assert_eq!(log.locks[0].access, 0);
    let OpenFileKind::Regular { inode: log, position: 4 } = log.kind else { panic!("{log:?}") };
    assert!(inode(&found, log).written);
    assert_eq!(inode(&found, log).size, 4);
    assert_eq!(inode(&found, log).content, None);
    assert_eq!(found.fs[0].umask, 0o027);
    assert_eq!(inode(&found, found.fs[0].cwd).path.as_path(), directory);
    assert!(matches!(file(&found, 0, 0).kind, OpenFileKind::Device { .. }));
}

#[test]
fn pipes_inside_the_job_are_recorded_with_their_queue() {
    let directory = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let (copy_of_reader, copy_of_writer) =
        (reader.try_clone().unwrap(), writer.try_clone().unwrap());
    nix::unistd::write(&writer, b"queued").unwrap();
    let start = |input, output| Sleeper::start_with(directory.path(), "", input, output);
    let left = start(Stdio::null(), writer.into());
    let right = start(reader.into(), Stdio::null());
    // We, the parent of both, have both ends, too.
    let found = collect(&[left.pid(), right.pid()], None).finish(0);
    let me = nix::unistd::getpid();
    let kinds: Vec<_> = found.refusals.iter().map(|refusal| &refusal.kind).collect();
    let shared = RefusalKind::PipeSharedWithOutside { holder: me };
    assert_eq!(kinds, vec![&shared, &shared]);
    drop((copy_of_reader, copy_of_writer));
    let found = collect(&[left.pid(), right.pid()], None).finish(0);
    assert_eq!(found.refusals, vec![]);
    assert_eq!(found.pipes.len(), 1);
    assert_eq!(found.pipes[0].queued, vec![Bytes::from(&b"queued"[..])]);
    assert_eq!(found.pipes[0].capacity, 65536);
    assert!(matches!(file(&found, 0, 1).kind, OpenFileKind::Pipe { end: PipeEnd::Write, .. }));
    assert!(matches!(file(&found, 1, 0).kind, OpenFileKind::Pipe { end: PipeEnd::Read, .. }));
    // Alone, the reader of an unsupervised job reads its standard input from outside.
    let found = collect(&[right.pid()], None).finish(0);
    assert_eq!(found.refusals, vec![]);
    let stream = &file(&found, 0, 0).kind;
    assert!(
        matches!(
            stream,
            OpenFileKind::Stream { stream: Stream::Input, target: StreamTarget::Other(_) }
        ),
        "{stream:?}"
    );
    // And when nobody writes any more, it is a pipe at its end.
    drop(left);
    let found = collect(&[right.pid()], None).finish(0);
    assert_eq!(found.refusals, vec![]);
    assert!(matches!(file(&found, 0, 0).kind, OpenFileKind::Pipe { .. }));
}

#[test]
fn what_the_supervisor_passed_on_is_a_stream() {
    let directory = tempfile::tempdir().unwrap();
    let output = std::fs::File::create(directory.path().join("out")).unwrap();
    output.write_all_at(b"before", 0).unwrap();
    // The supervisor is a shell that stays, the job its child.
    let mut command = Command::new("bash");
    let script = format!("{CLOSE_OTHERS}; exec 3>&1; sleep 1000 5<.& echo $! > pid; wait");
    command.args(["-c", &script]).current_dir(directory.path());
    command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
    let mut supervisor = command.spawn().unwrap();
    let job = loop {
        let text = std::fs::read_to_string(directory.path().join("pid")).unwrap_or_default();
        if let Ok(pid) = text.trim().parse() {
            let pid: i32 = pid;
            wait_for_call(pid.cast_unsigned(), libc::SYS_clock_nanosleep);
            break Pid::from_raw(pid);
        }
    };
    let host = Pid::from_raw(i32::try_from(supervisor.id()).unwrap());
    let found = collect(&[job], Some(host)).finish(0);
    nix::sys::signal::kill(job, nix::sys::signal::SIGKILL).unwrap();
    supervisor.wait().unwrap();
    assert_eq!(found.refusals, vec![]);
    let stream_of = |number: i32| match &file(&found, 0, number).kind {
        OpenFileKind::Stream { stream, target } => (*stream, target.clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(stream_of(1).0, Stream::Output);
    assert_eq!(stream_of(2).0, Stream::Error);
    assert_eq!(stream_of(3).0, Stream::Output);
    let StreamTarget::Regular { inode: output, position } = stream_of(1).1 else { panic!() };
    assert_eq!(inode(&found, output).path.as_path(), directory.path().join("out"));
    assert_eq!(position, 0);
    assert!(!inode(&found, output).written, "a stream is rolled back by other rules");
    assert!(matches!(file(&found, 0, 5).kind, OpenFileKind::Directory { .. }));
}

#[test]
fn what_cannot_be_saved_is_refused_all_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (reader, outside_writer) = std::io::pipe().unwrap();
    // Descriptor 6 is written outside the job and is no standard stream.
    let script = "exec 6<&0 7</proc/1/status 0</dev/null";
    let job = Sleeper::start_with(directory.path(), script, reader.into(), Stdio::null());
    let found = collect(&[job.pid()], None).finish(0);
    drop(outside_writer);
    let refused: Vec<_> =
        found.refusals.iter().map(|refusal| (refusal.place, refusal.kind.clone())).collect();
    assert_eq!(
        refused,
        vec![
            (Place::Descriptor(6), RefusalKind::PipeLeadsOutside),
            (Place::Descriptor(7), RefusalKind::ProcOfOutsider),
        ]
    );
}

#[test]
fn a_writing_end_to_the_outside_is_cut_with_a_warning() {
    let directory = tempfile::tempdir().unwrap();
    let (outside_reader, writer) = std::io::pipe().unwrap();
    let script = "exec 6>&1 1>/dev/null";
    let job = Sleeper::start_with(directory.path(), script, Stdio::null(), writer.into());
    let found = collect(&[job.pid()], None).finish(0);
    drop(outside_reader);
    assert_eq!(found.refusals, vec![]);
    assert_eq!(found.warnings, vec![Warning::PipeWillBreak { pid: job.pid(), number: 6 }]);
    assert!(matches!(file(&found, 0, 6).kind, OpenFileKind::Pipe { end: PipeEnd::Write, .. }));
}

#[test]
fn mapped_files_are_the_ones_that_are_open() {
    let directory = tempfile::tempdir().unwrap();
    let job = Sleeper::start(directory.path(), "true");
    let mut collector = collect(&[job.pid()], None);
    let executable = collector.executable(job.pid()).unwrap().unwrap();
    let mut mapped = Vec::new();
    for mapping in crate::sys::procfs::mappings(job.pid()).unwrap() {
        if mapping.inode == 0 {
            continue;
        }
        let found = collector
            .mapping(&FileMapping {
                pid: job.pid(),
                range: mapping.range,
                offset: mapping.offset,
                device: mapping.device,
                inode: mapping.inode,
                path: &mapping.path,
                shared: mapping.permissions[3] == b's',
                writable: mapping.permissions[1] == b'w',
                may_write: mapping.codes.contains(b"mw"),
            })
            .unwrap();
        mapped.push(found.unwrap());
    }
    assert!(mapped.contains(&executable));
    let found = collector.finish(0);
    assert_eq!(found.refusals, vec![]);
    assert!(found.contents.is_empty());
    assert!(inode(&found, executable).build_id.is_some());
    assert!(!inode(&found, executable).written);
}
