//! POSIX message queues. All but their messages can be told from outside. To look at a message is to take it:
//! that is done last, once nothing else stands in the way of the checkpoint, and by somebody who puts all of
//! them back at once and cannot be kept from that by any one death ([`crate::sys::queue_keeper`]).

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Pid, geteuid};
use thiserror::Error;

use super::refusal::{Place, Refusal, RefusalKind};
use super::scan::{Description, FileStat};
use super::{CollectFilesError, Collector, Failure, call_failed, duplicate, index};
use crate::model::code::{self, Code};
use crate::model::file::OpenFileKind;
use crate::model::id::{self, Bytes, PosixQueueId};
use crate::model::ipc::{PosixMessage, PosixQueue};
use crate::sys::message_queue;
use crate::sys::queue_keeper::{self, KeepError};

/// Why a queue cannot be saved.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MessageQueueRefusal {
    /// Nobody can look at messages without taking them, and here they cannot be taken.
    #[error(
        "{messages} messages wait in it, which can be looked at only by taking them: {hindrance}"
    )]
    MessagesWait {
        /// How many.
        messages: u64,
        /// Why they cannot be taken.
        hindrance: Hindrance,
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

/// Why messages cannot be taken out of a queue for a moment.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Hindrance {
    /// Its owner may not open it for both.
    #[error("its permissions ({mode:03o}) do not let its owner read and write it")]
    Permissions {
        /// Permission bits.
        mode: u32,
    },
    /// It is full, and somebody may wait to send to it.
    #[error(
        "it is full, and processes of other users, which cannot be asked, may wait to send to it"
    )]
    MayBeAwaited,
    /// The job would see it empty if rckpt were killed.
    #[error(
        "rckpt is traced itself, or may not be, and so cannot do that safely (PTRACE_SEIZE: {source})"
    )]
    NotHeld {
        /// Why.
        source: Errno,
    },
    /// Somebody used it.
    #[error("a process that cannot be seen uses it at the same time")]
    Disturbed,
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
pub struct MessageQueues {
    records: Vec<PosixQueue>,
    /// By device and inode number.
    known: HashMap<(u64, u64), PosixQueueId>,
    /// Those with messages, which are still to be looked at.
    unread: Vec<Unread>,
    /// By device, and then inode number: who outside the job has a queue open.
    outside: HashMap<u64, HashMap<u64, Pid>>,
}

/// A queue with messages.
#[derive(Debug)]
struct Unread {
    /// Its record.
    place: usize,
    /// A description of rckpt's own, for both and without waiting.
    queue: OwnedFd,
    /// Who stands for the job in messages, and where.
    user: (Pid, Place),
    messages: u64,
}

/// What is known of a queue that can be saved: its record, and a description of rckpt's own if messages are in
/// it.
type Described = (PosixQueue, Option<(OwnedFd, u64)>);

impl MessageQueues {
    /// The records, without messages.
    #[must_use]
    pub fn without_messages(self) -> Vec<PosixQueue> {
        self.records
    }

