//! `rckpt core`: a debugger finds in a checkpoint what the program had.

use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::workplace::{User, Workplace};

#[test]
fn a_debugger_opens_a_checkpoint() {
    let place = Workplace::new(User::Plain);
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/studied.c");
    let mut compiler = place.command("gcc");
    compiler.args(["-O0", "-g", "-pthread", "-o", "studied", source]);
    assert_eq!(process::exit_status(place.start(compiler), PATIENCE), Some(0));
    let job = place.start(place.command("./studied"));
    let ready = poll(PATIENCE, || place.text("stdout").contains("ready").then_some(()));
    assert!(ready.is_some(), "{}", place.text("stderr"));
    place.tell(&["dump", &job.to_string(), "--dir", "job", "--kill"]);

    let told = place.tell(&["core", "job", "--output", "found"]);
    assert!(told.contains("2 threads") && told.contains("/studied found"), "{told}");
    let mut gdb = place.command("gdb");
    gdb.args(["--batch", "--nx", "-ex", "thread apply all backtrace"]);
    for expression in ["answer", "on_the_heap", "in_shared_memory"] {
        gdb.args(["-ex", &format!("print {expression}")]);
    }
    let gdb = place.start(gdb.args(["./studied", "found"]));
    assert_eq!(process::exit_status(gdb, PATIENCE), Some(0), "{}", place.text("stderr"));
    let found = place.text("stdout");
    for expected in [
        "stand_aside (argument=0x0)",
        "stand_here (depth=0)",
        "stand_here (depth=3)",
        "main ()",
        "= 42",
        "\"from the heap\"",
        "\"from shared memory\"",
        &format!("LWP {job}"),
    ] {
        assert!(found.contains(expected), "no {expected}: {found}\n{}", place.text("stderr"));
    }
}

#[test]
fn a_core_file_of_what_is_not_there_is_refused() {
    let place = Workplace::new(User::Plain);
    let job = place.start(place.command("sleep").arg("1000"));
    poll(PATIENCE, || (process::proc_text(job, "comm") == "sleep\n").then_some(()));
    place.tell(&["dump", &job.to_string(), "--dir", "job"]);
    let answer = place.ask(&["core", "job", "--pid", "1"]);
    assert_eq!(answer.status, Some(1), "{answer:#?}");
    assert!(answer.words.contains("no process 1; it has"), "{answer:#?}");
    assert!(!place.has("core.1"));
    place.write("taken", "precious");
    let answer = place.ask(&["core", "job", "--output", "taken"]);
    assert_eq!(answer.status, Some(1), "{answer:#?}");
    assert_eq!(place.text("taken"), "precious");
}
