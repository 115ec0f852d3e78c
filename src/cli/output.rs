//! Printing: words for people on standard error, results on standard output.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, IsTerminal, Write};

use anstyle::AnsiColor;
use serde::Serialize;

use crate::job::report::Kind;
use crate::model::code::{Code, requests, supervising};

use super::failure::Failure;
use super::options;
use super::voice::{self, Weight};

/// Says what went wrong to the person, on standard error.
pub fn say(words: impl fmt::Display) {
    speak(Weight::Wrong, words);
}

/// Says what people want to know.
pub fn tell(words: impl fmt::Display) {
    speak(Weight::Usual, words);
}

/// Says what helps to find out what happened: with -vv.
pub fn most(words: impl fmt::Display) {
    speak(Weight::Most, words);
}

/// Says words of some weight.
pub fn speak(weight: Weight, words: impl fmt::Display) {
    // Errors quote paths and command lines, which may come from anybody.
    let words = words.to_string();
    let lines: Vec<_> = words.split('\n').map(options::printable).collect();
    let words = lines.join("\n");
    voice::log(&words);
    if !voice::says(weight) {
        return;
    }
    // Colours are left out where they are not wanted: NO_COLOR, CLICOLOR, TERM, no terminal.
    let words = format!("rckpt: {}\n", coloured(&words));
    if anstream::stderr().lock().write_all(words.as_bytes()).is_err() {
        // Standard error is closed: there is nobody to tell, and no other place to tell it.
    }
}

/// The same, with the word in front in the colour of what it says.
fn coloured(words: &str) -> Cow<'_, str> {
    let colours = [
        ("error[", "]:", AnsiColor::Red),
        ("warning", ":", AnsiColor::Yellow),
        ("hint", ":", AnsiColor::Cyan),
    ];
    let found = colours.into_iter().find_map(|(begin, end, colour)| {
        let rest = words.strip_prefix(begin)?;
        let length = begin.len() + rest.find(end)? + end.len();
        (rest.starts_with(end) || begin.ends_with('[')).then_some((length, colour))
    });
    let Some((length, colour)) = found else { return words.into() };
    let (head, rest) = words.split_at(length);
    let style = colour.on_default().bold();
    format!("{style}{head}{style:#}{rest}").into()
}

/// Says what failed, and what to do about it.
pub fn say_failure(failure: &Failure) {
    say(format_args!("error[{}]: {}", failure.code, failure.message));
    if failure.kind == Kind::Internal {
        say("this should not happen: please report it, with the line above");
    }
    match &failure.hint {
        Some(hint) => say(format_args!("hint: {hint}")),
        None if failure.details.is_empty() => say(format_args!("hint: {}", failure.code.remedy())),
        // What to do about each stands with it.
        None => say(format_args!("hint: rckpt explain {} says more", failure.details[0])),
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
/// `tip` is what to type instead, if that is known.
pub fn print_clap(message: &clap::Error, tip: Option<&str>) {
    let printed = if message.use_stderr() {
        let words = message.render();
        let words = if io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
            words.ansi().to_string()
        } else {
            words.to_string()
        };
        let named = words.replacen("error:", &format!("error[{}]:", requests::USAGE), 1);
        let named = match tip {
            Some(tip) => named.replacen("\n\n", &format!("\n\n  tip: {tip}\n\n"), 1),
            None => named,
        };
        io::stderr().lock().write_all(named.as_bytes())
    } else {
        message.print()
    };
    if printed.is_err() {
        // The stream is closed; the exit status still tells.
    }
}

#[cfg(test)]
mod tests {
    use super::coloured;

    #[test]
    fn only_the_word_in_front_is_coloured() {
        let check = |words: &str, expected: &str| {
            assert_eq!(coloured(words).replace('\u{1b}', "!"), expected);
        };
        check("hint: do warning: that", "![1m![36mhint:![0m do warning: that");
        check("error[RCKPT-E0101]: no", "![1m![31merror[RCKPT-E0101]:![0m no");
        check("hinted: x", "hinted: x");
        check("the error[1]: x", "the error[1]: x");
        check("", "");
    }
}
