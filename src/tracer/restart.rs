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

/// The half of a register that the kernel takes a system call's number from.
const LOWER_HALF: u64 = 0xffff_ffff;

/// The SYSCALL instruction.
pub const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// Its bytes.
const SYSCALL_LENGTH: u64 = 2;

/// The numbers of the calls that keep a restart block: a wait that ends at a time which only the
/// kernel remembers, and which `restart_syscall` goes on with.
const TIMED_WAITS: [i64; 4] =
    [libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_poll, libc::SYS_futex];

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
/// that was broken off is issued again by its own instruction.
#[must_use]
pub fn healed(registers: &Registers) -> Registers {
    if as_signed(registers.rax) == ERESTART_RESTARTBLOCK && in_system_call(registers) {
        return continued(registers, None);
    }
    let mut healed = Registers { orig_rax: NO_SYSTEM_CALL, ..*registers };
    if will_restart(registers) {
        healed.rip = registers.rip.wrapping_sub(SYSCALL_LENGTH);
        healed.rax = registers.orig_rax;
    }
    healed
}

/// Whether the thread was caught in a wait that keeps a restart block (nanosleep, poll, or futex with
/// a timeout).
#[must_use]
pub fn in_timed_wait(registers: &Registers) -> bool {
    in_system_call(registers) && as_signed(registers.rax) == ERESTART_RESTARTBLOCK
}

/// Which call such a thread is in; `None` when it was issued again as `restart_syscall` by the kernel
/// itself, so that the registers do not tell any more.
#[must_use]
pub fn timed_wait(registers: &Registers) -> Option<i64> {
    let number = as_signed(registers.orig_rax & LOWER_HALF);
    let number = if number == libc::SYS_restart_syscall {
        as_signed(registers.orig_rax >> 32)
    } else {
        number
    };
    TIMED_WAITS.contains(&number).then_some(number)
}

/// Which call it is by the code before its instruction: the last constant loaded into `eax` there, as
/// the C library does. `code` ends where the SYSCALL instruction begins.
#[must_use]
pub fn timed_wait_by_code(code: &[u8]) -> Option<i64> {
    const LOAD_EAX: u8 = 0xb8;
    code.windows(5).rev().find_map(|window| {
        let (opcode, constant) = window.split_first()?;
        let number = i64::from(u32::from_le_bytes(constant.try_into().ok()?));
        (*opcode == LOAD_EAX && TIMED_WAITS.contains(&number)).then_some(number)
    })
}

/// Which call it is by the kernel's function that the thread slept in (/proc/PID/wchan), and by its
/// first argument, which is still that of the call.
#[must_use]
pub fn timed_wait_by_function(sleeping_in: &[u8], registers: &Registers) -> Option<i64> {
    let sleeps_in = |name: &[u8]| sleeping_in.windows(name.len()).any(|part| part == name);
    if sleeps_in(b"poll") {
        Some(libc::SYS_poll)
    } else if sleeps_in(b"futex") {
        Some(libc::SYS_futex)
    } else if sleeps_in(b"nanosleep") || sleeps_in(b"syscall") {
        // The functions of a sleep taken up again leave no frame but that of the system call's entry.
        // The first argument is a clock, or the address of the time.
        let is_address = i32::try_from(as_signed(registers.rdi)).is_err();
        Some(if is_address { libc::SYS_nanosleep } else { libc::SYS_clock_nanosleep })
    } else {
        None
    }
}

/// The registers with which a thread in a timed wait goes on with it as `restart_syscall`, so that its
/// end still counts from when it began, whether or not the kernel helps. A handler that runs first
/// makes the wait fail with EINTR, as it should.
///
/// The kernel looks at the lower half of `rax` only, but for older ones ([`named`]). The upper half keeps the number of the call, so
/// that whoever stops the thread there the next time still knows what it waits for: a restart block
/// cannot be saved, and a restored thread has to begin the same call anew.
#[must_use]
pub fn continued(registers: &Registers, number: Option<i64>) -> Registers {
    let number = number.unwrap_or_default().cast_unsigned() & LOWER_HALF;
    Registers {
        rip: registers.rip.wrapping_sub(SYSCALL_LENGTH),
        rax: number << 32 | libc::SYS_restart_syscall.cast_unsigned(),
        orig_rax: NO_SYSTEM_CALL,
        ..*registers
    }
}

