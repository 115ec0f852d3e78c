"""Heat spreading over a plate, by numpy: a line now and then, the plate at the end.

heat.py STEPS SECONDS_BETWEEN"""

import sys
import time

import numpy

steps, pause = int(sys.argv[1]), float(sys.argv[2])
plate = numpy.random.default_rng(7).random((200, 200))
for step in range(steps):
    around = sum(numpy.roll(plate, shift, axis) for shift in (-1, 1) for axis in (0, 1))
    plate = plate + 0.2 * (around - 4 * plate)
    plate[step % 200, 100] += 1
    if step % 3 == 0:
        print(step, float(plate.sum()).hex(), float(plate.std()).hex(), flush=True)
    time.sleep(pause)
numpy.save("plate.npy", plate)
