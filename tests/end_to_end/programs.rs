//! Real programs: each runs uninterrupted first; then it is dumped in mid-run, runs on for a while, is
//! lost as a whole and brought back, three times over. What it wrote must be the same, byte for byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::unistd::Pid;
use xxhash_rust::xxh3::xxh3_64;

use crate::harness::fixture::{Linking, build};
use crate::harness::process::{self, poll};
use crate::harness::workplace::{User, Workplace, publish};

/// How long a program may take that takes seconds on an idle machine.
const LONG: Duration = Duration::from_secs(150);

/// A program and how to run it.
struct Program {
    /// Files of tests/programs/ that it needs beside it.
    files: &'static [&'static str],
    /// What is done once, before it runs: compiling, mostly.
    prepare: fn(&Workplace),
    /// The command.
    command: &'static [&'static str],
    /// What it writes without keeping it open (`--outputs`).
    outputs: &'static [&'static str],
    /// What it changes in place (`--save-files`).
    saved: &'static [&'static str],
    /// Whether it removes files at its end that it had open: one that ended before it was lost is not
    /// brought back then.
    tidies: bool,
}

impl Program {
    const fn new(files: &'static [&'static str], command: &'static [&'static str]) -> Self {
        Self { files, prepare: |_| (), command, outputs: &[], saved: &[], tidies: false }
    }

    /// Copies its files and prepares it.
    fn set_up(&self, place: &Workplace) {
        for file in self.files {
            place.write(file, &fs::read_to_string(source(file)).expect("read a program"));
        }
        (self.prepare)(place);
    }
}

fn source(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(file)
}

/// Everything that a program wrote: its standard output, and the files named `output.*`.
fn written(place: &Workplace) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(place.path(".")).expect("list the test's directory").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if (name.starts_with("output.") || name == "stdout") && entry.path().is_file() {
            // A file may be gone again before it is read; the comparison at the end would tell.
            files.insert(name, fs::read(entry.path()).unwrap_or_default());
        }
    }
    files
}

fn amount(files: &BTreeMap<String, Vec<u8>>) -> usize {
    files.values().map(Vec::len).sum()
}

fn remove_written(place: &Workplace) {
    for name in written(place).keys() {
        fs::remove_file(place.path(name)).expect("remove an output");
    }
}

/// Waits until the program has written `percent` of all it will write; whether it has ended by then.
fn await_progress(place: &Workplace, child: Pid, total: usize, percent: usize) -> bool {
    let reached = poll(LONG, || {
        let ended = process::has_ended(child);
        (ended || amount(&written(place)) * 100 >= total * percent).then_some(ended)
    });
    reached.unwrap_or_else(|| panic!("{percent} % is not reached: {}", place.text("stderr")))
}

fn check_same(expected: &BTreeMap<String, Vec<u8>>, found: &BTreeMap<String, Vec<u8>>) {
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(expected), names(found), "other files were written");
    for (name, content) in expected {
        let other = &found[name];
        let same = content.iter().zip(other).take_while(|(a, b)| a == b).count();
        assert!(
            content == other,
            "{name} differs from byte {same} on: {} bytes expected, {} found: {:?}, not {:?}",
            content.len(),
            other.len(),
            String::from_utf8_lossy(&other[same..other.len().min(same + 100)]),
            String::from_utf8_lossy(&content[same..content.len().min(same + 100)]),
        );
    }
}

fn survives(program: &Program, user: User) {
    let place = Workplace::new(user);
    program.set_up(&place);
    let child = place.start(place.command(program.command[0]).args(&program.command[1..]));
    assert_eq!(
        process::exit_status(child, LONG),
        Some(0),
        "uninterrupted: {}",
        place.text("stderr")
    );
    let expected = written(&place);
    let total = amount(&expected);
    remove_written(&place);

    let mut run = place.rckpt(&["run", "--dir", "job"]);
    for name in program.outputs {
        run.args(["--outputs", name]);
    }
    for name in program.saved {
        run.args(["--save-files", name]);
    }
    let mut child = place.start(run.arg("--").args(program.command));
    for (dumped, lost) in [(15, 30), (40, 55), (65, 80)] {
        let ended = await_progress(&place, child, total, dumped);
        assert!(!ended, "it ended before {dumped} %: {}", place.text("stderr"));
        let root = match place.text("pid").trim() {
            "" => process::children(child).first().expect("rckpt has a child").to_string(),
            number => number.to_owned(),
        };
        place.tell(&["dump", &root]);
        // One that ran to its end while its memory was written comes back all the same, unless it has
        // tidied up after itself.
        if await_progress(&place, child, total, lost) && program.tidies {
            break;
        }
        process::kill_descendants();
        if place.has("pid") {
            fs::remove_file(place.path("pid")).expect("forget the old number");
        }
        child = place.start(place.rckpt(&["restore", "job", "--pidfile", "pid"]));
        let restored = poll(LONG, || {
            let known = place.text("pid").ends_with('\n');
            (known || process::has_ended(child)).then_some(known)
        });
        assert_eq!(restored, Some(true), "not restored: {}", place.text("stderr"));
    }
    assert_eq!(process::exit_status(child, LONG), Some(0), "{}", place.text("stderr"));
    check_same(&expected, &written(&place));
}

