//! Files and directories that show the kernel's own state: /proc, /sys, control groups; and a process's own
//! namespaces.
//!
//! They have no content of their own to save or compare; opened again, they show what is true then.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use super::inode::FileSystem;
use super::refusal::RefusalKind;
use super::scan::Description;
use super::{CollectFilesError, Collector, Failure, duplicate};
use crate::model::file::OpenFileKind;
use crate::model::id::{self, Bytes, FdTableId};
use crate::model::number::to_usize;
use crate::sys::procfs;

/// Bytes at the beginning of the stack, arguments and environment among them, that tell two memories apart.
const SAMPLE: usize = 256;

/// Files in a process's directory that are bound to its memory when they are opened
/// (fs/proc/base.c and task_mmu.c, `proc_mem_open`).
const BOUND_TO_MEMORY: [&str; 8] =
    ["mem", "maps", "smaps", "smaps_rollup", "numa_maps", "pagemap", "environ", "auxv"];

/// Records a description of such a file.
pub(super) fn collect(collector: &Collector, found: &Description) -> Result<OpenFileKind, Failure> {
    if FileSystem::of(&found.proc_path()) == FileSystem::Kernel {
        if found.access() != libc::O_RDONLY {
            return Err(RefusalKind::KernelFileForWriting.into());
        }
        return Ok(record(found, found.link.clone()));
    }
    let path = String::from_utf8_lossy(&found.link);
    let Some(process) = Process::of(&path) else { return Ok(record(found, found.link.clone())) };
    // Numbers in the proc file system that we see, too, are ours; another one is the job's own.
    let ours = std::fs::metadata("/proc").is_ok_and(|proc| proc.dev() == found.stat.device);
    let recorded = if ours {
        let host = nix::unistd::Pid::from_raw(process.number);
        collector.recorded.get(&host).copied()
    } else {
        let wanted = id::Pid(process.number);
        collector.recorded.values().find(|recorded| **recorded == wanted).copied()
    };
    let Some(recorded) = recorded else { return Err(RefusalKind::ProcOfOutsider.into()) };
    if process.rest == "mem" && is_alone(collector, found, recorded) && shows_own_memory(found)? {
        return Ok(OpenFileKind::OwnMemory { position: found.position() });
    }
    if process.rest.split('/').any(|name| BOUND_TO_MEMORY.contains(&name)) {
        return Err(RefusalKind::ProcOfMemory.into());
    }
    if process.rest.starts_with("task/") {
        return Err(RefusalKind::ProcOfThread.into());
    }
    if collector.sharers.contains(&recorded) {
        return Err(RefusalKind::LeadsToSharer { process: recorded }.into());
    }
    Ok(record(found, format!("/proc/{recorded}/{}", process.rest).into_bytes()))
}

/// Records a description of a namespace that its process is itself in: opened again, it is of that one which the
/// process is in then. No other can be found again.
pub(super) fn collect_namespace(
    collector: &Collector,
    found: &Description,
) -> Result<OpenFileKind, Failure> {
    let pid = found.holder.0;
    let kind =
        String::from_utf8_lossy(found.link.split(|byte| *byte == b':').next().unwrap_or_default());
    let own = procfs::read_link(pid, &format!("ns/{kind}")).map_err(CollectFilesError::from)?;
    let Some(recorded) = collector.recorded.get(&pid) else {
        return Err(RefusalKind::Namespace.into());
    };
    if own.as_os_str().as_bytes() != found.link {
        return Err(RefusalKind::Namespace.into());
    }
    if collector.sharers.contains(recorded) {
        return Err(RefusalKind::LeadsToSharer { process: *recorded }.into());
    }
    Ok(record(found, format!("/proc/{recorded}/ns/{kind}").into_bytes()))
}

/// Whether the process that the file belongs to is the only one that has it.
fn is_alone(collector: &Collector, found: &Description, process: id::Pid) -> bool {
    let Some(first) = found.entries.first() else { return false };
    let users = collector.sharing.iter().filter(|(table, _)| index_of(*table) == first.table);
    collector.recorded.get(&found.holder.0) == Some(&process)
        && found.entries.iter().all(|entry| entry.table == first.table)
        && users.count() == 1
}

fn index_of(table: FdTableId) -> usize {
    to_usize(u64::from(table.0))
}

/// Whether the memory that a process had when it opened its /proc/self/mem is the one that it has now: a
/// program that executes another gets a new one.
fn shows_own_memory(found: &Description) -> Result<bool, Failure> {
    let pid = found.holder.0;
    let stack = procfs::stat(pid).map_err(CollectFilesError::from)?.startstack;
    let look = |file: &File| {
        let mut bytes = [0; SAMPLE];
        file.read_exact_at(&mut bytes, stack).map(|()| bytes).ok()
    };
    let theirs = File::from(duplicate(found)?);
    let path = PathBuf::from(format!("/proc/{pid}/mem"));
    let now = File::open(&path).map_err(|source| CollectFilesError::ReadProc { path, source })?;
    Ok(look(&theirs).is_some_and(|bytes| look(&now) == Some(bytes)))
}

fn record(found: &Description, path: Vec<u8>) -> OpenFileKind {
    OpenFileKind::Proc { path: Bytes(path), position: found.position() }
}

/// A path below /proc/PID, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Process<'a> {
    number: i32,
    rest: &'a str,
}

impl<'a> Process<'a> {
    fn of(path: &'a str) -> Option<Self> {
        let path = path.strip_prefix("/proc/")?;
        let (number, rest) = path.split_once('/').unwrap_or((path, ""));
        Some(Self { number: number.parse().ok()?, rest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_processes_are_told_from_others() {
        assert_eq!(Process::of("/proc/12/fd"), Some(Process { number: 12, rest: "fd" }));
        assert_eq!(Process::of("/proc/12"), Some(Process { number: 12, rest: "" }));
        assert_eq!(Process::of("/proc/meminfo"), None);
        assert_eq!(Process::of("/proc/sys/kernel"), None);
    }
}
