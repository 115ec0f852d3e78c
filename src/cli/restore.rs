//! `rckpt restore`: brings a job back and stays as its parent.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use serde::Serialize;

use crate::job::directory::{FindError, GenerationError};
use crate::job::report::Observer;
use crate::job::restore::{self, Detached, Options, Prepared, ResumeError};
use crate::model::code::requests;
use crate::model::id::Bytes;
use crate::model::number::PAGE_SIZE;
use crate::restore::files::Policy;
use crate::restore::plan::{Identity, PlanError};

use super::failure::{self, Failure};
use super::metrics::{Metrics, program_of};
use super::narrator::Narrator;
use super::progress::Progress;
use super::supervision::Supervision;
use super::{options, output};

/// Bring a job back from a checkpoint, and give its exit status
#[derive(clap::Args)]
pub struct Arguments {
    /// A job's directory, or one checkpoint in it
    dir: PathBuf,
    /// The checkpoint (default: the latest)
    #[arg(long, value_name = "GEN")]
    at: Option<String>,
    /// Return once the job runs
    #[arg(long)]
    detach: bool,
    /// Write the pid of the job's root process to this file
    #[arg(long, value_name = "FILE")]
    pidfile: Option<PathBuf>,
    /// A place that moved: files under OLD are found under NEW (repeatable)
    #[arg(long, value_name = "OLD=NEW")]
    map: Vec<OsString>,
    /// What to do with files that were written after the checkpoint
    #[arg(long, value_enum, default_value_t)]
    files: Files,
    /// Show what would be done, and start nothing
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: report as JSON
    #[arg(long, requires = "dry_run")]
    json: bool,
    #[command(flatten)]
    supervision: Supervision,
}

/// `--files`.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub enum Files {
    /// Cut back what grew (it is kept beside the image), refuse what changed otherwise
    #[default]
    Rollback,
    /// Leave all files as they are now
    Keep,
    /// Refuse whatever is not as it was
    Fail,
}

impl From<Files> for Policy {
    fn from(files: Files) -> Self {
        match files {
            Files::Rollback => Self::Rollback,
            Files::Keep => Self::Keep,
            Files::Fail => Self::Fail,
        }
    }
}

/// Restores the job.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { dir, at, detach, pidfile, map, files, dry_run, json, supervision } = arguments;
    let statuses = supervision.statuses();
    let mut narrator = Narrator::default();
    let metrics = supervision.metrics()?;
    let options = Options {
        path: dir,
        at,
        moved: map.iter().map(moved).collect::<Result<_, _>>()?,
        files: files.into(),
        pidfile: pidfile.map(|file| options::absolute_path(&file)).transpose()?,
        settings: supervision.settings()?,
    };
    let observer: Option<&mut dyn Observer> = if dry_run { None } else { Some(&mut narrator) };
    let prepared = restore::prepare(options, observer)?;
    if dry_run {
        let report = report(&prepared);
        if json {
            output::print_json(&report)?;
        } else {
            output::print(render(&report))?;
        }
        return Ok(0);
    }
    let mut prepared = if detach {
        match prepared.detach()? {
            Detached::Background(prepared) => *prepared,
            Detached::Foreground(_) => return Ok(0),
        }
    } else {
        prepared
    };
    let program = program_of(&prepared.reader().job().command);
    let all = prepared.reader().page_bytes();
    narrator.bring_back(Progress::begin("bringing memory back", Some(all)));
    if let Some(watch) = narrator.watch() {
        prepared.watch(watch);
    }
    let mut metrics = Metrics::new(&mut narrator, metrics, program);
    Ok(statuses.of(&prepared.run(&mut metrics)?))
}

/// Reads `OLD=NEW`, two absolute paths.
pub fn moved(word: &OsString) -> Result<(Bytes, Bytes), Failure> {
    let bytes = word.as_bytes();
    let at = bytes.iter().position(|byte| *byte == b'=');
    let (old, new) = match at.map(|at| (&bytes[..at], &bytes[at + 1..])) {
        Some(pair @ (&[b'/', ..], &[b'/', ..])) => pair,
        _ => {
            return Err(Failure::user(
                requests::USAGE,
                format_args!("--map {}: write OLD=NEW, both absolute paths", word.display()),
            ));
        }
    };
    Ok((old.into(), new.into()))
}

/// What a restore would do.
#[derive(Serialize)]
struct Report {
    checkpoint: String,
    identity: Way,
    threads: usize,
    processes: Vec<ProcessReport>,
    /// Bytes of memory that several processes have, but that are needed only once.
    shared_bytes: u64,
    files: FilesReport,
}

/// How the job would come to its process ids.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Way {
    InPlace,
    Namespaces,
    UserNamespaces,
}

#[derive(Serialize)]
struct ProcessReport {
    pid: i32,
    parent: i32,
    name: String,
    threads: usize,
    /// Whether it has ended, and waits for its parent to learn of it.
    ended: bool,
}

/// What would be done with files before the job goes on.
#[derive(Serialize)]
struct FilesReport {
    cut: Vec<CutReport>,
    reset: Vec<String>,
    set_aside: Vec<String>,
    /// Where what is taken away would be kept.
    kept_in: String,
}

#[derive(Serialize)]
struct CutReport {
    path: String,
    bytes: u64,
}

