//! Calls that fail without having been made: which errors are plausible for each, and how a traced
//! thread is made to see one.

use std::fs;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::unistd::Pid;

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not made, and fails with this.
    Instead(Errno),
    /// It is made, and fails with this: what close(2) was told to close is closed all the same.
    Afterwards(Errno),
    /// It does only half of what it was asked for.
    Short,
}

/// A call that a thread is about to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its number.
    pub number: i64,
    /// Its first three arguments.
    pub arguments: [u64; 3],
    /// Whether it closes a directory: the standard library takes it for granted that this succeeds.
    closes_directory: bool,
    /// Whether it maps memory, and no file.
    maps_memory: bool,
}

/// What has to be put right when a call that was tampered with returns.
#[derive(Clone, Copy, Debug)]
pub enum Mending {
    /// It returns this.
    Result(Errno),
    /// The length that it was asked for is in the third argument again.
    Length(u64),
}

/// The call that a thread has stopped at the entry of; `None`: the thread has been killed.
pub fn call_of(thread: Pid) -> Option<Call> {
    let registers = ptrace::getregs(thread).ok()?;
    let arguments = [registers.rdi, registers.rsi, registers.rdx];
    let number = registers.orig_rax.cast_signed();
    let leads = || fs::metadata(format!("/proc/{thread}/fd/{}", arguments[0]));
    let closes_directory = number == libc::SYS_close && leads().map_or(true, |it| it.is_dir());
    let anonymous = u64::from(libc::MAP_ANONYMOUS.unsigned_abs());
    let maps_memory = number == libc::SYS_mmap && registers.r10 & anonymous != 0;
    Some(Call { number, arguments, closes_directory, maps_memory })
}

/// Has the call that a thread is about to make go wrong.
pub fn inflict(thread: Pid, fault: Fault) -> Option<Mending> {
    let mut registers = ptrace::getregs(thread).ok()?;
    let mending = match fault {
        Fault::Instead(errno) => {
            // No call has this number, and the kernel takes up none that has it after a signal.
            registers.orig_rax = u64::MAX;
            Mending::Result(errno)
        }
        Fault::Afterwards(errno) => Mending::Result(errno),
        Fault::Short => {
            let length = registers.rdx;
            registers.rdx = length.div_ceil(2);
            Mending::Length(length)
        }
    };
    ptrace::setregs(thread, registers).ok()?;
    Some(mending)
}

/// Puts right what a thread sees when the call is over.
pub fn mend(thread: Pid, mending: Mending) {
    let Ok(mut registers) = ptrace::getregs(thread) else { return };
    match mending {
        Mending::Result(errno) => registers.rax = (-i64::from(errno as i32)).cast_unsigned(),
        Mending::Length(length) => registers.rdx = length,
    }
    // Whoever has been killed meanwhile needs nothing.
    ptrace::setregs(thread, registers).unwrap_or_default();
}

/// The errors with which a call may fail on a machine that is short of something, out of order, or used
/// by others at the same time: what somebody may do stays. None for calls that cannot fail when they are made rightly.
pub fn plausible(call: &Call) -> Vec<Fault> {
    let mut faults: Vec<Fault> = errors(call).iter().copied().map(Fault::Instead).collect();
    match call.number {
        libc::SYS_close if !call.closes_directory => faults.extend([Fault::Afterwards(Errno::EIO)]),
        libc::SYS_read | libc::SYS_write | libc::SYS_pread64 | libc::SYS_pwrite64
            if call.arguments[2] > 1 =>
        {
            faults.push(Fault::Short);
        }
        _ => {}
    }
    faults
}

