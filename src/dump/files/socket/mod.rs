//! Sockets: what all domains have in common, and which domains are known.
//!
//! A socket is looked at through a duplicate of its descriptor. Nothing is received, and nothing is set.

mod foreign;
mod inet;
mod inet_options;
mod netlink;
mod options;
mod tcp;
mod tcp_queue;
mod udp;
mod unix;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;

pub use self::foreign::ForeignSocket;

use super::classify::Class;
use super::pipe::outside_holders;
use super::refusal::RefusalKind;
use super::scan::Description;
use super::{CollectFilesError, Collector, Failure, Scope, call_failed, duplicate, index};
use crate::model::file::OpenFileKind;
use crate::model::id::SocketId;
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
    /// Those recorded so far.
    recorded: BTreeMap<SocketId, Socket>,
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

impl SocketTable {
    /// Finds the sockets among the descriptions, and how they are connected.
    pub fn survey(
        scope: &Scope<'_>,
        descriptions: &[Description],
        classes: &[Class],
    ) -> Result<Self, CollectFilesError> {
        let sockets = descriptions.iter().zip(classes);
        let sockets = sockets.filter(|(_, class)| **class == Class::Socket).map(|(found, _)| found);
        let identities: BTreeSet<_> = sockets.clone().map(|found| found.stat.identity()).collect();
        // This comes before we take duplicates: we may be a parent of the job ourselves.
        let shared =
            if identities.is_empty() { Vec::new() } else { outside_holders(scope, &identities) };
        let shared: BTreeSet<u64> = shared.into_iter().map(|((_, inode), _)| inode).collect();
        let subjects = sockets.map(Subject::new).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            numbers: HashMap::new(),
            inet: InetTable::survey(scope, &subjects, shared.clone())?,
            unix: UnixTable::survey(&subjects, shared)?,
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
                let (unix, error) = self.unix.collect(collector, &subject, &self.numbers)?;
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
        self.recorded.insert(id, record);
        Ok(OpenFileKind::Socket { socket: id })
    }

    /// The records, which are complete unless something was refused.
    pub fn finish(self) -> Vec<Socket> {
        self.recorded.into_values().collect()
    }
}