/// The registers of a thread in a timed wait as they are when it is interrupted for the first time. For kernels
/// that look at both halves of `rax`, so that [`continued`] is not for them: the number is for the record,
/// and the kernel, which goes on with the wait by itself, does not look at it.
#[must_use]
pub fn named(registers: &Registers, number: Option<i64>) -> Registers {
    let number = number.map_or(registers.orig_rax, i64::cast_unsigned);
    Registers { orig_rax: number, ..*registers }
}

/// The registers to record for a thread that is about to go on with a timed wait ([`continued`]): as
/// it was when it was caught inside of it. `None` for any other thread. `at_system_call` says whether
/// its next instruction is SYSCALL.
#[must_use]
pub fn recorded(registers: &Registers, at_system_call: bool) -> Option<Registers> {
    let number = as_signed(registers.rax >> 32);
    let restarting = as_signed(registers.rax & LOWER_HALF) == libc::SYS_restart_syscall;
    let known = TIMED_WAITS.contains(&number) && !in_system_call(registers);
    (at_system_call && restarting && known).then(|| Registers {
        rip: registers.rip.wrapping_add(SYSCALL_LENGTH),
        rax: ERESTART_RESTARTBLOCK.cast_unsigned(),
        orig_rax: number.cast_unsigned(),
        ..*registers
    })
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
            let low = u32::try_from(registers.r10 & LOWER_HALF).unwrap_or_default();
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
    registers.orig_rax & LOWER_HALF != LOWER_HALF
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
    fn the_kernels_function_tells_a_timed_wait() {
        let check = |sleeping_in: &str, rdi: u64, expected| {
            let registers = Registers { rdi, ..caught(libc::SYS_restart_syscall, -516) };
            let found = timed_wait_by_function(sleeping_in.as_bytes(), &registers);
            assert_eq!(found, expected, "{sleeping_in}");
        };
        check("hrtimer_nanosleep", 0x7fff_0000_1000, Some(libc::SYS_nanosleep));
        check("do_syscall_64", 1, Some(libc::SYS_clock_nanosleep));
        check("poll_schedule_timeout.constprop.0", 0x5000, Some(libc::SYS_poll));
        check("futex_wait_queue", 0x5000, Some(libc::SYS_futex));
        check("0", 0x5000, None);
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
    fn a_timed_wait_is_known_however_often_it_is_continued() {
        let caught = caught(libc::SYS_poll, -516);
        assert!(in_timed_wait(&caught));
        assert_eq!(timed_wait(&caught), Some(libc::SYS_poll));
        let going_on = continued(&caught, timed_wait(&caught));
        assert_eq!((going_on.rax & LOWER_HALF, going_on.rip), (219, 0x1000));
        assert_eq!(recorded(&going_on, true), Some(caught));
        assert_eq!(recorded(&going_on, false), None);
        // It executes that instruction, and is caught again.
        let again = Registers { orig_rax: going_on.rax, rip: 0x1002, rax: caught.rax, ..going_on };
        assert_eq!(timed_wait(&again), Some(libc::SYS_poll));
        assert_eq!(continued(&again, timed_wait(&again)), going_on);
        // Had the kernel restarted it by itself, nothing would tell.
        let lost = Registers { orig_rax: libc::SYS_restart_syscall.cast_unsigned(), ..again };
        assert_eq!(timed_wait(&lost), None);
        assert_eq!(recorded(&continued(&lost, None), true), None);
    }

    #[test]
    fn a_named_wait_is_as_it_was_at_first() {
        let again = caught(libc::SYS_restart_syscall, -516);
        assert_eq!(named(&again, Some(libc::SYS_futex)), caught(libc::SYS_futex, -516));
        assert_eq!(named(&again, None), again);
        assert_eq!(recorded(&named(&again, Some(libc::SYS_futex)), true), None);
    }

    #[test]
    fn code_tells_a_timed_wait() {
        let check = |code: &[u8], expected| assert_eq!(timed_wait_by_code(code), expected);
        check(&[0x31, 0xd2, 0xb8, 0xca, 0, 0, 0], Some(libc::SYS_futex));
        check(&[0xb8, 0xe6, 0, 0, 0, 0x31, 0xd2], Some(libc::SYS_clock_nanosleep));
        check(&[0xb8, 0x07, 0, 0, 0, 0xb8, 0x23, 0, 0, 0], Some(libc::SYS_nanosleep));
        check(&[0xb8, 0x01, 0, 0, 0], None);
        check(&[0x90], None);
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
