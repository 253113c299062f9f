"""Batches: system calls that another process makes for us.

A batch is built like a program and run by the agent (``native/agent.c``) inside a stopped
process. An argument is a number, bytes that the call reads, a :class:`Space` that it writes, or
a :class:`Cell`, a variable that an earlier call of any batch has filled (a descriptor, mostly).
Nothing here touches a process, so a batch can be printed without being run::

    batch = Batch("open the log")
    fd = Cell("log")
    batch.call("openat", AT_FDCWD, b"/tmp/log\\0", os.O_WRONLY, store=fd)
    batch.call("dup3", fd, 1, 0)
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

AT_FDCWD = -100


class Cell:
    """A 32-bit variable in the process, known by its name in a printed plan."""

    def __init__(self, name: str) -> None:
        self.name = name


@dataclass(frozen=True)
class AddressOf:
    """The address of the first of several consecutive cells, for pipe2(2) and socketpair(2)."""

    cells: tuple[Cell, ...]


class Space:
    """Memory that calls write, or read and write.

    Attributes:
        data: what is there before the run, and what was there after it.
    """

    def __init__(self, initial: bytes) -> None:
        self.data = initial


@dataclass(frozen=True)
class Words:
    """A kernel structure of 64-bit words; bytes, and other structures, stand for the address of a
    copy of them.

    Attributes:
        tail: what follows the words.
    """

    words: tuple[int | bytes | Words, ...]
    tail: bytes = b""


Argument = int | bytes | Space | Cell | AddressOf | Words


@dataclass(slots=True)
class Call:
    """One system call.

    Attributes:
        name: as in ``Architecture.system_calls``.
        check: a failure ends the batch and is an error.
        expect: any other result is an error, too.
        optional: names what is lost when the call fails; that is noted, and no error.
        store: cell that gets the result.
        child_ends: a process that is born by it ends at once, unless a tracer has other plans.
        note: what it is about, for error messages: an object the user knows.
        result: what the kernel answered; ``None`` before the run.
    """

    name: str
    arguments: tuple[Argument, ...]
    check: bool = True
    expect: int | None = None
    optional: str = ""
    store: Cell | None = None
    note: str = ""
    child_ends: bool = False
    result: int | None = None

    def __str__(self) -> str:
        text = f"{self.name}({', '.join(map(_format, self.arguments))})"
        if self.store is not None:
            text = f"{self.store.name} = {text}"
        if self.result is not None:
            text += f" = {self.result}"
            if -4096 < self.result < 0:
                text += f" {errno.errorcode.get(-self.result, '')}"
        return f"{text}  # {self.note}" if self.note else text


@dataclass
class Batch:
    """System calls in order.

    Attributes:
        title: what they do together.
    """

    title: str
    calls: list[Call] = field(default_factory=list)

    def call(
        self,
        name: str,
        *arguments: Argument,
        check: bool = True,
        expect: int | None = None,
        optional: str = "",
        store: Cell | None = None,
        note: str = "",
        child_ends: bool = False,
    ) -> Call:
        """Add a system call; returns it, so that its result can be read after the run."""
        checked = check and not optional
        call = Call(name, arguments, checked, expect, optional, store, note, child_ends)
        self.calls.append(call)
        return call

    def lines(self) -> Iterator[str]:
        """The calls as text, readable like strace's."""
        return map(str, self.calls)


def _format(argument: Argument) -> str:
    if isinstance(argument, int):
        return hex(argument) if argument > 65535 else str(argument)
    if isinstance(argument, Cell):
        return argument.name
    if isinstance(argument, AddressOf):
        return f"&[{', '.join(cell.name for cell in argument.cells)}]"
    if isinstance(argument, Words):
        return "{" + ", ".join(_format(word) for word in argument.words) + "}"
    data = argument.data if isinstance(argument, Space) else argument
    if data.endswith(b"\0") and data[:-1].isascii() and data[:-1].decode().isprintable():
        return f'"{os.fsdecode(data[:-1])}"'
    return f"<{data.hex()}>" if len(data) <= 16 else f"<{data[:16].hex()}... {len(data)} bytes>"
