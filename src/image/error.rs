//! What can go wrong with images, and where: the file and the part of it are always named.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::format::{FORMAT_VERSION, GenerationId, HeaderFault};
use super::section::{DecodeFault, SectionKind};
use super::validate::Violation;
use crate::model::code::{self, Code};
use crate::model::id::ObjectId;

/// A part of a file of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The header at its start.
    Header,
    /// The table of sections.
    SectionTable,
    /// A section.
    Section(SectionKind),
    /// A chunk of page data, by its number in the index.
    Chunk(usize),
    /// The hashes of the pages of a chunk, by its number in the index.
    Hashes(usize),
    /// The zero bytes between a chunk, by its number in the index, and the next.
    Padding(usize),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("the header"),
            Self::SectionTable => f.write_str("the table of sections"),
            Self::Section(kind) => write!(f, "section \"{kind}\""),
            Self::Chunk(number) => write!(f, "page data chunk {number}"),
            Self::Hashes(number) => write!(f, "the table of hashes of page data chunk {number}"),
            Self::Padding(number) => write!(f, "the padding after page data chunk {number}"),
        }
    }
}

/// What a failed reading says about the image, which decides what its reader can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFault {
    /// There is no image here.
    Absent,
    /// The machine could not read it; the image may be good.
    Machine,
    /// It is not what was written, or only a part of that.
    Damaged,
    /// It was written for another program version or architecture.
    Unsupported,
    /// Another user owns it or could have written it.
    Untrusted,
}

/// Why an image cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The directory cannot be opened.
    #[error("cannot open the checkpoint {}: {source}", path.display())]
    OpenDirectory {
        /// The generation.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// A file is missing.
    #[error("{} is missing: the checkpoint is not complete", path.display())]
    FindFile {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be opened.
    #[error("cannot open {}: {source}", path.display())]
    OpenFile {
        /// The file.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// A directory or file belongs to somebody else.
    #[error(
        "{} belongs to user {owner}, and this is user {user}: a checkpoint can become any program, \
         so only its owner may restore it", path.display()
    )]
    TrustOwner {
        /// The directory or file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who we are.
        user: u32,
    },
    /// Others may write to a directory or file.
    #[error(
        "{} may be written by other users (mode {mode:04o}), who could have put any program into \
         it; if you are sure that nobody did: chmod -R go-w {}", path.display(), path.display()
    )]
    TrustMode {
        /// The directory or file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file is something else, such as a device.
    #[error("{} is not a regular file", path.display())]
    TrustKind {
        /// The file.
        path: PathBuf,
    },
    /// The kernel failed to read.
    #[error("cannot read {part} of {}: {source}", path.display())]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// The part.
        part: Part,
        /// The kernel's word.
        source: io::Error,
    },
    /// The magic is another.
    #[error(
        "{} does not begin as an rckpt image does: it is something else, or damaged", path.display()
    )]
    RecogniseFile {
        /// The file.
        path: PathBuf,
    },
    /// The format is newer.
    #[error(
        "{} has format version {found}, and this rckpt knows version {FORMAT_VERSION}: use the \
         rckpt that wrote it, or a newer one", path.display()
    )]
    SupportVersion {
        /// The file.
        path: PathBuf,
        /// The version in its header.
        found: u32,
    },
    /// The architecture is another.
    #[error("{} was written on another architecture (ELF machine {found})", path.display())]
    SupportArchitecture {
        /// The file.
        path: PathBuf,
        /// The number in its header.
        found: u32,
    },
    /// A critical section is unknown, or newer than this program.
    #[error(
        "{} has a critical section \"{kind}\" in version {version}, which this rckpt does not \
         understand: use the rckpt that wrote it, or a newer one", path.display()
    )]
    SupportSection {
        /// The file.
        path: PathBuf,
        /// The section.
        kind: SectionKind,
        /// Its version.
        version: u32,
    },
    /// The file is shorter or longer than it says.
    #[error(
        "{} is {found} bytes long, but {declared} were written: it was {}", path.display(),
        if found < declared { "cut off" } else { "added to" }
    )]
    MatchLength {
        /// The file.
        path: PathBuf,
        /// Its length as recorded.
        declared: u64,
        /// Its length as found.
        found: u64,
    },
    /// A checksum does not match.
    #[error("{part} of {} is damaged: its checksum does not match", path.display())]
    MatchChecksum {
        /// The file.
        path: PathBuf,
        /// The part.
        part: Part,
    },
    /// Something lies outside its bounds.
    #[error("{part} of {} is damaged: {problem}", path.display())]
    BoundPart {
        /// The file.
        path: PathBuf,
        /// The part.
        part: Part,
        /// What is out of bounds.
        problem: &'static str,
    },
    /// A section is missing.
    #[error("{} has no section \"{kind}\"", path.display())]
    FindSection {
        /// The file.
        path: PathBuf,
        /// The section.
        kind: SectionKind,
    },
    /// A section is there twice.
    #[error("{} has two sections \"{kind}\"", path.display())]
    RepeatSection {
        /// The file.
        path: PathBuf,
        /// The section.
        kind: SectionKind,
    },
    /// A section's checksum is right, but its records are not.
    #[error("{part} of {} cannot be decoded: {source}", path.display())]
    DecodeSection {
        /// The file.
        path: PathBuf,
        /// The section.
        part: Part,
        /// What is wrong with its bytes.
        source: DecodeFault,
    },
    /// A compressed part does not decompress to what was declared.
    #[error("{part} of {} does not decompress to its declared length", path.display())]
    Decompress {
        /// The file.
        path: PathBuf,
        /// The part.
        part: Part,
    },
    /// Two files are not of one checkpoint.
    #[error(
        "{} belongs to another checkpoint ({found}, not {expected}): files were mixed up",
        path.display()
    )]
    MatchGeneration {
        /// The file of page data.
        path: PathBuf,
        /// The generation in its header.
        found: GenerationId,
        /// The generation that the image names.
        expected: GenerationId,
    },
    /// The records contradict each other.
    #[error("the records in {} contradict each other: {source}", path.display())]
    CheckRecords {
        /// The file.
        path: PathBuf,
        /// The contradiction.
        source: Violation,
    },
}

