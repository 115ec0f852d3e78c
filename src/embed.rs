//! rckpt for other programs: schedulers, notebooks, test benches.
//!
//! [`dump`] and [`restore`] call the program `rckpt` with what was asked for and give its answer with types.
//! It is a process of its own for good reasons: who freezes a job must not be frozen with it, and who becomes
//! a job's parent can have one thread only. What is in a checkpoint is read here, in the caller's own process,
//! by [`image::Reader`](crate::image::Reader).
//!
//! The program is the one in `PATH`, or the one that `RCKPT_PROGRAM` names.
//!
//! ```no_run
//! # fn main() -> Result<(), rckpt::embed::EmbedError> {
//! let taken = rckpt::dump(4711).directory("job").kill().take()?;
//! println!("{} holds {} bytes", taken.generation.display(), taken.bytes);
//! let mut restored = rckpt::restore("job").every("10m").start()?;
//! println!("process {} runs again", restored.root);
//! # Ok(())
//! # }
//! ```

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::model::code::Code;

/// Names the program in the place of `rckpt` in `PATH`.
pub const PROGRAM_VARIABLE: &str = "RCKPT_PROGRAM";

/// How often it is looked whether a restored job runs.
const INTERVAL: Duration = Duration::from_millis(10);

/// Why something was not done.
#[derive(Debug, Error)]
pub enum EmbedError {
    /// The program could not be called.
    #[error("call {}: {source}", program.display())]
    Call {
        /// The program.
        program: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// rckpt refused or failed. A job that was to be saved runs on; of one that was to be brought back nothing
    /// was started.
    #[error("{} ({})", .0.message, .0.code)]
    Refused(Refused),
    /// What it said is not understood: it is of another version.
    #[error("understand the answer of {}: {source}", program.display())]
    Understand {
        /// The program.
        program: PathBuf,
        /// What is wrong with its answer.
        source: serde_json::Error,
    },
    /// A restore failed in the end, and said why on its standard error.
    #[error("the restore failed ({status}), and its standard error says why")]
    Failed {
        /// How rckpt ended.
        status: ExitStatus,
    },
    /// The place where rckpt tells the job's process could not be made.
    #[error("make a directory in {}: {source}", path.display())]
    Prepare {
        /// Where.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
}

/// What rckpt says when it refuses or fails.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Refused {
    /// The code, as `RCKPT-E0300`.
    pub code: String,
    /// The codes of all that the message lists.
    pub details: Vec<String>,
    /// The operation, the thing it failed on, and the cause.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl Refused {
    /// What the catalogue says of it; `None`: that rckpt is newer than this library.
    #[must_use]
    pub fn explained(&self) -> Option<Code> {
        Code::parse(&self.code)
    }
}

/// A checkpoint that is complete.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Taken {
    /// Its directory, absolute.
    pub generation: PathBuf,
    /// For how long the job stood still.
    pub pause_seconds: f64,
    /// How long it took in all.
    pub seconds: f64,
    /// Bytes on the disk.
    pub bytes: u64,
    /// What would be different after a restore.
    pub warnings: Vec<String>,
    /// What to do another time.
    pub hint: Option<String>,
}

/// A checkpoint of the process `pid` and everything under it, to be taken by [`Dump::take`].
pub fn dump(pid: i32) -> Dump {
    Dump { call: Call::new("dump").word(pid.to_string()) }
}

/// A checkpoint to be taken.
#[derive(Clone, Debug)]
#[must_use = "nothing is done before take()"]
pub struct Dump {
    call: Call,
}

impl Dump {
    /// Where it goes; else the directory of the job's supervisor, or a new one in the current directory.
    pub fn directory(self, directory: impl AsRef<Path>) -> Self {
        self.with("--dir", directory.as_ref())
    }

    /// Ends the job in one step with the checkpoint.
    pub fn kill(mut self) -> Self {
        self.call = self.call.word("--kill");
        self
    }

    /// Leaves the job stopped.
    pub fn stop(mut self) -> Self {
        self.call = self.call.word("--stop");
        self
    }

    /// Names files that the job appends to and closes: a path, a pattern or a directory.
    pub fn outputs(self, what: impl AsRef<OsStr>) -> Self {
        self.with("--outputs", what)
    }

    /// Copies files that the job changes in place into the checkpoint: a path, a pattern, a directory, or
    /// `auto`.
    pub fn save_files(self, what: impl AsRef<OsStr>) -> Self {
        self.with("--save-files", what)
    }

    /// Gives up TCP connections to outside the job: after a restore it finds them reset.
    pub fn tcp_close(mut self) -> Self {
        self.call = self.call.word("--tcp-close");
        self
    }

    /// Gives up unix sockets connected to outside the job: after a restore it finds them closed.
    pub fn ext_unix(mut self) -> Self {
        self.call = self.call.word("--ext-unix");
        self
    }

    /// Calls another program than `rckpt` in `PATH`.
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.call.program = program.into();
        self
    }

    /// Takes the checkpoint, and returns when it is complete.
    ///
    /// # Errors
    /// [`EmbedError::Refused`] when there is none; the job runs on.
    pub fn take(self) -> Result<Taken, EmbedError> {
        self.call.word("--json").ask()
    }

    fn with(mut self, option: &str, value: impl AsRef<OsStr>) -> Self {
        self.call = self.call.word(option).word(value);
        self
    }
}

/// The job in `directory` (or one checkpoint in it), to be brought back by [`Restore::start`].
pub fn restore(directory: impl AsRef<Path>) -> Restore {
    let call = Call::new("restore").word(directory.as_ref());
    Restore { call, streams: [const { None }; 3] }
}

