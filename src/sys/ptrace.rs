//! ptrace requests, each one function, and the registers and extended state they carry.
//!
//! Every function here is one request of ptrace(2) or one wait for its outcome. What a tracer does
//! with them, and in which order, is decided in [`crate::tracer`]. All requests for one tracee must
//! come from the thread that seized it.

#![allow(unsafe_code)]

use std::fs;
use std::ptr;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::model::address::RemoteAddr;
use crate::model::number::{to_u64, to_usize};
use crate::model::signal::{PendingSignal, SIGINFO_SIZE, SignalSet};
use crate::model::thread::{Registers, Rseq};

const NT_X86_XSTATE: usize = 0x202;
const NT_386_IOPERM: usize = 0x201;
const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4211;
const PTRACE_PEEKSIGINFO_SHARED: u32 = 1;

/// The largest XSAVE area that a kernel can report: every component up to AMX's tiles fits in a
/// quarter of this.
const XSTATE_LIMIT: usize = 64 * 1024;

/// How long news about others may wait before the one that is waited for is looked at again.
const OTHERS_NEWS: Duration = Duration::from_micros(100);

/// How many siginfo are fetched by one PEEKSIGINFO.
const SIGINFO_BATCH: usize = 32;

const _: () = assert!(size_of::<libc::siginfo_t>() == SIGINFO_SIZE);

/// How a stopped tracee goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Until something else stops it (PTRACE_CONT).
    Run,
    /// Until it enters or leaves a system call (PTRACE_SYSCALL).
    ToSystemCall,
    /// Not at all: it stays in its group stop, and reports its end (PTRACE_LISTEN).
    Listen,
    /// One instruction further (PTRACE_SINGLESTEP).
    Step,
}

/// Why a tracee does not run: one report of waitid(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A trap asked for with PTRACE_INTERRUPT, or one that the kernel makes after SIGCONT. The
    /// thread is at the kernel's own place for delivering signals.
    Trap,
    /// The group stop of a process stopped by this job-control signal; same place.
    Group(i32),
    /// A signal is about to be delivered.
    Signal(i32),
    /// Entering or leaving a system call.
    SystemCall,
    /// Another event (PTRACE_EVENT_*), with its number.
    Event(i32),
    /// It exited with this status.
    Exited(i32),
    /// It was ended by this signal.
    Killed(i32),
}

/// Which queue of pending signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// Signals for this thread alone.
    Thread,
    /// Signals for the process as a whole.
    Process,
}

/// Attaches to a thread without stopping it. System-call stops will be told apart from SIGTRAP
/// (PTRACE_O_TRACESYSGOOD): without that a tracer that dies in one leaves a real SIGTRAP behind.
/// The thread survives its tracer: PTRACE_O_EXITKILL is not set.
///
/// # Errors
/// EPERM when not allowed, already traced or ended; ESRCH when there is no such thread.
pub fn seize(tid: Pid) -> nix::Result<()> {
    request(libc::PTRACE_SEIZE, tid, 0, to_usize_from_int(libc::PTRACE_O_TRACESYSGOOD))
}

/// Attaches to a thread that is to die with its tracer, as [`seize`] otherwise.
///
/// # Errors
/// As [`seize`].
pub fn seize_to_die_with_tracer(tid: Pid) -> nix::Result<()> {
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL;
    request(libc::PTRACE_SEIZE, tid, 0, to_usize_from_int(options))
}

/// Attaches to a thread that, should it be killed, is not to be gone before its tracer is: it stops on its way
/// out, with all that it traces still held by it, until the tracer has ended.
///
/// # Errors
/// As [`seize`].
pub fn seize_to_outlast(tid: Pid) -> nix::Result<()> {
    request(libc::PTRACE_SEIZE, tid, 0, to_usize_from_int(libc::PTRACE_O_TRACEEXIT))
}

/// Attaches to a process that is to execute the restorer blob: it stops after the `execve`, its new
/// threads and children are attached as they are made, and all die with their tracer.
///
/// # Errors
/// As [`seize`].
pub fn seize_to_rebuild(tid: Pid) -> nix::Result<()> {
    let options = libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_EXITKILL
        | libc::PTRACE_O_TRACEEXEC
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACECLONE;
    request(libc::PTRACE_SEIZE, tid, 0, to_usize_from_int(options))
}

