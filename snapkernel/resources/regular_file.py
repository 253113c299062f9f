"""Files and directories that are opened again by their path; deleted files and memfds, which are
objects of ``shared_memory``."""

from __future__ import annotations

import os
import stat

from snapkernel.freeze.batch import AT_FDCWD, Batch, Cell
from snapkernel.model import FileIdentity, Note, ObjectFile, RegularFile
from snapkernel.resources import dev_shm, file_locks, proc_file, shared_memory
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table

RECORDS = (RegularFile, ObjectFile)
_NOT_AGAIN = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_NOCTTY
_NOT_AGAIN |= os.O_TMPFILE & ~os.O_DIRECTORY  # it has been given a name meanwhile (open(2))


def recognises(file: OpenFile) -> bool:
    """Regular files and directories."""
    return file.is_regular or stat.S_ISDIR(file.status.st_mode)


def capture(capture: Capture, file: OpenFile, table: Table) -> RegularFile | ObjectFile | None:
    """By path, or by content when there is no path any more."""
    if not shared_memory.named_in_utf8(capture, file.link):
        return None
    inode = file.status.st_ino
    name = dev_shm.name_of(capture, file.device, inode, file.link) if file.is_regular else None
    if name is not None or (file.is_regular and file.status.st_nlink == 0):
        path = file.link.removesuffix(" (deleted)") if name is None else name
        known = shared_memory.find(capture, file.device, inode, path, named=name is not None)
        if known is None:
            why = shared_memory.refusal(file.link)
            capture.refuse(
                file.subject, *(why or ("this kind of memory cannot be saved", "close it"))
            )
            return None
        known.link = known.link or f"/proc/self/fd/{file.descriptor}"
        capture.saved(file.subject)
        flags = file.flags & ~shared_memory.WAYS_TO_OPEN
        return ObjectFile(
            flags=flags,
            position=file.position,
            object=known.index,
            locks=file_locks.capture(capture, file),
        )
    if proc_file.is_foreign(capture, file, table):
        return None
    return _by_path(capture, file)


def _by_path(capture: Capture, file: OpenFile) -> RegularFile | None:
    directory = not file.is_regular
    try:
        there = os.stat(f"/proc/{capture.pid}/root{file.link}")
    except OSError:
        there = None
    if there is None or there.st_ino != file.status.st_ino:
        capture.refuse(
            file.subject,
            "the directory was deleted" if directory else "another file stands at its path",
            "close it, or put the original back",
        )
        return None
    if file.position < 0:
        reason = "its position is above 2^63, which a snapshot cannot hold"
        capture.refuse(file.subject, reason, "close it, or seek to another place")
        return None
    capture.saved(file.subject)
    return RegularFile(
        flags=file.flags & ~_NOT_AGAIN,
        position=file.position,
        directory=directory,
        inode=file.status.st_ino if directory and file.position else 0,
        locks=file_locks.capture(capture, file),
        file=FileIdentity(
            path=file.link,
            size=0 if directory else file.status.st_size,
            mtime_ns=0 if directory else file.status.st_mtime_ns,
        ),
    )


def create(build: Build, batch: Batch, record: RegularFile | ObjectFile, index: int) -> None:
    """Open it again and go to the old position."""
    if isinstance(record, ObjectFile):
        note = build.manifest.shared_memory[record.object].name
        fresh = shared_memory.reopen(
            build, batch, build.held_object(record.object), record.flags, note
        )
    else:
        note = build.paths.get(record.file.path, record.file.path)
        fresh = Cell("fresh")
        path = os.fsencode(note) + b"\0"
        batch.call("openat", AT_FDCWD, path, record.flags, store=fresh, note=f"file {note}")
    if isinstance(record, RegularFile) and record.inode:
        _note_other_directory(build, record)
    if record.position and not proc_file.is_of_process(record):
        batch.call("lseek", fresh, record.position, os.SEEK_SET, note=f"file {note}")
    build.keep(batch, fresh, index)


def _note_other_directory(build: Build, record: RegularFile) -> None:
    """A directory is read on from where the file system said it was, so it must be the same."""
    path = record.file.path
    try:
        same = os.stat(path).st_ino == record.inode
    except OSError:
        same = False
    if not same:
        reason = "it is another directory, of which entries may be read twice or not at all"
        build.notes.append(Note(object=f"directory {path}", status="replaced", reason=reason))
