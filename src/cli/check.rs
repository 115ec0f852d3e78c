//! `rckpt check`: what this machine allows, tried and not guessed, and what would block a job.

mod disk;
mod job;
mod limits;
mod line;
mod machine;
mod program;
mod text;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use nix::unistd::{self, Pid};
use serde::Serialize;

use crate::job::prediction::Prediction;
use crate::model::code::attaching;
use crate::sys::clone::effective_capabilities;
use crate::sys::features::Features;
use crate::sys::place::Place;

use self::line::{Grade, Line};
use self::text::Part;
use super::failure::{self, Failure};
use super::{options, output};

/// Tell what this machine allows, by trying it, and what would block a job
#[derive(clap::Args)]
pub struct Arguments {
    /// A process: tell what would block a checkpoint of it and its children, and what one would come to
    #[arg(value_parser = options::pid, conflicts_with = "command")]
    pid: Option<Pid>,
    /// Where checkpoints would go (default: the current directory)
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Report as JSON
    #[arg(long)]
    json: bool,
    /// A command: tell what is known of it without running it
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Everything that was found out.
#[derive(Debug, Serialize)]
struct Report<'a> {
    verdict: &'a str,
    grade: Grade,
    features: &'a Features,
    /// What can be said of the machine and the place for checkpoints.
    lines: &'a [Line],
    place: Option<&'a Place>,
    /// What can be said of the job or the command.
    job: &'a [Line],
    prediction: Option<Prediction>,
}

/// Checks.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { pid, dir, json, command } = arguments;
    let features = Features::probe().map_err(|error| {
        let words = format_args!("rckpt does not work here: {}", failure::chain(&error));
        Failure::environment(attaching::MACHINE_UNREADABLE, words)
            .hint("more processes are needed: raise ulimit -u, or end others of yours")
    })?;
    let capabilities = effective_capabilities().map_err(|error| {
        let words = format_args!("ask for capabilities: {error}");
        Failure::environment(attaching::MACHINE_UNREADABLE, words)
    })?;
    let mut lines = machine::assess(&features, capabilities);
    lines.extend(limits::assess());
    let directory = dir.unwrap_or_else(|| PathBuf::from("."));
    let (about_disk, place) = disk::assess(&directory);
    lines.extend(about_disk);
    let mut about_job = Vec::new();
    let mut prediction = None;
    if let Some(program) = command.first() {
        about_job.push(program::assess(program));
        about_job.extend(program::outputs(Path::new(".")));
    }
    if let Some(pid) = pid {
        // Neither would be there yet.
        let generation = options::absolute_path(&directory)?.join("job/generation");
        let found = job::assess(pid, &generation, place.as_ref());
        about_job.extend(found.lines);
        prediction = found.prediction;
    }
    let (grade, verdict) = verdict(&lines, &about_job, pid);
    if json {
        let (lines, job, place) = (&lines, &about_job, place.as_ref());
        let verdict = &verdict;
        output::print_json(&Report {
            verdict,
            grade,
            features: &features,
            lines,
            place,
            job,
            prediction,
        })?;
    } else {
        let mut parts = Vec::new();
        if !about_job.is_empty() {
            let heading = pid.map_or_else(|| "command".to_owned(), |pid| format!("job of {pid}"));
            parts.push(Part { heading, lines: &about_job });
        }
        parts.push(Part { heading: heading(&features), lines: &lines });
        output::print(text::render(&verdict, &parts))?;
    }
    Ok(u8::from(grade == Grade::Fails))
}

/// The whole in one line, worst first: a machine that cannot do it, then a job that cannot be saved.
fn verdict(machine: &[Line], job: &[Line], pid: Option<Pid>) -> (Grade, String) {
    let count = |lines: &[Line], grade| lines.iter().filter(|line| line.grade == grade).count();
    let things = |number: usize| match number {
        1 => "1 thing stands".to_owned(),
        number => format!("{number} things stand"),
    };
    let failing = machine.iter().find(|line| line.grade == Grade::Fails);
    let (less, in_the_way) = (count(machine, Grade::Less), count(job, Grade::Fails));
    let warned = count(job, Grade::Less);
    if let Some(line) = failing {
        return (Grade::Fails, format!("rckpt does not work here: {}", line.subject));
    }
    let subject =
        if pid.is_some() { "this job cannot be saved" } else { "this cannot be run and saved" };
    if in_the_way > 0 {
        return (Grade::Fails, format!("{subject}: {} in the way", things(in_the_way)));
    }
    let points = if less == 1 { "1 point" } else { "some points" };
    let grade = if less + warned > 0 { Grade::Less } else { Grade::Works };
    let words = match (pid, warned, less) {
        (Some(_), 0, _) => "nothing stands in the way of a checkpoint of this job".to_owned(),
        (Some(_), _, _) => "this job can be saved, with a warning".to_owned(),
        (None, _, 0) => "rckpt works here".to_owned(),
        (None, _, _) => format!("rckpt works here, with less in {points}"),
    };
    (grade, words)
}

/// What kind of machine and user this is about.
fn heading(features: &Features) -> String {
    let yama = match features.yama_scope {
        Some(scope) => format!("Yama ptrace_scope {scope}"),
        None => "without Yama".to_owned(),
    };
    format!("Linux {}, {yama}, user {}", features.kernel, unistd::geteuid())
}

/// Why no job can be brought back here, with the remedy; `None`: it can, as far as process ids go, or that
/// cannot be tried.
pub fn obstacle_to_restores() -> Option<(String, String)> {
    let line = machine::identity(&Features::probe_identity().ok()?, effective_capabilities().ok()?);
    match line.grade {
        Grade::Fails => Some((line.finding, line.remedy?.words().to_owned())),
        Grade::Works | Grade::Less => None,
    }
}

#[cfg(test)]
mod tests {
    use super::line::Remedy;
    use super::*;

    #[test]
    fn the_verdict_is_the_worst() {
        let good = || Line::works("a", "b");
        let less = || Line::less("a", "b", Remedy::own("c"));
        let bad = || Line::fails("a", "b", Remedy::own("c"));
        let check = |machine: &[Line], job: &[Line], expected: (Grade, &str)| {
            let pid = (!job.is_empty()).then(|| Pid::from_raw(1));
            let (grade, words) = verdict(machine, job, pid);
            assert_eq!(grade, expected.0, "{words}");
            assert!(words.contains(expected.1), "{words}");
        };
        check(&[good()], &[], (Grade::Works, "rckpt works here"));
        check(&[good(), less()], &[], (Grade::Less, "with less in 1 point"));
        check(&[good(), bad()], &[], (Grade::Fails, "does not work here: a"));
        check(&[good()], &[good()], (Grade::Works, "nothing stands in the way"));
        check(&[good()], &[less()], (Grade::Less, "with a warning"));
        check(&[good()], &[bad(), bad()], (Grade::Fails, "2 things stand in the way"));
    }
}
