//! Finds out what the restore plan needs to know of this machine.

use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Gid, Pid as HostPid, getgid, getgroups, getuid};
use thiserror::Error;

use super::plan::Environment;
use crate::model::job::Job;
use crate::model::number::to_usize;
use crate::model::time::{Clocks, TimeSpec};
use crate::sys::clone::{
    CAP_CHECKPOINT_RESTORE, CAP_SYS_ADMIN, CAP_SYS_RESOURCE, effective_capabilities, own_limit,
    timer_ids_can_be_chosen,
};
use crate::sys::machine;
use crate::sys::memory::RemoteMemory;
use crate::sys::procfs::{self, Mapping, ProcError};

/// How many kinds of resources have limits.
const RESOURCES: u32 = 16;

/// Why the machine cannot be looked at.
#[derive(Debug, Error)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum ProbeError {
    #[error("reading {what} of rckpt itself: {source}")]
    ReadSelf { what: &'static str, source: ProcError },
    #[error("reading the vDSO: {source}")]
    ReadVdso { source: io::Error },
    #[error("reading the {what}: {source}")]
    Ask { what: &'static str, source: io::Error },
}

/// Looks at this machine with the restore of `job` in mind.
///
/// # Errors
/// When /proc or a basic system call fails.
pub fn probe(job: &Job) -> Result<Environment, ProbeError> {
    let capabilities = effective_capabilities()
        .map_err(|source| ProbeError::Ask { what: "capabilities", source })?;
    let may = |capability: u32| capabilities >> capability & 1 == 1;
    let (vdso, vdso_span) = vdso()?;
    let taken = job
        .processes
        .iter()
        .flat_map(|process| process.threads.iter().map(|thread| thread.tid).chain([process.pid]))
        .filter(|pid| kill(HostPid::from_raw(pid.0), None) != Err(Errno::ESRCH))
        .collect();
    Ok(Environment {
        machine: machine::describe()
            .map_err(|source| ProbeError::Ask { what: "description of the machine", source })?,
        uid: getuid().as_raw(),
        gid: getgid().as_raw(),
        groups: getgroups()
            .map_err(|errno| ProbeError::Ask { what: "groups", source: errno.into() })?
            .into_iter()
            .map(Gid::as_raw)
            .collect(),
        capabilities: procfs::status(HostPid::this())
            .map_err(|source| ProbeError::ReadSelf { what: "capabilities", source })?
            .capabilities,
        nodes: procfs::allowed_nodes(HostPid::this())
            .map_err(|source| ProbeError::ReadSelf { what: "NUMA nodes", source })?,
        may_choose_pids: may(CAP_SYS_ADMIN) || may(CAP_CHECKPOINT_RESTORE),
        may_raise_limits: may(CAP_SYS_RESOURCE),
        taken,
        terminals_taken: job
            .terminals
            .own
            .iter()
            .any(|terminal| Path::new("/dev/pts").join(terminal.index.to_string()).exists()),
        vdso,
        vdso_span,
        timer_ids: timer_ids_can_be_chosen(),
        available_memory: available_memory()
            .map_err(|source| ProbeError::Ask { what: "available memory", source })?,
        limits: (0..RESOURCES).filter_map(|resource| own_limit(resource).ok()).collect(),
        clocks: Clocks {
            realtime: clock(ClockId::CLOCK_REALTIME)?,
            monotonic: clock(ClockId::CLOCK_MONOTONIC)?,
            boottime: clock(ClockId::CLOCK_BOOTTIME)?,
        },
    })
}

/// MemAvailable and SwapFree of /proc/meminfo, in bytes.
fn available_memory() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kibibytes: u64 = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| ["MemAvailable", "SwapFree"].contains(name))
        .filter_map(|(_, value)| value.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .sum();
    Ok(kibibytes.saturating_mul(1024))
}

fn clock(clock: ClockId) -> Result<TimeSpec, ProbeError> {
    let now = clock_gettime(clock)
        .map_err(|errno| ProbeError::Ask { what: "clocks", source: errno.into() })?;
    Ok(TimeSpec { seconds: now.tv_sec(), nanoseconds: now.tv_nsec() })
}

/// The bytes of the vDSO, and how many bytes it and its data pages span.
fn vdso() -> Result<(Vec<u8>, u64), ProbeError> {
    let this = HostPid::this();
    let mappings = procfs::mappings(this)
        .map_err(|source| ProbeError::ReadSelf { what: "mappings", source })?;
    let is_code = |mapping: &&Mapping| mapping.path == b"[vdso]";
    let is_data = |mapping: &&Mapping| mapping.path.starts_with(b"[vvar");
    let mut bytes = Vec::new();
    for code in mappings.iter().filter(is_code) {
        bytes.resize(to_usize(code.range.len()), 0);
        RemoteMemory::open(this)
            .and_then(|memory| memory.read(code.range.start, &mut bytes))
            .map_err(|source| ProbeError::ReadVdso { source })?;
    }
    let span = mappings
        .iter()
        .filter(|mapping| is_code(mapping) || is_data(mapping))
        .map(|mapping| mapping.range.len())
        .sum();
    Ok((bytes, span))
}
