"""Character devices without state: /dev/null and its like (null(4), random(4), full(4))."""

from __future__ import annotations

import os
import stat

from snapkernel.freeze.batch import AT_FDCWD, Batch, Cell
from snapkernel.model import CharacterDevice
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table

RECORDS = (CharacterDevice,)
STATELESS = {os.makedev(1, minor) for minor in (3, 5, 7, 8, 9)}


def recognises(file: OpenFile) -> bool:
    """null, zero, full, random, urandom."""
    return stat.S_ISCHR(file.status.st_mode) and file.status.st_rdev in STATELESS


def capture(capture: Capture, file: OpenFile, table: Table) -> CharacterDevice | None:
    """Path and flags are all there is."""
    try:
        there = os.stat(f"/proc/{capture.pid}/root{file.link}").st_rdev
    except OSError:
        there = 0
    if there != file.status.st_rdev:
        reason = "the device is not at its path any more"
        capture.refuse(file.subject, reason, "close it, or put the device back")
        return None
    capture.saved(file.subject)
    return CharacterDevice(flags=file.flags, path=file.link, device=file.status.st_rdev)


def create(build: Build, batch: Batch, record: CharacterDevice, index: int) -> None:
    """Open it again."""
    fresh = Cell("fresh")
    path = os.fsencode(record.path) + b"\0"
    flags = record.flags & ~os.O_ASYNC  # is switched on later, and not by open(2)
    batch.call("openat", AT_FDCWD, path, flags, store=fresh, note=record.path)
    build.keep(batch, fresh, index)
