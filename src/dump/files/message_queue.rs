//! POSIX message queues: what can be told of them from outside, which is all but their messages. To look
//! at a message is to take it, so a queue is saved when it is empty.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{Pid, geteuid};
use thiserror::Error;

use super::refusal::{Place, RefusalKind};
use super::scan::{Description, FileStat};
use super::{CollectFilesError, Collector, Failure, call_failed, duplicate, index};
use crate::model::code::{self, Code};
use crate::model::file::OpenFileKind;
use crate::model::id::{self, Bytes, PosixQueueId};
use crate::model::ipc::PosixQueue;
use crate::sys::message_queue;

/// Why a queue cannot be saved.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MessageQueueRefusal {
    /// Nobody can look at messages without taking them.
    #[error("{messages} messages wait in it, and nobody can look at them without taking them")]
    MessagesWait {
        /// How many.
        messages: u64,
    },
    /// `mq_notify`.
    #[error("process {process} is to be told of the next message in it (mq_notify)")]
    Notifies {
        /// Who, as rckpt sees it.
        process: i32,
    },
    /// Another user made it.
    #[error("it belongs to user {uid}")]
    Owner {
        /// The user.
        uid: u32,
    },
    /// A process outside the job uses it, too.
    #[error("process {holder} outside the job has it open, too")]
    SharedWithOutside {
        /// The other process.
        holder: Pid,
    },
    /// Its state cannot be read.
    #[error("its state cannot be read: {reason}")]
    Unreadable {
        /// What went wrong.
        reason: String,
    },
}

impl MessageQueueRefusal {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::MessagesWait { .. } => code::files::MESSAGES_WAIT,
            Self::Notifies { .. } => code::files::QUEUE_NOTIFIES,
            Self::Owner { .. } => code::files::QUEUE_OWNER,
            Self::SharedWithOutside { .. } => code::files::QUEUE_SHARED_WITH_OUTSIDE,
            Self::Unreadable { .. } => code::files::QUEUE_UNREADABLE,
        }
    }
}

impl MessageQueueRefusal {
    /// Whether it will be gone in a moment if the job runs on.
    #[must_use]
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::MessagesWait { .. })
    }

    /// What the user can do about it.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        self.code().remedy()
    }
}

impl From<MessageQueueRefusal> for Failure {
    fn from(refusal: MessageQueueRefusal) -> Self {
        Self::Refused(RefusalKind::MessageQueue(refusal))
    }
}

/// The queues recorded so far.
#[derive(Debug, Default)]
pub(super) struct MessageQueueTable {
    records: Vec<PosixQueue>,
    /// By device and inode number.
    known: HashMap<(u64, u64), PosixQueueId>,
}

impl MessageQueueTable {
    /// The records.
    pub fn finish(self) -> Vec<PosixQueue> {
        self.records
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Whether a queue is recorded.
    pub fn knows(&self, identity: (u64, u64)) -> bool {
        self.known.contains_key(&identity)
    }

    fn add(
        &mut self,
        identity: (u64, u64),
        queue: PosixQueue,
    ) -> Result<PosixQueueId, CollectFilesError> {
        let id = PosixQueueId(index(self.records.len())?);
        self.records.push(queue);
        self.known.insert(identity, id);
        Ok(id)
    }
}

/// Records a description of a queue.
pub(super) fn collect(
    collector: &mut Collector,
    found: &Description,
) -> Result<OpenFileKind, Failure> {
    let identity = found.stat.identity();
    if let Some(queue) = collector.message_queues.known.get(&identity) {
        return Ok(OpenFileKind::MessageQueue { queue: *queue });
    }
    let removed = found.stat.links == 0;
    let path = match found.link.strip_suffix(b" (deleted)") {
        Some(path) if removed => path,
        _ => &found.link,
    };
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    if let Some(holder) = holder_outside(&collector.recorded, identity) {
        return Err(MessageQueueRefusal::SharedWithOutside { holder }.into());
    }
    let attributes =
        message_queue::attributes(duplicate(found)?).map_err(call_failed(found, "mq_getattr"))?;
    let queue = describe(name, &found.proc_path(), removed, &attributes)?;
    let queue = collector.message_queues.add(identity, queue)?;
    Ok(OpenFileKind::MessageQueue { queue })
}

/// The record of a queue whose file is under `path`.
fn describe(
    name: &[u8],
    path: &Path,
    removed: bool,
    attributes: &message_queue::Attributes,
) -> Result<PosixQueue, MessageQueueRefusal> {
    let unreadable =
        |error: std::io::Error| MessageQueueRefusal::Unreadable { reason: error.to_string() };
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if metadata.uid() != geteuid().as_raw() {
        return Err(MessageQueueRefusal::Owner { uid: metadata.uid() });
    }
    let messages = attributes.messages;
    if messages != 0 {
        return Err(MessageQueueRefusal::MessagesWait { messages });
    }
    if let Some(process) = message_queue::notified(&fs::read(path).map_err(unreadable)?) {
        return Err(MessageQueueRefusal::Notifies { process });
    }
    Ok(PosixQueue {
        name: Bytes::from(name),
        removed,
        mode: metadata.mode() & 0o777,
        max_messages: attributes.max_messages,
        message_size: attributes.message_size,
    })
}

/// A process that is not of the job, and has the queue open. Any process may, by its name.
fn holder_outside(job: &HashMap<Pid, id::Pid>, identity: (u64, u64)) -> Option<Pid> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find_map(|number| {
        let pid = Pid::from_raw(number);
        if job.contains_key(&pid) {
            return None;
        }
        // Processes of other users cannot be asked, and do not count.
        let mut open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
        let is_it = |metadata: Metadata| FileStat::from(&metadata).identity() == identity;
        open.any(|entry| fs::metadata(entry.path()).is_ok_and(is_it)).then_some(pid)
    })
}

impl Collector {
    /// Whether any queue is recorded.
    #[must_use]
    pub fn has_message_queues(&self) -> bool {
        !self.message_queues.is_empty()
    }

    /// Whether a queue, known by its device and inode number, is recorded already.
    #[must_use]
    pub fn knows_message_queue(&self, identity: (u64, u64)) -> bool {
        self.message_queues.knows(identity)
    }

    /// Records a queue that nobody has open, under `path`. What cannot be saved is refused, on behalf of
    /// `user`, if the queue is known to be the job's.
    ///
    /// # Errors
    /// When it cannot be looked at, or there are too many.
    pub fn add_message_queue(
        &mut self,
        name: &[u8],
        path: &Path,
        (user, is_known): (Pid, bool),
    ) -> Result<(), CollectFilesError> {
        let failed = |source| CollectFilesError::ReadProc { path: path.to_owned(), source };
        let metadata = fs::metadata(path).map_err(failed)?;
        let attributes = fs::File::open(path)
            .map_err(|error| error.to_string())
            .and_then(|queue| message_queue::attributes(queue).map_err(|errno| errno.to_string()));
        let queue = attributes
            .map_err(|reason| MessageQueueRefusal::Unreadable { reason })
            .and_then(|attributes| describe(name, path, false, &attributes));
        match queue {
            Ok(queue) => {
                let identity = FileStat::from(&metadata).identity();
                self.message_queues.add(identity, queue).map(drop)
            }
            Err(refusal) => {
                if is_known {
                    let kind = RefusalKind::MessageQueue(refusal);
                    self.refuse(user, Place::MessageQueue, name, kind);
                }
                Ok(())
            }
        }
    }
}
