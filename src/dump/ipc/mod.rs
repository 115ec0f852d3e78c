//! Collects System V shared memory, semaphores and message queues, and those POSIX message queues that
//! nobody has open: `files` has the others.
//!
//! They belong to an ipc namespace rather than to processes. In a namespace that a restore made all of
//! them are the job's; elsewhere `belonging` decides. Looking changes nothing: messages are copied
//! where they are, and what processes have left to be undone is found by operations that cannot
//! succeed. A segment that nobody has attached, though, has to be attached for a moment to be read.

mod belonging;
mod posix;
mod refusal;
mod undo;

use std::collections::BTreeMap;

use nix::errno::Errno;
use nix::unistd::{Pid, getegid, geteuid, getpid};

use self::belonging::{Acquaintances, Claims, Trace, Whose};
use self::posix::Unopened;
use super::census::Census;
use super::error::CollectError;
use super::files::Collector;
use super::refusal::Obstacle;
use crate::model::address::AddrRange;
use crate::model::id::Bytes;
use crate::model::ipc::{
    Ipc, IpcIdentity, Message, MessageQueue, Segment, Semaphore, SemaphoreSet, SemaphoreUndo,
};
use crate::model::number::{PAGE_SIZE, page_align_up, to_u64, to_usize};
use crate::sys::emissary::{Emissary, ROOM};
use crate::sys::ipc::{self, Kind, Permissions, QueueStat, STAT_SIZE, SegmentStat, SetStat};
use crate::sys::procfs;
use crate::tracer::tree::Tree;

pub use self::refusal::{IpcObject, IpcRefusal, IpcRemark};

/// Bytes in a huge page of the pool that segments may come from.
const HUGE_PAGE_SIZE: u64 = 2 << 20;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Collected {
    /// The records, but for POSIX message queues, which are noted with the files.
    pub ipc: Ipc,
    /// Who has segments attached that are to be read; needed until they have been.
    pub emissary: Option<Emissary>,
    /// What the user should know.
    pub remarks: Vec<IpcRemark>,
}

/// Collects all that belongs to the job. `files` knows which segments the job has mapped.
///
/// # Errors
/// When the kernel cannot be asked. What cannot be saved becomes an obstacle.
pub(super) fn collect(
    root: Pid,
    census: &Census,
    tree: &mut Tree,
    files: &mut Collector,
    obstacles: &mut Vec<Obstacle>,
) -> Result<Collected, CollectError> {
    let own = |name: &str| -> Result<bool, CollectError> {
        let link = format!("ns/{name}");
        Ok(procfs::read_link(root, &link)? == procfs::read_link(getpid(), &link)?)
    };
    let here = own("ipc")?;
    let unopened = if here { Unopened::here(files)? } else { Unopened::default() };
    let mut remarks = Vec::from_iter(unopened.unseen.then_some(IpcRemark::QueuesUnseen));
    if here && !ipc::any_here() && unopened.is_empty() {
        return Ok(Collected { remarks, ..Collected::default() });
    }
    let sent = Emissary::send(root);
    let mut emissary = sent.map_err(|source| CollectError::Emissary { pid: root, source })?;
    let unopened = if here { unopened } else { Unopened::elsewhere(&mut emissary, files)? };
    let mut acquaintances = Acquaintances::new(census, here, own("pid")?)?;
    unopened.collect(root, &mut acquaintances, files)?;
    let mut look = Look {
        root,
        emissary: &mut emissary,
        acquaintances,
        files,
        obstacles,
        remarks: Vec::new(),
    };
    let segments = look.segments()?;
    let mut semaphores = look.semaphores()?;
    let queues = look.queues()?;
    remarks.append(&mut look.remarks);
    if !semaphores.is_empty() {
        undo::collect(tree, census, emissary.agent(), &mut semaphores, obstacles)?;
    }
    let emissary = files.reads_segments_of(emissary.agent()).then_some(emissary);
    let ipc = Ipc { segments, semaphores, queues, posix_queues: Vec::new() };
    Ok(Collected { ipc, emissary, remarks })
}

