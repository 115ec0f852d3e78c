//! Whatever call of rckpt fails, once: the job is not harmed, the failure is told, nothing partial stays,
//! a checkpoint that was taken in spite of it is whole, and the next one succeeds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use rckpt::image::reader::{Depth, Reader, Trust};

use crate::harness::faults::{self, Call};
use crate::harness::process::{self, poll};
use crate::harness::rounds::{Case, Running, Start};
use crate::harness::stepping::{self, Deed, Outcome, Point, Scope, Victim};
use crate::harness::workplace::{User, Workplace};

/// Set to 1, this has every call fail that can, instead of some.
const EVERY_CALL: &str = "RCKPT_TEST_EVERY_CALL";

/// Records that are the same in no two checkpoints: points in time, the registers of a thread that looks
/// around now and then, and what other tests of the same user have in common with everybody.
const CHANGING: [&str; 26] = [
    "segments",
    "objects",
    "seconds",
    "nanoseconds",
    "eflags",
    "orig_rax",
    "fs_base",
    "gs_base",
    "rip",
    "rsp",
    "rbp",
    "rax",
    "rbx",
    "rcx",
    "rdx",
    "rsi",
    "rdi",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
    "restart",
];

/// How long a job may take to go back to what it was.
const SOON: Duration = Duration::from_secs(5);

/// Set to the name of a call (sendto), this has each of those fail that can, and no others.
const ONE_KIND: &str = "RCKPT_TEST_CALLS";

/// Of the calls that an undisturbed run has made, some that can fail or all of them, each with one of the
/// errors that are plausible for it: every kind of call goes through its own in turn.
fn points(calls: &[Call], some: usize) -> Vec<Point> {
    let mut turns = BTreeMap::<i64, usize>::new();
    let all: Vec<Point> = calls
        .iter()
        .enumerate()
        .filter(|(_, call)| !faults::plausible(call).is_empty())
        .map(|(place, call)| {
            let turn = turns.entry(call.number).or_default();
            *turn += 1;
            Point { call: place + 1, deed: Deed::Fail { number: call.number, turn: *turn } }
        })
        .collect();
    let kind = std::env::var(ONE_KIND).ok();
    let is_wanted = |point: &Point| {
        kind.as_ref().is_none_or(|kind| faults::name(calls[point.call - 1].number) == *kind)
    };
    let all: Vec<Point> = all.into_iter().filter(is_wanted).collect();
    let stride = match std::env::var(EVERY_CALL) {
        _ if kind.is_some() => 1,
        Ok(value) if value == "1" => 1,
        _ => (all.len() / some).max(1),
    };
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("later");
    let first = usize::try_from(clock.subsec_nanos()).expect("it fits") / 1000 % stride;
    println!("one of {stride} of {} calls, from {first} on", all.len());
    all.into_iter().skip(first).step_by(stride).collect()
}

/// What an undisturbed checkpoint holds, as far as it is the same each time: the lines of its records, with
/// how often they come at least, and the pages that are stored.
#[derive(Default)]
struct Known {
    lines: Option<BTreeMap<String, usize>>,
    pages: Option<BTreeSet<(u32, u64)>>,
}

impl Known {
    fn learn(&mut self, generation: &Path) {
        let (lines, pages) = content(generation);
        match &mut self.lines {
            None => self.lines = Some(lines),
            Some(known) => known.retain(|line, count| {
                *count = (*count).min(lines.get(line).copied().unwrap_or(0));
                *count > 0
            }),
        }
        match &mut self.pages {
            None => self.pages = Some(pages),
            Some(known) => known.retain(|page| pages.contains(page)),
        }
    }

