//! The timers of a job that are armed, of every kind.

use serde::Serialize;

use crate::model::file::{OpenFile, OpenFileKind};
use crate::model::job::Job;
use crate::model::process::{PosixTimer, Process};
use crate::model::time::{TimeSpec, TimerSpec};

/// A timer.
#[derive(Serialize)]
pub struct TimerReport {
    /// Whose it is; `None`: it is an open file's.
    pub process: Option<i32>,
    /// The open file that it is.
    pub open_file: Option<u32>,
    pub kind: &'static str,
    /// The kernel's number for it, where it has one.
    pub id: Option<i32>,
    pub clock: &'static str,
    /// Seconds until it fires.
    pub left: f64,
    /// Seconds between that and each time after; `None`: it fires once.
    pub every: Option<f64>,
    /// The signal that it sends, when it sends one.
    pub signal: Option<i32>,
}

/// Reports all that are armed.
pub fn timers(job: &Job) -> Vec<TimerReport> {
    let of_files = (0..).zip(&job.open_files).filter_map(|(number, file)| of_file(number, file));
    job.processes.iter().flat_map(of_process).chain(of_files).collect()
}

fn of_process(process: &Process) -> Vec<TimerReport> {
    /// The clock and the signal of ITIMER_REAL, ITIMER_VIRTUAL and ITIMER_PROF.
    const INTERVAL: [(&str, i32); 3] = [
        ("real time", libc::SIGALRM),
        ("time in the program", libc::SIGVTALRM),
        ("processor time", libc::SIGPROF),
    ];
    let intervals = process.interval_timers.iter().zip(INTERVAL);
    let intervals = intervals.filter_map(|(timer, (clock, signal))| {
        let report = armed(timer)?;
        let process = Some(process.pid.0);
        Some(TimerReport { process, kind: "setitimer", clock, signal: Some(signal), ..report })
    });
    let posix = process.posix_timers.iter().filter_map(|timer| {
        let PosixTimer { id, clock, notification, timer, .. } = timer;
        let sends = matches!(notification.method, libc::SIGEV_SIGNAL | libc::SIGEV_THREAD_ID);
        Some(TimerReport {
            process: Some(process.pid.0),
            kind: "timer_create",
            id: Some(*id),
            clock: clock_name(*clock),
            signal: sends.then_some(notification.signal),
            ..armed(timer)?
        })
    });
    intervals.chain(posix).collect()
}

fn of_file(number: u32, file: &OpenFile) -> Option<TimerReport> {
    let OpenFileKind::TimerFd { clock, timer, .. } = &file.kind else { return None };
    let clock = clock_name(*clock);
    Some(TimerReport { open_file: Some(number), kind: "timerfd", clock, ..armed(timer)? })
}

/// What is common to all; `None` for a timer that is not armed.
fn armed(timer: &TimerSpec) -> Option<TimerReport> {
    (!timer.value.is_zero()).then(|| TimerReport {
        process: None,
        open_file: None,
        kind: "",
        id: None,
        clock: "",
        left: seconds(timer.value),
        every: (!timer.interval.is_zero()).then(|| seconds(timer.interval)),
        signal: None,
    })
}

/// Seconds of a timer, which are few enough to be exact to more than is told.
fn seconds(time: TimeSpec) -> f64 {
    let whole = u32::try_from(time.seconds).map_or(f64::INFINITY, f64::from);
    whole + f64::from(u32::try_from(time.nanoseconds).unwrap_or(0)) / 1e9
}

const fn clock_name(clock: i32) -> &'static str {
    match clock {
        libc::CLOCK_REALTIME => "real time",
        libc::CLOCK_MONOTONIC => "monotonic",
        libc::CLOCK_BOOTTIME => "time since boot",
        libc::CLOCK_REALTIME_ALARM => "real time, waking",
        libc::CLOCK_BOOTTIME_ALARM => "time since boot, waking",
        libc::CLOCK_TAI => "atomic time",
        _ => "processor time",
    }
}
