//! What a generation takes over from the one before it: pages are not stored again but referred to
//! where they lie, in files of the earlier generation or of those that it built on itself.
//!
//! Every file that is referred to gets a name (a hard link) in the new generation, which so needs no
//! other directory: any generation can be removed without harm to another. A file of which little is
//! in use any more is *folded*: what is left of it is stored anew, and the file is let go.

use std::fs::File;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::codec::PageHash;
use super::error::{ReadError, WriteError};
use super::format::PAGES_HEADER_LENGTH;
use super::index::{Chunk, PagesFile, Run, parent_pages_file};
use super::reader::Reader;
use crate::model::id::ObjectId;
use crate::model::number::{to_u64, to_usize};

/// Most files of earlier generations that one draws on.
const FILE_LIMIT: usize = 32;
/// Chunks whose hashes are kept at hand: at most a mebibyte of them.
const TABLES: usize = 256;

/// A run of pages in the earlier generation.
#[derive(Clone, Copy, Debug)]
struct Span {
    chunk: u32,
    run: Run,
}

/// The earlier generation.
pub(super) struct Parent {
    reader: Reader,
    /// Its runs, ascending by object and page.
    spans: Vec<Span>,
    /// What is taken over: the number of the chunk there, and the run here.
    kept: Vec<(u32, Run)>,
    kept_pages: u64,
    /// Where the last search ended; the next one mostly starts there.
    last: usize,
    /// The hashes of some chunks, each at its number modulo [`TABLES`].
    tables: Vec<Option<(u32, Vec<PageHash>)>>,
}

/// Where a page is in the earlier generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    chunk: u32,
    slot: u32,
}

/// What is taken over, in the end.
pub(super) struct Inheritance {
    /// The files, but for those that are folded.
    pub files: Vec<PagesFile>,
    /// The chunks in them, the first of `files` being number 1.
    pub chunks: Vec<Chunk>,
}

impl Parent {
    /// Takes `reader` as the parent of a generation in `directory` (open, and its path), where each of
    /// its files gets a name. `None` when they cannot have one.
    ///
    /// # Errors
    /// When names that were given cannot be taken back.
    pub fn adopt(
        reader: Reader,
        directory: &File,
        path: &Path,
    ) -> Result<Option<Self>, WriteError> {
        let files: Vec<PagesFile> = reader.pages_files().collect();
        if !(0..files.len()).all(|number| reader.link_file(number, directory)) {
            files.iter().try_for_each(|file| unlink(directory, path, file))?;
            return Ok(None);
        }
        let numbered = (0_u32..).zip(reader.chunks());
        let mut spans: Vec<Span> = numbered
            .flat_map(|(chunk, record)| {
                record.runs.iter().map(move |run| Span { chunk, run: *run })
            })
            .collect();
        spans.sort_unstable_by_key(|span| (span.run.object, span.run.first_page));
        let tables = vec![None; TABLES];
        Ok(Some(Self { reader, spans, kept: Vec::new(), kept_pages: 0, last: 0, tables }))
    }

    /// The generation.
    pub const fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Pages that have been taken over.
    pub const fn kept_pages(&self) -> u64 {
        self.kept_pages
    }

    /// Takes over all pages of its object `of` from `first_page` to before `beyond`, as those of
    /// `object`. Where it has none, there is none: it was as a fresh mapping shows it.
    pub fn keep(&mut self, object: ObjectId, of: ObjectId, first_page: u64, beyond: u64) {
        let mut number = self.search(of, first_page);
        while let Some(Span { chunk, run }) = self.spans.get(number).copied() {
            if run.object != of || run.first_page >= beyond {
                break;
            }
            let start = run.first_page.max(first_page);
            let end = run.end_page().min(beyond);
            let within = |page: u64| u32::try_from(page - run.first_page).unwrap_or(run.pages);
            let pages = within(end) - within(start);
            let slot = run.slot + within(start);
            self.take(chunk, Run { object, first_page: start, pages, slot });
            number += 1;
        }
        self.last = number.saturating_sub(1);
    }

