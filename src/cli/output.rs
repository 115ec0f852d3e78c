//! Printing: words for people on standard error, results on standard output.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::job::report::Kind;
use crate::model::code::{Code, requests, supervising};

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
    say(format_args!("error[{}]: {}", failure.code, failure.message));
    if failure.kind == Kind::Internal {
        say("this should not happen: please report it, with the line above");
    }
    match &failure.hint {
        Some(hint) => say(format_args!("hint: {hint}")),
        None => say(format_args!("hint: rckpt explain {} says more", failure.code)),
    }
}

/// What failed, as JSON: `{"error": {"code": "RCKPT-E0201", ...}}`.
#[derive(Serialize)]
struct FailureReport<'a> {
    error: FailedRequest<'a>,
}

#[derive(Serialize)]
struct FailedRequest<'a> {
    code: Code,
    /// The codes of all that the message lists.
    details: &'a [Code],
    message: &'a str,
    hint: Option<&'a str>,
}

/// Prints what failed as JSON, for whoever asked for that, in the place of the report.
pub fn print_failure(failure: &Failure) {
    let Failure { code, details, message, hint, .. } = failure;
    let error = FailedRequest { code: *code, details, message, hint: hint.as_deref() };
    if print_json(&FailureReport { error }).is_err() {
        // Standard output takes nothing; standard error and the exit status still tell.
    }
}

/// Prints a result on standard output. A reader that has gone away (`| head`) is not an error.
pub fn print(text: impl fmt::Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::environment(
            requests::CANNOT_PRINT,
            format_args!("write to standard output: {error}"),
        )),
        _ => Ok(()),
    }
}

/// Prints a report as one JSON document on standard output.
pub fn print_json(report: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(report).map_err(|error| {
        Failure::internal(supervising::INTERNAL, format_args!("write the report as JSON: {error}"))
    })?;
    print(format_args!("{text}\n"))
}

/// Prints what clap has to say: help, the version, or what is wrong with the arguments.
pub fn print_clap(message: &clap::Error) {
    let printed = if message.use_stderr() {
        let words = message.render();
        let words = if io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
            words.ansi().to_string()
        } else {
            words.to_string()
        };
        let named = words.replacen("error:", &format!("error[{}]:", requests::USAGE), 1);
        io::stderr().lock().write_all(named.as_bytes())
    } else {
        message.print()
    };
    if printed.is_err() {
        // The stream is closed; the exit status still tells.
    }
}
