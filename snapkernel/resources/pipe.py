"""Pipes (pipe(7)) whose both ends are in the process, or whose other end is closed.

What waits in a pipe is copied by tee(2), which does not consume it. POLLHUP at the reading end
means that nobody has the writing end, POLLERR at the writing end that nobody has the reading end
(poll(2)); an end that somebody outside holds makes it a stream (``stream``).
"""

from __future__ import annotations

import fcntl
import os
import select

from snapkernel._native import lib
from snapkernel.constants import F_GETPIPE_SZ, F_SETFL, F_SETPIPE_SZ
from snapkernel.freeze.batch import AddressOf, Batch, Cell
from snapkernel.model import Pipe, PipeEnd
from snapkernel.resources import shared_memory
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table

RECORDS = (PipeEnd,)
PREFIX = "pipe:["
_PIECE = 1 << 18
_DEFAULT_SIZE = 1 << 16


def recognises(file: OpenFile) -> bool:
    """An end of a pipe without a name."""
    return file.link.startswith(PREFIX)


def is_external(file: OpenFile, table: Table) -> bool:
    """Somebody outside has the other end."""
    if not recognises(file):
        return False
    ends = table.by_inode(file.status.st_ino, PREFIX)
    if file.readable and file.writable:
        return False
    if any(end.writable if file.readable else end.readable for end in ends):
        return False
    poll = select.poll()
    poll.register(file.descriptor, 0)
    events = dict(poll.poll(0)).get(file.descriptor, 0)
    return not events & (select.POLLHUP | select.POLLERR)


def capture(capture: Capture, file: OpenFile, table: Table) -> PipeEnd | None:
    """An end; the pipe itself with the first end of it that is seen."""
    capture.saved(file.subject)
    ends = table.by_inode(file.status.st_ino, PREFIX)
    first = min(end.index for end in ends)
    key = f"{PREFIX}{file.status.st_ino}"
    if first == file.index:
        capture.pipe_index[key] = len(capture.pipes)
        reader = next((end for end in ends if end.readable), None)
        size = fcntl.fcntl(file.descriptor, F_GETPIPE_SZ)
        pieces = queued(reader.descriptor, size) if reader else []
        if not any(end.flags & os.O_DIRECT for end in ends if end.writable):
            pieces = [b"".join(pieces)] if pieces else []
        capture.pipes.append(Pipe(size=size, data=tuple(pieces)))
    return PipeEnd(flags=file.flags, pipe=capture.pipe_index[key], writable=file.writable)


def queued(reader: int, size: int) -> list[bytes]:
    """A copy of what waits in the pipe. A read ends with a packet, if it is one (pipe(2))."""
    out, into = os.pipe()
    try:
        fcntl.fcntl(into, F_SETPIPE_SZ, size)
        length = lib.sk_tee(reader, into, size)
        pieces: list[bytes] = []
        while length > 0:
            pieces.append(os.read(out, length))
            length -= len(pieces[-1])
        return pieces
    finally:
        os.close(out)
        os.close(into)


def create(build: Build, batch: Batch, record: PipeEnd, index: int) -> None:
    """Both ends at once, with what waits between them; an end nobody had is closed again."""
    if index in build.numbers:
        return
    pipe = build.manifest.pipes[record.pipe]
    note = "pipe"
    reader, writer = Cell("reader"), Cell("writer")
    ends = {
        number: end
        for number, end in enumerate(build.manifest.descriptions)
        if isinstance(end, PipeEnd) and end.pipe == record.pipe
    }
    packets = any(end.flags & os.O_DIRECT for end in ends.values() if end.writable)
    flags = os.O_CLOEXEC | os.O_NONBLOCK | (os.O_DIRECT if packets else 0)
    batch.call("pipe2", AddressOf((reader, writer)), flags, note=note)
    full = sum(map(len, pipe.data)) > _DEFAULT_SIZE
    batch.call("fcntl", writer, F_SETPIPE_SZ, pipe.size, check=full, note=note)
    for data in pipe.data:
        for at in range(0, len(data), _PIECE):
            piece = data[at : at + _PIECE]
            batch.call("write", writer, piece, len(piece), expect=len(piece), note=note)
    spare = {os.O_RDONLY: build.move(batch, reader), os.O_WRONLY: build.move(batch, writer)}
    ways = dict(spare)
    for number, end in sorted(ends.items(), key=_both_ways_first):
        # One description is the pipe's own; a further one, or one for both reading and writing, is
        # opened by way of /proc/self/fd.
        mode = end.flags & os.O_ACCMODE
        if mode in spare and _last(ends, number, mode):
            placed = build.place(batch, spare.pop(mode), number)
        else:
            way = ways[os.O_WRONLY if mode == os.O_WRONLY else os.O_RDONLY]
            placed = build.keep(batch, shared_memory.reopen(build, batch, way, mode, note), number)
        batch.call("fcntl", placed, F_SETFL, end.flags & ~os.O_ACCMODE, note=note)
    for unused in spare.values():
        batch.call("close", unused)


def _both_ways_first(item: tuple[int, PipeEnd]) -> tuple[bool, int]:
    return item[1].flags & os.O_ACCMODE != os.O_RDWR, item[0]


def _last(ends: dict[int, PipeEnd], number: int, mode: int) -> bool:
    """The last description with this access mode: those before are made from its pipe."""
    return number == max(n for n, end in ends.items() if end.flags & os.O_ACCMODE == mode)
