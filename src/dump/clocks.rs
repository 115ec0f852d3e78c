//! Reads the clocks as the job sees them.

use std::io;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, getpid};

use super::error::CollectError;
use crate::model::time::{Clocks, TimeSpec};
use crate::sys::procfs;

const NANOSECONDS: i128 = 1_000_000_000;
/// Milliseconds in a unit of time in /proc (USER_HZ is 100 on x86).
const TICK: u64 = 10;

/// The clocks now, as a process sees them.
///
/// # Errors
/// When they or the offsets of its time namespace cannot be read.
pub(super) fn now(pid: Pid) -> Result<Clocks, CollectError> {
    let own = procfs::time_offsets(getpid())?;
    let job = procfs::time_offsets(pid)?;
    let now = |what, clock| -> Result<TimeSpec, CollectError> {
        let now = clock_gettime(clock)
            .map_err(|errno| CollectError::Machine { what, source: io::Error::from(errno) })?;
        Ok(TimeSpec { seconds: now.tv_sec(), nanoseconds: now.tv_nsec() })
    };
    Ok(Clocks {
        realtime: now("the clock", ClockId::CLOCK_REALTIME)?,
        monotonic: shifted(now("the monotonic clock", ClockId::CLOCK_MONOTONIC)?, job[0] - own[0]),
        boottime: shifted(now("the boot clock", ClockId::CLOCK_BOOTTIME)?, job[1] - own[1]),
    })
}

/// When a process was started.
///
/// # Errors
/// When /proc or the clock cannot be read.
pub(super) fn started(pid: Pid) -> Result<SystemTime, CollectError> {
    let after_boot = Duration::from_millis(procfs::stat(pid)?.starttime.saturating_mul(TICK));
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map_err(|errno| CollectError::Machine { what: "the boot clock", source: errno.into() })?;
    Ok(SystemTime::now() - Duration::from(now).saturating_sub(after_boot))
}

/// A time moved by so many nanoseconds.
fn shifted(time: TimeSpec, nanoseconds: i128) -> TimeSpec {
    let total = i128::from(time.seconds) * NANOSECONDS + i128::from(time.nanoseconds) + nanoseconds;
    TimeSpec {
        seconds: i64::try_from(total.div_euclid(NANOSECONDS)).unwrap_or(i64::MAX),
        nanoseconds: i64::try_from(total.rem_euclid(NANOSECONDS)).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shifted_both_ways() {
        let check = |nanoseconds: i128, expected: (i64, i64)| {
            let time = shifted(TimeSpec { seconds: 10, nanoseconds: 500 }, nanoseconds);
            assert_eq!((time.seconds, time.nanoseconds), expected);
        };
        check(0, (10, 500));
        check(-501, (9, 999_999_999));
        check(3 * NANOSECONDS + 1, (13, 501));
        check(-20 * NANOSECONDS, (-10, 500));
    }
}
