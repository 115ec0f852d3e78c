//! Describes the machine that a checkpoint is taken on, and reads its clocks as the job sees them.

use std::fs;
use std::io;

use nix::sys::utsname::uname;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, getpid};

use super::error::CollectError;
use crate::model::id::Bytes;
use crate::model::job::Machine;
use crate::model::time::{Clocks, TimeSpec};
use crate::sys::{cpu, procfs};

const NANOSECONDS: i128 = 1_000_000_000;

/// Describes this machine.
///
/// # Errors
/// When /proc or uname(2) do not tell.
pub(super) fn describe() -> Result<Machine, CollectError> {
    let names = uname()
        .map_err(|errno| CollectError::Machine { what: "the name", source: errno.into() })?;
    let read =
        |what, path: &str| fs::read(path).map_err(|source| CollectError::Machine { what, source });
    let cpuinfo = read("the CPU features", "/proc/cpuinfo")?;
    let boot_id = read("the boot id", "/proc/sys/kernel/random/boot_id")?;
    let (cpu, cpu_flags) = parse_cpuinfo(&cpuinfo);
    Ok(Machine {
        host: names.nodename().to_owned().into(),
        kernel: names.release().to_owned().into(),
        cpu,
        cpu_flags,
        xcr0: cpu::xcr0(),
        xstate_components: cpu::xstate_components(),
        boot_id: Bytes::from(boot_id.trim_ascii()),
    })
}

/// The clocks now, as a process sees them.
///
/// # Errors
/// When they or the offsets of its time namespace cannot be read.
pub(super) fn clocks(pid: Pid) -> Result<Clocks, CollectError> {
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

/// A time moved by so many nanoseconds.
fn shifted(time: TimeSpec, nanoseconds: i128) -> TimeSpec {
    let total = i128::from(time.seconds) * NANOSECONDS + i128::from(time.nanoseconds) + nanoseconds;
    TimeSpec {
        seconds: i64::try_from(total.div_euclid(NANOSECONDS)).unwrap_or(i64::MAX),
        nanoseconds: i64::try_from(total.rem_euclid(NANOSECONDS)).unwrap_or_default(),
    }
}

/// Model name and sorted flags of the first CPU.
fn parse_cpuinfo(bytes: &[u8]) -> (Bytes, Vec<String>) {
    let mut model = Bytes::default();
    let mut flags = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n').take_while(|line| !line.is_empty()) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let value = line[colon + 1..].trim_ascii();
        match line[..colon].trim_ascii() {
            b"model name" => model = Bytes::from(value),
            b"flags" => {
                flags = value
                    .split(|byte| *byte == b' ')
                    .map(|flag| String::from_utf8_lossy(flag).into_owned())
                    .collect();
            }
            _ => {}
        }
    }
    flags.sort_unstable();
    (model, flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cpu_is_described() {
        let text =
            b"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: sse fpu avx\n\nmodel name : B\n";
        let (model, flags) = parse_cpuinfo(text);
        assert_eq!(model, Bytes::from(b"Some CPU".as_slice()));
        assert_eq!(flags, ["avx", "fpu", "sse"]);
    }

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
