"""An asyncio server on a unix socket, and clients in the same process and in others, all busy."""
import asyncio
import multiprocessing
import os

CLIENTS = 6
QUESTIONS = 2700


async def serve(reader, writer):
    while line := await reader.readline():
        number = int(line)
        writer.write(b"%d %d\n" % (number, number * number % 1000003))
        await writer.drain()
    writer.close()


async def ask(client, path):
    reader, writer = await asyncio.open_unix_connection(path)
    with open(f"output.{client}", "w", encoding="ascii") as output:
        for first in range(0, QUESTIONS, 3):
            for number in range(first, first + 3):
                writer.write(b"%d\n" % (client * 1000 + number))
            for _ in range(3):
                print((await reader.readline()).decode().strip(), file=output, flush=True)
            await asyncio.sleep(0.002)
    writer.close()


def ask_from_afar(client, path):
    asyncio.run(ask(client, path))


async def main():
    path = "server.socket"
    server = await asyncio.start_unix_server(serve, path)
    others = [
        multiprocessing.Process(target=ask_from_afar, args=(client, path))
        for client in range(CLIENTS // 2)
    ]
    for other in others:
        other.start()
    await asyncio.gather(*(ask(client, path) for client in range(CLIENTS // 2, CLIENTS)))
    await asyncio.gather(*(asyncio.to_thread(other.join) for other in others))
    server.close()
    os.remove(path)
    print([other.exitcode for other in others])


if __name__ == "__main__":
    asyncio.run(main())
