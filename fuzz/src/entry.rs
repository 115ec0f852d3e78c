//! What the fuzz targets do with the bytes that they are given. Every function here must return,
//! whatever the bytes are, without a panic and with no more memory than a multiple of theirs.
//!
//! The same functions are called by `tests/hostile.rs`, which is part of every run of the tests.
//!
//! Images are the interesting part. Random bytes would never get past the checksums, so what is
//! given is taken for changes of a sound image's sections (or for a section as a whole), and the
//! image is put together again with checksums that match, as only malice makes them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rckpt::image::codec::{checksum, unpack};
use rckpt::image::format::{
    IMAGE_FILE, IMAGE_HEADER_LENGTH, ImageHeader, PAGES_FILE, PAGES_HEADER_LENGTH, PagesHeader,
    SECTION_ENTRY_LENGTH, SectionEntry, first_section_offset,
};
use rckpt::image::reader::Trust;
use rckpt::image::section::SectionKind;
use rckpt::image::{Reader, core_file};
use rckpt::job::control::discovery::Name;
use rckpt::job::control::protocol::{self, Reply, Request};
use rckpt::model::job::Job;
use rckpt::model::number::{to_u64, to_usize};
use rckpt::restore::blob;
use rckpt::restore::files::{self, Choices, Policy};
use rckpt::restore::plan::{self, Environment};

/// How far an image got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reached {
    /// It was refused.
    Refused,
    /// It was read.
    Read,
    /// A restore was planned.
    Planned,
}

/// The raw parts: headers and entries of the table, as they come.
pub fn header(data: &[u8]) {
    if let Some(bytes) = data.first_chunk::<IMAGE_HEADER_LENGTH>()
        && let Ok(header) = ImageHeader::decode(bytes)
    {
        let rest = &data[IMAGE_HEADER_LENGTH..];
        let table = &rest[..header.table_length().min(rest.len())];
        let sound = ImageHeader::check(bytes, table).is_ok();
        assert!(!sound || header.encode(table) == *bytes);
    }
    if let Some(bytes) = data.first_chunk::<SECTION_ENTRY_LENGTH>()
        && let Some(entry) = SectionEntry::decode(bytes)
    {
        assert_eq!(&entry.encode(), bytes);
    }
    if let Some(bytes) = data.first_chunk::<PAGES_HEADER_LENGTH>()
        && let Ok(header) = PagesHeader::decode(bytes)
    {
        assert_eq!(&header.encode(), bytes);
    }
}

/// What comes over the control socket, and the names under which one listens.
pub fn control(data: &[u8]) {
    let framed = [b"rckpt\0".as_slice(), &protocol::VERSION.to_le_bytes(), data].concat();
    for message in [data, &framed] {
        if let Ok(request) = protocol::decode::<Request>(message) {
            let again = protocol::encode(&request).map(|message| protocol::decode(&message));
            assert_eq!(again, Ok(Ok(request)));
        }
        if let Ok(reply) = protocol::decode::<Reply>(message) {
            let again = protocol::encode(&reply).map(|message| protocol::decode(&message));
            assert_eq!(again, Ok(Ok(reply)));
        }
    }
    if let Some(name) = Name::parse(data) {
        assert_eq!(Name::parse(&name.to_bytes()), Some(name));
    }
}

/// A sound image that is changed again and again, and the directory where it is put together.
pub struct Bench {
    directory: tempfile::TempDir,
    header: ImageHeader,
    sections: Vec<(SectionEntry, Vec<u8>)>,
}

impl Bench {
    /// Takes the image in `golden` apart.
    pub fn new(golden: &Path) -> Self {
        let memory = Path::new("/dev/shm");
        let home = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let directory = tempfile::tempdir_in(home).expect("make a directory");
        for name in [IMAGE_FILE, PAGES_FILE] {
            let copy = directory.path().join(name);
            fs::copy(golden.join(name), &copy).expect("copy the golden image");
            fs::set_permissions(copy, Permissions::from_mode(0o600)).expect("make it mine");
        }
        let bytes = fs::read(golden.join(IMAGE_FILE)).expect("read the golden image");
        let header = ImageHeader::decode(bytes.first_chunk().expect("it has a header"))
            .expect("the golden image is sound");
        let table = &bytes[IMAGE_HEADER_LENGTH..][..header.table_length()];
        let (entries, _) = table.as_chunks::<SECTION_ENTRY_LENGTH>();
        let sections = entries
            .iter()
            .map(|entry| {
                let mut entry = SectionEntry::decode(entry).expect("the golden image is sound");
                let start = to_usize(entry.offset);
                let stored = to_usize(entry.stored_length);
                let mut plain = vec![0; to_usize(entry.length)];
                match entry.compressed {
                    true => assert!(unpack(&bytes[start..start + stored], &mut plain)),
                    false => plain.copy_from_slice(&bytes[start..start + stored]),
                }
                entry.compressed = false;
                (entry, plain)
            })
            .collect();
        Self { directory, header, sections }
    }

    /// Has the image changed as `data` says, five bytes a change, and reads it.
    pub fn changed(&self, data: &[u8]) -> Reached {
        let mut sections = self.sections.clone();
        let (changes, _) = data.as_chunks::<5>();
        for [section, operation, low, high, value] in changes {
            let count = sections.len();
            let (_, bytes) = &mut sections[usize::from(*section) % count];
            change(bytes, *operation, u16::from_le_bytes([*low, *high]), *value);
        }
        self.put(sections);
        self.read(data.first().copied().unwrap_or_default())
    }

