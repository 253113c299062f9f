"""FIFOs: pipes with a name (fifo(7)).

A FIFO is opened again by its path, so that a restored process meets there whoever else has opened
it: a process that still has its other end, or the living original of the snapshot. What waits in it
belongs to all of them. It is saved with the last reader, and written again only if nobody has the
FIFO open, for then it is gone.

Opening one end waits for the other (open(2)), but not with O_NONBLOCK and a reader: so one is held
until all ends are there. A reader that nobody has ever written to is opened last of all, since it
does not report a hang-up before its first writer has come and gone (poll(2), fs/pipe.c).
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import select
import stat
import termios

from snapkernel.constants import F_GETPIPE_SZ, F_SETFL, F_SETPIPE_SZ
from snapkernel.freeze.batch import AT_FDCWD, Batch, Cell
from snapkernel.model import FifoEnd, Note, Pipe
from snapkernel.resources import pipe, shared_memory
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table

RECORDS = (FifoEnd,)
_PIECE = 1 << 18
_DEFAULT_SIZE = 1 << 16
_NOT_WHEN_OPENING = os.O_DIRECT | os.O_ASYNC
"""O_DIRECT is refused by open(2) for a FIFO, O_ASYNC has no effect there."""


def recognises(file: OpenFile) -> bool:
    """An end of a pipe that has a name."""
    return stat.S_ISFIFO(file.status.st_mode) and file.link.startswith("/") and not file.only_path


def capture(capture: Capture, file: OpenFile, table: Table) -> FifoEnd | None:
    """An end; what waits in the FIFO with the first end of it that is seen."""
    if not shared_memory.named_in_utf8(capture, file.link) or not _can_open(capture, file):
        return None
    ends = [end for end in table.files if recognises(end) and _same(end, file)]
    key = f"fifo {file.device} {file.status.st_ino}"
    if key not in capture.pipe_index:
        capture.pipe_index[key] = len(capture.pipes)
        size = fcntl.fcntl(file.descriptor, F_GETPIPE_SZ)
        capture.pipes.append(Pipe(size=size, data=_waiting(capture, file, ends, size)))
    capture.saved(file.subject)
    return FifoEnd(
        flags=file.flags,
        pipe=capture.pipe_index[key],
        path=file.link,
        unwritten=_is_unwritten(file, ends),
    )


def _same(one: OpenFile, other: OpenFile) -> bool:
    return os.path.samestat(one.status, other.status)


def _can_open(capture: Capture, file: OpenFile) -> bool:
    """Its path still leads to it, and may be opened as it is needed; else it is refused."""
    path = f"/proc/{capture.pid}/root{file.link}"
    try:
        if not os.path.samestat(os.stat(path), file.status):
            raise FileNotFoundError
        allowed = os.access(path, os.R_OK | os.W_OK, effective_ids=True)
    except OSError:
        reason = "the FIFO was deleted, or something else stands at its path"
        capture.refuse(file.subject, reason, "close it, or put the original back")
        return False
    if not allowed:
        reason = "the FIFO can no longer be opened for reading and writing"
        capture.refuse(file.subject, reason, f"allow both for {file.link}")
    return allowed


def _waiting(
    capture: Capture, file: OpenFile, ends: list[OpenFile], size: int
) -> tuple[bytes, ...]:
    """What waits in it, as of a pipe. Without a reader in the process there may be one outside,
    to whom it belongs."""
    reader = next((end for end in ends if end.readable), None)
    if reader is not None:
        pieces = pipe.queued(reader.descriptor, size)
        if any(end.flags & os.O_DIRECT for end in ends if end.writable):
            return tuple(pieces)
        return (b"".join(pieces),) if pieces else ()
    count = array.array("i", [0])
    fcntl.ioctl(file.descriptor, termios.FIONREAD, count)
    if count[0] and _events(file) & select.POLLERR:
        reason = f"{count[0]} bytes wait in the FIFO, and nobody has opened it for reading"
        capture.refuse(file.subject, reason, "read them, or close it")
    elif count[0]:
        reason = f"{count[0]} bytes that wait in the FIFO belong to its reader outside"
        capture.report(file.subject, "shared", reason)
    return ()


def _events(file: OpenFile) -> int:
    poll = select.poll()
    poll.register(file.descriptor, 0)
    return dict(poll.poll(0)).get(file.descriptor, 0)


def _is_unwritten(file: OpenFile, ends: list[OpenFile]) -> bool:
    """A reader whose first writer has not come: there is none, and yet no hang-up is reported."""
    if file.writable or any(end.writable for end in ends):
        return False
    return not _events(file) & select.POLLHUP


# --- rebuild -----------------------------------------------------------------------------------


def create(build: Build, batch: Batch, record: FifoEnd, index: int) -> None:
    """All ends at once, with what waits between them."""
    if index in build.numbers:
        return
    note = f"FIFO {record.path}"
    path = os.fsencode(record.path) + b"\0"
    ends = {
        number: end
        for number, end in enumerate(build.manifest.descriptions)
        if isinstance(end, FifoEnd) and end.pipe == record.pipe
    }
    held = _open(build, batch, path, os.O_RDONLY, note)
    data = _to_be_written(build, record, note)
    size = build.manifest.pipes[record.pipe].size
    full = sum(map(len, data)) > _DEFAULT_SIZE
    batch.call("fcntl", held, F_SETPIPE_SZ, size, check=full, note=note)
    writer = None
    if data or any(not (end.unwritten or end.flags & os.O_ACCMODE) for end in ends.values()):
        # Nobody else who reads may see a writer come and go without need.
        writer = _open(build, batch, path, os.O_WRONLY, note)
        if any(end.flags & os.O_DIRECT for end in ends.values()):
            batch.call("fcntl", writer, F_SETFL, os.O_NONBLOCK | os.O_DIRECT, note=note)
        for piece in data:
            batch.call("write", writer, piece, len(piece), expect=len(piece), note=note)
    for number, end in ends.items():
        if not end.unwritten:
            _place(build, batch, path, number, end, note)
    if writer is not None:
        batch.call("close", writer)
    for number, end in ends.items():
        if end.unwritten:
            _place(build, batch, path, number, end, note)
    batch.call("close", held)


def _open(build: Build, batch: Batch, path: bytes, flags: int, note: str) -> Cell:
    fresh = Cell("fresh")
    flags |= os.O_NONBLOCK | os.O_CLOEXEC
    batch.call("openat", AT_FDCWD, path, flags, store=fresh, note=note)
    return build.move(batch, fresh)


def _to_be_written(build: Build, record: FifoEnd, note: str) -> list[bytes]:
    """What waited, in pieces; nothing while the FIFO lives elsewhere."""
    data = build.manifest.pipes[record.pipe].data
    if data and _is_open_elsewhere(record.path):
        length = sum(map(len, data))
        reason = f"is open elsewhere; {length} bytes that waited in it were not written again"
        build.notes.append(Note(object=note, status="shared", reason=reason))
        return []
    return [packet[at : at + _PIECE] for packet in data for at in range(0, len(packet), _PIECE)]


def _place(build: Build, batch: Batch, path: bytes, number: int, end: FifoEnd, note: str) -> None:
    flags = end.flags & ~_NOT_WHEN_OPENING
    placed = build.place(batch, _open(build, batch, path, flags, note), number)
    batch.call("fcntl", placed, F_SETFL, end.flags & ~os.O_ACCMODE, note=note)


def _is_open_elsewhere(path: str) -> bool:
    """Some process that may be looked at has it open. Opening it would tell as well, but be seen
    by others."""
    try:
        wanted = os.stat(path)
    except OSError:
        return False
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), wanted):
                        return True
    return False
