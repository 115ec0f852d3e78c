//! What keeps a checkpoint from being completed, after the job was found fit for one.

use super::area;

area! {
    "Taking a checkpoint"

    DISK_FULL = 801, "the disk or the quota is full";
    because "The checkpoint did not fit. The one before is as good as it was, and the job runs on.";
    remedy "make room (rckpt prune removes old checkpoints), or give another place with --dir";

    NOT_WRITTEN = 802, "the checkpoint could not be written";
    because "The kernel or the file server refuses to make or write its files, or to bring them to the disk.";
    remedy "look at that path (df, quota, the file server), or give another place with --dir";

    NOT_COMMITTED = 803, "the checkpoint could not be given its name";
    because "All of it was written, and the last step failed.";
    remedy "look at the directory (df, quota, the file server), and try again";

    STATE_UNREADABLE = 804, "the state of a process could not be read";
    because "Something that a process always has gave an error: mostly it was killed in that moment.";
    remedy "try again; if it stays, please report it with the message";

    FILES_UNREADABLE = 805, "the job's files could not be looked at";
    because "Something about a descriptor gave an error that belongs to no known refusal.";
    remedy "try again; if it stays, please report it with the message";

    OUTPUTS_UNREADABLE = 806, "a file named with --outputs or --save-files could not be looked at";
    because "The kernel or the file server refuses it; the message ends with its word.";
    remedy "make it readable for you, or leave it out";

    FILE_NOT_QUIET = 807, "a file was changed while it was stored";
    because "It is stored while the job runs on, and the job wrote to it just then.";
    remedy "try again: the job then stands still until the file is stored";

    GIVEN_UP = 808, "the checkpoint was given up";
    because "Whoever asked for it has ended, or the time for it (--grace) was over.";
    remedy "allow more with --grace; faster storage (--local) and smaller --every make the last one shorter";

    MEMORY_SHORT = 809, "memory became too short for the checkpoint";
    because "What the job writes while a copy of it is saved is needed twice, and little was left.";
    remedy "ask for more memory, or take checkpoints in a phase in which the job writes less";

    TOO_MANY = 810, "the job has more of something than a checkpoint can hold";
    because "Numbers in the format have their limits, far above what was ever seen.";
    remedy "please report it";

    NOT_LET_GO = 811, "the checkpoint is complete, but the job could not be ended or stopped";
    because "The kernel refused the last step. The checkpoint can be used.";
    remedy "end the job with kill, or let it run";

    FILE_TOO_LARGE = 812, "a file of the checkpoint would be larger than is allowed";
    because "A limit on the size of files (ulimit -f, RLIMIT_FSIZE), or the file system's own. The job runs on.";
    remedy "raise the limit where rckpt is started, or give a place on another file system with --dir";

    WRONG_RECORDS = 820, "rckpt has made records that contradict each other";
    because "A mistake in rckpt, found before anything was written. The job runs on.";
    remedy "please report it, with the message";

    CHANGED_UNSEEN = 821, "a page has changed that was taken for unchanged";
    because "A mistake in rckpt, found by a development build's check. The job runs on.";
    remedy "please report it, with the message";

    PANICKED = 822, "rckpt has come upon something that it holds impossible";
    because "A mistake in rckpt. The job runs on.";
    remedy "please report it, with the message";
}
