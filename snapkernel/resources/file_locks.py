"""Locks on files: flock(2), and the POSIX and open file description locks and the leases of
fcntl(2).

``/proc/PID/fdinfo/N`` lists, as ``lock:``, those that were taken through the descriptor (proc(5),
fs/locks.c). A POSIX lock belongs to the process, and is lost when it closes *any* descriptor of
the file; so locks are taken last, when all descriptors are at their numbers and no other is open.
A copy cannot have what another process holds, such as its living original, and who opens a file
again, as a restore does, breaks the leases of others.
"""

from __future__ import annotations

import os
import struct

from snapkernel import procfs
from snapkernel.constants import F_SETLEASE
from snapkernel.freeze.batch import Batch
from snapkernel.model import FileLock, LockKind, ObjectFile, RegularFile
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile

_KINDS: dict[str, LockKind] = {
    "FLOCK": "flock",
    "POSIX": "posix",
    "OFDLCK": "ofd",
    "LEASE": "lease",
}
_FLOCK = struct.Struct("=hh4xqqi4x")  # struct flock (<asm-generic/fcntl.h>) with 64-bit offsets
_F_RDLCK, _F_WRLCK = 0, 1
_COMMANDS = {"posix": 6, "ofd": 37}  # F_SETLK, F_OFD_SETLK
_LOCK_SH, _LOCK_EX, _LOCK_NB = 1, 2, 4


def capture(capture: Capture, file: OpenFile) -> tuple[FileLock, ...]:
    """The locks that were taken through a description. A lease that somebody waits for is about to
    be given up, and is refused."""
    locks = []
    for pid, line in file.locks:
        # "lock: 1: POSIX  ADVISORY  READ 4711 fe:00:1234 0 EOF"; of a lease the word after its kind
        # is its state.
        _, _, kind, state, access, *_, start, end = line.split()
        if kind not in _KINDS:
            reason = f"has a lock of the kind {kind}, which cannot be saved yet"
            capture.refuse(file.subject, reason, "release it")
            continue
        if state.startswith("BREAK"):
            capture.refuse(file.subject, "has a lease that somebody waits for", "give it up")
            continue
        owner = 0
        if kind == "POSIX":
            try:
                owner = procfs.inner_tid(pid, pid)
            except FileNotFoundError:
                continue  # of somebody who is gone by now
        locks.append(
            FileLock(
                kind=_KINDS[kind],
                write=access == "WRITE",
                start=int(start),
                end=None if end == "EOF" else int(end),
                owner=owner,
            )
        )
    return tuple(locks)


def rebuild(build: Build) -> Batch:
    """Take the locks again; what cannot be had is noted."""
    batch = Batch("lock files")
    for index, record in enumerate(build.manifest.descriptions):
        if not isinstance(record, RegularFile | ObjectFile) or not record.locks:
            continue
        numbers = (e.number for e in build.process.descriptors if e.description == index)
        number = next(numbers, None)
        for lock in record.locks:
            if number is None or lock.owner not in (0, build.process.pid):
                continue
            _take(batch, number, lock, f"lock on {_name(build, record)}")
    return batch


def _name(build: Build, record: RegularFile | ObjectFile) -> str:
    if isinstance(record, RegularFile):
        return record.file.path
    return build.manifest.shared_memory[record.object].name


def _take(batch: Batch, number: int, lock: FileLock, what: str) -> None:
    if lock.kind == "flock":
        operation = (_LOCK_EX if lock.write else _LOCK_SH) | _LOCK_NB
        batch.call("flock", number, operation, optional=what, note=what)
        return
    if lock.kind == "lease":
        kind = _F_WRLCK if lock.write else _F_RDLCK
        batch.call("fcntl", number, F_SETLEASE, kind, optional=what, note=what)
        return
    length = 0 if lock.end is None else lock.end + 1 - lock.start  # 0: to the end, wherever it is
    kind = _F_WRLCK if lock.write else _F_RDLCK
    wanted = _FLOCK.pack(kind, os.SEEK_SET, lock.start, length, 0)
    batch.call("fcntl", number, _COMMANDS[lock.kind], wanted, optional=what, note=what)
