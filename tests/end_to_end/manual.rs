//! The manual: every command in a `console` block of its pages is run as it stands there, in the order of
//! the page, in one directory, as the plain user; and what it prints is what the page shows. Links lead
//! somewhere, and every page is in the table of contents.
//!
//! In a `console` block `$ ` begins a command, and the lines behind it are what it prints on both streams:
//! `...` in a line stands for anything, a line of `...` alone for any lines. A block with a file's name
//! behind its language (`sh count.sh`) is that file. A `transcript` block is one command, whose output may
//! show others.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::guide;
use crate::harness::process;
use crate::harness::workplace::{User, Workplace, rckpt_binary};

/// A command of a page, and what it is to print.
struct Step {
    command: String,
    expected: Vec<String>,
}

/// What a page has its reader do.
#[derive(Default)]
struct Lesson {
    files: Vec<(String, String)>,
    steps: Vec<Step>,
}

fn lesson(page: &str) -> Lesson {
    let mut lesson = Lesson::default();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(language) = line.strip_prefix("```") else { continue };
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        if let Some((_, name)) = language.split_once(' ') {
            let text = block.iter().map(|line| format!("{line}\n")).collect();
            lesson.files.push((name.to_owned(), text));
        }
        if language == "console" || language == "transcript" {
            for (number, line) in block.into_iter().enumerate() {
                let command = line.strip_prefix("$ ");
                let command = command.filter(|_| language == "console" || number == 0);
                match (command, lesson.steps.last_mut()) {
                    (Some(command), _) => lesson
                        .steps
                        .push(Step { command: command.to_owned(), expected: Vec::new() }),
                    (None, Some(step)) if step.command.ends_with('\\') => {
                        step.command = format!("{}\n{line}", step.command);
                    }
                    (None, Some(step)) => step.expected.push(line.to_owned()),
                    (None, None) => panic!("{line:?} stands before any command"),
                }
            }
        }
    }
    lesson
}

/// Whether a line is what the page shows, where `...` stands for anything.
fn is_like(line: &str, shown: &str) -> bool {
    let mut parts = shown.split("...");
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some((_, behind)) = rest.split_once(part) else { return false };
        rest = behind;
    }
    rest.ends_with(last)
}

/// Whether lines are what the page shows, where a line of `...` stands for any lines.
fn are_like(lines: &[&str], shown: &[String]) -> bool {
    match (shown.split_first(), lines.split_first()) {
        (None, _) => lines.is_empty(),
        (Some((mark, behind)), _) if mark.trim() == "..." => {
            (0..=lines.len()).any(|skipped| are_like(&lines[skipped..], behind))
        }
        (Some((shown, behind)), Some((line, rest))) => {
            is_like(line, shown) && are_like(rest, behind)
        }
        (Some(_), None) => false,
    }
}

/// Does what a page says.
fn follow(page: &str) {
    let Lesson { files, steps } = lesson(page);
    assert!(!steps.is_empty(), "there is nothing to do");
    let place = Workplace::new(User::Plain);
    std::os::unix::fs::symlink(rckpt_binary(), place.path("rckpt")).expect("make a link");
    for (name, text) in &files {
        place.write(name, text);
    }
    let mut script = String::new();
    for (number, step) in steps.iter().enumerate() {
        script.push_str(&format!(
            "{{ {}\n}} > .shown/{number} 2>&1; echo $? > .shown/{number}.status\n",
            step.command
        ));
    }
    place.make_directory(".shown");
    let mut shell = place.command("sh");
    let child = place.start(shell.args(["-c", &script]).env("PATH", guide::path(&place)));
    let status = process::exit_status(child, Duration::from_secs(120));
    assert!(status.is_some(), "it does not come to an end: {}", place.text("stderr"));
    for (number, Step { command, expected }) in steps.iter().enumerate() {
        let said = place.text(&format!(".shown/{number}"));
        let lines: Vec<&str> = said.lines().collect();
        if expected.is_empty() {
            let status = place.text(&format!(".shown/{number}.status"));
            assert_eq!(status, "0\n", "$ {command}\n{said}");
        } else {
            let shown = expected.join("\n");
            assert!(are_like(&lines, expected), "$ {command}\n{said}\nThe page shows:\n{shown}");
        }
    }
}

