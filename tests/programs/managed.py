"""A manager process that others work with over unix sockets, and files handed from process to process."""
import multiprocessing
import multiprocessing.connection
import multiprocessing.reduction
import os

WORKERS = 3
STEPS = 1500


def work(number, shared, lock):
    for step in range(STEPS):
        with lock:
            shared[number] = shared.get(number, 0) + step


def hand_over(address):
    for step in range(STEPS):
        with multiprocessing.connection.Client(address, authkey=b"key") as connection:
            reader, writer = os.pipe()
            os.write(writer, b"%d" % (step * 7))
            os.close(writer)
            multiprocessing.reduction.send_handle(connection, reader, None)
            os.close(reader)
            connection.recv()


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    listener = multiprocessing.connection.Listener("files.socket", "AF_UNIX", authkey=b"key")
    with multiprocessing.Manager() as manager:
        shared, lock = manager.dict(), manager.Lock()
        processes = [
            multiprocessing.Process(target=work, args=(number, shared, lock))
            for number in range(WORKERS)
        ]
        processes.append(multiprocessing.Process(target=hand_over, args=(listener.address,)))
        for process in processes:
            process.start()
        for step in range(STEPS):
            with listener.accept() as connection:
                handle = multiprocessing.reduction.recv_handle(connection)
                print(step, os.read(handle, 100).decode(), flush=True)
                os.close(handle)
                connection.send(step)
        for process in processes:
            process.join()
        print(sorted(shared.items()), [process.exitcode for process in processes])
    listener.close()
