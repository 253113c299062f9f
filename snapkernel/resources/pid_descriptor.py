"""A process's descriptor of itself: pidfd_open(2) (Linux 5.3).

fdinfo names the process in pids of our own namespace, -1 when it is gone.
"""

from __future__ import annotations

import os

from snapkernel import procfs
from snapkernel.freeze.batch import Batch, Cell
from snapkernel.model import PidDescriptor
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table

RECORDS = (PidDescriptor,)
_FLAGS = os.O_NONBLOCK | os.O_EXCL  # PIDFD_NONBLOCK (Linux 5.10), PIDFD_THREAD (Linux 6.9)


def recognises(file: OpenFile) -> bool:
    """By its name."""
    return file.link == "anon_inode:[pidfd]"


def capture(capture: Capture, file: OpenFile, table: Table) -> PidDescriptor | None:
    """Of the process itself; others are refused."""
    pid = int(file.field("Pid"))
    if pid != capture.pid:
        whom = f"process {pid}" if pid > 0 else "a process that is gone, or outside"
        reason = f"pidfds of other processes cannot be saved yet; it is of {whom}"
        capture.refuse(file.subject, reason, "close it before the snapshot")
        return None
    capture.saved(file.subject)
    return PidDescriptor(flags=file.flags, pid=procfs.inner_tid(pid, pid))


def create(build: Build, batch: Batch, record: PidDescriptor, index: int) -> None:
    """Open it again; the process has its old pid."""
    fresh = Cell("fresh")
    flags = record.flags & _FLAGS
    batch.call("pidfd_open", record.pid, flags, store=fresh, note=f"pidfd of {record.pid}")
    build.keep(batch, fresh, index)
