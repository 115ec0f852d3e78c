//! `rckpt list`: the jobs of mine on this machine, or the checkpoints in a directory.
//!
//! [`left`] tells of jobs that have no supervisor to ask.

mod left;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::unistd::geteuid;
use serde::Serialize;

use crate::image::reader::{Reader, Trust};
use crate::job::control::client::{AskError, connections};
use crate::job::control::protocol::{Reply, Request, Status};
use crate::job::directory::{FindError, Generation, GenerationError, JobDirectory, find};
use crate::job::history;
use crate::job::left::directories_in;
use crate::job::run::DIRECTORY_VARIABLE;
use crate::job::supervisor::seconds_since_1970;
use crate::model::code::attaching;
use crate::model::id::Bytes;
use crate::model::number::{to_f64, to_u64};

pub use self::left::Condition;
use self::left::Left;
use super::failure::{Failure, chain};
use super::{options, output, spark};

/// How long a supervisor may take to say how its job is.
const PATIENCE: Duration = Duration::from_secs(5);

/// So many of its newest checkpoints are told of for each job.
const MOST_COSTS: usize = 120;
/// Of so many a picture is made.
const PICTURE_LETTERS: usize = 10;
/// So much of a command line fits beside the rest.
const COMMAND_LETTERS: usize = 100;

/// List my jobs on this machine, or the checkpoints in DIR
#[derive(clap::Args)]
pub struct Arguments {
    /// A job's directory
    dir: Option<PathBuf>,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// Lists.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { dir, json } = arguments;
    let now = seconds_since_1970(SystemTime::now());
    match (dir, json) {
        (Some(dir), true) => output::print_json(&checkpoints(&dir)?)?,
        (Some(dir), false) => output::print(render_checkpoints(&checkpoints(&dir)?, now))?,
        (None, true) => {
            let (jobs, left) = told_jobs()?;
            let jobs = jobs.into_iter().map(Listed::Supervised);
            output::print_json(
                &jobs.chain(left.into_iter().map(Listed::Left)).collect::<Vec<_>>(),
            )?;
        }
        (None, false) => {
            let (jobs, left) = told_jobs()?;
            output::print(render_jobs(&jobs, &left, now))?;
        }
    }
    Ok(0)
}

/// My jobs, and those that nobody answers for; of supervisors that are silent people are told.
fn told_jobs() -> Result<(Vec<Job>, Vec<Left>), Failure> {
    let (jobs, silent) = jobs(&mut Histories::new())?;
    silent.iter().for_each(tell_silence);
    let mut places = std::env::current_dir().map(|it| directories_in(&it)).unwrap_or_default();
    places.extend(std::env::var_os(DIRECTORY_VARIABLE).map(PathBuf::from));
    let left = left_of(&jobs, &places);
    Ok((jobs, left))
}

fn left_of(jobs: &[Job], places: &[PathBuf]) -> Vec<Left> {
    let supervised: Vec<&str> = jobs.iter().map(|job| job.id.as_str()).collect();
    left::find(&supervised, places)
}

/// A job of the list, as JSON: its `state` tells which fields there are.
#[derive(Serialize)]
#[serde(untagged)]
enum Listed {
    Supervised(Job),
    Left(Left),
}

/// A job under supervision.
#[derive(Clone, Debug, Serialize)]
pub struct Job {
    pub id: String,
    pub state: Condition,
    pub root: i32,
    pub supervisor: i32,
    pub command: String,
    pub directory: String,
    /// Seconds since 1970.
    pub started: i64,
    /// Seconds between checkpoints.
    pub every: Option<u64>,
    /// Seconds since 1970 at which the next is taken by the clock.
    pub next: Option<i64>,
    /// Seconds since 1970 of the last checkpoint.
    pub last: Option<i64>,
    /// For how many seconds the last checkpoint stopped the job.
    pub pause: Option<f64>,
    /// Bytes of the last checkpoint on the disk.
    pub bytes: Option<u64>,
    /// Whether a checkpoint is being taken.
    pub busy: bool,
    /// Whether checkpoints are held off.
    pub held: bool,
    /// Variables of the batch system that the job has from an earlier batch job.
    pub stale: Vec<String>,
    /// Checkpoints that it could be brought back from.
    pub kept: usize,
    /// What its newest checkpoints cost, oldest first.
    pub history: Vec<Cost>,
}

/// What a checkpoint cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    pub name: String,
    /// Seconds since 1970.
    pub time: i64,
    pub pause_ms: f64,
    pub write_ms: f64,
    pub bytes: u64,
    pub dirty_share: f64,
}

