//! The machine code that an injected system call runs through, and that leads back from it.
//!
//! A slot is straight-line code for one thread:
//!
//! ```text
//!     syscall                        the injected call
//! heal:
//!     rt_sigprocmask(SIG_SETMASK, &mask, NULL, 8)
//!     munmap(scratch)                for the thread that answers for the scratch page, else nops
//!     movabs $..., %r15              and so on: each general register but %rsp
//!     jmp *rip
//! rip:  .quad ...                    where the thread was
//! mask: .quad ...                    the signals it had blocked
//! ```
//!
//! A thread whose tracer is killed at any moment runs on from wherever it is in its slot, and comes
//! out with its own registers, signal mask and mappings. The tracer itself never lets a thread run
//! past `heal`. No instruction here changes the flags (SYSCALL puts them back), nor the stack, nor
//! any vector register. Pure functions; [`super::injection`] puts slots in place.
//!
//! A *birth* slot holds the code that [`super::copy`] makes copies of a process with:
//!
//! ```text
//!     syscall                        clone: the intermediate
//!     mov    %rax, %rcx
//!     jrcxz  end                     the intermediate, should nobody hold it
//!     waitid(P_PID, %rax, NULL, WEXITED | __WALL)
//!     jmp    heal                    of the thread's own slot
//! copy:
//!     syscall                        clone in the intermediate: the copy; calls of the copy
//! end:
//!     exit_group(%eax)               the intermediate and the copy, should nobody hold them
//! ```
//!
//! So whoever is born ends by itself, and the thread does not go back before it has taken the
//! intermediate's end away: its process never sees a child that it did not make.
//!
//! A *series* slot makes calls one after another with no stop in between, for any number of threads:
//!
//! ```text
//! next:
//!     mov    (%r12), %rax            and so on: number and arguments of a call
//!     syscall
//!     mov    %rax, (%r12)            what it returned, in place of its number
//!     lea    56(%r12), %r12
//!     lea    -1(%r13), %r13
//!     mov    %r13, %rcx
//!     jrcxz  done
//!     jmp    next
//! done:
//!     mov    %r14, 16(%r14)          all are made
//!     mov    $SPINS, %ecx            the tracer mostly comes at once, and waking takes long
//! spin:
//!     pause
//!     lea    -1(%rcx), %rcx
//!     jrcxz  wait
//!     jmp    spin
//! wait:
//!     ppoll(NULL, 0, %r14, NULL, 8)  until it is stopped, for as long as %r14 says
//!     jmp    *%r15                   heal, of the thread's own slot
//! ```
//!
//! The wait is one that leaves the thread's restart block alone, which the call that the thread was caught
//! in may need. A thread whose tracer is killed goes back when it is over.

use super::restart::SYSCALL;
use crate::model::address::{AddrRange, RemoteAddr};
use crate::model::number::to_u64;
use crate::model::signal::SignalSet;
use crate::model::thread::Registers;

/// Bytes of a slot.
pub const SLOT_SIZE: usize = 232;

/// Offset of the code that leads back.
pub const HEAL: u64 = 2;

/// Offset of the code that unmaps the scratch page.
const UNMAP: u64 = 35;

/// Offset, from there, of how many bytes of it.
const UNMAP_LENGTH: u64 = 16;

/// Offset of the code that loads the registers.
pub const LOAD: u64 = 57;

const RIP: usize = 216;
const MASK: usize = 224;

const NOP: u8 = 0x90;

/// Offset, in a birth slot, of the code that the intermediate and the copy run.
pub const COPY: u64 = 44;

/// Offset, in a series slot, of where a thread is that has made all its calls, and waits from there on.
pub const SERIES_DONE: u64 = 60;

/// Offset, in a series slot, of where a thread is that waits no longer.
pub const SERIES_END: u64 = 107;

/// How often a thread looks around before it sleeps: some 0.1 ms.
const SPINS: u64 = 2000;

/// How a thread gets back from a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Healing {
    /// The registers it goes on with. `rsp`, the flags and the segments are not touched by a slot,
    /// and come back as zero from [`decode`].
    pub registers: Registers,
    /// The signals it blocks then.
    pub mask: SignalSet,
    /// The scratch page that it unmaps on its way.
    pub scratch: Option<AddrRange>,
}

