//! The restorer blob as an executable file: where it goes in a target's memory, and the ELF image
//! that puts it there together with its script.
//!
//! Pure: it computes addresses and bytes. What the script says is none of its business.

use crate::model::address::{AddrRange, RemoteAddr};
use crate::model::number::{PAGE_SIZE, page_align_up, to_u64, to_usize};

#[path = "../restorer_blob/layout.rs"]
pub mod layout;

/// The blob's code, flat and position-independent, as build.rs made it.
const CODE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/restorer_blob.bin"));

/// Offset of its entry point in [`CODE`].
const ENTRY: u64 = include!(concat!(env!("OUT_DIR"), "/restorer_blob_entry.rs"));

/// End of a process's memory on x86_64 with four-level page tables.
pub const TASK_SIZE: u64 = 0x7fff_ffff_f000;

/// Lowest address that the blob is put at: above what `vm.mmap_min_addr` can forbid, and above programs
/// that are linked to fixed addresses with the heaps that the kernel puts behind them, up to 1 GiB away.
/// rckpt is such a program, and has blobs beside itself.
const LOWEST: u64 = 0x1_0000_0000;

/// Highest address that the blob reaches: the kernel puts the stack, the vDSO and, below them, what
/// is mapped without an address of a freshly executed program above this.
const HIGHEST: u64 = 0x7f00_0000_0000;

/// Distance kept from every mapping, so that a stack that grows down keeps its guard gap (256 pages).
const CLEARANCE: u64 = 4 << 20;

/// Where a process's blob lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Code and script.
    pub range: AddrRange,
    /// First address of the script, page-aligned: right after the code.
    pub script: u64,
    /// Address that a task starts at.
    pub entry: u64,
}

impl Placement {
    /// Where a blob with `script_bytes` of script goes if its code starts at `base`.
    #[must_use]
    pub fn at(base: u64, script_bytes: u64) -> Self {
        let script = base + page_align_up(to_u64(CODE.len()));
        let end = script + page_align_up(script_bytes);
        let range = AddrRange::new(base, end).expect("a script has a length");
        Self { range, script, entry: base + ENTRY }
    }
}

/// Finds a hole between `ranges` (ascending) for a blob with `script_bytes` of script. `None` when the
/// target's memory leaves none.
#[must_use]
pub fn place(ranges: &[AddrRange], script_bytes: u64) -> Option<Placement> {
    let length = Placement::at(0, script_bytes).range.len();
    Some(Placement::at(hole(ranges, length)?, script_bytes))
}

/// Where `length` bytes can lie, well clear of all `ranges` (ascending).
#[must_use]
pub fn hole(ranges: &[AddrRange], length: u64) -> Option<u64> {
    let span = length + 2 * CLEARANCE;
    let mut candidate = LOWEST - CLEARANCE;
    for range in ranges {
        if range.start.0 >= candidate + span {
            break;
        }
        candidate = candidate.max(range.end.0);
    }
    (candidate + span <= HIGHEST).then_some(candidate + CLEARANCE)
}

/// A part of [`executable`]'s file, and where it is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where.
    pub range: AddrRange,
    /// Offset in the file.
    pub offset: u64,
    /// Whether it is code, rather than what is read and written.
    pub executable: bool,
}

/// The two parts of [`executable`]'s file: code and script.
#[must_use]
pub fn segments(placement: &Placement) -> [Segment; 2] {
    let AddrRange { start, end } = placement.range;
    let script = RemoteAddr(placement.script);
    let code = AddrRange { start, end: script };
    let offset = PAGE_SIZE + page_align_up(to_u64(CODE.len()));
    [
        Segment { range: code, offset: PAGE_SIZE, executable: true },
        Segment { range: AddrRange { start: script, end }, offset, executable: false },
    ]
}

/// Offset from its start of a `syscall` instruction in the blob's code.
#[must_use]
pub fn system_call_instruction() -> Option<u64> {
    CODE.windows(2).position(|bytes| bytes == [0x0f, 0x05]).map(to_u64)
}

const ELF_HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;

