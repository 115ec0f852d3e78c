//! Times at which a job must stop: the batch system's, and the user's budget over all starts.

use std::time::{Duration, Instant, SystemTime};

use super::alarms::Alarm;
use super::inquiry::{Inquiry, PATIENCE};
use super::{Cause, Loop, seconds_since_1970};
use crate::job::batch::{self, Batch, Standing};
use crate::job::budget;
use crate::job::report::Event;
use crate::job::signals::Farewell;

/// A limit that moved by less is still the same.
const JITTER: Duration = Duration::from_secs(5);

impl Loop<'_> {
    /// Sets the alarms for both times, as far as they are known.
    pub(super) fn set_limits(&mut self) {
        if let Some(most) = self.own.settings.most_total {
            self.alarms.set(Alarm::Budget, self.begun + most.saturating_sub(self.spent));
        }
        if self.own.settings.grace.is_zero() {
            return;
        }
        let Batch::Slurm { end, .. } = &self.own.batch else { return };
        match end {
            Some(end) => {
                let left = end.saturating_sub(seconds_since_1970(SystemTime::now()));
                self.allow(Duration::from_secs(u64::try_from(left).unwrap_or(0)));
            }
            None => self.inquire(),
        }
    }

    /// Takes note of how much time the batch system allows.
    fn allow(&mut self, left: Duration) {
        let now = Instant::now();
        self.limit = Some(now + left);
        let lead = batch::lead(left, self.own.settings.grace, self.slowest);
        self.alarms.set(Alarm::Limit, now + left - lead);
    }

    /// The time that was allowed is nearly over. It may have been made longer, so the batch system is
    /// asked once more.
    pub(super) fn limit_is_near(&mut self) {
        self.is_near = true;
        self.inquire();
        if self.inquiry.is_none() {
            // There is nobody to ask.
            self.answered(Standing::Unknown);
        }
    }

    /// Asks the batch system how the job stands.
    fn inquire(&mut self) {
        // A child of ours would be taken for a part of the job by a checkpoint.
        if self.running.is_some() || self.inquiry.is_some() {
            return;
        }
        let Some(command) = self.own.batch.inquire() else { return };
        match Inquiry::start(command) {
            Ok(inquiry) => {
                self.inquiry = Some(inquiry);
                self.alarms.set(Alarm::Inquiry, Instant::now() + PATIENCE);
            }
            Err(error) => self.trouble(&format!(
                "the batch system cannot be asked how much time is left: {error}"
            )),
        }
    }

    /// Reads what the batch system answers.
    pub(super) fn read_answer(&mut self) {
        let Some(answer) = self.inquiry.as_mut().and_then(Inquiry::read) else { return };
        self.inquiry = None;
        self.answered(self.own.batch.standing(&answer));
    }

    /// The batch system has not answered in good time.
    pub(super) fn answer_is_late(&mut self) {
        self.inquiry = None;
        self.answered(Standing::Unknown);
    }

    fn answered(&mut self, standing: Standing) {
        self.alarms.unset(Alarm::Inquiry);
        let was_near = std::mem::take(&mut self.is_near);
        let moved = |left: Duration| {
            let known = self.limit.map(|limit| limit.saturating_duration_since(Instant::now()));
            known.is_none_or(|known| left > known + JITTER)
        };
        match standing {
            Standing::Runs(Some(left)) if moved(left) => self.allow(left),
            Standing::Runs(None) => self.limit = None,
            Standing::Runs(Some(_)) | Standing::TimedOut | Standing::Ends | Standing::Unknown => {
                if was_near && self.told.is_none() {
                    self.end(self.own.settings.farewell, Cause::Limit, None);
                } else if standing == Standing::Unknown && self.limit.is_none() {
                    self.trouble(
                        "squeue does not tell how much time is left: no last checkpoint will be \
                         taken before the time is over, unless a signal asks for one",
                    );
                }
            }
        }
    }

    /// How long the last checkpoint may take. Whoever sends SIGTERM waits for nobody; what comes earlier
    /// is a warning, and leaves the time that there is.
    pub(super) fn allowance(&self, is_warning: bool) -> Duration {
        let grace = self.own.settings.grace;
        let left = self.limit.map(|limit| limit.saturating_duration_since(Instant::now()));
        match left {
            Some(left) if is_warning && !grace.is_zero() => grace.max(left.saturating_sub(JITTER)),
            _ => grace,
        }
    }

    /// The budget is used up.
    pub(super) fn budget_is_spent(&mut self) {
        if self.told.is_none() {
            self.end(Farewell::Stop, Cause::Budget, None);
        }
    }

    /// Keeps how long the job has run, for its next start.
    pub(super) fn keep_account(&mut self) {
        if !self.in_charge {
            return;
        }
        let spent = self.spent + self.begun.elapsed();
        if let Err(error) = budget::write(&self.job.directory, spent) {
            self.observer.tell(Event::Trouble(&error.to_string()));
        }
    }
}
