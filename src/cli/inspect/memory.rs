//! The memory of a job by mapping and by kind of mapping, and how much of each is stored.

use std::collections::BTreeMap;

use serde::Serialize;

use super::descriptors::path_of;
use super::report::pids;
use crate::image::{Reader, Run};
use crate::model::file::InodeKind;
use crate::model::id::{Bytes, ObjectId};
use crate::model::job::Job;
use crate::model::memory::{AddressSpace, Backing, Prot, Vma};
use crate::model::number::{PAGE_SIZE, to_usize};

#[derive(Serialize)]
pub struct SpaceReport {
    pub number: usize,
    pub processes: Vec<i32>,
    pub executable: String,
    /// By kind of mapping, in a fixed order.
    pub kinds: Vec<KindReport>,
    pub mappings: Vec<MappingReport>,
}

#[derive(Serialize)]
pub struct KindReport {
    pub kind: &'static str,
    pub mappings: u64,
    /// Bytes of address space.
    pub bytes: u64,
    /// Bytes in the checkpoint.
    pub stored: u64,
}

#[derive(Serialize)]
pub struct MappingReport {
    pub start: u64,
    pub end: u64,
    pub access: String,
    /// Other properties, by the names that the records have.
    pub flags: Vec<&'static str>,
    pub kind: &'static str,
    /// Name that the program gave it.
    pub name: Option<String>,
    pub file: Option<String>,
    pub offset: Option<u64>,
    pub stored: u64,
}

/// The stored pages of each object, as ascending ranges.
pub struct Stored(BTreeMap<ObjectId, Vec<(u64, u64)>>);

impl Stored {
    /// Those of a generation.
    pub fn of(reader: &Reader) -> Self {
        let mut ranges: BTreeMap<ObjectId, Vec<(u64, u64)>> = BTreeMap::new();
        let runs = reader.chunks().iter().flat_map(|chunk| &chunk.runs);
        for Run { object, first_page, pages, .. } in runs {
            let range = (*first_page, first_page + u64::from(*pages));
            ranges.entry(*object).or_default().push(range);
        }
        ranges.values_mut().for_each(|ranges| ranges.sort_unstable());
        Self(ranges)
    }

    /// Stored bytes of the pages `start..end` of an object.
    pub fn bytes(&self, object: ObjectId, start: u64, end: u64) -> u64 {
        let Some(ranges) = self.0.get(&object) else { return 0 };
        let first = ranges.partition_point(|(_, range_end)| *range_end <= start);
        let inside = ranges[first..].iter().take_while(|(range_start, _)| *range_start < end);
        let pages: u64 = inside.map(|(from, to)| to.min(&end) - from.max(&start)).sum();
        pages * PAGE_SIZE
    }
}

/// Kinds of mappings, in the order of the report.
pub const KINDS: [&str; 9] = [
    "heap",
    "stack",
    "anonymous",
    "private file",
    "shared file",
    "shared memory",
    "deleted file",
    "asynchronous I/O",
    "kernel",
];

/// Reports an address space.
pub fn space_report(job: &Job, number: u32, space: &AddressSpace, stored: &Stored) -> SpaceReport {
    let mut kinds = KINDS.map(|kind| KindReport { kind, mappings: 0, bytes: 0, stored: 0 });
    let mut mappings = Vec::with_capacity(space.vmas.len());
    for vma in &space.vmas {
        let mapping = mapping(job, space, vma, stored);
        if let Some(sum) = kinds.iter_mut().find(|sum| sum.kind == mapping.kind) {
            sum.mappings += 1;
            sum.bytes += vma.range.len();
            sum.stored += mapping.stored;
        }
        mappings.push(mapping);
    }
    SpaceReport {
        number: to_usize(u64::from(number)),
        processes: pids(job, |process| process.mm.0 == number),
        executable: path_of(job, space.executable),
        kinds: kinds.into_iter().filter(|sum| sum.mappings > 0).collect(),
        mappings,
    }
}

/// The kind of a mapping, one of [`KINDS`].
pub fn kind_of(job: &Job, space: &AddressSpace, vma: &Vma) -> &'static str {
    match vma.backing {
        Backing::Vdso | Backing::Vvar => "kernel",
        Backing::AioRing | Backing::IoUring { .. } => "asynchronous I/O",
        Backing::Anonymous if vma.range.contains(space.areas.start_brk) => "heap",
        Backing::Anonymous if vma.range.contains(space.areas.start_stack) => "stack",
        Backing::Anonymous => "anonymous",
        Backing::File { inode, shared, .. } => {
            let record = &job.inodes[to_usize(u64::from(inode.0))];
            match (&record.kind, shared) {
                (InodeKind::Memfd { .. }, _)
                | (InodeKind::AnonymousShared | InodeKind::MemoryFile, _)
                | (InodeKind::Segment { .. }, _) => "shared memory",
                (InodeKind::Unlinked, _) => "deleted file",
                (InodeKind::Linked, true) => "shared file",
                (InodeKind::Linked, false) => "private file",
            }
        }
    }
}

fn mapping(job: &Job, space: &AddressSpace, vma: &Vma, stored: &Stored) -> MappingReport {
    let (start, end) = (vma.range.start.0 / PAGE_SIZE, vma.range.end.0 / PAGE_SIZE);
    let own = stored.bytes(space.object, start, end);
    let kind = kind_of(job, space, vma);
    let (inode, bytes) = match vma.backing {
        Backing::Vdso | Backing::Vvar | Backing::AioRing | Backing::IoUring { .. } => (None, 0),
        Backing::Anonymous => (None, own),
        Backing::File { inode, offset, shared } => {
            let record = &job.inodes[to_usize(u64::from(inode.0))];
            let first = offset / PAGE_SIZE;
            let content = record
                .content
                .map_or(0, |content| stored.bytes(content, first, first + vma.range.pages()));
            (Some((inode, offset)), if shared { content } else { own })
        }
    };
    MappingReport {
        start: vma.range.start.0,
        end: vma.range.end.0,
        access: access(vma),
        flags: vma.flags.iter_names().map(|(name, _)| name).collect(),
        kind,
        name: vma.name.as_ref().map(Bytes::to_string),
        file: inode.map(|(inode, _)| path_of(job, inode)),
        offset: inode.map(|(_, offset)| offset),
        stored: bytes,
    }
}

/// Access as /proc/pid/maps shows it.
fn access(vma: &Vma) -> String {
    let bit = |bit, letter| if vma.prot.contains(bit) { letter } else { '-' };
    let shared = matches!(
        vma.backing,
        Backing::File { shared: true, .. } | Backing::AioRing | Backing::IoUring { .. }
    );
    [
        bit(Prot::READ, 'r'),
        bit(Prot::WRITE, 'w'),
        bit(Prot::EXEC, 'x'),
        if shared { 's' } else { 'p' },
    ]
    .iter()
    .collect()
}
