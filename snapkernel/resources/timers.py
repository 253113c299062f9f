"""Interval timers (setitimer(2)) and POSIX timers (timer_create(2)).

``/proc/PID/timers`` (Linux 3.10) lists the latter; how long each has to go only the process can
ask. Ids come back by PR_TIMER_CREATE_RESTORE_IDS (Linux 6.15), or, before that, by making and
deleting timers until the kernel's counter has reached the id. All are armed last.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from snapkernel import procfs
from snapkernel._native import lib
from snapkernel.constants import PR_TIMER_CREATE_RESTORE_IDS
from snapkernel.errors import CannotRestore
from snapkernel.freeze.batch import Batch, Space
from snapkernel.model import PosixTimer
from snapkernel.resources.context import Build

SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD, SIGEV_THREAD_ID = 0, 1, 2, 4
_NOTIFY = {"signal": SIGEV_SIGNAL, "none": SIGEV_NONE, "thread": SIGEV_THREAD}
_GET = 2
_MOST_COUNTED = 1 << 16
CLOCK_MONOTONIC = 1
_NOBODY = struct.pack("=QiiI", 0, 0, SIGEV_NONE, 0) + bytes(44)


class IntervalTimers:
    """The question for ITIMER_REAL, ITIMER_VIRTUAL and ITIMER_PROF."""

    def __init__(self, batch: Batch) -> None:
        """Add the calls to a batch."""
        self._spaces = [Space(bytes(32)) for _ in range(3)]
        for which, space in enumerate(self._spaces):
            batch.call("getitimer", which, space)

    def answer(self) -> tuple[bytes, ...]:
        """``struct itimerval`` of each, after the batch has run."""
        return tuple(space.data for space in self._spaces)


class PosixTimers:
    """The question for the timers of timer_create(2)."""

    def __init__(self, batch: Batch, pid: int) -> None:
        """Add the calls to a batch."""
        self._pid = pid
        self._listed = _listed(pid)
        self._settings = [Space(bytes(32)) for _ in self._listed]
        self._overruns = []
        for entry, setting in zip(self._listed, self._settings, strict=True):
            batch.call("timer_gettime", entry.id, setting)
            self._overruns.append(batch.call("timer_getoverrun", entry.id, check=False))

    def answer(self) -> tuple[PosixTimer, ...]:
        """The timers, after the batch has run."""
        return tuple(
            PosixTimer(
                id=entry.id,
                clock=entry.clock,
                signal=entry.signal,
                value=entry.value,
                notify=entry.notify,
                thread=procfs.inner_tid(self._pid, entry.thread) if entry.thread else 0,
                setting=setting.data,
                overrun=max(overrun.result or 0, 0),
            )
            for entry, setting, overrun in zip(
                self._listed, self._settings, self._overruns, strict=True
            )
        )


class Listed(NamedTuple):
    """A timer as ``/proc/PID/timers`` lists it; ``thread`` as this host sees it."""

    id: int
    clock: int
    signal: int
    value: int
    notify: int
    thread: int


def _listed(pid: int) -> list[Listed]:
    return parse(procfs.text(f"/proc/{pid}/timers"))


def parse(timers: str) -> list[Listed]:
    """The text of ``/proc/PID/timers``.

    Raises:
        TargetError: it is none.
    """
    entries: list[dict[str, str]] = []
    with procfs.understood("POSIX timers"):
        for line in timers.splitlines():
            key, _, value = line.partition(": ")
            if key == "ID":
                entries.append({})
            entries[-1][key] = value.strip()
        return [_parse(entry) for entry in entries]


def _parse(entry: dict[str, str]) -> Listed:
    signal, _, value = entry["signal"].partition("/")
    notify, _, target = entry["notify"].partition("/")
    thread = int(target.partition(".")[2] or 0) if target.startswith("tid") else 0
    return Listed(
        id=int(entry["ID"]),
        clock=int(entry["ClockID"]),
        signal=int(signal),
        value=int(value, 16),
        notify=_NOTIFY[notify] | (SIGEV_THREAD_ID if thread else 0),
        thread=thread,
    )


# --- rebuild -----------------------------------------------------------------------------------


def rebuild_timers(build: Build) -> list[Batch]:
    """Make the timers with their ids, without arming them."""
    timers = sorted(build.process.timers, key=lambda timer: timer.id)
    if not timers:
        return []
    batch = Batch("make POSIX timers")
    exact = lib.sk_prctl(PR_TIMER_CREATE_RESTORE_IDS, _GET) >= 0
    if exact:
        batch.call("prctl", PR_TIMER_CREATE_RESTORE_IDS, 1)
    following = 0
    for timer in timers:
        note = f"timer {timer.id}"
        if not exact:
            _refuse_high(timer)
            for number in range(following, timer.id):
                batch.call("timer_create", CLOCK_MONOTONIC, _NOBODY, Space(bytes(4)), note=note)
                batch.call("timer_delete", number, note=note)
        wanted = Space(struct.pack("=i", timer.id))
        batch.call("timer_create", timer.clock, _sigevent(timer), wanted, note=note)
        following = timer.id + 1
    if exact:
        batch.call("prctl", PR_TIMER_CREATE_RESTORE_IDS, 0)
    return [batch]


def _refuse_high(timer: PosixTimer) -> None:
    """Each id below is counted through, by two system calls."""
    if timer.id > _MOST_COUNTED:
        raise CannotRestore(
            f"timer {timer.id}",
            "this kernel cannot be asked for a timer of that id",
            "restore where Linux is 6.15 or newer",
        )


def _sigevent(timer: PosixTimer) -> bytes:
    """``struct sigevent``: value, signal, notify, thread id, padding to 64 bytes."""
    head = struct.pack("=QiiI", timer.value, timer.signal, timer.notify, timer.thread)
    return head + bytes(64 - len(head))


def arm(build: Build) -> Batch:
    """Set all timers going with the time that they had left."""
    batch = Batch("arm timers")
    for timer in build.process.timers:
        batch.call("timer_settime", timer.id, 0, timer.setting, 0, note=f"timer {timer.id}")
    for which, setting in enumerate(build.process.interval_timers):
        interval, value = setting[:16], setting[16:]
        if any(setting):
            # One that has rung shows no time left until its signal is taken, which starts it again
            # (kernel/signal.c); set with no time left, it would be switched off.
            setting = interval + (value if any(value) else interval)
            batch.call("setitimer", which, setting, 0, note=f"interval timer {which}")
    return batch
