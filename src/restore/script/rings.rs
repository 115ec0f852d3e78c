//! The steps that map rings of io_uring.
//!
//! The kernel alone chooses where these go, and refuses whoever names a place. But it can only choose what
//! is free: so all of the address space is taken, and one hole after the other given free, each as large
//! as what is to go there.

use super::super::blob::layout::{Step, kind};
use super::{Context, Member, TASK_SIZE, nothing, signed, step, unmap};
use crate::model::address::{AddrRange, RemoteAddr};
use crate::model::memory::{Backing, Vma};

/// Below this nobody may map anything (vm.mmap_min_addr, as every distribution has it).
const LOWEST: u64 = 1 << 16;

/// Maps every ring where it was. Nothing must be mapped but the blob, what is kept, and the vDSO.
pub(super) fn map(steps: &mut Vec<Step>, member: &Member<'_>, context: &Context<'_>) {
    let is_ring = |vma: &&Vma| matches!(vma.backing, Backing::IoUring { .. });
    let rings: Vec<&Vma> = member.space.vmas.iter().filter(is_ring).collect();
    if rings.is_empty() {
        return;
    }
    let keeps = member.share.map_or(&[][..], |share| &share.keeps);
    let mut taken: Vec<AddrRange> = keeps.iter().map(|kept| kept.range).collect();
    taken.push(context.placement.range);
    if let Some(vdso) = member.vdso {
        taken.push(vdso.own);
        taken.extend(vdso.stand_in.as_ref().map(|stand_in| stand_in.range));
    }
    taken.extend(rings.iter().map(|ring| ring.range));
    let gaps = gaps(taken);
    let rings_at = || rings.iter().map(|ring| ring.range);
    steps.extend(gaps.iter().copied().chain(rings_at()).map(take));
    for ring in &rings {
        let Backing::IoUring { file, offset } = ring.backing else { continue };
        let fd = context.mapped.rings.get(&file).copied().unwrap_or(-1);
        let (start, length) = (ring.range.start.0, ring.range.len());
        let flags = libc::MAP_SHARED;
        let arguments = [0, length, u64::from(ring.prot.bits()), signed(flags), signed(fd), offset];
        steps.push(unmap(start, ring.range.end.0));
        steps.push(step(kind::CALL_EXACT, libc::SYS_mmap, &arguments, start));
    }
    steps.extend(gaps.iter().map(|gap| unmap(gap.start.0, gap.end.0)));
}

/// What lies between `taken`, one range more than these: empty where two of them touch.
fn gaps(mut taken: Vec<AddrRange>) -> Vec<AddrRange> {
    taken.sort();
    let ends = taken.iter().map(|range| range.end.0);
    let starts = taken.iter().map(|range| range.start.0);
    let pairs = std::iter::once(LOWEST).chain(ends).zip(starts.chain([TASK_SIZE]));
    pairs
        .map(|(start, end)| AddrRange { start: RemoteAddr(start), end: RemoteAddr(end.max(start)) })
        .collect()
}

/// Takes a range so that nobody else can have it.
fn take(range: AddrRange) -> Step {
    if range.is_empty() {
        return nothing();
    }
    let flags =
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    let arguments = [range.start.0, range.len(), 0, signed(flags), signed(-1), 0];
    step(kind::CALL_EXACT, libc::SYS_mmap, &arguments, range.start.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_between_is_taken() {
        let range = |start, end| AddrRange { start: RemoteAddr(start), end: RemoteAddr(end) };
        let found = gaps(vec![range(0x50_0000, 0x60_0000), range(0x20_0000, 0x50_0000)]);
        let expected =
            [range(LOWEST, 0x20_0000), range(0x50_0000, 0x50_0000), range(0x60_0000, TASK_SIZE)];
        assert_eq!(found, expected);
        assert_eq!(take(expected[1]), nothing());
    }
}
