"""Files of /proc that belong to a process (proc(5)).

Those of the process itself are there again when it is: it has its old pid, and a /proc of its own.
Those of others are not, nor are those of its other threads, which are born after its descriptors.

To seek in such a file makes the kernel write the text that will be read (fs/seq_file.c), so this is
done when the process is what it tells of itself.
"""

from __future__ import annotations

import os
import re

from snapkernel import procfs
from snapkernel.errors import CannotRestore
from snapkernel.freeze.batch import Batch
from snapkernel.model import AnyDescription, Manifest, Note, PathDescriptor, RegularFile
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table

_OF_PROCESS = re.compile(r"/proc/(\d+)(?:/task/(\d+))?(?:/|$)")


def is_foreign(capture: Capture, file: OpenFile, table: Table) -> bool:
    """It cannot be opened again, for the process or thread it belongs to will not be there; that
    is refused."""
    match = _OF_PROCESS.match(file.link)
    if match is None or not _is_procfs(capture, file):
        return False
    pid, tid = int(match[1]), int(match[2] or match[1])
    inner = {procfs.inner_tid(process, process) for process in table.pids}
    if pid not in inner:
        reason = f"belongs to process {pid}, which is not in the snapshot"
    elif tid not in inner:
        reason = f"belongs to thread {tid}, which is born after the descriptors"
    else:
        return False
    capture.refuse(file.subject, reason, "close it before the snapshot")
    return True


def _is_procfs(capture: Capture, file: OpenFile) -> bool:
    try:
        return os.stat(f"/proc/{capture.pid}/root/proc").st_dev == file.status.st_dev
    except OSError:
        return False


# --- rebuild -----------------------------------------------------------------------------------


def is_of_process(record: AnyDescription) -> bool:
    """A file of /proc that belongs to a process."""
    return isinstance(record, RegularFile) and bool(_OF_PROCESS.match(record.file.path))


def without_own(manifest: Manifest) -> Note:
    """What is different where a container lets nobody mount a ``/proc``.

    Raises:
        CannotRestore: something is to be opened there by a process id, which means another process.
    """
    paths = [process.working_directory for process in manifest.processes]
    for record in manifest.descriptions:
        if isinstance(record, PathDescriptor):
            paths.append(record.path)
        elif isinstance(record, RegularFile):
            paths.append(record.file.path)
    for path in paths:
        if _OF_PROCESS.match(path):
            reason = "this container hides parts of /proc, so that no other can be mounted"
            remedy = "close it before the snapshot, or let the container see all of /proc"
            raise CannotRestore(f"file {path}", reason, remedy)
    reason = (
        "this container hides parts of it: it shows the container's process ids, not the old ones"
    )
    return Note(object="/proc", status="replaced", reason=reason)


def rebuild(build: Build) -> Batch:
    """Go to the old positions."""
    batch = Batch("seek in files of /proc")
    for index, record in enumerate(build.manifest.descriptions):
        if isinstance(record, RegularFile) and record.position and is_of_process(record):
            number = build.number_of(index)
            if number is not None:
                note = f"file {record.file.path}"
                batch.call("lseek", number, record.position, os.SEEK_SET, note=note)
    return batch
