//! How a thread that was caught inside a system call goes on. Pure functions of its registers.
//!
//! When a thread stops for its tracer inside a system call, the call is broken off and `rax` holds
//! one of the kernel's private restart codes (include/linux/errno.h). What becomes of the call is
//! decided later, when the thread leaves the kernel's signal code (`arch_do_signal_or_restart`): it
//! is issued again, or fails with EINTR when a handler runs first. Putting the registers back as
//! they were, in a stop inside that code, leaves the decision to the kernel: that is the way a
//! healthy tracer goes. A thread that has to find its way back alone takes [`healed`].

use crate::model::number::as_signed;
use crate::model::thread::Registers;

/// `orig_rax` of a thread that is not in a system call.
pub const NO_SYSTEM_CALL: u64 = u64::MAX;

/// The code segment of 64-bit programs.
pub const USER_CODE_SEGMENT: u64 = 0x33;

/// The longest wait that is begun anew after an interruption for which the kernel would report
/// EINTR: ten seconds, in milliseconds.
const LONGEST_REPEATED_WAIT: i32 = 10_000;

const EINTR: i64 = -4;
const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;

/// Bytes of the SYSCALL instruction.
const SYSCALL_LENGTH: u64 = 2;

/// Whether the thread was caught inside a system call which is to be issued again.
#[must_use]
pub fn will_restart(registers: &Registers) -> bool {
    in_system_call(registers)
        && matches!(
            as_signed(registers.rax),
            ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK
        )
}

/// The registers with which a thread goes on by itself, without the kernel's help: a system call
/// that was broken off is issued again by its own instruction, one that keeps a restart block
/// (nanosleep, poll, futex with a timeout) as `restart_syscall`, so that its timeout still counts
/// from when it began.
#[must_use]
pub fn healed(registers: &Registers) -> Registers {
    let mut healed = *registers;
    if will_restart(registers) {
        healed.rip = registers.rip.wrapping_sub(SYSCALL_LENGTH);
        healed.rax = if as_signed(registers.rax) == ERESTART_RESTARTBLOCK {
            libc::SYS_restart_syscall.cast_unsigned()
        } else {
            registers.orig_rax
        };
    }
    healed.orig_rax = NO_SYSTEM_CALL;
    healed
}

/// Some calls report EINTR on any interruption, be it only by a tracer (signal(7), "Interruption of
/// system calls and library functions by stop signals"). For those the registers that make the
/// kernel issue the call again unless a handler runs; `None` for any other thread.
///
/// That is exact for a wait without timeout. A wait with a timeout begins anew, which is done only
/// for short ones: they may come later, as any timeout may, but never fail.
#[must_use]
pub fn without_spurious_interruption(registers: &Registers) -> Option<Registers> {
    if !in_system_call(registers) || as_signed(registers.rax) != EINTR {
        return None;
    }
    let repeatable = match as_signed(registers.orig_rax) {
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => {
            // The argument is a C int: the upper half of the register means nothing.
            let low = registers.r10 & u64::from(u32::MAX);
            let timeout = u32::try_from(low).unwrap_or_default().cast_signed();
            timeout <= LONGEST_REPEATED_WAIT
        }
        libc::SYS_semop => true,
        libc::SYS_epoll_pwait2 | libc::SYS_semtimedop => registers.r10 == 0,
        libc::SYS_rt_sigtimedwait => registers.rdx == 0,
        libc::SYS_io_getevents => registers.r8 == 0,
        _ => false,
    };
    repeatable.then(|| Registers { rax: ERESTARTNOHAND.cast_unsigned(), ..*registers })
}

fn in_system_call(registers: &Registers) -> bool {
    // The kernel looks at the lower half only, as a signed number.
    registers.orig_rax & u64::from(u32::MAX) != u64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caught(number: i64, result: i64) -> Registers {
        Registers {
            orig_rax: number.cast_unsigned(),
            rax: result.cast_unsigned(),
            rip: 0x1002,
            ..Registers::default()
        }
    }

    #[test]
    fn broken_off_calls_are_issued_again() {
        let check = |number: i64, result: i64, rax: i64, rip: u64| {
            let healed = healed(&caught(number, result));
            assert_eq!((as_signed(healed.rax), healed.rip), (rax, rip), "{number} {result}");
            assert_eq!(healed.orig_rax, NO_SYSTEM_CALL);
        };
        check(libc::SYS_read, -512, libc::SYS_read, 0x1000);
        check(libc::SYS_futex, -513, libc::SYS_futex, 0x1000);
        check(libc::SYS_pause, -514, libc::SYS_pause, 0x1000);
        check(libc::SYS_clock_nanosleep, -516, libc::SYS_restart_syscall, 0x1000);
        check(libc::SYS_read, 17, 17, 0x1002);
        check(libc::SYS_read, EINTR, EINTR, 0x1002);
        // Outside a system call `rax` is the program's own.
        check(-1, -512, -512, 0x1002);
    }

    #[test]
    fn only_waits_that_can_be_repeated_are() {
        let check = |registers: Registers, expected: bool| {
            let changed = without_spurious_interruption(&registers);
            assert_eq!(changed.map(|changed| as_signed(changed.rax)), expected.then_some(-514));
        };
        let epoll = caught(libc::SYS_epoll_wait, EINTR);
        check(Registers { r10: u64::from(u32::MAX), ..epoll }, true);
        check(Registers { r10: 500, ..epoll }, true);
        check(Registers { r10: 3_600_000, ..epoll }, false);
        check(Registers { r10: u64::from(u32::MAX), rax: 3, ..epoll }, false);
        check(caught(libc::SYS_rt_sigtimedwait, EINTR), true);
        check(Registers { rdx: 0x5000, ..caught(libc::SYS_rt_sigtimedwait, EINTR) }, false);
        check(caught(libc::SYS_read, EINTR), false);
        check(caught(-1, EINTR), false);
    }
}
