//! `rckpt list` and `rckpt top`: jobs as they are.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::workplace::{User, Workplace, rckpt_binary};

/// A terminal of the smallest usual size, in tmux.
struct Screen<'place> {
    place: &'place Workplace,
}

impl<'place> Screen<'place> {
    fn new(place: &'place Workplace) -> Self {
        let screen = Self { place };
        let shell = "PS1='here: ' bash --norc --noprofile";
        screen.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-s",
            "a",
            "-x",
            "80",
            "-y",
            "24",
            shell,
        ]);
        screen.wait_for("here:");
        screen
    }

    fn tmux(&self, words: &[&str]) {
        let mut tmux = self.place.command("tmux");
        tmux.arg("-S").arg(self.place.path("tmux")).args(words).stdout(self.place.stream("shown"));
        let status = process::exit_status(self.place.start(tmux), PATIENCE);
        assert_eq!(status, Some(0), "{words:?}: {}", self.place.text("stderr"));
    }

    fn text(&self) -> String {
        std::fs::write(self.place.path("shown"), "").expect("empty a file");
        self.tmux(&["capture-pane", "-p", "-t", "a"]);
        self.place.text("shown")
    }

    fn wait_for(&self, text: &str) -> String {
        poll(PATIENCE, || Some(self.text()).filter(|shown| shown.contains(text)))
            .unwrap_or_else(|| panic!("no {text}:\n{}", self.text()))
    }

    fn press(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys", "-t", "a"], keys].concat());
    }
}

/// A job with one checkpoint. Gives the number of its root.
fn job(place: &Workplace) -> String {
    let run = ["run", "-q", "--every", "1h", "--dir", "job", "--", "sleep", "1000"];
    let supervisor = place.start(place.rckpt(&run));
    let root = poll(PATIENCE, || process::child_named(supervisor, "sleep"));
    let root = root.expect("it has started").to_string();
    place.tell(&["dump", &root]);
    root
}

fn pid(number: &str) -> Pid {
    Pid::from_raw(number.parse().expect("a number"))
}

#[test]
fn jobs_and_what_their_checkpoints_cost() {
    let place = Workplace::new(User::Plain);
    let root = job(&place);
    let report: Value = serde_json::from_str(&place.tell(&["list", "--json"])).expect("it is JSON");
    let jobs = report.as_array().into_iter().flatten();
    let number: i64 = root.parse().expect("it is a number");
    let own: Vec<&Value> = jobs.filter(|job| job["root"] == number).collect();
    assert_eq!((&own[0]["kept"], &own[0]["history"][0]["name"]), (&1.into(), &"gen-000001".into()));
    assert!(own[0]["history"][0]["pause_ms"].as_f64() > Some(0.0), "{report}");
    let words = place.tell(&["list"]);
    assert!(words.lines().any(|line| line.starts_with(&root) && line.contains('█')), "{words}");
}

/// Jobs that have lost their supervisor are not lost from sight, nor are those that are gone and can be brought
/// back, and what is said to go on with them does.
#[test]
fn jobs_that_nobody_is_in_charge_of() {
    let place = Workplace::new(User::Plain);
    let root = job(&place);
    let supervisor = process::status_number(pid(&root), "PPid").expect("it has a parent");
    let supervisor = pid(&supervisor.to_string());
    kill(supervisor, Signal::SIGKILL).expect("kill the supervisor");
    assert!(process::exit_status(supervisor, PATIENCE).is_some());
    let own = |words: &[&str]| -> Value {
        let report: Value = serde_json::from_str(&place.tell(words)).expect("it is JSON");
        let all = report.as_array().or_else(|| report["jobs"].as_array()).expect("a list").clone();
        let directory = place.path("job").display().to_string();
        let mut own = all.into_iter().filter(|job| job["directory"] == directory.as_str());
        let found = own.next().unwrap_or_default();
        assert!(own.next().is_none(), "{report}");
        found
    };
    for words in [&["list", "--json"][..], &["list", ".", "--json"]] {
        let found = own(words);
        let told = (&found["state"], &found["root"].to_string(), &found["kept"]);
        assert_eq!(told, (&"unsupervised".into(), &root, &1.into()));
    }
    let line = own(&["list", "--json"])["go_on"].as_str().expect("a command").to_owned();
    assert!(place.tell(&["list"]).contains(&line));
    let (dump, restore) = line.split_once(" && ").expect("two commands");
    let words = |line: &str| line.split(' ').skip(1).map(str::to_owned).collect::<Vec<_>>();
    let run = |words: &[String]| place.rckpt(&words.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(process::exit_status(place.start(run(&words(dump))), PATIENCE), Some(0));
    let found = own(&["list", "--json"]);
    assert_eq!((&found["state"], &found["go_on"]), (&"saved".into(), &restore.into()));
    assert!(found["root"].is_null() && found["kept"] == 2, "{found}");
    let restored = place.start(run(&words(restore)));
    let state = || own(&["list", ".", "--json"])["state"] == "supervised";
    assert!(poll(PATIENCE, || state().then_some(())).is_some(), "{}", place.text("stderr"));
    // It goes on as it did, and is finished then: there is nothing left to be said of it.
    let sleep = poll(PATIENCE, || {
        process::descendants(restored)
            .into_iter()
            .find(|it| process::proc_text(*it, "comm") == "sleep\n")
    });
    kill(sleep.expect("it runs"), Signal::SIGKILL).expect("end the job");
    assert_eq!(process::exit_status(restored, PATIENCE), Some(128 + 9));
    assert_eq!(own(&["list", "--json"])["state"], "saved");
    place.make_directory("empty");
    assert!(
        place
            .tell(&["list", "empty"])
            .starts_with("no checkpoint, and no job that could go on, in ")
    );
}

#[test]
fn a_live_view() {
    let place = Workplace::new(User::Plain);
    let root = job(&place);
    let screen = Screen::new(&place);
    screen.press(&[&format!("{} top", rckpt_binary().display()), "Enter"]);
    let shown = screen.wait_for("bytes written, at most");
    for expected in
        [&root, "sleep 1000", " min ", "pause, at most", "q quit", "c take a checkpoint"]
    {
        assert!(shown.contains(expected), "no {expected}:\n{shown}");
    }
    assert!(
        shown.contains(&place.path("job").file_name().expect("it has one").display().to_string())
    );
    // Jobs of other tests may be there, too: the one that is chosen has to be this one.
    for _ in 0..200 {
        if screen.text().contains(&format!("in {}", place.path("job").display())) {
            break;
        }
        screen.press(&["Down"]);
    }
    screen.press(&["c"]);
    screen.wait_for("checkpoint ");
    let taken = poll(PATIENCE, || place.has("job/gen-000002").then_some(()));
    assert!(taken.is_some(), "{}", screen.text());
    screen.press(&["q"]);
    // The screen is as it was, and the shell goes on.
    let shown = screen.wait_for("here:");
    assert!(!shown.contains("pause, at most"), "{shown}");
    screen.press(&["stty -a | grep -o ' icanon'", "Enter"]);
    screen.wait_for("\n icanon");
}

#[test]
fn no_live_view_without_a_terminal() {
    let place = Workplace::new(User::Plain);
    let answer = place.ask(&["top"]);
    assert_eq!(answer.status, Some(1), "{answer:#?}");
    assert!(answer.words.contains("draws on a terminal"), "{answer:#?}");
    assert!(answer.words.contains("rckpt list"), "{answer:#?}");
}