/// An executable file that, once executed, has the code at `placement.range.start` and `script` at
/// `placement.script`, readable and writable; the script is zero-padded to the end of the range.
#[must_use]
pub fn executable(placement: &Placement, script: &[u8]) -> Vec<u8> {
    const EXECUTE: u32 = 1;
    const WRITE: u32 = 2;
    const READ: u32 = 4;
    const PT_LOAD: u32 = 1;
    const PT_GNU_STACK: u32 = 0x6474_e551;
    let code_offset = PAGE_SIZE;
    let code_length = to_u64(CODE.len());
    let script_offset = code_offset + page_align_up(code_length);
    let script_length = placement.range.end.0 - placement.script;

    let mut file = Vec::with_capacity(to_usize(script_offset + script_length));
    file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    push16(&mut file, 2); // ET_EXEC
    push16(&mut file, 62); // EM_X86_64
    push32(&mut file, 1); // EV_CURRENT
    push64(&mut file, placement.entry);
    push64(&mut file, to_u64(ELF_HEADER_SIZE)); // e_phoff
    push64(&mut file, 0); // e_shoff
    push32(&mut file, 0); // e_flags
    push16(&mut file, 64); // e_ehsize
    push16(&mut file, 56); // e_phentsize
    push16(&mut file, 3); // e_phnum
    push16(&mut file, 0); // e_shentsize
    push16(&mut file, 0); // e_shnum
    push16(&mut file, 0); // e_shstrndx
    let mut segment = |kind, flags, offset, address, length| {
        push32(&mut file, kind);
        push32(&mut file, flags);
        push64(&mut file, offset);
        push64(&mut file, address); // p_vaddr
        push64(&mut file, address); // p_paddr
        push64(&mut file, length); // p_filesz
        push64(&mut file, length); // p_memsz
        push64(&mut file, PAGE_SIZE);
    };
    segment(PT_LOAD, READ | EXECUTE, code_offset, placement.range.start.0, code_length);
    segment(PT_LOAD, READ | WRITE, script_offset, placement.script, script_length);
    segment(PT_GNU_STACK, READ | WRITE, 0, 0, 0);
    assert_eq!(file.len(), ELF_HEADER_SIZE + 3 * PROGRAM_HEADER_SIZE);

    file.resize(to_usize(code_offset), 0);
    file.extend_from_slice(CODE);
    file.resize(to_usize(script_offset), 0);
    file.extend_from_slice(script);
    file.resize(to_usize(script_offset + script_length), 0);
    file
}

fn push16(file: &mut Vec<u8>, value: u16) {
    file.extend_from_slice(&value.to_le_bytes());
}

fn push32(file: &mut Vec<u8>, value: u32) {
    file.extend_from_slice(&value.to_le_bytes());
}

fn push64(file: &mut Vec<u8>, value: u64) {
    file.extend_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::{
        CLEARANCE, LOWEST, Placement, executable, place, segments, system_call_instruction,
    };
    use crate::model::address::AddrRange;

    fn range(start: u64, end: u64) -> AddrRange {
        AddrRange::new(start, end).unwrap()
    }

    #[test]
    fn the_blob_keeps_clear_of_every_mapping() {
        let check = |ranges: &[AddrRange], expected: Option<u64>| {
            let found = place(ranges, 4096).map(|placement| placement.range.start.0);
            assert_eq!(found, expected, "{ranges:?}");
        };
        check(&[], Some(LOWEST));
        check(&[range(0x40_0000, 0x50_0000)], Some(LOWEST));
        check(&[range(0x40_0000, LOWEST)], Some(LOWEST + CLEARANCE));
        check(
            &[range(LOWEST, LOWEST + 0x1000), range(LOWEST + 0x1000 + CLEARANCE, 0x2_0000_0000)],
            Some(0x2_0000_0000 + CLEARANCE),
        );
        check(&[range(0x1000, 0x7fff_0000_0000)], None);
    }

    #[test]
    fn the_executable_maps_code_and_script_where_they_belong() {
        let placement = Placement::at(0x1234_0000, 5000);
        let file = executable(&placement, &[7; 5000]);
        let elf = goblin::elf::Elf::parse(&file).unwrap();
        assert_eq!(elf.entry, placement.entry);
        let load = &elf.program_headers[1];
        assert_eq!(load.p_vaddr, placement.script);
        assert_eq!(load.p_vaddr + load.p_memsz, placement.range.end.0);
        assert_eq!(file[load.file_range()][4999..5001], [7, 0]);
        for (header, segment) in elf.program_headers.iter().zip(segments(&placement)) {
            assert_eq!(header.p_vaddr, segment.range.start.0);
            assert_eq!(header.p_offset, segment.offset);
            assert_eq!(header.is_executable(), segment.executable);
            assert!(header.p_vaddr + header.p_memsz <= segment.range.end.0);
        }
        assert!(system_call_instruction().is_some());
    }
}
