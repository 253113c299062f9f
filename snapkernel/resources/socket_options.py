"""Socket options that a program may have set: socket(7), tcp(7), ipv6(7)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from snapkernel.freeze.batch import Batch, Cell

Option = tuple[int, int, bytes]

_GENERIC = (
    socket.SO_REUSEADDR,
    15,  # SO_REUSEPORT
    socket.SO_KEEPALIVE,
    socket.SO_OOBINLINE,
    socket.SO_LINGER,
    socket.SO_RCVTIMEO,
    socket.SO_SNDTIMEO,
    16,  # SO_PASSCRED
)
_TCP = (
    socket.TCP_NODELAY,
    socket.TCP_KEEPIDLE,
    socket.TCP_KEEPINTVL,
    socket.TCP_KEEPCNT,
    socket.TCP_USER_TIMEOUT,
    socket.TCP_DEFER_ACCEPT,
)
_LONGEST = 16
_BUFFERS = ((1, socket.SO_SNDBUF), (2, socket.SO_RCVBUF))
SO_BUF_LOCK = 72  # Linux 5.15: which buffer sizes were set by the program


def _wanted(end: socket.socket) -> list[tuple[int, int]]:
    wanted = [(socket.SOL_SOCKET, option) for option in _GENERIC]
    if end.family in (socket.AF_INET, socket.AF_INET6) and end.type & 15 == socket.SOCK_STREAM:
        wanted += [(socket.IPPROTO_TCP, option) for option in _TCP]
    if end.family == socket.AF_INET6:
        wanted.append((socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
    return wanted


_defaults: dict[tuple[int, int], frozenset[Option]] = {}


def _read(end: socket.socket) -> list[Option]:
    found = []
    for level, option in _wanted(end):
        try:
            found.append((level, option, end.getsockopt(level, option, _LONGEST)))
        except OSError:
            continue
    return found


def capture(end: socket.socket) -> tuple[Option, ...]:
    """The options that differ from those of a new socket."""
    kind = (int(end.family), int(end.type) & 15)
    if kind not in _defaults:
        with socket.socket(*kind) as fresh:
            _defaults[kind] = frozenset(_read(fresh))
    found = [option for option in _read(end) if option not in _defaults[kind]]
    return (*_buffers(end), *found)


def _buffers(end: socket.socket) -> Iterator[Option]:
    """Buffer sizes that the program has set; the kernel tells twice of what it was given."""
    try:
        locked = end.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK)
    except OSError:
        return
    for bit, option in _BUFFERS:
        if locked & bit:
            size = end.getsockopt(socket.SOL_SOCKET, option) // 2
            yield socket.SOL_SOCKET, option, struct.pack("=i", size)


def rebuild(batch: Batch, cell: Cell | int, options: tuple[Option, ...], note: str) -> None:
    """Set them again."""
    for level, option, value in options:
        batch.call("setsockopt", cell, level, option, value, len(value), check=False, note=note)
