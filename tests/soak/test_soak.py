"""Many generations of one process: checkpoint, restore, checkpoint what was restored, and so on.

Its state is verified in each of them, and nothing grows: not the process, and not what it takes of
the host. (The store may: a pack is kept as long as one of its chunks is needed.)
``SNAPKERNEL_SOAK=500`` makes five hundred generations instead of fifteen, as
``make soak`` does; the table is printed (``pytest -s`` shows it).
"""

from __future__ import annotations

import os
import sys
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import pytest
from support import leaks
from support.conformance import PATIENCE, Conversation, start
from support.kernel import Kernel

import snapkernel
from snapkernel.store import Store

GENERATIONS = int(os.environ.get("SNAPKERNEL_SOAK", "15"))
SETTLED = 3
"""Generations after which nothing grows any more: the buffers of the program and ours are there."""
SLACK = 1.25
"""Memory of the process may vary by so much: its heap is where malloc(3) finds a place."""

pytestmark = pytest.mark.timeout(60 + 10 * GENERATIONS)


@dataclass
class Row:
    """What there is in one generation.

    Attributes:
        mappings: of the process; so are ``descriptors``, ``threads`` and ``resident`` (KiB).
        stored: bytes of the store.
        processes: of this test on the host; so are ``namespaces``, ``mounts`` and ``temporary``.
        ours: descriptors of the process that saves and restores.
        memory: resident, of that process (KiB).
    """

    generation: int
    mappings: int
    descriptors: int
    threads: int
    resident: int
    stored: int
    processes: int
    namespaces: int
    mounts: int
    temporary: int
    ours: int
    memory: int


def look(generation: int, pid: int, store: Store) -> Row:
    """Count everything."""
    host = leaks.look()
    folder = Path(store.url.removeprefix("file://"))
    return Row(
        generation=generation,
        mappings=Path(f"/proc/{pid}/maps").read_text().count("\n"),
        descriptors=len(os.listdir(f"/proc/{pid}/fd")),
        threads=len(os.listdir(f"/proc/{pid}/task")),
        resident=resident(pid),
        stored=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        processes=len(host.processes),
        namespaces=len(host.namespaces),
        mounts=len(host.mounts),
        temporary=len(host.temporary),
        ours=len(host.descriptors),
        memory=resident(os.getpid()),
    )


def resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def keep_only(store: Store, snapshot: snapkernel.Snapshot) -> None:
    """Remove older snapshots, and what only they needed."""
    store.remove(summary.id for summary in store.list() if summary.id != snapshot.id)
    store.gc(grace=-1)


def report(rows: list[Row], what: str) -> None:
    """Print the first generations, some between, and the last."""
    step = max(len(rows) // 20, 1)
    names = [field.name for field in fields(Row)]
    shown = [row for row in rows if row.generation <= SETTLED or not row.generation % step]
    table = [names, *([str(value) for value in astuple(row)] for row in shown)]
    widths = [max(len(line[column]) for line in table) for column in range(len(names))]
    print(f"\n{what}, {len(rows)} generations")
    for line in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def nothing_grows(rows: list[Row]) -> None:
    """After the first generations all numbers stay as they are, but those that vary by nature."""
    settled, last = rows[min(SETTLED, len(rows) - 1)], rows[-1]
    for field in fields(Row):
        before, after = getattr(settled, field.name), getattr(last, field.name)
        if field.name in ("generation", "stored"):
            continue  # a pack is kept whole while one chunk of it is needed
        if field.name in ("resident", "memory"):
            assert after <= before * SLACK, f"{field.name} grew from {before} to {after}"
        elif field.name == "mappings":
            # malloc(3) takes and gives back an area now and then.
            assert after <= before + 3, f"mappings grew from {before} to {after}"
        else:
            assert after == before, f"{field.name} changed from {before} to {after}"


def asked(talk: Conversation) -> str | None:
    os.write(talk.input, b"check\n")
    return talk.line()


@pytest.mark.usefixtures("leaves_nothing")
def test_a_busy_process(tmp_path: Path, store: str) -> None:
    where = Store.open(store, create=True)
    rows: list[Row] = []
    talk = start([sys.executable, str(Path(__file__).parent / "busy.py")], tmp_path)
    try:
        for generation in range(1, GENERATIONS + 1):
            assert asked(talk) == f"ok {2 * generation - 1}"
            assert asked(talk) == f"ok {2 * generation}"
            assert talk.process is not None
            snapshot = snapkernel.checkpoint(talk.process.pid, store=store, stop=True)
            talk.process.wait(timeout=PATIENCE)
            talk.__exit__(None, None, None)
            keep_only(where, snapshot)
            talk = Conversation()
            talk.hand_over(snapkernel.restore(snapshot, store=store, stdio=talk.theirs))
            rows.append(look(generation, talk.process.pid, where))
        assert asked(talk) == f"ok {2 * GENERATIONS + 1}"
    finally:
        talk.__exit__(None, None, None)
        report(rows, "a busy process")
    nothing_grows(rows)


def test_a_kernel(tmp_path: Path, store: str) -> None:
    """With a client that stays, as a notebook would."""
    before = leaks.look()
    where = Store.open(store, create=True)
    rows: list[Row] = []
    kernel = Kernel.start(tmp_path / "kernel")
    try:
        kernel.execute("import threading, itertools\ncount = itertools.count()\nseen = []")
        for generation in range(1, max(GENERATIONS // 3, 2) + 1):
            kernel.execute(f"seen.append(next(count))\nassert len(seen) == {generation}")
            assert kernel.execute("print(seen[-1])") == f"{generation - 1}\n"
            snapshot = snapkernel.checkpoint(kernel.pid, store=store, stop=True)
            client = kernel.kill()
            keep_only(where, snapshot)
            kernel = Kernel.restore(snapshot, store, tmp_path / "kernel", client)
            rows.append(look(generation, kernel.pid, where))
        assert kernel.execute("print(len(seen), next(count))") == f"{generation} {generation}\n"
    finally:
        kernel.close()
        report(rows, "a Jupyter kernel")
    nothing_grows(rows)
    # jupyter_client keeps the event loop that it makes for the first client.
    left = [what for what in leaks.left_behind(before, patience=2) if "descriptor" not in what]
    assert not left, "left behind: " + "; ".join(left)
