//! What only a walk over all pages of a process tells of its mappings: their flags, guard pages, and
//! memory policies.
//!
//! For a large process that takes as long as a fork. Where it is certain that a copy has all of that,
//! too, it is looked up in the copy, once the process runs on.

use std::io;

use nix::unistd::Pid;

use super::error::{CollectError, DumpError};
use super::memory::{self, Part};
use super::policy;
use super::refusal::{MappingRefusal, Obstacle};
use super::tracking::Known;
use crate::model::address::{AddrRange, RemoteAddr};
use crate::model::id::Bytes;
use crate::model::memory::{AddressSpace, Backing, GuardRange, MemoryPolicy, Vma};
use crate::model::number::PAGE_SIZE;
use crate::sys::memory::{PageMap, PageState, RemoteMemory};
use crate::sys::procfs::{self, Mapping, Status};
use crate::tracer::copy::Copy;
use crate::tracer::tree;

/// Bytes of memory from which on details are looked up in the copy: less is walked over quickly.
const LARGE: u64 = 8 << 20;

/// The code of VmFlags for a mapping whose pages' writes a userfaultfd is told of.
const WATCHED: [u8; 2] = *b"uw";

/// Whether the details of a process are better looked up in its copy.
pub(super) const fn is_large(status: &Status) -> bool {
    status.anonymous >= LARGE
}

/// Tells whether a mapping of a process, one that somebody watches, is watched by rckpt itself.
pub(super) type IsOwn<'own> = dyn Fn(Pid, AddrRange) -> bool + 'own;

/// Adds the details of a frozen process, which has told its policies.
///
/// # Errors
/// When they cannot be read. What cannot be saved becomes an obstacle.
pub(super) fn add(
    space: &mut AddressSpace,
    process: &tree::Process,
    policies: &[(AddrRange, MemoryPolicy)],
    is_own: &IsOwn<'_>,
    obstacles: &mut Vec<Obstacle>,
) -> Result<(), CollectError> {
    let task = process.task();
    add_from(space, task, (task, &process.memory), (policies, is_own), &|_| true, obstacles)
}

/// Whether a copy has all the details of a process that is still frozen: fork leaves out what is locked
/// in memory, what is from the pool of huge pages may be lost, and some mappings are left out or
/// emptied.
///
/// # Errors
/// When /proc cannot be read.
pub(super) fn has_all(
    space: &AddressSpace,
    (pid, status): (Pid, &Status),
    copy: &Copy,
) -> Result<bool, CollectError> {
    if status.locked != 0 || status.huge_pages != 0 {
        return Ok(false);
    }
    let heads = procfs::mapping_heads(copy.pid())?;
    if !space.vmas.iter().all(|vma| around(&heads, vma.range).is_some()) {
        return Ok(false);
    }
    let memory = |source| CollectError::Memory { operation: "read the page map", pid, source };
    let [own, copied] = [pid, copy.pid()].map(PageMap::open);
    let (own, copied) = (own.map_err(memory)?, copied.map_err(memory)?);
    for vma in &space.vmas {
        if !matches!(vma.backing, Backing::Anonymous | Backing::File { shared: false, .. }) {
            continue;
        }
        match own.has_own_page(vma.range).map_err(memory)? {
            None => return Ok(false),
            Some(false) => {}
            Some(true) if copied.has_own_page(vma.range).map_err(memory)? != Some(true) => {
                return Ok(false);
            }
            Some(true) => {}
        }
    }
    Ok(true)
}

/// Adds the details of a process from its copy, which has all of them. The process runs. Guard pages that
/// are come by when the copy's pages are stored are left for [`add_guards`].
///
/// # Errors
/// As for [`add`].
pub(super) fn add_from_copy(
    space: &mut AddressSpace,
    pid: Pid,
    copy: &mut Copy,
    obstacles: &mut Vec<Obstacle>,
) -> Result<(), DumpError> {
    let policies = policy::ask_copy(pid, copy)?;
    let source = (copy.pid(), copy.memory());
    let is_stored = |vma: &Vma| Part::Inherited.has(vma) && memory::zeros_of(vma).is_some();
    let looks = |vma: &Vma| !is_stored(vma);
    // A copy is watched by nobody.
    Ok(add_from(space, pid, source, (&policies, &|_, _| false), &looks, obstacles)?)
}

/// Adds the guard pages that were come by when a copy's pages were stored.
pub(super) fn add_guards(space: &mut AddressSpace, found: Vec<GuardRange>) {
    let mut all: Vec<AddrRange> =
        space.guards.drain(..).chain(found).map(|GuardRange(range)| range).collect();
    all.sort_unstable();
    all.into_iter().for_each(|range| add_guard(&mut space.guards, range));
}

/// The mappings of an address space.
pub(super) fn ranges(space: &AddressSpace) -> Vec<AddrRange> {
    space.vmas.iter().map(|vma| vma.range).collect()
}

