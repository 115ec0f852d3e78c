//! What must hold of System V IPC and POSIX message queues: see [`super::validate`].

use super::validate::{Checked, Record, demand, refer};
use crate::model::file::InodeKind;
use crate::model::ipc::{IpcIdentity, MessageQueue, PosixMessage, PosixQueue, SemaphoreSet};
use crate::model::job::Job;
use crate::model::number::{to_u64, to_usize};

/// Largest value of a semaphore (SEMVMX).
const VALUE_LIMIT: u16 = 32767;
/// MQ_PRIO_MAX.
const PRIORITY_LIMIT: u32 = 32768;
/// Permission bits.
const ACCESS: u32 = 0o777;

/// Checks the objects of a job.
pub(super) fn check(job: &Job) -> Checked {
    let ipc = &job.ipc;
    check_order(ipc.segments.iter().map(|segment| &segment.identity))?;
    check_order(ipc.semaphores.iter().map(|set| &set.identity))?;
    check_order(ipc.queues.iter().map(|queue| &queue.identity))?;
    for segment in &ipc.segments {
        let record = Record::Ipc(segment.identity.id);
        refer(record, "inode", segment.inode.0, job.inodes.len())?;
        let inode = &job.inodes[to_usize(u64::from(segment.inode.0))];
        let own = inode.kind == InodeKind::Segment { id: segment.identity.id };
        let sound = segment.size > 0 && segment.size <= inode.size;
        demand(sound, record, "its size is not that of its content")?;
        demand(own && inode.content.is_some(), record, "its content is that of something else")?;
    }
    for (number, inode) in job.inodes.iter().enumerate() {
        if let InodeKind::Segment { id } = inode.kind {
            let known = ipc.segments.iter().any(|segment| {
                segment.identity.id == id && to_usize(u64::from(segment.inode.0)) == number
            });
            demand(known, Record::Inode(number), "it is a segment that there is not")?;
        }
    }
    ipc.semaphores.iter().try_for_each(|set| check_set(job, set))?;
    ipc.queues.iter().try_for_each(check_queue)?;
    ipc.posix_queues
        .iter()
        .enumerate()
        .try_for_each(|(place, queue)| check_posix_queue(Record::MessageQueue(place), queue))
}

fn check_order<'a>(identities: impl Iterator<Item = &'a IpcIdentity>) -> Checked {
    let mut last = -1;
    for identity in identities {
        let record = Record::Ipc(identity.id);
        demand(last < identity.id, record, "its number is impossible, or out of order")?;
        demand(identity.mode <= ACCESS, record, "its permissions are none")?;
        last = identity.id;
    }
    Ok(())
}

fn check_set(job: &Job, set: &SemaphoreSet) -> Checked {
    let record = Record::Ipc(set.identity.id);
    demand(!set.semaphores.is_empty(), record, "it has no semaphores")?;
    let sound = set.semaphores.iter().all(|semaphore| semaphore.value <= VALUE_LIMIT);
    demand(sound, record, "a semaphore's value is too large")?;
    for undo in &set.undo {
        let known = job.processes.iter().any(|process| process.pid == undo.process);
        let number = to_usize(u64::from(undo.number));
        let sound = known && number < set.semaphores.len() && undo.adjustment != 0;
        demand(sound, record, "something is to be undone by, or in, what there is not")?;
    }
    Ok(())
}

fn check_queue(queue: &MessageQueue) -> Checked {
    let sound = queue.messages.iter().all(|message| message.kind > 0);
    demand(sound, Record::Ipc(queue.identity.id), "a message's type is not positive")
}

fn check_posix_queue(record: Record, queue: &PosixQueue) -> Checked {
    let is_name = |byte: &u8| !matches!(*byte, 0 | b'/');
    let named = !queue.name.0.is_empty() && queue.name.0.iter().all(is_name);
    demand(named, record, "its name is none")?;
    demand(queue.mode <= ACCESS, record, "its permissions are none")?;
    let fits = |number: u64| number > 0 && i64::try_from(number).is_ok();
    let sound = fits(queue.max_messages) && fits(queue.message_size);
    demand(sound, record, "it has no room for any message")?;
    let messages = &queue.messages;
    let fits = |message: &PosixMessage| {
        message.priority < PRIORITY_LIMIT && to_u64(message.text.0.len()) <= queue.message_size
    };
    let sound = to_u64(messages.len()) <= queue.max_messages && messages.iter().all(fits);
    demand(sound, record, "it has no room for its messages")?;
    let ordered = messages.is_sorted_by(|first, next| first.priority >= next.priority);
    demand(ordered, record, "its messages are out of order")
}

#[cfg(test)]
mod tests {
    use crate::image::sample;
    use crate::image::validate::check_job;
    use crate::model::id::InodeId;
    use crate::model::ipc::PosixMessage;
    use crate::model::job::Job;

    fn refused(problem: &str, change: impl FnOnce(&mut Job)) {
        let mut job = sample::job();
        change(&mut job);
        let found = check_job(&job).expect_err(problem).to_string();
        assert!(found.contains(problem), "{found}");
    }

    #[test]
    fn impossible_objects_are_refused() {
        refused("out of order", |job| job.ipc.queues[0].identity.id = -1);
        refused("permissions", |job| job.ipc.queues[0].identity.mode = 0o1000);
        refused("something else", |job| job.ipc.segments[0].inode = InodeId(0));
        refused("its size", |job| job.ipc.segments[0].size = 0);
        refused("that there is not", |job| job.ipc.segments.clear());
        refused("no semaphores", |job| job.ipc.semaphores[0].semaphores.clear());
        refused("too large", |job| job.ipc.semaphores[0].semaphores[0].value = 40000);
        refused("to be undone", |job| job.ipc.semaphores[0].undo[0].number = 9);
        refused("not positive", |job| job.ipc.queues[0].messages[0].kind = 0);
        refused("its name is none", |job| job.ipc.posix_queues[0].name = b"a/b"[..].into());
        refused("its permissions are", |job| job.ipc.posix_queues[0].mode = 0o10000);
        refused("no room for any", |job| job.ipc.posix_queues[0].max_messages = 0);
        refused("for its messages", |job| job.ipc.posix_queues[0].message_size = 5);
        refused("for its messages", |job| job.ipc.posix_queues[0].messages[0].priority = 32768);
        refused("of order", |job| {
            let first = PosixMessage { priority: 2, text: b"low"[..].into() };
            job.ipc.posix_queues[0].messages.insert(0, first);
        });
    }
}
