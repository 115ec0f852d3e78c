//! What keeps a job from being brought back.

use super::area;

const MAP: &str = "put it back, or give its new place with --map OLD=NEW";
const KEEP: &str = "put it back, or use --files keep to go on with the file as it is";
const ROLLBACK: &str = "use --files rollback to cut it back (nothing is lost), or --files keep";

area! {
    "Bringing a job back"

    FILES_DIFFER = 700, "the job's files are not as it needs them";
    because "A restored job goes on with the files on disk, which must be those that it had. Nothing was \
        started or changed. The lines below the message name each file, with a code of its own.";
    remedy "see to each line; rckpt restore DIR --dry-run tells the same";

    VANISHED = 701, "a file has vanished";
    because "Nothing is at the path where the job had it.";
    remedy MAP;

    ANOTHER_TYPE = 702, "something of another type stands in a file's place";
    because "It was, say, a regular file, and a directory has its name now.";
    remedy MAP;

    REPLACED = 703, "a file was replaced by another";
    because "A new file has its name (an editor's save, a new start of the program), so what the job wrote there \
        is gone.";
    remedy KEEP;

    SHRUNK = 704, "a file is shorter than at the checkpoint";
    because "What the job had written was cut off since.";
    remedy KEEP;

    GROWN = 705, "a file has grown since the checkpoint";
    because "--files fail was given, and the job or somebody else has written to it.";
    remedy ROLLBACK;

    WRITTEN = 706, "a file has been written to since the checkpoint";
    because "--files fail was given, and the job or somebody else has written to it.";
    remedy ROLLBACK;

    CHANGED_IN_PLACE = 707, "a file was changed in place since the checkpoint";
    because "What it held at the checkpoint was overwritten, and no copy is in the checkpoint. Databases and \
        HDF5 do so.";
    remedy "put it back, or use --files keep to go on with the file as it is; another time --save-files auto \
        keeps copies";

    CHANGED_INPUT = 708, "a file that the job reads is not what it was";
    because "Its size or time of change is another, and what the job has read of it may not fit the rest.";
    remedy KEEP;

    CHANGED_MAPPED = 709, "a program or library is another build";
    because "The job has it mapped, and goes on in the middle of its code; another build has other code there.";
    remedy "put the same build of it back, or give the place of one with --map OLD=NEW";

    NEW_FILE = 710, "a named output is new since the checkpoint";
    because "--files fail was given, and the job has made a file that it did not have then.";
    remedy ROLLBACK;

    END_UNREADABLE = 711, "what is to be cut off a file cannot be read";
    because "It would be lost, as it cannot be kept aside.";
    remedy "make it readable, or use --files keep to go on behind what it holds now";

    BEING_WRITTEN = 712, "another process is writing to a file of the job";
    because "It would be cut back under that process's hands.";
    remedy "if that is the job itself, still running, end it first (kill), or leave it alone; --files keep \
        leaves the file as it is";

    UNREADABLE = 713, "a file cannot be looked at";
    because "The kernel refuses; the message ends with its word.";
    remedy MAP;

    NAME_TAKEN = 714, "another process has an abstract socket name of the job's";
    because "Abstract names belong to all processes of the network namespace.";
    remedy "end that process";

    SOCKET_IN_USE = 715, "another process uses a socket of the job's";
    because "The socket's file is there, and somebody listens on it.";
    remedy "end that process, or give another place with --map OLD=NEW";

    NO_PLACE_FOR_SOCKET = 716, "a socket's file cannot be made again";
    because "Its directory is gone or not writable.";
    remedy "make the directory, writable for you, or give another place with --map OLD=NEW";

    NO_RECEIVER = 717, "nobody receives what the job sends";
    because "A unix socket of the job sends datagrams to another program, which does not run or refuses them.";
    remedy "start that program first";

    NO_TERMINAL = 718, "there is no terminal for the job";
    because "The job has its controlling terminal open, and this restore has none.";
    remedy "restore from a terminal, in the foreground";

    ADDRESS_TAKEN = 719, "another program has the job's network address";
    because "A port can have one owner.";
    remedy "end that program (ss -anp shows it)";

    ADDRESS_UNAVAILABLE = 720, "this machine does not have the job's network address";
    because "The job was bound to an address of the machine that it ran on.";
    remedy "restore on the machine of the checkpoint, or on one that has the same address";

    ADDRESS_KEPT = 721, "what is left of earlier connections keeps the job's network address";
    because "The kernel keeps the addresses of connections that are over for a minute (TIME_WAIT), and a restore has waited so long for them in vain.";
    remedy "try again in a minute (ss -tan shows them)";

    OTHER_USER = 730, "the job ran as another user or group";
    because "Its processes have to be who they were.";
    remedy "restore as that user";

    GROUP_MISSING = 731, "a supplementary group of the job is missing";
    because "Nobody but root can join a group that is not its own.";
    remedy "restore where and as who belongs to it (id, newgrp)";

    LIMIT_TOO_LOW = 732, "a hard limit here is below a soft limit of the job";
    because "Hard limits can be lowered and not raised.";
    remedy "raise it (ulimit -H), or ask the administrator to";

    MEMORY_TOO_SMALL = 733, "the job's memory does not fit into this machine's";
    because "It would push everything else out, or be killed in the middle of the restore.";
    remedy "end something, or restore it on a larger machine";

    CPU_LACKS_FEATURES = 734, "this CPU lacks instructions that the job may use";
    because "Libraries choose their code by the CPU when a program starts, and keep to it.";
    remedy "restore it on a machine that has them; another time start it on the oldest kind of node";

    EXTENDED_STATE = 735, "this CPU's registers are laid out in another way";
    because "The job's saved registers do not fit it.";
    remedy "restore it on a machine of the same kind";

    VDSO_DIFFERS = 736, "the kernel's vDSO cannot take the place of the recorded one";
    because "Another kernel has other code there, and what the job calls in it is missing or does not fit.";
    remedy "restore with the kernel of the checkpoint, or restore another checkpoint (--at)";

    CAPABILITIES_MISSING = 737, "a process had capabilities that you cannot give it";
    because "A job cannot have more privilege than whoever restores it.";
    remedy "restore it as the user that it ran as, with the same privilege";

    NODES_MISSING = 738, "a process takes memory from NUMA nodes that are not here";
    because "Its memory policy names nodes that this machine lacks, or that the batch system does not allow.";
    remedy "restore it where they are";

    NO_HOLE = 739, "a process's memory leaves no room for the restorer";
    because "Each process is filled by a small program that lies between the job's own mappings.";
    remedy "let the program reserve less address space";

    NAMESPACES_FORBIDDEN = 750, "this machine does not allow the namespaces that a restore needs";
    because "A job gets its process ids back in a namespace of its own, which the kernel or a container forbids \
        for plain users here.";
    remedy "ask the administrator for user.max_user_namespaces above 0, kernel.unprivileged_userns_clone 1 and \
        kernel.apparmor_restrict_unprivileged_userns 0; rckpt check says which is missing";

    NAMESPACE_SETUP = 751, "the job's namespaces could not be set up";
    because "The kernel allowed to make them, and refuses what belongs into them (/proc, terminals, clocks, ids).";
    remedy "in a container, ask for an unmasked /proc; rckpt check says what this machine allows";

    NOT_BUILT = 752, "the job's processes or files could not be made again";
    because "A call that the plan had found possible was refused in the end; often something was taken by another \
        program just then.";
    remedy "try again; what was started has been ended. If it stays, please report it with the message";

    NOT_FILLED = 753, "the job's memory could not be filled";
    because "Reading the checkpoint or writing the memory failed.";
    remedy "rckpt verify DIR --deep tells whether the checkpoint is whole; make room in memory";

    NOT_CONTROLLED = 754, "the job's threads could not be set going";
    because "A request of ptrace failed on a process that is being restored.";
    remedy "rckpt check says whether tracing is allowed here; try again";

    RESTORE_STALLED = 755, "the restore stands still";
    because "Nothing has happened for a minute, or the processes ended before they were ready: the machine is out of \
        memory, or a file server does not answer.";
    remedy "look at the kernel's log (out of memory) and the file server, and try again";

    RESTORE_UNPREPARED = 756, "rckpt could not prepare the restore";
    because "A pipe, a fork or a fact about this machine was refused.";
    remedy "raise the limits on processes and open files (ulimit -u, -n)";

    FAILED_IN_BACKGROUND = 757, "the restore failed in the background";
    because "The process that went into the background has said why, in the lines above.";
    remedy "see those lines, or restore without --detach";

    PID_FILE = 758, "the file for the pid could not be written";
    because "The kernel refuses it. The job runs nevertheless.";
    remedy "rckpt list shows its process";

    OUTPUTS_CHANGED = 759, "the job has to start over, and files are not as it found them";
    because "It was lost before its first checkpoint. What it had written is taken back first, and that cannot be \
        done.";
    remedy "put these files back as they were, or give --fresh to start with them as they are";

    NOT_TAKEN_BACK = 760, "what the job had written could not be taken back";
    because "The kernel refuses to cut or move aside a file.";
    remedy "look at that file's permissions and its disk, and try again";

    NO_DESCRIPTORS_LEFT = 761, "the job's descriptor numbers leave no room below the hard limit on open files";
    because "While a restore works, everything that the job had open is kept once at numbers that it does not use.";
    remedy "raise the hard limit (ulimit -Hn), or ask the administrator to";
}