    /// What is missing in a checkpoint that has come about in spite of a fault.
    fn missing(&self, generation: &Path) -> Option<String> {
        let (lines, pages) = content(generation);
        let (known, stored) = (self.lines.as_ref()?, self.pages.as_ref()?);
        let is_missing =
            |(line, count): &(&String, &usize)| lines.get(*line).is_none_or(|found| found < *count);
        let missing: Vec<_> = known.iter().filter(is_missing).collect();
        let lost: Vec<_> = stored.difference(&pages).collect();
        (!missing.is_empty() || !lost.is_empty())
            .then(|| format!("not in the checkpoint: {missing:#?}, pages {lost:x?}"))
    }
}

/// The records of a checkpoint line by line, and the numbers of its pages. Everything in it is decoded.
fn content(generation: &Path) -> (BTreeMap<String, usize>, BTreeSet<(u32, u64)>) {
    let reader = Reader::open_trusting(generation, Trust::Anybody).expect("it is complete");
    reader.verify(Depth::Decoded, &|_| ()).expect("it is whole");
    let mut lines = BTreeMap::new();
    // The bytes of vector registers are those of a thread that looks around, too.
    let mut in_registers = false;
    for line in format!("{:#?}", reader.job()).lines().map(str::trim) {
        in_registers = (in_registers || line == "xstate: [") && line != "],";
        let field = line.split(':').next().unwrap_or_default();
        if !in_registers && !CHANGING.contains(&field) {
            *lines.entry(line.to_owned()).or_default() += 1;
        }
    }
    let runs = reader.chunks().iter().flat_map(|chunk| &chunk.runs);
    let pages = runs.flat_map(|run| {
        (run.first_page..)
            .take(usize::try_from(run.pages).expect("few"))
            .map(|page| (run.object.0, page))
    });
    (lines, pages.collect())
}

/// The complete checkpoints in a directory, oldest first.
fn generations(directory: &Path) -> Vec<PathBuf> {
    names(directory, "gen-").into_iter().map(|name| directory.join(name)).collect()
}

fn names(directory: &Path, prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
    names.sort();
    names
}

/// What became of a command with a fault, in a line.
fn story(outcome: &Outcome) -> String {
    let fault = outcome.happened.map_or_else(
        || "nothing".to_owned(),
        |(call, fault)| format!("{}({:x?}) {fault:?}", faults::name(call.number), call.arguments),
    );
    let ended = match outcome.ended {
        Some(WaitStatus::Exited(_, status)) => status.to_string(),
        other => format!("{other:?}"),
    };
    // Half of a long story is enough.
    let words: Vec<&str> = outcome
        .words
        .lines()
        .filter(|line| !outcome.succeeded() || line.contains("warning"))
        .collect();
    let words: String = words.join("; ").chars().take(600).collect();
    format!("{fault} -> {ended} {words}")
}

fn survives_failing_dumps(case: &Case, user: User) {
    let place = Workplace::new(user);
    let mut job = Running::start(&place, case, Start::Alone);
    let directory = place.path("job");
    let root = job.root().to_string();
    let words = ["dump", &root, "--dir", "job"];
    let newest = || generations(&directory).pop().expect("there is one");
    let mut known = Known::default();
    for _ in 0..4 {
        job.ping();
        job.dump(&[]);
        known.learn(&newest());
    }
    let undisturbed = stepping::run(&place, &words, Scope::All, None);
    assert!(undisturbed.succeeded(), "{}", undisturbed.words);
    known.learn(&newest());
    let before = belongings(job.root());
    let mut tally = Tally::default();
    for point in points(&undisturbed.calls, 25) {
        let there = generations(&directory);
        let outcome = stepping::run(&place, &words, Scope::All, Some(point));
        let mut defects = Vec::new();
        job.ping();
        // A thread that was left in the middle goes back by itself, in a second at most.
        let same = poll(SOON, || (before == belongings(job.root())).then_some(()));
        if same.is_none() {
            defects.push(difference(&before, &belongings(job.root())));
        }
        let now = generations(&directory);
        if outcome.succeeded() {
            if now.len() != there.len() + 1 {
                defects.push(format!("{there:?} became {now:?}"));
            }
            defects.extend(known.missing(&newest()));
        } else {
            if outcome.words.trim().is_empty() && !outcome.was_killed() {
                defects.push("nothing is told".to_owned());
            }
            let partial = names(&directory, ".");
            if now != there || (!partial.is_empty() && !outcome.was_killed()) {
                defects.push(format!("{there:?} became {now:?} and {partial:?}"));
            }
            job.dump(&[]);
            let partial = names(&directory, ".");
            if !partial.is_empty() {
                defects.push(format!("after the next one: {partial:?}"));
            }
        }
        tally.add(&outcome, defects);
        if now.len() > 6 {
            place.tell(&["prune", "job", "--keep", "2"]);
        }
    }
    job.dump(&[]);
    job.lose();
    job.restore();
    job.judge();
    tally.judge();
}

