"""eventfd(2). fdinfo shows the counter; whether it is a semaphore since Linux 6.5."""

from __future__ import annotations

import os
import struct

from snapkernel.freeze.batch import Batch, Cell
from snapkernel.model import EventDescriptor
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table

RECORDS = (EventDescriptor,)
EFD_SEMAPHORE = 1


def recognises(file: OpenFile) -> bool:
    """By its name."""
    return file.link == "anon_inode:[eventfd]"


def capture(capture: Capture, file: OpenFile, table: Table) -> EventDescriptor:
    """Counter and kind."""
    capture.saved(file.subject)
    return EventDescriptor(
        flags=file.flags,
        count=int(file.field("eventfd-count"), 16),
        semaphore=file.field("eventfd-semaphore") == "1",
    )


def create(build: Build, batch: Batch, record: EventDescriptor, index: int) -> None:
    """A new one with the same counter (which may exceed what eventfd2 takes)."""
    fresh = Cell("fresh")
    flags = record.flags & os.O_NONBLOCK | (EFD_SEMAPHORE if record.semaphore else 0)
    batch.call("eventfd2", 0, flags, store=fresh, note="eventfd")
    if record.count:
        batch.call("write", fresh, struct.pack("=Q", record.count), 8, note="eventfd")
    build.keep(batch, fresh, index)