/// The bytes of a slot that will lie at `base`.
#[must_use]
pub fn encode(healing: &Healing, base: RemoteAddr) -> [u8; SLOT_SIZE] {
    let mut code = Vec::with_capacity(SLOT_SIZE);
    code.extend(SYSCALL);

    // rt_sigprocmask(SIG_SETMASK, &mask, NULL, sizeof mask)
    let mask_address = base.0.wrapping_add(to_u64(MASK));
    load_half(&mut code, &[0xb8], libc::SYS_rt_sigprocmask.cast_unsigned());
    load_half(&mut code, &[0xbf], u64::from(libc::SIG_SETMASK.cast_unsigned()));
    load_whole(&mut code, [0x48, 0xbe], mask_address);
    load_half(&mut code, &[0xba], 0);
    load_half(&mut code, &[0x41, 0xba], 8);
    code.extend(SYSCALL);

    match healing.scratch {
        Some(scratch) => {
            load_half(&mut code, &[0xb8], libc::SYS_munmap.cast_unsigned());
            load_whole(&mut code, [0x48, 0xbf], scratch.start.0);
            load_half(&mut code, &[0xbe], scratch.len());
            code.extend(SYSCALL);
        }
        None => code.resize(code.len() + 22, NOP),
    }

    let registers = &healing.registers;
    for (opcode, value) in loads(registers) {
        load_whole(&mut code, opcode, value);
    }
    // jmp *displacement(%rip), counted from the end of the instruction.
    code.extend([0xff, 0x25]);
    let displacement = u32::try_from(RIP - (code.len() + 4)).unwrap_or_default();
    code.extend(displacement.to_le_bytes());
    code.resize(RIP, NOP);
    code.extend(registers.rip.to_le_bytes());
    code.extend(healing.mask.0.to_le_bytes());

    let mut slot = [NOP; SLOT_SIZE];
    slot.copy_from_slice(&code);
    slot
}

/// What to write into a slot, and at which offset, so that the thread in it unmaps so many bytes from the
/// start of its scratch memory on. The thread must be stopped, and answer for some.
#[must_use]
pub fn unmapping(length: u64) -> (u64, [u8; 4]) {
    let length = u32::try_from(length).expect("scratch memory is small");
    (UNMAP + UNMAP_LENGTH, length.to_le_bytes())
}

/// What the slot at `base` would do, when the bytes are one that [`encode`] made.
#[must_use]
pub fn decode(slot: &[u8; SLOT_SIZE], base: RemoteAddr) -> Option<Healing> {
    let word = |offset: usize| {
        let bytes = slot.get(offset..offset + 8)?;
        <[u8; 8]>::try_from(bytes).ok().map(u64::from_le_bytes)
    };
    let unmap = usize::try_from(UNMAP).ok()?;
    let scratch = if slot[unmap] == NOP {
        None
    } else {
        let start = word(unmap + 7)?;
        let length = unmap + usize::try_from(UNMAP_LENGTH).ok()?;
        let length = u32::from_le_bytes(<[u8; 4]>::try_from(slot.get(length..length + 4)?).ok()?);
        AddrRange::new(start, start.checked_add(u64::from(length))?)
    };
    let mut values = [0; 15];
    let load = usize::try_from(LOAD).ok()?;
    for (index, value) in values.iter_mut().enumerate() {
        *value = word(load + 10 * index + 2)?;
    }
    let [r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi] = values;
    let registers = Registers {
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        rip: word(RIP)?,
        ..Registers::default()
    };
    let healing = Healing { registers, mask: SignalSet(word(MASK)?), scratch };
    (encode(&healing, base) == *slot).then_some(healing)
}

/// The bytes of a birth slot at `base`, for a thread whose own slot is at `own`.
#[must_use]
pub fn encode_birth(own: RemoteAddr, base: RemoteAddr) -> [u8; SLOT_SIZE] {
    // P_PID, and WEXITED | __WALL.
    const BY_PID: u64 = 1;
    const ANY_EXIT: u64 = 0x4000_0004;
    let mut code = Vec::with_capacity(SLOT_SIZE);
    code.extend(SYSCALL);
    code.extend([0x48, 0x89, 0xc1]); // mov %rax, %rcx
    let end = COPY + to_u64(SYSCALL.len());
    code.extend([0xe3, low_byte(end - 7)]); // jrcxz end
    code.extend([0x48, 0x89, 0xc6]); // mov %rax, %rsi
    load_half(&mut code, &[0xb8], libc::SYS_waitid.cast_unsigned());
    load_half(&mut code, &[0xbf], BY_PID);
    load_half(&mut code, &[0xba], 0);
    load_half(&mut code, &[0x41, 0xba], ANY_EXIT);
    load_half(&mut code, &[0x41, 0xb8], 0);
    code.extend(SYSCALL);
    // jmp heal, counted from the end of the instruction.
    let after = base.0.wrapping_add(to_u64(code.len() + 5));
    let distance = own.0.wrapping_add(HEAL).wrapping_sub(after);
    load_half(&mut code, &[0xe9], distance);
    debug_assert_eq!(to_u64(code.len()), COPY);
    code.extend(SYSCALL);
    code.extend([0x89, 0xc7]); // mov %eax, %edi
    load_half(&mut code, &[0xb8], libc::SYS_exit_group.cast_unsigned());
    code.extend(SYSCALL);
    code.resize(SLOT_SIZE, NOP);
    let mut slot = [NOP; SLOT_SIZE];
    slot.copy_from_slice(&code);
    slot
}