/// The supervisor is the job's parent: it must go on, too.
fn survives_failing_checkpoints(case: &Case) {
    let place = Workplace::new(User::Plain);
    let job = Running::start(&place, case, Start::Supervised);
    let directory = place.path("job");
    let root = job.root().to_string();
    let ask = |point| {
        let client = || {
            let mut client = place.rckpt(&["dump", &root]);
            client.stdout(place.stream("client")).stderr(place.stream("client"));
            place.start(client)
        };
        let mut outcome = stepping::run_supervisor(job.child(), client, point);
        outcome.words = place.text("client");
        fs::remove_file(place.path("client")).expect("remove an answer");
        outcome
    };
    let newest = || generations(&directory).pop().expect("there is one");
    let mut known = Known::default();
    for _ in 0..4 {
        job.ping();
        job.dump(&[]);
        known.learn(&newest());
    }
    let undisturbed = ask(None);
    assert!(undisturbed.succeeded(), "{}", undisturbed.words);
    known.learn(&newest());
    let before = belongings(job.root());
    let mut tally = Tally::default();
    for point in points(&undisturbed.calls, 15) {
        let there = generations(&directory);
        let outcome = ask(Some(point));
        let mut defects = Vec::new();
        job.ping();
        let same = poll(SOON, || (before == belongings(job.root())).then_some(()));
        if same.is_none() {
            defects.push(difference(&before, &belongings(job.root())));
        }
        let now = generations(&directory);
        if outcome.succeeded() {
            if now.len() != there.len() + 1 {
                defects.push(format!("{there:?} became {now:?}"));
            }
            defects.extend(known.missing(&newest()));
        } else {
            if outcome.words.trim().is_empty() {
                defects.push("nothing is told".to_owned());
            }
            let partial = names(&directory, ".");
            if now != there || !partial.is_empty() {
                defects.push(format!("{there:?} became {now:?} and {partial:?}"));
            }
        }
        tally.add(&outcome, defects);
        job.dump(&[]);
        if now.len() > 6 {
            place.tell(&["prune", "job", "--keep", "2"]);
        }
    }
    job.judge();
    tally.judge();
}

