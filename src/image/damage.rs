//! Tests that an image which is not exactly what was written is refused, by name.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::codec::{Codec, checksum, unpack};
use super::error::{ReadError, ReadFault};
use super::format::{
    GenerationId, IMAGE_FILE, IMAGE_HEADER_LENGTH, ImageHeader, PAGES_FILE, SECTION_ENTRY_LENGTH,
    SectionEntry, first_section_offset,
};
use super::index::{PageIndex, PagesFile, parent_pages_file};
use super::reader::{Depth, Reader};
use super::sample;
use super::section::{SECTIONS, SectionKind};
use super::writer::{WriteOptions, Writer, ZeroPages, encode_section};
use crate::model::address::AddrRange;
use crate::model::id::ObjectId;
use crate::model::number::{to_u64, to_usize};

/// Writes a small image that has a compressed chunk, padding, and a plain chunk.
fn write(directory: &Path) {
    let options = WriteOptions { codec: Codec::Lz4, workers: 1, rate: None };
    let mut writer = Writer::create(directory, options).unwrap();
    let (start, _) = sample::MEMORY_PAGES;
    let mut read = |first: u64, buffer: &mut [u8]| {
        for (number, page) in (first..).zip(buffer.chunks_exact_mut(4096)) {
            match number - start {
                0..256 => page.fill(7),
                _ => sample::noise(number, page),
            }
        }
        Ok(())
    };
    writer.store(ObjectId(0), start, 257, ZeroPages::Drop, &mut read).unwrap();
    writer.finish(&sample::job()).unwrap();
}

/// Reads everything.
fn read(directory: &Path) -> Result<(), ReadError> {
    Reader::open(directory)?.verify(Depth::Decoded, &|_| ()).map(|_| ())
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

#[test]
fn the_image_used_here_has_every_kind_of_byte() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path());
    let reader = Reader::open(directory.path()).unwrap();
    let codecs: Vec<_> = reader.chunks().iter().map(|chunk| chunk.codec).collect();
    assert_eq!(codecs, [Codec::Lz4, Codec::None]);
    assert!(reader.chunks()[1].offset > reader.chunks()[0].end());
    assert!(reader.sections().iter().any(|section| section.compressed));
    read(directory.path()).unwrap();
}

/// How many times as much is tried; the long form of these tests asks for a hundred.
const ROUNDS: &str = "RCKPT_TEST_ROUNDS";

fn rounds() -> u64 {
    std::env::var(ROUNDS).map_or(1, |rounds| rounds.parse().unwrap())
}

/// One bit of every byte, or, in the long form, every bit.
#[test]
fn a_flip_of_any_byte_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path());
    let mut flips = 0;
    for name in [IMAGE_FILE, PAGES_FILE] {
        let path = directory.path().join(name);
        let file = open(&path);
        let bytes = fs::read(&path).unwrap();
        for (place, byte) in bytes.iter().enumerate() {
            let bits = if rounds() > 1 { 0..8 } else { place % 8..place % 8 + 1 };
            for bit in bits {
                file.write_all_at(&[byte ^ (1 << bit)], to_u64(place)).unwrap();
                let error = read(directory.path()).expect_err(&format!("{name} byte {place}"));
                assert!(error.to_string().contains(name), "{error}");
                let fault = error.fault();
                assert!(matches!(fault, ReadFault::Damaged | ReadFault::Unsupported), "{error}");
                flips += 1;
            }
            file.write_all_at(&[*byte], to_u64(place)).unwrap();
        }
    }
    println!("{flips} flips, all found");
    read(directory.path()).unwrap();
}

