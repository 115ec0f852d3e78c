//! The life of a fixture under test: started, dumped, killed, restored, asked for its verdict.

use std::time::Duration;

use nix::unistd::Pid;

use super::fixture::{Linking, fixture};
use super::process::{self, PATIENCE, poll};
use super::workplace::{User, Workplace};

/// A fixture, and what it needs besides being started.
#[derive(Clone, Debug)]
pub struct Case {
    name: &'static str,
    linking: Linking,
    arguments: Vec<&'static str>,
    outputs: Vec<&'static str>,
    adopted: bool,
}

impl Case {
    /// The fixture of that name.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            linking: Linking::Dynamic,
            arguments: Vec::new(),
            outputs: Vec::new(),
            adopted: false,
        }
    }

    /// Linked without shared libraries.
    pub fn linked_statically(mut self) -> Self {
        self.linking = Linking::Static;
        self
    }

    /// Started with this word.
    pub fn with_argument(mut self, word: &'static str) -> Self {
        self.arguments.push(word);
        self
    }

    /// It appends to this file without keeping it open.
    pub fn with_output(mut self, name: &'static str) -> Self {
        self.outputs.push(name);
        self
    }

    /// It leaves processes to be adopted, which belong to the job only when rckpt runs it.
    pub fn leaving_orphans(mut self) -> Self {
        self.adopted = true;
        self
    }
}

/// Whether rckpt is the job's parent from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Under `rckpt run`.
    Supervised,
    /// By nobody in particular.
    Alone,
}

/// A fixture that runs.
pub struct Running<'place> {
    place: &'place Workplace,
    case: Case,
    supervised: bool,
    /// Child of this test: the job's root, or rckpt as its parent.
    child: Pid,
    /// The job's root as this test sees it.
    root: Pid,
}

impl<'place> Running<'place> {
    /// Starts the fixture and waits until it is ready.
    pub fn start(place: &'place Workplace, case: &Case, start: Start) -> Self {
        let program = fixture(case.name, case.linking);
        let supervised = start == Start::Supervised;
        let child = if supervised {
            let mut command = place.rckpt(&["run", "--dir", "job"]);
            for output in &case.outputs {
                command.args(["--outputs", output]);
            }
            place.start(command.arg("--").arg(program).args(&case.arguments))
        } else {
            place.start(place.command(program).args(&case.arguments))
        };
        let mut running = Self { place, case: case.clone(), supervised, child, root: child };
        running.await_word("ready");
        if supervised {
            running.root = *process::children(child).first().expect("rckpt run has a child");
        }
        running
    }

    /// The job's root as this test sees it.
    pub fn root(&self) -> Pid {
        self.root
    }

    /// The child of this test that is the root, or rckpt as its parent.
    pub fn child(&self) -> Pid {
        self.child
    }

    /// Waits for a file that the fixture makes; a verdict or an end come too early.
    fn await_word(&self, word: &str) {
        let came = poll(PATIENCE, || {
            self.check_no_verdict();
            (self.place.has(word) || process::has_ended(self.child)).then_some(())
        });
        assert!(
            came.is_some() && self.place.has(word),
            "{} is not {word}; {}",
            self.case.name,
            self.story()
        );
    }

    fn check_no_verdict(&self) {
        assert!(!self.place.has("verdict"), "too early: {}", self.story());
    }

    /// Sees that the fixture runs: it answers.
    pub fn ping(&self) {
        self.place.write("ping", "");
        let answered = poll(PATIENCE, || {
            self.check_no_verdict();
            (!self.place.has("ping")).then_some(())
        });
        assert!(answered.is_some(), "{} does not run; {}", self.case.name, self.story());
    }

    fn story(&self) -> String {
        let tail = |name: &str| {
            let text = self.place.text(name);
            let skipped = text.char_indices().rev().nth(1999).map_or(0, |(at, _)| at);
            text[skipped..].to_owned()
        };
        let states: Vec<String> = process::descendants(Pid::this())
            .into_iter()
            .map(|pid| format!("{pid} {}", process::proc_text(pid, "comm").trim_end()))
            .collect();
        format!(
            "verdict: {:?}, stderr: {:?}, processes: {states:?}",
            tail("verdict"),
            tail("stderr")
        )
    }

    /// Takes a checkpoint, with more words for `rckpt dump`.
    pub fn dump(&self, more: &[&str]) {
        let root = self.root.to_string();
        let mut words = vec!["dump", &root];
        if !self.supervised {
            words.extend(["--dir", "job"]);
            for output in &self.case.outputs {
                words.extend(["--outputs", output]);
            }
        }
        words.extend(more);
        let answer = self.place.ask(&words);
        assert_eq!(answer.status, Some(0), "rckpt {words:?}: {answer:#?}; {}", self.story());
    }

