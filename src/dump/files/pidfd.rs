//! Process descriptors (pidfd): which process of the job each stands for.

use nix::unistd::Pid;

use super::refusal::RefusalKind;
use super::scan::Description;
use super::{CollectFilesError, Collector, Failure};
use crate::model::file::OpenFileKind;
use crate::model::id;
use crate::sys::fdinfo::ParseFdInfoError;
use crate::sys::procfs;

/// PIDFD_THREAD, which stays visible in the flags.
const THREAD: u32 = libc::O_EXCL.cast_unsigned();

/// Records a process descriptor.
pub(super) fn collect(collector: &Collector, found: &Description) -> Result<OpenFileKind, Failure> {
    let (pid, number) = found.holder;
    let Some(process) = found.entries[0].info.process else {
        let source = ParseFdInfoError { line: b"Pid".to_vec() };
        return Err(CollectFilesError::ParseFdInfo { pid, number, source }.into());
    };
    let thread = found.flags() & THREAD != 0;
    let process = match process {
        // It has ended, and somebody has waited for it.
        -1 => id::Pid(0),
        // Not to be seen from here.
        0 => return Err(RefusalKind::PidFdOfOutsider { process }.into()),
        process => {
            let host = Pid::from_raw(process);
            let known = collector.recorded.get(&host).or_else(|| collector.zombies.get(&host));
            match known {
                Some(recorded) => *recorded,
                None if is_thread_of_job(collector, host) => {
                    return Err(RefusalKind::PidFdOfThread { thread: process }.into());
                }
                None => return Err(RefusalKind::PidFdOfOutsider { process }.into()),
            }
        }
    };
    if collector.sharers.contains(&process) {
        return Err(RefusalKind::LeadsToSharer { process }.into());
    }
    Ok(OpenFileKind::PidFd { process, thread })
}

fn is_thread_of_job(collector: &Collector, host: Pid) -> bool {
    procfs::status(host)
        .is_ok_and(|status| collector.recorded.contains_key(&Pid::from_raw(status.tgid)))
}
