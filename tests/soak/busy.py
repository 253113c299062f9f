"""A process that is always busy, and says on request whether all it has is as it should be.

It has threads that count and wait, timers, pipes and sockets with something in them, an epoll, a
memfd, a deleted file, arrays and a database. Every line ``check`` on standard input has it verify
them, change them all, and print ``ok`` with the number of checks, or what is wrong.
"""

import os
import select
import signal
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

try:
    import numpy
except ImportError:
    numpy = None  # type: ignore[assignment]

PATIENCE = 30.0
WORDS = 50_000


def expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise AssertionError(f"{what}: {found!r:.200} instead of {expected!r:.200}")


def until(what: str, condition: Callable[[], bool]) -> None:
    """Wait for something that another thread or the kernel does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: does not happen any more")
        time.sleep(0.001)


class Counter(threading.Thread):
    """Counts, and finds out when a clock goes backward."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.count = 0
        self.backward = 0.0
        self.wanted = threading.Event()

    def run(self) -> None:
        before = time.monotonic()
        while True:
            self.wanted.wait(0.002)
            now = time.monotonic()
            self.backward = max(self.backward, before - now)
            before = now
            self.count += 1


class Echo(threading.Thread):
    """Waits in read(2) of a pipe, and writes what comes to another."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.theirs, self.input = os.pipe()
        self.output, self.ours = os.pipe()

    def run(self) -> None:
        while data := os.read(self.theirs, 100):
            os.write(self.ours, data.upper())


def squares() -> Iterator[int]:
    number = 0
    while True:
        yield number * number
        number += 1


class State:
    """Everything, with the number of checks that it has seen."""

    def __init__(self) -> None:
        self.checks = 0
        self.counters = [Counter() for _ in range(3)]
        self.echo = Echo()
        for thread in (*self.counters, self.echo):
            thread.start()
        self.rings = 0
        signal.signal(signal.SIGALRM, self.ring)
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        self.pipe = os.pipe()
        self.pair = socket.socketpair()
        self.event = os.eventfd(1, os.EFD_NONBLOCK)
        self.poller = select.epoll()
        self.poller.register(self.event, select.EPOLLIN)
        self.memory = os.memfd_create("soak")
        self.deleted = tempfile.TemporaryFile()  # noqa: SIM115
        self.database = sqlite3.connect(":memory:")
        self.database.execute("create table seen (number integer)")
        self.numbers = list(range(WORDS))
        self.array = None if numpy is None else numpy.arange(WORDS, dtype="u4")
        self.squares = squares()
        self.fill()

    def ring(self, *_: object) -> None:
        self.rings += 1

    def fill(self) -> None:
        """Put the number of checks into everything that can hold it."""
        text = b"%d" % self.checks
        os.write(self.pipe[1], text)
        self.pair[0].send(text)
        os.pwrite(self.memory, text.ljust(5000), 0)
        self.deleted.seek(0)
        self.deleted.write(text.ljust(5000))
        self.deleted.flush()
        self.database.execute("insert into seen values (?)", (self.checks,))

    def check(self) -> None:
        """Look whether it is there, and go on to the next number."""
        text = b"%d" % self.checks
        expect("pipe", os.read(self.pipe[0], 100), text)
        expect("socket", self.pair[1].recv(100), text)
        expect("memfd", os.pread(self.memory, 5000, 0), text.ljust(5000))
        self.deleted.seek(0)
        expect("deleted file", self.deleted.read(), text.ljust(5000))
        seen = self.database.execute("select count(*), max(number) from seen").fetchone()
        expect("database", seen, (self.checks + 1, self.checks))
        expect("epoll", self.poller.poll(0), [(self.event, select.EPOLLIN)])
        expect("generator", next(self.squares), self.checks**2)
        expect("list", self.numbers[:: WORDS - 1], [self.checks, self.checks + WORDS - 1])
        self.numbers = [number + 1 for number in self.numbers]
        if self.array is not None:
            expect("array", int(self.array.sum(dtype="u8")), sum(self.numbers) - WORDS)
            self.array += 1
        os.write(self.echo.input, b"hello")
        expect("thread that waits for a pipe", os.read(self.echo.output, 100), b"HELLO")
        for counter in self.counters:
            before = counter.count
            until("thread", lambda counter=counter, before=before: counter.count > before)
            expect("clock that went backward", counter.backward, 0.0)
        rings = self.rings
        until("timer", lambda: self.rings > rings)
        self.checks += 1
        self.fill()


def main() -> None:
    state = State()
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            expect("line", line, "check\n")
            state.check()
        except Exception as error:
            print(f"failed: {type(error).__name__}: {error}", flush=True)
            os._exit(1)
        print(f"ok {state.checks}", flush=True)


if __name__ == "__main__":
    main()
