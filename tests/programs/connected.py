"""A job with a bit of everything that a report of a checkpoint shows, under names that mean mischief."""

import ctypes
import mmap
import os
import select
import signal
import socket
import time

MISCHIEF = "<!--<img src=x onerror=alert(1)>\x1b[31m"

ctypes.CDLL(None).prctl(15, b"</script><b>&\"", 0, 0, 0)
left, right = socket.socketpair()
left.send(b"hello")
reader, writer = os.pipe()
os.write(writer, b"abc")
epoll = select.epoll()
epoll.register(reader, select.EPOLLIN)
signal.setitimer(signal.ITIMER_REAL, 1000, 5)
shared = mmap.mmap(-1, 1 << 20)
shared[:5] = b"12345"
log = open("log", "w")
mischief = open(MISCHIEF, "w+")
held = bytearray(os.urandom(1 << 20))
if os.fork() == 0:
    while True:
        time.sleep(1)
print("ready", flush=True)
while not os.path.exists("more"):
    time.sleep(0.01)
held[: 1 << 18] = os.urandom(1 << 18)
log.write("more\n")
log.flush()
more = socket.socket()
if os.fork() == 0:
    while True:
        time.sleep(1)
print("done", flush=True)
while True:
    time.sleep(1)
