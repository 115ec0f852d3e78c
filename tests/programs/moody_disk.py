"""A file system (FUSE) that shows another directory, and behaves as the file `mood` says: `well`, `slow`
(changes take a moment), `hangs` (what is written does not come back until the mood is another one), or the name of an error
that they fail with. Told by its words: the directory behind, where to mount it, the file with the mood."""

import errno
import os
import sys
import time

import fusepy

BEHIND, PLACE, MOOD = map(os.path.abspath, sys.argv[1:4])


def mood():
    with open(MOOD) as file:
        return file.read().strip()


def bear(now):
    """A change is asked for."""
    if now == "slow":
        time.sleep(0.005)
    elif now == "hangs":
        with open(MOOD + ".felt", "a"):
            pass
        while mood() == "hangs":
            time.sleep(0.01)
    elif now != "well":
        raise fusepy.FuseOSError(getattr(errno, now))


def fickle(change):
    """For what comes before anything is written: it never hangs."""

    def changed(*arguments):
        now = mood()
        bear("well" if now == "hangs" else now)
        return change(*arguments)

    return changed


def moody(change):
    def changed(*arguments):
        bear(mood())
        return change(*arguments)

    return changed


class Disk(fusepy.Operations):
    def getattr(self, path, handle=None):
        found = os.lstat(BEHIND + path)
        return {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}

    def readdir(self, path, handle):
        return [".", "..", *os.listdir(BEHIND + path)]

    def readlink(self, path):
        return os.readlink(BEHIND + path)

    def open(self, path, flags):
        return os.open(BEHIND + path, flags & ~os.O_NOFOLLOW)

    def read(self, path, size, offset, handle):
        return os.pread(handle, size, offset)

    def release(self, path, handle):
        return os.close(handle)

    @fickle
    def create(self, path, mode, information=None):
        return os.open(BEHIND + path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    @moody
    def write(self, path, data, offset, handle):
        return os.pwrite(handle, data, offset)

    @moody
    def truncate(self, path, length, handle=None):
        return os.truncate(BEHIND + path, length)

    @moody
    def fsync(self, path, data_only, handle):
        return os.fsync(handle)

    def chmod(self, path, mode):
        return os.chmod(BEHIND + path, mode)

    def mkdir(self, path, mode):
        return os.mkdir(BEHIND + path, mode)

    def rmdir(self, path):
        return os.rmdir(BEHIND + path)

    def unlink(self, path):
        return os.unlink(BEHIND + path)

    def symlink(self, path, target):
        return os.symlink(target, BEHIND + path)

    def link(self, path, target):
        return os.link(BEHIND + target, BEHIND + path)

    def rename(self, old, new):
        return os.rename(BEHIND + old, BEHIND + new)


fusepy.FUSE(Disk(), PLACE, foreground=True, hard_remove=len(sys.argv) < 5)
