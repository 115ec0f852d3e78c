//! Timer descriptors (timerfd).

use std::thread;
use std::time::Duration;

use super::scan::Description;
use super::{CollectFilesError, Failure, call_failed, duplicate};
use crate::model::file::OpenFileKind;
use crate::sys::fdinfo::{self, ParseFdInfoError};
use crate::sys::{descriptor, procfs};

/// Within this time the interrupt of a timer that has run out is served.
const INTERRUPT_LATENCY: Duration = Duration::from_micros(500);

/// Records a timer. Time left and interval are asked for first: that makes a periodic timer count
/// the expirations which are due, so that the number read after it is the one the job would read.
pub(super) fn collect(found: &Description) -> Result<OpenFileKind, Failure> {
    let (pid, number) = found.holder;
    let descriptor = duplicate(found)?;
    let ask =
        || descriptor::timerfd_gettime(&descriptor).map_err(call_failed(found, "timerfd_gettime"));
    let mut timer = ask()?;
    if timer.value.is_zero() {
        // Either it is disarmed, or it has just run out and the kernel's interrupt is still to come,
        // which counts the tick and, for a repeating one, starts the next period.
        thread::sleep(INTERRUPT_LATENCY);
        timer = ask()?;
    }
    let content =
        procfs::read(pid, &format!("fdinfo/{number}")).map_err(CollectFilesError::from)?;
    let parse_failed = |source| CollectFilesError::ParseFdInfo { pid, number, source };
    let info = fdinfo::parse(&content).map_err(parse_failed)?;
    let Some(shown) = info.timer else {
        return Err(parse_failed(ParseFdInfoError { line: b"clockid".to_vec() }).into());
    };
    Ok(OpenFileKind::TimerFd { clock: shown.clock, ticks: shown.ticks, flags: shown.flags, timer })
}
