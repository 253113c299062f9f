"""timerfd_create(2). fdinfo shows all of it (Linux 3.17); TFD_IOC_SET_TICKS puts expirations back
that were not read yet (CONFIG_CHECKPOINT_RESTORE)."""

from __future__ import annotations

import os
import re
import struct

from snapkernel.freeze.batch import Batch, Cell
from snapkernel.model import TimerDescriptor
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table

RECORDS = (TimerDescriptor,)
TFD_TIMER_ABSTIME = 1
TFD_IOC_SET_TICKS = 0x40085400
_SECOND = 1_000_000_000
_BOOTTIME_CLOCKS = (7, 9)
_REALTIME_CLOCKS = (0, 8)


def recognises(file: OpenFile) -> bool:
    """By its name."""
    return file.link == "anon_inode:[timerfd]"


def _nanoseconds(text: str) -> int:
    seconds, nanoseconds = map(int, re.findall(r"-?\d+", text))
    return seconds * _SECOND + nanoseconds


def capture(capture: Capture, file: OpenFile, table: Table) -> TimerDescriptor:
    """Clock, remaining time, interval, unread expirations."""
    capture.saved(file.subject)
    return TimerDescriptor(
        flags=file.flags,
        clock=int(file.field("clockid")),
        ticks=int(file.field("ticks")),
        settime_flags=int(file.field("settime flags"), 8),
        value=_nanoseconds(file.field("it_value")),
        interval=_nanoseconds(file.field("it_interval")),
    )


def create(build: Build, batch: Batch, record: TimerDescriptor, index: int) -> None:
    """A new one with the time that was left; an absolute one with the time it was set to."""
    fresh = Cell("fresh")
    note = "timerfd"
    batch.call("timerfd_create", record.clock, record.flags & os.O_NONBLOCK, store=fresh, note=note)
    # A periodic timer that has expired shows no time left until it is read, which starts it again.
    value = record.value or (record.interval if record.ticks else 0)
    if value and record.settime_flags & TFD_TIMER_ABSTIME:
        value += _clock_at_freeze(build, record.clock)
    if value:
        times = struct.pack("=4q", *divmod(record.interval, _SECOND), *divmod(value, _SECOND))
        batch.call("timerfd_settime", fresh, record.settime_flags, times, 0, note=note)
    if record.ticks:
        ticks = struct.pack("=Q", record.ticks)
        batch.call("ioctl", fresh, TFD_IOC_SET_TICKS, ticks, check=False, note=note)
    build.keep(batch, fresh, index)


def _clock_at_freeze(build: Build, clock: int) -> int:
    clocks = build.manifest.clocks
    if clock in _REALTIME_CLOCKS:
        return clocks.realtime_ns
    return clocks.boottime_ns if clock in _BOOTTIME_CLOCKS else clocks.monotonic_ns
