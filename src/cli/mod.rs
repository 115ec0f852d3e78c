//! The command line: raw arguments become validated options, and those become one call.
//!
//! The only room that prints, and that turns the kind of an error into an exit status. Each
//! subcommand has one file with its `Arguments` and an `execute` that gives the exit status; what
//! they share is in [`failure`], [`options`] and [`output`].

mod check;
mod completions;
mod core;
mod demo;
mod diff;
mod dump;
mod explain;
mod failure;
mod hold;
mod inspect;
mod list;
mod man;
mod metrics;
mod narrator;
mod options;
mod output;
mod progress;
mod prune;
mod restore;
mod run;
mod spark;
mod supervision;
mod top;
mod verify;
mod voice;
mod wrong_way;

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, Subcommand};

use crate::sys::signal::survive_file_size_limit;

use self::failure::Failure;
use self::voice::Voice;

/// Runs the command that `arguments` (program name first) ask for.
pub fn run(arguments: std::env::ArgsOs) -> ExitCode {
    let arguments: Vec<OsString> = arguments.collect();
    let convention = Convention::of(&arguments);
    // Without it nothing is lost but the words.
    survive_file_size_limit().unwrap_or_default();
    match CommandLine::try_parse_from(&arguments) {
        Ok(CommandLine { command, voice }) => {
            match voice.take(&arguments).and_then(|()| command.execute()) {
                Ok(status) => {
                    voice::end(status);
                    ExitCode::from(status)
                }
                Err(failure) => {
                    if wants_json(&arguments) {
                        output::print_failure(&failure);
                    }
                    output::say_failure(&failure);
                    let status = failure.status.unwrap_or(convention.failed());
                    voice::end(status);
                    ExitCode::from(status)
                }
            }
        }
        Err(message) => {
            output::print_clap(&message, missing_dashes(&message, &arguments).as_deref());
            ExitCode::from(if message.use_stderr() { convention.misused() } else { 0 })
        }
    }
}

/// What to type for a `rckpt run` whose command does not stand behind `--`, which is easily forgotten.
fn missing_dashes(message: &clap::Error, arguments: &[OsString]) -> Option<String> {
    if message.kind() != ErrorKind::UnknownArgument
        || arguments.get(1).is_none_or(|word| word != "run")
        || arguments.iter().any(|word| word == "--")
    {
        return None;
    }
    let Some(ContextValue::String(unknown)) = message.get(ContextKind::InvalidArg) else {
        return None;
    };
    // What looks like an option is one that does not exist.
    let place = arguments.iter().position(|word| word.to_str() == Some(unknown.as_str()))?;
    if unknown.starts_with('-') {
        return None;
    }
    let words = |words: &[OsString]| {
        let words = words.iter().map(|word| word.display().to_string());
        words.collect::<Vec<_>>().join(" ")
    };
    let (before, command) = arguments[1..].split_at(place - 1);
    Some(format!(
        "the job's command stands behind --: rckpt {} -- {}",
        words(before),
        words(command)
    ))
}

/// Whether rckpt, and not the job, was told to report as JSON.
fn wants_json(arguments: &[OsString]) -> bool {
    let mut own = arguments.iter().skip(1).take_while(|word| *word != "--");
    own.any(|word| word == "--json")
}

/// Checkpoints a running tree of Linux processes from outside, without privilege, and restores it
/// later.
#[derive(Parser)]
#[command(name = "rckpt", version, disable_help_subcommand = true, max_term_width = 100)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    voice: Voice,
}

/// One variant for each subcommand, in the order in which help lists them.
#[derive(Subcommand)]
enum Command {
    Run(run::Arguments),
    Dump(dump::Arguments),
    Restore(restore::Arguments),
    Hold(hold::HoldArguments),
    Release(hold::ReleaseArguments),
    List(list::Arguments),
    Top(top::Arguments),
    Inspect(inspect::Arguments),
    Diff(diff::Arguments),
    Core(core::Arguments),
    Verify(verify::Arguments),
    Prune(prune::Arguments),
    Check(check::Arguments),
    Explain(explain::Arguments),
    Demo(demo::Arguments),
    Completions(completions::Arguments),
    Man(man::Arguments),
}

impl Command {
    /// Does what was asked and gives the exit status.
    fn execute(self) -> Result<u8, Failure> {
        match self {
            Self::Run(arguments) => run::execute(arguments),
            Self::Dump(arguments) => dump::execute(arguments),
            Self::Restore(arguments) => restore::execute(arguments),
            Self::Hold(arguments) => hold::hold(arguments),
            Self::Release(arguments) => hold::release(arguments),
            Self::List(arguments) => list::execute(arguments),
            Self::Top(arguments) => top::execute(arguments),
            Self::Inspect(arguments) => inspect::execute(arguments),
            Self::Diff(arguments) => diff::execute(arguments),
            Self::Core(arguments) => core::execute(arguments),
            Self::Verify(arguments) => verify::execute(arguments),
            Self::Prune(arguments) => prune::execute(arguments),
            Self::Check(arguments) => check::execute(arguments),
            Self::Explain(arguments) => explain::execute(arguments),
            Self::Demo(arguments) => demo::execute(arguments),
            Self::Completions(arguments) => completions::execute(arguments),
            Self::Man(arguments) => man::execute(arguments),
        }
    }
}

/// What a command's exit status means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Convention {
    /// `run` and `restore`: low numbers are the job's own, so rckpt's own failures are 125.
    Job,
    /// All others: 1 refused or failed, 2 wrong usage.
    Plain,
}

impl Convention {
    /// The convention of the command that `arguments` name, also when they cannot be parsed.
    fn of(arguments: &[OsString]) -> Self {
        match arguments.get(1).map(OsString::as_os_str) {
            Some(name) if name == OsStr::new("run") || name == OsStr::new("restore") => Self::Job,
            _ => Self::Plain,
        }
    }

    const fn failed(self) -> u8 {
        match self {
            Self::Job => 125,
            Self::Plain => 1,
        }
    }

    const fn misused(self) -> u8 {
        match self {
            Self::Job => 125,
            Self::Plain => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{CommandLine, Convention, missing_dashes};

    #[test]
    fn the_table_of_arguments_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn dashes_that_were_forgotten_are_put_in() {
        let check = |line: &str, expected: Option<&str>| {
            let arguments: Vec<_> = line.split(' ').map(Into::into).collect();
            let message = CommandLine::try_parse_from(&arguments).err().expect("it is wrong");
            assert_eq!(missing_dashes(&message, &arguments).as_deref(), expected, "{line}");
        };
        check("rckpt run ls -l", Some("the job's command stands behind --: rckpt run -- ls -l"));
        check(
            "rckpt run --every 5m ./sim in",
            Some("the job's command stands behind --: rckpt run --every 5m -- ./sim in"),
        );
        check("rckpt run --evry 5m ./sim", None);
        check("rckpt run --evry 5m -- ./sim", None);
        check("rckpt run --every", None);
        check("rckpt dump 12 ls", None);
    }

    #[test]
    fn run_and_restore_keep_low_statuses_for_the_job() {
        let check = |words: &[&str], expected: Convention| {
            let arguments: Vec<_> = words.iter().map(Into::into).collect();
            assert_eq!(Convention::of(&arguments), expected, "{words:?}");
        };
        check(&["rckpt"], Convention::Plain);
        check(&["rckpt", "run", "--nonsense"], Convention::Job);
        check(&["rckpt", "restore"], Convention::Job);
        check(&["rckpt", "dump", "run"], Convention::Plain);
    }
}