/// A restore that fails leaves nothing, and the next one succeeds.
fn survives_failing_restores(case: &Case, user: User, scope: Scope) {
    let place = Workplace::new(user);
    let job = Running::start(&place, case, Start::Alone);
    job.dump(&["--kill"]);
    job.lose();
    // Brought back it looks at itself, and ends.
    place.write("go", "");
    let words = ["restore", "job"];
    let undisturbed = stepping::run(&place, &words, scope, None);
    assert!(undisturbed.succeeded(), "{}", undisturbed.words);
    let verdict = || {
        let verdict = place.text("verdict");
        if place.has("verdict") {
            fs::remove_file(place.path("verdict")).expect("remove a verdict");
        }
        verdict
    };
    assert_eq!(verdict(), "PASS\n");
    // Whether the job has finished is for its last supervisor to say.
    let files = || {
        let mut of_job = names(&place.path("job"), "");
        of_job.retain(|name| name != "finished.json");
        [names(&place.path(""), ""), of_job]
    };
    let before = files();
    let mut tally = Tally::default();
    for point in points(&undisturbed.calls, 25) {
        let outcome = stepping::run(&place, &words, scope, Some(point));
        let mut defects = Vec::new();
        let none = poll(SOON, || process::descendants(Pid::this()).is_empty().then_some(()));
        if none.is_none() {
            let left = process::descendants(Pid::this());
            let comm = |pid: &Pid| process::proc_text(*pid, "comm");
            defects.push(format!("left: {:?}", left.iter().map(comm).collect::<Vec<_>>()));
            process::kill_descendants();
        }
        let verdict = verdict();
        // Whoever is restored and cannot be supervised goes on; one that dies with the others may live to
        // see that they were killed.
        let right = if outcome.succeeded() {
            verdict == "PASS\n"
        } else {
            ["", "PASS\n"].contains(&verdict.as_str()) || verdict.contains(": status 0x9 (")
        };
        if !right {
            defects.push(format!("the job says {verdict:?}"));
        }
        if !outcome.succeeded() && outcome.words.trim().is_empty() && !outcome.was_killed() {
            defects.push("nothing is told".to_owned());
        }
        if files() != before {
            defects.push(difference(&before, &files()));
        }
        tally.add(&outcome, defects);
    }
    let answer = place.ask(&words);
    assert_eq!(answer.status, Some(0), "{answer:#?}");
    assert_eq!(verdict(), "PASS\n");
    tally.judge();
}

/// The checkpoint is damaged, so no restore succeeds, but it finds out only after a file was cut back. Whatever
/// call fails before or after that: the file has its end again, or it is told where that is. Whenever it is
/// killed: the file has its end, or that is kept.
fn survives_failures_to_put_back() {
    const END: &[u8] = b"written after the checkpoint\n";
    let place = Workplace::new(User::Plain);
    let job = Running::start(&place, &Case::new("motion_mix"), Start::Alone);
    job.ping();
    job.dump(&["--kill"]);
    job.lose();
    let pages = place.path("job/gen-000001/pages.rckpt");
    let pages = OpenOptions::new().read(true).write(true).open(pages).expect("open it");
    let (middle, mut byte) = (pages.metadata().expect("look at it").len() / 2, [0]);
    pages.read_exact_at(&mut byte, middle).expect("read it");
    pages.write_all_at(&[byte[0] ^ 1], middle).expect("damage it");

    let (lines, displaced) = (place.path("lines"), place.path("job/displaced"));
    let cut = fs::read(&lines).expect("read the job's file");
    let whole = [&cut[..], END].concat();
    let state = || {
        let time = fs::metadata(&lines).expect("look at it").modified().expect("there is a time");
        (fs::read(&lines).expect("read it"), time, displaced.exists())
    };
    fs::write(&lines, &whole).expect("write to the job's file");
    let mut before = state();
    let words = ["restore", "job/gen-000001"];
    let undisturbed = stepping::run(&place, &words, Scope::Own, None);
    assert!(!undisturbed.succeeded() && state() == before, "{}", undisturbed.words);
    let mut tally = Tally::default();
    let failing = points(&undisturbed.calls, 20);
    let killed = failing.iter().map(|point| Point { deed: Deed::Kill(Victim::All), ..*point });
    for point in killed.chain(failing.iter().copied()) {
        let kills = point.deed == Deed::Kill(Victim::All);
        let outcome = stepping::run(&place, &words, Scope::Own, Some(point));
        let mut defects = Vec::new();
        let none = poll(SOON, || process::descendants(Pid::this()).is_empty().then_some(()));
        if none.is_none() {
            defects.push(format!("left: {:?}", process::descendants(Pid::this())));
            process::kill_descendants();
        }
        if outcome.succeeded() || (outcome.words.trim().is_empty() && !kills) {
            defects.push("nothing is told".to_owned());
        }
        let now = state();
        if now != before {
            let told = outcome.words.contains("could be put back");
            let kept =
                displaced.join("1").join(lines.strip_prefix("/").expect("it is a whole path"));
            let kept = kept.with_file_name(format!("lines.from-{}", cut.len()));
            let is_kept = fs::read(&kept).is_ok_and(|end| end == END);
            let is_part = now.0.starts_with(&cut) && whole.starts_with(&now.0);
            let is_safe = now.0 == whole || is_kept && (now.0 == cut || kills && is_part);
            if !is_safe || !(told || kills) {
                defects.push(format!("{} bytes, displaced: {}", now.0.len(), now.2));
            }
            if displaced.exists() {
                fs::remove_dir_all(&displaced).expect("remove what was kept");
            }
            fs::write(&lines, &whole).expect("write to the job's file");
            before = state();
        }
        if kills {
            println!("killed at call {}", point.call);
            let told = defects.into_iter().map(|defect| format!("killed at {point:?}: {defect}"));
            tally.defects.extend(told);
        } else {
            tally.add(&outcome, defects);
        }
    }
    tally.judge();
}