const PYTHON: &str = "/usr/bin/python3";

const PYTHON_WRITING: Program =
    Program { outputs: &["output.log"], ..Program::new(&["writes.py"], &[PYTHON, "writes.py"]) };
const PYTHON_THREADS: Program = Program::new(&["threads.py"], &[PYTHON, "threads.py"]);
const PYTHON_POOL: Program = Program::new(&["pool.py"], &[PYTHON, "pool.py"]);
const PYTHON_SHARED: Program = Program::new(&["shared.py"], &[PYTHON, "shared.py"]);
const PYTHON_CHILDREN: Program = Program::new(&["children.py"], &[PYTHON, "children.py"]);
const NUMPY_BLAS: Program = Program::new(&["blas.py"], &[PYTHON, "blas.py"]);
const BASH_PIPELINE: Program = Program::new(&["pipeline.sh"], &["bash", "pipeline.sh"]);
const BASH_LOOP: Program = Program::new(&["loop.sh"], &["bash", "loop.sh"]);
const BUSYBOX: Program = Program::new(&["busy.sh"], &["busybox", "sh", "busy.sh"]);
const GO: Program = Program { prepare: compile_go, ..Program::new(&[], &["./work"]) };
const STATIC_THREADS: Program = Program {
    prepare: |place| compile(place, "tls", Linking::Static),
    ..Program::new(&[], &["./tls"])
};
const VECTOR_LOOP: Program = Program {
    prepare: |place| compile(place, "vectors", Linking::Dynamic),
    ..Program::new(&[], &["./vectors"])
};
const PYTHON_ASYNCIO: Program =
    Program::new(&["asyncio_server.py"], &[PYTHON, "asyncio_server.py"]);
const PYTHON_MANAGED: Program = Program::new(&["managed.py"], &[PYTHON, "managed.py"]);
const REDIS_BY_PATH: Program = Program::new(&["redis_by_path.sh"], &["bash", "redis_by_path.sh"]);
const PERL: Program = Program::new(&["words.pl"], &["perl", "words.pl"]);
// What make finds made by the future that was lost, it would not make again.
const MAKE: Program =
    Program { outputs: &["output.*"], ..Program::new(&["Makefile"], &["make", "-s", "-j2"]) };
const NODE: Program = Program::new(&["steps.js"], &["node", "steps.js"]);
const JAVA: Program = Program {
    prepare: |place| compile_java(place, "Work"),
    ..Program::new(&[], &["java", "-cp", ".", "Work"])
};
const PYTHON_ECHO: Program = Program::new(&["echo.py"], &[PYTHON, "echo.py"]);
const PYTHON_SERVED: Program = Program::new(&["served.sh"], &["bash", "served.sh"]);
const NODE_SERVED: Program = Program::new(&["http.js"], &["node", "http.js"]);
const JAVA_SERVED: Program = Program {
    prepare: |place| compile_java(place, "Served"),
    ..Program::new(&[], &["java", "-cp", ".", "Served"])
};
const OPEN_MPI: Program = Program {
    prepare: |place| compile_ring(place, "mpicc.openmpi"),
    tidies: true,
    ..Program::new(&["openmpi.sh"], &["sh", "openmpi.sh", "4", "./ring"])
};
const MPICH: Program = Program {
    prepare: |place| compile_ring(place, "mpicc.mpich"),
    ..Program::new(&[], &["mpirun.mpich", "-n", "4", "./ring"])
};
const REDIS: Program = Program::new(&["redis.sh"], &["bash", "redis.sh"]);
const SCRIPT: Program =
    Program::new(&["terminal.sh"], &["script", "-qc", "bash terminal.sh", "/dev/null"]);
const PYTHON_SPAWN: Program =
    Program::new(&["spawn.py", "terminal.sh"], &[PYTHON, "spawn.py", "bash", "terminal.sh"]);
const EXPECT: Program = Program::new(&["dialogue.exp"], &["expect", "dialogue.exp"]);
const PYTHON_OPEN_MPI: Program = Program {
    tidies: true,
    ..Program::new(&["openmpi.sh", "ring.py"], &["sh", "openmpi.sh", "2", PYTHON, "ring.py"])
};
const PYTHON_SUBPROCESSES: Program =
    Program::new(&["subprocesses.py"], &[PYTHON, "subprocesses.py"]);
