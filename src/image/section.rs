//! The sections of an image: their kinds, versions and how records become their bytes.
//!
//! A section's bytes are records in postcard's encoding. A released layout is frozen: when a record
//! changes, its section's version goes up, and the old layout is kept with a conversion to the new.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::id::{Bytes, Pid};
use crate::model::job::{Job, Machine, VdsoImage};
use crate::model::time::Clocks;

/// What a section holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectionKind(pub u32);

impl SectionKind {
    /// [`JobHeader`].
    pub const JOB: Self = Self(1);
    /// [`Job::processes`].
    pub const PROCESSES: Self = Self(2);
    /// [`Job::address_spaces`].
    pub const ADDRESS_SPACES: Self = Self(3);
    /// [`Job::fd_tables`].
    pub const FD_TABLES: Self = Self(4);
    /// [`Job::fs`].
    pub const DIRECTORIES: Self = Self(5);
    /// [`Job::open_files`].
    pub const OPEN_FILES: Self = Self(6);
    /// [`Job::inodes`].
    pub const INODES: Self = Self(7);
    /// [`Job::pipes`].
    pub const PIPES: Self = Self(8);
    /// [`Job::outputs`].
    pub const OUTPUTS: Self = Self(9);
    /// [`super::index::PageIndex`].
    pub const PAGE_INDEX: Self = Self(10);
    /// [`Job::sockets`].
    pub const SOCKETS: Self = Self(11);
    /// [`Job::terminals`].
    pub const TERMINALS: Self = Self(12);
    /// [`Job::ipc`].
    pub const IPC: Self = Self(13);

    /// Its name, for kinds that this program knows.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::JOB => "job",
            Self::PROCESSES => "processes",
            Self::ADDRESS_SPACES => "address spaces",
            Self::FD_TABLES => "descriptor tables",
            Self::DIRECTORIES => "directories",
            Self::OPEN_FILES => "open files",
            Self::INODES => "inodes",
            Self::PIPES => "pipes",
            Self::OUTPUTS => "outputs",
            Self::PAGE_INDEX => "page index",
            Self::SOCKETS => "sockets",
            Self::TERMINALS => "terminals",
            Self::IPC => "interprocess communication",
            _ => return None,
        })
    }
}

impl fmt::Display for SectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "number {}", self.0),
        }
    }
}

impl fmt::Debug for SectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Most bytes that a section may have, stored or decompressed.
pub const SECTION_LENGTH_LIMIT: u64 = 1 << 30;

/// Sections that every image of this version has, in the order they are written.
pub const SECTIONS: [(SectionKind, u32); 13] = [
    (SectionKind::JOB, 1),
    (SectionKind::PROCESSES, 1),
    (SectionKind::ADDRESS_SPACES, 1),
    (SectionKind::FD_TABLES, 1),
    (SectionKind::DIRECTORIES, 1),
    (SectionKind::OPEN_FILES, 1),
    (SectionKind::INODES, 1),
    (SectionKind::PIPES, 1),
    (SectionKind::OUTPUTS, 1),
    (SectionKind::PAGE_INDEX, 1),
    (SectionKind::SOCKETS, 1),
    (SectionKind::TERMINALS, 1),
    (SectionKind::IPC, 1),
];

/// What of a [`Job`] is not a table of its own: section [`SectionKind::JOB`], version 1.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobHeader {
    /// [`Job::id`].
    pub id: Bytes,
    /// [`Job::command`].
    pub command: Vec<Bytes>,
    /// [`Job::root`].
    pub root: Pid,
    /// [`Job::machine`].
    pub machine: Machine,
    /// [`Job::clocks`].
    pub clocks: Clocks,
    /// [`Job::vdso`].
    pub vdso: VdsoImage,
    /// [`Job::objects`].
    pub objects: u32,
}

impl JobHeader {
    /// The header of `job`.
    #[must_use]
    pub fn of(job: &Job) -> Self {
        Self {
            id: job.id.clone(),
            command: job.command.clone(),
            root: job.root,
            machine: job.machine.clone(),
            clocks: job.clocks,
            vdso: job.vdso.clone(),
            objects: job.objects,
        }
    }
}

/// What is wrong with the bytes of a section whose checksum is right.
#[derive(Debug, thiserror::Error)]
pub enum DecodeFault {
    /// The bytes are not such records.
    #[error("they are not in the section's encoding: {0}")]
    Encoding(#[from] postcard::Error),
    /// Bytes are left over after the records.
    #[error("{0} bytes are left over after the last record")]
    Remainder(usize),
}

/// The bytes of a section that holds `records`.
///
/// # Errors
/// Only from a record's own `Serialize`, which none of the model's has.
pub fn encode<T: Serialize + ?Sized>(records: &T) -> Result<Vec<u8>, postcard::Error> {
    postcard::to_stdvec(records)
}

/// The records in a section's bytes, all of which must belong to them.
///
/// # Errors
/// See [`DecodeFault`]. Allocation stays within a small multiple of `bytes`: a declared count
/// reserves at most what the remaining bytes could hold.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeFault> {
    let (records, rest) = postcard::take_from_bytes(bytes)?;
    if rest.is_empty() { Ok(records) } else { Err(DecodeFault::Remainder(rest.len())) }
}
