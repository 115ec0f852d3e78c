//! What becomes of a job's vDSO on a kernel that has another one. The kernel's own goes to a free place;
//! where the recorded one was, ordinary memory holds its image, and each of its functions begins with a
//! jump to the function of the same name in the kernel's own, or makes the system call that it stands for.
//!
//! Pure: it knows where things will lie, and puts nothing there.

use goblin::elf::Elf;
use goblin::elf::sym::{STT_FUNC, Sym};
use thiserror::Error;

use super::blob;
use crate::model::address::{AddrRange, RemoteAddr};
use crate::model::memory::{AddressSpace, Backing, Vma};
use crate::model::number::{PAGE_SIZE, page_align_up, to_u64, to_usize};
use crate::model::process::Process;
use crate::model::thread::Thread;

/// `jmp *0(%rip)`, followed by the address to go to.
const JUMP: [u8; 6] = [0xff, 0x25, 0, 0, 0, 0];
/// Bytes of that with the address.
const JUMP_LENGTH: u64 = 14;

/// The functions of vDSOs and the system calls that they stand for (arch/x86/entry/vdso). Their first
/// arguments are the same.
const CALLS: [(&str, i64); 6] = [
    ("__vdso_clock_gettime", libc::SYS_clock_gettime),
    ("__vdso_gettimeofday", libc::SYS_gettimeofday),
    ("__vdso_time", libc::SYS_time),
    ("__vdso_getcpu", libc::SYS_getcpu),
    ("__vdso_clock_getres", libc::SYS_clock_getres),
    ("__vdso_getrandom", libc::SYS_getrandom),
];

/// The function whose state, which the program keeps, only its own kernel understands.
const KEEPS_STATE: &str = "__vdso_getrandom";

/// Why a job cannot go on with this kernel's vDSO.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum VdsoError {
    #[error("the {whose} vDSO is no ELF image that can be understood")]
    Parse { whose: &'static str },
    #[error("this kernel's vDSO has no function {name}, which the job may call")]
    Missing { name: String },
    #[error("the function {name} of the recorded vDSO has no room for a jump")]
    Short { name: String },
    #[error("there is no room in the address space for this kernel's vDSO")]
    Room,
    #[error(
        "thread {tid} was inside the vDSO of the kernel that it ran on, which this kernel's cannot \
         replace in the middle: restore another checkpoint (--at)"
    )]
    Inside { tid: i32 },
}

/// What a process has for a vDSO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Where the kernel's own lies, data pages included.
    pub own: AddrRange,
    /// Where its code begins.
    pub code: u64,
    /// What lies where the recorded one was, when that is another.
    pub stand_in: Option<StandIn>,
}

/// Memory in the place of a vDSO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandIn {
    /// Where.
    pub range: AddrRange,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// This kernel's vDSO.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    /// Its code, an ELF image.
    pub bytes: &'a [u8],
    /// Bytes from its first data page to its end.
    pub span: u64,
}

/// Places the vDSO of a process. `None` when it had unmapped its own.
///
/// # Errors
/// When `own` cannot take the place of `recorded`.
pub fn place(
    process: &Process,
    space: &AddressSpace,
    recorded: &[u8],
    own: Own<'_>,
) -> Result<Option<Placed>, VdsoError> {
    let of = |backing: Backing| move |vma: &&Vma| vma.backing == backing;
    let Some(code) = space.vmas.iter().find(of(Backing::Vdso)).map(|vma| vma.range) else {
        return Ok(None);
    };
    let data = space.vmas.iter().filter(of(Backing::Vvar)).map(|vma| vma.range.start.0);
    let start = data.min().unwrap_or(code.start.0).min(code.start.0);
    let own_code = own.span - page_align_up(to_u64(own.bytes.len()));
    let placed = |start: u64, stand_in| {
        let range = AddrRange { start: RemoteAddr(start), end: RemoteAddr(start + own.span) };
        Placed { own: range, code: start + own_code, stand_in }
    };
    if code.end.0 - start == own.span && recorded == own.bytes {
        return Ok(Some(placed(start, None)));
    }
    let is_inside = |thread: &&Thread| code.contains(RemoteAddr(thread.registers.rip));
    if let Some(thread) = process.threads.iter().find(is_inside) {
        return Err(VdsoError::Inside { tid: thread.tid.0 });
    }
    let ranges: Vec<AddrRange> = space.vmas.iter().map(|vma| vma.range).collect();
    let start = blob::hole(&ranges, own.span).ok_or(VdsoError::Room)?;
    let bytes = stand_in(recorded, own.bytes, start + own_code)?;
    Ok(Some(placed(start, Some(StandIn { range: code, bytes }))))
}

/// The recorded image, whose functions lead to those of the kernel's own image, whose code begins at
/// `own_code`.
fn stand_in(recorded: &[u8], own: &[u8], own_code: u64) -> Result<Vec<u8>, VdsoError> {
    let mut bytes = recorded.to_vec();
    bytes.resize(bytes.len().next_multiple_of(to_usize(PAGE_SIZE)), 0);
    let here = functions(own, "kernel's own")?;
    for (name, symbol) in functions(recorded, "recorded")? {
        let target = here.iter().find(|(other, _)| *other == name);
        let jump = match target.filter(|_| name != KEEPS_STATE) {
            Some((_, target)) => jump(own_code + target.st_value).to_vec(),
            None => system_call(&name).ok_or_else(|| VdsoError::Missing { name: name.clone() })?,
        };
        let place = to_usize(symbol.st_value);
        if symbol.st_size < JUMP_LENGTH || bytes.len() < place + jump.len() {
            return Err(VdsoError::Short { name });
        }
        bytes[place..place + jump.len()].copy_from_slice(&jump);
    }
    Ok(bytes)
}

