//! Descriptions that tell a single thread about events (F_SETOWN_EX with F_OWNER_TID), or a process that has
//! its memory in common with its parent. A thread other than the main one, and such a process, exist only
//! when all else has been settled, so these wait for them.

use crate::model::file::FileOwner;
use crate::model::id::{OpenFileId, Pid};
use crate::model::job::Job;
use crate::model::number::to_usize;

/// F_OWNER_TID (include/uapi/asm-generic/fcntl.h).
const THREAD: i32 = 0;
/// F_OWNER_PID.
const PROCESS: i32 = 1;

/// A description that tells a thread or such a process, and a descriptor of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ThreadOwner {
    /// The description.
    pub file: OpenFileId,
    /// F_OWNER_TID or F_OWNER_PID.
    pub kind: i32,
    /// A process that has it open, and by which number.
    pub holder: (Pid, i32),
    /// The thread, or main thread.
    pub thread: Pid,
}

/// Whether an owner exists only after everything has been settled.
pub(super) fn comes_late(job: &Job, owner: &FileOwner) -> bool {
    match job.processes.iter().find(|process| process.pid == owner.id) {
        Some(process) => [THREAD, PROCESS].contains(&owner.kind) && job.shares_memory(process),
        None => owner.kind == THREAD,
    }
}

/// The descriptions of a job that wait for their owners.
pub(super) fn late(job: &Job) -> Vec<ThreadOwner> {
    let mut found = Vec::new();
    for (file, number) in job.open_files.iter().zip(0..) {
        let owner = file.owner.filter(|owner| owner.id.0 != 0 && comes_late(job, owner));
        let file = OpenFileId(number);
        if let Some(owner) = owner
            && let Some(holder) = holder(job, file)
        {
            found.push(ThreadOwner { file, kind: owner.kind, holder, thread: owner.id });
        }
    }
    found
}

fn holder(job: &Job, file: OpenFileId) -> Option<(Pid, i32)> {
    job.processes.iter().filter(|process| !process.is_zombie()).find_map(|process| {
        let table = job.fd_tables.get(to_usize(u64::from(process.fd_table.0)))?;
        let entry = table.entries.iter().find(|entry| entry.file == file)?;
        Some((process.pid, entry.number))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::sample;

    #[test]
    fn only_threads_come_late() {
        let mut job = sample::job();
        let main = job.processes[0].pid;
        let (thread, entry) = (job.processes[0].threads[1].tid, job.fd_tables[0].entries[0]);
        let owned = to_usize(u64::from(entry.file.0));
        let owner = |kind, id| Some(FileOwner { kind, id, signal: 0 });
        job.open_files.iter_mut().for_each(|file| file.owner = None);
        for (given, expected) in
            [(owner(0, main), None), (owner(1, thread), None), (owner(0, thread), Some(thread))]
        {
            job.open_files[owned].owner = given;
            let found: Vec<Pid> = late(&job).iter().map(|owner| owner.thread).collect();
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
        }
        assert_eq!(late(&job)[0].holder, (main, entry.number));
        let mut sharer = job.processes[0].clone();
        (sharer.pid, sharer.ppid) = (Pid(main.0 + 50), main);
        job.processes.push(sharer);
        job.open_files[owned].owner = owner(1, Pid(main.0 + 50));
        assert_eq!(late(&job)[0].thread, Pid(main.0 + 50));
    }
}
