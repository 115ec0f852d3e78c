//! What `rckpt inspect` and `rckpt diff` show of checkpoints, for scripts and in a browser.

use std::fs;

use serde_json::Value;

use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::workplace::{User, Workplace};

/// A page that shows another one in three windows, from wide to narrow, and says how wide it came to be,
/// and how many of its tables of memory did not fit.
const WINDOWS: &str = "<!DOCTYPE html><title>windows</title>\
    <iframe src=page.html width=1280 height=900></iframe>\
    <iframe src=page.html width=500 height=900></iframe>\
    <iframe src=page.html width=400 height=900></iframe>\
    <script>window.onload = () => {\
      const told = [...document.querySelectorAll('iframe')].map(frame => {\
        const page = frame.contentDocument;\
        for (const more of page.querySelectorAll('details')) more.open = true;\
        const root = page.documentElement;\
        const empty = [...page.querySelectorAll('section')].filter(it => it.clientHeight < 20);\
        return [root.clientWidth, root.scrollWidth, page.querySelectorAll('section').length,\
          empty.length, page.querySelectorAll('b, img, script').length,\
          page.querySelectorAll('svg').length,\
          [...page.querySelectorAll('.scroll:has(.swatch)')].filter(\
            it => it.scrollWidth > it.clientWidth).length].join(' ');\
      });\
      document.body.innerHTML = '<pre>told: ' + told.join(' | ') + ' :told</pre>';\
    };</script>";

/// Starts the job, and takes two checkpoints of it between which it does a bit of everything.
fn two_checkpoints(place: &Workplace) {
    place.write("connected.py", include_str!("../programs/connected.py"));
    let run = ["run", "-q", "--dir", "job", "--", "/usr/bin/python3", "connected.py"];
    let supervisor = place.start(place.rckpt(&run));
    let says = |word: &str| {
        let said = poll(PATIENCE, || place.text("stdout").contains(word).then_some(()));
        assert!(said.is_some(), "{}", place.text("stderr"));
    };
    says("ready");
    let root = process::children(supervisor)[0].to_string();
    place.tell(&["dump", &root]);
    place.write("more", "");
    says("done");
    place.tell(&["dump", &root]);
}

