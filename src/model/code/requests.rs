//! What is wrong with what was asked for: the command line, the job's command, the job's directory.

use super::area;

area! {
    "The command line and the job's directory"

    USAGE = 101, "the command line is not understood";
    because "An option or argument is missing, unknown, or not of the form that it must have.";
    remedy "rckpt COMMAND --help shows what there is; the message says which word is meant";

    RUNS_ELSEWHERE = 102, "the command cannot be run under rckpt";
    because "What this command starts runs elsewhere, later or as another user (srun, sbatch, ssh, docker, \
        sudo), so rckpt would not be its parent and could not look at it.";
    remedy "call rckpt inside: the hint shows the right way round for this command";

    COMMAND_NOT_FOUND = 103, "the command is not found";
    because "There is no such program in the directories of PATH or under that path. The exit status is 127.";
    remedy "check the spelling; write ./program for one in the current directory; load its module first";

    COMMAND_NOT_EXECUTABLE = 104, "the command cannot be executed";
    because "The file is there and the kernel does not execute it: it is not executable (chmod +x), is for \
        another machine, or its interpreter is missing. The exit status is 126.";
    remedy "make it executable, or name the interpreter: rckpt run -- python3 program.py";

    DIRECTORY_NOT_NAMED = 105, "the job's directory is not named";
    because "--resume and --fresh are about a directory that may be there from an earlier start; the default \
        name has a process id in it and is new each time.";
    remedy "give --dir DIR, or set RCKPT_DIR";

    NOTHING_THERE = 110, "the path does not exist";
    because "No job's directory and no checkpoint has this name.";
    remedy "check the spelling; rckpt list shows the jobs that run, and `find -name job.json` job's \
        directories";

    NO_CHECKPOINT = 111, "there is no checkpoint in the directory";
    because "The job was never saved completely: it ended before its first checkpoint, or each one failed \
        (events.jsonl in the directory says why).";
    remedy "start the job again with rckpt run; to be saved earlier, use a shorter --every";

    NO_SUCH_GENERATION = 112, "there is no such checkpoint in the directory";
    because "What --at names is not there: it was removed (--keep, rckpt prune), or never was.";
    remedy "rckpt list DIR shows the checkpoints; --at takes their number or name";

    GENERATION_NAMED_TWICE = 113, "--at is given for a single checkpoint";
    because "The path names one checkpoint already, and --at chooses in a job's directory.";
    remedy "leave out --at, or name the job's directory";

    ANOTHER_JOB = 114, "the directory holds another job's checkpoints";
    because "Checkpoints of two jobs in one directory would overwrite and restore each other.";
    remedy "give another directory with --dir, or move this one away if its job is over";

    DIRECTORY_IN_USE = 115, "another rckpt is in charge of the directory";
    because "A supervisor runs there, here or on another machine that shares the file system; two would \
        write the same job's checkpoints.";
    remedy "end that one first (kill -TERM takes a last checkpoint), or give another directory with --dir; \
        where it is known to be gone although this file system keeps no locks, remove DIR/lock";

    DIRECTORY_NOT_TRUSTED = 116, "the directory belongs to another user, or others may write to it";
    because "Whoever can write a checkpoint can make it any program, which a restore would run as you.";
    remedy "give a directory of your own with --dir, or act as its owner";

    RECORD_DAMAGED = 117, "a record in the job's directory is damaged";
    because "A file such as job.json is not what rckpt wrote: it was edited, or cut off by a full disk.";
    remedy "if the checkpoints beside it are yours, remove the file and name one of them";

    DIRECTORY_TOO_NEW = 118, "the directory was written by a newer rckpt";
    because "The file that says whose it is has a format that this rckpt does not know.";
    remedy "use the rckpt that wrote it, or a newer one";

    DIRECTORY_UNUSABLE = 119, "the job's directory cannot be used";
    because "The kernel or the file server refuses to make, read, list, lock or change something in it; the \
        message ends with its word (permission denied, read-only, stale file handle, no such directory).";
    remedy "look at that path (ls -ld, df, quota), or give another place with --dir";

    ANOTHER_COMMAND = 120, "the directory belongs to another command";
    because "--resume would go on with a job that was started with other words than these.";
    remedy "rckpt restore DIR goes on with that one; --fresh starts yours and keeps the directory aside; or \
        give another --dir";

    STILL_RUNS = 121, "the job still runs, without a supervisor";
    because "Its rckpt is gone (killed), and the job itself is not; a second copy would write the same files.";
    remedy "rckpt dump PID --kill saves it as it is now and ends it, to go on from there; kill PID ends it, to \
        go on from its last checkpoint";

    BUDGET_SPENT = 122, "the job has run as long as --max-total allows";
    because "The times of all its runs together have come to the limit that was set.";
    remedy "allow more with --max-total; --fresh starts over";

    CANNOT_MOVE_ASIDE = 123, "the old directory cannot be moved aside";
    because "--fresh keeps what was there as DIR.old-N, and the kernel refuses the renaming.";
    remedy "make its parent directory writable, or give another --dir";

    LOCAL_IS_HOME = 124, "--local names the job's directory itself";
    because "The local directory is the quick place from which checkpoints are copied to the job's own.";
    remedy "give each job a directory of its own with --local, or leave it out";

    CANNOT_PRINT = 130, "standard output cannot be written";
    because "What standard output leads to takes nothing more: mostly a full disk.";
    remedy "make room, or redirect it elsewhere";

    CANNOT_WRITE_FILE = 131, "the file that was asked for cannot be written";
    because "The kernel refuses to make or write it; a core file must not exist yet.";
    remedy "name another place with the option that names the file";

    NO_SUCH_PROCESS_INSIDE = 132, "the checkpoint has no such process";
    because "Processes of a checkpoint are named by their ids in the job.";
    remedy "rckpt inspect DIR lists them";

    PROCESS_HAS_NO_MEMORY = 133, "the process had ended when the checkpoint was taken";
    because "It was a zombie that its parent had not waited for yet, so there is no memory of it.";
    remedy "choose another process; rckpt inspect DIR lists them";

    UNKNOWN_CODE = 134, "there is no such code";
    because "rckpt explain takes the codes that this rckpt prints, as RCKPT-E0401, E0401 or 401.";
    remedy "rckpt explain alone lists all of them";

    NOTHING_TO_COMPARE = 135, "there is no earlier checkpoint to compare with";
    because "rckpt diff DIR compares the newest checkpoint with the one before it, and there is only one.";
    remedy "rckpt list DIR shows what is there; rckpt diff GEN1 GEN2 compares any two";

    NO_TERMINAL = 136, "there is no terminal to draw on";
    because "rckpt top needs a terminal on standard input and standard output, and can use neither a pipe nor a \
        file; or the terminal that there is takes no orders.";
    remedy "rckpt list tells the same once, and rckpt list --json tells scripts";
}
