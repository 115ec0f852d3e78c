//! Sockets: what all domains have in common, and which domains are known.
//!
//! A socket is looked at through a duplicate of its descriptor. Nothing is received, and nothing is set.

mod foreign;
mod inet;
mod inet_options;
mod netlink;
mod options;
mod queue;
mod tcp;
mod tcp_queue;
mod udp;
mod unix;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;

pub use self::foreign::ForeignSocket;
pub(super) use self::queue::Queues;

use super::classify::Class;
use super::epoll::Entered;
use super::refusal::RefusalKind;
use super::scan::Description;
use super::{CollectFilesError, Collector, Failure, Scope, Warning, call_failed, duplicate, index};
use crate::model::file::OpenFileKind;
use crate::model::id::{OpenFileId, SocketId};
use crate::model::number::to_usize;
use crate::model::socket::{Socket, SocketDetail};
use crate::sys::socket;

use self::inet::InetTable;
use self::unix::UnixTable;

/// The sockets of the job.
#[derive(Debug)]
pub(super) struct SocketTable {
    /// Numbers by inode, of all that are no standard stream.
    numbers: HashMap<u64, SocketId>,
    inet: InetTable,
    unix: UnixTable,
    queues: Queues,
    /// Those recorded so far, with their inodes.
    recorded: BTreeMap<SocketId, (u64, Socket)>,
}

/// A socket of the job under a duplicate of its descriptor.
#[derive(Debug)]
pub(super) struct Subject<'a> {
    /// Its description.
    pub found: &'a Description,
    /// The duplicate.
    pub file: OwnedFd,
    /// SO_DOMAIN.
    pub domain: i32,
    /// SO_TYPE.
    pub kind: i32,
    /// SO_PROTOCOL.
    pub protocol: i32,
}

impl<'a> Subject<'a> {
    /// Takes a duplicate and asks for what every socket has.
    fn new(found: &'a Description) -> Result<Self, CollectFilesError> {
        let file = duplicate(found)?;
        let ask = |name, operation| {
            socket::int_option(&file, libc::SOL_SOCKET, name).map_err(call_failed(found, operation))
        };
        let domain = ask(libc::SO_DOMAIN, "SO_DOMAIN")?;
        let kind = ask(libc::SO_TYPE, "SO_TYPE")?;
        let protocol = ask(libc::SO_PROTOCOL, "SO_PROTOCOL")?;
        Ok(Self { found, file, domain, kind, protocol })
    }
}

/// Whether a description can be made by the process alone that has it.
fn is_of_process(collector: &Collector, file: OpenFileId) -> bool {
    let record = collector.open_files.get(to_usize(u64::from(file.0))).map(|file| &file.kind);
    let Some(OpenFileKind::Proc { path, .. }) = record else { return false };
    let rest = path.0.strip_prefix(b"/proc/").unwrap_or_default();
    rest.first().is_some_and(u8::is_ascii_digit)
}

impl SocketTable {
    /// Finds the sockets among the descriptions, and how they are connected.
    pub fn survey(
        scope: &Scope<'_>,
        descriptions: &[Description],
        classes: &[Class],
        queues: Queues,
    ) -> Result<Self, CollectFilesError> {
        let sockets = descriptions.iter().zip(classes);
        let sockets = sockets.filter(|(_, class)| **class == Class::Socket).map(|(found, _)| found);
        let subjects = sockets.map(Subject::new).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            numbers: HashMap::new(),
            inet: InetTable::survey(scope, &subjects, queues.shared.clone())?,
            unix: UnixTable::survey(scope, &subjects)?,
            queues,
            recorded: BTreeMap::new(),
        })
    }

    /// Whether the other end of a connection is open outside the job.
    pub fn leads_outside(&self, found: &Description) -> bool {
        self.inet.leads_outside(found).unwrap_or_else(|| self.unix.leads_outside(found))
    }

    /// Gives a socket that will be recorded its number.
    pub fn number(&mut self, found: &Description) -> Result<(), CollectFilesError> {
        let id = SocketId(index(self.numbers.len())?);
        self.numbers.insert(found.stat.number, id);
        Ok(())
    }

    /// Records a socket.
    pub fn collect(
        &mut self,
        collector: &mut Collector,
        found: &Description,
    ) -> Result<OpenFileKind, Failure> {
        let Some(id) = self.numbers.get(&found.stat.number).copied() else {
            return Err(RefusalKind::Socket.into());
        };
        let subject = Subject::new(found)?;
        if let Some(kind) = foreign::judge(subject.domain, subject.kind, subject.protocol) {
            return Err(RefusalKind::ForeignSocket(kind).into());
        }
        let (detail, error, own_options) = match subject.domain {
            libc::AF_UNIX => {
                let (unix, error) =
                    self.unix.collect(collector, &subject, &self.numbers, &self.queues)?;
                let mut behind_others = unix.queued.iter().skip(1);
                if subject.kind != libc::SOCK_STREAM
                    && behind_others.any(|message| message.data.0.is_empty())
                {
                    let (pid, number) = found.holder;
                    collector.warnings.push(Warning::SeenOnce { pid, number });
                }
                (SocketDetail::Unix(unix), error, Vec::new())
            }
            libc::AF_INET | libc::AF_INET6 => {
                let (inet, error, options) = self.inet.collect(&subject, &self.numbers)?;
                (SocketDetail::Inet(inet), error, options)
            }
            libc::AF_NETLINK => {
                let (netlink, options) = netlink::collect(&subject)?;
                (SocketDetail::Netlink(netlink), 0, options)
            }
            _ => return Err(RefusalKind::Socket.into()),
        };
        let record = Socket {
            domain: subject.domain,
            kind: subject.kind,
            protocol: subject.protocol,
            options: [options::collect(&subject)?, own_options].concat(),
            error,
            detail,
        };
        self.recorded.insert(id, (found.stat.number, record));
        Ok(OpenFileKind::Socket { socket: id })
    }

    /// Adds what is on its way in messages to the records, when all descriptions have theirs: `entered`
    /// has them in their order.
    pub fn find_files_on_their_way(&mut self, collector: &mut Collector, entered: &[Entered<'_>]) {
        collector.on_their_way = self.queues.take_descriptors();
        for (inode, record) in self.recorded.values_mut() {
            let SocketDetail::Unix(unix) = &mut record.detail else { continue };
            let Some(Ok(queued)) = self.queues.seen.get(inode).map(|seen| &seen.queued) else {
                continue;
            };
            for (message, queued) in unix.queued.iter_mut().zip(queued) {
                let known = queued.files.iter().filter_map(|place| entered[*place].1.first());
                message.files = known.copied().collect();
                if message.files.iter().any(|file| is_of_process(collector, *file))
                    && let Some((found, _)) =
                        entered.iter().find(|(found, _)| found.stat.number == *inode)
                {
                    let reason = "a file under /proc of a process is on its way in it";
                    collector.refuse_description(found, RefusalKind::UnixSocket { reason });
                }
            }
        }
    }

    /// The records, which are complete unless something was refused.
    pub fn finish(self) -> Vec<Socket> {
        self.recorded.into_values().map(|(_, record)| record).collect()
    }
}
