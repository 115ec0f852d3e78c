//! Event counters (eventfd) and signal descriptors (signalfd).

use super::scan::Description;
use super::{CollectFilesError, Collector, Failure, Warning};
use crate::model::file::OpenFileKind;
use crate::model::signal::SignalSet;
use crate::sys::fdinfo::ParseFdInfoError;

/// Records an event counter. Kernels before 6.5 do not tell whether it is a semaphore, and reading it
/// to find out would change it; then it is taken for a plain counter, with a warning when that could
/// make a difference to what is in it.
pub(super) fn collect(
    collector: &mut Collector,
    found: &Description,
) -> Result<OpenFileKind, Failure> {
    let (pid, number) = found.holder;
    let info = &found.info;
    let Some(count) = info.eventfd_count else {
        let source = ParseFdInfoError { line: b"eventfd-count".to_vec() };
        return Err(CollectFilesError::ParseFdInfo { pid, number, source }.into());
    };
    if info.eventfd_semaphore.is_none() && count > 1 {
        collector.warnings.push(Warning::EventFdModeUnknown { pid, number });
    }
    Ok(OpenFileKind::EventFd { count, semaphore: info.eventfd_semaphore.unwrap_or(false) })
}

/// Records a signal descriptor. What it would read are the pending signals of whoever reads, which have
/// their own records.
pub(super) fn collect_signals(found: &Description) -> Result<OpenFileKind, Failure> {
    let (pid, number) = found.holder;
    let Some(mask) = found.info.signal_mask else {
        let source = ParseFdInfoError { line: b"sigmask".to_vec() };
        return Err(CollectFilesError::ParseFdInfo { pid, number, source }.into());
    };
    Ok(OpenFileKind::SignalFd { mask: SignalSet(mask) })
}