/// Whether these bytes are a birth slot at `base`.
#[must_use]
pub fn is_birth(slot: &[u8; SLOT_SIZE], base: RemoteAddr) -> bool {
    let Some(end) = usize::try_from(COPY).ok() else { return false };
    let Some(distance) = slot.get(end - 4..end).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok())
    else {
        return false;
    };
    let distance = i64::from(i32::from_le_bytes(distance)).cast_unsigned();
    let own = base.0.wrapping_add(COPY).wrapping_add(distance).wrapping_sub(HEAL);
    encode_birth(RemoteAddr(own), base) == *slot
}

/// The bytes of a series slot, which are the same wherever it lies.
#[must_use]
pub fn encode_series() -> [u8; SLOT_SIZE] {
    let mut code = Vec::with_capacity(SLOT_SIZE);
    code.extend([0x49, 0x8b, 0x04, 0x24]); // mov (%r12), %rax
    code.extend([0x49, 0x8b, 0x7c, 0x24, 8]); // mov 8(%r12), %rdi
    code.extend([0x49, 0x8b, 0x74, 0x24, 16]); // mov 16(%r12), %rsi
    code.extend([0x49, 0x8b, 0x54, 0x24, 24]); // mov 24(%r12), %rdx
    code.extend([0x4d, 0x8b, 0x54, 0x24, 32]); // mov 32(%r12), %r10
    code.extend([0x4d, 0x8b, 0x44, 0x24, 40]); // mov 40(%r12), %r8
    code.extend([0x4d, 0x8b, 0x4c, 0x24, 48]); // mov 48(%r12), %r9
    code.extend(SYSCALL);
    code.extend([0x49, 0x89, 0x04, 0x24]); // mov %rax, (%r12)
    code.extend([0x4d, 0x8d, 0x64, 0x24, 56]); // lea 56(%r12), %r12
    code.extend([0x4d, 0x8d, 0x6d, 0xff]); // lea -1(%r13), %r13
    code.extend([0x4c, 0x89, 0xe9]); // mov %r13, %rcx
    code.extend([0xe3, 2]); // jrcxz done
    let back = to_u64(code.len() + 2).wrapping_neg();
    code.extend([0xeb, low_byte(back)]); // jmp next
    code.extend([0x4d, 0x89, 0x76, 16]); // mov %r14, 16(%r14)
    debug_assert_eq!(to_u64(code.len()), SERIES_DONE);
    load_half(&mut code, &[0xb9], SPINS);
    code.extend([0xf3, 0x90]); // pause
    code.extend([0x48, 0x8d, 0x49, 0xff]); // lea -1(%rcx), %rcx
    code.extend([0xe3, 2]); // jrcxz wait
    code.extend([0xeb, low_byte(10_u64.wrapping_neg())]); // jmp spin
    load_half(&mut code, &[0xb8], libc::SYS_ppoll.cast_unsigned());
    load_half(&mut code, &[0xbf], 0);
    load_half(&mut code, &[0xbe], 0);
    code.extend([0x4c, 0x89, 0xf2]); // mov %r14, %rdx
    load_half(&mut code, &[0x41, 0xba], 0);
    load_half(&mut code, &[0x41, 0xb8], 8);
    code.extend(SYSCALL);
    debug_assert_eq!(to_u64(code.len()), SERIES_END);
    code.extend([0x41, 0xff, 0xe7]); // jmp *%r15
    code.resize(SLOT_SIZE, NOP);
    let mut slot = [NOP; SLOT_SIZE];
    slot.copy_from_slice(&code);
    slot
}

/// Whether these bytes are a series slot.
#[must_use]
pub fn is_series(slot: &[u8; SLOT_SIZE]) -> bool {
    encode_series() == *slot
}

/// The registers in the order in which a slot loads them, each with the opcode of its `movabs`.
fn loads(registers: &Registers) -> [([u8; 2], u64); 15] {
    [
        ([0x49, 0xbf], registers.r15),
        ([0x49, 0xbe], registers.r14),
        ([0x49, 0xbd], registers.r13),
        ([0x49, 0xbc], registers.r12),
        ([0x48, 0xbd], registers.rbp),
        ([0x48, 0xbb], registers.rbx),
        ([0x49, 0xbb], registers.r11),
        ([0x49, 0xba], registers.r10),
        ([0x49, 0xb9], registers.r9),
        ([0x49, 0xb8], registers.r8),
        ([0x48, 0xb8], registers.rax),
        ([0x48, 0xb9], registers.rcx),
        ([0x48, 0xba], registers.rdx),
        ([0x48, 0xbe], registers.rsi),
        ([0x48, 0xbf], registers.rdi),
    ]
}