    /// The records with the messages, which are all in their queues again when this returns. Everybody who has
    /// one of them open must be held by the calling thread. Those that cannot be looked at are refused.
    ///
    /// # Errors
    /// When looking at one fails.
    pub fn with_messages(
        mut self,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Vec<PosixQueue>, CollectFilesError> {
        for Unread { place, queue, user: (pid, place_of_user), messages } in self.unread {
            let record = &mut self.records[place];
            let hindrance = match queue_keeper::copy_messages(&queue) {
                Ok(copied) => {
                    let recorded = copied.into_iter().map(|message| PosixMessage {
                        priority: message.priority,
                        text: Bytes(message.text),
                    });
                    record.messages = recorded.collect();
                    continue;
                }
                Err(KeepError::Hold { source }) => Hindrance::NotHeld { source },
                Err(KeepError::Disturbed) => Hindrance::Disturbed,
                Err(source) => {
                    let name = record.name.clone();
                    return Err(CollectFilesError::LookIntoMessageQueue { name, source });
                }
            };
            let refusal = MessageQueueRefusal::MessagesWait { messages, hindrance };
            refusals.push(Refusal {
                pid,
                place: place_of_user,
                what: record.name.clone(),
                kind: RefusalKind::MessageQueue(refusal),
            });
        }
        Ok(self.records)
    }

    /// A process that is not of the job, and has a queue open.
    fn holder_outside(
        &mut self,
        job: &HashMap<Pid, id::Pid>,
        (device, number): (u64, u64),
    ) -> Option<Pid> {
        let holders = self.outside.entry(device).or_insert_with(|| holders_outside(job, device));
        holders.get(&number).copied()
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
        (record, own): Described,
        user: (Pid, Place),
    ) -> Result<PosixQueueId, CollectFilesError> {
        let place = self.records.len();
        let id = PosixQueueId(index(place)?);
        self.records.push(record);
        if let Some((queue, messages)) = own {
            self.unread.push(Unread { place, queue, user, messages });
        }
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
    if let Some(holder) = collector.message_queues.holder_outside(&collector.recorded, identity) {
        return Err(MessageQueueRefusal::SharedWithOutside { holder }.into());
    }
    let attributes =
        message_queue::attributes(duplicate(found)?).map_err(call_failed(found, "mq_getattr"))?;
    let queue = describe(name, &found.proc_path(), removed, &attributes)?;
    let user = (found.holder.0, Place::Descriptor(found.holder.1));
    let queue = collector.message_queues.add(identity, queue, user)?;
    Ok(OpenFileKind::MessageQueue { queue })
}

/// The record of a queue whose file is under `path`.
fn describe(
    name: &[u8],
    path: &Path,
    removed: bool,
    attributes: &message_queue::Attributes,
) -> Result<Described, MessageQueueRefusal> {
    let unreadable =
        |error: std::io::Error| MessageQueueRefusal::Unreadable { reason: error.to_string() };
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if metadata.uid() != geteuid().as_raw() {
        return Err(MessageQueueRefusal::Owner { uid: metadata.uid() });
    }
    if let Some(process) = message_queue::notified(&fs::read(path).map_err(unreadable)?) {
        return Err(MessageQueueRefusal::Notifies { process });
    }
    let mode = metadata.mode() & 0o777;
    let own = if attributes.messages == 0 {
        None
    } else {
        Some((open_for_both(path, mode, attributes)?, attributes.messages))
    };
    let record = PosixQueue {
        name: Bytes::from(name),
        removed,
        mode,
        max_messages: attributes.max_messages,
        message_size: attributes.message_size,
        messages: Vec::new(),
    };
    Ok((record, own))
}

/// A description of our own of a queue that messages are in.
fn open_for_both(
    path: &Path,
    mode: u32,
    attributes: &message_queue::Attributes,
) -> Result<OwnedFd, MessageQueueRefusal> {
    const WRITABLE_BY_OTHERS: u32 = 0o022;
    let messages = attributes.messages;
    let refused = |hindrance| MessageQueueRefusal::MessagesWait { messages, hindrance };
    // A message of theirs would come in the moment that one is taken, and that one would have no room.
    let is_full = messages >= attributes.max_messages;
    if is_full && mode & WRITABLE_BY_OTHERS != 0 && !geteuid().is_root() {
        return Err(refused(Hindrance::MayBeAwaited));
    }
    let mut both = fs::OpenOptions::new();
    let opened = both.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path);
    match opened {
        Ok(queue) => Ok(queue.into()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(refused(Hindrance::Permissions { mode }))
        }
        Err(error) => Err(MessageQueueRefusal::Unreadable { reason: error.to_string() }),
    }
}

/// For each queue of a file system, by its inode number: a process that is not of the job, and has it open. Any
/// process may, by its name.
fn holders_outside(job: &HashMap<Pid, id::Pid>, device: u64) -> HashMap<u64, Pid> {
    let mut holders = HashMap::new();
    let Ok(processes) = fs::read_dir("/proc") else { return holders };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for pid in pids.map(Pid::from_raw).filter(|pid| !job.contains_key(pid)) {
        // Processes of other users cannot be asked, and do not count.
        let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        let files = open.flatten().filter_map(|entry| fs::metadata(entry.path()).ok());
        let queues = files.filter(|file| file.dev() == device);
        holders.extend(queues.map(|queue| (queue.ino(), pid)));
    }
    holders
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
        let identity = FileStat::from(&metadata).identity();
        let attributes = fs::File::open(path)
            .map_err(|error| error.to_string())
            .and_then(|queue| message_queue::attributes(queue).map_err(|errno| errno.to_string()));
        let queue = attributes
            .map_err(|reason| MessageQueueRefusal::Unreadable { reason })
            .and_then(|attributes| {
                // Whoever has it open would see it without its messages.
                match self.message_queues.holder_outside(&self.recorded, identity) {
                    Some(holder) if attributes.messages != 0 => {
                        Err(MessageQueueRefusal::SharedWithOutside { holder })
                    }
                    _ => describe(name, path, false, &attributes),
                }
            });
        match queue {
            Ok(queue) => {
                self.message_queues.add(identity, queue, (user, Place::MessageQueue)).map(drop)
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
