"""inotify(7).

fdinfo lists the watches (Linux 3.8). A restored instance watches the same paths, with the same
numbers: the kernel counts them up, so what is missing between two is added and removed again. That
is done when the process opens and closes nothing more, so that it is told only of what others do.
Events that wait cannot be read without taking them, so they are refused.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import functools
import os
import re
import termios

from snapkernel import procfs
from snapkernel._native import lib
from snapkernel.constants import F_SETFL
from snapkernel.freeze.batch import Batch, Cell, Space
from snapkernel.model import MOST_WATCHES, Inotify, InotifyWatch
from snapkernel.resources import shared_memory
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table
from snapkernel.resources.watched_path import (
    IN_DELETE_SELF,
    IN_DONT_FOLLOW,
    IN_EXCL_UNLINK,
    WATCH,
    Mark,
    Search,
)

RECORDS = (Inotify,)
_EVENTS = 1 << 12  # fewer than the kernel keeps by default (max_queued_events)
_EVENT_SIZE = 16


def recognises(file: OpenFile) -> bool:
    """By its name."""
    return file.link in ("anon_inode:inotify", "inotify")


def capture(capture: Capture, file: OpenFile, table: Table) -> Inotify | None:
    """Every watch, with a path to what it watches."""
    count = array.array("i", [0])
    fcntl.ioctl(file.descriptor, termios.FIONREAD, count)
    if count[0]:
        reason = "events wait in it that would be lost"
        capture.refuse(file.subject, reason, "try again when the program has read them")
        return None
    marks = {int(match[1], 16): (_mark(match), match[4]) for match in WATCH.finditer(file.info)}
    if max(marks, default=0) > MOST_WATCHES:
        reason = f"has had more than {MOST_WATCHES} watches, whose numbers cannot be had again"
        capture.refuse(file.subject, reason, "close it and open another one")
        return None
    if marks and not _flags_are_shown():
        reason = "whether IN_ONESHOT or IN_EXCL_UNLINK was set does not show before Linux 5.19"
        capture.report(file.subject, "replaced", reason)
    with contextlib.closing(Search(capture, table)) as search:
        paths = search.find({mark for mark, _ in marks.values()})
    watches = []
    for number, (mark, mask) in sorted(marks.items()):
        path = paths.get(mark)
        if path is None:
            capture.refuse(
                f"{file.subject}, watch {number}",
                f"no path was found that leads to what it watches (inode {mark.inode})",
                "remove the watch, or open a file or directory at or above its place",
            )
        elif shared_memory.named_in_utf8(capture, path):
            watches.append(InotifyWatch(number=number, path=path, mask=int(mask, 16)))
    capture.saved(file.subject)
    return Inotify(flags=file.flags, watches=tuple(watches))


def _mark(match: re.Match[str]) -> Mark:
    handle = (int(match[5] or "0", 16), bytes.fromhex(match[6] or ""))
    return Mark(device=int(match[3], 16), inode=int(match[2], 16), handle=handle)


@functools.cache
def _flags_are_shown() -> bool:
    """fdinfo shows more of a mask than the events: since Linux 5.19, and in later 5.15."""
    instance = lib.sk_inotify()
    if instance < 0:
        return False
    try:
        lib.sk_inotify_add(instance, b"/", IN_DELETE_SELF | IN_EXCL_UNLINK)
        match = WATCH.search(procfs.text(f"/proc/self/fdinfo/{instance}"))
        return match is not None and bool(int(match[4], 16) & IN_EXCL_UNLINK)
    finally:
        os.close(instance)


# --- rebuild -----------------------------------------------------------------------------------


def create(build: Build, batch: Batch, record: Inotify, index: int) -> None:
    """An instance that watches nothing yet."""
    fresh = Cell("fresh")
    batch.call("inotify_init1", os.O_NONBLOCK, store=fresh, note="inotify")
    build.keep(batch, fresh, index)


def rebuild(build: Build) -> Batch:
    """Watch, by the old numbers."""
    batch = Batch("watch files")
    for index, record in enumerate(build.manifest.descriptions):
        number = build.number_of(index) if isinstance(record, Inotify) else None
        if number is None or not isinstance(record, Inotify):
            continue
        upcoming = 1
        for watch in sorted(record.watches, key=lambda watch: watch.number):
            for unused in range(upcoming, watch.number):
                _watch(batch, number, watch, IN_DELETE_SELF, unused)
                batch.call("inotify_rm_watch", number, unused)
                if unused % _EVENTS == 0:
                    _drain(batch, number)
            _watch(batch, number, watch, watch.mask, watch.number)
            upcoming = watch.number + 1
        _drain(batch, number)
        batch.call("fcntl", number, F_SETFL, record.flags & ~os.O_ASYNC, note="inotify")
    return batch


def _watch(batch: Batch, number: int, watch: InotifyWatch, mask: int, expected: int) -> None:
    path = os.fsencode(watch.path) + b"\0"
    if os.path.islink(watch.path):
        mask |= IN_DONT_FOLLOW
    note = f"inotify watch of {watch.path}"
    batch.call("inotify_add_watch", number, path, mask, expect=expected, note=note)


def _drain(batch: Batch, number: int) -> None:
    """Every watch that was removed has left an event (IN_IGNORED)."""
    room = Space(bytes(_EVENTS * _EVENT_SIZE))
    batch.call("read", number, room, len(room.data), check=False)
