"""A progress bar on standard error, for work that takes longer than a second."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PATIENCE = 1.0
"""Seconds of work before a bar is shown."""


class _Bars:
    """One bar a step, made when the work reports after ``PATIENCE``. Any thread may report."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._start = time.monotonic()
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, step: str, done: int, total: int) -> None:
        if time.monotonic() - self._start < PATIENCE or not sys.stderr.isatty():
            return
        with self._lock:
            if self._progress is None:
                self._progress = self._stack.enter_context(_bars())
            if step not in self._tasks:
                self._tasks[step] = self._progress.add_task(step)
            self._progress.update(self._tasks[step], completed=done, total=total or None)


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import Progress

    return Progress(console=Console(stderr=True), transient=True)


@contextmanager
def progress() -> Iterator[_Bars]:
    """A function ``(step, done, total)`` that work reports to; its bars go when the block ends."""
    with ExitStack() as stack:
        yield _Bars(stack)
