//! `rckpt dump`: takes a checkpoint of a running job.

use std::num::NonZeroU64;
use std::path::PathBuf;

use nix::unistd::Pid;
use serde::Serialize;

use crate::job::control::protocol::Then;
use crate::job::report::Taken;
use crate::job::request::{self, Outcome, RequestError};

use super::failure::{self, Failure};
use super::options::{self, Compression};
use super::output;
use super::progress::Progress;

/// Take a checkpoint of a process and everything under it
#[derive(clap::Args)]
pub struct Arguments {
    /// The process (default: the job that this command runs inside)
    #[arg(value_parser = options::pid)]
    pid: Option<Pid>,
    /// Where the checkpoint goes (default: the job's directory, else rckpt-NAME-PID here)
    #[arg(long)]
    dir: Option<PathBuf>,
    /// End the job, in one step with the checkpoint
    #[arg(long)]
    kill: bool,
    /// Leave the job stopped
    #[arg(long, conflicts_with = "kill")]
    stop: bool,
    /// How page data is stored (default: as the job's supervisor was told, else lz4)
    #[arg(long, value_enum)]
    compress: Option<Compression>,
    /// Most that is written in a second while the job runs on, at least 1M (default: as the job's supervisor
    /// was told, else no limit)
    #[arg(long, value_name = "SIZE", value_parser = options::rate)]
    rate: Option<NonZeroU64>,
    /// Files that the job appends to and closes (path, pattern or directory; repeatable)
    #[arg(long, value_name = "WHAT")]
    outputs: Vec<PathBuf>,
    /// Save the job although it has TCP connections to outside: after a restore it finds them reset
    #[arg(long)]
    tcp_close: bool,
    /// Save the job although it has unix sockets connected to outside: after a restore it finds them
    /// closed
    #[arg(long)]
    ext_unix: bool,
    /// Files that the job changes in place, to be copied into the checkpoint (path, pattern, directory, or
    /// auto: what it has open for reading and writing; repeatable)
    #[arg(long, value_name = "WHAT")]
    save_files: Vec<PathBuf>,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// What a checkpoint came to, as JSON.
#[derive(Serialize)]
struct Report {
    generation: String,
    pause_seconds: f64,
    seconds: f64,
    bytes: u64,
    raw_bytes: u64,
    dirty_share: f64,
    processes: u64,
    threads: u64,
    warnings: Vec<String>,
    hint: Option<String>,
    restored: bool,
}

/// Takes the checkpoint.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments {
        pid,
        dir,
        kill,
        stop,
        compress,
        rate,
        outputs,
        save_files,
        tcp_close,
        ext_unix,
        json,
    } = arguments;
    let progress = Progress::begin("writing the checkpoint", None);
    let options = request::Options {
        pid,
        directory: dir.map(|dir| options::absolute_path(&dir)).transpose()?,
        then: match (kill, stop) {
            (true, _) => Then::Kill,
            (false, true) => Then::Stop,
            (false, false) => Then::Continue,
        },
        compress: compress.map(|compression| compression == Compression::Lz4),
        write: compress.unwrap_or_default().write_options(rate),
        outputs: options::absolute(outputs)?,
        tcp_close,
        ext_unix,
        save: options::wanted(save_files)?,
        watch: progress.watch(),
    };
    let outcome = request::dump(&options);
    progress.end();
    if outcome.as_ref().is_err_and(RequestError::is_given_up) {
        // The process that was called ends by the signal that it got.
        output::tell("the checkpoint was given up, and nothing of it is left; the job runs on");
        return Ok(1);
    }
    match outcome? {
        Outcome::Taken(taken) if json => output::print_json(&Report::of(&taken))?,
        Outcome::Taken(taken) => {
            for warning in &taken.warnings {
                output::say(format_args!("warning: {warning}"));
            }
            output::tell(options::summary(&taken));
            if let Some(hint) = &taken.hint {
                output::tell(format_args!("hint: {hint}"));
            }
            output::print(format_args!("{}\n", taken.path))?;
        }
        Outcome::Restored if json => output::print_json(&serde_json::json!({"restored": true}))?,
        Outcome::Restored => {
            output::tell("this job was brought back from the checkpoint");
            output::print("restored\n")?;
        }
    }
    Ok(0)
}

impl Report {
    fn of(taken: &Taken) -> Self {
        Self {
            generation: taken.path.to_string(),
            pause_seconds: taken.pause.as_secs_f64(),
            seconds: taken.elapsed.as_secs_f64(),
            bytes: taken.bytes,
            raw_bytes: taken.raw_bytes,
            dirty_share: taken.dirty_share(),
            processes: taken.processes,
            threads: taken.threads,
            warnings: taken.warnings.clone(),
            hint: taken.hint.clone(),
            restored: false,
        }
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        let (code, message) = (error.code(), failure::chain(&error));
        match error {
            RequestError::NotInsideJob => Self::user(code, message)
                .hint("name a process of the job: rckpt list shows your jobs, ps all processes"),
            RequestError::NotSupervised(_) => Self::user(code, message)
                .hint("only a supervisor takes checkpoints by itself: rckpt run"),
            RequestError::SupervisorGone(_) => Self::environment(code, message)
                .hint("rckpt dump PID, from outside the job, still works"),
            RequestError::SupervisorStopped(pid) => Self::user(code, message)
                .hint(format!("continue it with fg or bg in its shell, or kill -CONT {pid}")),
            RequestError::NoJob(_) | RequestError::NoProcess(_) => {
                Self::user(code, message).hint("rckpt list shows your jobs, ps all processes")
            }
            RequestError::NotMine(_) => {
                Self::user(code, message).hint("only its owner or root can save a process")
            }
            RequestError::AboveMe(_) => Self::user(code, message)
                .hint("call rckpt dump from another shell, or start the job with rckpt run"),
            RequestError::FindDirectory(_) => {
                Self::environment(code, message).hint(options::NO_CURRENT_DIRECTORY)
            }
            RequestError::ReadProc(_)
            | RequestError::ReadBoot(_)
            | RequestError::StartProcess(_)
            | RequestError::Ask(_) => Self::environment(code, message),
            RequestError::Refused(_) => Self::user(code, message),
            RequestError::Failed(explanation) => explanation.into(),
            RequestError::Checkpoint(error) => (&error).into(),
        }
    }
}