/// Finds those of the mappings `ranges`, which ascend, whose missing pages somebody else provides, or which
/// somebody but us watches, which a copy does not tell: `running` is the process itself, which may have ended.
///
/// # Errors
/// When its mappings cannot be read.
pub(super) fn check_faults(
    ranges: &[AddrRange],
    known: &Known,
    running: Pid,
    obstacles: &mut Vec<Obstacle>,
) -> Result<(), CollectError> {
    const PROVIDED: [[u8; 2]; 2] = [*b"um", *b"ui"];
    let mappings = match procfs::mappings(running) {
        Ok(mappings) => mappings,
        Err(error) if error.is_gone() => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let has = |range: AddrRange| {
        let place = ranges.partition_point(|own| own.end <= range.start);
        ranges.get(place).is_some_and(|own| own.overlaps(&range))
    };
    for mapping in mappings {
        let provided = PROVIDED.iter().any(|code| mapping.codes.contains(code));
        let watched = mapping.codes.contains(&WATCHED) && !known.is_watched(mapping.range);
        if (provided || watched) && has(mapping.range) {
            obstacles.push(obstacle(running, &mapping, MappingRefusal::UserFault));
        }
    }
    Ok(())
}

/// Adds the details of process `pid` as `source` has them: guard pages of the mappings that `looks` tells.
fn add_from(
    space: &mut AddressSpace,
    pid: Pid,
    (source, memory): (Pid, &RemoteMemory),
    (policies, is_own): (&[(AddrRange, MemoryPolicy)], &IsOwn<'_>),
    looks: &dyn Fn(&Vma) -> bool,
    obstacles: &mut Vec<Obstacle>,
) -> Result<(), CollectError> {
    let failed = |operation| move |source| CollectError::Memory { operation, pid, source };
    let page_map = PageMap::open(source).map_err(failed("open the page map"))?;
    let mut mappings = procfs::mappings(source)?;
    for mapping in &mut mappings {
        if mapping.codes.contains(&WATCHED) && is_own(pid, mapping.range) {
            mapping.codes.retain(|code| *code != WATCHED);
        }
    }
    let mut guards = Vec::new();
    for vma in &mut space.vmas {
        let Some(mapping) = around(&mappings, vma.range) else {
            return Err(CollectError::Mapping { pid, range: vma.range });
        };
        if let Err(kind) = memory::classify(mapping) {
            obstacles.push(obstacle(pid, mapping, kind));
            continue;
        }
        (_, vma.flags) = memory::properties(mapping);
        let policy = policies.iter().find(|(range, _)| range.contains(vma.range.start));
        vma.policy = policy.map(|(_, policy)| policy.clone());
        if matches!(vma.backing, Backing::Vdso | Backing::Vvar) {
            continue;
        }
        if page_map.tells_guards() {
            if !looks(vma) {
                continue;
            }
            page_map
                .visit::<io::Error>(vma.range, PageState::GUARD, &mut |run| {
                    add_guard(&mut guards, run.range);
                    Ok(())
                })
                .map_err(failed("read the page map"))?;
        } else if !memory::is_shared(mapping) {
            let unreadable = unreadable_page(memory, &page_map, vma.range)
                .map_err(failed("read the page map"))?;
            if let Some(page) = unreadable {
                obstacles.push(obstacle(pid, mapping, MappingRefusal::UnreadablePage(page)));
            }
        }
    }
    space.guards = guards;
    Ok(())
}

/// The mapping that is, or has become part of, the one at `range`: the kernel joins neighbours that are
/// alike once they are watched.
fn around(mappings: &[Mapping], range: AddrRange) -> Option<&Mapping> {
    let place = mappings.partition_point(|mapping| mapping.range.end <= range.start);
    let covers =
        |found: &&Mapping| found.range.start <= range.start && range.end <= found.range.end;
    mappings.get(place).filter(covers)
}

fn obstacle(pid: Pid, mapping: &Mapping, kind: MappingRefusal) -> Obstacle {
    Obstacle::Mapping { pid, range: mapping.range, name: Bytes(mapping.path.clone()), kind }
}

/// Adds a range of guard pages, joined to the last one when it continues that.
pub(super) fn add_guard(guards: &mut Vec<GuardRange>, range: AddrRange) {
    match guards.last_mut() {
        Some(GuardRange(last)) if last.end == range.start => last.end = range.end,
        _ => guards.push(GuardRange(range)),
    }
}

/// On a kernel that does not tell guard pages from pages in swap: one that cannot be read.
fn unreadable_page(
    memory: &RemoteMemory,
    page_map: &PageMap,
    range: AddrRange,
) -> io::Result<Option<RemoteAddr>> {
    let mut found = None;
    page_map.visit::<io::Error>(range, PageState::SWAPPED, &mut |run| {
        let mut pages =
            (0..run.range.pages()).map(|page| RemoteAddr(run.range.start.0 + page * PAGE_SIZE));
        found = found.or_else(|| pages.find(|page| memory.read(*page, &mut [0]).is_err()));
        Ok(())
    })?;
    Ok(found)
}
