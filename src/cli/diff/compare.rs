//! What changed from one generation to another, in the shape that `--json` prints. Only data made of data.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::inspect::descriptors::{path_of, what};
use super::super::inspect::memory::{KINDS, kind_of};
use crate::image::contents::{self, Contents, Difference};
use crate::image::{ReadError, Reader};
use crate::model::file::{Inode, InodeKind};
use crate::model::id::{InodeId, Pid};
use crate::model::job::Job;
use crate::model::memory::{AddressSpace, Backing, Vma};
use crate::model::number::{PAGE_SIZE, to_usize};
use crate::model::process::Process;

/// Everything that changed.
#[derive(Debug, Serialize)]
pub struct Report {
    pub from: Side,
    pub to: Side,
    /// Whether both are of one job.
    pub same_job: bool,
    pub born: Vec<Named>,
    pub ended: Vec<Named>,
    /// Processes that are in both, and differ.
    pub processes: Vec<ProcessChange>,
    /// Pages of private memory, by kind of mapping, of processes that are in both.
    pub pages: Vec<PageChange>,
    /// Files and shared memory whose size or stored content differs.
    pub files: Vec<FileChange>,
}

/// One of the two.
#[derive(Debug, Serialize)]
pub struct Side {
    pub path: String,
    /// Seconds since 1970.
    pub taken: i64,
    pub host: String,
    pub processes: usize,
    pub threads: usize,
    /// Bytes on the disk.
    pub stored: u64,
}

#[derive(Debug, Serialize)]
pub struct Named {
    pub pid: i32,
    pub name: String,
}

