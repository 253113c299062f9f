"""What waits in a pseudo-terminal (pty(7)), in both directions.

The kernel lets nobody look at it: it can only be read. So it is read while nobody else can, and
given back the way it came, in a mode in which the terminal changes nothing on the way. A tracer
that is killed between the two takes it along; that is some microseconds, in which nothing waits.

What was typed arrives by a worker of the kernel, after write(2) has returned. The terminal is
stopped before (``VSTOP``) and started by a character behind the last one (``VSTART``): once it
takes output again, all of it has arrived (drivers/tty/n_tty.c).

A terminal is often full of output, since programs print faster than others read. The kernel counts
the buffers, not the bytes in them, so output is given back in pieces that fill these wholly
(drivers/tty/tty_buffer.c): as much goes in again as has come out. A terminal that was stopped is
started for that, and stopped again in the same way.
"""

from __future__ import annotations

import os
import select
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fcntl import ioctl
from typing import Literal

from snapkernel import arch
from snapkernel.errors import TargetError

SETTINGS = 44
"""Size of ``struct termios2``."""
EXTPROC = 0o200000
_MOST_TYPED = 4000
"""Bytes in lines: of the 4095 that a terminal holds for its reader."""
HOLDS = 4096
"""Bytes and ends of file: N_TTY_BUF_SIZE."""
MOST_PRINTED = 1 << 16
"""Bytes: more than a terminal holds for the master's reader."""
_PATIENCE = 5000
_SMALLEST, _LARGEST = 256, 1792
"""Bytes: sizes of buffers. The last one may go beyond the limit."""
_QUOTE, _EOF, _STOP, _START = b"\x16", b"\x04", b"\x13", b"\x11"


Stopped = Literal["no", "call", "character"]


@dataclass
class Queue:
    """As in ``model.Terminal``."""

    typed: list[bytes] = field(default_factory=list)
    unfinished: bytes = b""
    printed: bytes = b""
    stopped: Stopped = "no"


def ask(descriptor: int, name: str, size: int = 4) -> bytes:
    """What a terminal answers to a request.

    Raises:
        OSError: as ioctl(2) does.
    """
    return ioctl(descriptor, arch.native().terminal_requests[name], bytes(size))


def tell(descriptor: int, name: str, value: int | bytes) -> int:
    """Make a request that takes a structure, or a number by its address."""
    data = value if isinstance(value, bytes) else struct.pack("=i", value)
    ioctl(descriptor, arch.native().terminal_requests[name], data)
    return 0


def number(answer: bytes) -> int:
    """An answer that is an ``int``."""
    return int(struct.unpack("=i", answer)[0])


def events(descriptor: int, wanted: int, patience: int = 0) -> int:
    """What poll(2) says after at most ``patience`` milliseconds. Where there is nothing to read,
    the kernel first brings what is on its way."""
    poll = select.poll()
    poll.register(descriptor, wanted)
    return dict(poll.poll(patience)).get(descriptor, 0)


def obstacle(master: int, slave: int | None) -> tuple[str, str] | None:
    """Why what waits in it could not be given back, and what to do; ``None`` when it could."""
    if number(ask(master, "TIOCGETD")) or (slave is not None and number(ask(slave, "TIOCGETD"))):
        return "has a line discipline of its own", "set N_TTY again"
    if struct.unpack_from("=4I", ask(master, "TCGETS2", SETTINGS))[3] & EXTPROC:
        return "leaves the editing of lines to another program (EXTPROC)", "end that"
    if events(master, select.POLLPRI) & select.POLLPRI:
        return "has news of packet mode (TIOCPKT) that was not read yet", "read it first"
    if not events(master, select.POLLOUT) & select.POLLOUT:
        return "is full of what was typed", "read it first"
    if slave is not None and number(ask(slave, "FIONREAD")) > _MOST_TYPED:
        return "is full of what was typed", "read it first"
    return None


