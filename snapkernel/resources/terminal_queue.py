"""What waits in a pseudo-terminal (pty(7)), in both directions.

The kernel lets nobody look at it: it can only be read. So it is read while nobody else can, and
given back the way it came, in a mode in which the terminal changes nothing on the way. A tracer
that is killed between the two takes it along; that is some microseconds, in which nothing waits.

What was typed arrives by a worker of the kernel, after write(2) has returned. The terminal is
stopped before (``VSTOP``) and started by a character behind the last one (``VSTART``): once it
takes output again, all of it has arrived (drivers/tty/n_tty.c).
"""

from __future__ import annotations

import os
import select
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fcntl import ioctl

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
_QUOTE, _EOF, _STOP, _START = b"\x16", b"\x04", b"\x13", b"\x11"


@dataclass
class Queue:
    """As in ``model.Terminal``."""

    typed: list[bytes] = field(default_factory=list)
    unfinished: bytes = b""
    printed: bytes = b""


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
    if slave is None:
        return None
    if not events(slave, select.POLLOUT) & select.POLLOUT:
        return "is stopped, or full of output", "start it again (Ctrl-Q), or read from it"
    if number(ask(slave, "FIONREAD")) > _MOST_TYPED:
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


def _read(slave: int) -> bytes | None:
    try:
        return os.read(slave, 1 << 16)
    except BlockingIOError:
        return None


def _give(master: int, slave: int, queue: Queue) -> None:
    typed = b"".join(map(_line, queue.typed)) + _quoted(queue.unfinished)
    if not typed and not queue.printed:
        return
    settings = ask(slave, "TCGETS2", SETTINGS)
    attributes = termios.tcgetattr(slave)
    characters = [b"\0"] * len(attributes[6])
    characters[termios.VLNEXT], characters[termios.VEOF] = _QUOTE, _EOF
    characters[termios.VSTOP], characters[termios.VSTART] = _STOP, _START
    attributes[:2] = termios.IXON, 0
    attributes[3], attributes[6] = termios.ICANON | termios.IEXTEN, characters
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    try:
        if typed:
            _write(master, _STOP)
            if events(slave, select.POLLIN | select.POLLOUT):
                raise TargetError("pseudo-terminal", "cannot be stopped")
            _write(master, typed + _START)
            if not events(slave, select.POLLOUT, _PATIENCE):
                raise TargetError("pseudo-terminal", "does not take back what was typed")
        _write(slave, queue.printed)
    finally:
        tell(slave, "TCSETS2", settings)
    events(master, select.POLLIN)


def _line(data: bytes) -> bytes:
    """How to type a line so that it is read as ``data``."""
    if data.endswith(b"\n"):
        return _quoted(data[:-1]) + b"\n"
    return _quoted(data) + _EOF


def _quoted(data: bytes) -> bytes:
    for special in (_QUOTE, _EOF, _STOP, _START, b"\n"):
        data = data.replace(special, _QUOTE + special)
    return data


def _write(descriptor: int, data: bytes) -> None:
    while data:
        if not events(descriptor, select.POLLOUT, _PATIENCE) & select.POLLOUT:
            raise TargetError("pseudo-terminal", "does not take back what was read from it")
        data = data[os.write(descriptor, data) :]
