//! UDP sockets. While none is connected yet, the datagrams that were queued are sent to them again, each
//! from the address that it came from.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::inet::{bind, create, failed, named, records};
use super::{SocketError, options};
use crate::model::id::SocketId;
use crate::model::internet::Endpoint;
use crate::model::job::Job;
use crate::model::socket::{InetConnection, InetMessage, InetSocket, Socket};
use crate::sys::{multicast, socket};

/// As large a buffer as the kernel will give (/proc/sys/net/core/rmem_max).
const LARGEST_BUFFER: i32 = i32::MAX;
/// RCV_SHUTDOWN and SEND_SHUTDOWN.
const RECEIVING: u8 = 1;
const SENDING: u8 = 2;

/// Makes the UDP sockets of `job`.
pub(super) fn make(job: &Job, made: &mut BTreeMap<SocketId, OwnedFd>) -> Result<(), SocketError> {
    for (id, record, inet) in udp(job) {
        let file = create(id, record)?;
        bind(id, &file, &inet.name)?;
        made.insert(id, file);
    }
    for (id, record, inet) in udp(job) {
        for message in &inet.queued {
            Receiver { job, made, id, record, inet }.receive(message)?;
        }
    }
    for (id, _, inet) in udp(job) {
        let Some(file) = made.get(&id) else { continue };
        if let InetConnection::Datagram { peer } = &inet.connection {
            let endpoint = Endpoint::parse(&peer.0).ok_or_else(|| unknown(id))?;
            socket::connect(file, &peer.0).map_err(named(id, endpoint, "connect"))?;
        }
        for group in &inet.groups {
            let endpoint = Endpoint::parse(&group.address.0).ok_or_else(|| unknown(id))?;
            multicast::join(file, &group.interface.0, endpoint.ip).map_err(named(
                id,
                endpoint,
                "MCAST_JOIN_GROUP",
            ))?;
        }
        shut_down(id, file, inet.shutdown)?;
    }
    Ok(())
}

/// The UDP sockets of a job.
fn udp(job: &Job) -> impl Iterator<Item = (SocketId, &Socket, &InetSocket)> {
    records(job).filter(|(_, record, _)| record.kind == libc::SOCK_DGRAM)
}

/// A socket that is to receive something.
struct Receiver<'a> {
    job: &'a Job,
    made: &'a BTreeMap<SocketId, OwnedFd>,
    id: SocketId,
    record: &'a Socket,
    inet: &'a InetSocket,
}

impl Receiver<'_> {
    /// Has it receive a datagram.
    fn receive(&self, message: &InetMessage) -> Result<(), SocketError> {
        let Self { id, .. } = *self;
        let file = self.made.get(&id).ok_or_else(|| unknown(id))?;
        let name = Endpoint::parse(&self.inet.name.0).ok_or_else(|| unknown(id))?;
        let sender = Endpoint::parse(&message.sender.0).ok_or_else(|| unknown(id))?;
        options::set_size(file, libc::SO_RCVBUF, LARGEST_BUFFER)
            .map_err(failed(id, "SO_RCVBUF"))?;
        let asked = Endpoint::parse(&message.receiver.0).map(|receiver| receiver.ip);
        let ip = match asked {
            Some(ip) => ip,
            None if name.is_wildcard() => sender.ip,
            None => name.ip,
        };
        let target = Endpoint { ip, port: name.port, scope: name.scope.max(sender.scope) };
        // Several may be bound to one address: the kernel prefers one that is connected to the sender.
        let shared = self.is_shared(&name);
        if shared {
            let from = sender.address(self.record.domain).ok_or_else(|| unknown(id))?;
            socket::connect(file, &from).map_err(named(id, sender, "connect"))?;
        }
        self.send(sender, target, &message.data.0)?;
        if shared {
            // The address of a family that there is none of disconnects (connect(2)).
            socket::connect(file, &[0; 16]).map_err(failed(id, "connect"))?;
        }
        Ok(())
    }

    /// Whether another socket of the job might receive what is meant for this one.
    fn is_shared(&self, name: &Endpoint) -> bool {
        udp(self.job).any(|(other, _, inet)| {
            other != self.id
                && Endpoint::parse(&inet.name.0).is_some_and(|other| other.port == name.port)
        })
    }

    /// Sends a datagram from the socket that has the sender's address, or from one made for this.
    fn send(&self, sender: Endpoint, target: Endpoint, data: &[u8]) -> Result<(), SocketError> {
        let has_address = |name: &Endpoint| name.takes(&sender);
        let own = udp(self.job).find_map(|(id, record, inet)| {
            let name = Endpoint::parse(&inet.name.0).filter(has_address)?;
            target.address(record.domain)?;
            Some((self.made.get(&id)?, record.domain, name))
        });
        let failed = |operation| named(self.id, sender, operation);
        let passing;
        let (file, domain, name) = match own {
            Some(own) => own,
            None => {
                let domain = if sender.ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
                let address = sender.address(domain).ok_or_else(|| unknown(self.id))?;
                passing = socket::create(domain, libc::SOCK_DGRAM, 0).map_err(failed("socket"))?;
                socket::bind(&passing, &address).map_err(failed("bind"))?;
                (&passing, domain, sender)
            }
        };
        let address = target.address(domain).ok_or_else(|| unknown(self.id))?;
        let sent = if name.is_wildcard() {
            socket::send_from(file, data, &address, sender.ip)
        } else {
            socket::send(file, data, &address, &[], None)
        };
        sent.map(drop).map_err(failed("sendmsg"))
    }
}

/// Shuts a socket down as it was.
fn shut_down(id: SocketId, file: &OwnedFd, shutdown: u8) -> Result<(), SocketError> {
    let how = match (shutdown & RECEIVING != 0, shutdown & SENDING != 0) {
        (false, false) => return Ok(()),
        (true, false) => libc::SHUT_RD,
        (false, true) => libc::SHUT_WR,
        (true, true) => libc::SHUT_RDWR,
    };
    match socket::shut_down(file, how) {
        // That is what it says of one that is not connected, and does it nevertheless.
        Ok(()) | Err(Errno::ENOTCONN) => Ok(()),
        Err(source) => Err(failed(id, "shutdown")(source)),
    }
}

fn unknown(id: SocketId) -> SocketError {
    failed(id, "connect")(Errno::EINVAL)
}
