"""Streams to the world outside: a terminal, a pipe to the process that started the kernel, a log
file that cannot be opened again.

Their other end cannot be saved. The restorer gives the process new ones, and they are matched by
description, never by number: ipykernel moves its standard streams away and puts pipes of its own
in their place. Only one that is read and written by several standard streams, as a terminal is, is
taken apart, since the restorer's may lead to different places.
"""

from __future__ import annotations

import os
import socket
import stat

import msgspec

from snapkernel.constants import F_DUPFD_CLOEXEC, F_SETFL
from snapkernel.freeze.batch import Batch, Cell
from snapkernel.model import Stream
from snapkernel.resources import outer_terminal, pipe, terminal
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table

RECORDS = (Stream,)
_STREAMS = ("standard input", "standard output", "standard error")


def is_stream(capture: Capture, file: OpenFile, table: Table) -> bool:
    """Comes back as a new stream."""
    mode = file.status.st_mode
    if file.only_path:
        return False
    if stat.S_ISCHR(mode):
        if terminal.is_master(file) or not os.isatty(file.descriptor):
            return False
        return not terminal.recognises(file) or not terminal.has_master(file, table)
    if stat.S_ISSOCK(mode):
        return _is_foreign_pair(file, table)
    if file.is_regular and file.status.st_nlink:
        return min(file.numbers) <= 2 and not _can_open(capture, file)
    return pipe.is_external(file, table)


def _can_open(capture: Capture, file: OpenFile) -> bool:
    """We may open the file by its path as the process has it open."""
    wanted = (os.R_OK if file.readable else 0) | (os.W_OK if file.writable else 0)
    try:
        return os.access(f"/proc/{capture.pid}/root{file.link}", wanted, effective_ids=True)
    except OSError:
        return False


def _is_foreign_pair(file: OpenFile, table: Table) -> bool:
    """One of the standard streams, connected to a socket without a name outside: how some
    programs start others."""
    if min(file.numbers) > 2:
        return False
    return file.family == socket.AF_UNIX and not file.socket.getsockname()


def capture(capture: Capture, file: OpenFile, table: Table) -> Stream:
    """Input when it can only be read; the first other description is output, the next error."""
    if not file.writable:
        number = 0
    elif min(file.numbers) <= 2:
        number = min(file.numbers)
    else:
        taken = sum(isinstance(d, Stream) and d.stream > 0 for d in capture.descriptions)
        number = min(1 + taken, 2)
    settings = outer_terminal.capture(file)
    and_settings = ", with these settings if that is a terminal" if settings else ""
    capture.report(
        file.subject,
        "replaced",
        f"leads outside; comes back as {_STREAMS[number]} of the restorer{and_settings}",
    )
    return Stream(flags=file.flags, stream=number, was=file.link, settings=settings)


def parts(capture: Capture, table: Table) -> dict[tuple[int, int], int]:
    """Descriptions of their own for output and error where input can be written to and is all of
    them: by description and descriptor number."""
    found = {}
    for index, record in enumerate(tuple(capture.descriptions)):
        if not isinstance(record, Stream) or record.stream or record.flags & os.O_ACCMODE == 0:
            continue
        for number in (1, 2):
            if any((n, i) == (number, index) for e in table.entries.values() for n, i, _ in e):
                found[index, number] = len(capture.descriptions)
                capture.descriptions.append(msgspec.structs.replace(record, stream=number))
    return found


def create(build: Build, batch: Batch, record: Stream, index: int) -> None:
    """The stream was inherited by the stub; it only gets its flags. Several may lead to it."""
    away = Cell(f"d{index}")
    batch.call("fcntl", build.stream_cells[record.stream], F_DUPFD_CLOEXEC, build.above, store=away)
    number = build.place(batch, away, index)
    flags = record.flags & (os.O_APPEND | os.O_NONBLOCK)
    if flags & os.O_NONBLOCK:
        batch.call("fcntl", number, F_SETFL, flags, check=False, note="stream")
