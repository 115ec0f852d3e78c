//! The library as other programs use it: the example is run, with the built program behind it.

use std::fs;
use std::path::Path;

use crate::harness::process::{self, PATIENCE};
use crate::harness::workplace::{User, Workplace, publish, rckpt_binary};

fn a_program_saves_a_job_and_has_it_go_on(user: User) {
    let place = Workplace::new(user);
    // Built along with the tests.
    let built = Path::new(env!("CARGO_BIN_EXE_rckpt")).with_file_name("examples").join("embed");
    let example = publish(&format!("embed-{}", std::process::id()), |path| {
        fs::copy(&built, path).unwrap_or_else(|error| panic!("{}: {error}", built.display()));
    });
    let mut command = place.command(&example);
    let child = place.start(command.arg("job").env("RCKPT_PROGRAM", rckpt_binary()));
    let status = process::exit_status(child, PATIENCE);
    let (said, words) = (place.text("stdout"), place.text("stderr"));
    fs::remove_file(example).expect("remove it");
    assert_eq!(status, Some(0), "{said}{words}");
    let lines: Vec<&str> = said.lines().collect();
    let expected = [
        ("saved in ", "the job is gone: signal: 9 (SIGKILL)"),
        ("process ", " was sh"),
        ("it runs again as process ", ""),
        ("it ended with exit status: 20", ""),
        ("RCKPT-E0201: ", "; rckpt list shows your jobs, ps all processes"),
    ];
    // The job may have been caught with its `sleep`, which is a process, too.
    let lines: Vec<&str> = lines.into_iter().filter(|line| !line.ends_with(" was sleep")).collect();
    assert_eq!(lines.len(), expected.len(), "{said}{words}");
    for (line, (begin, end)) in lines.iter().zip(expected) {
        assert!(line.starts_with(begin) && line.ends_with(end), "{line:?}: {said}{words}");
    }
}

#[test]
fn the_example_works() {
    a_program_saves_a_job_and_has_it_go_on(User::Plain);
}

#[test]
fn the_example_works_for_the_caller() {
    a_program_saves_a_job_and_has_it_go_on(User::Caller);
}