#[derive(Debug, Serialize)]
pub struct ProcessChange {
    pub pid: i32,
    pub name: String,
    /// Another name, or another executable, than before.
    pub became: Option<String>,
    pub threads_before: usize,
    pub threads: usize,
    pub mappings_new: Vec<Mapping>,
    pub mappings_gone: Vec<Mapping>,
    /// Mappings that begin where they began, and end elsewhere.
    pub mappings_resized: Vec<Resized>,
    pub opened: Vec<Descriptor>,
    pub closed: Vec<Descriptor>,
    /// Descriptors that are not what they were: another file, or another position or state.
    pub changed: Vec<DescriptorChange>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Mapping {
    pub start: u64,
    pub bytes: u64,
    pub kind: &'static str,
    pub file: Option<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Resized {
    pub start: u64,
    pub kind: &'static str,
    pub bytes_before: u64,
    pub bytes: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Descriptor {
    pub number: i32,
    pub what: String,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct DescriptorChange {
    pub number: i32,
    pub before: String,
    pub now: String,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct PageChange {
    pub kind: &'static str,
    pub same: u64,
    pub changed: u64,
    pub new: u64,
    pub gone: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct FileChange {
    pub path: String,
    /// `None`: it was not known.
    pub bytes_before: Option<u64>,
    /// `None`: it is not known any more.
    pub bytes: Option<u64>,
    /// Pages of its content in the checkpoint that are new or differ.
    pub pages_changed: u64,
}

/// Compares two generations. `told` is called with the bytes of memory that have been dealt with, as that goes on.
///
/// # Errors
/// When page data or their hashes are damaged.
pub fn compare(
    earlier: &Reader,
    later: &Reader,
    told: &mut dyn FnMut(u64),
) -> Result<Report, ReadError> {
    let (before, now) = (earlier.job(), later.job());
    let contents = contents::of_both(earlier, later, told)?;
    let known = by_pid(before);
    let here = by_pid(now);
    let named = |process: &&Process| Named { pid: process.pid.0, name: process.name.to_string() };
    let absent = |from: &BTreeMap<Pid, &Process>, pid: &Pid| !from.contains_key(pid);
    let mut pages = BTreeMap::new();
    let mut processes = Vec::new();
    for (pid, process) in &here {
        let Some(old) = known.get(pid) else { continue };
        if process.is_zombie() || old.is_zombie() {
            continue;
        }
        count_pages((before, old), (now, process), &contents, &mut pages);
        let change = process_change((before, old), (now, process));
        if !change.is_nothing() {
            processes.push(change);
        }
    }
    let kinds = KINDS.iter().filter_map(|kind| {
        let Difference { same, changed, new, gone } = *pages.get(kind)?;
        (same + changed + new + gone > 0).then_some(PageChange { kind, same, changed, new, gone })
    });
    Ok(Report {
        from: side(earlier),
        to: side(later),
        same_job: before.id == now.id,
        born: here.iter().filter(|(pid, _)| absent(&known, pid)).map(|(_, it)| named(it)).collect(),
        ended: known
            .iter()
            .filter(|(pid, _)| absent(&here, pid))
            .map(|(_, it)| named(it))
            .collect(),
        processes,
        pages: kinds.collect(),
        files: files(before, now, &contents),
    })
}

fn side(reader: &Reader) -> Side {
    let job = reader.job();
    Side {
        path: reader.directory().display().to_string(),
        taken: job.clocks.realtime.seconds,
        host: job.machine.host.to_string(),
        processes: job.processes.len(),
        threads: job.processes.iter().map(|process| process.threads.len()).sum(),
        stored: reader.stored_bytes(),
    }
}

fn by_pid(job: &Job) -> BTreeMap<Pid, &Process> {
    job.processes.iter().map(|process| (process.pid, process)).collect()
}

fn space<'a>(job: &'a Job, process: &Process) -> &'a AddressSpace {
    &job.address_spaces[to_usize(u64::from(process.mm.0))]
}

/// Compares the private memory of a process, mapping by mapping of its later self.
fn count_pages(
    (before, old): (&Job, &Process),
    (now, new): (&Job, &Process),
    (earlier, later): &(Contents, Contents),
    sums: &mut BTreeMap<&'static str, Difference>,
) {
    let (old, new) = (space(before, old), space(now, new));
    for vma in &new.vmas {
        if matches!(vma.backing, Backing::File { shared: true, .. }) {
            continue;
        }
        let pages = vma.range.start.0 / PAGE_SIZE..vma.range.end.0 / PAGE_SIZE;
        let difference = later.difference(new.object, earlier, old.object, &pages);
        let sum = sums.entry(kind_of(now, new, vma)).or_default();
        *sum = sum.plus(difference);
    }
}

fn process_change((before, old): (&Job, &Process), (now, new): (&Job, &Process)) -> ProcessChange {
    let executable = |job: &Job, process: &Process| path_of(job, space(job, process).executable);
    let became = match (executable(before, old), executable(now, new)) {
        (one, other) if one != other => Some(other),
        _ if old.name != new.name => Some(new.name.to_string()),
        _ => None,
    };
    let mut change = ProcessChange {
        pid: new.pid.0,
        name: old.name.to_string(),
        became,
        threads_before: old.threads.len(),
        threads: new.threads.len(),
        mappings_new: Vec::new(),
        mappings_gone: Vec::new(),
        mappings_resized: Vec::new(),
        opened: Vec::new(),
        closed: Vec::new(),
        changed: Vec::new(),
    };
    compare_mappings((before, space(before, old)), (now, space(now, new)), &mut change);
    compare_descriptors((before, old), (now, new), &mut change);
    change
}

impl ProcessChange {
    const fn is_nothing(&self) -> bool {
        self.became.is_none()
            && self.threads_before == self.threads
            && self.mappings_new.is_empty()
            && self.mappings_gone.is_empty()
            && self.mappings_resized.is_empty()
            && self.opened.is_empty()
            && self.closed.is_empty()
            && self.changed.is_empty()
    }
}

/// Mappings by where they begin.
fn compare_mappings(
    (before, old): (&Job, &AddressSpace),
    (now, new): (&Job, &AddressSpace),
    change: &mut ProcessChange,
) {
    let by_start = |space: &AddressSpace| -> BTreeMap<u64, Vma> {
        space.vmas.iter().map(|vma| (vma.range.start.0, vma.clone())).collect()
    };
    let (earlier, later) = (by_start(old), by_start(new));
    for (start, vma) in &later {
        let kind = kind_of(now, new, vma);
        match earlier.get(start) {
            Some(other) if other.range.len() != vma.range.len() => {
                let (bytes_before, bytes) = (other.range.len(), vma.range.len());
                change.mappings_resized.push(Resized { start: *start, kind, bytes_before, bytes });
            }
            Some(_) => {}
            None => change.mappings_new.push(mapping(now, kind, vma)),
        }
    }
    for (start, vma) in &earlier {
        if !later.contains_key(start) {
            change.mappings_gone.push(mapping(before, kind_of(before, old, vma), vma));
        }
    }
}

fn mapping(job: &Job, kind: &'static str, vma: &Vma) -> Mapping {
    let file = match vma.backing {
        Backing::File { inode, .. } => Some(path_of(job, inode)),
        _ => None,
    };
    Mapping { start: vma.range.start.0, bytes: vma.range.len(), kind, file }
}

fn compare_descriptors(
    (before, old): (&Job, &Process),
    (now, new): (&Job, &Process),
    change: &mut ProcessChange,
) {
    let table = |job: &Job, process: &Process| -> BTreeMap<i32, String> {
        let entries = &job.fd_tables[to_usize(u64::from(process.fd_table.0))].entries;
        let described = entries.iter().map(|entry| {
            (entry.number, what(job, &job.open_files[to_usize(u64::from(entry.file.0))]))
        });
        described.collect()
    };
    let (earlier, later) = (table(before, old), table(now, new));
    for (number, now) in &later {
        match earlier.get(number) {
            None => change.opened.push(Descriptor { number: *number, what: now.clone() }),
            Some(before) if before != now => change.changed.push(DescriptorChange {
                number: *number,
                before: before.clone(),
                now: now.clone(),
            }),
            Some(_) => {}
        }
    }
    let gone = earlier.into_iter().filter(|(number, _)| !later.contains_key(number));
    change.closed.extend(gone.map(|(number, what)| Descriptor { number, what }));
}

/// What a file is known by: an inode number may be another file's by now, and so may a path.
type Key = (u64, u64, Vec<u8>);

fn files(before: &Job, now: &Job, (earlier, later): &(Contents, Contents)) -> Vec<FileChange> {
    let by_key = |job: &Job| -> BTreeMap<Key, InodeId> {
        let files = (0..).zip(&job.inodes).filter(|(_, inode)| is_file(inode));
        files.map(|(id, it)| ((it.device, it.number, it.path.0.clone()), InodeId(id))).collect()
    };
    let inode = |job: &'_ Job, id: InodeId| job.inodes[to_usize(u64::from(id.0))].clone();
    let (known, here) = (by_key(before), by_key(now));
    let mut changes = Vec::new();
    for (key, id) in &here {
        let new = inode(now, *id);
        let old = known.get(key).map(|id| inode(before, *id));
        let pages_changed = match (new.content, old.as_ref().and_then(|old| old.content)) {
            (Some(content), Some(its)) => {
                let all = 0..u64::MAX;
                let difference = later.difference(content, earlier, its, &all);
                difference.changed + difference.new + difference.gone
            }
            _ => 0,
        };
        let bytes_before = old.as_ref().map(|old| old.size);
        if bytes_before != Some(new.size) || pages_changed > 0 {
            let bytes = Some(new.size);
            changes.push(FileChange {
                path: path_of(now, *id),
                bytes_before,
                bytes,
                pages_changed,
            });
        }
    }
    for (_, id) in known.iter().filter(|(key, _)| !here.contains_key(*key)) {
        changes.push(FileChange {
            path: path_of(before, *id),
            bytes_before: Some(inode(before, *id).size),
            bytes: None,
            pages_changed: 0,
        });
    }
    changes.extend(outputs(before, now));
    changes.sort_by(|left, right| left.path.cmp(&right.path));
    changes
}

/// Named outputs, which need not be open.
fn outputs(before: &Job, now: &Job) -> Vec<FileChange> {
    let sizes = |job: &Job| -> BTreeMap<String, u64> {
        let open: Vec<_> = job.inodes.iter().map(|inode| &inode.path).collect();
        let files = job.outputs.files.iter().filter(|output| !open.contains(&&output.path));
        files.map(|output| (output.path.to_string(), output.size)).collect()
    };
    let (known, here) = (sizes(before), sizes(now));
    let paths: std::collections::BTreeSet<&String> = known.keys().chain(here.keys()).collect();
    let change = |path: &String| {
        let (bytes_before, bytes) = (known.get(path).copied(), here.get(path).copied());
        (bytes_before != bytes).then(|| FileChange {
            path: path.clone(),
            bytes_before,
            bytes,
            pages_changed: 0,
        })
    };
    paths.into_iter().filter_map(change).collect()
}

/// Whether a size means something: directories and devices have none that a job would know.
fn is_file(inode: &Inode) -> bool {
    match inode.kind {
        InodeKind::Linked => inode.mode & libc::S_IFMT == libc::S_IFREG,
        InodeKind::Unlinked
        | InodeKind::MemoryFile
        | InodeKind::Memfd { .. }
        | InodeKind::AnonymousShared
        | InodeKind::Segment { .. } => true,
    }
}