/// In an image of 4 MiB, or, in the long form, 64 MiB.
#[test]
fn flips_in_a_larger_image_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let pages = if rounds() > 1 { 16_384 } else { 1024 };
    let mut job = sample::job();
    let (start, _) = sample::MEMORY_PAGES;
    let range = AddrRange::new(start * 4096, (start + pages) * 4096).unwrap();
    job.address_spaces[0].vmas[1].range = range;
    let mut writer = Writer::create(directory.path(), WriteOptions::default()).unwrap();
    let mut fill = |first: u64, buffer: &mut [u8]| {
        for (number, page) in (first..).zip(buffer.chunks_exact_mut(4096)) {
            sample::noise(number, page);
        }
        Ok(())
    };
    writer.store(ObjectId(0), start, pages, ZeroPages::Drop, &mut fill).unwrap();
    writer.finish(&job).unwrap();
    let whole = |depth| Reader::open(directory.path())?.verify(depth, &|_| ()).map(drop);
    whole(Depth::Decoded).unwrap();
    let flips = 20 * rounds();
    for flip in 0..flips {
        let random = checksum(&flip.to_le_bytes());
        let name = if flip % 8 == 0 { IMAGE_FILE } else { PAGES_FILE };
        let file = open(&directory.path().join(name));
        let place = random / 8 % file.metadata().unwrap().len();
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << (random % 8)], place).unwrap();
        let error = whole(Depth::Stored).expect_err(&format!("{name} byte {place}")).to_string();
        assert!(error.contains(name), "{error}");
        file.write_all_at(&byte, place).unwrap();
    }
    println!("{flips} flips in {} MiB, all found", pages >> 8);
    whole(Depth::Decoded).unwrap();
}

#[test]
fn verification_finds_flips_in_page_data_at_either_depth() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path());
    let path = directory.path().join(PAGES_FILE);
    let (file, bytes) = (open(&path), fs::read(&path).unwrap());
    let reader = Reader::open(directory.path()).unwrap();
    for depth in [Depth::Stored, Depth::Decoded] {
        reader.verify(depth, &|_| ()).unwrap();
        for place in (4096..bytes.len()).step_by(61) {
            file.write_all_at(&[bytes[place] ^ 0x10], to_u64(place)).unwrap();
            let error = reader.verify(depth, &|_| ()).unwrap_err();
            assert!(error.to_string().contains("page data chunk"), "{error}");
            file.write_all_at(&[bytes[place]], to_u64(place)).unwrap();
        }
    }
}

#[test]
fn truncation_at_any_length_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path());
    for name in [IMAGE_FILE, PAGES_FILE] {
        let path = directory.path().join(name);
        let bytes = fs::read(&path).unwrap();
        let file = open(&path);
        for length in (0..bytes.len()).rev() {
            file.set_len(to_u64(length)).unwrap();
            let error = read(directory.path()).expect_err(&format!("{name} cut to {length}"));
            assert_eq!(error.fault(), ReadFault::Damaged, "{error}");
        }
        fs::write(&path, &bytes).unwrap();
    }
}

#[test]
fn added_bytes_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path());
    for name in [IMAGE_FILE, PAGES_FILE] {
        let path = directory.path().join(name);
        let length = fs::metadata(&path).unwrap().len();
        for added in [1, 4096] {
            open(&path).set_len(length + added).unwrap();
            let error = read(directory.path()).unwrap_err();
            assert!(matches!(error, ReadError::MatchLength { .. }), "{error}");
        }
        open(&path).set_len(length).unwrap();
    }
    read(directory.path()).unwrap();
}

#[test]
fn missing_and_foreign_files_are_refused() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(one.path());
    write(two.path());
    let (own, other) = (one.path().join(PAGES_FILE), two.path().join(PAGES_FILE));
    let kept = fs::read(&own).unwrap();
    fs::copy(&other, &own).unwrap();
    assert!(matches!(read(one.path()), Err(ReadError::MatchGeneration { .. })));
    fs::write(&own, vec![0; kept.len()]).unwrap();
    assert!(matches!(read(one.path()), Err(ReadError::RecogniseFile { .. })));
    fs::remove_file(&own).unwrap();
    assert!(matches!(read(one.path()), Err(ReadError::FindFile { .. })));
    std::os::unix::fs::symlink(&other, &own).unwrap();
    assert!(matches!(read(one.path()), Err(ReadError::OpenFile { .. })));
    fs::remove_file(&own).unwrap();
    nix::unistd::mkfifo(&own, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(matches!(read(one.path()), Err(ReadError::TrustKind { .. })));
    fs::remove_file(&own).unwrap();
    fs::write(&own, kept).unwrap();
    read(one.path()).unwrap();
    fs::remove_file(one.path().join(IMAGE_FILE)).unwrap();
    assert!(matches!(read(one.path()), Err(ReadError::FindFile { .. })));
    let absent = read(&one.path().join("absent")).unwrap_err();
    assert_eq!(absent.fault(), ReadFault::Absent);
}

