"""Linear algebra with numpy, on the threads of OpenBLAS; every bit of the results is compared."""
import os
import threading

os.environ["OPENBLAS_NUM_THREADS"] = "2"

import hashlib  # noqa: E402

import numpy  # noqa: E402

generator = numpy.random.default_rng(12345)
matrix = generator.standard_normal((400, 400))
vector = generator.standard_normal(400)
with open("output.blas", "w", encoding="utf-8") as output:
    for step in range(280):
        product = matrix @ matrix.T
        product /= numpy.linalg.norm(product)
        solution = numpy.linalg.solve(product + numpy.eye(400), vector)
        matrix = product + generator.standard_normal((400, 400))
        digest = hashlib.sha256(product.tobytes() + solution.tobytes()).hexdigest()
        print(step, digest, repr(float(solution.sum())), file=output, flush=True)
print(len(os.listdir("/proc/self/task")) > 1, threading.active_count())
