//! The raw parts of the format, readable before anything is decoded: the headers of both files and
//! the table of sections.
//!
//! Everything here is arithmetic on byte arrays; opening and reading files happens elsewhere. All
//! numbers are little-endian.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::time::SystemTime;

use xxhash_rust::xxh3::Xxh3;

use super::codec::checksum;
use super::section::SectionKind;
use crate::model::number::{PAGE_SIZE, to_u64, to_usize};

/// Name of the file with the records.
pub const IMAGE_FILE: &str = "image.rckpt";
/// Name of the file with the page data.
pub const PAGES_FILE: &str = "pages.rckpt";

/// First bytes of the file with the records. As in PNG, the byte with its high bit set and the line
/// end betray a transfer that took the file for text.
pub const IMAGE_MAGIC: [u8; 8] = *b"\x89RCKPT\r\n";
/// First bytes of the file with the page data.
pub const PAGES_MAGIC: [u8; 8] = *b"\x89RCKPG\r\n";

/// Version of the raw parts. It changes when a reader could no longer find the sections; what a
/// section holds has a version of its own.
pub const FORMAT_VERSION: u32 = 1;
/// The architecture of the job: ELF's number for x86-64.
pub const ARCHITECTURE: u32 = 62;

/// Bytes of the header of `image.rckpt`.
pub const IMAGE_HEADER_LENGTH: usize = 64;
/// Bytes of an entry in the table of sections.
pub const SECTION_ENTRY_LENGTH: usize = 48;
/// Most sections that an image may have.
pub const SECTION_LIMIT: u32 = 1024;
/// Bytes of the header of `pages.rckpt`: one page, so that plain chunks after it can be mapped.
pub const PAGES_HEADER_LENGTH: usize = 4096;

const _: () = assert!(PAGES_HEADER_LENGTH == to_usize(PAGE_SIZE));

/// A number drawn for each generation, in the headers of all its files: files of different
/// checkpoints cannot be mixed up.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct GenerationId(pub [u8; 16]);

impl GenerationId {
    /// A new one. Its randomness is that of the standard library's hash keys, which come from the
    /// kernel; the time is mixed in to tell generations of one process apart for certain.
    #[must_use]
    pub fn random() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let word = || {
            let mut hasher = RandomState::new().build_hasher();
            hasher.write_u128(now.as_nanos());
            hasher.write_u32(std::process::id());
            hasher.finish().to_le_bytes()
        };
        let mut id = [0; 16];
        id[..8].copy_from_slice(&word());
        id[8..].copy_from_slice(&word());
        Self(id)
    }
}

impl GenerationId {
    /// Half of its randomness, where it is used as a seed.
    pub(super) fn seed(self) -> u64 {
        u64_at(&self.0, 0)
    }
}

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is wrong with a header, before it is known which file it stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderFault {
    /// The first bytes are not those of the format.
    Magic,
    /// The format version is not one that this reader knows.
    Version(u32),
    /// The job ran on another architecture.
    Architecture(u32),
    /// The checksum does not match, or a field that must be zero is not.
    Checksum,
    /// It declares more sections than any image has.
    Sections(u32),
}

/// The header of `image.rckpt`.
///
/// | bytes | what |
/// |---|---|
/// | 0..8 | [`IMAGE_MAGIC`] |
/// | 8..12 | [`FORMAT_VERSION`] |
/// | 12..16 | [`ARCHITECTURE`] |
/// | 16..32 | generation id |
/// | 32..40 | length of the file |
/// | 40..44 | number of sections |
/// | 44..56 | zero |
/// | 56..64 | checksum of bytes 0..56 and the table of sections |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHeader {
    /// The generation.
    pub id: GenerationId,
    /// Length of the whole file in bytes.
    pub file_length: u64,
    /// Entries in the table that follows.
    pub sections: u32,
}

