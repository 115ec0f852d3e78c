//! What happened to a job, for scripts and for later: `DIR/events.jsonl`, one JSON object a line.
//!
//! It stands between a supervisor and whoever tells people, and passes everything on. A journal that
//! cannot be written is told of once; the job and its checkpoints do not depend on it.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::OFlag;
use serde::Serialize;

use super::checkpoint::CheckpointError;
use super::history::{Making, milliseconds};
use super::places::Moved;
use super::report::{Event, Explanation, Observer, Totals};
use super::root::Ended;
use super::supervisor::{Cause, Ending};
use crate::model::code::Code;

/// The journal's name in a job's directory.
pub const JOURNAL_FILE: &str = "events.jsonl";

/// Writes down what a supervisor tells, and passes it on.
pub struct Journal<'a> {
    next: &'a mut dyn Observer,
    directory: Option<PathBuf>,
    totals: Totals,
    is_broken: bool,
}

/// One line.
#[derive(Debug, Serialize)]
struct Line<'a> {
    /// Seconds since 1970.
    time: f64,
    #[serde(flatten)]
    entry: Entry<'a>,
}

/// What happened.
#[derive(Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Entry<'a> {
    Started { supervisor: u32 },
    Resumed { supervisor: u32, generation: &'a Path, root: i32 },
    PassedOver { generation: &'a Path, reason: &'a str },
    StartedOver,
    Checkpoint(Making),
    CheckpointFailed { code: Code, reason: &'a str },
    Copied { generation: &'a Path, bytes: u64, write_ms: f64 },
    CopyFailed { reason: &'a str },
    NoLocalDirectory { reason: &'a str },
    Signal { signal: &'a str },
    ToldToEnd { cause: &'static str },
    PutOff,
    HolderEnded,
    PlaceMoved { old: String, new: String },
    Requeued,
    NotRequeued { reason: &'a str },
    NoLastCheckpoint,
    Trouble { reason: &'a str },
    Finished { status: i32, seconds: f64 },
    Killed { signal: i32, seconds: f64 },
    Suspended { generation: String, seconds: f64 },
}

impl<'a> Journal<'a> {
    /// A journal in front of `next`. It begins when a directory is known.
    pub fn new(next: &'a mut dyn Observer) -> Self {
        Self { next, directory: None, totals: Totals::default(), is_broken: false }
    }

    /// Begins at once, in a directory that is there already.
    pub fn open(&mut self, directory: &Path) {
        self.directory = Some(directory.to_owned());
    }

    fn write(&mut self, entry: Entry<'_>) {
        let Some(directory) = &self.directory else { return };
        // A job brought back a second time gets a directory with its first checkpoint.
        if self.is_broken || !directory.exists() {
            return;
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = Line { time: since.as_secs_f64(), entry };
        if let Err(error) = append(&directory.join(JOURNAL_FILE), &line) {
            self.is_broken = true;
            self.next.tell(Event::Trouble(&format!("write {JOURNAL_FILE}: {error}")));
        }
    }
}

impl Observer for Journal<'_> {
    fn tell(&mut self, event: Event<'_>) {
        let supervisor = std::process::id();
        match event {
            Event::Started { directory } => {
                self.open(directory);
                self.write(Entry::Started { supervisor });
            }
            Event::Resumed { generation, root, directory } => {
                self.open(directory);
                self.write(Entry::Resumed { supervisor, generation, root: root.as_raw() });
            }
            Event::PassedOver { generation, reason } => {
                self.write(Entry::PassedOver { generation, reason });
            }
            Event::StartedOver => self.write(Entry::StartedOver),
            Event::Taken(taken) => {
                self.totals.add(taken);
                self.write(Entry::Checkpoint(Making::of(taken)));
            }
            Event::Failed { explanation, .. } => {
                self.totals.failed += 1;
                self.write(Entry::CheckpointFailed {
                    code: explanation.code,
                    reason: &explanation.message,
                });
            }
            Event::Copied(brought) => self.write(Entry::Copied {
                generation: &brought.path,
                bytes: brought.bytes,
                write_ms: milliseconds(brought.elapsed),
            }),
            Event::NotCopied { reason } => self.write(Entry::CopyFailed { reason }),
            Event::NoLocal { reason } => self.write(Entry::NoLocalDirectory { reason }),
            Event::Signal(signal) => self.write(Entry::Signal { signal: signal.as_str() }),
            Event::Ending { cause } => self.write(Entry::ToldToEnd { cause: name(cause) }),
            Event::PlaceMoved(Moved { old, new, .. }) => {
                self.write(Entry::PlaceMoved { old: old.to_string(), new: new.to_string() });
            }
            Event::PutOff => self.write(Entry::PutOff),
            Event::HolderEnded => self.write(Entry::HolderEnded),
            Event::Requeued => self.write(Entry::Requeued),
            Event::NotRequeued { reason } => self.write(Entry::NotRequeued { reason }),
            Event::Passed => self.write(Entry::NoLastCheckpoint),
            Event::Trouble(reason) => self.write(Entry::Trouble { reason }),
            Event::Over { ending, ran, .. } => self.write(last_entry(ending, ran)),
            Event::HadFinished { .. } | Event::BringingHome { .. } | Event::AddressesKept => {}
        }
        let event = match event {
            Event::Over { ending, ran, .. } => Event::Over { ending, ran, totals: self.totals },
            event => event,
        };
        self.next.tell(event);
    }

    fn explain(&self, error: &CheckpointError) -> Explanation {
        self.next.explain(error)
    }
}

const fn name(cause: Cause) -> &'static str {
    match cause {
        Cause::Request => "request",
        Cause::Limit => "limit",
        Cause::Budget => "budget",
    }
}

fn last_entry(ending: &Ending, ran: Duration) -> Entry<'static> {
    let seconds = ran.as_secs_f64();
    match ending {
        Ending::Ended(Ended::Exited(status)) => Entry::Finished { status: *status, seconds },
        Ending::Ended(Ended::Killed(signal)) => Entry::Killed { signal: *signal, seconds },
        Ending::Suspended { last, .. } => {
            Entry::Suspended { generation: last.path.to_string(), seconds }
        }
    }
}

/// Appends a line in one write, so that those of two writers never mix.
fn append(path: &Path, line: &Line<'_>) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)?
        .write_all(&text)
}
