"""Ordering checkpoints and restores that are disturbed (``faults/programs/surgeon.py``), and
looking at a process for anything that they have left in it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

PROGRAM = Path(__file__).parent.parent / "faults" / "programs" / "surgeon.py"
PATIENCE = 20.0
DONE, FAILED, KILLED = 0, 1, -9


@dataclass(frozen=True)
class Outcome:
    """What became of an order: exit status, standard error, duration."""

    status: int
    text: str
    seconds: float


class Surgeon:
    """A process that does what it is told, in children of its own."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"},
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=PATIENCE)

    def checkpoint(
        self,
        pid: int,
        store: str,
        *,
        stop: bool = False,
        fault: str | None = None,
        delay: float | None = None,
    ) -> Outcome:
        """Take a snapshot; with `delay`, kill who takes it after so many seconds."""
        return self._order(
            verb="checkpoint", pid=pid, store=store, stop=stop, fault=fault, delay=delay
        )

    def restore(self, store: str, connection_file: Path, *, fault: str | None = None) -> Outcome:
        """Restore the snapshot "good", and end it as soon as it runs."""
        return self._order(
            verb="restore",
            store=store,
            connection_file=str(connection_file),
            fault=fault,
            delay=None,
        )

    def _order(self, **order: object) -> Outcome:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))


def points(outcome: Outcome) -> list[str]:
    """What ``SNAPKERNEL_FAULT=...:list`` has printed."""
    found = [line.partition(" ")[2] for line in outcome.text.splitlines()]
    assert outcome.status == DONE, outcome.text
    assert len(found) > 50, outcome.text
    return found


@dataclass(frozen=True)
class Body:
    """What a process has that others can see, and that a checkpoint must leave alone."""

    mappings: tuple[str, ...]
    descriptors: tuple[str, ...]
    threads: tuple[tuple[str, ...], ...]
    children: tuple[str, ...]


_OF_THREADS = ("TracerPid", "SigBlk", "SigIgn", "SigCgt", "SigPnd")


def body(pid: int, *, grows: bool = False) -> Body:
    """Look at a process; with `grows`, only its executable mappings are looked at, because it
    allocates and frees memory."""
    folder = Path(f"/proc/{pid}")
    lines = (folder / "maps").read_text().splitlines()
    words = [line.split() for line in lines]
    mappings = [" ".join(word) for word in words if not grows or "x" in word[1]]
    threads, children = [], []
    for task in sorted((folder / "task").iterdir(), key=lambda path: int(path.name)):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ends meanwhile
            fields = dict(
                line.split(":\t", 1) for line in (task / "status").read_text().splitlines()
            )
            threads.append((task.name, *(fields[name] for name in _OF_THREADS)))
            children += (task / "children").read_text().split()
    descriptors = []
    for name in sorted(os.listdir(folder / "fd"), key=int):
        with contextlib.suppress(FileNotFoundError):
            descriptors.append(f"{name} {os.readlink(folder / 'fd' / name)}")
    return Body(tuple(mappings), tuple(descriptors), tuple(threads), tuple(children))


def healed(pid: int, before: Body, *, grows: bool = False) -> Body:
    """The process as it is when it is as before, or when patience is over: it may need a moment."""
    deadline = time.monotonic() + PATIENCE
    while (now := body(pid, grows=grows)) != before and time.monotonic() < deadline:
        time.sleep(0.001)
    return now
