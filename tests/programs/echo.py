"""An asyncio server and its clients, each of which sends lines and checks what comes back."""

import asyncio
import hashlib

CLIENTS = 8
ROUNDS = 220


async def serve(reader, writer):
    while line := await reader.readline():
        writer.write(line[::-1].lstrip() + b"\n")
        await writer.drain()
    writer.close()


async def ask(number, port, counts):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for turn in range(ROUNDS):
        text = hashlib.sha256(f"{number} {turn}".encode()).hexdigest() * (1 + turn % 50)
        writer.write(text.encode() + b"\n")
        await writer.drain()
        answer = await reader.readline()
        assert answer == text[::-1].encode() + b"\n", answer
        counts[turn] += 1
        # Whoever comes last in a round tells of it.
        if counts[turn] == CLIENTS:
            print(turn, len(answer), flush=True)
        await asyncio.sleep(0.01)
    writer.close()
    await writer.wait_closed()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    counts = [0] * ROUNDS
    async with server:
        await asyncio.gather(*(ask(number, port, counts) for number in range(CLIENTS)))
    print("done")


asyncio.run(main())
