//! Timer descriptors (timerfd).

use super::scan::Description;
use super::{CollectFilesError, Failure, call_failed, duplicate};
use crate::model::file::OpenFileKind;
use crate::sys::fdinfo::{self, ParseFdInfoError};
use crate::sys::{descriptor, procfs};

/// Records a timer. Time left and interval are asked for first: that makes a periodic timer count
/// the expirations which are due, so that the number read after it is the one the job would read.
pub(super) fn collect(found: &Description) -> Result<OpenFileKind, Failure> {
    let (pid, number) = found.holder;
    let timer = descriptor::timerfd_gettime(duplicate(found)?)
        .map_err(call_failed(found, "timerfd_gettime"))?;
    let content =
        procfs::read(pid, &format!("fdinfo/{number}")).map_err(CollectFilesError::from)?;
    let parse_failed = |source| CollectFilesError::ParseFdInfo { pid, number, source };
    let info = fdinfo::parse(&content).map_err(parse_failed)?;
    let Some(shown) = info.timer else {
        return Err(parse_failed(ParseFdInfoError { line: b"clockid".to_vec() }).into());
    };
    Ok(OpenFileKind::TimerFd { clock: shown.clock, ticks: shown.ticks, flags: shown.flags, timer })
}
