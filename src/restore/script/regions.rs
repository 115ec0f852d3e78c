//! The steps that map the regions of an address space, and that finish them once they are filled.

use super::super::blob::layout::{Step, kind};
use super::{Author, Context, Member, aio, attributes, call, signed, step};
use crate::model::file::InodeKind;
use crate::model::id::InodeId;
use crate::model::job::Job;
use crate::model::memory::{Backing, Prot, Vma, VmaFlags};
use crate::model::number::to_usize;

const PR_SET_VMA: u64 = 0x5356_4d41;
const PR_SET_VMA_ANON_NAME: u64 = 0;
const MADV_GUARD_INSTALL: u64 = 102;
/// Linux 6.11.
const MAP_DROPPABLE: i32 = 0x08;

/// Maps every region where it was, writable for as long as it is filled.
pub(super) fn map(
    author: &mut Author,
    steps: &mut Vec<Step>,
    member: &Member<'_>,
    context: &Context<'_>,
) {
    let is_kept = |vma: &&Vma| member.share.is_some_and(|share| share.has(&vma.range));
    for vma in member.space.vmas.iter().filter(|vma| !is_kept(vma)) {
        if let Backing::File { inode, offset, .. } = vma.backing
            && let Some(id) = segment_of(context.job, inode)
        {
            attach_segment(steps, id, offset, vma);
            continue;
        }
        if vma.backing == Backing::AioRing {
            aio::make(author, steps, (vma, member.space), context);
            continue;
        }
        let mut flags = libc::MAP_FIXED_NOREPLACE;
        if vma.flags.contains(VmaFlags::NO_RESERVE) {
            flags |= libc::MAP_NORESERVE;
        }
        if vma.flags.contains(VmaFlags::GROWS_DOWN) {
            flags |= libc::MAP_GROWSDOWN;
        }
        if vma.flags.contains(VmaFlags::HUGETLB) {
            flags |= libc::MAP_HUGETLB;
        }
        let (fd, offset) = match vma.backing {
            Backing::Vdso | Backing::Vvar | Backing::AioRing | Backing::IoUring { .. } => continue,
            Backing::Anonymous => {
                let droppable = vma.flags.contains(VmaFlags::DROPPABLE);
                flags |= if droppable { MAP_DROPPABLE } else { libc::MAP_PRIVATE };
                flags |= libc::MAP_ANONYMOUS;
                (-1, 0)
            }
            Backing::File { inode, offset, shared } => {
                flags |= if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
                (mapped_descriptor(inode, writes_through(vma), context), offset)
            }
        };
        let prot = filling_protection(vma, member);
        steps.push(step(
            kind::CALL_EXACT,
            libc::SYS_mmap,
            &[
                vma.range.start.0,
                vma.range.len(),
                u64::from(prot.bits()),
                signed(flags),
                signed(fd),
                offset,
            ],
            vma.range.start.0,
        ));
        // Pages that are filled come as huge ones where the kernel likes these (Debian's and Red Hat's do
        // by default), and stay huge when the advice comes later.
        if vma.flags.contains(VmaFlags::NO_HUGE_PAGE) {
            let advice = signed(libc::MADV_NOHUGEPAGE);
            steps.push(call(libc::SYS_madvise, &[vma.range.start.0, vma.range.len(), advice]));
        }
        if let Some(policy) = &vma.policy {
            attributes::mapping_policy(author, steps, vma.range, policy);
        }
    }
}

/// The number of the segment of System V shared memory that a file is.
#[must_use]
pub fn segment_of(job: &Job, inode: InodeId) -> Option<i32> {
    match job.inodes.get(to_usize(u64::from(inode.0)))?.kind {
        InodeKind::Segment { id } => Some(id),
        _ => None,
    }
}