/// Puts together what a restore would do.
fn report(prepared: &Prepared) -> Report {
    let job = prepared.reader().job();
    let decisions = prepared.decisions();
    let name = |path: &PathBuf| path.display().to_string();
    let processes: Vec<ProcessReport> = job
        .processes
        .iter()
        .map(|process| ProcessReport {
            pid: process.pid.0,
            parent: process.ppid.0,
            name: process.name.to_string(),
            threads: process.threads.len(),
            ended: process.is_zombie(),
        })
        .collect();
    Report {
        checkpoint: prepared.generation().display().to_string(),
        identity: match prepared.plan().identity {
            Identity::InPlace => Way::InPlace,
            Identity::Namespaces { user: false } => Way::Namespaces,
            Identity::Namespaces { user: true } => Way::UserNamespaces,
        },
        threads: processes.iter().map(|process| process.threads).sum(),
        processes,
        shared_bytes: prepared.plan().inheritance.shared_pages * PAGE_SIZE,
        files: FilesReport {
            cut: decisions
                .cuts
                .iter()
                .map(|cut| CutReport { path: name(&cut.path), bytes: cut.size })
                .collect(),
            reset: decisions.resets.iter().map(name).collect(),
            set_aside: decisions.set_aside.iter().map(name).collect(),
            kept_in: name(&decisions.displaced),
        },
    }
}

/// The same in words.
fn render(report: &Report) -> String {
    let way = match report.identity {
        Way::InPlace => "in place, under the same process ids",
        Way::UserNamespaces => {
            "in a user, pid and mount namespace of its own, where its process ids are free"
        }
        Way::Namespaces => {
            "in a pid and mount namespace of its own, where its process ids are free"
        }
    };
    let Report { checkpoint, threads, processes, shared_bytes, files, .. } = report;
    let mut text = format!(
        "checkpoint {checkpoint}\n{way}\n{} processes, {threads} threads\n",
        processes.len()
    );
    for ProcessReport { pid, parent, name, ended, .. } in processes {
        let state = if *ended { ", ended" } else { "" };
        text.push_str(&format!("process {pid} ({name}), child of {parent}{state}\n"));
    }
    if *shared_bytes > 0 {
        let mebibytes = shared_bytes >> 20;
        text.push_str(&format!("{mebibytes} MiB that processes share are needed only once\n"));
    }
    for CutReport { path, bytes } in &files.cut {
        text.push_str(&format!("cut {path} back to {bytes} bytes\n"));
    }
    for path in &files.reset {
        text.push_str(&format!("give {path} its content back\n"));
    }
    for path in &files.set_aside {
        text.push_str(&format!("set {path} aside\n"));
    }
    if !(files.cut.is_empty() && files.reset.is_empty() && files.set_aside.is_empty()) {
        text.push_str(&format!("what is taken away is kept in {}\n", files.kept_in));
    }
    text
}

impl From<ResumeError> for Failure {
    fn from(error: ResumeError) -> Self {
        let (code, message) = (error.code(), failure::chain(&error));
        match error {
            ResumeError::Find(FindError::NoCheckpoint { .. }) => Self::user(code, message)
                .hint("the job was never saved completely: start it again with rckpt run"),
            ResumeError::Find(FindError::Directory(error)) | ResumeError::Directory(error) => {
                error.into()
            }
            ResumeError::Find(_) => Self::user(code, message),
            ResumeError::Read(GenerationError::Read(_)) => Self::environment(code, message).hint(
                "rckpt verify DIR checks all of them; rckpt restore DIR --at GEN takes an older one",
            ),
            ResumeError::Read(GenerationError::AnotherJob { .. }) => Self::user(code, message),
            ResumeError::Plan(PlanError::Identity { .. } | PlanError::Groups { .. })
            | ResumeError::Files(_) => Self::user(code, message),
            ResumeError::WritePid { .. } => Self::user(code, message).hint("the job runs nevertheless"),
            ResumeError::Probe(_)
            | ResumeError::Plan(_)
            | ResumeError::Prepare { .. }
            | ResumeError::Fork(_)
            | ResumeError::Supervisor(_)
            | ResumeError::Background => Self::environment(code, message),
            ResumeError::Start(error) if error.has_changed_files() => Self::environment(code, message)
                .hint(
                    "nothing of the job was left running; put back by hand what is named, or restore this \
                     checkpoint or an older one, for which those files are as they should be",
                ),
            ResumeError::Start(error) if error.is_damage() => Self::environment(code, message).hint(
                "nothing of the job was left running, and its files are as they were; rckpt verify DIR tells which checkpoints are whole, \
                 and rckpt restore DIR --at GEN brings back an earlier one",
            ),
            ResumeError::Start(_) => Self::environment(code, message)
                .hint("nothing of the job was left running; rckpt check tells what is allowed here"),
            ResumeError::Supervise(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::moved;

    #[test]
    fn moved_places() {
        let check = |word: &str, expected: Option<(&str, &str)>| {
            let pair = moved(&OsString::from(word));
            let expected = expected.map(|(old, new)| (old.as_bytes(), new.as_bytes()));
            match (&pair, expected) {
                (Ok((old, new)), Some(expected)) => {
                    assert_eq!((&old.0[..], &new.0[..]), expected, "{word:?}");
                }
                (Err(failure), None) => assert!(failure.message.contains("OLD=NEW"), "{word:?}"),
                _ => panic!("{word:?}: {pair:?}"),
            }
        };
        check("/home/me=/scratch/me", Some(("/home/me", "/scratch/me")));
        check("/a=/b=c", Some(("/a", "/b=c")));
        check("/a=", None);
        check("/a", None);
        check("a=/b", None);
        check("", None);
    }
}
