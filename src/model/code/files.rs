//! What about a job's descriptors and files cannot be saved.

use super::area;

const CLOSE: &str = "take the checkpoint when the program has it closed, or run the program in a mode that \
    does not open it";
const CLOSE_FILE: &str = "take the checkpoint when the program has closed the file";
const REMOVE_FROM_EPOLL: &str = "take the checkpoint when the program has closed the epoll instance, or has \
    removed the number from it";

area! {
    "Refused: descriptors and files"

    SOCKET = 401, "a socket cannot be saved";
    because "Its family or type is not known to this rckpt.";
    remedy CLOSE;

    FOREIGN_SOCKET = 402, "a socket of a kind that only the kernel's own tools use";
    because "Netlink, packet, raw and similar sockets talk to the kernel or the wire, whose side of the \
        conversation cannot be brought back.";
    remedy CLOSE;

    UNIX_SOCKET = 403, "a unix socket is in a state that cannot be saved";
    because "The message names the state; it cannot be made again by the calls that a program has.";
    remedy CLOSE;

    INTERNET_SOCKET = 404, "a TCP or UDP socket is in a state that cannot be saved";
    because "The message names the state; it cannot be made again by the calls that a program has.";
    remedy CLOSE;

    NETLINK_SOCKET = 405, "a netlink socket waits for something";
    because "What the kernel is about to tell it would be lost.";
    remedy CLOSE;

    INTERNET_SOCKET_PASSING = 406, "a TCP or UDP socket is in the middle of something";
    because "A connection is being made or closed, which takes a moment.";
    remedy "try again in a moment";

    TCP_OUTSIDE = 407, "a TCP connection leads outside of the job";
    because "The other end goes on without the job, and cannot be told to go back to the checkpoint.";
    remedy "close the connection in the program, or restore it as reset (--tcp-close)";

    TCP_PENDING = 408, "a TCP connection holds data that its server has not accepted yet";
    because "Nobody can see what was sent before the connection is accepted.";
    remedy "try again in a moment, when the server has accepted it";

    UNIX_NOT_ACCEPTED = 409, "a connection to a unix socket has not been accepted yet";
    because "Its client cannot be made again: it is outside of the job, or in a state that cannot be saved.";
    remedy "take the checkpoint when the server has accepted its clients";

    UNIX_SENT_OUTSIDE = 410, "something that a unix socket has sent was not found";
    because "A process outside of the job has yet to receive it, or it is an empty datagram that was looked at \
        before, which can be done but once.";
    remedy "take the checkpoint when it has been received";

    UNIX_PEER_OUTSIDE = 411, "a unix socket is connected to one outside of the job";
    because "The other end goes on without the job: a desktop, a database, a daemon of the batch system.";
    remedy "checkpoint both programs as one job, take the checkpoint when the connection is closed, or give it \
        up with --ext-unix: after a restore it is closed";

    SOCKET_OPTION = 412, "a socket has an option that cannot be saved";
    because "Only the administrator can set it, or its value (a filter) cannot be read.";
    remedy CLOSE;

    EPOLL_WATCHES_OUTSIDE = 413, "an epoll instance watches something that the job has closed";
    because "The file is still open elsewhere, so epoll watches it on, and nobody in the job can name it.";
    remedy REMOVE_FROM_EPOLL;

    EPOLL_WATCHES_SIGNALS = 414, "an epoll instance watches the signals of another process";
    because "A signal descriptor watched by epoll tells of the signals of the process that added it, and that \
        one does not have both open any more.";
    remedy REMOVE_FROM_EPOLL;

    EVENTS_QUEUED = 415, "events wait to be read";
    because "Nobody can look at the events of inotify without taking them.";
    remedy "try again in a moment";

    WATCH_NUMBER = 416, "an inotify instance has used up too many numbers";
    because "Numbers of watches are given out in order, and coming to this one again would take too long.";
    remedy CLOSE;

    WATCHED_FILE_NOT_FOUND = 417, "a watched file was not found";
    because "The kernel tells the inode that inotify watches and not its path, and it was in none of the places \
        that were searched.";
    remedy "start the program in the directory that it watches, or above";

    PIDFD_OF_OUTSIDER = 418, "a descriptor stands for a process outside of the job";
    because "That process is not there after a restore.";
    remedy CLOSE;

    PIDFD_OF_THREAD = 419, "a descriptor stands for a single thread";
    because "PIDFD_THREAD of a thread other than the main one is not supported.";
    remedy CLOSE;

    LEADS_TO_SHARER = 420, "a descriptor leads to a process that shares its parent's descriptors";
    because "Such a process comes back after the files are opened.";
    remedy CLOSE;

    MESSAGES_WAIT = 421, "messages wait in a POSIX message queue, and cannot be looked at";
    because "Whoever looks at them takes them. rckpt does so and puts them back at once, but only where its own death \
        could not do harm in between: not if it is itself traced, if permissions forbid it, or if others may use \
        the queue.";
    remedy "take the checkpoint when the program has received them";

    QUEUE_NOTIFIES = 422, "a process is to be told of the next message in a POSIX queue";
    because "The kernel does not show what mq_notify was given.";
    remedy "take the checkpoint when the program has received the message, or let it wait in mq_receive or poll \
        instead";

    QUEUE_OWNER = 423, "a POSIX message queue belongs to another user";
    because "A plain user cannot make a queue in another's name.";
    remedy "let the job make a queue of its own";

    QUEUE_SHARED_WITH_OUTSIDE = 424, "a process outside of the job has the POSIX queue open, too";
    because "A restored job has its own one, and would talk to nobody.";
    remedy "checkpoint both programs as one job, or end the other";

    QUEUE_UNREADABLE = 425, "the state of a POSIX queue cannot be read";
    because "Its permissions do not let even its owner read it.";
    remedy "let the program make it readable for its owner";

    QUEUE_DIRECTORY = 426, "the directory of POSIX queues is open";
    because "A restored job has a directory of queues of its own.";
    remedy CLOSE;

    FANOTIFY = 427, "a fanotify group";
    because "Its marks and events cannot be read.";
    remedy CLOSE;

    IO_URING = 428, "an io_uring ring that is not at rest, or has more than requests";
    because "Rings are saved in which nothing is under way. What the kernel works on, polls for by itself, or \
             has registered (files, buffers, an eventfd) cannot be seen from outside.";
    remedy "switch io_uring off in the program (for node: UV_USE_IO_URING=0)";

    PERF_EVENT = 429, "a performance counter";
    because "Its counts and settings cannot be put back.";
    remedy CLOSE;

    BPF = 430, "a BPF object";
    because "Programs and maps in the kernel need privilege to be read and made.";
    remedy CLOSE;

    USERFAULTFD = 431, "a userfaultfd descriptor";
    because "What it watches and what waits in it cannot be put back.";
    remedy CLOSE;

    UNKNOWN_KERNEL_OBJECT = 432, "a kernel object that is not known";
    because "What is behind the descriptor has no file and no kind that this rckpt knows.";
    remedy CLOSE;

    NAMESPACE = 433, "a descriptor of a namespace that the process is not in";
    because "The namespace is another one after a restore.";
    remedy CLOSE;

    PSEUDO_TERMINAL = 434, "a pseudo-terminal is in a state that cannot be saved";
    because "The message names the state.";
    remedy "try again in a moment, or checkpoint the program inside the terminal instead";

    TERMINAL_SHARED_WITH_OUTSIDE = 435, "a process outside of the job uses a terminal of the job's own";
    because "After a restore the two would be on different terminals.";
    remedy "checkpoint the other process, too, or have it close the terminal";

    FOREIGN_TERMINAL = 436, "a terminal that the job's standard streams do not lead to";
    because "A restore gives the job the terminal that it is called from, in the place of its standard streams' \
        one; for another there is none.";
    remedy "start the job with its terminal as a standard stream, or redirect to a file";

    ACCELERATOR = 437, "a GPU or accelerator is open";
    because "What is in the device cannot be read or put back from outside.";
    remedy "run without the GPU, or take the checkpoint when it is released";

    CHARACTER_DEVICE = 438, "a character device whose state is not known";
    because "A driver may keep anything behind it.";
    remedy CLOSE;

    BLOCK_DEVICE = 439, "a block device";
    because "A disk goes on being written by others.";
    remedy CLOSE;

    PIPE_LEADS_OUTSIDE = 440, "a pipe leads outside of the job";
    because "It is no standard stream, which a restore would connect anew, and whoever has the other end goes on \
        without the job.";
    remedy "checkpoint the whole pipeline, or let the job use its standard streams or a file";

    PIPE_SHARED_WITH_OUTSIDE = 441, "a process outside of the job has the pipe open, too";
    because "After a restore the two would have different pipes.";
    remedy "start the job with this descriptor closed (for example `3<&-` in a shell)";

    PIPE_UNREADABLE = 442, "what is queued in a pipe cannot be read";
    because "It is copied without being taken (tee), into a pipe of rckpt's own, which the kernel refuses.";
    remedy "close other large pipes of yours, or raise /proc/sys/fs/pipe-max-size";

    NAME_LOST = 443, "an open file has lost the name by which it was opened";
    because "It has other names, which are not in that directory, so nobody can open it again.";
    remedy "keep the name by which the program opened the file";

    NOT_REACHABLE = 444, "a file is not found where rckpt runs";
    because "The job has a mount namespace of its own, in which this path leads elsewhere; or the file was \
        opened by somebody else (root, a daemon) in a directory that you may not enter.";
    remedy "run rckpt where the job sees its files, in the same container, as a user who may enter their \
        directories";

    CHANGED_ROOT = 445, "a process has another root directory (chroot)";
    because "A plain user cannot call chroot for it again.";
    remedy "run rckpt inside that root directory";

    CONTENT_UNREADABLE = 446, "a file's content has to be saved and cannot be read";
    because "The file was removed, lies in memory, or was named with --save-files, so its content goes into the \
        checkpoint.";
    remedy "let the owner read the file (chmod u+r), or run rckpt as the user who can";

    PROC_OF_OUTSIDER = 447, "a file under /proc belongs to a process outside of the job";
    because "That process is not there after a restore.";
    remedy CLOSE_FILE;

    PROC_OF_THREAD = 448, "a file under /proc belongs to a single thread";
    because "Threads come back after the files are opened.";
    remedy CLOSE_FILE;

    PROC_OF_MEMORY = 449, "a file under /proc is bound to the memory of a process";
    because "It would show the memory that the process has while it is being restored.";
    remedy CLOSE_FILE;

    KERNEL_FILE_FOR_WRITING = 450, "a file of the kernel's own is open for writing";
    because "What was half written to it is nowhere to be seen.";
    remedy CLOSE_FILE;

    UNKNOWN_FILE = 451, "a file of an unknown type";
    because "It is neither a file, directory, link, pipe, socket nor device.";
    remedy "take the checkpoint when the program does not use it";

    OWNER_OUTSIDE = 452, "events on a descriptor are signalled to somebody outside of the job";
    because "That process or group is not there after a restore.";
    remedy "let the program set the owner (F_SETOWN) to itself";

    LEASE_BREAKING = 453, "another process waits for a lease to be given back";
    because "The kernel is in the middle of breaking it.";
    remedy "try again in a moment";

    DIRECTORY_NOTIFICATION = 454, "a directory is watched by F_NOTIFY";
    because "The kernel does not tell which events a program has asked for in that old way (dnotify).";
    remedy "let the program use inotify, or close the directory before the checkpoint";

    MULTIPATH_TCP = 455, "a connection of Multipath TCP";
    because "Its keys, and what the kernel keeps of its paths, cannot be set. Connections that have fallen back \
        to plain TCP are saved.";
    remedy "have the program use plain TCP (Go: GODEBUG=multipathtcp=0), or take the checkpoint when it has the \
        connection closed";

    PATH_TOO_LONG = 456, "a path is longer than 4095 bytes";
    because "The kernel does not show such a path, and takes none.";
    remedy "let the job work in a directory that is less deep, or close the file before the checkpoint";
}