    /// Takes over one page.
    pub fn keep_page(&mut self, object: ObjectId, page: u64, origin: Origin) {
        self.take(origin.chunk, Run { object, first_page: page, pages: 1, slot: origin.slot });
    }

    /// Where the page `page` of its object `of` is, if it is the one with the hash `hash`.
    ///
    /// # Errors
    /// When the hashes there cannot be read.
    pub fn find(
        &mut self,
        of: ObjectId,
        page: u64,
        hash: PageHash,
    ) -> Result<Option<Origin>, ReadError> {
        let number = self.search(of, page);
        self.last = number;
        let Some(Span { chunk, run }) = self.spans.get(number).copied() else { return Ok(None) };
        let Some(offset) = page.checked_sub(run.first_page).filter(|_| run.object == of) else {
            return Ok(None);
        };
        let slot = run.slot + u32::try_from(offset).unwrap_or(0);
        let table = self.table(chunk)?;
        let same = table.get(to_usize(u64::from(slot))) == Some(&hash);
        Ok(same.then_some(Origin { chunk, slot }))
    }

    /// The hash of the page `page` of its object `of`, if it has one.
    ///
    /// # Errors
    /// When the hashes there cannot be read.
    pub fn hash_of(&mut self, of: ObjectId, page: u64) -> Result<Option<PageHash>, ReadError> {
        let number = self.search(of, page);
        let Some(Span { chunk, run }) = self.spans.get(number).copied() else { return Ok(None) };
        let Some(offset) = page.checked_sub(run.first_page).filter(|_| run.object == of) else {
            return Ok(None);
        };
        let slot = u64::from(run.slot) + offset;
        Ok(self.table(chunk)?.get(to_usize(slot)).copied())
    }

    /// Decides what becomes of each file, removes the names of those that are not used, and gives
    /// what is left with the chunks that have to be folded first.
    ///
    /// # Errors
    /// When a name cannot be removed.
    pub fn settle(mut self, directory: &File, path: &Path) -> Result<Settled, WriteError> {
        self.kept.sort_unstable_by_key(|(chunk, run)| (*chunk, run.object, run.first_page));
        let chunks = self.reader.chunks();
        let mut taken: Vec<Chunk> = Vec::new();
        for group in self.kept.chunk_by(|(one, _), (other, _)| one == other) {
            let number = group.first().map_or(0, |(chunk, _)| *chunk);
            let mut runs: Vec<Run> = Vec::with_capacity(group.len());
            group.iter().for_each(|(_, run)| Run::append(&mut runs, *run));
            taken.push(Chunk { runs, ..chunks[to_usize(u64::from(number))].clone() });
        }
        let files: Vec<PagesFile> = self.reader.pages_files().collect();
        let mut used = vec![0; files.len()];
        for chunk in &taken {
            used[to_usize(u64::from(chunk.file))] += chunk.used_bytes(&chunk.runs);
        }
        let sizes: Vec<(u64, u64)> =
            files.iter().zip(&used).map(|(file, used)| (file.length, *used)).collect();
        let stays = worth_keeping(&sizes);
        let mut numbers = vec![0; files.len()];
        let mut inherited = Inheritance { files: Vec::new(), chunks: Vec::new() };
        for (place, file) in files.iter().enumerate() {
            if stays[place] {
                inherited.files.push(*file);
                numbers[place] = u32::try_from(inherited.files.len()).unwrap_or(u32::MAX);
            } else {
                unlink(directory, path, file)?;
            }
        }
        let mut folded = Vec::new();
        for mut chunk in taken {
            let place = to_usize(u64::from(chunk.file));
            if stays[place] {
                chunk.file = numbers[place];
                inherited.chunks.push(chunk);
            } else {
                folded.push(chunk);
            }
        }
        Ok(Settled { reader: self.reader, inherited, folded })
    }

    fn take(&mut self, chunk: u32, run: Run) {
        self.kept_pages += u64::from(run.pages);
        match self.kept.last_mut() {
            Some((last_chunk, last)) if *last_chunk == chunk && last.is_continued_by(&run) => {
                last.pages += run.pages;
            }
            _ => self.kept.push((chunk, run)),
        }
    }

