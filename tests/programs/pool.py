"""A pool of processes that maps a function over numbers."""
import multiprocessing
import os


def work(number):
    value = number
    for _ in range(20000):
        value = (value * 48271 + number) % 2147483647
    return number, value


if __name__ == "__main__":
    with multiprocessing.Pool(4) as pool, open("output.pool", "w", encoding="utf-8") as output:
        for number, value in pool.imap(work, range(2500), chunksize=5):
            print(number, value, file=output, flush=True)
    print("workers are gone" if os.getpid() else "")
