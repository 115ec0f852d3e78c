//! From which NUMA nodes memory is taken: the policies of threads and of mappings.
//!
//! Only the process itself can tell its policies exactly (get_mempolicy(2)); /proc/PID/numa_maps says
//! which mappings are worth the question, at the price of a walk over all pages.

use std::collections::BTreeMap;

use nix::errno::Errno;
use nix::unistd::Pid;

use super::error::{CollectError, DumpError};
use super::thread::half;
use crate::model::address::{AddrRange, RemoteAddr};
use crate::model::id::InodeId;
use crate::model::memory::{AddressSpace, Backing, MemoryPolicy, Vma};
use crate::model::number::to_u64;
use crate::sys::procfs;
use crate::tracer::copy::Copy;
use crate::tracer::injection::{Call, Injector, Outcome};

/// Bytes of the node mask asked for: as many nodes as a kernel can be built for.
pub(super) const NODES_SIZE: usize = 128;

/// How many resident pages cost as much to walk over as one question put to the process.
const PAGES_PER_QUESTION: u64 = 1500;

/// Bytes before the node mask in an answer about a mapping: the mode, and padding.
const MODE_SIZE: usize = 8;

const MPOL_F_ADDR: u64 = 2;

/// The call that puts the policy of the calling thread at `mode` and `nodes`, or that of its mapping
/// at `address`.
pub(super) fn question(mode: u64, nodes: u64, address: Option<RemoteAddr>) -> Call {
    // The kernel takes one off the number of nodes that it is told.
    const NODES: u64 = 8 * to_u64(NODES_SIZE) + 1;
    let (address, flags) = address.map_or((0, 0), |address| (address.0, MPOL_F_ADDR));
    Call::new(libc::SYS_get_mempolicy, &[mode, nodes, NODES, address, flags])
}

/// The policy that the answer tells. A kernel without NUMA has the default one only.
pub(super) fn answer(outcome: Outcome, mode: i32, nodes: &[u8]) -> Result<MemoryPolicy, Errno> {
    match outcome {
        Ok(_) => {
            let used = nodes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            Ok(MemoryPolicy { mode: mode.cast_unsigned(), nodes: nodes[..used].to_vec() })
        }
        Err(Errno::ENOSYS) => Ok(MemoryPolicy::default()),
        Err(error) => Err(error),
    }
}

/// The policies of the mappings of a frozen process that have any, as it tells itself.
pub(super) fn ask(
    injector: &mut Injector<'_>,
) -> Result<Vec<(AddrRange, MemoryPolicy)>, CollectError> {
    let (pid, area) = (injector.process().task(), injector.scratch().start);
    let injected = |source| CollectError::Inject { pid, source };
    ask_by(candidates(pid)?, pid, |range, content| {
        let outcome = injector.call(&mapping_question(area, range)).map_err(injected)?;
        injector.read(area, content).map_err(injected)?;
        Ok(outcome)
    })
}

/// The same of a process, as its copy tells.
pub(super) fn ask_copy(
    pid: Pid,
    copy: &mut Copy,
) -> Result<Vec<(AddrRange, MemoryPolicy)>, DumpError> {
    ask_by(candidates(copy.pid())?, pid, |range, content| {
        Ok(copy.ask(&|area| mapping_question(area, range), content)?)
    })
}

/// The call that puts the policy of a mapping at `area`.
fn mapping_question(area: RemoteAddr, range: AddrRange) -> Call {
    question(area.0, area.0 + to_u64(MODE_SIZE), Some(range.start))
}

fn ask_by<E: From<CollectError>>(
    ranges: Vec<AddrRange>,
    pid: Pid,
    mut ask: impl FnMut(AddrRange, &mut [u8]) -> Result<Outcome, E>,
) -> Result<Vec<(AddrRange, MemoryPolicy)>, E> {
    let mut policies = Vec::new();
    for range in ranges {
        let mut content = [0; MODE_SIZE + NODES_SIZE];
        let outcome = ask(range, &mut content)?;
        let policy =
            answer(outcome, half(&content, 0), &content[MODE_SIZE..]).map_err(|source| {
                CollectError::Ask { operation: "read the memory policies", pid, source }
            })?;
        if !policy.is_default() {
            policies.push((range, policy));
        }
    }
    Ok(policies)
}

