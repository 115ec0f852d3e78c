//! Tells a person on standard error what happens to a supervised job.

use std::collections::VecDeque;
use std::fmt::Display;
use std::io;
use std::mem::replace;
use std::path::Path;
use std::time::Duration;

use crate::image::watch::Watch;
use crate::job::checkpoint::CheckpointError;
use crate::job::copy::Brought;
use crate::job::places::Moved;
use crate::job::report::{Event, Explanation, Observer, Taken, Totals};
use crate::job::root::Ended;
use crate::job::supervisor::{Cause, Ending};
use crate::model::terminal::assembles_lines;
use crate::sys::terminal;

use super::failure::Failure;
use super::progress::Progress;
use super::voice::{self, Weight};
use super::{options, output};

/// Lines kept for later; those before are in the journal.
const MOST_KEPT: usize = 10;

/// Tells what happens to one job.
#[derive(Debug, Default)]
pub struct Narrator {
    /// What is shown while memory is brought back.
    progress: Option<Progress>,
    /// What the last checkpoint hinted at, told once at the end.
    hint: Option<String>,
    /// What the last checkpoint warned of: it is not said again at each; the journal has it.
    warnings: Vec<String>,
    /// Whether there is an earlier checkpoint, so that it is known what was written after it.
    has_earlier: bool,
    /// What was not said because the job draws on the screen.
    kept: VecDeque<(Weight, String)>,
}

impl Observer for Narrator {
    fn tell(&mut self, event: Event<'_>) {
        self.end_progress();
        match event {
            Event::Started { directory } => output::tell(format_args!(
                "checkpoints go to {0}; to bring the job back: rckpt restore {1}",
                directory.display(),
                shell_word(directory)
            )),
            Event::Resumed { generation, root, directory } => {
                self.has_earlier = true;
                output::tell(format_args!(
                    "brought back from {}; its root is process {root}",
                    generation.display()
                ));
                if !generation.starts_with(directory) {
                    output::tell(format_args!("its checkpoints go to {}", directory.display()));
                }
            }
            Event::Taken(taken) => {
                let known = replace(&mut self.warnings, taken.warnings.clone());
                for warning in taken.warnings.iter().filter(|it| !known.contains(it)) {
                    self.say(format_args!("warning: {warning}"));
                }
                self.tell_usual(options::summary(taken));
                self.speak(Weight::More, in_detail(taken));
                self.hint = taken.hint.clone().filter(|_| self.has_earlier);
                self.has_earlier = true;
            }
            Event::Failed { explanation, runs_on } => {
                self.say(format_args!(
                    "no checkpoint: error[{}]: {}",
                    explanation.code, explanation.message
                ));
                let remedy = || Some(explanation.code.remedy()).filter(|_| explanation.details.is_empty());
                if let Some(hint) = explanation.hint.as_deref().or_else(remedy) {
                    self.say(format_args!("hint: {hint}"));
                }
                if runs_on {
                    self.say("the job runs on");
                }
            }
            Event::Copied(Brought { warning, path, bytes, elapsed }) => {
                self.speak(
                    Weight::More,
                    format_args!(
                        "copied to {} ({}, {:.2} s)",
                        path.display(),
                        options::size(*bytes),
                        elapsed.as_secs_f64()
                    ),
                );
                if let Some(warning) = warning {
                    self.say(format_args!("warning: {warning}"));
                }
            }
            Event::NotCopied { reason } => self.say(format_args!(
                "the newest checkpoint is in the local directory only: {reason}"
            )),
            Event::BringingHome { directory } => self.tell_usual(format_args!(
                "copying the newest checkpoint to {} (TERM gives that up)",
                directory.display()
            )),
            Event::NoLocal { reason } => self.say(format_args!(
                "checkpoints are not written to a local directory first: {reason}"
            )),
            Event::Ending { cause } => self.tell_usual(match cause {
                Cause::Request => "told to end: taking a last checkpoint",
                Cause::Limit => "the time allowed here is nearly over: taking a last checkpoint",
                Cause::Budget => {
                    "the time allowed by --max-total is over: taking a last checkpoint"
                }
            }),
            Event::PlaceMoved(Moved { variable, old, new }) => self.tell_usual(format_args!(
                "what was under {old} is looked for under {new} (${variable} at the checkpoint and now)"
            )),
            Event::HolderEnded => self.say(
                "the process that held checkpoints off has ended: they are taken again",
            ),
            Event::PutOff => self.tell_usual("a checkpoint is put off until rckpt release"),
            Event::Requeued => self.tell_usual("the batch system will start the job again"),
            Event::NotRequeued { reason } => {
                self.say(format_args!("the job is not requeued: {reason}"));
            }
            Event::Passed => self.say("no last checkpoint: the job is told to end"),
            Event::AddressesKept => self.tell_usual(
                "what is left of connections that are over keeps addresses of the job (TIME_WAIT): \
                 waiting for them, up to a minute",
            ),
            Event::PassedOver { generation, reason } => self.say(format_args!(
                "{} is damaged, and passed over for the one before it: {reason}",
                generation.display()
            )),
            Event::StartedOver => self.tell_usual(
                "there is no checkpoint to go on from: the job starts over, and what it had written \
                 is taken back",
            ),
            Event::HadFinished { finish, directory } => self.tell_usual(format_args!(
                "the job had finished at {} with status {}, and is not run again; --fresh would start \
                 it over and keep {} aside",
                options::instant(finish.at),
                finish.status,
                directory.display()
            )),
            Event::Signal(signal) => {
                self.speak(Weight::More, format_args!("got the signal {}", signal.as_str()));
            }
            Event::Over { ending, ran, totals } => {
                self.kept.drain(..).for_each(|(weight, words)| output::speak(weight, words));
                say_last_words(ending, ran, totals);
                if let Some(hint) = self.hint.take() {
                    output::tell(format_args!("hint: {hint}"));
                }
            }
            Event::Trouble(words) => self.say(words),
        }
    }

