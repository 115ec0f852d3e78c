//! Tests of generations that build on each other.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::codec::Codec;
use super::error::{ReadError, ReadFault, WriteError};
use super::format::{IMAGE_FILE, PAGES_FILE};
use super::index::parent_pages_file;
use super::reader::{Depth, Reader};
use super::sample;
use super::writer::{Summary, WriteOptions, Writer, ZeroPages};
use crate::model::id::ObjectId;
use crate::model::number::to_u64;

const SPACE: ObjectId = ObjectId(0);
const PAGE: usize = 4096;

/// What the pages of the sample's memory hold: each a number that its content is made of.
type Memory = BTreeMap<u64, u64>;

/// How a generation learns what has not changed.
#[derive(Clone, Copy, PartialEq)]
enum By {
    /// The caller tells.
    Tracking,
    /// The writer compares hashes.
    Hashes,
}

fn content(value: u64, page: &mut [u8]) {
    match value {
        0 => page.fill(0),
        value if value.is_multiple_of(2) => sample::noise(value, page),
        value => page.fill(value.to_le_bytes()[0]),
    }
}

/// A line of generations in one directory.
struct Line {
    home: tempfile::TempDir,
    length: usize,
    before: Memory,
}

impl Line {
    fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap(), length: 0, before: Memory::new() }
    }

    fn path(&self, number: usize) -> PathBuf {
        self.home.path().join(format!("gen-{number}"))
    }

    /// Writes the next generation.
    fn write(&mut self, memory: &Memory, by: By) -> Result<Summary, WriteError> {
        let path = self.path(self.length);
        fs::create_dir(&path).unwrap();
        let parent = self.length.checked_sub(1).map(|before| self.path(before));
        let parent = parent.map(|path| Reader::open(&path).unwrap());
        let options = WriteOptions { codec: Codec::Lz4, workers: 2, rate: None };
        let mut writer = Writer::create_on(&path, options, parent)?;
        writer.compare(SPACE, SPACE);
        for (page, value) in memory {
            let same = self.before.get(page) == Some(value);
            if by == By::Tracking && same && writer.parent().is_some() {
                writer.keep(SPACE, SPACE, *page, 1)?;
                continue;
            }
            writer.store(SPACE, *page, 1, ZeroPages::Drop, &mut |_, buffer| {
                content(*value, buffer);
                Ok(())
            })?;
        }
        let summary = writer.finish(&sample::job())?;
        self.length += 1;
        self.before = memory.clone();
        Ok(summary)
    }

    fn bytes(&self, number: usize) -> u64 {
        let files = fs::read_dir(self.path(number)).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
    }
}

/// Finds exactly `memory` in the generation.
fn check(path: &Path, memory: &Memory) {
    let reader = Reader::open(path).unwrap();
    let mut found = Memory::new();
    let (mut buffer, mut expected) = (Vec::new(), vec![0; PAGE]);
    for chunk in reader.chunks() {
        let bytes = reader.decode(chunk, &mut buffer).unwrap();
        for run in &chunk.runs {
            for (page, bytes) in (run.first_page..).zip(run.bytes_in(bytes).chunks_exact(PAGE)) {
                content(memory[&page], &mut expected);
                assert!(bytes == expected, "page {page:#x}");
                assert_eq!(found.insert(page, memory[&page]), None);
            }
        }
    }
    let mut stored = memory.clone();
    stored.retain(|_, value| *value != 0);
    assert_eq!(found, stored);
    reader.verify(Depth::Decoded, &|_| ()).unwrap();
    let used: u64 = reader.files().iter().map(|file| file.used).sum();
    assert!(used <= reader.stored_bytes());
}

fn first(pages: u64) -> Memory {
    let start = sample::MEMORY_PAGES.0;
    (start..start + pages).map(|page| (page, 2 * page)).collect()
}

/// Numbers that look random, the same in every run.
fn random(seed: u64) -> u64 {
    super::codec::checksum(&seed.to_le_bytes())
}

#[test]
fn only_what_changed_is_stored() {
    for by in [By::Tracking, By::Hashes] {
        let mut line = Line::new();
        let mut memory = first(1000);
        let whole = line.write(&memory, by).unwrap();
        assert_eq!((whole.raw_bytes, whole.kept_pages), (1000 * 4096, 0));
        let start = sample::MEMORY_PAGES.0;
        for changed in [10, 500, 999] {
            memory.insert(start + changed, 2);
        }
        memory.insert(start + 20, 0);
        memory.remove(&(start + 30));
        let summary = line.write(&memory, by).unwrap();
        assert_eq!((summary.raw_bytes, summary.kept_pages), (3 * 4096, 995));
        assert!(summary.stored_bytes < whole.stored_bytes / 20, "{summary:?}");
        check(&line.path(1), &memory);
        // Nothing changed at all; then all of it did.
        let summary = line.write(&memory, by).unwrap();
        assert_eq!((summary.raw_bytes, summary.kept_pages), (0, 998));
        check(&line.path(2), &memory);
        memory.values_mut().for_each(|value| *value += 1_000_002);
        line.write(&memory, by).unwrap();
        check(&line.path(3), &memory);
        assert_eq!(Reader::open(&line.path(3)).unwrap().files().len(), 1);
    }
}