/// Whether the processes that a stopped thread makes from now on are attached as they are made, with
/// these same options, stopping it with [`Stop::Event`].
///
/// # Errors
/// ESRCH when it is not stopped or has ended.
pub fn follow_births(tid: Pid, follow: bool) -> nix::Result<()> {
    let follow = if follow { libc::PTRACE_O_TRACECLONE } else { 0 };
    let options = libc::PTRACE_O_TRACESYSGOOD | follow;
    request(libc::PTRACE_SETOPTIONS, tid, 0, to_usize_from_int(options))
}

/// Has a stopped thread stop once more when it ends, with [`Stop::Event`] of PTRACE_EVENT_EXIT, and die
/// with its tracer until then.
///
/// # Errors
/// ESRCH when it is not stopped or has ended.
pub fn stop_at_exit(tid: Pid) -> nix::Result<()> {
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACEEXIT;
    request(libc::PTRACE_SETOPTIONS, tid, 0, to_usize_from_int(options))
}

/// Has a stopped thread die with its tracer from now on.
///
/// # Errors
/// ESRCH when it is not stopped or has ended.
pub fn end_with_tracer(tid: Pid) -> nix::Result<()> {
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL;
    request(libc::PTRACE_SETOPTIONS, tid, 0, to_usize_from_int(options))
}

/// The thread that the event of a stop is about: the new one after PTRACE_EVENT_CLONE, in the
/// caller's numbering.
///
/// # Errors
/// ESRCH when it is not stopped or has ended.
pub fn event_thread(tid: Pid) -> nix::Result<Pid> {
    let mut message: libc::c_ulong = 0;
    // SAFETY: GETEVENTMSG writes one `unsigned long` to `data`, which points to one.
    unsafe { request_with(libc::PTRACE_GETEVENTMSG, tid, 0, (&raw mut message).cast())? };
    i32::try_from(message).map(Pid::from_raw).map_err(|_| Errno::ERANGE)
}

/// Asks a seized thread to stop with [`Stop::Trap`], or [`Stop::Group`] in a stopped process.
///
/// # Errors
/// ESRCH when it has ended.
pub fn interrupt(tid: Pid) -> nix::Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0)
}

/// Lets a stopped thread go on; `signal` is delivered to it, 0 is none.
///
/// # Errors
/// ESRCH when it is not stopped or has ended.
pub fn resume(tid: Pid, how: Resume, signal: i32) -> nix::Result<()> {
    let operation = match how {
        Resume::Run => libc::PTRACE_CONT,
        Resume::ToSystemCall => libc::PTRACE_SYSCALL,
        Resume::Listen => libc::PTRACE_LISTEN,
        Resume::Step => libc::PTRACE_SINGLESTEP,
    };
    request(operation, tid, 0, to_usize_from_int(signal))
}

/// Lets a stopped thread go for good. A thread of a stopped process stays stopped.
///
/// # Errors
/// ESRCH when it is not stopped or has ended.
pub fn detach(tid: Pid, signal: i32) -> nix::Result<()> {
    request(libc::PTRACE_DETACH, tid, 0, to_usize_from_int(signal))
}

/// The general registers, in the 64-bit layout also for a thread that runs 32-bit code (its `cs`
/// tells).
///
/// # Errors
/// ESRCH when it is not stopped or has ended.
pub fn registers(tid: Pid) -> nix::Result<Registers> {
    // SAFETY: the structure is plain integers, for which zero is a value.
    let mut raw: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    // SAFETY: GETREGS writes one `user_regs_struct` to `data`, which points to one.
    unsafe { request_with(libc::PTRACE_GETREGS, tid, 0, (&raw mut raw).cast())? };
    Ok(Registers {
        r15: raw.r15,
        r14: raw.r14,
        r13: raw.r13,
        r12: raw.r12,
        rbp: raw.rbp,
        rbx: raw.rbx,
        r11: raw.r11,
        r10: raw.r10,
        r9: raw.r9,
        r8: raw.r8,
        rax: raw.rax,
        rcx: raw.rcx,
        rdx: raw.rdx,
        rsi: raw.rsi,
        rdi: raw.rdi,
        orig_rax: raw.orig_rax,
        rip: raw.rip,
        cs: raw.cs,
        eflags: raw.eflags,
        rsp: raw.rsp,
        ss: raw.ss,
        fs_base: raw.fs_base,
        gs_base: raw.gs_base,
        ds: raw.ds,
        es: raw.es,
        fs: raw.fs,
        gs: raw.gs,
    })
}

