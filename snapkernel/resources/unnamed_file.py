"""Files that never had a name: O_TMPFILE (open(2), Linux 3.11).

Their content is an object of ``shared_memory``. What sets them apart from deleted files is that
they may be given a name later (linkat(2)); whether O_EXCL forbade that cannot be seen.
"""

from __future__ import annotations

import os

from snapkernel.freeze.batch import AT_FDCWD, Batch, Cell
from snapkernel.model import Note, SharedMemory
from snapkernel.resources.context import Build


def is_unnamed(path: str, inode: int) -> bool:
    """By the name that /proc shows (d_mark_tmpfile in fs/dcache.c)."""
    return os.path.basename(path) == f"#{inode}"


def can_be_had(build: Build, record: SharedMemory, note: str) -> bool:
    """The object is one, and another one can be made in its directory; if not, that is noted."""
    if not record.linkable:
        return False
    try:
        os.close(os.open(os.path.dirname(record.name), os.O_TMPFILE | os.O_RDWR, 0o600))
    except OSError as error:
        reason = f"cannot be given a name: {error.strerror}"
        build.notes.append(Note(object=note, status="replaced", reason=reason))
        return False
    return True


def make(batch: Batch, record: SharedMemory, fresh: Cell, note: str) -> None:
    """A new one, into ``fresh``."""
    path = os.fsencode(os.path.dirname(record.name)) + b"\0"
    flags = os.O_TMPFILE | os.O_RDWR
    batch.call("openat", AT_FDCWD, path, flags, 0o600, store=fresh, note=note)
