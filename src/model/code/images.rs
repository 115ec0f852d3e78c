//! What is wrong with a checkpoint on disk.

use super::area;

const DAMAGED: &str = "nothing was started; rckpt verify DIR tells which checkpoints are whole, and rckpt \
    restore DIR --at GEN brings back an earlier one";
const NEWER: &str = "use the rckpt that wrote it, or a newer one";

area! {
    "Checkpoints on disk"

    CANNOT_OPEN = 601, "the checkpoint cannot be opened or read";
    because "The kernel or the file server gives an error; the checkpoint itself may be good.";
    remedy "look at that path (ls -ld, the file server, the disk's health), and try again";

    FILE_MISSING = 602, "a file of the checkpoint is missing";
    because "It was removed, or not copied along.";
    remedy DAMAGED;

    NOT_YOURS = 603, "the checkpoint belongs to another user";
    because "A checkpoint can become any program, so only its owner may restore it.";
    remedy "restore as its owner, or copy it (cp -r) if you trust whoever made it";

    WRITABLE_BY_OTHERS = 604, "other users may write to the checkpoint";
    because "Whoever can write to it can make it any program, which would run as you.";
    remedy "if you are sure that nobody has: chmod -R go-w DIR";

    NOT_A_FILE = 605, "a file of the checkpoint is no regular file";
    because "A device or a link stands in its place.";
    remedy "copy the checkpoint again from where it was written";

    NOT_AN_IMAGE = 606, "the file does not begin as a checkpoint does";
    because "It is something else, or its beginning is damaged.";
    remedy DAMAGED;

    FORMAT_TOO_NEW = 607, "the checkpoint was written by a newer rckpt";
    because "Its format, or a part of it that cannot be left out, is not known to this rckpt.";
    remedy NEWER;

    OTHER_ARCHITECTURE = 608, "the checkpoint was written on another architecture";
    because "A process's memory and registers make sense on the kind of processor that it ran on.";
    remedy "restore it on a machine of that kind";

    WRONG_LENGTH = 609, "a file of the checkpoint has another length than was written";
    because "It was cut off by a full disk, an unfinished copy or a lost file server, or was added to.";
    remedy DAMAGED;

    WRONG_CHECKSUM = 610, "a part of the checkpoint is damaged";
    because "Its checksum does not match: bytes were changed on the disk or on the way.";
    remedy DAMAGED;

    OUT_OF_BOUNDS = 611, "a part of the checkpoint lies outside of its bounds";
    because "What says where it is was changed.";
    remedy DAMAGED;

    WRONG_SECTIONS = 612, "a section of the checkpoint is missing or there twice";
    because "The file was put together by something else than rckpt, or damaged.";
    remedy DAMAGED;

    CANNOT_DECODE = 613, "a part of the checkpoint cannot be decoded";
    because "Its checksum is right and its content is not what this rckpt expects there.";
    remedy DAMAGED;

    MIXED_UP = 614, "files of two checkpoints were mixed up";
    because "The records and the pages name different checkpoints, or the checkpoint another job than its \
        directory.";
    remedy "copy the whole directory again from where it was written, or name the checkpoint's own";

    CONTRADICTION = 615, "the records of the checkpoint contradict each other";
    because "Each is well-formed, and together they describe no job that there could be.";
    remedy DAMAGED;
}