/// The sections of an image, to be put together again with sound checksums.
fn take_apart(directory: &Path) -> (GenerationId, Vec<(SectionEntry, Vec<u8>)>) {
    let bytes = fs::read(directory.join(IMAGE_FILE)).unwrap();
    let header = ImageHeader::decode(bytes.first_chunk().unwrap()).unwrap();
    let table = &bytes[IMAGE_HEADER_LENGTH..][..header.table_length()];
    let (entries, _) = table.as_chunks::<SECTION_ENTRY_LENGTH>();
    let sections = entries
        .iter()
        .map(|entry| SectionEntry::decode(entry).unwrap())
        .map(|entry| {
            let start = to_usize(entry.offset);
            (entry, bytes[start..start + to_usize(entry.stored_length)].to_vec())
        })
        .collect();
    (header.id, sections)
}

fn put_together(directory: &Path, id: GenerationId, sections: &mut [(SectionEntry, Vec<u8>)]) {
    let mut offset = first_section_offset(sections.len());
    let (mut table, mut contents) = (Vec::new(), Vec::new());
    for (entry, bytes) in sections.iter_mut() {
        entry.offset = offset;
        entry.stored_length = to_u64(bytes.len());
        entry.checksum = checksum(bytes);
        offset += entry.stored_length;
        table.extend_from_slice(&entry.encode());
        contents.extend_from_slice(bytes);
    }
    let count = sections.len().try_into().unwrap();
    let header = ImageHeader { id, file_length: offset, sections: count }.encode(&table);
    fs::write(directory.join(IMAGE_FILE), [header.as_slice(), &table, &contents].concat()).unwrap();
}

/// Calls `read` with the directories of many images that were changed at random and have sound
/// checksums nevertheless, as only malice makes them: nothing may panic on any.
pub(crate) fn forged(rounds: u64, mut read: impl FnMut(&Path)) {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path());
    let (id, sections) = take_apart(directory.path());
    let mut plain = sections.clone();
    for (entry, bytes) in &mut plain {
        if entry.compressed {
            let mut unpacked = vec![0; to_usize(entry.length)];
            assert!(unpack(bytes, &mut unpacked));
            *bytes = unpacked;
            entry.compressed = false;
        }
    }
    for round in 0..rounds {
        let random = |what: u64, below: usize| {
            to_usize(checksum(&[round.to_le_bytes(), what.to_le_bytes()].concat()) % to_u64(below))
        };
        let mut forged = plain.clone();
        let (entry, bytes) = &mut forged[random(0, sections.len())];
        for change in 0..=to_u64(random(1, 3)) {
            let place = random(10 * change + 2, bytes.len());
            let byte = random(10 * change + 3, 256).to_le_bytes()[0];
            match random(10 * change + 4, 4) {
                0 => bytes.insert(place, byte),
                1 if bytes.len() > 1 => drop(bytes.remove(place)),
                2 => bytes[place] = bytes[place].wrapping_add(1),
                _ => bytes[place] = byte,
            }
        }
        entry.length = to_u64(bytes.len());
        put_together(directory.path(), id, &mut forged);
        read(directory.path());
    }
}

#[test]
fn forged_records_never_panic_a_reader() {
    let (mut taken, mut refused) = (0, 0);
    forged(1500, |directory| match read(directory) {
        Ok(()) => taken += 1,
        Err(_) => refused += 1,
    });
    // Many changes make another sound job; most do not.
    assert!(taken > 100 && refused > 100, "{taken} taken, {refused} refused");
}

/// Checksums of the sample's sections. Whoever changes a record changes the format, and notices here:
/// once a version is released its sections stay as they are, and a changed one needs a new version.
/// Before that, the new checksum goes here (and so does one for a change of the sample itself).
const SAMPLE_CHECKSUMS: &str = "\
job 1: e000e467385894d4
processes 1: 4ee52b775b8ab422
address spaces 1: 38be3652e978d59e
descriptor tables 1: 7d0d517170603674
directories 1: 3c499a6e7a7216da
open files 1: 62f9c40df7a66cef
inodes 1: 86e2dbdd843245e4
pipes 1: 77ac232272860133
outputs 1: ff10bfa70eeb4f9a
page index 1: 2d824b93fc5fc73f
sockets 1: cb5f3d314672db0c
terminals 1: 4fa212e20e1b6806
interprocess communication 1: 7103dc79b948dbf0
";