/// What is known of the checkpoints of each job's directory, and which was the last of them then: it is read
/// anew only when there is another.
pub type Histories = HashMap<String, (Option<i64>, usize, Vec<Cost>)>;

/// My jobs that have a supervisor on this machine, and why others do not tell.
///
/// # Errors
/// When nobody can be asked.
pub fn jobs(histories: &mut Histories) -> Result<(Vec<Job>, Vec<AskError>), Failure> {
    let supervisors = connections(Some(geteuid())).map_err(|error| {
        Failure::environment(
            attaching::SUPERVISOR_SILENT,
            format_args!("look for jobs: {}", chain(&error)),
        )
    })?;
    let (mut jobs, mut silent) = (Vec::new(), Vec::new());
    for supervisor in supervisors {
        match supervisor.and_then(|it| it.ask(&Request::Status, Some(PATIENCE))) {
            Ok(Reply::Status(status)) => jobs.push(job(status, histories)),
            Ok(_) => {}
            Err(error) => silent.push(error),
        }
    }
    jobs.sort_by_key(|job| (job.started, job.root));
    Ok((jobs, silent))
}

fn tell_silence(error: &AskError) {
    output::say(format_args!("a supervisor does not say how its job is: {}", chain(error)));
}

/// What is known of the checkpoints in a directory that may not be there yet.
fn costs(directory: &str) -> (usize, Vec<Cost>) {
    let open = JobDirectory::open(Path::new(directory), Trust::Anybody);
    let Some(history) = open.ok().and_then(|open| history::of_job(&open).ok()) else {
        return (0, Vec::new());
    };
    let kept = history.checkpoints.iter().filter(|past| past.present).count();
    let newest = history.checkpoints.len().saturating_sub(MOST_COSTS);
    let costs = history.checkpoints.into_iter().skip(newest).map(|past| Cost {
        time: past.made.seconds(),
        name: past.name,
        pause_ms: past.made.making.pause_ms,
        write_ms: past.made.making.write_ms,
        bytes: past.made.making.bytes,
        dirty_share: past.made.making.dirty_share,
    });
    (kept, costs.collect())
}

fn job(status: Status, histories: &mut Histories) -> Job {
    let last = status.last.as_ref().map(|taken| taken.at);
    let directory = status.directory.to_string();
    let known = histories.entry(directory.clone()).or_insert_with(|| {
        let (kept, costs) = costs(&directory);
        (last, kept, costs)
    });
    if known.0 != last {
        let (kept, costs) = costs(&directory);
        *known = (last, kept, costs);
    }
    let (_, kept, history) = known.clone();
    Job {
        id: status.job.to_string(),
        state: Condition::Supervised,
        root: status.root,
        supervisor: status.supervisor,
        command: words(&status.command),
        directory,
        started: status.started,
        every: status.every,
        next: status.next,
        last,
        pause: status.last.as_ref().map(|taken| taken.pause.as_secs_f64()),
        bytes: status.last.as_ref().map(|taken| taken.bytes),
        busy: status.busy,
        held: status.held,
        stale: status.stale.iter().map(Bytes::to_string).collect(),
        kept,
        history,
    }
}

/// The newest checkpoints as a word of letters of different heights.
fn picture(job: &Job, value: impl Fn(&Cost) -> f64) -> String {
    let newest = &job.history[job.history.len().saturating_sub(PICTURE_LETTERS)..];
    spark::line(&newest.iter().map(value).collect::<Vec<f64>>())
}

fn render_jobs(jobs: &[Job], left: &[Left], now: i64) -> String {
    let mut text = match (jobs, left) {
        ([], []) => "no job of yours runs under rckpt on this machine, and none was saved in this \
                     directory (rckpt list DIR looks into another)\n"
            .to_owned(),
        ([], _) => "no job of yours runs under a supervisor of rckpt on this machine\n".to_owned(),
        (jobs, _) => render_supervised(jobs, now),
    };
    text.push_str(&left::render(left, now));
    text
}

