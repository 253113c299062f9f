"""epoll(7).

fdinfo lists what is watched by the descriptor number *at the time of registration*; the number may
mean something else by now while the description lives on under another. kcmp(2) with
KCMP_EPOLL_TFD (Linux 4.13) tells which description it is. On rebuild each description takes that
number for the moment of its registration.
"""

from __future__ import annotations

import os
import re
import struct

from snapkernel._native import lib
from snapkernel.constants import F_DUPFD_CLOEXEC, F_SETFL
from snapkernel.freeze.batch import Batch, Cell
from snapkernel.model import Epoll, EpollTarget
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table

RECORDS = (Epoll,)
EPOLL_CTL_ADD = 1
_TARGET = re.compile(r"tfd:\s*(\d+) events:\s*([0-9a-f]+) data:\s*([0-9a-f]+)")


def recognises(file: OpenFile) -> bool:
    """By its name."""
    return file.link == "anon_inode:[eventpoll]"


def capture(capture: Capture, file: OpenFile, table: Table) -> Epoll:
    """Every registration, with the description it is about."""
    targets = []
    offsets: dict[int, int] = {}
    for match in _TARGET.finditer(file.info):
        number = int(match[1])
        offset = offsets[number] = offsets.get(number, -1) + 1
        watched = _watched(file, table, number, offset)
        if watched is None:
            capture.refuse(
                f"{file.subject}, registration of fd {number}",
                "watches a file that the process itself has no descriptor of",
                "unregister it before closing it",
            )
            continue
        targets.append(
            EpollTarget(
                descriptor=number,
                description=watched.index,
                events=int(match[2], 16),
                data=int(match[3], 16),
            )
        )
    capture.saved(file.subject)
    # The kernel lists them by the addresses of its own structures; an order that means something
    # makes two dumps of the same process equal.
    targets.sort(key=lambda target: (target.descriptor, target.description))
    return Epoll(flags=file.flags, targets=tuple(targets))


def _watched(file: OpenFile, table: Table, number: int, offset: int) -> OpenFile | None:
    likely = table.by_number(file.pid, number)
    for candidate in ([likely] if likely else []) + table.files:
        result = lib.sk_kcmp_epoll(
            candidate.pid, candidate.numbers[0], file.pid, file.numbers[0], number, offset
        )
        if result == 0:
            return candidate
    return None


def create(build: Build, batch: Batch, record: Epoll, index: int) -> None:
    """An empty one; ``connect`` fills it when everything that it watches is there."""
    fresh = Cell("fresh")
    batch.call("epoll_create1", 0, store=fresh, note="epoll")
    if record.flags & os.O_NONBLOCK:
        batch.call("fcntl", fresh, F_SETFL, os.O_NONBLOCK)
    build.keep(batch, fresh, index)


def connect(build: Build, batch: Batch, record: Epoll, index: int) -> None:
    """Register everything, when all descriptors have their numbers."""
    owner = {entry.number: entry for entry in build.process.descriptors}
    for target in record.targets:
        number = target.descriptor
        note = f"epoll registration of fd {number}"
        event = struct.pack(build.architecture.epoll_event, target.events & 0xFFFFFFFF, target.data)
        register = ("epoll_ctl", build.numbers[index], EPOLL_CTL_ADD, number, event)
        now = owner.get(number)
        if now is not None and now.description == target.description:
            batch.call(*register, note=note)
            continue
        # The number means something else by now, or nothing.
        aside = Cell("aside")
        if now is not None:
            batch.call("fcntl", number, F_DUPFD_CLOEXEC, build.above, store=aside)
        batch.call("dup3", build.numbers[target.description], number, 0, note=note)
        batch.call(*register, note=note)
        if now is None:
            batch.call("close", number)
        else:
            flags = os.O_CLOEXEC if now.close_on_exec else 0
            batch.call("dup3", aside, number, flags)
            batch.call("close", aside)