#[test]
fn the_bytes_of_every_section_are_those_of_its_version() {
    let id = GenerationId([0; 16]);
    let files = vec![PagesFile { id, length: 4096 }];
    let index = PageIndex { hash_seed: 1, files, chunks: Vec::new() };
    let line = |(kind, version)| {
        let bytes = encode_section(kind, &sample::job(), &index).unwrap();
        format!("{kind} {version}: {:016x}\n", checksum(&bytes))
    };
    let found: String = SECTIONS.map(line).concat();
    assert_eq!(found, SAMPLE_CHECKSUMS, "the format changed: see docs/FORMAT.md");
}

/// A plain section of other bytes.
fn other_section(kind: u32, version: u32, critical: bool) -> (SectionEntry, Vec<u8>) {
    let entry = SectionEntry {
        kind: SectionKind(kind),
        version,
        critical,
        compressed: false,
        offset: 0,
        stored_length: 0,
        length: 5,
        checksum: 0,
    };
    (entry, b"other".to_vec())
}

/// Changes an image's sections, with sound checksums, and expects `expected` of the reader.
fn changed(expected: &str, change: fn(&mut Vec<(SectionEntry, Vec<u8>)>)) {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path());
    let (id, mut sections) = take_apart(directory.path());
    change(&mut sections);
    put_together(directory.path(), id, &mut sections);
    let said = read(directory.path()).map_err(|error| {
        let image = directory.path().join(IMAGE_FILE);
        error.to_string().replace(image.to_str().unwrap(), "IMAGE")
    });
    match expected {
        "" => assert_eq!(said, Ok(())),
        _ => assert_eq!(said, Err(expected.to_owned())),
    }
}

#[test]
fn sections_that_are_not_understood_are_refused_where_that_matters() {
    changed("", |_| ());
    changed("", |sections| sections.push(other_section(99, 1, false)));
    changed(
        "IMAGE has a critical section \"number 99\" in version 1, which this rckpt does not \
         understand: use the rckpt that wrote it, or a newer one",
        |sections| sections.push(other_section(99, 1, true)),
    );
    changed(
        "IMAGE has a critical section \"inodes\" in version 2, which this rckpt does not \
         understand: use the rckpt that wrote it, or a newer one",
        |sections| sections[6].0.version = 2,
    );
    changed("IMAGE has no section \"pipes\"", |sections| drop(sections.remove(7)));
    changed("IMAGE has two sections \"job\"", |sections| sections.push(sections[0].clone()));
}

#[test]
fn hostile_sections_are_refused_without_great_allocations() {
    let entry = |sections: &mut Vec<(SectionEntry, Vec<u8>)>, bytes: &[u8]| {
        let (entry, contents) = &mut sections[1];
        entry.compressed = false;
        entry.length = to_u64(bytes.len());
        *contents = bytes.to_vec();
    };
    let refused = |bytes: &[u8]| {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path());
        let (id, mut sections) = take_apart(directory.path());
        entry(&mut sections, bytes);
        put_together(directory.path(), id, &mut sections);
        let error = read(directory.path()).unwrap_err();
        assert!(error.to_string().contains("section \"processes\""), "{error}");
    };
    // Counts that nothing follows: 2^64 - 1, and more bytes than a count can have.
    refused(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
    refused(&[0xff; 64]);
    refused(&[]);
    // No process, and something after that.
    refused(&[0, 0]);
    changed(
        "section \"processes\" of IMAGE is damaged: its declared length is impossible",
        |sections| sections[1].0.length = 1 << 40,
    );
    changed(
        "section \"processes\" of IMAGE is damaged: its declared length is impossible",
        |sections| {
            sections[1].0.compressed = true;
            sections[1].0.length = to_u64(sections[1].1.len()) * 255 + 65;
        },
    );
    changed(
        "section \"processes\" of IMAGE does not decompress to its declared length",
        |sections| {
            sections[1].0.compressed = true;
            sections[1].0.length += 1;
        },
    );
}