fn json(place: &Workplace, words: &[&str]) -> Value {
    let text = place.tell(words);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn looked_at_in_a_browser(user: User) {
    let place = Workplace::new(user);
    two_checkpoints(&place);
    assert_eq!(place.tell(&["inspect", "job", "--html", "page.html"]), "page.html\n");
    let page = place.text("page.html");
    for loaded in ["http://", "https://", "<script", "<img", "<b>", "@import", "url(", "\u{1b}"] {
        assert!(!page.contains(loaded), "the page has {loaded}");
    }
    assert!(page.contains("&lt;/script&gt;&lt;b&gt;"), "the process has lost its name");
    place.write("windows.html", WINDOWS);
    let mut browser = place.command("chromium-headless-shell");
    browser
        .args(["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"])
        .args(["--allow-file-access-from-files", "--enable-logging=stderr"])
        .arg(format!("--user-data-dir={}", place.path("profile").display()))
        .arg(format!("file://{}", place.path("windows.html").display()))
        .stdout(place.stream("seen"))
        .stderr(place.stream("complaints"));
    let browser = place.start(browser);
    let status = process::exit_status(browser, PATIENCE);
    let (seen, complaints) = (place.text("seen"), place.text("complaints"));
    assert_eq!(status, Some(0), "{complaints}");
    // What it tries to load or to run, and may not, is said there, too.
    assert!(!complaints.contains("CONSOLE"), "{complaints}");
    let told = seen.split("told: ").nth(1).and_then(|rest| rest.split(" :told").next());
    let told = told.unwrap_or_else(|| panic!("nothing was told: {seen}\n{complaints}"));
    for (window, wide) in told.split(" | ").zip([1280, 500, 400]) {
        let numbers: Vec<i32> = window.split(' ').map(|it| it.parse().expect("numbers")).collect();
        let [width, content, sections, empty, foreign, pictures, cut] = numbers[..] else {
            panic!("{told}");
        };
        assert!((wide - 20..=wide).contains(&width) && content <= width, "{told}");
        assert_eq!((sections, empty, foreign), (8, 0, 0), "{told}");
        // Four plots, the descriptors, and the memory of three processes.
        assert!(pictures > 8, "{told}");
        // On a telephone they can be moved.
        assert!(cut == 0 || wide < 500, "{told}");
    }
}

#[test]
fn a_page_for_a_browser() {
    looked_at_in_a_browser(User::Plain);
}

#[test]
fn a_page_for_the_callers_browser() {
    looked_at_in_a_browser(User::Caller);
}

#[test]
fn what_is_in_a_checkpoint_and_what_changed() {
    let place = Workplace::new(User::Plain);
    two_checkpoints(&place);
    let report = json(&place, &["inspect", "job", "--json"]);
    assert_eq!(report["processes"].as_array().map(Vec::len), Some(3));
    assert_eq!(report["timers"][0]["every"], 5.0);
    assert_eq!(report["making"]["parent"], "gen-000001");
    assert!(report["making"]["pause_ms"].as_f64() > Some(0.0), "{}", report["making"]);
    let history = report["history"]["checkpoints"].as_array().expect("there is one");
    assert_eq!(history.len(), 2);
    assert_eq!((&history[0]["parent"], &history[1]["present"]), (&Value::Null, &Value::Bool(true)));
    let kinds = |kind: &str| {
        let files = report["open_files"].as_array().into_iter().flatten();
        files.filter(|file| file["kind"] == kind).cloned().collect::<Vec<_>>()
    };
    let pair = kinds("socket");
    assert_eq!(pair[0]["leads_to"], serde_json::json!([pair[1]["number"]]));
    assert_eq!(kinds("epoll")[0]["leads_to"].as_array().map(Vec::len), Some(1));
    assert_eq!(report["sockets"][1]["queued_bytes"], 5);
    let log = format!("{}/log", place.path("").canonicalize().expect("it is there").display());
    let fate = |report: &Value| {
        let files = report["files"].as_array().into_iter().flatten();
        files
            .filter(|it| it["path"] == log.as_str())
            .map(|it| it["fate"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(fate(&report), ["used"]);
    let earlier = json(&place, &["inspect", "job", "--at", "1", "--json"]);
    // The job has it open, and would write to it while it is cut.
    assert_eq!(fate(&earlier), ["refused"]);
    process::kill_descendants();
    let earlier = json(&place, &["inspect", "job", "--at", "1", "--json"]);
    assert_eq!(fate(&earlier), ["cut"]);
    let words = place.tell(&["inspect", "job"]);
    for expected in ["made        on top of gen-000001", "setitimer (real time)", "connections"] {
        assert!(words.contains(expected), "no {expected}: {words}");
    }

    let report = json(&place, &["diff", "job", "--json"]);
    assert_eq!(report["born"].as_array().map(Vec::len), Some(1));
    assert_eq!(report["ended"], serde_json::json!([]));
    let changed: u64 = report["pages"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|kind| kind["changed"].as_u64().unwrap_or(0) + kind["new"].as_u64().unwrap_or(0))
        .sum();
    // A quarter of a mebibyte was written, and a little more.
    assert!((64..2048).contains(&changed), "{}", report["pages"]);
    let opened = &report["processes"][0]["opened"];
    assert!(opened[0]["what"].as_str().is_some_and(|what| what.contains("tcp")), "{report}");
    let files = report["files"].as_array().into_iter().flatten();
    let grown: Vec<_> = files.filter(|file| file["path"] == log.as_str()).collect();
    assert_eq!((&grown[0]["bytes_before"], &grown[0]["bytes"]), (&0.into(), &5.into()));
    let words = place.tell(&["diff", "job/gen-000001", "job/gen-000002"]);
    assert!(words.contains("  ~ ") && words.contains("private memory"), "{words}");
    let answer = place.ask(&["diff", "job/gen-000001"]);
    assert_eq!(answer.status, Some(1), "{answer:#?}");
    assert!(answer.words.contains("no checkpoint before"), "{answer:#?}");
}

/// How a checkpoint was made goes with it, and its absence is no fault.
#[test]
fn how_a_checkpoint_was_made_goes_with_it() {
    let place = Workplace::new(User::Plain);
    let job = place.start(place.command("sleep").arg("1000"));
    poll(PATIENCE, || (process::proc_text(job, "comm") == "sleep\n").then_some(()));
    place.tell(&["dump", &job.to_string(), "--dir", "job"]);
    let copied = place.start(place.command("cp").args(["-a", "job/gen-000001", "alone"]));
    assert_eq!(process::exit_status(copied, PATIENCE), Some(0));
    let report = json(&place, &["inspect", "alone", "--json"]);
    assert_eq!(report["history"]["checkpoints"].as_array().map(Vec::len), Some(1));
    fs::remove_file(place.path("alone/made.json")).expect("it is there");
    let report = json(&place, &["inspect", "alone", "--json"]);
    assert_eq!(report["making"], Value::Null);
    place.tell(&["inspect", "alone", "--html", "page.html"]);
    place.tell(&["verify", "alone", "--deep"]);
}
