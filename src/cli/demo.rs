//! `rckpt demo`: a small job is started, saved, killed and brought back before one's eyes.
//!
//! It calls rckpt with the very words that it shows, in a directory of its own that is removed at the
//! end, whatever came of it. The job, a shell script, ends by itself when nobody listens any more.

use std::fs::{self, DirBuilder};
use std::io::{self, BufRead, BufReader, PipeReader};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::model::code::{requests, restoring, supervising};
use crate::sys::interruption::Interruption;
use crate::sys::procfs;

use super::check;
use super::failure::Failure;
use super::options;
use super::output;

/// Show in half a minute how a job is saved, killed and brought back
#[derive(clap::Args)]
pub struct Arguments {}

const SCRIPT: &str = include_str!("demo/primes.sh");
/// After this many primes the job is saved,
const SAVED_AFTER: usize = 6;
/// after this many it is killed,
const KILLED_AFTER: usize = 10;
/// and these are all that it looks for.
const PRIMES: [u32; 18] = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61];

const NEXT: &str = "\
Now with a program of your own:
  rckpt check                                         what this machine allows
  rckpt run --every 10m --dir job -- ./program        start it, with a checkpoint every ten minutes
  rckpt restore job                                   after it was lost: go on from the newest one
  rckpt dump PID                                      save one that runs already
";

/// Shows it.
pub fn execute(_: Arguments) -> Result<u8, Failure> {
    if let Some((finding, remedy)) = check::obstacle_to_restores() {
        return Err(Failure::environment(restoring::NAMESPACES_FORBIDDEN, finding).hint(remedy));
    }
    let stage = Stage::set()?;
    output::print(format_args!(
        "The job is a few lines of shell, in {}:\n\n{}\n",
        stage.directory.display(),
        SCRIPT.lines().map(|line| format!("    {line}\n")).collect::<String>()
    ))?;
    let before = stage.until_killed()?;
    let after = stage.brought_back()?;
    if before != PRIMES[..before.len()] || !PRIMES.ends_with(&after) || after.is_empty() {
        return Err(failed(format_args!(
            "the job found {before:?} before it was killed and {after:?} after it was brought back"
        )));
    }
    output::print(format_args!(
        "\nThe job was killed when it had {} primes. It came back as it was at the checkpoint, with {},\n\
         and went on to the end.\n\n{NEXT}",
        before.len(),
        PRIMES.len() - after.len(),
    ))?;
    Ok(0)
}

/// How long the job may take to end when the demonstration is interrupted.
const LAST_BREATH: Duration = Duration::from_secs(3);

/// Where it happens.
struct Stage {
    program: PathBuf,
    directory: PathBuf,
    /// The rckpt that is in charge of the job.
    supervisor: Arc<Mutex<Option<Pid>>>,
    interruption: Interruption,
}

