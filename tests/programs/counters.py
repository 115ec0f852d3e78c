"""Counts in a large file, in place: each step adds one to one of its blocks. Left alone at first, then in
a hurry as soon as a checkpoint is being written. In the end every block must have been counted exactly twice.

counters.py BLOCKS"""

import os
import sys
import time



def is_being_saved():
    """Whether so much has been written of a checkpoint that this process must run again."""
    for name in os.listdir("job"):
        try:
            if name.startswith(".tmp-") and os.stat(f"job/{name}/pages.rckpt").st_size > 1 << 20:
                return True
        except FileNotFoundError:
            pass
    return False


blocks = int(sys.argv[1])
file = os.open("counters", os.O_RDWR | os.O_CREAT)
for block in range(blocks):
    os.write(file, bytes(8) + os.urandom(4088))
os.fsync(file)
# Longer than it takes to read it, so that it counts as left alone.
time.sleep(1.5 + blocks * 4096 / (100 << 20))
open("ready", "w").close()
while not (is_being_saved() or os.path.exists("job/latest")):
    time.sleep(0.002)
for step in range(2 * blocks):
    offset = step * 7919 % blocks * 4096
    count = int.from_bytes(os.pread(file, 8, offset), "little")
    os.pwrite(file, (count + 1).to_bytes(8, "little"), offset)
open("done", "w").close()
while not os.path.exists("go"):
    time.sleep(0.01)
counts = [int.from_bytes(os.pread(file, 8, block * 4096), "little") for block in range(blocks)]
print("good" if counts == [2] * blocks else f"wrong: {set(counts)}", flush=True)