const NODE_CREW: Program = Program::new(&["crew.js"], &["node", "crew.js"]);
const R: Program = Program::new(&["walk.R"], &["Rscript", "walk.R"]);
const OCTAVE: Program = Program::new(&["walk.m"], &["octave-cli", "-q", "walk.m"]);
const MAKE_C: Program = Program {
    outputs: &["output.*", "build"],
    saved: &["passes"],
    ..Program::new(
        &["Makefile.c", "parts.awk"],
        &["sh", "-c", "rm -rf build; mkdir -p passes; exec make -s -j2 -f Makefile.c"],
    )
};
const SNAKEMAKE: Program = Program {
    outputs: &["output.*"],
    saved: &[".snakemake"],
    tidies: true,
    ..Program::new(&["Snakefile"], &["snakemake", "--cores", "2", "--nocolor", "--quiet", "all"])
};
const POSTGRESQL: Program =
    Program { saved: &["data"], ..Program::new(&["transaction.sh"], &["bash", "transaction.sh"]) };
const SSH_AGENT: Program = Program::new(&["agent.sh"], &["bash", "agent.sh"]);

macro_rules! programs {
    ($( $name:ident : $program:ident ; )*) => { $(
        mod $name {
            use super::{User, survives};

            #[test]
            fn survives_as_plain_user() {
                survives(&super::$program, User::Plain);
            }

            #[test]
            fn survives_as_caller() {
                survives(&super::$program, User::Caller);
            }
        }
    )* };
}

programs! {
    python_writing: PYTHON_WRITING;
    python_threads: PYTHON_THREADS;
    python_pool: PYTHON_POOL;
    python_shared: PYTHON_SHARED;
    python_asyncio: PYTHON_ASYNCIO;
    python_managed: PYTHON_MANAGED;
    redis_by_path: REDIS_BY_PATH;
    python_children: PYTHON_CHILDREN;
    numpy_blas: NUMPY_BLAS;
    bash_pipeline: BASH_PIPELINE;
    bash_loop: BASH_LOOP;
    busybox: BUSYBOX;
    go: GO;
    static_threads: STATIC_THREADS;
    vector_loop: VECTOR_LOOP;
    perl: PERL;
    make: MAKE;
    node: NODE;
    java: JAVA;
    python_echo: PYTHON_ECHO;
    python_served: PYTHON_SERVED;
    node_served: NODE_SERVED;
    java_served: JAVA_SERVED;
    redis: REDIS;
    open_mpi: OPEN_MPI;
    mpich: MPICH;
    python_open_mpi: PYTHON_OPEN_MPI;
    python_subprocesses: PYTHON_SUBPROCESSES;
    node_crew: NODE_CREW;
    r: R;
    octave: OCTAVE;
    make_c: MAKE_C;
    script: SCRIPT;
    python_spawn: PYTHON_SPAWN;
    expect: EXPECT;
}

/// Once is enough for one that takes its time to begin.
#[test]
fn snakemake_survives_as_plain_user() {
    survives(&SNAKEMAKE, User::Plain);
}

/// It does not work for root.
#[test]
fn postgresql_survives_as_plain_user() {
    survives(&POSTGRESQL, User::Plain);
}

/// It forbids its user to look into it, which only root may all the same.
#[test]
fn ssh_agent_survives_as_root() {
    if nix::unistd::geteuid().is_root() {
        survives(&SSH_AGENT, User::Caller);
    }
}

fn compile(place: &Workplace, name: &str, linking: Linking) {
    let built = build(&source(&format!("{name}.c")), &[], linking);
    fs::copy(built, place.path(name)).expect("copy a program");
}

/// Built once for all users, for the compiler takes its time.
fn compile_go(place: &Workplace) {
    let source = source("work.go");
    let content = fs::read(&source).expect("read a program");
    let built = publish(&format!("work-go-{:016x}", xxh3_64(&content)), |path| {
        let mut compiler = Command::new("go");
        compiler.args(["build", "-o"]).arg(path).arg(&source);
        // It keeps what it has compiled in the home directory, if it is not told otherwise.
        let kept = std::env::temp_dir().join("rckpt-tests-go");
        compiler.env("GOCACHE", kept).env("GO111MODULE", "off");
        assert!(compiler.status().expect("run go").success(), "work.go does not compile");
    });
    fs::copy(built, place.path("work")).expect("copy a program");
}

fn compile_ring(place: &Workplace, compiler: &str) {
    let mut compiler = Command::new(compiler);
    compiler.arg("-O1").arg("-o").arg(place.path("ring")).arg(source("ring.c"));
    assert!(compiler.status().expect("run an MPI compiler").success(), "ring.c does not compile");
}

fn compile_java(place: &Workplace, name: &str) {
    let mut compiler = Command::new("javac");
    compiler.arg("-d").arg(place.path(".")).arg(source(&format!("{name}.java")));
    assert!(compiler.status().expect("run javac").success(), "{name}.java does not compile");
}
