"""Whom a description tells that it is ready, and by which signal: F_SETOWN_EX, F_SETSIG and O_ASYNC
(fcntl(2)).

The owner is a thread, a process or a process group. The kernel remembers the credentials of whoever
has set it, so it is set before the process gets its own; and it is set when the threads are there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct

import msgspec

from snapkernel import procfs
from snapkernel.constants import F_GETOWN_EX, F_GETSIG, F_SETFL, F_SETOWN_EX, F_SETSIG
from snapkernel.freeze.batch import Batch
from snapkernel.model import AnyDescription, FileOwner, OwnerKind, Stream
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table

_OWNER = struct.Struct("=ii")  # struct f_owner_ex
_KINDS: tuple[OwnerKind, ...] = ("thread", "process", "group")  # F_OWNER_TID, _PID, _PGRP


def capture(
    capture: Capture, file: OpenFile, table: Table, record: AnyDescription
) -> AnyDescription:
    """The record with the owner, if there is one. An owner outside is refused: nobody there would
    hear of a copy."""
    if file.only_path:
        return record
    kind, number = _OWNER.unpack(fcntl.fcntl(file.descriptor, F_GETOWN_EX, bytes(_OWNER.size)))
    number, signal = abs(number), fcntl.fcntl(file.descriptor, F_GETSIG)
    if not number and not signal:
        return record
    owner = FileOwner(kind=_KINDS[kind], signal=signal)
    if number:
        inner = _inner(table, owner.kind, number)
        if inner is None and isinstance(record, Stream):
            return record  # whoever shared the old stream with the process has no part in the new
        if inner is None:
            reason = f"sends signals to {owner.kind} {number}, which is not in the snapshot"
            capture.refuse(file.subject, reason, "make the process itself the owner (F_SETOWN)")
            return record
        owner = msgspec.structs.replace(owner, id=inner)
    return msgspec.structs.replace(record, owner=owner)


def _inner(table: Table, kind: OwnerKind, number: int) -> int | None:
    """The owner's id as the processes see it; ``None`` when it is none of them."""
    for pid in table.pids:
        if kind == "group":
            if os.getpgid(pid) == number:
                return procfs.innermost(procfs.status(pid)["NSpgid"])
        elif kind == "process" and number == pid:
            return procfs.inner_tid(pid, pid)
        elif kind == "thread":
            with contextlib.suppress(OSError):
                return procfs.inner_tid(pid, number)
    return None


def rebuild(build: Build) -> Batch:
    """Set owners and signals, and switch O_ASYNC on."""
    batch = Batch("set owners of files")
    for index, record in enumerate(build.manifest.descriptions):
        owner = record.owner
        if owner is None and not record.flags & os.O_ASYNC:
            continue
        number = build.number_of(index)
        if number is None:
            continue
        note = f"owner of fd {number}"
        if owner is not None:
            whom = _OWNER.pack(_KINDS.index(owner.kind), owner.id)
            batch.call("fcntl", number, F_SETOWN_EX, whom, note=note)
            batch.call("fcntl", number, F_SETSIG, owner.signal, note=note)
        if record.flags & os.O_ASYNC:
            # What a new standard stream is, may not be able to do that.
            lost = note if isinstance(record, Stream) else ""
            batch.call("fcntl", number, F_SETFL, record.flags, optional=lost, note=note)
    return batch