impl Stage {
    fn set() -> Result<Self, Failure> {
        let failed = |path: &Path, error: io::Error| {
            let message = format!("prepare {}: {error}", path.display());
            Failure::environment(requests::DIRECTORY_UNUSABLE, message)
                .hint("set TMPDIR to a directory that you may write to")
        };
        let program =
            std::env::current_exe().map_err(|error| failed(Path::new("/proc/self/exe"), error))?;
        let directory = std::env::temp_dir().join(format!("rckpt-demo-{}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(|error| failed(&directory, error))?;
        let supervisor = Arc::<Mutex<Option<Pid>>>::default();
        let (doomed, in_charge) = (directory.clone(), Arc::clone(&supervisor));
        let interruption = Interruption::undone_by(move || {
            if let Some(supervisor) = *in_charge.lock().unwrap_or_else(PoisonError::into_inner) {
                end_with_job(supervisor);
            }
            fs::remove_dir_all(doomed).unwrap_or_default();
        });
        let stage = Self { program, directory, supervisor, interruption };
        let script = stage.directory.join("primes.sh");
        fs::write(&script, SCRIPT).map_err(|error| failed(&script, error))?;
        Ok(stage)
    }

    /// rckpt with these words, after showing them.
    fn rckpt(&self, words: &[&str]) -> Result<Command, Failure> {
        self.interruption.stop_if_it_has_come();
        output::print(format_args!("$ rckpt {}\n", words.join(" ")))?;
        let mut command = Command::new(&self.program);
        command.args(words).current_dir(&self.directory).stdin(Stdio::null());
        // A job's own directory would be taken for this one's.
        command.env_remove("RCKPT_DIR").env_remove("RCKPT_JOB");
        Ok(command)
    }

    /// Starts the job, or brings it back.
    fn start(&self, mut command: Command) -> Result<Job, Failure> {
        let cannot = |error: io::Error| failed(format_args!("call rckpt: {error}"));
        let (output, input) = io::pipe().map_err(cannot)?;
        command.stdout(input.try_clone().map_err(cannot)?).stderr(input);
        let rckpt = self.interruption.with_signals_as_before(|| command.spawn()).map_err(cannot)?;
        // Or its ends of the pipe stay open.
        drop(command);
        let number = i32::try_from(rckpt.id()).ok().map(Pid::from_raw);
        *self.supervisor.lock().unwrap_or_else(PoisonError::into_inner) = number;
        Ok(Job { rckpt, lines: BufReader::new(output).lines() })
    }

    /// Starts the job, saves it, and kills it when it has gone on for a while: the primes that it found.
    fn until_killed(&self) -> Result<Vec<u32>, Failure> {
        let mut job =
            self.start(self.rckpt(&["run", "--dir", "job", "--", "sh", "primes.sh"])?)?;
        let root = job.root()?;
        let mut primes = job.primes(SAVED_AFTER)?;
        let mut dump = self.rckpt(&["dump", &root.to_string()])?;
        let saved = self.interruption.with_signals_as_before(|| dump.output());
        let saved = saved.map_err(|error| failed(format_args!("call rckpt dump: {error}")))?;
        show(&saved.stderr)?;
        if !saved.status.success() {
            return Err(failed("the checkpoint failed"));
        }
        primes.extend(job.primes(KILLED_AFTER - primes.len())?);
        self.interruption.stop_if_it_has_come();
        output::print(format_args!(
            "$ kill -9 {} {root}        # rckpt and the job, as a crash would\n",
            job.rckpt.id()
        ))?;
        job.end(root);
        Ok(primes)
    }

    /// Brings the job back: the primes that it finds from there on.
    fn brought_back(&self) -> Result<Vec<u32>, Failure> {
        let mut job = self.start(self.rckpt(&["restore", "job"])?)?;
        let primes = job.primes(usize::MAX)?;
        let status = job.rckpt.wait();
        let status = status.map_err(|error| failed(format_args!("wait for rckpt: {error}")))?;
        if status.success() { Ok(primes) } else { Err(failed("the restore failed")) }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // What cannot be removed is a few files among the temporary ones.
        fs::remove_dir_all(&self.directory).unwrap_or_default();
    }
}

/// The job, from the outside.
struct Job {
    rckpt: Child,
    /// What both say, on either stream: a restore cuts files back that were the job's streams, and this
    /// command's may be files.
    lines: io::Lines<BufReader<PipeReader>>,
}

impl Job {
    /// Shows the job's next line, and gives it.
    fn line(&mut self) -> Result<Option<String>, Failure> {
        let line = self.lines.next().transpose();
        let line = line.map_err(|error| failed(format_args!("read the job's output: {error}")))?;
        if let Some(line) = &line {
            show(line.as_bytes())?;
        }
        Ok(line)
    }

    /// The job's process, which is the first thing that the job says.
    fn root(&mut self) -> Result<Pid, Failure> {
        while let Some(line) = self.line()? {
            let number = line.strip_prefix("process ").and_then(|rest| rest.split(' ').next());
            if let Some(number) = number.and_then(|word| word.parse().ok()) {
                return Ok(Pid::from_raw(number));
            }
        }
        Err(failed("the job did not start"))
    }

    /// The next primes, or as many as there are.
    fn primes(&mut self, most: usize) -> Result<Vec<u32>, Failure> {
        let mut primes = Vec::new();
        while primes.len() < most
            && let Some(line) = self.line()?
        {
            let found = line.strip_prefix("prime ").and_then(|rest| rest.rsplit(' ').next());
            primes.extend(found.and_then(|word| word.parse::<u32>().ok()));
        }
        Ok(primes)
    }

    /// Kills it and its supervisor.
    fn end(mut self, root: Pid) {
        // Whichever has ended by itself needs no killing.
        self.rckpt.kill().unwrap_or_default();
        kill(root, Signal::SIGKILL).unwrap_or_default();
        self.rckpt.wait().map(drop).unwrap_or_default();
    }
}

/// Interrupts the job as a terminal would, through its supervisor, and waits until both have ended.
fn end_with_job(supervisor: Pid) {
    let runs = || procfs::status(supervisor).is_ok_and(|status| status.state != b'Z');
    let begun = Instant::now();
    kill(supervisor, Signal::SIGINT).unwrap_or_default();
    while runs() && begun.elapsed() < LAST_BREATH {
        thread::sleep(Duration::from_millis(10));
    }
    if runs() {
        // The job ends by itself when nobody listens any more.
        kill(supervisor, Signal::SIGKILL).unwrap_or_default();
    }
}

/// Shows what a command said.
fn show(said: &[u8]) -> Result<(), Failure> {
    let said = String::from_utf8_lossy(said);
    let lines = said.lines().map(|line| format!("  {}\n", options::printable(line)));
    output::print(lines.collect::<String>())
}

fn failed(message: impl std::fmt::Display) -> Failure {
    Failure::environment(supervising::DEMO_FAILED, message).hint(supervising::DEMO_FAILED.remedy())
}

#[cfg(test)]
mod tests {
    use super::PRIMES;

    #[test]
    fn the_primes_are_prime() {
        let is_prime = |n: &u32| (2..*n).all(|d| !n.is_multiple_of(d));
        assert!((2..).filter(is_prime).take(PRIMES.len()).eq(PRIMES));
    }
}