#[test]
fn what_a_page_shows_is_compared() {
    let check = |lines: &[&str], shown: &[&str], expected| {
        let shown: Vec<String> = shown.iter().map(|&line| line.to_owned()).collect();
        assert_eq!(are_like(lines, &shown), expected, "{lines:?} {shown:?}");
    };
    check(&["a", "b"], &["a", "b"], true);
    check(&["a", "b"], &["a"], false);
    check(&["a"], &["a", "b"], false);
    check(&["a 12 b 7 s"], &["a ... b ... s"], true);
    check(&["a 12 b 7 m"], &["a ... b ... s"], false);
    check(&["a", "b", "c"], &["...", "c"], true);
    check(&["a", "b", "c"], &["a", "..."], true);
    check(&["a", "b", "c"], &["...", "d"], false);
}

#[test]
fn readme() {
    follow(include_str!("../../README.md"));
}

#[test]
fn tutorial() {
    follow(include_str!("../../docs/TUTORIAL.md"));
}

#[test]
fn faq() {
    follow(include_str!("../../docs/FAQ.md"));
}

#[test]
fn coming_from_another_checkpointer() {
    follow(include_str!("../../docs/MIGRATING.md"));
}

/// Nothing is left of the demonstration but what was learnt.
#[test]
fn demonstration() {
    let place = Workplace::new(User::Plain);
    place.make_directory("temporary");
    let mut demo = place.rckpt(&["demo"]);
    let child = place.start(demo.env("TMPDIR", place.path("temporary")));
    let status = process::exit_status(child, Duration::from_secs(120));
    let said = place.text("stdout");
    assert_eq!(status, Some(0), "{said}{}", place.text("stderr"));
    for words in ["$ rckpt dump", "$ kill -9", "$ rckpt restore job", "prime 18 is 61", "Now with"]
    {
        assert!(said.contains(words), "{words:?} is missing in {said}");
    }
    let left: Vec<_> = fs::read_dir(place.path("temporary")).expect("list it").collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Where a restore is not allowed, the demonstration says so before anything else, as the doctor does.
#[test]
fn demonstration_where_namespaces_are_forbidden() {
    let place = Workplace::new(User::Plain);
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && \
                  exec setpriv --ambient-caps=-all --inh-caps=-all --bounding-set=-all -- \"$0\" demo";
    let mut command = place.command("unshare");
    command.args(["--user", "--map-current-user", "--keep-caps", "--", "sh", "-c", script]);
    let child = place.start(command.arg(rckpt_binary()));
    assert_eq!(process::exit_status(child, Duration::from_secs(60)), Some(1));
    let words = place.text("stderr");
    for word in ["error[RCKPT-E0750]", "user.max_user_namespaces"] {
        assert!(words.contains(word), "{word} is missing in {words:?}");
    }
}

/// The pages of the manual, by their names.
fn pages() -> Vec<(String, String)> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let entries = fs::read_dir(&docs).expect("list the manual");
    let mut pages: Vec<PathBuf> = entries.map(|entry| entry.expect("list it").path()).collect();
    pages.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.push(docs.join("../README.md"));
    let name = |path: &Path| path.strip_prefix(&docs).expect("it is there").display().to_string();
    let text = |path: &PathBuf| fs::read_to_string(path).expect("read a page");
    pages.iter().map(|path| (name(path), text(path))).collect()
}

/// Where the links of a page lead.
fn links(page: &str) -> impl Iterator<Item = &str> {
    page.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target)
}

/// The name of a heading in links, as mdBook and GitHub make it.
fn anchor(heading: &str) -> String {
    let letters = heading.to_lowercase();
    let kept = letters.chars().filter(|it| it.is_alphanumeric() || " -_".contains(*it));
    kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect()
}

fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter_map(|line| {
        let title = line.trim_start_matches('#');
        (title.len() < line.len()).then_some(title.trim())
    });
    headings.map(anchor).collect()
}

#[test]
fn links_lead_somewhere() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    for (name, text) in pages() {
        let here = docs.join(&name);
        for link in links(&text).filter(|link| !link.contains("://") && !link.contains(' ')) {
            let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => here.clone(),
                path => here.parent().expect("it has one").join(path),
            };
            assert!(target.exists(), "{name} links to {link}, which is not there");
            if !fragment.is_empty() {
                let page = fs::read_to_string(&target).expect("read a page");
                assert!(anchors(&page).contains(fragment), "{name} links to {link}");
            }
        }
    }
}

#[test]
fn every_page_is_in_the_table_of_contents() {
    let pages = pages();
    let contents = pages.iter().find(|(name, _)| name == "SUMMARY.md").expect("there is one");
    let listed: BTreeSet<&str> = links(&contents.1).collect();
    for (name, _) in pages.iter().filter(|(name, _)| name != "SUMMARY.md" && !name.contains('/')) {
        assert!(listed.contains(name.as_str()), "{name} is not in SUMMARY.md");
    }
}
