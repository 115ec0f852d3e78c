//! Points and spans of time, as the kernel's interfaces give them.

use serde::{Deserialize, Serialize};

/// Seconds and nanoseconds. `nanoseconds` lies in `0..1_000_000_000`, also before the epoch.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct TimeSpec {
    /// Whole seconds.
    pub seconds: i64,
    /// The rest, in nanoseconds.
    pub nanoseconds: i64,
}

impl TimeSpec {
    /// Whether it is zero, by which timers say "disarmed" or "once".
    #[must_use]
    pub const fn is_zero(&self) -> bool {
        self.seconds == 0 && self.nanoseconds == 0
    }
}

/// A timer's state (`struct itimerspec`): time left and the interval after that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimerSpec {
    /// Period of a repeating timer; zero: fires once.
    pub interval: TimeSpec,
    /// Time left until it fires next; zero: disarmed.
    pub value: TimeSpec,
}

/// The clocks at the instant of the dump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// CLOCK_REALTIME.
    pub realtime: TimeSpec,
    /// CLOCK_MONOTONIC as the job sees it, its time namespace's offset included.
    pub monotonic: TimeSpec,
    /// CLOCK_BOOTTIME as the job sees it, its time namespace's offset included.
    pub boottime: TimeSpec,
}