/// Sets the general registers.
///
/// # Errors
/// ESRCH when it is not stopped or has ended, EIO for a value that no user program may have.
pub fn set_registers(tid: Pid, registers: &Registers) -> nix::Result<()> {
    let mut raw = libc::user_regs_struct {
        r15: registers.r15,
        r14: registers.r14,
        r13: registers.r13,
        r12: registers.r12,
        rbp: registers.rbp,
        rbx: registers.rbx,
        r11: registers.r11,
        r10: registers.r10,
        r9: registers.r9,
        r8: registers.r8,
        rax: registers.rax,
        rcx: registers.rcx,
        rdx: registers.rdx,
        rsi: registers.rsi,
        rdi: registers.rdi,
        orig_rax: registers.orig_rax,
        rip: registers.rip,
        cs: registers.cs,
        eflags: registers.eflags,
        rsp: registers.rsp,
        ss: registers.ss,
        fs_base: registers.fs_base,
        gs_base: registers.gs_base,
        ds: registers.ds,
        es: registers.es,
        fs: registers.fs,
        gs: registers.gs,
    };
    // SAFETY: SETREGS reads one `user_regs_struct` from `data`, which points to one.
    unsafe { request_with(libc::PTRACE_SETREGS, tid, 0, (&raw mut raw).cast()) }
}

/// The register that a system call returns its result in, alone: cheaper than [`registers`].
///
/// # Errors
/// ESRCH when it is not stopped or has ended.
pub fn result_register(tid: Pid) -> nix::Result<i64> {
    let mut value: u64 = 0;
    let offset =
        std::mem::offset_of!(libc::user, regs) + std::mem::offset_of!(libc::user_regs_struct, rax);
    // SAFETY: the system call (not the library's wrapper) of PEEKUSER writes one word to `data`,
    // which points to one.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_ptrace,
            to_usize_from_int(libc::PTRACE_PEEKUSER.cast_signed()),
            tid.as_raw(),
            offset,
            &raw mut value,
        )
    };
    Errno::result(outcome)?;
    Ok(value.cast_signed())
}

/// The XSAVE area in the standard format (NT_X86_XSTATE).
///
/// # Errors
/// ESRCH when it is not stopped or has ended; ENODEV on a CPU without XSAVE.
pub fn xstate(tid: Pid) -> nix::Result<Vec<u8>> {
    let mut bytes = vec![0; XSTATE_LIMIT];
    let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: GETREGSET writes at most `iov_len` bytes to `iov_base`, which is a buffer of that
    // size, and updates `iov_len`.
    unsafe {
        request_with(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE, (&raw mut vector).cast())?;
    }
    bytes.truncate(vector.iov_len);
    bytes.shrink_to_fit();
    Ok(bytes)
}

/// Sets the XSAVE area from the standard format.
///
/// # Errors
/// ESRCH when it is not stopped or has ended; EINVAL or EFAULT when this CPU cannot hold it.
pub fn set_xstate(tid: Pid, bytes: &[u8]) -> nix::Result<()> {
    let mut vector =
        libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: SETREGSET reads at most `iov_len` bytes from `iov_base`, which is a buffer of that
    // size, and writes only `vector`.
    unsafe { request_with(libc::PTRACE_SETREGSET, tid, NT_X86_XSTATE, (&raw mut vector).cast()) }
}