/// The functions that an image offers under their full names; the short ones are the same functions.
fn functions(image: &[u8], whose: &'static str) -> Result<Vec<(String, Sym)>, VdsoError> {
    let elf = Elf::parse(image).map_err(|_| VdsoError::Parse { whose })?;
    let is_offered = |symbol: &Sym| symbol.st_type() == STT_FUNC && symbol.st_value != 0;
    let named = |symbol: Sym| Some((elf.dynstrtab.get_at(symbol.st_name)?.to_owned(), symbol));
    let all = elf.dynsyms.iter().filter(is_offered).filter_map(named);
    Ok(all.filter(|(name, _)| name.starts_with("__vdso_")).collect())
}

fn jump(target: u64) -> [u8; 14] {
    let mut code = [0; 14];
    code[..JUMP.len()].copy_from_slice(&JUMP);
    code[JUMP.len()..].copy_from_slice(&target.to_le_bytes());
    code
}

/// A function that makes the system call that the function `name` stands for.
fn system_call(name: &str) -> Option<Vec<u8>> {
    const LOAD_EAX: u8 = 0xb8;
    const SYSCALL_RET: [u8; 3] = [0x0f, 0x05, 0xc3];
    let (_, number) = CALLS.iter().find(|(known, _)| *known == name)?;
    let number = i32::try_from(*number).ok()?;
    let mut code = vec![LOAD_EAX];
    code.extend(number.to_le_bytes());
    code.extend(SYSCALL_RET);
    Some(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::sample;
    use crate::restore::environment;

    fn own_vdso() -> (Vec<u8>, u64) {
        let environment = environment::probe(&sample::job()).unwrap();
        (environment.vdso, environment.vdso_span)
    }

    fn space_with_vdso(span: u64, length: u64) -> AddressSpace {
        let mut space = sample::job().address_spaces[0].clone();
        let (start, end) = (0x7fff_0000_0000, 0x7fff_0000_0000 + span);
        let vma = |start: u64, end: u64, backing| Vma {
            range: AddrRange::new(start, end).unwrap(),
            backing,
            ..space.vmas[0].clone()
        };
        space.vmas =
            vec![vma(start, end - length, Backing::Vvar), vma(end - length, end, Backing::Vdso)];
        space
    }

    #[test]
    fn the_same_vdso_goes_where_it_was() {
        let (bytes, span) = own_vdso();
        let length = page_align_up(to_u64(bytes.len()));
        let space = space_with_vdso(span, length);
        let process = sample::job().processes[0].clone();
        let placed = place(&process, &space, &bytes, Own { bytes: &bytes, span }).unwrap().unwrap();
        let own = AddrRange { start: space.vmas[0].range.start, end: space.vmas[1].range.end };
        assert_eq!(placed, Placed { own, code: own.end.0 - length, stand_in: None });
        let nothing = AddressSpace { vmas: Vec::new(), ..space };
        assert_eq!(place(&process, &nothing, &bytes, Own { bytes: &bytes, span }), Ok(None));
    }

    #[test]
    fn functions_of_another_vdso_lead_to_those_of_the_kernel() {
        let (own, span) = own_vdso();
        // One whose last byte differs is another.
        let mut recorded = own.clone();
        *recorded.last_mut().unwrap() ^= 1;
        let space = space_with_vdso(span, page_align_up(to_u64(own.len())));
        let mut process = sample::job().processes[0].clone();
        let of_kernel = Own { bytes: &own, span };
        let placed = place(&process, &space, &recorded, of_kernel).unwrap().unwrap();
        let stand_in = placed.stand_in.unwrap();
        assert_eq!(stand_in.range, space.vmas[1].range);
        let (names, own_names) = (functions(&recorded, "").unwrap(), functions(&own, "").unwrap());
        assert!(names.iter().any(|(name, _)| name == "__vdso_clock_gettime"), "{names:?}");
        for ((name, symbol), (_, target)) in names.iter().zip(&own_names) {
            let code = &stand_in.bytes[to_usize(symbol.st_value)..][..14];
            if name == KEEPS_STATE {
                assert_eq!((code[0], &code[5..8]), (0xb8, &[0x0f, 0x05, 0xc3][..]));
            } else {
                assert_eq!(code, jump(placed.code + target.st_value), "{name}");
            }
        }
        process.threads[0].registers.rip = stand_in.range.start.0 + 0x800;
        let tid = process.threads[0].tid.0;
        let inside = place(&process, &space, &recorded, of_kernel);
        assert_eq!(inside, Err(VdsoError::Inside { tid }));
    }

    #[test]
    fn what_is_no_vdso_is_refused() {
        let (own, span) = own_vdso();
        let space = space_with_vdso(span, page_align_up(to_u64(own.len())));
        let process = sample::job().processes[0].clone();
        let outcome = place(&process, &space, b"nothing", Own { bytes: &own, span });
        assert_eq!(outcome, Err(VdsoError::Parse { whose: "recorded" }));
    }
}
