//! The GNU build id of an ELF file: what tells one build of a library from another, whatever their
//! times say. Reads only headers and notes; a file that is no ELF has none.

use std::fs::File;
use std::io;
use std::io::ErrorKind::{InvalidInput, UnexpectedEof};
use std::os::unix::fs::FileExt;

use goblin::container::{Container, Ctx};
use goblin::elf::header::Header;
use goblin::elf::program_header::{PT_NOTE, ProgramHeader};

use crate::model::id::Bytes;
use crate::model::number::{to_u64, to_usize};

/// `NT_GNU_BUILD_ID` (include/uapi/linux/elf.h calls the type 3 of owner "GNU").
const NT_GNU_BUILD_ID: u32 = 3;

/// Bytes of the header of a 64-bit ELF file.
const HEADER_SIZE: usize = 64;

/// Notes are a few hundred bytes; a longer segment comes from a file that is not what it seems.
const LONGEST_NOTES: u64 = 1 << 16;

/// Reads the build id. `None` when the file has none, or is no 64-bit ELF.
///
/// # Errors
/// When the file cannot be read.
pub fn build_id(file: &File) -> io::Result<Option<Bytes>> {
    let Some((header, context)) = read_part(file, 0, HEADER_SIZE)?.as_deref().and_then(parse)
    else {
        return Ok(None);
    };
    let count = usize::from(header.e_phnum);
    let size = usize::from(header.e_phentsize) * count;
    let Some(table) = read_part(file, header.e_phoff, size)? else { return Ok(None) };
    let Ok(segments) = ProgramHeader::parse(&table, 0, count, context) else { return Ok(None) };
    let is_notes = |it: &&ProgramHeader| it.p_type == PT_NOTE && it.p_filesz <= LONGEST_NOTES;
    for segment in segments.iter().filter(is_notes) {
        let notes = read_part(file, segment.p_offset, to_usize(segment.p_filesz))?;
        let found = notes.and_then(|notes| find_build_id(&notes, segment.p_align));
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn parse(start: &[u8]) -> Option<(Header, Ctx)> {
    let header = goblin::elf::Elf::parse_header(start).ok()?;
    let context = Ctx::new(Container::Big, header.endianness().ok()?);
    Some((header, context))
}

/// A part of a file; `None` when the file has no such part.
fn read_part(file: &File, offset: u64, length: usize) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; length];
    match file.read_exact_at(&mut bytes, offset) {
        Ok(()) => Ok(Some(bytes)),
        // A place that no file can have is refused as an invalid argument.
        Err(error) if matches!(error.kind(), UnexpectedEof | InvalidInput) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Walks the notes of a segment: name size, descriptor size, type, name, descriptor, the latter two
/// padded to the alignment.
fn find_build_id(mut notes: &[u8], alignment: u64) -> Option<Bytes> {
    let alignment = if alignment == 8 { 8 } else { 4 };
    loop {
        let (name_size, rest) = take_word(notes)?;
        let (descriptor_size, rest) = take_word(rest)?;
        let (kind, rest) = take_word(rest)?;
        let name = rest.get(..to_usize(u64::from(name_size)))?;
        let descriptor_start = padded(12 + u64::from(name_size), alignment);
        let descriptor_end = descriptor_start + u64::from(descriptor_size);
        let descriptor = notes.get(to_usize(descriptor_start)..to_usize(descriptor_end))?;
        if kind == NT_GNU_BUILD_ID && name == b"GNU\0" {
            return Some(Bytes::from(descriptor));
        }
        let next = padded(descriptor_end, alignment).min(to_u64(notes.len()));
        notes = &notes[to_usize(next)..];
    }
}

fn take_word(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (word, rest) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*word), rest))
}

const fn padded(offset: u64, alignment: u64) -> u64 {
    offset.next_multiple_of(alignment)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [name.len(), descriptor.len()] {
            bytes.extend(u32::try_from(word).unwrap().to_le_bytes());
        }
        bytes.extend(kind.to_le_bytes());
        for part in [name, descriptor] {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn the_note_is_found_behind_others() {
        let mut notes = note(b"GNU\0", 1, &[1; 16]);
        notes.extend(note(b"stapsdt\0", 3, b"xyz"));
        notes.extend(note(b"GNU\0", 3, &[7; 20]));
        assert_eq!(find_build_id(&notes, 4), Some(Bytes::from(&[7; 20][..])));
    }

    #[test]
    fn damaged_notes_have_none() {
        let notes = note(b"GNU\0", 3, &[7; 20]);
        for length in 0..notes.len() {
            assert_eq!(find_build_id(&notes[..length], 4), None, "{length}");
        }
        assert_eq!(find_build_id(&[0xff; 64], 4), None);
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_none() {
        assert!(build_id(&File::open("/").unwrap()).is_err());
        assert!(build_id(&File::open("/bin/sh").unwrap()).is_ok_and(|found| found.is_some()));
    }

    #[test]
    fn a_text_has_none() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"#!/bin/sh\n", 0).unwrap();
        assert_eq!(build_id(&file).unwrap(), None);
    }
}