fn render_supervised(jobs: &[Job], now: i64) -> String {
    let mut table = vec![
        [
            "PID",
            "RUNNING",
            "EVERY",
            "NEXT",
            "LAST",
            "KEPT",
            "PAUSE",
            "",
            "SIZE",
            "",
            "COMMAND",
            "DIRECTORY",
        ]
        .map(str::to_owned),
    ];
    table.extend(jobs.iter().map(|job| {
        let every = job.every.and_then(|seconds| i64::try_from(seconds).ok());
        let last = match (job.busy, job.last) {
            (true, _) => "now".to_owned(),
            (false, Some(last)) => format!("{} ago", options::span(now - last)),
            (false, None) => "-".to_owned(),
        };
        [
            job.root.to_string(),
            options::span(now - job.started),
            every.map_or("-".to_owned(), options::span),
            job.next
                .filter(|_| !job.held)
                .map_or("-".to_owned(), |next| format!("in {}", options::span(next - now))),
            last,
            job.kept.to_string(),
            job.pause.map_or("-".to_owned(), |pause| format!("{pause:.3} s")),
            picture(job, |cost| cost.pause_ms),
            job.bytes.map_or("-".to_owned(), options::size),
            picture(job, |cost| to_f64(cost.bytes)),
            options::beginning(&options::printable(&job.command), COMMAND_LETTERS),
            options::printable(&job.directory).into_owned(),
        ]
    }));
    let mut text = columns(&table);
    for job in jobs.iter().filter(|job| !job.stale.is_empty()) {
        text.push_str(&format!(
            "{} still has the environment of the batch job that it was started in: {}\n",
            job.root,
            options::printable(&job.stale.join(", "))
        ));
    }
    text
}

/// The checkpoints of a job.
#[derive(Serialize)]
struct Checkpoints {
    directory: String,
    job: Option<String>,
    command: Option<String>,
    checkpoints: Vec<Checkpoint>,
    /// Where this is no job's directory: those that have theirs in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    jobs: Vec<Listed>,
}

#[derive(Serialize)]
struct Checkpoint {
    name: String,
    path: String,
    latest: bool,
    /// In which of the job's directories it is, where there are two.
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    place: Option<Place>,
    /// Why its records cannot be read. Page data is only checked by `verify`.
    problem: Option<String>,
    #[serde(flatten)]
    contents: Option<Contents>,
}

/// A job's own directory, its local one, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Place {
    Directory,
    Local,
    Both,
}

#[derive(Serialize)]
struct Contents {
    /// Seconds since 1970.
    taken: i64,
    host: String,
    processes: usize,
    threads: usize,
    /// Bytes of memory and file contents in it.
    memory: u64,
    /// Bytes on the disk.
    bytes: u64,
}

fn checkpoints(path: &Path) -> Result<Checkpoints, Failure> {
    let found = match find(path, None, Trust::Anybody) {
        // A job's directory without any checkpoint yet is worth a line, too.
        Err(FindError::NoCheckpoint { .. }) => None,
        other => Some(other?),
    };
    let directory = match found {
        Some(found) => match found.directory {
            Some(directory) => directory,
            None => {
                let read = found.read(Trust::Anybody);
                let checkpoint = checkpoint(&found.generation, true, None, read);
                return Ok(Checkpoints {
                    directory: found.generation.path.display().to_string(),
                    job: None,
                    command: None,
                    checkpoints: vec![checkpoint],
                    jobs: Vec::new(),
                });
            }
        },
        None => JobDirectory::open(path, Trust::Anybody)?,
    };
    let latest = directory.latest_of_all(Trust::Anybody)?;
    let has_local = directory.local(Trust::Anybody)?.is_some();
    let all = directory.all_generations(Trust::Anybody)?;
    // Of two with the same number the last is the one that a restore takes.
    let by_number = all.chunk_by(|left, right| left.number == right.number);
    let checkpoints: Vec<Checkpoint> = by_number
        .map(|same| {
            let generation = &same[same.len() - 1];
            let place = has_local.then(|| match generation.path.starts_with(directory.path()) {
                _ if same.len() > 1 => Place::Both,
                true => Place::Directory,
                false => Place::Local,
            });
            let read = directory.read(generation, Trust::Anybody);
            checkpoint(generation, latest.as_ref() == Some(generation), place, read)
        })
        .collect();
    let is_no_jobs = directory.identity().is_none() && checkpoints.is_empty();
    Ok(Checkpoints {
        directory: directory.path().display().to_string(),
        job: directory.identity().map(|identity| identity.id.to_string()),
        command: directory.identity().map(|identity| identity.command_line()),
        checkpoints,
        jobs: if is_no_jobs { jobs_inside(directory.path())? } else { Vec::new() },
    })
}

