"""What every conformance program has in common.

A program is a generator function: it sets up its state, yields once, and verifies the state. While
it stands at the ``yield`` it has printed ``ready`` and waits for a line on standard input; this is
where it is checkpointed. It ends with ``ok`` and status 0, or ``failed: why`` and status 1. On a
host that lacks what it is about it says ``skip: why`` instead of ``ready``.

The same text is spoken by the programs in C, see ``conformance.h``.
"""

import ctypes
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

PATIENCE = 30.0
"""Seconds after which something that should have ended counts as hanging."""

Program = Callable[[], Iterator[None]]

_programs: dict[str, Program] = {}
_libc = ctypes.CDLL(None, use_errno=True)


class UnsupportedError(Exception):
    """This host lacks what the program is about."""


def program(function: Program) -> Program:
    """Make a generator function a program that can be named on the command line."""
    _programs[function.__name__] = function
    return function


def expect(what: str, found: object, expected: object) -> None:
    """Fail unless `found` equals `expected`."""
    if found != expected:
        raise AssertionError(f"{what}: found {short(found)}, expected {short(expected)}")


def short(value: object) -> str:
    """A value in an error message."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"


def call(name: str, *arguments: int | bytes | None) -> int:
    """Call a function of the C library that returns -1 on failure. Raise OSError."""
    function = getattr(_libc, name)
    function.restype = ctypes.c_ssize_t
    prepared = [ctypes.c_size_t(a & (1 << 64) - 1) if isinstance(a, int) else a for a in arguments]
    result = int(function(*prepared))
    if result in (-1, 0xFFFFFFFF):  # of a long, of an int
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def pattern(length: int, seed: int = 1) -> bytes:
    """Bytes that repeat nowhere near a page's size, the same in every process."""
    word = (seed * 2654435761 % (1 << 32)).to_bytes(4, "little") + b"snapkernel:" + bytes([seed])
    line = b"".join(word + number.to_bytes(5, "big") for number in range(length // 21 + 1))
    return line[:length]


def restored(since: int = os.stat("/proc/self/ns/pid").st_ino) -> bool:
    """Whether this process is a restored copy, which lives in a pid namespace of its own."""
    return os.stat("/proc/self/ns/pid").st_ino != since


class Worker(threading.Thread):
    """A thread that is waiting somewhere while the program is checkpointed."""

    def __init__(self, action: Callable[[], Any], name: str = "worker") -> None:
        super().__init__(name=name, daemon=True)
        self.action = action
        self.value: Any = None
        self.error: BaseException | None = None
        self.elapsed = 0.0

    def run(self) -> None:
        start = time.monotonic()
        try:
            self.value = self.action()
        except BaseException as error:
            self.error = error
        self.elapsed = time.monotonic() - start

    def blocked(self) -> "Worker":
        """Start, and return when the thread waits in the kernel."""
        self.start()
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with open(f"/proc/self/task/{self.native_id}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "S":
                    return self
            time.sleep(0.001)
        raise AssertionError(f"{self.name} does not block")

    def result(self) -> Any:
        """What the action returned. It must end by itself."""
        self.join(PATIENCE)
        if self.is_alive():
            raise AssertionError(f"{self.name} hangs")
        if self.error is not None:
            raise self.error
        return self.value


def main() -> None:
    """Run the program named on the command line."""
    try:
        steps = _programs[sys.argv[1]]()
        next(steps)
        print("ready", flush=True)
        line = sys.stdin.readline()
        expect("the line on standard input", line, "go\n")
        next(steps, None)
    except UnsupportedError as reason:
        print(f"skip: {reason}", flush=True)
        status = 0
    except BaseException as error:
        traceback.print_exc()
        why = " ".join(str(error).split()) or type(error).__name__
        print(f"failed: {why}", flush=True)
        status = 1
    else:
        print("ok", flush=True)
        status = 0
    sys.stdout.flush()
    os._exit(status)  # not held up by a thread that hangs