fn errors(call: &Call) -> &'static [Errno] {
    use Errno::{
        EACCES, EAGAIN, EDQUOT, EINTR, EIO, EMFILE, EMLINK, ENFILE, ENOBUFS, ENOLCK, ENOMEM,
        ENOSPC, EPERM, EROFS, ESRCH, EXDEV,
    };
    match call.number {
        libc::SYS_openat | libc::SYS_open if is_for_writing(call) => {
            &[ENOSPC, EDQUOT, EIO, EROFS, ENOMEM, EMFILE]
        }
        libc::SYS_openat | libc::SYS_open | libc::SYS_openat2 => &[EMFILE, ENFILE, ENOMEM, EIO],
        libc::SYS_read | libc::SYS_pread64 | libc::SYS_readv | libc::SYS_preadv => {
            &[EIO, EINTR, ENOMEM]
        }
        libc::SYS_write | libc::SYS_pwrite64 | libc::SYS_writev | libc::SYS_pwritev => {
            &[ENOSPC, EDQUOT, EIO, EINTR]
        }
        libc::SYS_fsync | libc::SYS_fdatasync | libc::SYS_syncfs | libc::SYS_sync_file_range => {
            &[EIO, ENOSPC, EDQUOT]
        }
        libc::SYS_rename | libc::SYS_renameat | libc::SYS_renameat2 => {
            &[ENOSPC, EIO, EDQUOT, EPERM]
        }
        libc::SYS_mkdir | libc::SYS_mkdirat | libc::SYS_symlink | libc::SYS_symlinkat => {
            &[ENOSPC, EDQUOT, EIO, EROFS]
        }
        libc::SYS_link | libc::SYS_linkat => &[EMLINK, EXDEV, EPERM, ENOSPC, EIO],
        libc::SYS_unlink | libc::SYS_unlinkat | libc::SYS_rmdir => &[EIO, EPERM, ENOMEM],
        libc::SYS_ftruncate | libc::SYS_fallocate => &[ENOSPC, EIO, EINTR],
        libc::SYS_fchmod | libc::SYS_fchmodat | libc::SYS_chmod => &[EPERM, EIO],
        libc::SYS_stat
        | libc::SYS_lstat
        | libc::SYS_fstat
        | libc::SYS_newfstatat
        | libc::SYS_statx
        | libc::SYS_statfs
        | libc::SYS_fstatfs
        | libc::SYS_readlink
        | libc::SYS_readlinkat
        | libc::SYS_getdents64 => &[EIO, ENOMEM],
        libc::SYS_flock => &[ENOLCK, EINTR, EIO],
        libc::SYS_fcntl if is_duplication(call) => &[EMFILE],
        libc::SYS_dup | libc::SYS_dup2 | libc::SYS_dup3 => &[EMFILE, EINTR],
        // What the allocator asks for, by brk the C library at its start, and the end of each thread's stack: a
        // program that is refused that ends there and then, as the tests that kill it have it.
        libc::SYS_mmap if call.maps_memory => &[],
        libc::SYS_mprotect if call.arguments[2] == 0 => &[],
        libc::SYS_mmap | libc::SYS_mremap | libc::SYS_mprotect => &[ENOMEM],
        libc::SYS_madvise => &[ENOMEM, EAGAIN],
        libc::SYS_clone | libc::SYS_clone3 | libc::SYS_fork | libc::SYS_vfork => &[EAGAIN, ENOMEM],
        // Only a thread that was killed meanwhile cannot be let go on, or be given its registers back: whoever is
        // told so, and it is not true, can only leave it as it is.
        libc::SYS_ptrace if lets_go(call) || puts_back(call) => &[],
        libc::SYS_ptrace => &[ESRCH, EPERM, EIO],
        libc::SYS_process_vm_readv | libc::SYS_process_vm_writev => &[ESRCH, EPERM, ENOMEM],
        libc::SYS_wait4 | libc::SYS_waitid => &[EINTR],
        libc::SYS_poll | libc::SYS_ppoll | libc::SYS_epoll_wait | libc::SYS_epoll_pwait => {
            &[EINTR, ENOMEM]
        }
        libc::SYS_nanosleep | libc::SYS_clock_nanosleep => &[EINTR],
        libc::SYS_pidfd_open => &[EMFILE, ENOMEM, ESRCH],
        libc::SYS_pidfd_getfd => &[EMFILE, EPERM, ESRCH],
        libc::SYS_kill | libc::SYS_tgkill | libc::SYS_pidfd_send_signal => &[EPERM, ESRCH],
        libc::SYS_ioctl => &[EIO, ENOMEM, EPERM, EINTR],
        libc::SYS_socket | libc::SYS_socketpair => &[EMFILE, ENOMEM, ENOBUFS, EACCES],
        libc::SYS_bind | libc::SYS_listen => &[ENOMEM, EACCES],
        libc::SYS_connect => &[EAGAIN, EINTR, ENOMEM],
        libc::SYS_accept | libc::SYS_accept4 => &[EMFILE, ENOMEM, EINTR],
        libc::SYS_sendto | libc::SYS_sendmsg => &[ENOBUFS, ENOMEM, EINTR],
        libc::SYS_recvfrom | libc::SYS_recvmsg => &[ENOMEM, EINTR],
        libc::SYS_getsockopt | libc::SYS_setsockopt => &[ENOBUFS, ENOMEM, EPERM],
        libc::SYS_memfd_create
        | libc::SYS_pipe2
        | libc::SYS_eventfd2
        | libc::SYS_timerfd_create
        | libc::SYS_signalfd4
        | libc::SYS_userfaultfd
        | libc::SYS_inotify_init1
        | libc::SYS_epoll_create1 => &[EMFILE, ENFILE, ENOMEM],
        libc::SYS_inotify_add_watch | libc::SYS_epoll_ctl => &[ENOSPC, ENOMEM],
        libc::SYS_splice | libc::SYS_tee | libc::SYS_copy_file_range | libc::SYS_sendfile => {
            &[EIO, ENOMEM, EINTR]
        }
        libc::SYS_kcmp | libc::SYS_get_robust_list => &[EPERM, ESRCH],
        libc::SYS_prlimit64
        | libc::SYS_sched_setscheduler
        | libc::SYS_sched_getscheduler
        | libc::SYS_sched_getaffinity
        | libc::SYS_sched_getattr
        | libc::SYS_getpriority
        | libc::SYS_setpriority
        | libc::SYS_ioprio_get
        | libc::SYS_ioprio_set => &[EPERM, ESRCH],
        libc::SYS_mount | libc::SYS_umount2 | libc::SYS_setns | libc::SYS_unshare => {
            &[EPERM, ENOMEM, ENOSPC]
        }
        libc::SYS_chdir | libc::SYS_fchdir | libc::SYS_chroot => &[EACCES, EIO],
        libc::SYS_prctl | libc::SYS_setsid | libc::SYS_setpgid => &[EPERM],
        libc::SYS_timerfd_settime | libc::SYS_timer_create => &[ENOMEM],
        libc::SYS_shmget | libc::SYS_shmat | libc::SYS_semget | libc::SYS_msgget => {
            &[ENOSPC, ENOMEM]
        }
        _ => &[],
    }
}