/// The jobs that have their directories in this one.
fn jobs_inside(directory: &Path) -> Result<Vec<Listed>, Failure> {
    let (jobs, _) = jobs(&mut Histories::new())?;
    let places = directories_in(directory);
    let mut left = left_of(&jobs, &places);
    left.retain(|left| left.is_in(directory));
    let jobs = jobs.into_iter().filter(|job| Path::new(&job.directory).parent() == Some(directory));
    let jobs = jobs.map(Listed::Supervised);
    Ok(jobs.chain(left.into_iter().map(Listed::Left)).collect())
}

fn checkpoint(
    generation: &Generation,
    latest: bool,
    place: Option<Place>,
    read: Result<Reader, GenerationError>,
) -> Checkpoint {
    let name = generation.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Checkpoint {
        name,
        path: generation.path.display().to_string(),
        latest,
        place,
        problem: read.as_ref().err().map(|error| chain(error)),
        contents: read.ok().map(|reader| contents(&reader)),
    }
}

fn contents(reader: &Reader) -> Contents {
    let job = reader.job();
    Contents {
        taken: job.clocks.realtime.seconds,
        host: job.machine.host.to_string(),
        processes: job.processes.len(),
        threads: job.processes.iter().map(|process| process.threads.len()).sum(),
        memory: reader.chunks().iter().map(|chunk| to_u64(chunk.length())).sum(),
        bytes: reader.stored_bytes(),
    }
}

fn render_checkpoints(list: &Checkpoints, now: i64) -> String {
    let mut text = String::new();
    if let Some(command) = &list.command {
        let directory = options::printable(&list.directory);
        let command = options::beginning(&options::printable(command), COMMAND_LETTERS);
        text.push_str(&format!("{directory}: {command}\n"));
    }
    if list.checkpoints.is_empty() {
        match list.job {
            Some(_) => text.push_str("no checkpoint yet\n"),
            None => text.push_str(&render_jobs_inside(&list.directory, &list.jobs, now)),
        }
        return text;
    }
    let mut table = vec![
        [
            "CHECKPOINT",
            "TAKEN",
            "AGE",
            "HOST",
            "PROCESSES",
            "THREADS",
            "MEMORY",
            "ON DISK",
            "WHERE",
        ]
        .map(str::to_owned),
    ];
    let mut problems = String::new();
    for checkpoint in &list.checkpoints {
        let name = format!("{}{}", checkpoint.name, if checkpoint.latest { " *" } else { "" });
        let Some(contents) = &checkpoint.contents else {
            let problem = checkpoint.problem.as_deref().unwrap_or_default();
            problems.push_str(&format!("{name}  DAMAGED: {problem}\n"));
            continue;
        };
        table.push([
            name,
            options::instant(contents.taken),
            options::span(now - contents.taken),
            options::printable(&contents.host).into_owned(),
            contents.processes.to_string(),
            contents.threads.to_string(),
            options::size(contents.memory),
            options::size(contents.bytes),
            match checkpoint.place {
                None => "",
                Some(Place::Directory) => "here",
                Some(Place::Local) => "local",
                Some(Place::Both) => "both",
            }
            .to_owned(),
        ]);
    }
    if list.checkpoints.iter().all(|checkpoint| checkpoint.place.is_none()) {
        table.iter_mut().for_each(|row| row[8].clear());
    }
    text.push_str(&columns(&table));
    text.push_str(&problems);
    text
}

fn render_jobs_inside(directory: &str, jobs: &[Listed], now: i64) -> String {
    let directory = options::printable(directory);
    if jobs.is_empty() {
        return format!("no checkpoint, and no job that could go on, in {directory}\n");
    }
    let (mut supervised, mut left) = (Vec::new(), Vec::new());
    for listed in jobs {
        match listed {
            Listed::Supervised(job) => supervised.push(job.clone()),
            Listed::Left(job) => left.push(job.clone()),
        }
    }
    let mut text =
        format!("no checkpoint in {directory} itself; jobs with their directories in it:\n");
    if !supervised.is_empty() {
        text.push_str(&render_supervised(&supervised, now));
    }
    text.push_str(&left::render(&left, now));
    text
}

/// A table for people: columns as wide as their widest word, two spaces apart.
fn columns<const N: usize>(table: &[[String; N]]) -> String {
    let width = |column: usize| {
        table.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in table {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        let line: Vec<String> = cells.collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn words(command: &[Bytes]) -> String {
    command.iter().map(Bytes::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::columns;

    #[test]
    fn columns_are_as_wide_as_their_words() {
        let row = |words: [&str; 3]| words.map(str::to_owned);
        let table = [row(["A", "LONG", "B"]), row(["ä b c", "x", ""])];
        assert_eq!(columns(&table), "A      LONG  B\nä b c  x\n");
    }
}