/// What came of all faults.
#[derive(Default)]
struct Tally {
    told: usize,
    unharmed: usize,
    defects: Vec<String>,
}

impl Tally {
    fn add(&mut self, outcome: &Outcome, defects: Vec<String>) {
        let story = story(outcome);
        println!("{story}");
        if outcome.succeeded() {
            self.unharmed += 1;
        } else {
            self.told += 1;
        }
        let mut defects = defects;
        if matches!(outcome.ended, Some(WaitStatus::Signaled(_, Signal::SIGKILL, _))) {
            defects.push("it hangs".to_owned());
        }
        let panic = outcome.words.contains("panicked") && !outcome.was_killed();
        for defect in defects.into_iter().chain(panic.then(|| outcome.words.clone())) {
            println!("DEFECT: {defect}");
            self.defects.push(format!("{story}: {defect}"));
        }
    }

    fn judge(self) {
        let Self { told, unharmed, defects } = self;
        println!("{told} were told, {unharmed} did no harm, {} defects", defects.len());
        assert!(defects.is_empty(), "{defects:#?}");
    }
}

/// What each process of the job has.
fn belongings(root: Pid) -> BTreeMap<Pid, process::Belongings> {
    let mut job = process::descendants(root);
    job.insert(root);
    job.into_iter().map(|pid| (pid, process::belongings(pid))).collect()
}

/// Where two states of a job differ.
fn difference(before: &impl std::fmt::Debug, after: &impl std::fmt::Debug) -> String {
    let (before, after) = (format!("{before:#?}"), format!("{after:#?}"));
    let only = |one: &str, other: &str| -> Vec<String> {
        one.lines().filter(|line| !other.contains(line)).map(str::to_owned).collect()
    };
    format!("gone: {:#?}, new: {:#?}", only(&before, &after), only(&after, &before))
}

#[test]
fn calls_fail_in_dumps_of_threads() {
    survives_failing_dumps(&Case::new("threads_waiting"), User::Plain);
}

#[test]
fn calls_fail_in_dumps_of_a_family() {
    survives_failing_dumps(&Case::new("tree_family"), User::Plain);
}

#[test]
fn calls_fail_in_checkpoints_of_threads() {
    survives_failing_checkpoints(&Case::new("threads_waiting"));
}

#[test]
fn calls_fail_in_restores_of_threads() {
    survives_failing_restores(&Case::new("threads_waiting"), User::Plain, Scope::Grandchildren);
}

#[test]
fn calls_fail_in_restores_of_a_family() {
    survives_failing_restores(&Case::new("tree_family"), User::Plain, Scope::Grandchildren);
}

#[test]
fn calls_fail_in_restores_in_place() {
    survives_failing_restores(&Case::new("pipe_processes"), User::Caller, Scope::Own);
}

#[test]
fn calls_fail_while_files_are_put_back() {
    survives_failures_to_put_back();
}
