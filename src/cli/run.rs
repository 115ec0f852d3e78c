//! `rckpt run`: starts a job and stays as its parent.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::job::resume::{GoOnError, Ways};
use crate::job::root::Ended;
use crate::job::run::{self, Earlier, Outcome, RunError};
use crate::job::start::StartError;
use crate::job::supervisor::Ending;
use crate::model::code::requests;
use crate::model::id::Bytes;
use crate::sys::launch::LaunchError;

use super::check;
use super::failure::{self, Failure};
use super::metrics::{Metrics, program_of};
use super::narrator::{Narrator, shell_word};
use super::restore::{Files, moved};
use super::supervision::{OVER_BUDGET, Supervision};
use super::{options, output, wrong_way};

/// Start a job, take checkpoints of it, and give its exit status
#[derive(clap::Args)]
pub struct Arguments {
    /// Where checkpoints go (default: $RCKPT_DIR, else rckpt-NAME-PID in the current directory)
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Go on from the newest checkpoint in DIR; start CMD if there is none; repeat the exit status of a
    /// job that had finished
    #[arg(long)]
    resume: bool,
    /// Start over, and keep DIR aside as DIR.old-N
    #[arg(long, conflicts_with = "resume")]
    fresh: bool,
    /// With --resume: a place that moved; files under OLD are found under NEW (repeatable)
    #[arg(long, value_name = "OLD=NEW", requires = "resume")]
    map: Vec<OsString>,
    /// With --resume: what to do with files that were written after the checkpoint
    #[arg(long, value_enum, requires = "resume")]
    files: Option<Files>,
    #[command(flatten)]
    supervision: Supervision,
    /// The job's command line
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Runs the job.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { dir, resume, fresh, map, files, supervision, command } = arguments;
    let earlier = match (resume, fresh) {
        (false, false) => Earlier::Unknown,
        (true, _) => Earlier::Resume(Ways {
            moved: map.iter().map(moved).collect::<Result<_, _>>()?,
            files: files.unwrap_or_default().into(),
        }),
        (false, true) => Earlier::Forget,
    };
    wrong_way::check(&command)?;
    if let Some((finding, remedy)) = check::obstacle_to_restores() {
        output::say(format_args!(
            "warning: what is saved here cannot be brought back here: {finding}; ask the administrator: \"{remedy}\""
        ));
    }
    let statuses = supervision.statuses();
    let mut narrator = Narrator::default();
    let words: Vec<Bytes> = command.iter().cloned().map(Bytes::from).collect();
    let mut metrics = Metrics::new(&mut narrator, supervision.metrics()?, program_of(&words));
    let settings = supervision.settings()?;
    let options = run::Options { command, directory: dir, settings, earlier };
    Ok(match run::run(options, &mut metrics)? {
        Outcome::Supervised(ending) => statuses.of(&ending),
        Outcome::HadFinished(status) => statuses.of(&Ending::Ended(Ended::Exited(status))),
    })
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        let (code, message) = (error.code(), failure::chain(&error));
        match error {
            RunError::Prepare { .. } => Self::environment(code, message),
            RunError::FindDirectory(_) => {
                Self::environment(code, message).hint(options::NO_CURRENT_DIRECTORY)
            }
            RunError::Directory(error) => error.into(),
            RunError::Local(_) => Self::user(code, message)
                .hint("give each job a directory of its own with --local, or leave it out"),
            RunError::Launch(LaunchError::Execute { program, source }) => {
                let path = Path::new(&program);
                let name = path.display();
                match source {
                    Errno::ENOENT if path.exists() => {
                        Self::user(code, format_args!("the program that {name} is written for is not found"))
                            .status(127)
                            .hint(format!("its first line names it (head -n 1 {name})"))
                    }
                    Errno::ENOENT => Self::user(
                        requests::COMMAND_NOT_FOUND,
                        format_args!("{name}: command not found"),
                    )
                    .status(127),
                    Errno::EACCES if path.is_dir() => {
                        Self::user(code, format_args!("{name} is a directory, and no command")).status(126).hint("name the program in it")
                    }
                    _ => Self::user(code, message).status(126),
                }
            }
            RunError::Launch(LaunchError::HoldsNul(_)) => Self::user(code, message),
            RunError::Launch(LaunchError::SeveralThreads(_)) => Self::internal(code, message),
            RunError::Launch(_) => Self::environment(code, message),
            RunError::NameDirectory => Self::user(code, message),
            RunError::GoOn(error) => error.into(),
            RunError::Start(StartError::Files(_)) => Self::user(code, message).hint(
                "the job was lost before its first checkpoint and has to start over: put these files \
                 back as they were, or give --fresh to start with them as they are",
            ),
            RunError::Start(_) => Self::environment(code, message),
            RunError::Supervise(error) => error.into(),
        }
    }
}

impl From<GoOnError> for Failure {
    fn from(error: GoOnError) -> Self {
        let (code, message) = (error.code(), failure::chain(&error));
        match error {
            GoOnError::AnotherCommand { path, .. } => Self::user(code, message).hint(format!(
                "rckpt restore {0} goes on with that one; --fresh starts yours and keeps {0} aside; \
                 or give another --dir",
                shell_word(&path)
            )),
            GoOnError::StillRuns { pid, .. } => Self::user(code, message).hint(format!(
                "rckpt dump {pid} --kill saves it as it is now and ends it, to go on from there; kill {pid} \
                 ends it, to go on from its last checkpoint; rckpt restore brings back a second one \
                 beside it"
            )),
            GoOnError::BudgetSpent { .. } => Self::user(code, message).status(OVER_BUDGET).hint(
                "to go on, allow more with --max-total; --fresh starts over",
            ),
            GoOnError::Directory(error) => error.into(),
            GoOnError::Resume(error) => error.into(),
            GoOnError::Record(_) | GoOnError::MoveAside { .. } => Self::environment(code, message),
        }
    }
}
