//! What about a job's processes cannot be saved.

use super::area;

const ELSEWHERE: &str =
    "take the checkpoint in a phase where the program does not use it, or switch it off";

area! {
    "Refused: processes"

    REFUSED = 300, "the job cannot be saved as it is";
    because "Something of it could not be brought back as it was, so no checkpoint is written rather than a wrong \
        one. The lines below the message name each thing, with a code of its own.";
    remedy "see to each line; rckpt check PID tells the same without taking a checkpoint. The job runs on";

    OTHER_NAMESPACE = 301, "a process is in another namespace than rckpt";
    because "It lives in a container of its own, and a restore would put it into rckpt's.";
    remedy "run rckpt where the job runs: inside that container, or as its first program";

    NAMESPACE_FOR_CHILDREN = 302, "a process's children will be in another namespace than itself";
    because "It has called unshare or setns for its children, and a restore does not make such namespaces.";
    remedy "let the program be started in that namespace as a whole, and rckpt with it";

    OTHER_USER = 303, "a process runs as another user";
    because "A restore as a plain user has one user id to give.";
    remedy "run rckpt as root, or let the job keep the user that it was started as";

    OTHER_GROUP = 304, "a process runs with another group";
    because "A restore as a plain user has one group id to give.";
    remedy "run rckpt with that group (newgrp, sg), or as root";

    SECCOMP = 305, "a process has seccomp filters";
    because "The kernel does not show them to a plain user, so they could not be put back.";
    remedy "start the job outside of the sandbox, or rckpt and the job inside of it without filters";

    THREAD_FEATURES = 306, "a process has CPU features switched on that are not supported";
    because "Shadow stacks and the like are state of the CPU that this rckpt cannot bring back.";
    remedy "start the job with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off";

    ADDRESS_MASKING = 307, "a process has address masking switched on";
    because "Linear address masking (LAM) cannot be brought back by this rckpt.";
    remedy "run the program without the sanitizer or runtime that switches it on";

    SPECULATION = 308, "a process has a setting against CPU flaws that is not supported";
    because "It was set with prctl(PR_SET_SPECULATION_CTRL) to a value that cannot be set again from outside.";
    remedy ELSEWHERE;

    IO_FLUSHER = 309, "a thread serves a file system";
    because "PR_SET_IO_FLUSHER is for file-system daemons and needs privilege.";
    remedy "keep such daemons out of the job";

    SYSTEM_CALL_DISPATCH = 310, "a thread catches its own system calls";
    because "PR_SET_SYSCALL_USER_DISPATCH, as Wine uses it, would catch rckpt's calls, too.";
    remedy "run the program natively";

    CORE_SCHEDULING = 311, "a thread shares CPU cores only with certain others";
    because "A core scheduling cookie (PR_SCHED_CORE) has no number by which it could be made again.";
    remedy "start the job without it";

    SHARED_ACTIONS = 312, "two processes share their signal actions without being parent and child";
    because "A clone with CLONE_SIGHAND shares them with its parent; between others no order of births leads there.";
    remedy "start the one from the other, or as a thread";

    THREAD_OWNS = 313, "a thread has left what its process shares";
    because "It has called unshare for its own descriptors, directory or the like.";
    remedy ELSEWHERE;

    FOREIGN_TIMER = 314, "a timer runs on another task's CPU clock";
    because "The other task's clock begins anew in a restore.";
    remedy ELSEWHERE;

    TIMER_THREAD = 315, "a timer tells a thread that has ended";
    because "A new timer cannot be made for a thread that is not there.";
    remedy "let the program delete the timer when the thread ends";

    NO_VDSO = 316, "a process has no vDSO";
    because "What rckpt asks of a process from inside is asked from a place in the vDSO, which it has unmapped.";
    remedy "start the program with its vDSO (not under vdso=0)";

    RSEQ_UNTOLD = 317, "a thread has registered restartable sequences, and this kernel does not tell where";
    because "Before Linux 5.13 nobody can find the area (rseq) that a thread shares with the kernel; glibc 2.35 and later register one.";
    remedy "start the program with GLIBC_TUNABLES=glibc.pthread.rseq=0, or on Linux 5.13 or later";

    SESSION_WITHOUT_LEADER = 320, "a process belongs to a session that nobody can make again";
    because "The session's leader has ended, and no order of forks among what is left leads there.";
    remedy "start the daemon under the job's shell, or keep its session's leader running";

    SHARED_BETWEEN_SIBLINGS = 321, "two processes share something without being parent and child";
    because "Such sharing is made by a clone of the one by the other, or of a parent that is gone.";
    remedy "take the checkpoint when one of them has executed its program";

    SHARED_TABLE = 322, "a process shares its parent's table of descriptors in a way that is not supported";
    because "CLONE_FILES together with what the message names cannot be made again in any order of forks.";
    remedy "take the checkpoint when the process has executed its program";

    EXIT_SIGNAL = 323, "a process tells its parent of its end by an unusual signal";
    because "It was made by clone with another signal than SIGCHLD in a way that this rckpt cannot repeat.";
    remedy "let the program use fork, or take the checkpoint when the process has ended";

    PORT_PERMISSIONS = 324, "a thread may use the I/O ports of the machine";
    because "It drives a device by itself (ioperm), which is in a state that nobody can save.";
    remedy "take the checkpoint when it has given that up, or run that part outside of the job";

    LANDLOCK = 325, "a process has bounds of its own (Landlock)";
    because "The kernel shows them to nobody, so the restored process would have none.";
    remedy "start rckpt and the job inside of the bounds, or the job without them";

    KEYRING = 326, "a process or thread has a keyring of its own";
    because "Keys are secrets of the kernel, which cannot be read and put back.";
    remedy "let the program keep its keys in the keyring of the session or the user";

    IPC_USED_OUTSIDE = 330, "a System V object is used outside of the job, too";
    because "A restored job has its own one, and would talk to nobody.";
    remedy "checkpoint the program that it belongs to, or end the other one first";

    IPC_OWNER = 331, "a System V object belongs to others";
    because "Its owner could not be set again by a plain user.";
    remedy "let the job make its own";

    IPC_UNREADABLE = 332, "a System V object cannot be read";
    because "Its permissions do not let even its owner read it.";
    remedy "let the program make it readable for its owner";

    IPC_IN_PARTS = 333, "a System V segment is attached in part";
    because "The rest of it was unmapped or moved, and shmat attaches whole segments.";
    remedy "let the program keep the whole segment attached";

    IPC_UNDO = 334, "what a process has left to be undone cannot be found out";
    because "The kernel does not show the SEM_UNDO values of a process, and they could not be told from the \
        semaphores either.";
    remedy "take the checkpoint when the process holds no semaphore, or let it work without SEM_UNDO";

    IPC_UNDO_SHARED = 335, "tasks undo semaphore operations together";
    because "CLONE_SYSVSEM between tasks that are not threads of one process cannot be made again.";
    remedy "let the program use threads, or processes made by fork";
}
