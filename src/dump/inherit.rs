//! Which object of the generation before is likely to have the same pages as one of this. A guess is
//! good enough: pages are compared, and only those that are the same are left out.

use std::collections::BTreeMap;

use crate::image::Writer;
use crate::model::file::Inode;
use crate::model::id::ObjectId;
use crate::model::job::Job;
use crate::model::number::to_usize;

/// Lets `writer` compare each object of `job` with its counterpart in the generation that it builds
/// on, if it does.
pub(super) fn compare_all(job: &Job, writer: &mut Writer) {
    let Some(parent) = writer.parent() else { return };
    for (object, of) in counterparts(parent.job(), job) {
        writer.compare(object, of);
    }
}

/// Pairs of an object of `job` and its counterpart in `earlier`: the memory of the process with the
/// same id, and the content of the same file, or of one that has its name.
fn counterparts(earlier: &Job, job: &Job) -> Vec<(ObjectId, ObjectId)> {
    let (before, now) = (memories(earlier), memories(job));
    let spaces = now.iter().filter_map(|(pid, object)| Some((*object, *before.get(pid)?)));
    let contents = job.inodes.iter().filter_map(|inode| {
        let candidates = || earlier.inodes.iter().filter(|other| other.content.is_some());
        let other = candidates()
            .find(|other| (other.device, other.number) == (inode.device, inode.number))
            // A restore makes new files.
            .or_else(|| candidates().find(|other| names(other) == names(inode)))?;
        Some((inode.content?, other.content?))
    });
    spaces.chain(contents).collect()
}

/// The object of each process's memory.
fn memories(job: &Job) -> BTreeMap<i32, ObjectId> {
    let object = |mm: u32| Some(job.address_spaces.get(to_usize(u64::from(mm)))?.object);
    job.processes
        .iter()
        .filter_map(|process| Some((process.pid.0, object(process.mm.0)?)))
        .collect()
}

/// What a file and its successor after a restore have in common.
fn names(inode: &Inode) -> (std::mem::Discriminant<crate::model::file::InodeKind>, &[u8], u64) {
    (std::mem::discriminant(&inode.kind), &inode.path.0, inode.size)
}

#[cfg(test)]
mod tests {
    use super::counterparts;
    use crate::image::sample;
    use crate::model::id::{ObjectId, Pid};

    #[test]
    fn processes_are_known_by_id_and_files_by_number_or_name() {
        let earlier = sample::job();
        let same = [0, 1, 2].map(|object| (ObjectId(object), ObjectId(object)));
        let found = |change: fn(&mut crate::model::job::Job)| {
            let mut job = sample::job();
            change(&mut job);
            let mut found = counterparts(&earlier, &job);
            found.sort_unstable();
            found.dedup();
            found
        };
        assert_eq!(found(|_| ()), same);
        assert_eq!(found(|job| job.inodes.iter_mut().for_each(|inode| inode.number += 1)), same);
        let renamed = found(|job| {
            for inode in &mut job.inodes {
                inode.number += 1;
                inode.path.0.push(b'x');
            }
        });
        assert_eq!(renamed, same[..1]);
        let others = found(|job| job.processes.iter_mut().for_each(|one| one.pid = Pid(7)));
        assert_eq!(others, same[1..]);
    }
}