    fn explain(&self, error: &CheckpointError) -> Explanation {
        Failure::from(error).explanation()
    }
}

impl Narrator {
    /// Shows `progress` until something is told.
    pub fn bring_back(&mut self, progress: Progress) {
        self.progress = Some(progress);
    }

    /// What tells of the bytes that are brought back.
    pub fn watch(&self) -> Option<Watch> {
        self.progress.as_ref()?.watch()
    }

    fn end_progress(&mut self) {
        if let Some(progress) = self.progress.take() {
            progress.end();
        }
    }

    /// Says what went wrong.
    fn say(&mut self, words: impl Display) {
        self.speak(Weight::Wrong, words);
    }

    /// Says what people want to know.
    fn tell_usual(&mut self, words: impl Display) {
        self.speak(Weight::Usual, words);
    }

    /// Says something, or keeps it for later when a program has the whole screen for itself.
    fn speak(&mut self, weight: Weight, words: impl Display) {
        if !voice::says(weight) || !screen_is_taken() {
            return output::speak(weight, words);
        }
        if self.kept.len() == MOST_KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back((weight, words.to_string()));
    }
}

impl Drop for Narrator {
    fn drop(&mut self) {
        self.end_progress();
    }
}

/// How a checkpoint was made, in one line.
fn in_detail(taken: &Taken) -> String {
    let way = match &taken.parent {
        Some(parent) => format!("on top of {parent}"),
        None => "in full".to_owned(),
    };
    format!(
        "it was made {way}: {} of {} of memory new, {} processes, {} threads",
        options::percent(taken.dirty_share()),
        options::size(taken.raw_bytes.saturating_add(taken.kept_bytes)),
        taken.processes,
        taken.threads
    )
}

/// Whether standard error is a terminal on which a program draws.
fn screen_is_taken() -> bool {
    terminal::modes(io::stderr()).is_ok_and(|modes| !assembles_lines(&modes))
}

/// One line at the end, if there is anything to tell.
fn say_last_words(ending: &Ending, ran: Duration, totals: Totals) {
    if totals.taken + totals.failed == 0 {
        return;
    }
    let end = match ending {
        Ending::Ended(Ended::Exited(status)) => format!("the job exited with status {status}"),
        Ending::Ended(Ended::Killed(signal)) => format!("the job was ended by signal {signal}"),
        Ending::Suspended { last, .. } => {
            format!("the job is stopped, to go on from {}", last.path)
        }
    };
    let seconds = i64::try_from(ran.as_secs()).unwrap_or(i64::MAX);
    output::tell(format_args!(
        "{end} after {}; {} checkpoints ({}), {} failed, paused {:.3} s in all",
        options::span(seconds),
        totals.taken,
        options::size(totals.bytes),
        totals.failed,
        totals.paused.as_secs_f64()
    ));
}

/// A path as it can be pasted into a shell.
pub fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |letter: char| letter.is_alphanumeric() || "/._-+,:@%=".contains(letter);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::shell_word;

    #[test]
    fn paths_can_be_pasted() {
        let check = |path: &str, expected: &str| {
            assert_eq!(shell_word(Path::new(path)), expected);
        };
        check("/home/me/rckpt-a.out-42", "/home/me/rckpt-a.out-42");
        check("/tmp/my job", "'/tmp/my job'");
        check("/tmp/it's", r"'/tmp/it'\''s'");
        check("/tmp/$HOME", "'/tmp/$HOME'");
    }
}