/// The mappings of a process that stands still, or of a copy, that may have policies of their own.
fn candidates(pid: Pid) -> Result<Vec<AddrRange>, CollectError> {
    let mut own = mappings_of(pid)?;
    let questions = u64::try_from(own.len()).unwrap_or(u64::MAX);
    if procfs::resident_pages(pid)? > questions.saturating_mul(PAGES_PER_QUESTION) {
        return Ok(own);
    }
    let Some(unusual) = procfs::policy_places(pid)? else { return Ok(Vec::new()) };
    own.retain(|range| unusual.binary_search(&range.start).is_ok());
    Ok(own)
}

/// The mappings of a process but those that every process has.
fn mappings_of(pid: Pid) -> Result<Vec<AddrRange>, CollectError> {
    let heads = procfs::mapping_heads(pid)?;
    Ok(heads.iter().filter(|head| !is_the_kernels(&head.path)).map(|head| head.range).collect())
}

fn is_the_kernels(path: &[u8]) -> bool {
    path == b"[vdso]" || path == b"[vsyscall]" || path.starts_with(b"[vvar")
}

/// Shared memory has its policies by offset, whoever set them. A mapping only tells that of its first
/// page: this finds two mappings of the same memory that tell different ones, by the number of the
/// address space of the second.
pub(super) fn disagreement(spaces: &[AddressSpace]) -> Option<(usize, AddrRange)> {
    struct Piece<'a> {
        first: u64,
        end: u64,
        policy: Option<&'a MemoryPolicy>,
    }
    let mut pieces: BTreeMap<InodeId, Vec<Piece<'_>>> = BTreeMap::new();
    let shared = |vma: &Vma| match vma.backing {
        Backing::File { inode, offset, shared: true } => Some((inode, offset)),
        _ => None,
    };
    for (number, space) in spaces.iter().enumerate() {
        for vma in &space.vmas {
            let Some((inode, first)) = shared(vma) else { continue };
            let (end, policy) = (first.saturating_add(vma.range.len()), vma.policy.as_ref());
            let others = pieces.entry(inode).or_default();
            let differs = |other: &Piece<'_>| {
                other.first < end && first < other.end && other.policy != policy
            };
            if others.iter().any(differs) {
                return Some((number, vma.range));
            }
            // What tells nothing new need not be compared with what follows.
            if !others.iter().any(|other| other.first <= first && end <= other.end) {
                others.push(Piece { first, end, policy });
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::memory::{Prot, VmaFlags};

    #[test]
    fn shared_memory_has_one_policy_a_page() {
        let mapping = |pages: [u64; 2], mode: Option<u32>| AddressSpace {
            vmas: vec![Vma {
                range: AddrRange::new(0x10000, 0x10000 + (pages[1] - pages[0]) * 4096).unwrap(),
                prot: Prot::READ,
                flags: VmaFlags::empty(),
                backing: Backing::File { inode: InodeId(1), offset: pages[0] * 4096, shared: true },
                name: None,
                policy: mode.map(|mode| MemoryPolicy { mode, nodes: vec![1] }),
            }],
            ..AddressSpace::default()
        };
        let check = |one: &AddressSpace, other: &AddressSpace, agree: bool| {
            assert_eq!(disagreement(&[one.clone(), other.clone()]).is_none(), agree);
        };
        check(&mapping([0, 4], Some(2)), &mapping([1, 3], Some(2)), true);
        check(&mapping([0, 4], Some(2)), &mapping([4, 8], None), true);
        check(&mapping([0, 4], None), &mapping([3, 5], Some(2)), false);
        check(&mapping([0, 4], Some(1)), &mapping([0, 4], Some(2)), false);
    }

    #[test]
    fn answers_are_read_without_empty_nodes() {
        let policy = |mode, nodes: &[u8]| MemoryPolicy { mode, nodes: nodes.to_vec() };
        assert_eq!(answer(Ok(0), 3, &[5, 1, 0, 0]), Ok(policy(3, &[5, 1])));
        assert_eq!(answer(Err(Errno::ENOSYS), 9, &[1]), Ok(policy(0, &[])));
        assert_eq!(answer(Err(Errno::EFAULT), 0, &[]), Err(Errno::EFAULT));
    }
}