#[test]
fn every_generation_stands_when_the_others_are_gone() {
    let mut line = Line::new();
    let mut memory = first(600);
    let mut kept = Vec::new();
    for round in 0..12 {
        line.write(&memory, By::Hashes).unwrap();
        kept.push(memory.clone());
        for number in 0..60 {
            let place = sample::MEMORY_PAGES.0 + random(round * 1000 + number) % 600;
            memory.insert(place, random(number + round) % 10_000);
        }
    }
    for (number, memory) in kept.iter().enumerate() {
        check(&line.path(number), memory);
    }
    for gone in (0..kept.len()).filter(|number| number % 5 != 4) {
        fs::remove_dir_all(line.path(gone)).unwrap();
    }
    check(&line.path(4), &kept[4]);
    check(&line.path(9), &kept[9]);
}

#[test]
fn a_line_of_many_generations_takes_no_more_than_twice_the_room() {
    let mut line = Line::new();
    let mut memory = first(1500);
    let whole = line.write(&memory, By::Tracking).unwrap().stored_bytes;
    for round in 0..150 {
        for number in 0..75 {
            let place = sample::MEMORY_PAGES.0 + random(round * 1000 + number) % 1500;
            memory.insert(place, 2 * (random(number * 1000 + round) >> 40));
        }
        line.write(&memory, By::Tracking).unwrap();
        let bytes = line.bytes(line.length - 1);
        assert!(bytes < 2 * whole + whole / 8, "{bytes} of {whole} in round {round}");
        let files = Reader::open(&line.path(line.length - 1)).unwrap().files().len();
        assert!(files <= 33, "{files} files");
        fs::remove_dir_all(line.path(line.length - 2)).unwrap();
    }
    check(&line.path(line.length - 1), &memory);
}

#[test]
fn pages_of_another_process_are_stored_once() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(directory.path(), WriteOptions::default()).unwrap();
    let (start, _) = sample::MEMORY_PAGES;
    let mut read = |page: u64, buffer: &mut [u8]| {
        for (page, bytes) in (page % start..).zip(buffer.chunks_exact_mut(PAGE)) {
            content(2 * page + 2, bytes);
        }
        Ok(())
    };
    writer.store(SPACE, start, 2, ZeroPages::Drop, &mut read).unwrap();
    writer.store(ObjectId(1), 0, 2, ZeroPages::Drop, &mut read).unwrap();
    let summary = writer.finish(&sample::job()).unwrap();
    assert_eq!((summary.raw_bytes, summary.duplicate_pages), (2 * 4096, 2));
    let reader = Reader::open(directory.path()).unwrap();
    let slots: Vec<_> =
        reader.chunks()[0].runs.iter().map(|run| (run.object.0, run.slot)).collect();
    assert_eq!(slots, [(0, 0), (1, 0)]);
    reader.verify(Depth::Decoded, &|_| ()).unwrap();
}

#[test]
fn without_a_parent_nothing_can_be_kept() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(directory.path(), WriteOptions::default()).unwrap();
    assert!(writer.parent().is_none());
    let error = writer.keep(SPACE, SPACE, 7, 1).unwrap_err();
    assert!(matches!(error, WriteError::FindParent { .. }), "{error}");
}

#[test]
fn a_parent_that_is_being_removed_is_done_without() {
    let mut line = Line::new();
    line.write(&first(10), By::Hashes).unwrap();
    let parent = Reader::open(&line.path(0)).unwrap();
    fs::remove_dir_all(line.path(0)).unwrap();
    let child = line.path(1);
    fs::create_dir(&child).unwrap();
    let writer = Writer::create_on(&child, WriteOptions::default(), Some(parent)).unwrap();
    assert!(writer.parent().is_none());
    drop(writer);
    assert_eq!(fs::read_dir(&child).unwrap().count(), 1);
}

/// A line of two, and the name of the first one's page data in the second.
fn two() -> (Line, Memory, PathBuf) {
    let mut line = Line::new();
    let mut memory = first(700);
    line.write(&memory, By::Hashes).unwrap();
    let id = Reader::open(&line.path(0)).unwrap().id();
    memory.insert(sample::MEMORY_PAGES.0, 5);
    line.write(&memory, By::Hashes).unwrap();
    let name = line.path(1).join(parent_pages_file(id));
    (line, memory, name)
}