fn low_byte(value: u64) -> u8 {
    value.to_le_bytes()[0]
}

/// `mov $imm32, %r32`, which clears the upper half of the register.
fn load_half(code: &mut Vec<u8>, opcode: &[u8], value: u64) {
    code.extend(opcode);
    code.extend(&value.to_le_bytes()[..4]);
}

/// `movabs $imm64, %r64`.
fn load_whole(code: &mut Vec<u8>, opcode: [u8; 2], value: u64) {
    code.extend(opcode);
    code.extend(value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registers() -> Registers {
        Registers {
            r15: 15,
            r14: u64::MAX,
            r13: 13,
            r12: 12,
            rbp: 0x7fff_ffff_f000,
            rbx: 3,
            r11: 0x246,
            r10: 10,
            r9: 9,
            r8: 8,
            rax: 0xdead_beef_0000_0001,
            rcx: 0,
            rdx: 2,
            rsi: 4,
            rdi: 5,
            rip: 0x40_1000,
            ..Registers::default()
        }
    }

    #[test]
    fn a_slot_says_what_it_was_made_of() {
        let base = RemoteAddr(0x7fff_1234_5000);
        let check = |scratch: Option<AddrRange>| {
            let healing = Healing { registers: registers(), mask: SignalSet(0x8000_0001), scratch };
            assert_eq!(decode(&encode(&healing, base), base), Some(healing));
        };
        check(None);
        check(AddrRange::new(0x5000_0000_0000, 0x5000_0001_0000));
    }

    #[test]
    fn the_parts_of_a_slot_lie_where_they_are_said_to() {
        let healing = Healing {
            registers: registers(),
            mask: SignalSet(7),
            scratch: AddrRange::new(0x1000, 0x2000),
        };
        let slot = encode(&healing, RemoteAddr(0x1_0000));
        let at = |offset: u64| usize::try_from(offset).expect("a small offset");
        assert_eq!(slot[..at(HEAL)], SYSCALL);
        assert_eq!(slot[at(HEAL)..at(HEAL) + 2], [0xb8, 14]);
        assert_eq!(slot[at(UNMAP) - 2..at(UNMAP) + 2], [0x0f, 0x05, 0xb8, 11]);
        assert_eq!(slot[at(LOAD) - 2..at(LOAD) + 2], [0x0f, 0x05, 0x49, 0xbf]);
        // The jump ends at 213 and reads the word at 216.
        assert_eq!(slot[207..213], [0xff, 0x25, 3, 0, 0, 0]);
    }

    #[test]
    fn a_birth_slot_is_known_and_its_parts_lie_where_they_are_said_to() {
        let (own, base) = (RemoteAddr(0x7fff_1234_5000), RemoteAddr(0x7fff_1234_50e8));
        let slot = encode_birth(own, base);
        assert!(is_birth(&slot, base));
        assert_eq!(decode(&slot, base), None);
        let copy = usize::try_from(COPY).expect("a small offset");
        assert_eq!(slot[copy..copy + 4], [0x0f, 0x05, 0x89, 0xc7]);
        // From the end of `jrcxz` to behind the copy's SYSCALL.
        assert_eq!(slot[5..7], [0xe3, low_byte(COPY + 2 - 7)]);
        assert_eq!(slot[copy - 5], 0xe9);
        let healing = Healing { registers: registers(), mask: SignalSet(7), scratch: None };
        assert!(!is_birth(&encode(&healing, base), base));
    }

    #[test]
    fn the_parts_of_a_series_slot_lie_where_they_are_said_to() {
        let slot = encode_series();
        assert!(is_series(&slot));
        let end = usize::try_from(SERIES_END).expect("a small offset");
        assert_eq!(slot[end - 2..end + 3], [0x0f, 0x05, 0x41, 0xff, 0xe7]);
        // From the end of `jmp next` to the beginning.
        let jump = slot.windows(3).position(|bytes| bytes == [0xe3, 2, 0xeb]).expect("the jumps");
        assert_eq!(slot[jump + 3], low_byte(to_u64(jump + 4).wrapping_neg()));
        assert_eq!(decode(&slot, RemoteAddr(0x1_0000)), None);
        assert!(!is_birth(&slot, RemoteAddr(0x1_0000)));
    }

    #[test]
    fn other_bytes_are_no_slot() {
        let base = RemoteAddr(0x1_0000);
        let check = |slot: &[u8; SLOT_SIZE]| assert_eq!(decode(slot, base), None);
        check(&[0; SLOT_SIZE]);
        check(&[NOP; SLOT_SIZE]);
        let healing = Healing { registers: registers(), mask: SignalSet(7), scratch: None };
        let mut slot = encode(&healing, base);
        assert_eq!(decode(&slot, RemoteAddr(0x2_0000)), None);
        slot[57] = 0xcc;
        check(&slot);
    }
}
