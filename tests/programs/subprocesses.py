"""An event loop with processes: some are asked line by line, others come and go, and their ends are told."""
import asyncio
import sys

STEPS = 150


async def ask(process, text):
    process.stdin.write(text.encode() + b"\n")
    await process.stdin.drain()
    return (await process.stdout.readline()).decode().strip()


async def main():
    pipe = asyncio.subprocess.PIPE
    script = "while read line; do echo \"$line $((line * line))\"; done; exit 7"
    shell = await asyncio.create_subprocess_exec("sh", "-c", script, stdin=pipe, stdout=pipe)
    program = "import sys\nfor line in sys.stdin: print(line.strip()[::-1], flush=True)"
    python = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdin=pipe, stdout=pipe
    )
    with open("output.steps", "w", encoding="ascii") as output:
        for step in range(STEPS):
            squared, turned = await asyncio.gather(ask(shell, str(step)), ask(python, f"step {step}"))
            short = await asyncio.create_subprocess_shell(f"exit {step % 100}")
            print(squared, turned, await short.wait(), file=output, flush=True)
            await asyncio.sleep(0.005)
    for process in shell, python:
        process.stdin.close()
    print(await shell.wait(), await python.wait())


asyncio.run(main())
