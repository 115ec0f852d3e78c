//! How a thread that was caught inside a system call goes on. Pure functions of its registers.
//!
//! When a thread stops for its tracer inside a system call, the call is broken off and `rax` holds
//! one of the kernel's private restart codes (include/linux/errno.h). What becomes of the call is
//! decided later, when the thread leaves the kernel's signal code (`arch_do_signal_or_restart`): it
//! is issued again, or fails with EINTR when a handler runs first. Putting the registers back as
//! they were, in a stop inside that code, leaves the decision to the kernel: that is the way a
//! healthy tracer goes. A thread that has to find its way back alone takes [`healed`].

use std::time::Duration;

use crate::model::address::RemoteAddr;
use crate::model::number::as_signed;
use crate::model::thread::Registers;

/// `orig_rax` of a thread that is not in a system call.
pub const NO_SYSTEM_CALL: u64 = u64::MAX;

/// The code segment of 64-bit programs.
pub const USER_CODE_SEGMENT: u64 = 0x33;

/// The longest wait with an end that is begun anew after an interruption for which the kernel would
/// report EINTR.
const LONGEST_REPEATED_WAIT: Duration = Duration::from_secs(10);

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

/// The registers to record of a thread that an earlier interruption made take up its wait again: all
/// that its registers tell is `restart_syscall`, which another task could make nothing of. Which call
/// it once was is told by `sleeping_in`, the kernel's function that it slept in (/proc/PID/wchan),
/// and by its arguments, which are still those of that call.
#[must_use]
pub fn recorded(registers: &Registers, sleeping_in: &[u8]) -> Registers {
    let restarted = libc::SYS_restart_syscall.cast_unsigned();
    if !will_restart(registers) || registers.orig_rax & u64::from(u32::MAX) != restarted {
        return *registers;
    }
    let sleeps_in = |name: &[u8]| sleeping_in.windows(name.len()).any(|part| part == name);
    // The functions of a sleep taken up again leave no frame but that of the system call's entry.
    let number = if sleeps_in(b"nanosleep") || sleeps_in(b"syscall") {
        // The first argument is a clock, or the address of the time.
        let is_address = i32::try_from(as_signed(registers.rdi)).is_err();
        if is_address { libc::SYS_nanosleep } else { libc::SYS_clock_nanosleep }
    } else if sleeps_in(b"poll") {
        libc::SYS_poll
    } else if sleeps_in(b"futex") {
        libc::SYS_futex
    } else {
        return *registers;
    };
    Registers { orig_rax: number.cast_unsigned(), ..*registers }
}

/// How long a wait was to last that an interruption has made fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// For as long as it takes.
    Forever,
    /// For so long.
    For(Duration),
    /// For what the `struct timespec` at this address says.
    At(RemoteAddr),
}

/// Some calls report EINTR on any interruption, be it only by a tracer (signal(7), "Interruption of
/// system calls and library functions by stop signals"). For a thread in one of those, how long it
/// was to wait; `None` for any other thread.
#[must_use]
pub fn interrupted_wait(registers: &Registers) -> Option<Wait> {
    if !in_system_call(registers) || as_signed(registers.rax) != EINTR {
        return None;
    }
    let timespec = |address: u64| match address {
        0 => Wait::Forever,
        address => Wait::At(RemoteAddr(address)),
    };
    match as_signed(registers.orig_rax) {
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => {
            // The argument is a C int: the upper half of the register means nothing.
            let low = u32::try_from(registers.r10 & u64::from(u32::MAX)).unwrap_or_default();
            Some(match u64::try_from(low.cast_signed()) {
                Ok(milliseconds) => Wait::For(Duration::from_millis(milliseconds)),
                Err(_) => Wait::Forever,
            })
        }
        libc::SYS_semop => Some(Wait::Forever),
        libc::SYS_epoll_pwait2 | libc::SYS_semtimedop => Some(timespec(registers.r10)),
        libc::SYS_rt_sigtimedwait => Some(timespec(registers.rdx)),
        libc::SYS_io_getevents => Some(timespec(registers.r8)),
        _ => None,
    }
}

/// Whether a wait that was interrupted is begun anew. That is exact for one without end. One that
/// ends begins anew, too, when it is short: it may come later, as any may, but never fails.
#[must_use]
pub fn is_repeated(wait: Wait) -> bool {
    match wait {
        Wait::Forever => true,
        Wait::For(length) => length <= LONGEST_REPEATED_WAIT,
        Wait::At(_) => false,
    }
}

/// The registers that make the kernel issue an interrupted call again, unless a handler runs.
#[must_use]
pub fn repeated(registers: &Registers) -> Registers {
    Registers { rax: ERESTARTNOHAND.cast_unsigned(), ..*registers }
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
    fn a_wait_taken_up_again_is_recorded_as_what_it_was() {
        let check = |sleeping_in: &str, rdi: u64, result: i64, expected: i64| {
            let registers = Registers { rdi, ..caught(libc::SYS_restart_syscall, result) };
            let recorded = recorded(&registers, sleeping_in.as_bytes());
            assert_eq!(as_signed(recorded.orig_rax), expected, "{sleeping_in}");
        };
        check("hrtimer_nanosleep", 0x7fff_0000_1000, -516, libc::SYS_nanosleep);
        check("do_syscall_64", 1, -516, libc::SYS_clock_nanosleep);
        check("poll_schedule_timeout.constprop.0", 0x5000, -516, libc::SYS_poll);
        check("futex_wait_queue", 0x5000, -516, libc::SYS_futex);
        check("0", 0x5000, -516, libc::SYS_restart_syscall);
        check("hrtimer_nanosleep", 1, 0, libc::SYS_restart_syscall);
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
    fn interrupted_waits_are_known() {
        let check = |registers: Registers, expected: Option<Wait>| {
            assert_eq!(interrupted_wait(&registers), expected);
        };
        let epoll = caught(libc::SYS_epoll_wait, EINTR);
        check(Registers { r10: u64::from(u32::MAX), ..epoll }, Some(Wait::Forever));
        let half_a_second = Some(Wait::For(Duration::from_millis(500)));
        check(Registers { r10: 500, ..epoll }, half_a_second);
        check(Registers { r10: 0xffff_ffff_0000_01f4, ..epoll }, half_a_second);
        check(Registers { rax: 3, ..epoll }, None);
        let signal = caught(libc::SYS_rt_sigtimedwait, EINTR);
        check(signal, Some(Wait::Forever));
        check(Registers { rdx: 0x5000, ..signal }, Some(Wait::At(RemoteAddr(0x5000))));
        check(caught(libc::SYS_semop, EINTR), Some(Wait::Forever));
        check(caught(libc::SYS_read, EINTR), None);
        check(caught(-1, EINTR), None);
    }

    #[test]
    fn long_waits_are_not_repeated() {
        let check = |wait, expected| assert_eq!(is_repeated(wait), expected);
        check(Wait::Forever, true);
        check(Wait::For(Duration::from_secs(10)), true);
        check(Wait::For(Duration::from_secs(3600)), false);
        check(Wait::At(RemoteAddr(0x5000)), false);
        let again = repeated(&caught(libc::SYS_epoll_wait, EINTR));
        assert!(will_restart(&again));
    }
}
