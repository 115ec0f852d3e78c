//! Whether the memory of a frozen job is read from hidden copies of its processes, so that these run on
//! meanwhile, or while the job stands still.
//!
//! It decides, has copies made, and watches what they cost; reading them is [`super::memory`]'s.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::Pid;

use super::collect::Collected;
use super::error::DumpError;
use super::tracking::Session;
use crate::model::number::to_usize;
use crate::sys::descriptor;
use crate::sys::spare_memory::available_memory;
use crate::tracer::birth::Wanted;
use crate::tracer::copy::{Copy, CopyError};
use crate::tracer::tree::Tree;

/// Memory that must stay available beside what copies need, in bytes.
pub const RESERVE: u64 = 64 << 20;

/// The part of a job's own memory that it is expected to write while its copies are read: each page of
/// that is needed twice. Should it write more, the kernel ends the copies first.
const EXPECTED_WRITES: u64 = 8;

/// Bytes of memory up to which a process is not copied.
const SMALL: u64 = 1 << 20;

/// Bytes of memory of all processes together that are not copied.
const SMALL_TOGETHER: u64 = 64 << 20;

/// Why a job stands still while its memory is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// A process of the job adopts orphans, and would be told of the copies.
    Adopts(Pid),
    /// `available` bytes of memory are left, for copies of `used` bytes.
    Memory { available: u64, used: u64 },
    /// This kernel (before 5.9) cannot make a copy that holds no descriptors.
    Kernel,
    /// The kernel did not make a copy.
    Refused(Pid, Errno),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the job stood still until its memory was written, because ")?;
        match self {
            Self::Adopts(pid) => write!(
                f,
                "process {pid} adopts orphans (PR_SET_CHILD_SUBREAPER) and would be told of copies"
            ),
            Self::Memory { available, used } => write!(
                f,
                "{} MiB of memory are left, which is little for a copy of {} MiB",
                available >> 20,
                used >> 20
            ),
            Self::Kernel => f.write_str("this kernel is older than Linux 5.9"),
            Self::Refused(pid, errno) => {
                write!(
                    f,
                    "process {pid} cannot be copied: {errno} (a limit on processes or memory)"
                )
            }
        }
    }
}

/// Makes copies of the processes whose memory is worth it: for each address space, in order, the copy, or
/// `None` when memory has to be read from the process itself. A warning is added when a copy would have
/// been better. From then on writes to those processes are taken note of, if `session` wants that.
///
/// # Errors
/// When a process cannot be made to copy itself, because it was killed meanwhile.
pub(super) fn take(
    collected: &mut Collected,
    tree: &mut Tree,
    session: &mut Session<'_>,
) -> Result<Vec<Option<Copy>>, DumpError> {
    let mut copies = none(collected);
    let wanted = worth_copying(&collected.sizes);
    if wanted.is_empty() {
        return Ok(copies);
    }
    let used = wanted.iter().map(|space| collected.sizes[*space]).sum();
    let mut reason = obstacle(collected, used);
    // In the order of the tree, which need not be that of the address spaces.
    let mut places: Vec<(usize, usize)> =
        wanted.iter().map(|space| (collected.holders[*space], *space)).collect();
    places.sort_unstable();
    let processes = tree.processes();
    let ascending: Vec<(usize, Wanted)> = places
        .iter()
        .map(|(place, space)| {
            let (task, size) = (processes[*place].task(), collected.sizes[*space]);
            let watch = reason != Some(Reason::Kernel)
                && !is_shared(collected, *place)
                && session.wants(task, size);
            (*place, Wanted { copy: reason.is_none(), watch })
        })
        .filter(|(_, wanted)| wanted.copy || wanted.watch)
        .collect();
    match tree.bear(&ascending) {
        Ok(made) => {
            for (place, born) in ascending.iter().map(|(place, _)| *place).zip(made) {
                let Ok(found) = places.binary_search_by_key(&place, |(place, _)| *place) else {
                    continue;
                };
                let space = places[found].1;
                copies[space] = born.copy;
                if let Some(made) = born.watch {
                    let object = collected.job.address_spaces[space].object;
                    let task = tree.processes()[place].task();
                    collected.known[space] = session.add(task, object, made).unwrap_or_default();
                }
            }
        }
        Err(CopyError::Make { pid, source }) => reason = Some(Reason::Refused(pid, source)),
        Err(error) => return Err(error.into()),
    }
    collected.warnings.extend(reason.map(|reason| reason.to_string()));
    Ok(copies)
}