impl ImageHeader {
    /// The header's bytes; `table` is what will follow it.
    #[must_use]
    pub fn encode(&self, table: &[u8]) -> [u8; IMAGE_HEADER_LENGTH] {
        let mut bytes = [0; IMAGE_HEADER_LENGTH];
        bytes[..8].copy_from_slice(&IMAGE_MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&ARCHITECTURE.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.id.0);
        bytes[32..40].copy_from_slice(&self.file_length.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.sections.to_le_bytes());
        let sum = header_checksum(&bytes, table);
        bytes[56..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads the fields, of which only the number of sections has been looked at: the table has to
    /// be read before [`ImageHeader::check`] can vouch for them.
    ///
    /// # Errors
    /// What is wrong with the magic, version, architecture or number of sections.
    pub fn decode(bytes: &[u8; IMAGE_HEADER_LENGTH]) -> Result<Self, HeaderFault> {
        check_preamble(bytes, &IMAGE_MAGIC)?;
        let sections = u32_at(bytes, 40);
        if sections > SECTION_LIMIT {
            return Err(HeaderFault::Sections(sections));
        }
        Ok(Self { id: id_at(bytes, 16), file_length: u64_at(bytes, 32), sections })
    }

    /// Bytes of the table that follows the header.
    #[must_use]
    pub fn table_length(&self) -> usize {
        to_usize(u64::from(self.sections)) * SECTION_ENTRY_LENGTH
    }

    /// Checks the checksum over header and table.
    ///
    /// # Errors
    /// [`HeaderFault::Checksum`].
    pub fn check(bytes: &[u8; IMAGE_HEADER_LENGTH], table: &[u8]) -> Result<(), HeaderFault> {
        let sound = u64_at(bytes, 56) == header_checksum(bytes, table);
        let zero = bytes[44..56].iter().all(|byte| *byte == 0);
        if sound && zero { Ok(()) } else { Err(HeaderFault::Checksum) }
    }
}

/// An entry in the table of sections.
///
/// | bytes | what |
/// |---|---|
/// | 0..4 | kind |
/// | 4..8 | version of this kind |
/// | 8..12 | flags: bit 0 critical, bit 1 compressed with LZ4, others zero |
/// | 12..16 | zero |
/// | 16..24 | offset in the file |
/// | 24..32 | stored length |
/// | 32..40 | length once decompressed |
/// | 40..48 | checksum of the stored bytes |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionEntry {
    /// What the section holds.
    pub kind: SectionKind,
    /// Version of its contents.
    pub version: u32,
    /// Whether a reader that does not understand it must refuse the image.
    pub critical: bool,
    /// Whether it is stored as an LZ4 block.
    pub compressed: bool,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Stored bytes.
    pub stored_length: u64,
    /// Bytes once decompressed; the same where it is not compressed.
    pub length: u64,
    /// Checksum of the stored bytes.
    pub checksum: u64,
}

const FLAG_CRITICAL: u32 = 1;
const FLAG_COMPRESSED: u32 = 2;

impl SectionEntry {
    /// The entry's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; SECTION_ENTRY_LENGTH] {
        let flags = if self.critical { FLAG_CRITICAL } else { 0 }
            | if self.compressed { FLAG_COMPRESSED } else { 0 };
        let mut bytes = [0; SECTION_ENTRY_LENGTH];
        bytes[..4].copy_from_slice(&self.kind.0.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.version.to_le_bytes());
        bytes[8..12].copy_from_slice(&flags.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.stored_length.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.length.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.checksum.to_le_bytes());
        bytes
    }

    /// Reads one entry; `None` when it has flags that this reader does not know.
    #[must_use]
    pub fn decode(bytes: &[u8; SECTION_ENTRY_LENGTH]) -> Option<Self> {
        let flags = u32_at(bytes, 8);
        let known = flags & !(FLAG_CRITICAL | FLAG_COMPRESSED) == 0 && u32_at(bytes, 12) == 0;
        known.then(|| Self {
            kind: SectionKind(u32_at(bytes, 0)),
            version: u32_at(bytes, 4),
            critical: flags & FLAG_CRITICAL != 0,
            compressed: flags & FLAG_COMPRESSED != 0,
            offset: u64_at(bytes, 16),
            stored_length: u64_at(bytes, 24),
            length: u64_at(bytes, 32),
            checksum: u64_at(bytes, 40),
        })
    }
}

/// The header of `pages.rckpt`.
///
/// | bytes | what |
/// |---|---|
/// | 0..8 | [`PAGES_MAGIC`] |
/// | 8..12 | [`FORMAT_VERSION`] |
/// | 12..16 | [`ARCHITECTURE`] |
/// | 16..32 | generation id |
/// | 32..4088 | zero |
/// | 4088..4096 | checksum of bytes 0..4088 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagesHeader {
    /// The generation.
    pub id: GenerationId,
}

