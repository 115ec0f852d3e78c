//! The index of the page data: which pages lie where in which file.
//!
//! A generation may draw on page files of earlier generations (kept beside its own under
//! [`parent_pages_file`]), the same stored page may stand for pages of several objects, and only a
//! part of a chunk may still be in use.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::codec::{Codec, PAGE_HASH_LENGTH};
use super::format::GenerationId;
use crate::model::id::ObjectId;
use crate::model::number::{PAGE_SIZE, to_u64, to_usize};

/// Pages in a chunk that a writer fills: 1 MiB.
pub const CHUNK_PAGES: u32 = 256;
/// Bytes in a chunk that a writer fills.
pub const CHUNK_LENGTH: usize = 256 * to_usize(PAGE_SIZE);
/// Most pages in a chunk that a reader takes: 16 MiB.
pub const CHUNK_PAGES_LIMIT: u32 = 4096;

/// A range of an object's pages, and where in its chunk they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Run {
    /// The address space or inode content that the pages belong to.
    pub object: ObjectId,
    /// Number of the first page in the object; a page of an address space is its address / 4096.
    pub first_page: u64,
    /// How many; at least one.
    pub pages: u32,
    /// Place of the first of them in the chunk, in pages; `slot + pages` is at most the chunk's.
    pub slot: u32,
}

impl Run {
    /// The run's bytes within its chunk's.
    #[must_use]
    pub fn bytes_in<'a>(&self, chunk: &'a [u8]) -> &'a [u8] {
        let start = to_usize(u64::from(self.slot) * PAGE_SIZE);
        let length = to_usize(u64::from(self.pages) * PAGE_SIZE);
        &chunk[start..start + length]
    }

    /// Appends `run`, joining it to the last one when it continues that.
    pub(super) fn append(runs: &mut Vec<Self>, run: Self) {
        match runs.last_mut() {
            Some(last) if last.is_continued_by(&run) => last.pages += run.pages,
            _ => runs.push(run),
        }
    }

    /// Whether `next`, of the same chunk, is its continuation in the object and in the chunk.
    pub(super) fn is_continued_by(&self, next: &Self) -> bool {
        self.object == next.object
            && self.end_page() == next.first_page
            && self.slot + self.pages == next.slot
    }

    /// What of it lies in `pages` of its object.
    #[must_use]
    pub fn within(&self, pages: &Range<u64>) -> Option<Self> {
        let start = self.first_page.max(pages.start);
        let end = self.end_page().min(pages.end);
        let skipped = u32::try_from(start - self.first_page).ok()?;
        let length = u32::try_from(end.checked_sub(start)?).ok().filter(|length| *length > 0)?;
        Some(Self { first_page: start, pages: length, slot: self.slot + skipped, ..*self })
    }

    /// The first page after the run.
    #[must_use]
    pub fn end_page(&self) -> u64 {
        // Saturation happens only before the index has been checked: no object has so many pages.
        self.first_page.saturating_add(u64::from(self.pages))
    }
}

/// A piece of page data, compressed and checked as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Which file: index into [`PageIndex::files`].
    pub file: u32,
    /// Offset in the file; a multiple of the page size where the chunk is stored plainly.
    pub offset: u64,
    /// Stored bytes.
    pub stored_length: u32,
    /// How it is stored; [`Codec::None`] where compression did not pay, too.
    pub codec: Codec,
    /// Pages once decompressed.
    pub pages: u32,
    /// Checksum of the stored bytes.
    pub stored_checksum: u64,
    /// Checksum of the table of the pages' hashes, which follows the stored bytes.
    pub checksum: u64,
    /// What the pages are.
    pub runs: Vec<Run>,
}

impl Chunk {
    /// Bytes once decompressed.
    #[must_use]
    pub fn length(&self) -> usize {
        to_usize(u64::from(self.pages) * PAGE_SIZE)
    }

    /// Where its table of hashes begins: behind its stored bytes.
    #[must_use]
    pub fn hashes_offset(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.stored_length))
    }

    /// Bytes of its table of hashes.
    #[must_use]
    pub fn hashes_length(&self) -> usize {
        to_usize(u64::from(self.pages)) * PAGE_HASH_LENGTH
    }

    /// How many of its stored bytes, and of its table of hashes, stand for the pages in `runs`.
    #[must_use]
    pub fn used_bytes(&self, runs: &[Run]) -> u64 {
        let all = self.end().saturating_sub(self.offset);
        let used: u64 = runs.iter().map(|run| u64::from(run.pages)).sum();
        // Pages that stand for several count once or more, never for more than the whole.
        all.saturating_mul(used.min(u64::from(self.pages))) / u64::from(self.pages.max(1))
    }

    /// The first byte after it and its table of hashes.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.hashes_offset().saturating_add(to_u64(self.hashes_length()))
    }
}

/// A file of page data that an image draws on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PagesFile {
    /// The generation that wrote it.
    pub id: GenerationId,
    /// Its whole length in bytes.
    pub length: u64,
}

/// Section [`super::section::SectionKind::PAGE_INDEX`], version 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageIndex {
    /// Seed of all hashes of pages, in all the files.
    pub hash_seed: u64,
    /// Files that chunks lie in: this generation's own first, then those of earlier ones.
    pub files: Vec<PagesFile>,
    /// The chunks; those in this generation's own file in the order they have there, without gaps
    /// but for the padding before a plain one.
    pub chunks: Vec<Chunk>,
}

/// Name under which a generation keeps (as a hard link, so that it needs no other directory) the
/// page file of the earlier generation `id`.
#[must_use]
pub fn parent_pages_file(id: GenerationId) -> String {
    format!("pages-{id}.rckpt")
}