    /// Has one section replaced by what follows the first byte of `data`, which chooses it.
    pub fn replaced(&self, data: &[u8]) -> Reached {
        let Some((choice, content)) = data.split_first() else { return Reached::Refused };
        let mut sections = self.sections.clone();
        let count = sections.len();
        sections[usize::from(*choice) % count].1 = content.to_vec();
        self.put(sections);
        self.read(*choice)
    }

    /// The same with the page index.
    pub fn with_index(&self, content: &[u8]) -> Reached {
        let mut sections = self.sections.clone();
        for (entry, bytes) in &mut sections {
            if entry.kind == SectionKind::PAGE_INDEX {
                *bytes = content.to_vec();
            }
        }
        self.put(sections);
        self.read(0)
    }

    /// The section's own content, to begin with.
    pub fn section(&self, kind: SectionKind) -> &[u8] {
        let found = self.sections.iter().find(|(entry, _)| entry.kind == kind);
        found.map_or(&[], |(_, bytes)| bytes)
    }

    /// How many bytes the sections have.
    pub fn length(&self) -> usize {
        self.sections.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    fn put(&self, mut sections: Vec<(SectionEntry, Vec<u8>)>) {
        let mut offset = first_section_offset(sections.len());
        let (mut table, mut contents) = (Vec::new(), Vec::new());
        for (entry, bytes) in &mut sections {
            entry.offset = offset;
            entry.stored_length = to_u64(bytes.len());
            entry.length = entry.stored_length;
            entry.checksum = checksum(bytes);
            offset += entry.stored_length;
            table.extend_from_slice(&entry.encode());
            contents.extend_from_slice(bytes);
        }
        let header = ImageHeader { file_length: offset, ..self.header }.encode(&table);
        let image = [header.as_slice(), &table, &contents].concat();
        fs::write(self.directory.path().join(IMAGE_FILE), image).expect("write the image");
    }

    /// Reads the image, and does with it all that can be done without starting anything.
    fn read(&self, choice: u8) -> Reached {
        let Ok(reader) = Reader::open_trusting(self.directory.path(), Trust::Own) else {
            return Reached::Refused;
        };
        // As `verify` does it, but without threads, which would take longer than all the rest.
        let mut buffer = Vec::new();
        if reader.chunks().iter().any(|chunk| reader.decode(chunk, &mut buffer).is_err()) {
            return Reached::Refused;
        }
        if choice & 0x10 != 0 {
            for process in &reader.job().processes {
                let file = tempfile::tempfile_in(self.directory.path()).expect("make a file");
                // Whether there is one to be made does not matter here.
                drop(core_file::write(&reader, process.pid, &file));
            }
        }
        if plans(&reader, choice) { Reached::Planned } else { Reached::Read }
    }
}

/// Changes one section's bytes.
fn change(bytes: &mut Vec<u8>, operation: u8, place: u16, value: u8) {
    let at = usize::from(place) % bytes.len().max(1);
    match operation % 12 {
        _ if bytes.is_empty() => bytes.push(value),
        // Mostly small steps: what goes far off is seldom taken for a record.
        0..4 => bytes[at] = value % 8,
        4..6 => bytes[at] = bytes[at].wrapping_add(1),
        6 => bytes[at] = bytes[at].wrapping_sub(1),
        7 => bytes[at] = value,
        8 => bytes.insert(at, value),
        9 => drop(bytes.remove(at)),
        // A piece of it once more.
        10 => {
            let end = bytes.len().min(at + usize::from(value));
            let piece = bytes[at..end].to_vec();
            bytes.splice(at..at, piece);
        }
        // A number as great as numbers can be, or nearly.
        _ => {
            let number = u64::MAX >> (value % 64);
            bytes.splice(at..=at, varint(number));
        }
    }
}

/// A number as postcard encodes it.
fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
    bytes
}

/// Plans a restore on a machine where as much as possible is as it was; whether it would be tried.
fn plans(reader: &Reader, choice: u8) -> bool {
    let job = reader.job();
    let hashes = |chunk: usize| {
        let mut hashes = Vec::new();
        match reader.chunks().get(chunk).map(|chunk| reader.hashes(chunk, &mut hashes)) {
            Some(Ok(())) => hashes,
            _ => Vec::new(),
        }
    };
    let environment = environment(job, choice);
    let moved = vec![(b"/home".as_slice().into(), b"/nowhere".as_slice().into())];
    let Ok(plan) = plan::plan(job, (reader.chunks(), &hashes), &environment, moved.clone()) else {
        return false;
    };
    for process in plan.processes.iter().flatten() {
        assert!(blob::executable(&process.placement, &[0; 64]).len() > 64);
    }
    let choices = Choices {
        policy: Policy::Rollback,
        moved,
        displaced: PathBuf::from("/nowhere/displaced"),
        job_directory: PathBuf::from("/nowhere"),
    };
    // This only looks.
    drop(files::decide(job, &choices));
    true
}

fn environment(job: &Job, choice: u8) -> Environment {
    let credentials = job.processes.first().map(|process| process.credentials.clone());
    let credentials = credentials.unwrap_or_default();
    let another_kernel = choice & 0x20 != 0;
    let mut vdso = job.vdso.bytes.clone();
    if let (true, Some(byte)) = (another_kernel, vdso.last_mut()) {
        *byte ^= 1;
    }
    Environment {
        machine: job.machine.clone(),
        uid: credentials.uids[0],
        gid: credentials.gids[0],
        groups: credentials.groups,
        capabilities: [u64::MAX; 5],
        nodes: vec![0xff; 8],
        may_choose_pids: choice & 0x40 != 0,
        may_raise_limits: true,
        taken: Vec::new(),
        terminals_taken: false,
        vdso,
        vdso_span: 0x6000,
        timer_ids: choice & 0x80 != 0,
        available_memory: u64::MAX,
        limits: Vec::new(),
        clocks: job.clocks,
    }
}