@contextmanager
def opened_slave(master: int, held: int | None = None) -> Iterator[int]:
    """A description of the slave of our own (``TIOCGPTPEER``, Linux 4.13), whatever lock and
    exclusive mode say; the latter ends for the time of the block, through one that is held."""
    locked = number(ask(master, "TIOCGPTLCK"))
    exclusive = held is not None and number(ask(held, "TIOCGEXCL"))
    if exclusive and held is not None:
        ioctl(held, termios.TIOCNXCL)
    if locked:
        tell(master, "TIOCSPTLCK", 0)
    try:
        request = arch.native().terminal_requests["TIOCGPTPEER"]
        slave = ioctl(master, request, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        if locked:
            tell(master, "TIOCSPTLCK", 1)
        if exclusive and held is not None:
            ioctl(held, termios.TIOCEXCL)
    try:
        yield slave
    finally:
        os.close(slave)


def copy(master: int, slave: int) -> Queue:
    """Read all that waits and give it back. ``slave`` must not block."""
    queue = Queue()
    with _without_packets(master):
        try:
            _take(master, slave, queue)
        finally:
            _give(master, slave, queue)
    return queue


def fill(master: int, slave: int, queue: Queue) -> None:
    """Let this wait in an empty terminal."""
    with _without_packets(master):
        _give(master, slave, queue)


@contextmanager
def _without_packets(master: int) -> Iterator[None]:
    """Nothing of what is done here is news for whoever uses packet mode."""
    packets = number(ask(master, "TIOCGPKT"))
    if packets:
        tell(master, "TIOCPKT", 0)
    try:
        yield
    finally:
        if packets:
            tell(master, "TIOCPKT", 1)


def _take(master: int, slave: int, queue: Queue) -> None:
    """Read all. By lines, each read gives one; what no line ends shows in the other mode only."""
    settings = ask(slave, "TCGETS2", SETTINGS)
    attributes = termios.tcgetattr(slave)
    if attributes[3] & termios.ICANON:
        while (line := _read(slave)) is not None:
            queue.typed.append(line)
    attributes[3] &= ~termios.ICANON
    attributes[6][termios.VMIN], attributes[6][termios.VTIME] = 1, 0
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    try:
        while (part := _read(slave)) is not None:
            queue.unfinished += part
    finally:
        tell(slave, "TCSETS2", settings)
    while events(master, select.POLLIN) & select.POLLIN:
        queue.printed += os.read(master, 1 << 16)
    queue.stopped = _start(master, slave)


def _prints(slave: int, patience: int = 0) -> bool:
    return bool(events(slave, select.POLLOUT, patience) & select.POLLOUT)


def _start(master: int, slave: int) -> Stopped:
    """Let an empty terminal print, by undoing what has stopped it: tcflow(3), or Ctrl-S."""
    if _prints(slave):
        return "no"
    termios.tcflow(slave, termios.TCOON)
    if _prints(slave):
        return "call"
    with _transparent(slave):
        _write(master, _START)
        if not _prints(slave, _PATIENCE):
            raise TargetError("pseudo-terminal", "cannot be started")
    return "character"


def _read(slave: int) -> bytes | None:
    try:
        return os.read(slave, 1 << 16)
    except BlockingIOError:
        return None


def _give(master: int, slave: int, queue: Queue) -> None:
    if queue == Queue():
        return
    typed = b"".join(map(_line, queue.typed)) + _quoted(queue.unfinished)
    with _transparent(slave):
        if typed:
            _stop(master, slave)
            _write(master, typed + _START)
            if not _prints(slave, _PATIENCE):
                raise TargetError("pseudo-terminal", "does not take back what was typed")
        _print(slave, queue.printed)
        if queue.stopped == "character":
            _stop(master, slave)
        elif queue.stopped == "call":
            termios.tcflow(slave, termios.TCOOFF)
    events(master, select.POLLIN)


@contextmanager
def _transparent(slave: int) -> Iterator[None]:
    """A mode in which a terminal changes nothing, takes every character that is quoted, and can be
    stopped."""
    settings = ask(slave, "TCGETS2", SETTINGS)
    attributes = termios.tcgetattr(slave)
    characters = [b"\0"] * len(attributes[6])
    characters[termios.VLNEXT], characters[termios.VEOF] = _QUOTE, _EOF
    characters[termios.VSTOP], characters[termios.VSTART] = _STOP, _START
    attributes[:2] = termios.IXON, 0
    attributes[3], attributes[6] = termios.ICANON | termios.IEXTEN, characters
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    try:
        yield
    finally:
        tell(slave, "TCSETS2", settings)


def _stop(master: int, slave: int) -> None:
    """There is no event to wait for: the worker of the kernel takes some microseconds."""
    _write(master, _STOP)
    deadline = time.monotonic() + _PATIENCE / 1000
    while _prints(slave):
        if time.monotonic() > deadline:
            raise TargetError("pseudo-terminal", "cannot be stopped")
        os.sched_yield()


def _line(data: bytes) -> bytes:
    """How to type a line so that it is read as ``data``."""
    if data.endswith(b"\n"):
        return _quoted(data[:-1]) + b"\n"
    return _quoted(data) + _EOF


def _quoted(data: bytes) -> bytes:
    for special in (_QUOTE, _EOF, _STOP, _START, b"\n"):
        data = data.replace(special, _QUOTE + special)
    return data


def _print(slave: int, data: bytes) -> None:
    """Where it is full, the kernel is still about to bring some of it to the master, and wakes
    nobody when that is done."""
    deadline = time.monotonic() + _PATIENCE / 1000
    while data:
        piece = _SMALLEST if _prints(slave) else _LARGEST
        try:
            data = data[os.write(slave, data[:piece]) :]
        except BlockingIOError:
            if time.monotonic() > deadline:
                text = "does not take back what was read from it"
                raise TargetError("pseudo-terminal", text) from None
            os.sched_yield()


def _write(descriptor: int, data: bytes) -> None:
    while data:
        if not events(descriptor, select.POLLOUT, _PATIENCE) & select.POLLOUT:
            raise TargetError("pseudo-terminal", "does not take back what was read from it")
        data = data[os.write(descriptor, data) :]
