//! When the loop is to wake by itself: a few named instants, and what is due of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::poll::PollTimeout;

/// What the loop wakes for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alarm {
    /// The next checkpoint by the clock.
    Interval,
    /// The last checkpoint has taken as long as it may.
    Grace,
    /// The time that the batch system allows is nearly over.
    Limit,
    /// Checkpoints have been held off as long as they may be.
    Hold,
    /// The time that the user allows the job in all is over.
    Budget,
    /// The batch system has had time enough to answer.
    Inquiry,
    /// A copy that failed is tried again.
    Copy,
}

/// The alarms that are set.
#[derive(Clone, Debug, Default)]
pub struct Alarms {
    set: BTreeMap<Alarm, Instant>,
}

impl Alarms {
    /// Sets an alarm, or moves it.
    pub fn set(&mut self, alarm: Alarm, at: Instant) {
        self.set.insert(alarm, at);
    }

    /// Takes an alarm away.
    pub fn unset(&mut self, alarm: Alarm) {
        self.set.remove(&alarm);
    }

    /// When an alarm is due, if it is set.
    #[must_use]
    pub fn at(&self, alarm: Alarm) -> Option<Instant> {
        self.set.get(&alarm).copied()
    }

    /// How long a poll(2) that begins at `now` may last.
    #[must_use]
    pub fn timeout(&self, now: Instant) -> PollTimeout {
        let Some(first) = self.set.values().min() else { return PollTimeout::NONE };
        // Rounded up: waking too early would find nothing due, and turn in circles until it is.
        let left = first.saturating_duration_since(now) + Duration::from_micros(999);
        // Longer than poll can wait is as good as the longest: nothing is due then.
        PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX)
    }

    /// The alarms that are due at `now`, which are no longer set then.
    pub fn take_due(&mut self, now: Instant) -> Vec<(Alarm, Instant)> {
        let due: Vec<_> = self
            .set
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(alarm, at)| (*alarm, *at))
            .collect();
        for (alarm, _) in &due {
            self.set.remove(alarm);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use nix::poll::PollTimeout;

    use super::{Alarm, Alarms};

    #[test]
    fn the_earliest_wakes_and_each_comes_once() {
        let now = Instant::now();
        let after = |milliseconds| now + Duration::from_millis(milliseconds);
        let mut alarms = Alarms::default();
        assert_eq!(alarms.timeout(now), PollTimeout::NONE);
        alarms.set(Alarm::Grace, after(70));
        alarms.set(Alarm::Interval, after(30));
        assert_eq!(alarms.timeout(now), PollTimeout::from(30_u8));
        assert_eq!(alarms.timeout(after(29) + Duration::from_micros(1)), PollTimeout::from(1_u8));
        assert_eq!(alarms.take_due(after(29)), []);
        assert_eq!(alarms.take_due(after(30)), [(Alarm::Interval, after(30))]);
        assert_eq!(alarms.take_due(after(30)), []);
        assert_eq!(alarms.at(Alarm::Grace), Some(after(70)));
        alarms.unset(Alarm::Grace);
        assert_eq!(alarms.at(Alarm::Grace), None);
        alarms.set(Alarm::Budget, now + Duration::from_hours(10_000));
        assert_eq!(alarms.timeout(now), PollTimeout::MAX);
    }
}
