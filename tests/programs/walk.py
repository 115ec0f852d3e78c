"""A long random walk: a line for each step on the standard output, buffered unevenly, and one in a log
that is opened and closed each time. Argument: seconds between two steps."""
import random
import sys
import time

random.seed(2005)
place = 0.0
for step in range(400):
    place += random.random() - 0.5
    print(step, repr(place), flush=step % 3 == 0)
    with open("output.log", "a") as log:
        log.write(f"step {step}\n")
    time.sleep(float(sys.argv[1]))