/// Whether the thread may use I/O ports (ioperm(2)). Nobody tells of iopl(2).
///
/// # Errors
/// ESRCH when it is not stopped or has ended.
pub fn may_use_ports(tid: Pid) -> nix::Result<bool> {
    let mut word = [0_u8; 8];
    let mut vector = libc::iovec { iov_base: word.as_mut_ptr().cast(), iov_len: word.len() };
    // SAFETY: GETREGSET writes at most `iov_len` bytes to `iov_base`, which is a buffer of that size, and
    // updates `iov_len`.
    let asked = unsafe {
        request_with(libc::PTRACE_GETREGSET, tid, NT_386_IOPERM, (&raw mut vector).cast())
    };
    match asked {
        Ok(()) => Ok(true),
        // None; or a kernel without.
        Err(Errno::ENXIO | Errno::ENODEV | Errno::EINVAL | Errno::EIO) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the thread has its system calls raise SIGSYS (PR_SET_SYSCALL_USER_DISPATCH). A kernel before
/// 6.4 does not tell.
///
/// # Errors
/// ESRCH when it is not stopped or has ended.
pub fn dispatches_system_calls(tid: Pid) -> nix::Result<bool> {
    /// `struct ptrace_sud_config`: mode, selector, offset, length.
    type Configuration = [u64; 4];
    let mut raw: Configuration = [0; 4];
    // SAFETY: this request writes `addr` bytes to `data`, which points to as many.
    let outcome = unsafe {
        request_with(
            PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG,
            tid,
            size_of::<Configuration>(),
            (&raw mut raw).cast(),
        )
    };
    match outcome {
        Ok(()) => Ok(raw[0] != 0),
        Err(Errno::EIO) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The blocked signals; of a thread inside a call with a temporary mask, those that will be
/// blocked after it.
///
/// # Errors
/// ESRCH when it is not stopped or has ended.
pub fn signal_mask(tid: Pid) -> nix::Result<SignalSet> {
    let mut mask: u64 = 0;
    // SAFETY: GETSIGMASK writes `addr` = 8 bytes to `data`, which points to as many.
    unsafe {
        request_with(PTRACE_GETSIGMASK, tid, size_of::<u64>(), (&raw mut mask).cast())?;
    }
    Ok(SignalSet(mask))
}

/// Sets the blocked signals; a temporary mask is forgotten. SIGKILL and SIGSTOP cannot be blocked.
///
/// # Errors
/// ESRCH when it is not stopped or has ended.
pub fn set_signal_mask(tid: Pid, mask: SignalSet) -> nix::Result<()> {
    let mut raw = mask.0;
    // SAFETY: SETSIGMASK reads `addr` = 8 bytes from `data`, which points to as many.
    unsafe { request_with(PTRACE_SETSIGMASK, tid, size_of::<u64>(), (&raw mut raw).cast()) }
}

/// What is queued, oldest first, left where it is.
///
/// # Errors
/// ESRCH when it is not stopped or has ended.
pub fn pending_signals(tid: Pid, queue: Queue) -> nix::Result<Vec<PendingSignal>> {
    /// `struct ptrace_peeksiginfo_args`.
    #[repr(C)]
    struct Arguments {
        offset: u64,
        flags: u32,
        count: i32,
    }
    let flags = match queue {
        Queue::Thread => 0,
        Queue::Process => PTRACE_PEEKSIGINFO_SHARED,
    };
    let mut found = Vec::new();
    loop {
        let mut batch = [[0_u8; SIGINFO_SIZE]; SIGINFO_BATCH];
        let mut arguments = Arguments { offset: to_u64(found.len()), flags, count: 32 };
        // SAFETY: PEEKSIGINFO reads one `ptrace_peeksiginfo_args` from `addr` and writes at most
        // `count` siginfo to `data`; both point to as much.
        let outcome = unsafe {
            libc::ptrace(
                libc::PTRACE_PEEKSIGINFO,
                tid.as_raw(),
                &raw mut arguments,
                batch.as_mut_ptr(),
            )
        };
        let fetched = usize::try_from(Errno::result(outcome)?).map_err(|_| Errno::EOVERFLOW)?;
        let fetched = fetched.min(SIGINFO_BATCH);
        found.extend(batch[..fetched].iter().map(|raw| PendingSignal { siginfo: raw.to_vec() }));
        if fetched < SIGINFO_BATCH {
            return Ok(found);
        }
    }
}

/// Whether the kernel takes the number of a system call from the lower half of its register alone, so that a
/// thread may keep something in the upper one. Linux 5.10 does not yet: to it that is an unknown number.
#[must_use]
pub fn upper_half_is_free() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let number = 1_i64 << 32 | libc::SYS_getpid;
        let result: i64;
        // SAFETY: getpid takes no arguments and touches no memory, and a number that the kernel does not
        // know has no effect; SYSCALL overwrites `rcx` and `r11`.
        unsafe {
            std::arch::asm!(
                "syscall",
                inlateout("rax") number => result,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        result > 0
    })
}

/// What the kernel tells of a thread's restartable sequences (rseq(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RseqAnswer {
    /// It has registered them.
    Registered(Rseq),
    /// It has not.
    Absent,
    /// The kernel (before 5.13) does not tell.
    Untold,
}

impl RseqAnswer {
    /// What has been registered, as far as the kernel tells.
    #[must_use]
    pub const fn told(self) -> Option<Rseq> {
        match self {
            Self::Registered(rseq) => Some(rseq),
            Self::Absent | Self::Untold => None,
        }
    }
}

/// The restartable sequences that the thread has registered.
///
/// # Errors
/// ESRCH when it is not stopped or has ended; EIO when the kernel knows the request and cannot answer it.
pub fn rseq_configuration(tid: Pid) -> nix::Result<RseqAnswer> {
    /// `struct ptrace_rseq_configuration`.
    #[repr(C)]
    #[derive(Default)]
    struct Configuration {
        pointer: u64,
        size: u32,
        signature: u32,
        flags: u32,
        padding: u32,
    }
    let mut raw = Configuration::default();
    // SAFETY: the request writes at most `addr` bytes to `data`, which points to as many.
    let outcome = unsafe {
        libc::ptrace(
            PTRACE_GET_RSEQ_CONFIGURATION,
            tid.as_raw(),
            size_of::<Configuration>(),
            &raw mut raw,
        )
    };
    match Errno::result(outcome) {
        Ok(_) if raw.pointer == 0 => Ok(RseqAnswer::Absent),
        Ok(_) => Ok(RseqAnswer::Registered(Rseq {
            area: RemoteAddr(raw.pointer),
            length: raw.size,
            signature: raw.signature,
            flags: raw.flags,
        })),
        // A kernel that does not know the request says the same each time; one that does is asked for nothing
        // here, and that cannot fail.
        Err(error @ (Errno::EIO | Errno::EINVAL)) if tells_of_rseq(tid) => Err(error),
        Err(Errno::EIO | Errno::EINVAL) => Ok(RseqAnswer::Untold),
        Err(error) => Err(error),
    }
}

/// Whether the kernel knows the request that tells of restartable sequences.
fn tells_of_rseq(tid: Pid) -> bool {
    let (size, nowhere) = (0_usize, std::ptr::null_mut::<libc::c_void>());
    // SAFETY: the request writes at most `addr` bytes to `data`, which is none.
    let outcome =
        unsafe { libc::ptrace(PTRACE_GET_RSEQ_CONFIGURATION, tid.as_raw(), size, nowhere) };
    outcome != -1
}

/// The arguments with which rseq(2) never succeeds, and its error tells whether the calling thread has
/// registered an area ([`rseq_is_registered`]): one that no program can have. Whether another one is there is
/// looked at first, whether this one is mapped last (`kernel/rseq.c`, since Linux 4.18).
pub const RSEQ_QUESTION: [u64; 4] = [0xffff_8000_0000_0000, 32, 0, 0];

/// What the answer to [`RSEQ_QUESTION`] says.
///
/// # Errors
/// The answer, when it says nothing of that.
pub const fn rseq_is_registered(answer: Result<u64, Errno>) -> nix::Result<bool> {
    match answer {
        Err(Errno::EINVAL | Errno::EPERM | Errno::EBUSY) => Ok(true),
        // The address, or a kernel without.
        Err(Errno::EFAULT | Errno::ENOSYS) => Ok(false),
        Err(error) => Err(error),
        Ok(_) => Err(Errno::EPROTO),
    }
}

/// Writes one word into a tracee's memory, also where it is not writable for itself.
///
/// # Errors
/// EIO when nothing is mapped there; ESRCH when it is not stopped or has ended.
pub fn poke(tid: Pid, address: RemoteAddr, word: u64) -> nix::Result<()> {
    request(libc::PTRACE_POKEDATA, tid, to_usize(address.0), to_usize(word))
}

/// Waits until a thread stops or ends. The end of a child of this very process is only looked at
/// (`reap` false), so that whoever waits for it still gets its status; stops are always consumed.
///
/// # Errors
/// ECHILD when the thread is not traced by the calling thread nor its child.
pub fn wait(tid: Pid, reap: bool) -> nix::Result<Stop> {
    loop {
        match wait_with(tid, reap, 0) {
            Ok(Some(stop)) => return Ok(stop),
            Ok(None) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// As [`wait`], for the main thread of a process whose other threads are traced by the calling thread, too.
/// When such a process is killed, the end of its main thread is told only once those of all others have been
/// taken note of, and [`wait`] would wait for ever: it counts as killed when it has ended.
///
/// # Errors
/// As [`wait`].
pub fn wait_for_main(tid: Pid, reap: bool) -> nix::Result<Stop> {
    let any = libc::WSTOPPED | libc::WEXITED | libc::__WALL | libc::__WNOTHREAD | libc::WNOWAIT;
    loop {
        match poll(tid, reap) {
            Ok(Some(stop)) => return Ok(stop),
            Ok(None) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
        match wait_once(libc::P_ALL, tid, any) {
            Ok(Some((news, _))) if news == tid => {}
            Ok(_) if has_ended(tid) => return Ok(Stop::Killed(libc::SIGKILL)),
            // It is about another one, which waits to be asked, and would be told again at once.
            Ok(_) => thread::sleep(OTHERS_NEWS),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether a thread runs no more, told or not. One that cannot be looked at, for want of descriptors or
/// memory, counts as running: it would be left where it is, in the middle of what it was made to do.
fn has_ended(tid: Pid) -> bool {
    match fs::read(format!("/proc/{tid}/stat")) {
        Ok(stat) => says_ended(&stat),
        Err(error) => matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)),
    }
}

/// Whether what /proc/PID/stat says is of a thread that runs no more: the state follows the name, which is
/// in parentheses and may be any words.
fn says_ended(stat: &[u8]) -> bool {
    let name_end = stat.iter().rposition(|byte| *byte == b')');
    let state = name_end.and_then(|end| stat.get(end + 2));
    state.is_some_and(|state| matches!(state, b'Z' | b'X'))
}

/// As [`wait`], but does not block: `None` when nothing has happened.
///
/// # Errors
/// As [`wait`].
pub fn poll(tid: Pid, reap: bool) -> nix::Result<Option<Stop>> {
    wait_with(tid, reap, libc::WNOHANG)
}

fn wait_with(tid: Pid, reap: bool, flags: libc::c_int) -> nix::Result<Option<Stop>> {
    let all = libc::WSTOPPED | libc::WEXITED | libc::__WALL | flags;
    if reap {
        return Ok(wait_once(libc::P_PID, tid, all)?.map(|(_, stop)| stop));
    }
    let looked = wait_once(libc::P_PID, tid, all | libc::WNOWAIT)?;
    let Some((_, stop)) = looked else { return Ok(None) };
    if matches!(stop, Stop::Exited(_) | Stop::Killed(_)) {
        return Ok(Some(stop));
    }
    // Between the look and this a thread can only have been killed, which is then the news.
    Ok(wait_once(libc::P_PID, tid, all)?.map(|(_, stop)| stop))
}

/// Who has stopped or ended, and how.
fn wait_once(
    whom: libc::idtype_t,
    tid: Pid,
    flags: libc::c_int,
) -> nix::Result<Option<(Pid, Stop)>> {
    let id = libc::id_t::try_from(tid.as_raw()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: `siginfo_t` is plain data, for which zero is a value.
    let mut information: libc::siginfo_t = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: waitid writes one `siginfo_t`, to which the pointer leads.
        let outcome = unsafe { libc::waitid(whom, id, &raw mut information, flags) };
        match Errno::result(outcome) {
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    // SAFETY: waitid fills the fields of SIGCHLD, or leaves all zero when there is no news.
    let (pid, status) = unsafe { (information.si_pid(), information.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let stop = match information.si_code {
        libc::CLD_EXITED => Stop::Exited(status),
        libc::CLD_KILLED | libc::CLD_DUMPED => Stop::Killed(status),
        _ => decode_stop(status),
    };
    Ok(Some((Pid::from_raw(pid), stop)))
}

/// What the status of a stopped tracee says: the signal in the low byte, the event above it.
fn decode_stop(status: i32) -> Stop {
    let signal = status & 0xff;
    match status >> 8 {
        0 if signal == libc::SIGTRAP | 0x80 => Stop::SystemCall,
        0 => Stop::Signal(signal),
        libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Trap,
        libc::PTRACE_EVENT_STOP => Stop::Group(signal),
        event => Stop::Event(event),
    }
}

fn request(operation: libc::c_uint, tid: Pid, address: usize, data: usize) -> nix::Result<()> {
    // SAFETY: requests made through here take plain numbers, and touch no memory of this process.
    let outcome = unsafe {
        libc::ptrace(
            operation,
            tid.as_raw(),
            ptr::without_provenance_mut::<libc::c_void>(address),
            ptr::without_provenance_mut::<libc::c_void>(data),
        )
    };
    Errno::result(outcome).map(drop)
}

/// # Safety
/// `data` must point to what the operation reads or writes there.
unsafe fn request_with(
    operation: libc::c_uint,
    tid: Pid,
    address: usize,
    data: *mut libc::c_void,
) -> nix::Result<()> {
    // SAFETY: as demanded of the caller; `address` is a plain number for these operations.
    let outcome = unsafe {
        libc::ptrace(
            operation,
            tid.as_raw(),
            ptr::without_provenance_mut::<libc::c_void>(address),
            data,
        )
    };
    Errno::result(outcome).map(drop)
}

/// A small non-negative constant or signal number as the word that ptrace takes.
fn to_usize_from_int(value: libc::c_int) -> usize {
    usize::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_by_the_state_behind_the_name() {
        let check = |stat: &str, expected: bool| {
            assert_eq!(says_ended(stat.as_bytes()), expected, "{stat}");
        };
        check("7 (a) Z (b) R 1 7", false);
        check("7 (a) S (b) Z 1 7", true);
        check("7 (a) X", true);
        check("7 (a)", false);
        check("", false);
    }

    #[test]
    fn it_can_be_asked_whether_an_area_is_registered() {
        let check = |answer, expected| assert_eq!(rseq_is_registered(answer), expected);
        check(Err(Errno::EINVAL), Ok(true));
        check(Err(Errno::EFAULT), Ok(false));
        check(Err(Errno::ENOSYS), Ok(false));
        check(Err(Errno::ENOMEM), Err(Errno::ENOMEM));
        let [area, length, flags, signature] = RSEQ_QUESTION;
        // SAFETY: the kernel refuses these arguments in any case.
        let asked = unsafe { libc::syscall(libc::SYS_rseq, area, length, flags, signature) };
        let answer = Errno::result(asked).map(i64::cast_unsigned);
        assert!(rseq_is_registered(answer).is_ok(), "{answer:?}");
    }

    #[test]
    fn stops_are_told_apart() {
        let check = |status: i32, expected: Stop| assert_eq!(decode_stop(status), expected);
        check(libc::SIGTRAP | 0x80, Stop::SystemCall);
        check(libc::SIGTRAP, Stop::Signal(libc::SIGTRAP));
        check(libc::SIGSTOP, Stop::Signal(libc::SIGSTOP));
        check(64, Stop::Signal(64));
        check(libc::SIGTRAP | libc::PTRACE_EVENT_STOP << 8, Stop::Trap);
        check(libc::SIGTSTP | libc::PTRACE_EVENT_STOP << 8, Stop::Group(libc::SIGTSTP));
        check(libc::SIGTRAP | libc::PTRACE_EVENT_EXEC << 8, Stop::Event(libc::PTRACE_EVENT_EXEC));
    }
}
