"""Workers forked from a parent with a large table, which they read, and of which each changes a part."""
import multiprocessing
import os

TABLE = [number * 7919 % 1000003 for number in range(400000)]


def work(number):
    for step in range(200):
        place = (number * 104729 + step * 1299709) % len(TABLE)
        TABLE[place] = (TABLE[place] + number) % 1000003
    # What a worker has changed depends on what it was given; the sums of these leave that out.
    first = number * 157 % 350000
    return number, sum(range(first, first + 20000)), len(TABLE)


if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    with context.Pool(8) as pool, open("output.shared", "w", encoding="utf-8") as output:
        for number, total, length in pool.imap(work, range(10000), chunksize=5):
            print(number, total, length, TABLE[number], file=output, flush=True)
    print("workers are gone" if os.getpid() else "")
