//! `rckpt list`: jobs that no supervisor answers for, and the command that goes on from there.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cli::narrator::shell_word;
use crate::cli::options;
use crate::job::left::{self, State};
use crate::model::id::Bytes;

use super::{COMMAND_LETTERS, costs};

/// How a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// It runs under a supervisor.
    Supervised,
    /// It runs, and nobody takes checkpoints of it.
    Unsupervised,
    /// It does not run here, and can be brought back.
    Saved,
    /// A supervisor that cannot be asked from here is in charge of it.
    Elsewhere,
}

/// A job that no supervisor answers for.
#[derive(Clone, Debug, Serialize)]
pub struct Left {
    id: String,
    state: Condition,
    /// Its first process, if it runs here.
    root: Option<i32>,
    /// The supervisor elsewhere.
    supervisor: Option<i32>,
    /// That supervisor's machine.
    host: Option<String>,
    command: String,
    directory: Option<String>,
    /// Checkpoints that it could be brought back from.
    kept: usize,
    /// Seconds since 1970 of the last of them.
    last: Option<i64>,
    /// What to type to go on.
    go_on: Option<String>,
}

impl Left {
    /// Whether its directory is in `place`.
    pub fn is_in(&self, place: &Path) -> bool {
        self.directory.as_deref().is_some_and(|it| Path::new(it).parent() == Some(place))
    }
}

/// My jobs that run without a supervisor, and those that have their directories in `places`, but for those with
/// the identities `supervised`.
pub fn find(supervised: &[&str], places: &[PathBuf]) -> Vec<Left> {
    let supervised: Vec<Bytes> = supervised.iter().map(|id| Bytes::from(id.as_bytes())).collect();
    left::find(&supervised, places).into_iter().map(report).collect()
}

fn report(left: left::Left) -> Left {
    let left::Left { id, state, command, directory } = left;
    let directory = directory.map(|path| path.display().to_string());
    let (kept, costs) = directory.as_deref().map(costs).unwrap_or_default();
    let condition = match state {
        State::Unsupervised(_) => Condition::Unsupervised,
        State::Saved => Condition::Saved,
        State::Elsewhere(_) => Condition::Elsewhere,
    };
    let place = directory.as_deref().map_or("DIR".to_owned(), |it| shell_word(Path::new(it)));
    let go_on = match &state {
        State::Unsupervised(root) => {
            Some(format!("rckpt dump {root} --kill --dir {place} && rckpt restore {place}"))
        }
        State::Saved => Some(format!("rckpt restore {place}")),
        State::Elsewhere(_) => None,
    };
    let (root, holder) = match state {
        State::Unsupervised(root) => (Some(root.as_raw()), None),
        State::Saved => (None, None),
        State::Elsewhere(holder) => (None, Some(holder)),
    };
    Left {
        id: id.to_string(),
        state: condition,
        root,
        supervisor: holder.as_ref().map(|holder| holder.pid),
        host: holder.map(|holder| holder.host),
        command,
        directory,
        kept,
        last: costs.last().map(|cost| cost.time),
        go_on,
    }
}

/// What people read of them.
pub fn render(all: &[Left], now: i64) -> String {
    all.iter().map(|left| render_one(left, now)).collect()
}

fn render_one(left: &Left, now: i64) -> String {
    let command = options::beginning(&options::printable(&left.command), COMMAND_LETTERS);
    let what = match (left.root, left.supervisor, &left.host) {
        (Some(root), ..) => {
            format!("{root} runs without a supervisor, and nobody takes checkpoints")
        }
        (None, Some(supervisor), Some(host)) => {
            format!("in the hands of rckpt process {supervisor} on {}", options::printable(host))
        }
        _ => "not running here, can be brought back".to_owned(),
    };
    let kept = options::counted(left.kept, "checkpoint", "checkpoints");
    let place = left.directory.as_deref().map(options::printable);
    let place = match (place, left.last) {
        (None, _) => "its directory is not where it was".to_owned(),
        (Some(place), None) => format!("{kept} in {place}"),
        (Some(place), Some(last)) => {
            format!("{kept} in {place}, the last {} ago", options::span(now - last))
        }
    };
    let aim = match left.state {
        Condition::Unsupervised => "to save it as it is now and go on under a supervisor:",
        _ => "to go on from there:",
    };
    let go_on = left.go_on.as_ref().map(|line| format!("  {aim}\n    {line}\n"));
    format!("{what}: {command}\n  {place}\n{}", go_on.unwrap_or_default())
}
