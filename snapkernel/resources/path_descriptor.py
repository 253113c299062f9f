"""Descriptors that only name a place in the file system: O_PATH (open(2), Linux 2.6.39).

Whatever stands there - a file, a directory, a symbolic link, a socket, a device - is not opened, so
there is neither a position nor a mode. Of a deleted file there is an object of ``shared_memory``.
"""

from __future__ import annotations

import os

from snapkernel.freeze.batch import AT_FDCWD, Batch, Cell
from snapkernel.model import PathDescriptor
from snapkernel.resources import proc_file, shared_memory
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table

RECORDS = (PathDescriptor,)


def recognises(file: OpenFile) -> bool:
    """By its flag."""
    return file.only_path and not (file.is_regular and file.status.st_nlink == 0)


def capture(capture: Capture, file: OpenFile, table: Table) -> PathDescriptor | None:
    """The path. It leads to what was opened, symbolic links included, without being followed."""
    if not shared_memory.named_in_utf8(capture, file.link) or proc_file.is_foreign(
        capture, file, table
    ):
        return None
    try:
        there = os.lstat(f"/proc/{capture.pid}/root{file.link}")
    except OSError:
        there = None
    if there is None or not os.path.samestat(there, file.status):
        reason = "what it names was deleted, or has no path"
        capture.refuse(file.subject, reason, "close it, or put the original back")
        return None
    capture.saved(file.subject)
    return PathDescriptor(flags=file.flags, path=file.link)


def create(build: Build, batch: Batch, record: PathDescriptor, index: int) -> None:
    """As it was opened: with O_NOFOLLOW, if what is named is a symbolic link."""
    fresh = Cell("fresh")
    path = os.fsencode(record.path) + b"\0"
    batch.call("openat", AT_FDCWD, path, record.flags, store=fresh, note=f"path {record.path}")
    build.keep(batch, fresh, index)
