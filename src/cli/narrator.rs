//! Tells a person on standard error what happens to a supervised job.

use std::collections::VecDeque;
use std::fmt::Display;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::job::checkpoint::CheckpointError;
use crate::job::copy::Brought;
use crate::job::places::Moved;
use crate::job::report::{Event, Explanation, Observer, Totals};
use crate::job::root::Ended;
use crate::job::supervisor::{Cause, Ending};
use crate::model::terminal::assembles_lines;
use crate::sys::terminal;

use super::failure::Failure;
use super::{options, output};

/// Lines kept for later; those before are in the journal.
const MOST_KEPT: usize = 10;

/// Tells what happens to one job.
#[derive(Debug, Default)]
pub struct Narrator {
    /// Whether to tell only what went wrong.
    is_quiet: bool,
    /// What the last checkpoint hinted at, told once at the end.
    hint: Option<String>,
    /// What was not said because the job draws on the screen.
    kept: VecDeque<String>,
}

impl Observer for Narrator {
    fn tell(&mut self, event: Event<'_>) {
        match event {
            Event::Started { .. }
            | Event::Resumed { .. }
            | Event::BringingHome { .. }
            | Event::Ending { .. }
            | Event::PlaceMoved(_)
            | Event::PutOff
            | Event::Requeued
            | Event::StartedOver
            | Event::HadFinished { .. }
                if self.is_quiet => {}
            Event::Started { directory } => output::say(format_args!(
                "checkpoints go to {0}; to bring the job back: rckpt restore {1}",
                directory.display(),
                shell_word(directory)
            )),
            Event::Resumed { generation, root, directory } => {
                output::say(format_args!(
                    "brought back from {}; its root is process {root}",
                    generation.display()
                ));
                if !generation.starts_with(directory) {
                    output::say(format_args!("its checkpoints go to {}", directory.display()));
                }
            }
            Event::Taken(taken) => {
                for warning in &taken.warnings {
                    self.say(format_args!("warning: {warning}"));
                }
                if !self.is_quiet {
                    self.say(options::summary(taken));
                    self.hint.clone_from(&taken.hint);
                }
            }
            Event::Failed { explanation, runs_on } => {
                self.say(format_args!(
                    "no checkpoint: error[{}]: {}",
                    explanation.code, explanation.message
                ));
                if let Some(hint) = &explanation.hint {
                    self.say(format_args!("hint: {hint}"));
                }
                if runs_on {
                    self.say("the job runs on");
                }
            }
            // Those are the usual; the journal has them.
            Event::Copied(Brought { warning, .. }) => {
                if let Some(warning) = warning {
                    self.say(format_args!("warning: {warning}"));
                }
            }
            Event::NotCopied { reason } => self.say(format_args!(
                "the newest checkpoint is in the local directory only: {reason}"
            )),
            Event::BringingHome { directory } => self.say(format_args!(
                "copying the newest checkpoint to {} (TERM gives that up)",
                directory.display()
            )),
            Event::NoLocal { reason } => self.say(format_args!(
                "checkpoints are not written to a local directory first: {reason}"
            )),
            Event::Ending { cause } => self.say(match cause {
                Cause::Request => "told to end: taking a last checkpoint",
                Cause::Limit => "the time allowed here is nearly over: taking a last checkpoint",
                Cause::Budget => {
                    "the time allowed by --max-total is over: taking a last checkpoint"
                }
            }),
            Event::PlaceMoved(Moved { variable, old, new }) => self.say(format_args!(
                "what was under {old} is looked for under {new} (${variable} at the checkpoint and now)"
            )),
            Event::HolderEnded => self.say(
                "the process that held checkpoints off has ended: they are taken again",
            ),
            Event::PutOff => self.say("a checkpoint is put off until rckpt release"),
            Event::Requeued => self.say("the batch system will start the job again"),
            Event::NotRequeued { reason } => {
                self.say(format_args!("the job is not requeued: {reason}"));
            }
            Event::Passed => self.say("no last checkpoint: the job is told to end"),
            Event::PassedOver { generation, reason } => self.say(format_args!(
                "{} is damaged, and passed over for the one before it: {reason}",
                generation.display()
            )),
            Event::StartedOver => self.say(
                "there is no checkpoint to go on from: the job starts over, and what it had written \
                 is taken back",
            ),
            Event::HadFinished { finish, directory } => self.say(format_args!(
                "the job had finished at {} with status {}, and is not run again; --fresh would start \
                 it over and keep {} aside",
                options::instant(finish.at),
                finish.status,
                directory.display()
            )),
            // The journal has it; people know what they sent.
            Event::Signal(_) => {}
            Event::Over { ending, ran, totals } => {
                self.kept.drain(..).for_each(output::say);
                if !self.is_quiet {
                    say_last_words(ending, ran, totals);
                }
                if let Some(hint) = self.hint.take() {
                    output::say(format_args!("hint: {hint}"));
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
    /// One that tells everything, or only what went wrong.
    pub fn new(is_quiet: bool) -> Self {
        Self { is_quiet, ..Self::default() }
    }

    /// Says something, or keeps it for later when a program has the whole screen for itself.
    fn say(&mut self, words: impl Display) {
        if !screen_is_taken() {
            return output::say(words);
        }
        if self.kept.len() == MOST_KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(words.to_string());
    }
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
    output::say(format_args!(
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
