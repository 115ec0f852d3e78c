"""Threads that hand work to each other through queues; the results come out in order."""
import queue
import threading

WORKERS = 4
ITEMS = 3000

tasks, results = queue.Queue(maxsize=50), queue.PriorityQueue()


def work():
    while (item := tasks.get()) is not None:
        value = item
        for _ in range(7000):
            value = (value * 6364136223846793005 + 1442695040888963407) % 2**64
        results.put((item, value))
        tasks.task_done()


def feed():
    for item in range(ITEMS):
        tasks.put(item)
    for _ in range(WORKERS):
        tasks.put(None)


threads = [threading.Thread(target=work, name=f"worker-{n}") for n in range(WORKERS)]
threads.append(threading.Thread(target=feed, name="feeder"))
for thread in threads:
    thread.start()
waiting, following = {}, 0
with open("output.results", "w", encoding="utf-8", buffering=1) as output:
    while following < ITEMS:
        item, value = results.get(timeout=60)
        waiting[item] = value
        while following in waiting:
            print(following, waiting.pop(following), file=output)
            following += 1
for thread in threads:
    thread.join()
print("done", following)
