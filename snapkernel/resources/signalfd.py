"""signalfd(2). fdinfo shows the mask (Linux 3.8)."""

from __future__ import annotations

import os
import struct

from snapkernel.freeze.batch import Batch, Cell
from snapkernel.model import SignalDescriptor
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table

RECORDS = (SignalDescriptor,)


def recognises(file: OpenFile) -> bool:
    """By its name."""
    return file.link == "anon_inode:[signalfd]"


def capture(capture: Capture, file: OpenFile, table: Table) -> SignalDescriptor:
    """The signals it reads."""
    capture.saved(file.subject)
    return SignalDescriptor(flags=file.flags, mask=int(file.field("sigmask"), 16))


def create(build: Build, batch: Batch, record: SignalDescriptor, index: int) -> None:
    """A new one."""
    fresh = Cell("fresh")
    mask = struct.pack("=Q", record.mask)
    batch.call("signalfd4", -1, mask, 8, record.flags & os.O_NONBLOCK, store=fresh, note="signalfd")
    build.keep(batch, fresh, index)
