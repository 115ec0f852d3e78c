//! How the checkpoints of a job were made: what each cost, how much was new in it, what it builds on.
//!
//! Every generation has a record of that beside its image, `made.json`, which goes with it wherever it is
//! copied. Of those that are gone the journal still tells. Nothing depends on any of this but people.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use super::directory::{FindError, Generation, JobDirectory};
use super::journal::JOURNAL_FILE;
use super::record::{self, RecordError};
use super::report::Taken;
use crate::image::reader::Trust;

/// The record's name in a generation.
pub const MADE_FILE: &str = "made.json";
/// Bytes of a journal that are read, at most: the first.
const JOURNAL_LIMIT: u64 = 256 << 20;

/// How a checkpoint was made. Milliseconds and bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Making {
    /// The generation's directory when it was complete.
    pub generation: String,
    /// The generation that it builds on; `None`: it stands by itself.
    #[serde(default)]
    pub parent: Option<String>,
    /// From the first stop of a thread to the last thaw.
    pub pause_ms: f64,
    /// From the request to the committed generation.
    pub write_ms: f64,
    /// Bytes that it added on the disk.
    pub bytes: u64,
    /// Bytes of memory in it that were new, before compression.
    pub raw_bytes: u64,
    /// Bytes of memory that were the same in its parent.
    #[serde(default)]
    pub kept_bytes: u64,
    /// How much of the memory was new since the checkpoint before, from 0 to 1.
    pub dirty_share: f64,
    /// Processes in it.
    pub processes: u64,
    /// Threads in it.
    pub threads: u64,
    /// What its user was warned of.
    pub warnings: Vec<String>,
    /// The version of rckpt that made it.
    #[serde(default)]
    pub rckpt: String,
}

/// A checkpoint in a job's history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// When it was complete, in seconds since 1970.
    pub time: f64,
    /// How it was made.
    #[serde(flatten)]
    pub making: Making,
}

/// What is known of a job's checkpoints, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct History {
    /// Those that were completed.
    pub checkpoints: Vec<Past>,
    /// When others failed, in seconds since 1970.
    pub failures: Vec<f64>,
}

/// A checkpoint that was completed once.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Past {
    /// Its name: `gen-000003`.
    pub name: String,
    /// Whether it is still there.
    pub present: bool,
    /// When and how it was made.
    #[serde(flatten)]
    pub made: Made,
}

impl Made {
    /// When it was complete, in whole seconds since 1970.
    #[must_use]
    pub fn seconds(&self) -> i64 {
        let span = Duration::try_from_secs_f64(self.time).unwrap_or_default();
        i64::try_from(span.as_secs()).unwrap_or(i64::MAX)
    }
}

impl Making {
    /// How `taken` was made.
    #[must_use]
    pub fn of(taken: &Taken) -> Self {
        Self {
            generation: taken.path.to_string(),
            parent: taken.parent.clone(),
            pause_ms: milliseconds(taken.pause),
            write_ms: milliseconds(taken.elapsed),
            bytes: taken.bytes,
            raw_bytes: taken.raw_bytes,
            kept_bytes: taken.kept_bytes,
            dirty_share: taken.dirty_share(),
            processes: taken.processes,
            threads: taken.threads,
            warnings: taken.warnings.clone(),
            rckpt: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// Writes down beside the image how `taken` was made.
///
/// # Errors
/// When that fails; the checkpoint is none the worse.
pub fn write(taken: &Taken, time: Duration) -> Result<(), RecordError> {
    let made = Made { time: time.as_secs_f64(), making: Making::of(taken) };
    record::write(&taken.path.as_path().join(MADE_FILE), &made)
}

/// How the generation in `path` was made; `None`: it does not say.
///
/// # Errors
/// When its record cannot be read.
pub fn of_generation(path: &Path) -> Result<Option<Made>, RecordError> {
    record::read(&path.join(MADE_FILE), Trust::Anybody)
}

/// Takes the record of how a generation was made along to where it is copied to.
///
/// # Errors
/// When it cannot be read or written.
pub fn take_along(from: &Path, to: &Path) -> Result<(), RecordError> {
    match record::read::<Made>(&from.join(MADE_FILE), Trust::Own)? {
        Some(made) => record::write(&to.join(MADE_FILE), &made),
        None => Ok(()),
    }
}

/// The history of the job in `directory`: what its journal tells, and what its generations do.
///
/// # Errors
/// When its directories cannot be listed. What in them cannot be read is left out: `verify` tells of that.
pub fn of_job(directory: &JobDirectory) -> Result<History, FindError> {
    let generations = directory.all_generations(Trust::Anybody)?;
    let journal = journal(&directory.path().join(JOURNAL_FILE)).unwrap_or_default();
    let mut known: BTreeMap<u64, Past> = BTreeMap::new();
    for made in journal.checkpoints {
        let name = name_of(&made.making.generation);
        // Checkpoints that were asked for with another directory are of another history.
        let Some(number) = Generation::number_of(&name) else { continue };
        known.insert(number, Past { name, present: false, made });
    }
    for Generation { number, path } in &generations {
        let name = Generation::name(*number);
        match of_generation(path) {
            Ok(Some(made)) => {
                known.insert(*number, Past { name, present: true, made });
            }
            Ok(None) | Err(_) => {
                known.entry(*number).and_modify(|past| past.present = true);
            }
        }
    }
    Ok(History { checkpoints: known.into_values().collect(), failures: journal.failures })
}

/// A generation's name, of its path.
#[must_use]
pub fn name_of(path: &str) -> String {
    Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What a journal tells of checkpoints.
#[derive(Debug, Default)]
struct Told {
    checkpoints: Vec<Made>,
    failures: Vec<f64>,
}

/// A line of a journal, as far as everything in it is known.
#[derive(Deserialize)]
struct Head {
    time: f64,
    event: String,
}

fn journal(path: &Path) -> io::Result<Told> {
    // It is for looking only: whoever wrote it, it is no more than a file.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    told(BufReader::new(file.take(JOURNAL_LIMIT)))
}

/// Reads a journal. A line that was cut short by a crash, or that a later version wrote, is passed over.
fn told(journal: impl BufRead) -> io::Result<Told> {
    let mut told = Told::default();
    for line in journal.split(b'\n') {
        let line = line?;
        let Ok(Head { time, event }) = serde_json::from_slice(&line) else { continue };
        match event.as_str() {
            "checkpoint" => told.checkpoints.extend(serde_json::from_slice::<Made>(&line).ok()),
            "checkpoint_failed" => told.failures.push(time),
            _ => {}
        }
    }
    Ok(told)
}

/// A span in milliseconds.
#[must_use]
pub fn milliseconds(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::{Made, told};

    #[test]
    fn journals_with_torn_and_strange_lines() {
        let good = r#"{"time":1.5,"event":"checkpoint","generation":"/d/gen-000001","pause_ms":2.0,"write_ms":3.0,"bytes":4,"raw_bytes":5,"dirty_share":1.0,"processes":1,"threads":1,"warnings":[]}"#;
        let failed = r#"{"time":2.5,"event":"checkpoint_failed","reason":"no room"}"#;
        let text = format!("{good}\n{{\"time\":2,\"ev\n\u{0}\n{failed}\n{good}");
        let told = told(text.as_bytes()).unwrap();
        assert_eq!(told.failures, [2.5]);
        assert_eq!(told.checkpoints.len(), 2);
        let Made { time, making } = &told.checkpoints[0];
        assert_eq!((*time, making.pause_ms, making.kept_bytes), (1.5, 2.0, 0));
        assert_eq!(making.parent, None);
    }
}