/// Whether an object is known to be the job's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Certainty {
    Known,
    Supposed,
}

/// The look at one kind after the other.
struct Look<'a> {
    root: Pid,
    emissary: &'a mut Emissary,
    acquaintances: Acquaintances<'a>,
    files: &'a mut Collector,
    obstacles: &'a mut Vec<Obstacle>,
    remarks: Vec<IpcRemark>,
}

impl Look<'_> {
    fn segments(&mut self) -> Result<Vec<Segment>, CollectError> {
        let mut segments = Vec::new();
        let all = self.list(libc::SYS_shmctl, ipc::SHM_INFO, ipc::SHM_STAT_ANY)?;
        for (id, stat) in all.into_iter().map(|(id, bytes)| (id, ipc::segment(&bytes))) {
            let attached = self.files.segment_attachments(id);
            let claims = Claims {
                attached: (stat.attached, attached),
                creator: Trace { pid: stat.creator, left: stat.changed },
                users: vec![Trace { pid: stat.last, left: stat.used }],
                changed: stat.changed,
                owner: stat.permissions.creator_uid,
            };
            let object = IpcObject { kind: Kind::Segment, id, key: stat.permissions.key };
            if let Some(certainty) = self.is_ours(object, &claims, &stat.permissions)
                && let Some(segment) = self.segment(object, certainty, &stat)?
            {
                segments.push(segment);
            }
        }
        segments.sort_unstable_by_key(|segment| segment.identity.id);
        Ok(segments)
    }

    fn segment(
        &mut self,
        object: IpcObject,
        certainty: Certainty,
        stat: &SegmentStat,
    ) -> Result<Option<Segment>, CollectError> {
        let id = object.id;
        let seen = self.files.segment_attachments(id) != 0;
        let start = if seen { Ok(0) } else { self.attach(id) };
        let start = match start {
            Ok(start) => start,
            Err(source) => {
                self.unreadable(object, certainty, source);
                return Ok(None);
            }
        };
        let huge_pages =
            if seen { self.files.segment_is_huge(id) } else { self.attached_is_huge(start)? };
        let (size, length) = if huge_pages {
            let length = stat.size.next_multiple_of(HUGE_PAGE_SIZE);
            (length, length)
        } else {
            (stat.size, page_align_up(stat.size))
        };
        let mode = stat.permissions.mode;
        let inode = self.files.describe_segment(id, (size, huge_pages), mode, self.root)?;
        if self.files.segment_is_in_parts(inode, length / PAGE_SIZE) {
            self.refuse(object, IpcRefusal::InParts);
            return Ok(None);
        }
        if !seen && let Some(range) = AddrRange::new(start, start + length) {
            self.files.read_segment_of(inode, self.emissary.agent(), range);
        }
        Ok(Some(Segment {
            identity: identity(object, &stat.permissions),
            inode,
            size: stat.size,
            huge_pages,
            creator: self.acquaintances.recorded(stat.creator),
            removed: stat.permissions.mode & ipc::SHM_DEST != 0,
            locked: stat.permissions.mode & ipc::SHM_LOCKED != 0,
        }))
    }

    /// Whether what the emissary has attached at `start` consists of huge pages.
    fn attached_is_huge(&self, start: u64) -> Result<bool, CollectError> {
        let mappings = procfs::mapping_heads(self.emissary.agent())?;
        let attached = mappings.iter().find(|mapping| mapping.range.start.0 == start);
        Ok(attached.is_some_and(|mapping| self.files.is_of_huge_pages(mapping.device)))
    }

    /// Has the emissary attach a segment: its address there.
    fn attach(&mut self, id: i32) -> Result<u64, Errno> {
        let [id, flags] = [id, libc::SHM_RDONLY].map(|word| i64::from(word).cast_unsigned());
        self.emissary.call(libc::SYS_shmat, &[id, 0, flags]).map(i64::cast_unsigned)
    }

    fn semaphores(&mut self) -> Result<Vec<SemaphoreSet>, CollectError> {
        let mut sets = Vec::new();
        let all = self.list(libc::SYS_semctl, ipc::SEM_INFO, ipc::SEM_STAT_ANY)?;
        for (id, stat) in all.into_iter().map(|(id, bytes)| (id, ipc::set(&bytes))) {
            let object = IpcObject { kind: Kind::Semaphores, id, key: stat.permissions.key };
            // Without permission to read nobody tells; then the user ids will.
            let found = self.values(id, &stat);
            // Setting a value (SETVAL) is a change.
            let left = stat.operated.max(stat.changed);
            let users = found.iter().flatten().map(|(_, pid)| Trace { pid: *pid, left }).collect();
            let claims = Claims {
                attached: (0, 0),
                creator: Trace::default(),
                users,
                changed: stat.changed,
                owner: stat.permissions.creator_uid,
            };
            let Some(certainty) = self.is_ours(object, &claims, &stat.permissions) else {
                continue;
            };
            let values = match found {
                Ok(values) => values,
                Err(source) => {
                    self.unreadable(object, certainty, source);
                    continue;
                }
            };
            let semaphore = |(value, last): (u16, i32)| Semaphore {
                value,
                last: self.acquaintances.recorded(last),
            };
            sets.push(SemaphoreSet {
                identity: identity(object, &stat.permissions),
                semaphores: values.into_iter().map(semaphore).collect(),
                operated: stat.operated != 0,
                undo: Vec::<SemaphoreUndo>::new(),
            });
        }
        sets.sort_unstable_by_key(|set| set.identity.id);
        Ok(sets)
    }

    /// The values of a set, and who changed them last.
    fn values(&mut self, id: i32, stat: &SetStat) -> Result<Vec<(u16, i32)>, Errno> {
        let id = i64::from(id).cast_unsigned();
        let control = |command: i32| i64::from(command).cast_unsigned();
        let room = self.emissary.room();
        let count = to_usize(stat.count).min(ROOM / 2);
        self.emissary.call(libc::SYS_semctl, &[id, 0, control(ipc::GETALL), room])?;
        let bytes = self.emissary.take(count * 2);
        let values = bytes.as_chunks::<2>().0.iter().map(|value| u16::from_ne_bytes(*value));
        let mut semaphores = Vec::with_capacity(count);
        for (number, value) in (0..).zip(values) {
            let last = self.emissary.call(libc::SYS_semctl, &[id, number, control(ipc::GETPID)])?;
            semaphores.push((value, i32::try_from(last).unwrap_or_default()));
        }
        Ok(semaphores)
    }

    fn queues(&mut self) -> Result<Vec<MessageQueue>, CollectError> {
        let mut queues = Vec::new();
        let all = self.list(libc::SYS_msgctl, ipc::MSG_INFO, ipc::MSG_STAT_ANY)?;
        for (id, stat) in all.into_iter().map(|(id, bytes)| (id, ipc::queue(&bytes))) {
            let object = IpcObject { kind: Kind::Queue, id, key: stat.permissions.key };
            let claims = Claims {
                attached: (0, 0),
                creator: Trace::default(),
                users: vec![
                    Trace { pid: stat.last_sender, left: stat.sent },
                    Trace { pid: stat.last_receiver, left: stat.received },
                ],
                changed: stat.changed,
                owner: stat.permissions.creator_uid,
            };
            let Some(certainty) = self.is_ours(object, &claims, &stat.permissions) else {
                continue;
            };
            match self.messages(id, &stat) {
                Ok(messages) => queues.push(MessageQueue {
                    identity: identity(object, &stat.permissions),
                    capacity: stat.capacity,
                    messages,
                    last_sender: self.acquaintances.recorded(stat.last_sender),
                    last_receiver: self.acquaintances.recorded(stat.last_receiver),
                }),
                Err(source) => self.unreadable(object, certainty, source),
            }
        }
        queues.sort_unstable_by_key(|queue| queue.identity.id);
        Ok(queues)
    }

    /// Copies the messages of a queue, which stay in it.
    fn messages(&mut self, id: i32, stat: &QueueStat) -> Result<Vec<Message>, Errno> {
        const TYPE_SIZE: usize = size_of::<i64>();
        let flags = i64::from(ipc::MSG_COPY | libc::IPC_NOWAIT).cast_unsigned();
        let most = to_u64(ROOM - TYPE_SIZE);
        let mut messages = Vec::new();
        for place in 0..stat.messages {
            let room = self.emissary.room();
            let arguments = [i64::from(id).cast_unsigned(), room, most, place, flags];
            let length = self.emissary.call(libc::SYS_msgrcv, &arguments)?;
            let length = usize::try_from(length).map_err(|_| Errno::EPROTO)?;
            let bytes = self.emissary.take(TYPE_SIZE + length);
            let (kind, text) = bytes.split_first_chunk().ok_or(Errno::EPROTO)?;
            messages.push(Message { kind: i64::from_ne_bytes(*kind), text: Bytes::from(text) });
        }
        Ok(messages)
    }

    /// All objects of a kind: their numbers and what `*_STAT_ANY` gives.
    fn list(
        &mut self,
        control: i64,
        info: i32,
        stat: i32,
    ) -> Result<BTreeMap<i32, Vec<u8>>, CollectError> {
        let failed = |source| CollectError::ListIpc { source };
        let room = self.emissary.room();
        let arguments = |place: u64, command: i32| -> [u64; 4] {
            let command = i64::from(command).cast_unsigned();
            // semctl has the number of a semaphore in between.
            if control == libc::SYS_semctl {
                [place, 0, command, room]
            } else {
                [place, command, room, 0]
            }
        };
        let highest = self.emissary.call(control, &arguments(0, info)).map_err(failed)?;
        let mut found = BTreeMap::new();
        for place in 0..=u64::try_from(highest).unwrap_or_default() {
            match self.emissary.call(control, &arguments(place, stat)) {
                Ok(id) => {
                    let id = i32::try_from(id).map_err(|_| failed(Errno::EOVERFLOW))?;
                    found.insert(id, self.emissary.take(STAT_SIZE));
                }
                // Nothing is in that place (any more).
                Err(Errno::EINVAL | Errno::EIDRM) => {}
                Err(source) => return Err(failed(source)),
            }
        }
        Ok(found)
    }

    /// Whether an object is the job's and can be saved; why it cannot is noted.
    fn is_ours(
        &mut self,
        object: IpcObject,
        claims: &Claims,
        permissions: &Permissions,
    ) -> Option<Certainty> {
        let owners = [permissions.uid, permissions.creator_uid];
        let groups = [permissions.gid, permissions.creator_gid];
        let own = owners == [geteuid().as_raw(); 2] && groups == [getegid().as_raw(); 2];
        match self.acquaintances.judge(claims) {
            Whose::Others => {}
            Whose::Namesake(pid) => {
                self.remarks.push(IpcRemark::Older { object, pid });
            }
            Whose::Job if own => return Some(Certainty::Known),
            Whose::Perhaps if own => return Some(Certainty::Supposed),
            Whose::Perhaps => {}
            Whose::Both { user } => self.refuse(object, IpcRefusal::UsedOutside { user }),
            Whose::Job => {
                let refusal = IpcRefusal::Owner { uid: permissions.uid, gid: permissions.gid };
                self.refuse(object, refusal);
            }
        }
        None
    }

    /// What cannot be read is only in the way if it is known to be the job's.
    fn unreadable(&mut self, object: IpcObject, certainty: Certainty, source: Errno) {
        if certainty == Certainty::Known {
            self.refuse(object, IpcRefusal::Unreadable { source });
        }
    }

    fn refuse(&mut self, object: IpcObject, kind: IpcRefusal) {
        let user = match object.kind {
            Kind::Segment => self.files.segment_user(object.id),
            Kind::Semaphores | Kind::Queue => None,
        };
        self.obstacles.push(Obstacle::Ipc { pid: user.unwrap_or(self.root), object, kind });
    }
}

fn identity(object: IpcObject, permissions: &Permissions) -> IpcIdentity {
    /// S_IRWXUGO.
    const ACCESS: u32 = 0o777;
    IpcIdentity { id: object.id, key: object.key, mode: permissions.mode & ACCESS }
}
