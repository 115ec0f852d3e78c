//! How often checkpoints are taken: fixed by the user, or chosen from what they cost.
//!
//! J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps" (2006):
//! of all intervals the one that loses least, to checkpoints and to work done twice.

use std::time::Duration;

/// The shortest interval that is chosen.
pub const SHORTEST: Duration = Duration::from_secs(60);
/// The longest.
pub const LONGEST: Duration = Duration::from_secs(3600);
/// The expected time between interruptions, unless the user knows better.
pub const INTERRUPTIONS: Duration = Duration::from_secs(24 * 3600);

/// When checkpoints are taken by the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Never.
    OnRequest,
    /// At this interval.
    Every(Duration),
    /// As seldom or often as their cost suggests.
    Auto {
        /// Expected time between interruptions.
        interruptions: Duration,
    },
}

/// What checkpoints of one job cost it, learnt from each.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Seconds of the job's time that one takes; `None`: there was none yet.
    seconds: Option<f64>,
}

impl Cost {
    /// Learns from a checkpoint that stopped the job for `pause` and was complete after `elapsed`, on
    /// a machine with so many processors. What is written while the job runs is reckoned to take one of
    /// the processors from it. The newest counts as much as all before it.
    pub fn learn(&mut self, pause: Duration, elapsed: Duration, processors: u32) {
        let written = elapsed.saturating_sub(pause).as_secs_f64() / f64::from(processors.max(1));
        let new = pause.as_secs_f64() + written;
        self.seconds = Some(self.seconds.map_or(new, |old| f64::midpoint(old, new)));
    }
}

impl Pace {
    /// The time from one checkpoint to the next; `None`: none is taken by the clock.
    #[must_use]
    pub fn interval(self, cost: Cost) -> Option<Duration> {
        match self {
            Self::OnRequest => None,
            Self::Every(interval) => Some(interval),
            // The first comes soon: it tells what they cost.
            Self::Auto { interruptions } => {
                Some(cost.seconds.map_or(SHORTEST, |cost| best(cost, interruptions)))
            }
        }
    }
}

/// Daly's estimate for checkpoints that cost `cost` seconds, within the bounds.
fn best(cost: f64, interruptions: Duration) -> Duration {
    let between = interruptions.as_secs_f64();
    let ratio = cost / (2.0 * between);
    let seconds = if ratio < 1.0 {
        (2.0 * cost * between).sqrt() * (1.0 + ratio.sqrt() / 3.0 + ratio / 9.0) - cost
    } else {
        between
    };
    Duration::from_secs_f64(seconds.clamp(SHORTEST.as_secs_f64(), LONGEST.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Cost, INTERRUPTIONS, Pace, best};

    #[test]
    fn dearer_checkpoints_come_more_seldom_within_bounds() {
        let check = |cost: f64, hours: u64, expected: u64| {
            let chosen = best(cost, Duration::from_secs(hours * 3600));
            assert_eq!(chosen.as_secs(), expected, "{cost} s every {hours} h");
        };
        check(0.001, 24, 60);
        check(0.1, 24, 131);
        check(1.0, 24, 415);
        check(1.0, 1, 84);
        check(30.0, 24, 2256);
        check(600.0, 24, 3600);
        check(9000.0, 1, 3600);
    }

    #[test]
    fn the_interval_adapts_to_what_is_measured() {
        let pace = Pace::Auto { interruptions: INTERRUPTIONS };
        let mut cost = Cost::default();
        let interval = |cost| pace.interval(cost).unwrap().as_secs();
        assert_eq!(interval(cost), 60);
        cost.learn(Duration::from_millis(10), Duration::from_millis(3_610), 4);
        assert_eq!(interval(cost), 395);
        for _ in 0..10 {
            cost.learn(Duration::from_millis(1), Duration::from_millis(41), 4);
        }
        assert_eq!(interval(cost), 60);
        assert_eq!(Pace::OnRequest.interval(cost), None);
        assert_eq!(Pace::Every(Duration::from_secs(1)).interval(cost).unwrap().as_secs(), 1);
    }
}