/// A job to be brought back.
#[derive(Debug)]
#[must_use = "nothing is done before start()"]
pub struct Restore {
    call: Call,
    streams: [Option<Stdio>; 3],
}

/// A job that runs again.
#[derive(Debug)]
pub struct Restored {
    /// Its root process, as this process sees it.
    pub root: i32,
    /// rckpt, the job's supervisor: its exit status is the job's, and TERM makes it take a last checkpoint and
    /// stop the job.
    pub supervisor: Child,
}

impl Restore {
    /// Takes this checkpoint instead of the newest: its number or name.
    pub fn at(self, generation: impl AsRef<OsStr>) -> Self {
        self.with("--at", generation)
    }

    /// Finds files under `new` that were under `old`.
    pub fn map(self, old: impl AsRef<Path>, new: impl AsRef<Path>) -> Self {
        let mut words = old.as_ref().as_os_str().to_owned();
        words.push("=");
        words.push(new.as_ref());
        self.with("--map", words)
    }

    /// Leaves files that were written after the checkpoint as they are now.
    pub fn keep_files(self) -> Self {
        self.with("--files", "keep")
    }

    /// Goes on taking checkpoints in this interval, as `10m` or `auto`.
    pub fn every(self, interval: impl AsRef<OsStr>) -> Self {
        self.with("--every", interval)
    }

    /// Calls another program than `rckpt` in `PATH`.
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.call.program = program.into();
        self
    }

    /// What takes the place of the standard streams that the job had; else this process's own.
    pub fn streams(mut self, input: Stdio, output: Stdio, errors: Stdio) -> Self {
        self.streams = [Some(input), Some(output), Some(errors)];
        self
    }

    /// Brings the job back, and returns when it runs.
    ///
    /// # Errors
    /// [`EmbedError::Refused`] when something stands in the way that can be told beforehand,
    /// [`EmbedError::Failed`] when the restore fails in the end. Nothing of the job is left running.
    pub fn start(self) -> Result<Restored, EmbedError> {
        let Self { call, streams } = self;
        let _: serde_json::Value = call.clone().word("--dry-run").word("--json").ask()?;
        let place = Place::make()?;
        let pidfile = place.0.join("pid");
        let mut command = call.clone().word("--pidfile").word(&pidfile).command();
        let [input, output, errors] = streams;
        input.map(|stream| command.stdin(stream));
        output.map(|stream| command.stdout(stream));
        errors.map(|stream| command.stderr(stream));
        let mut supervisor = command.spawn().map_err(|source| call.failed(source))?;
        loop {
            // The end is looked for first: it may come right behind the number.
            let ended = supervisor.try_wait().map_err(|source| call.failed(source))?;
            let said = fs::read_to_string(&pidfile).unwrap_or_default();
            if let Some(root) = said.strip_suffix('\n').and_then(|number| number.parse().ok()) {
                return Ok(Restored { root, supervisor });
            }
            if let Some(status) = ended {
                return Err(EmbedError::Failed { status });
            }
            thread::sleep(INTERVAL);
        }
    }

    fn with(mut self, option: &str, value: impl AsRef<OsStr>) -> Self {
        self.call = self.call.word(option).word(value);
        self
    }
}

/// A directory of this call's own, removed at its end.
struct Place(PathBuf);

impl Place {
    fn make() -> Result<Self, EmbedError> {
        let parent = std::env::temp_dir();
        let mut number = 0_u32;
        loop {
            let path = parent.join(format!("rckpt-{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(source) => return Err(EmbedError::Prepare { path: parent, source }),
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What cannot be removed is one small file among the temporary ones.
        fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

/// A call of the program.
#[derive(Clone, Debug)]
struct Call {
    program: PathBuf,
    words: Vec<OsString>,
}

/// What a call that failed prints as JSON.
#[derive(Deserialize)]
struct FailureReport {
    error: Refused,
}

impl Call {
    fn new(command: &str) -> Self {
        let program = std::env::var_os(PROGRAM_VARIABLE).unwrap_or_else(|| "rckpt".into()).into();
        Self { program, words: vec![command.into()] }
    }

    fn word(mut self, word: impl AsRef<OsStr>) -> Self {
        self.words.push(word.as_ref().to_owned());
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.words);
        command
    }

    fn failed(&self, source: io::Error) -> EmbedError {
        EmbedError::Call { program: self.program.clone(), source }
    }

    /// Its answer, which it gives as JSON.
    fn ask<T: DeserializeOwned>(&self) -> Result<T, EmbedError> {
        let mut command = self.command();
        let answer = command.stdin(Stdio::null()).output().map_err(|error| self.failed(error))?;
        let not_understood =
            |source| EmbedError::Understand { program: self.program.clone(), source };
        if answer.status.success() {
            return serde_json::from_slice(&answer.stdout).map_err(not_understood);
        }
        let report: FailureReport =
            serde_json::from_slice(&answer.stdout).map_err(not_understood)?;
        Err(EmbedError::Refused(report.error))
    }
}

#[cfg(test)]
mod tests {
    use super::{EmbedError, dump, restore};

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = dump(1).program("/nowhere/rckpt").take().unwrap_err();
        assert!(matches!(error, EmbedError::Call { .. }), "{error}");
        assert!(error.to_string().contains("/nowhere/rckpt"));
    }

    #[test]
    fn an_answer_of_something_else_is_told_from_a_refusal() {
        let error = restore("job").program("/bin/true").start().unwrap_err();
        assert!(matches!(error, EmbedError::Understand { .. }), "{error}");
    }
}
