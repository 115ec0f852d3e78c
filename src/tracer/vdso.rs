//! Room for code in a process: the padding at the end of its vDSO, which nothing executes or reads.
//!
//! The vDSO is an ELF image that fills whole pages, and its last page is never full. A write by a
//! tracer gives the process its own copy of that page. Pure functions of the image's bytes.

use goblin::elf::Elf;
use goblin::elf::section_header::SHT_NOBITS;

/// The padding starts at a multiple of this, so that code lies as compilers like it.
const ALIGNMENT: usize = 16;

/// Offset from which the image is padding, to its end. `None` when it is no ELF image, or when
/// there is none.
#[must_use]
pub fn padding(image: &[u8]) -> Option<usize> {
    let elf = Elf::parse(image).ok()?;
    let segments = elf.program_headers.iter().map(|header| (header.p_offset, header.p_filesz));
    let sections = elf
        .section_headers
        .iter()
        .filter(|header| header.sh_type != SHT_NOBITS)
        .map(|header| (header.sh_offset, header.sh_size));
    let header = &elf.header;
    let tables = [
        (header.e_phoff, u64::from(header.e_phnum) * u64::from(header.e_phentsize)),
        (header.e_shoff, u64::from(header.e_shnum) * u64::from(header.e_shentsize)),
    ];
    let mut end = 0;
    for (offset, size) in segments.chain(sections).chain(tables) {
        end = end.max(usize::try_from(offset.checked_add(size)?).ok()?);
    }
    let start = end.checked_next_multiple_of(ALIGNMENT)?;
    (start < image.len()).then_some(start)
}

#[cfg(test)]
mod tests {
    use nix::unistd::Pid;

    use super::*;
    use crate::model::number::to_usize;
    use crate::sys::memory::RemoteMemory;
    use crate::sys::procfs;

    #[test]
    fn the_vdso_of_this_machine_has_room() {
        let me = Pid::this();
        let mappings = procfs::mappings(me).expect("own mappings");
        let vdso = mappings.iter().find(|mapping| mapping.path == b"[vdso]").expect("a vDSO");
        let mut image = vec![0; to_usize(vdso.range.len())];
        let memory = RemoteMemory::open(me).expect("own memory");
        memory.read(vdso.range.start, &mut image).expect("own vDSO");
        let start = padding(&image).expect("padding");
        assert!(image.len() - start >= crate::tracer::stub::SLOT_SIZE);
        assert!(image[start..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn garbage_has_no_padding() {
        assert_eq!(padding(&[0; 4096]), None);
        assert_eq!(padding(b"\x7fELF"), None);
    }
}