#[test]
fn the_earlier_generations_data_is_one_file_with_two_names() {
    let (line, memory, name) = two();
    let own = fs::metadata(line.path(0).join(PAGES_FILE)).unwrap();
    assert_eq!(fs::metadata(&name).unwrap().ino(), own.ino());
    assert_eq!(own.nlink(), 2);
    check(&line.path(1), &memory);
}

#[test]
fn a_missing_swapped_or_foreign_parent_is_refused_by_name() {
    let (line, memory, name) = two();
    let (other, _, _) = two();
    let kept = fs::read(&name).unwrap();
    fs::remove_file(&name).unwrap();
    let refused = |expected: fn(&ReadError) -> bool| {
        let error = Reader::open(&line.path(1)).unwrap_err();
        assert!(expected(&error), "{error}");
        assert!(error.to_string().contains(name.to_str().unwrap()), "{error}");
        assert_eq!(error.fault(), ReadFault::Damaged);
    };
    refused(|error| matches!(error, ReadError::FindFile { .. }));
    // Another job's; and this very generation's own.
    for foreign in [other.path(0), line.path(1)] {
        fs::copy(foreign.join(PAGES_FILE), &name).unwrap();
        refused(|error| matches!(error, ReadError::MatchGeneration { .. }));
    }
    let mut image = fs::read(line.path(0).join(IMAGE_FILE)).unwrap();
    image.resize(2 * PAGE, 0);
    fs::write(&name, image).unwrap();
    refused(|error| matches!(error, ReadError::RecogniseFile { .. }));
    // The header of the right one over the data of another.
    let mut mixed = fs::read(other.path(0).join(PAGES_FILE)).unwrap();
    mixed[..PAGE].copy_from_slice(&kept[..PAGE]);
    fs::write(&name, &mixed[..mixed.len() - 1]).unwrap();
    refused(|error| matches!(error, ReadError::MatchLength { .. }));
    mixed.resize(kept.len(), 0);
    mixed[PAGE + 7] ^= 1;
    fs::write(&name, &mixed).unwrap();
    let error = Reader::open(&line.path(1)).unwrap().verify(Depth::Stored, &|_| ()).unwrap_err();
    assert!(error.to_string().contains(name.to_str().unwrap()), "{error}");
    fs::write(&name, &kept).unwrap();
    check(&line.path(1), &memory);
}

#[test]
fn a_truncated_parent_is_refused_at_any_length() {
    let (line, memory, name) = two();
    let kept = fs::read(&name).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&name).unwrap();
    for length in (0..kept.len()).step_by(4093) {
        file.set_len(to_u64(length)).unwrap();
        let error = Reader::open(&line.path(1)).unwrap_err();
        assert_eq!(error.fault(), ReadFault::Damaged, "{error}");
        assert!(error.to_string().contains(name.to_str().unwrap()), "{error}");
    }
    fs::write(&name, &kept).unwrap();
    check(&line.path(1), &memory);
}

#[test]
fn damage_anywhere_in_what_is_used_of_a_parent_is_found() {
    let (line, memory, name) = two();
    let file = fs::OpenOptions::new().read(true).write(true).open(&name).unwrap();
    let reader = Reader::open(&line.path(1)).unwrap();
    let chunks: Vec<_> = reader.chunks().iter().filter(|chunk| chunk.file == 1).collect();
    assert!(chunks.len() > 1);
    for chunk in chunks {
        for place in (chunk.offset..chunk.end()).step_by(997) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, place).unwrap();
            file.write_all_at(&[byte[0] ^ 8], place).unwrap();
            let error = reader.verify(Depth::Stored, &|_| ()).unwrap_err().to_string();
            assert!(error.contains(name.to_str().unwrap()), "{error}");
            file.write_all_at(&byte, place).unwrap();
        }
    }
    check(&line.path(1), &memory);
}

#[test]
fn a_damaged_parent_is_not_built_on() {
    let (line, memory, name) = two();
    let file = fs::OpenOptions::new().read(true).write(true).open(&name).unwrap();
    let parent = Reader::open(&line.path(1)).unwrap();
    let chunk = parent.chunks().iter().find(|chunk| chunk.file == 1).unwrap();
    file.write_all_at(&[0xee; 16], chunk.hashes_offset()).unwrap();
    let path = line.path(2);
    fs::create_dir(&path).unwrap();
    let mut writer = Writer::create_on(&path, WriteOptions::default(), Some(parent)).unwrap();
    writer.compare(SPACE, SPACE);
    let (start, _) = sample::MEMORY_PAGES;
    let mut read = |page: u64, buffer: &mut [u8]| {
        for (page, bytes) in (page..).zip(buffer.chunks_exact_mut(PAGE)) {
            content(memory[&page], bytes);
        }
        Ok(())
    };
    let error = writer.store(SPACE, start, 700, ZeroPages::Drop, &mut read).unwrap_err();
    assert!(error.is_parents_fault(), "{error}");
    assert!(error.to_string().contains("table of hashes"), "{error}");
}
