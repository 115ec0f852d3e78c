//! Which supervisors there are on this machine: the abstract names that /proc/net/unix lists.
//!
//! A name is an allegation: anybody can listen under any free name, so whoever connects checks the
//! listener's credentials.

use std::io::{self, BufRead, BufReader};

use nix::unistd::Uid;

use crate::model::id::Bytes;

const PREFIX: &str = "rckpt-";

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
        let plain = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_alphanumeric);
        (plain(job) && plain(instance) && parts.next().is_none()).then(|| Self {
            user,
            job: job.into(),
            instance: instance.into(),
        })
    }
}

/// The supervisors that listen in this network namespace; of one user, or of all.
pub fn names(user: Option<Uid>) -> io::Result<Vec<Name>> {
    let table = BufReader::new(std::fs::File::open("/proc/net/unix")?);
    let mut names = parse_table(table)?;
    names.retain(|name| user.is_none_or(|user| name.user == user.as_raw()));
    Ok(names)
}

/// Reads the lines of /proc/net/unix: `Num RefCount Protocol Flags Type St Inode Path`, where
/// `Flags` has __SO_ACCEPTCON (0x10000) for listening sockets and an abstract name begins with `@`.
fn parse_table(table: impl BufRead) -> io::Result<Vec<Name>> {
    let mut names = Vec::new();
    for line in table.split(b'\n') {
        let line = line?;
        let mut fields = line.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
        let listens = fields.nth(3) == Some(b"00010000");
        let path = fields.nth(3).and_then(|path| path.strip_prefix(b"@"));
        if let (true, Some(name)) = (listens, path.and_then(Name::parse)) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::{Name, parse_table};

    #[test]
    fn names_come_apart_as_they_were_put_together() {
        let name = Name { user: 1000, job: b"0f3a"[..].into(), instance: b"77"[..].into() };
        assert_eq!(name.to_bytes(), b"rckpt-1000-0f3a-77");
        assert_eq!(Name::parse(&name.to_bytes()), Some(name));
        for foreign in [
            "",
            "rckpt-",
            "rckpt-1000",
            "rckpt-1000-a",
            "rckpt-1000--b",
            "rckpt-x-a-b",
            "rckpt-1000-a-b-c",
            "rckpt-1000-a/-b",
            "/tmp/.X11-unix/X0",
        ] {
            assert_eq!(Name::parse(foreign.as_bytes()), None, "{foreign:?}");
        }
    }

    #[test]
    fn the_table_of_sockets() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            ffff8f7e4c8f8000: 00000002 00000000 00010000 0005 01 21034 @rckpt-1000-bb-1\n\
            ffff8f7e4c8f8400: 00000003 00000000 00000000 0005 03 21035 @rckpt-1000-bb-1\n\
            ffff8f7e4c8f8800: 00000002 00000000 00010000 0001 01 18342 /run/user/1000/bus\n\
            ffff8f7e4c8f8c00: 00000002 00000000 00000000 0002 01 18343\n\
            0000000000000000: 00000002 00000000 00010000 0005 01     9 @rckpt-7-aa-2\n\
            short line\n\xff\xfe\n";
        let names = parse_table(&table[..]).unwrap();
        let users: Vec<u32> = names.iter().map(|name| name.user).collect();
        assert_eq!(users, [7, 1000]);
    }
}
