"""Faults on purpose: fail, or be killed, at any step of a checkpoint or a restore.

Everywhere where the state of a process, of a copy, of the host or of the store has changed or is
about to, the code says so by :func:`reached`. These points are numbered from 1 as one run reaches
them, and the environment variable ``SNAPKERNEL_FAULT`` says what happens at one of them::

    checkpoint:list      print all points of a checkpoint, one line each, to standard error
    checkpoint:7:fail    raise InjectedFault at the 7th point of a checkpoint
    restore:12:kill      kill the process that does the work with SIGKILL at the 12th of a restore

The freezer, a process of its own, inherits the variable. Without it nothing is counted.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from snapkernel.errors import SnapkernelError

VARIABLE = "SNAPKERNEL_FAULT"
OPERATIONS = ("checkpoint", "restore")


class InjectedFault(SnapkernelError):
    """A fault that ``SNAPKERNEL_FAULT`` asked for."""


class _Points:
    """The points of one run.

    Attributes:
        operation: whose points count.
        number: of the point where something happens; 0 for none.
        action: ``list``, ``fail`` or ``kill``.
        count: how many were reached.
    """

    def __init__(self, text: str) -> None:
        self.operation, number, self.action = _parse(text)
        self.number = number
        self.count = 0
        self.counts = False
        self._lock = threading.Lock()  # some points are reached in threads of the store

    def reached(self, what: str, *, may_fail: bool) -> bool:
        """Count a point; true when this process is to be killed there."""
        with self._lock:
            self.count += 1
            number = self.count
        if self.action == "list":
            os.write(sys.stderr.fileno(), f"{number} {what}\n".encode())
        if number != self.number:
            return False
        if self.action == "fail" and may_fail:
            raise InjectedFault(f"step {number} of the {self.operation}", f"a fault at: {what}")
        return self.action == "kill"


def _parse(text: str) -> tuple[str, int, str]:
    operation, _, rest = text.partition(":")
    number, _, action = rest.partition(":")
    if operation in OPERATIONS:
        if rest == "list":
            return operation, 0, rest
        if number.isdecimal() and int(number) > 0 and action in ("fail", "kill"):
            return operation, int(number), action
    raise SnapkernelError(
        f"environment variable {VARIABLE}",
        f"{text!r} is no fault",
        "give OPERATION:list, OPERATION:NUMBER:fail or OPERATION:NUMBER:kill",
    )


_points: _Points | None = None


def arm(text: str | None) -> None:
    """Do what the text says from now on, or nothing.

    Raises:
        SnapkernelError: it says nothing that makes sense.
    """
    global _points
    _points = _Points(text) if text else None


@contextmanager
def during(operation: str) -> Iterator[None]:
    """Count the points in the block if they are those of the operation that is meant."""
    if _points is None and VARIABLE in os.environ:
        arm(os.environ[VARIABLE])
    points = _points
    if points is None or points.operation != operation:
        yield
        return
    points.counts = True
    try:
        yield
    finally:
        points.counts = False


def reached(what: str, *, may_fail: bool = True) -> None:
    """A point, where something has changed or is about to; ``what`` says it in words. Without
    ``may_fail`` only a kill happens here: it is on the way out, where nothing can fail.

    Raises:
        InjectedFault: a fault is wanted here.
    """
    if _points is not None and _points.counts and _points.reached(what, may_fail=may_fail):
        os.kill(os.getpid(), signal.SIGKILL)


def instants(what: str, count: int, *, may_fail: bool = True) -> int:
    """Points inside of native code, which the caller is to pass on to it: the one, from 1, at which
    it kills this process, or 0.

    Raises:
        InjectedFault: a fault is wanted at one of them; the native code is not to be run.
    """
    if _points is None or not _points.counts:
        return 0
    points, chosen = _points, 0
    for number in range(1, count + 1):
        if points.reached(f"{what}, instant {number}", may_fail=may_fail):
            chosen = number
    return chosen
