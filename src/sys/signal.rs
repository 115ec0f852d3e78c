//! Signals to processes, and the layouts of the kernel's signal structures.

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::Pid;

use crate::model::address::RemoteAddr;
use crate::model::signal::{SignalAction, SignalSet, SignalStack};

/// Bytes of the kernel's `struct sigaction` on x86_64: handler, flags, restorer, mask.
pub const ACTION_SIZE: usize = 32;

/// Bytes of `stack_t`: base, flags, padding, size.
pub const STACK_SIZE: usize = 24;

/// Bytes of the kernel's signal set.
pub const SET_SIZE: u64 = 8;

/// Sends a signal to a process.
///
/// # Errors
/// ESRCH when it has ended, EPERM when that is not allowed.
#[allow(unsafe_code)]
pub fn kill(pid: Pid, signal: i32) -> nix::Result<()> {
    // SAFETY: kill takes two plain numbers.
    Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(drop)
}

/// Sends a signal to one thread of a process.
///
/// # Errors
/// ESRCH when it has ended, EPERM when that is not allowed.
#[allow(unsafe_code)]
pub fn kill_thread(pid: Pid, tid: Pid, signal: i32) -> nix::Result<()> {
    // SAFETY: tgkill takes three plain numbers.
    let outcome = unsafe { libc::syscall(libc::SYS_tgkill, pid.as_raw(), tid.as_raw(), signal) };
    Errno::result(outcome).map(drop)
}

/// Has this process told by EFBIG, as of any other error, that a file may not be so large (RLIMIT_FSIZE), and
/// not ended by SIGXFSZ. Whatever it executes begins with the action that it would have had: handlers, unlike
/// ignored signals, are not inherited by it.
///
/// # Errors
/// None that the kernel gives for this signal.
#[allow(unsafe_code)]
pub fn survive_file_size_limit() -> nix::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing, so it may interrupt anything.
    let before = unsafe { sigaction(Signal::SIGXFSZ, &action) }?;
    // Where the user has it ignored, the job is to find it so.
    if matches!(before.handler(), SigHandler::SigIgn) {
        // SAFETY: this is how it was.
        unsafe { sigaction(Signal::SIGXFSZ, &before) }?;
    }
    Ok(())
}

/// Decodes the kernel's `struct sigaction` of a signal, as rt_sigaction(2) fills it.
#[must_use]
pub fn decode_action(signal: u32, bytes: &[u8; ACTION_SIZE]) -> SignalAction {
    let [handler, flags, restorer, mask] = words(bytes);
    SignalAction {
        signal,
        handler: RemoteAddr(handler),
        flags,
        restorer: RemoteAddr(restorer),
        mask: SignalSet(mask),
    }
}

/// Decodes a `stack_t`, as sigaltstack(2) fills it.
#[must_use]
pub fn decode_stack(bytes: &[u8; STACK_SIZE]) -> SignalStack {
    let [base, flags, size] = words(bytes);
    // The upper half of the second word is padding.
    let flags = u32::try_from(flags & u64::from(u32::MAX)).unwrap_or_default();
    SignalStack { base: RemoteAddr(base), flags, size }
}

/// Little-endian words of a structure; words past its end are zero.
fn words<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let mut words = [0; N];
    for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*chunk);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_is_decoded() {
        let mut bytes = [0; ACTION_SIZE];
        bytes[0] = 1;
        bytes[8] = 4;
        bytes[16] = 7;
        bytes[24] = 0x80;
        let action = decode_action(5, &bytes);
        assert_eq!((action.signal, action.handler, action.flags), (5, RemoteAddr(1), 4));
        assert_eq!((action.restorer, action.mask), (RemoteAddr(7), SignalSet(0x80)));
    }

    #[test]
    fn padding_of_a_stack_is_ignored() {
        let mut bytes = [0xff; STACK_SIZE];
        bytes[8..12].copy_from_slice(&2_u32.to_le_bytes());
        assert_eq!(decode_stack(&bytes).flags, 2);
    }
}