impl PagesHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; PAGES_HEADER_LENGTH] {
        let mut bytes = [0; PAGES_HEADER_LENGTH];
        bytes[..8].copy_from_slice(&PAGES_MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&ARCHITECTURE.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.id.0);
        let sum = checksum(&bytes[..PAGES_HEADER_LENGTH - 8]);
        bytes[PAGES_HEADER_LENGTH - 8..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads and checks a header.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &[u8; PAGES_HEADER_LENGTH]) -> Result<Self, HeaderFault> {
        check_preamble(bytes, &PAGES_MAGIC)?;
        let end = PAGES_HEADER_LENGTH - 8;
        let zero = bytes[32..end].iter().all(|byte| *byte == 0);
        if !zero || u64_at(bytes, end) != checksum(&bytes[..end]) {
            return Err(HeaderFault::Checksum);
        }
        Ok(Self { id: id_at(bytes, 16) })
    }
}

fn check_preamble(bytes: &[u8], magic: &[u8; 8]) -> Result<(), HeaderFault> {
    if bytes[..8] != *magic {
        return Err(HeaderFault::Magic);
    }
    match u32_at(bytes, 8) {
        FORMAT_VERSION => {}
        version => return Err(HeaderFault::Version(version)),
    }
    match u32_at(bytes, 12) {
        ARCHITECTURE => Ok(()),
        architecture => Err(HeaderFault::Architecture(architecture)),
    }
}

fn header_checksum(header: &[u8; IMAGE_HEADER_LENGTH], table: &[u8]) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(&header[..56]);
    hasher.update(table);
    hasher.digest()
}

// The offsets below are constants inside fixed arrays, so that slicing cannot fail.

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(word)
}

fn id_at(bytes: &[u8], offset: usize) -> GenerationId {
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[offset..offset + 16]);
    GenerationId(id)
}

/// Where the first section starts, after the header and a table of `sections` entries.
#[must_use]
pub fn first_section_offset(sections: usize) -> u64 {
    to_u64(IMAGE_HEADER_LENGTH + sections * SECTION_ENTRY_LENGTH)
}

#[cfg(test)]
mod tests {
    use super::{
        GenerationId, HeaderFault, IMAGE_HEADER_LENGTH, ImageHeader, PAGES_HEADER_LENGTH,
        PagesHeader, SectionEntry,
    };
    use crate::image::section::SectionKind;

    fn entry() -> SectionEntry {
        SectionEntry {
            kind: SectionKind::JOB,
            version: 3,
            critical: true,
            compressed: false,
            offset: 112,
            stored_length: 5,
            length: 5,
            checksum: 0x0102_0304_0506_0708,
        }
    }

    #[test]
    fn image_header_and_table_survive_the_round_trip() {
        let header = ImageHeader { id: GenerationId([9; 16]), file_length: 117, sections: 1 };
        let table = entry().encode();
        let bytes = header.encode(&table);
        assert_eq!(ImageHeader::decode(&bytes), Ok(header));
        assert_eq!(ImageHeader::check(&bytes, &table), Ok(()));
        assert_eq!(SectionEntry::decode(&table), Some(entry()));
    }

    #[test]
    fn any_flipped_bit_in_header_or_table_is_refused() {
        let header = ImageHeader { id: GenerationId([9; 16]), file_length: 117, sections: 1 };
        let table = entry().encode();
        let bytes = header.encode(&table);
        for bit in 0..IMAGE_HEADER_LENGTH * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            let read = ImageHeader::decode(&flipped).is_ok()
                && ImageHeader::check(&flipped, &table).is_ok();
            assert!(!read, "bit {bit}");
        }
        for bit in 0..table.len() * 8 {
            let mut flipped = table;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(ImageHeader::check(&bytes, &flipped), Err(HeaderFault::Checksum));
        }
    }

    #[test]
    fn any_flipped_bit_in_the_pages_header_is_refused() {
        let bytes = PagesHeader { id: GenerationId::random() }.encode();
        assert!(PagesHeader::decode(&bytes).is_ok());
        for bit in 0..PAGES_HEADER_LENGTH * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(PagesHeader::decode(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn versions_and_architectures_are_named() {
        let bytes = PagesHeader { id: GenerationId([0; 16]) }.encode();
        let mut newer = bytes;
        newer[8] = 7;
        assert_eq!(PagesHeader::decode(&newer), Err(HeaderFault::Version(7)));
        let mut foreign = bytes;
        foreign[12] = 183;
        assert_eq!(PagesHeader::decode(&foreign), Err(HeaderFault::Architecture(183)));
    }

    #[test]
    fn ids_differ() {
        assert_ne!(GenerationId::random(), GenerationId::random());
    }
}
