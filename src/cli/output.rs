//! Printing: words for people on standard error, results on standard output.

use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

use crate::job::report::Kind;

use super::failure::Failure;
use super::options;

/// Says one line to the person, on standard error.
pub fn say(words: impl fmt::Display) {
    // Errors quote paths and command lines, which may come from anybody.
    let words = words.to_string();
    let lines: Vec<_> = words.split('\n').map(options::printable).collect();
    if writeln!(io::stderr().lock(), "rckpt: {}", lines.join("\n")).is_err() {
        // Standard error is closed: there is nobody to tell, and no other place to tell it.
    }
}

/// Says what failed, and what to do about it.
pub fn say_failure(failure: &Failure) {
    say(&failure.message);
    if failure.kind == Kind::Internal {
        say("this should not happen: please report it, with the line above");
    }
    if let Some(hint) = &failure.hint {
        say(format_args!("hint: {hint}"));
    }
}

/// Prints a result on standard output. A reader that has gone away (`| head`) is not an error.
pub fn print(text: impl fmt::Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::environment(format_args!("write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints a report as one JSON document on standard output.
pub fn print_json(report: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(report)
        .map_err(|error| Failure::internal(format_args!("write the report as JSON: {error}")))?;
    print(format_args!("{text}\n"))
}

/// Prints what clap has to say: help, the version, or what is wrong with the arguments.
pub fn print_clap(message: &clap::Error) {
    if message.print().is_err() {
        // The stream is closed; the exit status still tells.
    }
}
