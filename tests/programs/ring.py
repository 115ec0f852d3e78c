"""Ranks that pass a token around, and share arrays and objects, step by step."""
import time

import numpy
from mpi4py import MPI

world = MPI.COMM_WORLD
rank, size = world.Get_rank(), world.Get_size()
for step in range(200):
    token = world.sendrecv({"step": step, "from": rank}, (rank + 1) % size, source=(rank - 1) % size)
    mine = numpy.full(20000, rank + step, dtype="d")
    total = numpy.empty_like(mine)
    world.Allreduce(mine, total)
    words = world.gather(f"{rank}:{token['from']}", root=0)
    if rank == 0:
        print(step, total.sum(), *words, flush=True)
    time.sleep(0.01)
