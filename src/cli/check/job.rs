//! What stands in the way of a checkpoint of a running job, and what one would come to.

use std::path::Path;

use nix::unistd::Pid;
use serde::Serialize;

use crate::cli::failure::Failure;
use crate::cli::options;
use crate::dump::DumpError;
use crate::dump::refusal::{Obstacle, Obstacles};
use crate::image::WriteOptions;
use crate::job::checkpoint::CheckpointError;
use crate::job::prediction::{Prediction, Speeds, predict};
use crate::job::request::{self, RequestError};
use crate::sys::gauge;
use crate::sys::place::Place;

use super::disk;
use super::line::{Grade, Line, Remedy};

/// What was found out about a job.
#[derive(Debug, Serialize)]
pub struct Findings {
    /// What can be said of it; the first thing that fails stands in the way.
    pub lines: Vec<Line>,
    /// What a full checkpoint would come to, if there can be one.
    pub prediction: Option<Prediction>,
}

/// Looks at the job that `pid` belongs to, whose checkpoint would go to `generation` in `place`.
pub fn assess(pid: Pid, generation: &Path, place: Option<&Place>) -> Findings {
    // Before the job is looked at: this is about the machine alone.
    let speeds = speeds(place);
    match request::examine(pid, generation) {
        Ok((warnings, survey)) => {
            let prediction = predict(&survey, &speeds);
            let subject = format!("process {pid} and its tree");
            let (processes, threads) = (survey.processes, survey.threads);
            let count = |number, one, many| if number == 1 { one } else { many };
            let size = format!(
                "{processes} process{}, {threads} thread{}",
                count(processes, "", "es"),
                count(threads, "", "s")
            );
            let mut lines = vec![Line::works(subject, size)];
            lines.extend(expected(&prediction, place));
            lines.extend(warnings.into_iter().chain(survey.stands_still).map(warning));
            Findings { lines, prediction: Some(prediction) }
        }
        Err(RequestError::Checkpoint(CheckpointError::Dump(DumpError::Refused(Obstacles(
            obstacles,
        ))))) => Findings { lines: obstacles.iter().map(refusal).collect(), prediction: None },
        Err(error) => Findings { lines: vec![failed(pid, error)], prediction: None },
    }
}

/// How fast this machine is. What cannot be measured is taken to cost nothing: it is told elsewhere.
fn speeds(place: Option<&Place>) -> Speeds {
    Speeds {
        fork: gauge::fork_cost().unwrap_or_default(),
        write: place.map_or(f64::MAX, |place| place.rate),
        sync: place.map(|place| place.sync).unwrap_or_default(),
        workers: WriteOptions::default().workers,
    }
}

/// What a checkpoint is expected to come to.
fn expected(prediction: &Prediction, place: Option<&Place>) -> Vec<Line> {
    let &Prediction { raw_bytes, bytes, pause_seconds, seconds } = prediction;
    let subject = "a full checkpoint";
    let size = format!("about {} of {} in memory", options::size(bytes), options::size(raw_bytes));
    let room = place.map(disk::room);
    let size = match room {
        Some(room) if room < bytes => Line::fails(
            subject,
            format!("{size}, but there is room for {} only", options::size(room)),
            disk::make_room(),
        ),
        Some(room) if room / 2 < bytes => Line::less(
            subject,
            format!("{size}: there is no room for a second one"),
            disk::make_room(),
        ),
        _ => Line::works(subject, size),
    };
    let times = format!("pause about {}, all done in about {}", time(pause_seconds), time(seconds));
    vec![size, Line::works("its time", times)]
}

/// Seconds for people.
fn time(seconds: f64) -> String {
    if seconds < 1.0 {
        format!("{:.0} ms", (seconds * 1e3).max(1.0))
    } else if seconds < 120.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{:.0} min", seconds / 60.0)
    }
}

/// Something that its user should know.
fn warning(words: String) -> Line {
    Line { grade: Grade::Less, ..Line::works("it can be saved, with a warning", words) }
}

/// Something that stands in the way.
fn refusal(obstacle: &Obstacle) -> Line {
    let words = obstacle.to_string();
    let (place, what) = words.split_once(": ").unwrap_or(("the job", &words));
    let code = obstacle.code();
    Line::fails(place, without_remedy(what), Remedy::own(code.remedy())).code(code)
}

/// What kept the job from being looked at.
fn failed(pid: Pid, error: RequestError) -> Line {
    let failure = Failure::from(error);
    let remedy = failure.hint.unwrap_or_else(|| failure.code.remedy().to_owned());
    let finding = without_remedy(&failure.message);
    Line::fails(format!("process {pid} and its tree"), finding, Remedy::Do(remedy))
        .code(failure.code)
}

/// What a message says, without what it says can be done about that, which comes last.
fn without_remedy(words: &str) -> &str {
    words.rsplit_once("; ").map_or(words, |(finding, _)| finding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dump::refusal::StateRefusal;

    #[test]
    fn refusals_are_taken_apart() {
        let obstacle = Obstacle::State { pid: Pid::from_raw(7), kind: StateRefusal::Seccomp };
        let line = refusal(&obstacle);
        assert_eq!((line.subject.as_str(), line.grade), ("process 7", Grade::Fails));
        assert!(line.remedy.is_some());
        assert_eq!(line.code, Some(obstacle.code()));
        assert_eq!(without_remedy("a; b; c"), "a; b");
        assert_eq!(without_remedy("a"), "a");
    }

    #[test]
    fn room_is_compared() {
        let prediction =
            Prediction { raw_bytes: 400, bytes: 100, pause_seconds: 0.01, seconds: 300.0 };
        let lines = expected(&prediction, None);
        assert_eq!(lines[0].grade, Grade::Works);
        assert!(lines[1].finding.contains("10 ms, all done in about 5 min"), "{lines:?}");
    }
}