    /// Checks that no process of the job is held by anybody.
    pub fn check_let_go(&self) {
        let mut job = process::descendants(self.root);
        job.insert(self.root);
        for pid in job {
            let tracer = process::status_number(pid, "TracerPid");
            assert!(matches!(tracer, None | Some(0)), "{pid} is traced by {tracer:?}");
        }
    }

    /// Loses the job: it and rckpt, if that is its parent, are gone at once.
    pub fn lose(&self) {
        process::kill_descendants();
    }

    /// Brings the job back from its newest checkpoint.
    pub fn restore(&mut self) {
        let mut command = self.place.rckpt(&["restore", "job", "--pidfile", "pid"]);
        self.child = self.place.start(&mut command);
        self.supervised = true;
        let root = poll(PATIENCE, || {
            self.check_no_verdict();
            // A child that has failed meanwhile would never write it.
            let text = self.place.text("pid");
            (text.ends_with('\n') || process::has_ended(self.child))
                .then(|| text.trim().parse().ok())
        });
        let Some(Some(root)) = root else {
            panic!("{} is not restored; {}", self.case.name, self.story());
        };
        self.root = Pid::from_raw(root);
        std::fs::remove_file(self.place.path("pid")).expect("remove the pid file");
        self.ping();
    }

    /// Lets the fixture look at itself: it must pass, and its end be told by its parent.
    pub fn judge(self) {
        self.await_pass();
        let status = process::exit_status(self.child, Duration::from_secs(20));
        assert_eq!(status, Some(0), "{} passed, then: {}", self.case.name, self.story());
    }

    /// Lets a fixture whose parent is gone look at itself: it must pass.
    pub fn judge_orphan(self) {
        self.await_pass();
    }

    fn await_pass(&self) {
        self.place.write("go", "");
        let verdict = poll(PATIENCE, || {
            let verdict = self.place.text("verdict");
            (!verdict.is_empty()).then_some(verdict)
        });
        assert_eq!(verdict.as_deref(), Some("PASS\n"), "{}: {}", self.case.name, self.story());
    }
}

/// A fixture passes when nothing happens.
pub fn passes(case: &Case, user: User) {
    let place = Workplace::new(user);
    let job = Running::start(&place, case, Start::Alone);
    job.ping();
    job.judge();
}

/// A job that is dumped and left running does not notice.
pub fn goes_on(case: &Case, user: User) {
    let place = Workplace::new(user);
    let start = if case.adopted { Start::Supervised } else { Start::Alone };
    let job = Running::start(&place, case, start);
    for _ in 0..3 {
        job.dump(&[]);
        job.check_let_go();
        job.ping();
    }
    job.judge();
}

/// A job comes back three times in a row: dumped, run on for a while, lost, restored.
pub fn comes_back(case: &Case, user: User, start: Start) {
    let place = Workplace::new(user);
    let start = if case.adopted { Start::Supervised } else { start };
    let mut job = Running::start(&place, case, start);
    for round in 0..3 {
        if round == 2 {
            job.dump(&["--kill"]);
        } else {
            job.dump(&[]);
            job.check_let_go();
            job.ping();
        }
        job.lose();
        job.restore();
    }
    job.judge();
}

/// Makes the tests of each fixture named: as a plain user and as the caller, left running and brought
/// back, under rckpt from the start and not.
///
/// The caller's are linked statically, the plain user's dynamically.
#[macro_export]
macro_rules! fixtures {
    ($( $name:ident $(. $setting:ident ( $($argument:expr),* ))* ; )*) => { $(
        mod $name {
            use $crate::harness::rounds::{Case, Start, comes_back, goes_on, passes};
            use $crate::harness::workplace::User;

            fn case() -> Case {
                Case::new(stringify!($name)) $(. $setting ( $($argument),* ))*
            }

            #[test]
            fn passes_undisturbed() {
                passes(&case(), User::Plain);
            }

            #[test]
            fn goes_on_as_plain_user() {
                goes_on(&case(), User::Plain);
            }

            #[test]
            fn goes_on_as_caller() {
                goes_on(&case().linked_statically(), User::Caller);
            }

            #[test]
            fn comes_back_as_plain_user() {
                comes_back(&case(), User::Plain, Start::Supervised);
            }

            #[test]
            fn comes_back_as_caller() {
                comes_back(&case().linked_statically(), User::Caller, Start::Alone);
            }
        }
    )* };
}
