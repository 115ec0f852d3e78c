//! `--metrics FILE`: what a supervisor does, for the textfile collector of Prometheus's node exporter.
//!
//! It stands between a supervisor and whoever tells people, and passes everything on. The file is whole
//! whenever somebody reads it. One that cannot be written is told of once; the job does not depend on it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::job::checkpoint::CheckpointError;
use crate::job::report::{Event, Explanation, Observer, Taken};
use crate::job::supervisor::seconds_since_1970;
use crate::model::id::Bytes;
use crate::sys::whole_file;

/// Everybody may read it: the exporter is another user. It says nothing of the job but its program's name.
const MODE: u32 = 0o644;

/// Counts what happens to one job, and writes it down.
pub struct Metrics<'a> {
    next: &'a mut dyn Observer,
    path: Option<PathBuf>,
    program: String,
    counts: Counts,
    is_broken: bool,
}

/// What is counted.
#[derive(Debug, Default)]
struct Counts {
    directory: String,
    /// Seconds since 1970.
    started: i64,
    running: bool,
    taken: u64,
    failed: u64,
    pause_seconds: f64,
    bytes: u64,
    last: Option<Taken>,
}

impl<'a> Metrics<'a> {
    /// One in front of `next`, which writes to `path` if there is one. `program` is what the job runs.
    pub fn new(next: &'a mut dyn Observer, path: Option<PathBuf>, program: String) -> Self {
        Self { next, path, program, counts: Counts::default(), is_broken: false }
    }

    fn write(&mut self) {
        let Some(path) = self.path.as_ref().filter(|_| !self.is_broken) else { return };
        if let Err(error) =
            whole_file::replace(path, render(&self.counts, &self.program).as_bytes(), Some(MODE))
        {
            self.is_broken = true;
            let words = format!("write the metrics to {}: {error}", path.display());
            self.next.tell(Event::Trouble(&words));
        }
    }

    fn begin(&mut self, directory: &Path) {
        self.counts.directory = directory.display().to_string();
        self.counts.started = seconds_since_1970(SystemTime::now());
        self.counts.running = true;
        self.write();
    }
}

impl Observer for Metrics<'_> {
    fn tell(&mut self, event: Event<'_>) {
        match event {
            Event::Started { directory } | Event::Resumed { directory, .. } => {
                self.begin(directory)
            }
            Event::Taken(taken) => {
                self.counts.taken += 1;
                self.counts.pause_seconds += taken.pause.as_secs_f64();
                self.counts.bytes = self.counts.bytes.saturating_add(taken.bytes);
                self.counts.last = Some(taken.clone());
                self.write();
            }
            Event::Failed { .. } => {
                self.counts.failed += 1;
                self.write();
            }
            Event::Over { .. } => {
                self.counts.running = false;
                self.write();
            }
            _ => {}
        }
        self.next.tell(event);
    }

    fn explain(&self, error: &CheckpointError) -> Explanation {
        self.next.explain(error)
    }
}

/// The name of the program that a command line runs.
pub fn program_of(command: &[Bytes]) -> String {
    let program = command.first().and_then(|word| word.as_path().file_name());
    program.unwrap_or_default().to_string_lossy().into_owned()
}

/// All values in Prometheus's text format, version 0.0.4.
fn render(counts: &Counts, program: &str) -> String {
    let labels = format!("directory=\"{}\"", escaped(&counts.directory));
    let mut text = String::new();
    let mut add = |name: &str, kind: &str, help: &str, more: &str, value: String| {
        let written = writeln!(
            text,
            "# HELP rckpt_{name} {help}\n# TYPE rckpt_{name} {kind}\nrckpt_{name}{{{labels}{more}}} {value}"
        );
        written.expect("a string takes everything");
    };
    let info =
        format!(",program=\"{}\",version=\"{}\"", escaped(program), env!("CARGO_PKG_VERSION"));
    add("job_info", "gauge", "What runs, and which rckpt supervises it.", &info, "1".to_owned());
    let mut gauge = |name: &str, help: &str, value: String| add(name, "gauge", help, "", value);
    let running = u8::from(counts.running).to_string();
    gauge("job_running", "Whether the job is supervised at the moment.", running);
    let started = counts.started.to_string();
    gauge("supervisor_start_time_seconds", "When supervision began, since 1970.", started);
    if let Some(last) = &counts.last {
        gauge(
            "last_checkpoint_timestamp_seconds",
            "When the last checkpoint was complete, since 1970.",
            last.at.to_string(),
        );
        gauge(
            "last_checkpoint_pause_seconds",
            "For how long it stopped the job.",
            last.pause.as_secs_f64().to_string(),
        );
        gauge(
            "last_checkpoint_duration_seconds",
            "How long it took in all.",
            last.elapsed.as_secs_f64().to_string(),
        );
        gauge("last_checkpoint_bytes", "What it added on the disk.", last.bytes.to_string());
        gauge(
            "last_checkpoint_dirty_ratio",
            "How much of the memory was new.",
            last.dirty_share().to_string(),
        );
    }
    let mut counter = |name: &str, help: &str, value: String| add(name, "counter", help, "", value);
    counter("checkpoints_total", "Checkpoints that were completed.", counts.taken.to_string());
    counter("checkpoint_failures_total", "Checkpoints that failed.", counts.failed.to_string());
    counter(
        "checkpoint_pause_seconds_total",
        "For how long all of them stopped the job.",
        counts.pause_seconds.to_string(),
    );
    counter(
        "checkpoint_bytes_total",
        "What all of them added on the disk.",
        counts.bytes.to_string(),
    );
    let written = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    add(
        "metrics_timestamp_seconds",
        "gauge",
        "When this was written, since 1970.",
        "",
        written.as_secs().to_string(),
    );
    text
}

/// A value of a label.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::{Counts, escaped, render};

    #[test]
    fn labels_stay_in_their_quotes() {
        assert_eq!(escaped("a\\b\"c\nd"), "a\\\\b\\\"c\\nd");
        let counts = Counts { directory: "/x\"} 5\nevil 1".to_owned(), ..Counts::default() };
        let text = render(&counts, "sh");
        assert!(
            text.lines().all(|line| line.starts_with("# ") || line.starts_with("rckpt_")),
            "{text}"
        );
        assert!(
            text.contains("rckpt_checkpoints_total{directory=\"/x\\\"} 5\\nevil 1\"} 0\n"),
            "{text}"
        );
    }
}