impl ReadError {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::OpenDirectory { .. } | Self::OpenFile { .. } | Self::ReadFile { .. } => {
                code::images::CANNOT_OPEN
            }
            Self::FindFile { .. } => code::images::FILE_MISSING,
            Self::TrustOwner { .. } => code::images::NOT_YOURS,
            Self::TrustMode { .. } => code::images::WRITABLE_BY_OTHERS,
            Self::TrustKind { .. } => code::images::NOT_A_FILE,
            Self::RecogniseFile { .. } => code::images::NOT_AN_IMAGE,
            Self::SupportVersion { .. } | Self::SupportSection { .. } => {
                code::images::FORMAT_TOO_NEW
            }
            Self::SupportArchitecture { .. } => code::images::OTHER_ARCHITECTURE,
            Self::MatchLength { .. } => code::images::WRONG_LENGTH,
            Self::MatchChecksum { .. } => code::images::WRONG_CHECKSUM,
            Self::BoundPart { .. } => code::images::OUT_OF_BOUNDS,
            Self::FindSection { .. } | Self::RepeatSection { .. } => code::images::WRONG_SECTIONS,
            Self::DecodeSection { .. } | Self::Decompress { .. } => code::images::CANNOT_DECODE,
            Self::MatchGeneration { .. } => code::images::MIXED_UP,
            Self::CheckRecords { .. } => code::images::CONTRADICTION,
        }
    }
}

impl ReadError {
    /// What it says about the image.
    #[must_use]
    pub fn fault(&self) -> ReadFault {
        match self {
            Self::OpenDirectory { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                ReadFault::Absent
            }
            Self::OpenDirectory { .. } | Self::OpenFile { .. } | Self::ReadFile { .. } => {
                ReadFault::Machine
            }
            Self::TrustOwner { .. } | Self::TrustMode { .. } | Self::TrustKind { .. } => {
                ReadFault::Untrusted
            }
            Self::SupportVersion { .. }
            | Self::SupportArchitecture { .. }
            | Self::SupportSection { .. } => ReadFault::Unsupported,
            Self::FindFile { .. }
            | Self::RecogniseFile { .. }
            | Self::MatchLength { .. }
            | Self::MatchChecksum { .. }
            | Self::BoundPart { .. }
            | Self::FindSection { .. }
            | Self::RepeatSection { .. }
            | Self::DecodeSection { .. }
            | Self::Decompress { .. }
            | Self::MatchGeneration { .. }
            | Self::CheckRecords { .. } => ReadFault::Damaged,
        }
    }

    /// The error for a fault in the header of `path`.
    pub(super) fn header(path: &Path, fault: HeaderFault) -> Self {
        let path = path.to_owned();
        match fault {
            HeaderFault::Magic => Self::RecogniseFile { path },
            HeaderFault::Version(found) => Self::SupportVersion { path, found },
            HeaderFault::Architecture(found) => Self::SupportArchitecture { path, found },
            HeaderFault::Checksum => Self::MatchChecksum { path, part: Part::Header },
            HeaderFault::Sections(_) => Self::BoundPart {
                path,
                part: Part::Header,
                problem: "it declares more sections than any image has",
            },
        }
    }
}

