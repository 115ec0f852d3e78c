"""Changes an HDF5 file in place, opened and closed at each step, and says what it holds.
Argument: seconds between two steps."""
import sys
import time

import h5py
import numpy

with h5py.File("grid.h5", "w") as file:
    file.create_dataset("grid", data=numpy.zeros((64, 64)))
for step in range(80):
    with h5py.File("grid.h5", "r+") as file:
        grid = file["grid"]
        grid[step % 64, :] = grid[step % 64, :] + step
        file.attrs["step"] = step
        print(step, float(grid[:].sum()), flush=True)
    time.sleep(float(sys.argv[1]))