/// Attaches a segment where `vma` shows it from byte `offset` on. Parts of it that differ in their
/// access are mappings of their own, but are attached with the first one.
fn attach_segment(steps: &mut Vec<Step>, id: i32, offset: u64, vma: &Vma) {
    let start = vma.range.start.0;
    let (flags, prot) = match writes_through(vma) {
        true => (0, Prot::READ | Prot::WRITE),
        false => (libc::SHM_RDONLY, Prot::READ),
    };
    if offset == 0 {
        let arguments = [signed(id), start, signed(flags)];
        steps.push(step(kind::CALL_EXACT, libc::SYS_shmat, &arguments, start));
    }
    if vma.prot != prot {
        let arguments = [start, vma.range.len(), u64::from(vma.prot.bits())];
        steps.push(call(libc::SYS_mprotect, &arguments));
    }
}

/// Whether a mapping needs its file opened for writing.
#[must_use]
pub fn writes_through(vma: &Vma) -> bool {
    matches!(vma.backing, Backing::File { shared: true, .. })
        && vma.flags.contains(VmaFlags::MAY_WRITE)
}

pub(super) fn mapped_descriptor(inode: InodeId, write: bool, context: &Context<'_>) -> i32 {
    context.mapped.files.get(&(inode, write)).copied().unwrap_or(-1)
}

/// The protection that a region has while it is filled: private memory with data is writable.
fn filling_protection(vma: &Vma, member: &Member<'_>) -> Prot {
    let private =
        !matches!(vma.backing, Backing::File { shared: true, .. } | Backing::IoUring { .. });
    if member.share.is_some_and(|share| share.has(&vma.range)) {
        Prot::READ | Prot::WRITE
    } else if private && member.occupancy.touches(&vma.range) {
        vma.prot | Prot::READ | Prot::WRITE
    } else {
        vma.prot
    }
}

/// What could not be set before the memory was filled: protections, advice, locks, names.
pub(super) fn finish(author: &mut Author, steps: &mut Vec<Step>, member: &Member<'_>) {
    const ADVICE: [(VmaFlags, i32); 8] = [
        (VmaFlags::DONT_DUMP, libc::MADV_DONTDUMP),
        (VmaFlags::DONT_FORK, libc::MADV_DONTFORK),
        (VmaFlags::WIPE_ON_FORK, libc::MADV_WIPEONFORK),
        (VmaFlags::HUGE_PAGE, libc::MADV_HUGEPAGE),
        (VmaFlags::NO_HUGE_PAGE, libc::MADV_NOHUGEPAGE),
        (VmaFlags::SEQUENTIAL, libc::MADV_SEQUENTIAL),
        (VmaFlags::RANDOM, libc::MADV_RANDOM),
        (VmaFlags::MERGEABLE, libc::MADV_MERGEABLE),
    ];
    let space = member.space;
    for vma in &space.vmas {
        if matches!(vma.backing, Backing::Vdso | Backing::Vvar) {
            continue;
        }
        let (start, length) = (vma.range.start.0, vma.range.len());
        for (flag, advice) in ADVICE {
            if vma.flags.contains(flag) {
                steps.push(call(libc::SYS_madvise, &[start, length, signed(advice)]));
            }
        }
        if let Some(name) = &vma.name {
            let mut text = name.0.clone();
            text.push(0);
            let text = author.data(&text);
            let arguments = [PR_SET_VMA, PR_SET_VMA_ANON_NAME, start, length, text];
            steps.push(call(libc::SYS_prctl, &arguments));
        }
        if filling_protection(vma, member) != vma.prot {
            let prot = u64::from(vma.prot.bits());
            steps.push(call(libc::SYS_mprotect, &[start, length, prot]));
        }
        if vma.flags.intersects(VmaFlags::LOCKED) {
            let on_fault = u64::from(vma.flags.contains(VmaFlags::LOCK_ON_FAULT));
            steps.push(call(libc::SYS_mlock2, &[start, length, on_fault]));
        }
    }
    for guard in &space.guards {
        let arguments = [guard.0.start.0, guard.0.len(), MADV_GUARD_INSTALL];
        steps.push(call(libc::SYS_madvise, &arguments));
    }
    for vma in space.vmas.iter().filter(|vma| vma.flags.contains(VmaFlags::SEALED)) {
        let arguments = [vma.range.start.0, vma.range.len(), 0];
        steps.push(call(libc::SYS_mseal, &arguments));
    }
}
