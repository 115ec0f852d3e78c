//! What is queued in unix sockets, and the descriptions that are on their way in it.
//!
//! A description can be nowhere but in a message, and a socket there can have messages of its own. So
//! they are all found first, and everything that follows sees those descriptions beside the others.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use super::Subject;
use crate::dump::files::pipe::{Identity, outside_holders};
use crate::dump::files::scan::{self, Description};
use crate::dump::files::{CollectFilesError, Scope, call_failed};
use crate::model::number::to_u64;
use crate::sys::descriptor;
use crate::sys::socket::{self, Credentials};
use crate::sys::unix_queue::{self, LookError, Message};

/// A message, and what is on its way in it.
#[derive(Debug)]
pub(super) struct Queued {
    /// The message, without its descriptors.
    pub message: Message,
    /// Those descriptions, by their places among all of the job.
    pub files: Vec<usize>,
}

/// What a unix socket shows.
#[derive(Debug)]
pub(super) struct Seen {
    /// SO_PEERCRED.
    pub peer: Credentials,
    /// What is queued, unless it could not be looked at.
    pub queued: Result<Vec<Queued>, NotSeen>,
}

/// Why a queue was not looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotSeen {
    /// It listens, and has none.
    Listens,
    /// Others could be looking at the same time.
    Shared,
    /// An error is pending, which looking would take.
    ErrorPending,
}

/// What all unix sockets of the job show.
#[derive(Debug, Default)]
pub(in crate::dump::files) struct Queues {
    /// By inode.
    pub(super) seen: HashMap<u64, Seen>,
    /// Whether process ids are the job's own.
    pub(super) own_ids: bool,
    /// Inodes of sockets that somebody outside has open, too.
    pub(super) shared: BTreeSet<u64>,
    /// Descriptors of descriptions that no table of the job has.
    kept: Vec<OwnedFd>,
}

impl Queues {
    /// Looks into every unix socket among `descriptions`, and adds what is found there alone.
    pub fn survey(
        scope: &Scope<'_>,
        descriptions: &mut Vec<Description>,
    ) -> Result<Self, CollectFilesError> {
        let mut queues = Self { own_ids: true, ..Self::default() };
        let mut next = 0;
        while next < descriptions.len() {
            let sockets: Vec<Description> =
                descriptions[next..].iter().filter(|found| is_socket(found)).cloned().collect();
            next = descriptions.len();
            queues.look_into(scope, &sockets, descriptions)?;
        }
        Ok(queues)
    }

    /// Gives away the descriptors of ours that are the job's, and that records have been made by.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.kept)
    }

    /// Descriptors of ours that are the job's.
    pub fn descriptors(&self) -> BTreeSet<RawFd> {
        self.kept.iter().map(AsRawFd::as_raw_fd).collect()
    }

    fn look_into(
        &mut self,
        scope: &Scope<'_>,
        sockets: &[Description],
        descriptions: &mut Vec<Description>,
    ) -> Result<(), CollectFilesError> {
        // This comes before we take duplicates: we may be a parent of the job ourselves.
        let identities: BTreeSet<Identity> =
            sockets.iter().map(|found| found.stat.identity()).collect();
        if identities.is_empty() {
            return Ok(());
        }
        let shared = outside_holders(scope, &identities, &self.descriptors());
        self.shared.extend(shared.into_iter().map(|((_, inode), _)| inode));
        let mut subjects = Vec::new();
        for found in sockets {
            let subject = Subject::new(found)?;
            if subject.domain == libc::AF_UNIX && !self.seen.contains_key(&found.stat.number) {
                let obstacle = self.obstacle(&subject)?;
                subjects.push((subject, obstacle));
            }
        }
        let requests: Vec<_> = subjects
            .iter()
            .map(|(subject, obstacle)| unix_queue::Subject {
                socket: subject.file.as_fd(),
                kind: subject.kind,
                look_inside: obstacle.is_none(),
            })
            .collect();
        if requests.is_empty() {
            return Ok(());
        }
        let member = scope.subjects.first().map_or(scope.root, |subject| subject.task);
        let view = unix_queue::look(&requests, member).map_err(|error| match error {
            LookError::Look { place, source } => {
                call_failed(subjects[place].0.found, "looking into the queue")(source)
            }
            error => CollectFilesError::LookIntoSockets(error),
        })?;
        self.own_ids &= view.own_ids;
        for ((subject, obstacle), seen) in subjects.iter().zip(view.sockets) {
            let mut queued = Vec::new();
            for mut message in seen.queued {
                let mut files = Vec::new();
                for file in std::mem::take(&mut message.files) {
                    files.push(self.place_of(file, descriptions)?);
                }
                queued.push(Queued { message, files });
            }
            let queued = obstacle.map_or(Ok(queued), Err);
            let seen = Seen { peer: seen.peer, queued };
            self.seen.insert(subject.found.stat.number, seen);
        }
        Ok(())
    }

    /// What stands in the way of looking into a queue.
    fn obstacle(&self, subject: &Subject<'_>) -> Result<Option<NotSeen>, CollectFilesError> {
        let call = |operation| call_failed(subject.found, operation);
        let listens = socket::int_option(&subject.file, libc::SOL_SOCKET, libc::SO_ACCEPTCONN)
            .map_err(call("SO_ACCEPTCONN"))?;
        let events = descriptor::poll_now(&subject.file, libc::POLLIN).map_err(call("poll"))?;
        Ok(if listens != 0 {
            Some(NotSeen::Listens)
        } else if self.shared.contains(&subject.found.stat.number) {
            Some(NotSeen::Shared)
        } else if subject.kind != libc::SOCK_STREAM && events & libc::POLLERR != 0 {
            Some(NotSeen::ErrorPending)
        } else {
            None
        })
    }

    /// Which description `file` is, among those known; otherwise it is added, and kept open.
    fn place_of(
        &mut self,
        file: OwnedFd,
        descriptions: &mut Vec<Description>,
    ) -> Result<usize, CollectFilesError> {
        let found = scan::on_its_way(file.as_raw_fd())?;
        let identity = found.stat.identity();
        for (place, known) in descriptions.iter().enumerate() {
            if known.stat.identity() != identity {
                continue;
            }
            let order =
                descriptor::compare_files(known.holder, found.holder).map_err(|source| {
                    let (pid, number) = known.holder;
                    CollectFilesError::CompareDescriptors { pid, number, source }
                })?;
            if order == Ordering::Equal {
                return Ok(place);
            }
        }
        descriptions.push(found);
        self.kept.push(file);
        Ok(descriptions.len() - 1)
    }
}

fn is_socket(found: &Description) -> bool {
    found.stat.file_type() == libc::S_IFSOCK && found.link.starts_with(b"socket:[")
}

/// The memory that messages occupy with who sends them: the kernel tells how much it is, but shows an
/// empty packet only once to who looks past it.
pub(super) fn memory_of<'a>(
    kind: i32,
    queued: impl Iterator<Item = &'a Queued>,
) -> Result<u64, Errno> {
    /// More than any message has.
    const SEND_BUFFER: i32 = 1 << 30;
    let (left, _right) = socket::pair(libc::AF_UNIX, kind, 0)?;
    socket::set_int_option(&left, libc::SOL_SOCKET, libc::SO_SNDBUF, SEND_BUFFER)?;
    for queued in queued {
        let sent = socket::send(&left, &queued.message.data, &[], &[], None)?;
        debug_assert_eq!(to_u64(sent), to_u64(queued.message.data.len()));
    }
    socket::output_queued(&left)
}