/// Whether several processes have the memory of the one at `place`. What is watched belongs to one, and when
/// that ends others may go on with it.
fn is_shared(collected: &Collected, place: usize) -> bool {
    let Some(space) = collected.holders.iter().position(|holder| *holder == place) else {
        return false;
    };
    let processes = collected.job.processes.iter().filter(|process| !process.is_zombie());
    processes.filter(|process| to_usize(u64::from(process.mm.0)) == space).nth(1).is_some()
}

/// The address spaces that would be copied, and in words why that could not be done.
pub(super) fn foresee(collected: &Collected) -> (Vec<usize>, Option<String>) {
    let wanted = worth_copying(&collected.sizes);
    if wanted.is_empty() {
        return (wanted, None);
    }
    let used = wanted.iter().map(|space| collected.sizes[*space]).sum();
    let reason = obstacle(collected, used).map(|reason| reason.to_string());
    (wanted, reason)
}

/// No copies at all: all memory is read from the processes themselves.
pub(super) fn none(collected: &Collected) -> Vec<Option<Copy>> {
    collected.holders.iter().map(|_| None).collect()
}

/// Of address spaces of so many bytes each, those to copy: reading a small one takes less time than
/// having its process copied, as long as they are not too many.
fn worth_copying(sizes: &[u64]) -> Vec<usize> {
    let mut direct = 0_u64;
    let worth = |size: u64| {
        let small = size <= SMALL && direct.saturating_add(size) <= SMALL_TOGETHER;
        direct = if small { direct + size } else { direct };
        !small
    };
    let sizes = sizes.iter().copied().map(worth);
    sizes.enumerate().filter(|(_, worth)| *worth).map(|(space, _)| space).collect()
}

/// What stands in the way of copies, as far as that is known before they are made.
fn obstacle(collected: &Collected, used: u64) -> Option<Reason> {
    if !descriptor::closes_ranges() {
        return Some(Reason::Kernel);
    }
    let adopts = collected.job.processes.iter().position(|process| process.child_subreaper);
    if let Some(number) = adopts {
        let pid = collected.job.processes[number].pid;
        return Some(Reason::Adopts(Pid::from_raw(pid.0)));
    }
    let available = available_memory()?;
    is_tight(available, used).then_some(Reason::Memory { available, used })
}

/// Whether `available` bytes are too few for copies of `used` bytes.
const fn is_tight(available: u64, used: u64) -> bool {
    available < RESERVE + used / EXPECTED_WRITES
}

/// Watches, while copies are read, that memory does not become short: the more a job writes meanwhile,
/// the more of its memory is there twice, and when none is left the kernel may well end the job.
#[derive(Debug, Default)]
pub(super) struct MemoryWatch {
    looked: Mutex<Option<Instant>>,
    /// Bytes that were left when it was noticed; 0: it was not.
    shortage: AtomicU64,
}

impl MemoryWatch {
    /// How often it is looked.
    const INTERVAL: Duration = Duration::from_millis(50);

    /// Fails when memory has become short.
    pub fn check(&self) -> io::Result<()> {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.is_some_and(|looked| looked.elapsed() < Self::INTERVAL) {
            return Ok(());
        }
        *looked = Some(Instant::now());
        match available_memory() {
            Some(available) if available < RESERVE => {
                self.shortage.store(available.max(1), Ordering::Relaxed);
                Err(io::ErrorKind::OutOfMemory.into())
            }
            _ => Ok(()),
        }
    }

    /// Bytes that were left when it had become short.
    pub fn shortage(&self) -> Option<u64> {
        Some(self.shortage.load(Ordering::Relaxed)).filter(|available| *available != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_processes_are_not_copied_unless_they_are_many() {
        const MEBIBYTE: u64 = 1 << 20;
        assert_eq!(worth_copying(&[0, 5 * MEBIBYTE, 4096]), [1]);
        let many = worth_copying(&[MEBIBYTE; 66]);
        assert_eq!(many, [64, 65]);
    }

    #[test]
    fn copies_need_some_room() {
        assert!(is_tight(32 << 20, 0));
        assert!(!is_tight(1 << 30, 4 << 30));
        assert!(is_tight(1 << 30, 16 << 30));
    }
}