fn is_for_writing(call: &Call) -> bool {
    let flags = if call.number == libc::SYS_open { call.arguments[1] } else { call.arguments[2] };
    flags & u64::from((libc::O_CREAT | libc::O_WRONLY | libc::O_RDWR).unsigned_abs()) != 0
}

fn is_duplication(call: &Call) -> bool {
    [libc::F_DUPFD, libc::F_DUPFD_CLOEXEC]
        .map(|it| u64::from(it.unsigned_abs()))
        .contains(&call.arguments[1])
}

/// Whether a call of ptrace sets what a thread has.
fn puts_back(call: &Call) -> bool {
    const SET_SIGNAL_MASK: libc::c_uint = 0x420b;
    [
        libc::PTRACE_POKETEXT,
        libc::PTRACE_POKEDATA,
        libc::PTRACE_SETREGS,
        libc::PTRACE_SETFPREGS,
        libc::PTRACE_SETREGSET,
        SET_SIGNAL_MASK,
    ]
    .iter()
    .any(|request| call.arguments[0] == u64::from(*request))
}

fn lets_go(call: &Call) -> bool {
    [libc::PTRACE_CONT, libc::PTRACE_SYSCALL, libc::PTRACE_SINGLESTEP, libc::PTRACE_DETACH]
        .map(u64::from)
        .contains(&call.arguments[0])
}

/// The name of a call, for messages.
pub fn name(number: i64) -> String {
    let names = fs::read_to_string("/usr/include/x86_64-linux-gnu/asm/unistd_64.h");
    let names = names.unwrap_or_default();
    let found = names.lines().find_map(|line| {
        let (name, value) = line.strip_prefix("#define __NR_")?.split_once(' ')?;
        (value.parse() == Ok(number)).then_some(name)
    });
    found.map_or_else(|| format!("call {number}"), str::to_owned)
}
