//! Which supervisors there are on this machine: the abstract names that /proc/net/unix lists.
//!
//! A name is an allegation: anybody can listen under any free name, so whoever connects checks the
//! listener's credentials.

use std::io::{self, BufRead, BufReader};

use nix::unistd::Uid;

use crate::model::id::Bytes;

const PREFIX: &str = "rckpt-";

/// Digits in the name of a job, and of a supervisor ([`crate::job::identity::new_id`]).
const ID_LENGTH: usize = 32;

/// The name of a supervisor's socket, taken apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The user it runs as.
    pub user: u32,
    /// The job.
    pub job: Bytes,
    /// The supervisor, told from others of the same job.
    pub instance: Bytes,
}

impl Name {
    /// The abstract name, without its leading NUL.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{PREFIX}{}-", self.user).into_bytes();
        bytes.extend_from_slice(&self.job.0);
        bytes.push(b'-');
        bytes.extend_from_slice(&self.instance.0);
        bytes
    }

    /// Takes a name apart; `None`: it is not one of ours.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut parts = bytes.strip_prefix(PREFIX.as_bytes())?.split(|byte| *byte == b'-');
        let user = str::from_utf8(parts.next()?).ok()?.parse().ok()?;
        let (job, instance) = (parts.next()?, parts.next()?);
        let is_id = |part: &[u8]| {
            part.len() == ID_LENGTH
                && part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        (is_id(job) && is_id(instance) && parts.next().is_none()).then(|| Self {
            user,
            job: job.into(),
            instance: instance.into(),
        })
    }
}

/// A socket that listens under such a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// The name.
    pub name: Name,
    /// The inode of the socket, by which /proc/PID/fd shows who has it.
    pub inode: u64,
}

/// The supervisors that listen in this network namespace; of one user, or of all.
pub fn listeners(user: Option<Uid>) -> io::Result<Vec<Listener>> {
    let table = BufReader::new(std::fs::File::open("/proc/net/unix")?);
    let mut found = parse_table(table)?;
    found.retain(|listener| user.is_none_or(|user| listener.name.user == user.as_raw()));
    Ok(found)
}

/// Reads the lines of /proc/net/unix: `Num RefCount Protocol Flags Type St Inode Path`, where
/// `Flags` has __SO_ACCEPTCON (0x10000) for listening sockets, `Type` is 5 for those of packets in their
/// order (SOCK_SEQPACKET), and an abstract name begins with `@`.
fn parse_table(table: impl BufRead) -> io::Result<Vec<Listener>> {
    let mut found = Vec::new();
    for line in table.split(b'\n') {
        let line = line?;
        let mut fields = line.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
        let listens = fields.nth(3) == Some(b"00010000");
        let has_kind = fields.next() == Some(b"0005");
        let inode = fields.nth(1).and_then(|field| str::from_utf8(field).ok()?.parse().ok());
        let path = fields.next().and_then(|path| path.strip_prefix(b"@"));
        if let (true, Some(inode), Some(name)) =
            (listens && has_kind, inode, path.and_then(Name::parse))
        {
            found.push(Listener { name, inode });
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::{Name, parse_table};

    #[test]
    fn names_come_apart_as_they_were_put_together() {
        let (job, instance) = ("0f3a".repeat(8), "77".repeat(16));
        let name =
            Name { user: 1000, job: job.as_bytes().into(), instance: instance.as_bytes().into() };
        assert_eq!(name.to_bytes(), format!("rckpt-1000-{job}-{instance}").as_bytes());
        assert_eq!(Name::parse(&name.to_bytes()), Some(name));
        let foreign = |name: &str| assert_eq!(Name::parse(name.as_bytes()), None, "{name:?}");
        foreign("");
        foreign("rckpt-");
        foreign("rckpt-1000");
        foreign("rckpt-1000-a-b");
        foreign("/tmp/.X11-unix/X0");
        foreign(&format!("rckpt-1000-{job}"));
        foreign(&format!("rckpt-1000--{job}"));
        foreign(&format!("rckpt-x-{job}-{job}"));
        foreign(&format!("rckpt-1000-{job}-{job}-{job}"));
        foreign(&format!("rckpt-1000-{job}-{}", job.to_uppercase()));
        foreign(&format!("rckpt-1000-{job}0-{job}"));
    }

    #[test]
    fn the_table_of_sockets() {
        let (one, two) = ("0b".repeat(16), "a1".repeat(16));
        let table = format!(
            "Num       RefCount Protocol Flags    Type St Inode Path\n\
             ffff8f7e4c8f8000: 00000002 00000000 00010000 0005 01 21034 @rckpt-1000-{one}-{two}\n\
             ffff8f7e4c8f8400: 00000003 00000000 00000000 0005 03 21035 @rckpt-1000-{one}-{two}\n\
             ffff8f7e4c8f8600: 00000002 00000000 00010000 0001 01 21036 @rckpt-1001-{one}-{two}\n\
             ffff8f7e4c8f8800: 00000002 00000000 00010000 0001 01 18342 /run/user/1000/bus\n\
             ffff8f7e4c8f8c00: 00000002 00000000 00000000 0002 01 18343\n\
             0000000000000000: 00000002 00000000 00010000 0005 01     9 @rckpt-7-{two}-{one}\n\
             short line\n"
        );
        let table = [table.as_bytes(), b"\xff\xfe\n"].concat();
        let found = parse_table(&table[..]).unwrap();
        let told: Vec<(u32, u64)> =
            found.iter().map(|listener| (listener.name.user, listener.inode)).collect();
        assert_eq!(told, [(7, 9), (1000, 21034)]);
    }
}