/// Why an image cannot be written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The directory cannot be opened.
    #[error("cannot open the directory {} for a new checkpoint: {source}", path.display())]
    OpenDirectory {
        /// The directory.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// A file cannot be made.
    #[error("cannot create {}: {source}", path.display())]
    CreateFile {
        /// The file.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// The kernel failed to write.
    #[error("cannot write {part} to {}: {source}", path.display())]
    WriteFile {
        /// The file.
        path: PathBuf,
        /// What was to be written.
        part: Part,
        /// The kernel's word.
        source: io::Error,
    },
    /// The kernel failed to bring data to the disk.
    #[error("cannot bring {} to the disk (fsync): {source}", path.display())]
    SyncFile {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// A name of an earlier generation's file, which is not needed, cannot be removed.
    #[error("cannot remove {}: {source}", path.display())]
    RemoveFile {
        /// The file.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread that compresses or writes page data: {source}")]
    StartThread {
        /// The kernel's word.
        source: io::Error,
    },
    /// The pages cannot be had from the caller.
    #[error("cannot read {pages} pages from page {first_page:#x} of object {object}: {source}")]
    ReadPages {
        /// The object.
        object: ObjectId,
        /// First page.
        first_page: u64,
        /// How many.
        pages: u64,
        /// What the caller's function said.
        source: io::Error,
    },
    /// The earlier generation that this one builds on cannot be read: one that stands by itself can
    /// be written instead.
    #[error("the checkpoint that this one builds on: {source}")]
    ReadParent {
        /// What is wrong with it.
        source: ReadError,
    },
    /// Pages are to be kept, and there is no earlier generation that has them.
    #[error(
        "object {object} is to keep {pages} pages from page {first_page:#x} on, and there is no \
         earlier checkpoint to keep them from"
    )]
    FindParent {
        /// The object.
        object: ObjectId,
        /// First page.
        first_page: u64,
        /// How many.
        pages: u64,
    },
    /// More pages than an object can have.
    #[error("object {object} cannot have {pages} pages from page {first_page:#x} on")]
    BoundPages {
        /// The object.
        object: ObjectId,
        /// First page.
        first_page: u64,
        /// How many.
        pages: u64,
    },
    /// An earlier call failed, and its error was given then.
    #[error("writing this checkpoint has failed before")]
    ContinueWriting,
    /// Records cannot be encoded.
    #[error("cannot encode {part}: {source}")]
    EncodeSection {
        /// The section.
        part: Part,
        /// The encoder's word.
        source: postcard::Error,
    },
    /// A section is longer than a reader takes.
    #[error("{part} would have {length} bytes, more than the format allows")]
    BoundSection {
        /// The section.
        part: Part,
        /// Its length.
        length: usize,
    },
    /// The records contradict each other: no reader would take them.
    #[error("the records of the job contradict each other: {source}")]
    CheckRecords {
        /// The contradiction.
        source: Violation,
    },
}

impl WriteError {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::OpenDirectory { .. }
            | Self::CreateFile { .. }
            | Self::WriteFile { .. }
            | Self::SyncFile { .. }
            | Self::RemoveFile { .. } => code::writing::NOT_WRITTEN,
            Self::StartThread { .. } => code::attaching::CANNOT_FORK,
            Self::ReadPages { .. } => code::writing::STATE_UNREADABLE,
            Self::ReadParent { source, .. } => source.code(),
            Self::FindParent { .. } | Self::ContinueWriting | Self::EncodeSection { .. } => {
                code::writing::PANICKED
            }
            Self::BoundPages { .. } | Self::BoundSection { .. } => code::writing::TOO_MANY,
            Self::CheckRecords { .. } => code::writing::WRONG_RECORDS,
        }
    }
}

impl WriteError {
    /// Whether a generation that builds on no other one could be written nevertheless.
    #[must_use]
    pub const fn is_parents_fault(&self) -> bool {
        matches!(self, Self::ReadParent { .. })
    }

    /// Whether the disk or the user's quota is full.
    #[must_use]
    pub fn is_out_of_space(&self) -> bool {
        match self {
            Self::OpenDirectory { source, .. }
            | Self::CreateFile { source, .. }
            | Self::WriteFile { source, .. }
            | Self::SyncFile { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            Self::RemoveFile { .. }
            | Self::StartThread { .. }
            | Self::ReadPages { .. }
            | Self::ReadParent { .. }
            | Self::FindParent { .. }
            | Self::BoundPages { .. }
            | Self::ContinueWriting
            | Self::EncodeSection { .. }
            | Self::BoundSection { .. }
            | Self::CheckRecords { .. } => false,
        }
    }
}