/// Replaces the page index by a changed one, with sound checksums.
fn change_index(directory: &Path, change: impl Fn(&mut PageIndex)) {
    let (id, mut sections) = take_apart(directory);
    let reader = Reader::open(directory).unwrap();
    let length = fs::metadata(directory.join(PAGES_FILE)).unwrap().len();
    let mut index = PageIndex {
        hash_seed: reader.hash_seed(),
        files: vec![PagesFile { id, length }],
        chunks: reader.chunks().to_vec(),
    };
    change(&mut index);
    let bytes = encode_section(SectionKind::PAGE_INDEX, &sample::job(), &index).unwrap();
    let place = SECTIONS.iter().position(|(kind, _)| *kind == SectionKind::PAGE_INDEX).unwrap();
    let (entry, contents) = &mut sections[place];
    entry.compressed = false;
    entry.length = to_u64(bytes.len());
    *contents = bytes;
    put_together(directory, id, &mut sections);
}

#[test]
fn hostile_page_indexes_are_refused() {
    let refused = |expected: &str, change: fn(&mut PageIndex)| {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path());
        change_index(directory.path(), change);
        let error = read(directory.path()).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused("names no file", |index| index.files.clear());
    refused("of another checkpoint as its own", |index| index.files[0].id.0[0] ^= 1);
    refused("names a file of page data twice", |index| index.files.push(index.files[0]));
    refused("chunk 1 of", |index| index.chunks[1].file = 1);
    refused("declared length is impossible", |index| index.chunks[0].pages = 0);
    refused("declared length is impossible", |index| index.chunks[0].pages = u32::MAX);
    refused("declared length is impossible", |index| index.chunks[0].stored_length = 0);
    refused("declared length is impossible", |index| index.chunks[0].stored_length = 1 << 30);
    refused("declared length is impossible", |index| index.chunks[1].codec = Codec::Lz4);
    refused("reaches beyond its file", |index| index.chunks[1].offset = u64::MAX - 4095);
    refused("reaches beyond its file", |index| index.chunks[0].offset = 0);
    refused("before the end of the chunk before it", |index| index.chunks[1].offset = 4096);
    refused("does not start where", |index| index.chunks.swap(0, 1));
    refused("does not start where", |index| drop(index.chunks.remove(0)));
    refused("end before their file does", |index| drop(index.chunks.pop()));
    refused("a run of pages lies outside of it", |index| index.chunks[1].runs[0].pages = 9);
    refused("no private mapping is there", |index| index.chunks[1].runs[0].first_page = 1);
    refused("some are stored twice", |index| {
        index.chunks[1].runs[0].first_page = index.chunks[0].runs[0].first_page;
    });
    refused("chunk 0 of", |index| index.chunks[0].checksum ^= 1);
    refused("chunk 0 of", |index| index.chunks[0].stored_checksum ^= 1);
    refused("does not decompress", |index| {
        index.chunks[0].pages = 255;
        index.chunks[0].runs[0].pages = 255;
    });
}

#[test]
fn page_data_of_an_earlier_generation_is_read_where_it_is_named() {
    let (parent, child) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(parent.path());
    write(child.path());
    let (parent_id, _) = take_apart(parent.path());
    let earlier = Reader::open(parent.path()).unwrap();
    let pages = parent.path().join(PAGES_FILE);
    let length = fs::metadata(&pages).unwrap().len();
    let name = child.path().join(parent_pages_file(parent_id));
    change_index(child.path(), |index| {
        index.files.push(PagesFile { id: parent_id, length });
        // One page of the parent's first chunk, from its middle, in a place of its own.
        let mut chunk = earlier.chunks()[0].clone();
        chunk.file = 1;
        chunk.runs.truncate(1);
        chunk.runs[0].first_page += 1000;
        chunk.runs[0].pages = 1;
        chunk.runs[0].slot = 100;
        index.chunks.push(chunk);
    });
    assert!(matches!(Reader::open(child.path()), Err(ReadError::FindFile { .. })));
    fs::hard_link(&pages, &name).unwrap();
    let reader = Reader::open(child.path()).unwrap();
    let chunk = reader.chunks().last().unwrap();
    let mut buffer = Vec::new();
    let bytes = reader.decode(chunk, &mut buffer).unwrap();
    assert!(chunk.runs[0].bytes_in(bytes) == [7; 4096]);
    reader.verify(Depth::Stored, &|_| ()).unwrap();
    // Damage in the parent's data is found, and named.
    open(&pages).write_all_at(&[0x10], 4100).unwrap();
    let error = reader.verify(Depth::Stored, &|_| ()).unwrap_err().to_string();
    assert!(
        error.contains("chunk 2 of") && error.contains(&parent_pages_file(parent_id)),
        "{error}"
    );
}