    /// The first span of object `of` that ends after `page`, or where it would be.
    fn search(&self, of: ObjectId, page: u64) -> usize {
        let before = |span: &Span| (span.run.object, span.run.end_page()) <= (of, page);
        for number in [self.last, self.last + 1] {
            let here = self.spans.get(number).is_none_or(|span| !before(span));
            let after = number.checked_sub(1).and_then(|earlier| self.spans.get(earlier));
            if here && number <= self.spans.len() && after.is_none_or(before) {
                return number;
            }
        }
        self.spans.partition_point(before)
    }

    /// The hashes of a chunk's pages.
    fn table(&mut self, chunk: u32) -> Result<&[PageHash], ReadError> {
        let number = to_usize(u64::from(chunk));
        let entry = &mut self.tables[number % TABLES];
        if entry.as_ref().is_none_or(|(have, _)| *have != chunk) {
            let mut table = Vec::new();
            self.reader.hashes(&self.reader.chunks()[number], &mut table)?;
            *entry = Some((chunk, table));
        }
        Ok(entry.as_ref().map_or(&[], |(_, table)| table.as_slice()))
    }
}

/// A parent of which it is known what becomes of it.
pub(super) struct Settled {
    /// To read what is folded.
    pub reader: Reader,
    /// What is referred to.
    pub inherited: Inheritance,
    /// Chunks in files that are let go: what their runs say is in use has to be stored anew.
    pub folded: Vec<Chunk>,
}

/// Takes back the name of `file` in a generation, if it has one.
fn unlink(directory: &File, path: &Path, file: &PagesFile) -> Result<(), WriteError> {
    let name = parent_pages_file(file.id);
    match unlinkat(directory, name.as_str(), UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(WriteError::RemoveFile { path: path.join(name), source: errno.into() }),
    }
}

/// Which of the files, given as their lengths and the bytes of them that are in use, are worth being
/// kept. A file stays as long as at least half of it is in use, so that no generation takes more than
/// twice the room of a full one; and there are never more than [`FILE_LIMIT`]: beyond that the
/// smaller half is folded, so that this does not happen each time.
fn worth_keeping(files: &[(u64, u64)]) -> Vec<bool> {
    let mostly_used = |(length, used): &(u64, u64)| {
        let chunks = length.saturating_sub(to_u64(PAGES_HEADER_LENGTH));
        *used > 0 && used.saturating_mul(2) >= chunks
    };
    let mut stays: Vec<bool> = files.iter().map(mostly_used).collect();
    let mut left: Vec<usize> = (0..files.len()).filter(|place| stays[*place]).collect();
    if left.len() > FILE_LIMIT {
        left.sort_unstable_by_key(|place| files[*place].1);
        for place in &left[..left.len() - FILE_LIMIT / 2] {
            stays[*place] = false;
        }
    }
    stays
}

#[cfg(test)]
mod tests {
    use super::{FILE_LIMIT, worth_keeping};

    #[test]
    fn files_of_which_little_is_in_use_are_let_go() {
        let check = |files: &[(u64, u64)], expected: &[bool]| {
            assert_eq!(worth_keeping(files), expected, "{files:?}");
        };
        check(&[], &[]);
        let file = |used| (4096 + 100, used);
        check(&[file(100), file(50), file(49), file(0)], &[true, true, false, false]);
        check(&[(0, 0)], &[false]);
    }

    #[test]
    fn there_are_never_many_files_and_the_largest_stay() {
        let files: Vec<(u64, u64)> = (1..=40).map(|size| (4096 + size, size)).collect();
        let stays = worth_keeping(&files);
        assert_eq!(stays.iter().filter(|stays| **stays).count(), FILE_LIMIT / 2);
        assert!(stays[39] && !stays[0]);
        assert!(worth_keeping(&files[..FILE_LIMIT]).iter().all(|stays| *stays));
    }
}
