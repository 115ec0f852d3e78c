"""An event loop that talks to short-lived children and waits for them by process descriptors."""
import asyncio
import hashlib
import warnings


async def digest(number):
    child = await asyncio.create_subprocess_exec(
        "sh", "-c", "read line; echo $line; exit 3",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    answer, _ = await child.communicate(f"{number} apples\n".encode())
    text = hashlib.sha256(answer * (child.returncode + number)).hexdigest()
    return f"{number} {child.returncode} {text}"


async def main():
    limit = asyncio.Semaphore(4)

    async def guarded(number):
        async with limit:
            return await digest(number)

    tasks = [asyncio.create_task(guarded(number)) for number in range(400)]
    with open("output.children", "w", encoding="utf-8") as output:
        for task in tasks:
            print(await task, file=output, flush=True)
            await asyncio.sleep(0.002)


warnings.simplefilter("ignore")
if hasattr(asyncio, "PidfdChildWatcher"):
    asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
asyncio.run(main())
