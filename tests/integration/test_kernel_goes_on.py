"""A checkpoint in the middle of something: the kernel goes on, and so does its restored copy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from support.kernel import Kernel

import snapkernel


@dataclass(frozen=True)
class Activity:
    """A cell that is running while the kernel is checkpointed.

    Attributes:
        name: of the test.
        prepare: run before.
        cell: prints ``started`` when it is in the middle, and leaves its result in ``found``.
        expected: the text of ``found``.
    """

    name: str
    prepare: str
    cell: str
    expected: str


ACTIVITIES = [
    Activity(
        "matrix product",
        """
import hashlib, numpy
rows = numpy.random.default_rng(7).random((1000, 1000))
def product(first=None):
    result = rows
    for number in range(12):
        result = rows @ result
        result /= result.max()
        if number == 1 and first: print(first, flush=True)
    return hashlib.sha256(result.tobytes()).hexdigest()
expected = product()
""",
        "found = product('started') == expected",
        "True",
    ),
    Activity(
        "sleep",
        "import time",
        """
start = time.monotonic()
print('started', flush=True)
time.sleep(2)
found = 2 <= time.monotonic() - start < 60
""",
        "True",
    ),
    Activity(
        "asyncio",
        "import asyncio",
        """
order = []
async def after(seconds):
    await asyncio.sleep(seconds)
    order.append(seconds)
    return seconds
print('started', flush=True)
found = await asyncio.gather(*(after(s) for s in (1.5, 0.5, 1.0, 2.0))), order
""",
        "([1.5, 0.5, 1.0, 2.0], [0.5, 1.0, 1.5, 2.0])",
    ),
    Activity(
        "lock",
        "import threading",
        """
lock = threading.Lock()
lock.acquire()
threading.Timer(1.5, lock.release).start()
print('started', flush=True)
found = lock.acquire()
""",
        "True",
    ),
    Activity(
        "select",
        "import os, select, threading",
        """
reader, writer = os.pipe()
threading.Timer(1.5, os.write, (writer, b'x')).start()
print('started', flush=True)
found = select.select([reader], [], []) == ([reader], [], [])
""",
        "True",
    ),
    Activity(
        "timeit",
        "import time",
        """
print('started', flush=True)
timed = %timeit -o -q -n 4 -r 4 time.sleep(0.1)
found = len(timed.all_runs), all(run >= 0.4 for run in timed.all_runs)
""",
        "(4, True)",
    ),
]


@pytest.mark.parametrize("activity", ACTIVITIES, ids=lambda activity: activity.name)
def test_running_cell(activity: Activity, tmp_path: Path, store: str) -> None:
    """The cell ends as it would have, in the original and in a copy beside it."""
    with Kernel.start(tmp_path / "original") as original:
        original.execute(activity.prepare)
        running = original.send(activity.cell)
        original.until_printed(running, "started")
        snapshot = snapkernel.checkpoint(original.pid, store=store)
        with Kernel.restore(snapshot, store, tmp_path / "copy") as copy:
            original.result(running)
            assert original.execute("print(found)").strip() == activity.expected
            assert copy.execute("print(found)").strip() == activity.expected


def test_input(tmp_path: Path, store: str) -> None:
    """``input()`` gets its answer, in the original and in a copy beside it."""
    with Kernel.start(tmp_path / "original") as original:
        running, prompt = original.ask("found = input('name? ')")
        assert prompt == "name? "
        snapshot = snapkernel.checkpoint(original.pid, store=store)
        with Kernel.restore(snapshot, store, tmp_path / "copy") as copy:
            copy.client.input("Bob")
            original.client.input("Alice")
            original.result(running)
            assert original.execute("print(found)").strip() == "Alice"
            assert copy.execute("print(found)").strip() == "Bob"


def test_timers_of_an_idle_kernel(tmp_path: Path, store: str) -> None:
    """Callbacks and tasks that a cell left in the kernel's own asyncio loop."""
    with Kernel.start(tmp_path / "original") as original:
        original.execute(
            "import asyncio\n"
            "rung = []\n"
            "loop = asyncio.get_running_loop()\n"
            "for n in range(5): loop.call_later(0.5 * n + 0.5, rung.append, n)\n"
            "async def later():\n"
            "    await asyncio.sleep(1)\n"
            "    return 'done'\n"
            "task = asyncio.ensure_future(later())"
        )
        snapshot = snapkernel.checkpoint(original.pid, store=store)
        with Kernel.restore(snapshot, store, tmp_path / "copy") as copy:
            for kernel in (original, copy):
                wait = "while len(rung) < 5: await asyncio.sleep(0.02)\nprint(rung, await task)"
                assert kernel.execute(wait).strip() == "[0, 1, 2, 3, 4] done"


def test_reply_reaches_the_old_client(tmp_path: Path, store: str) -> None:
    """A cell that was running when its kernel was killed is answered by the restored kernel."""
    with Kernel.start(tmp_path / "original") as original:
        running = original.send("import time\nprint('started', flush=True)\ntime.sleep(2)\n6 * 7")
        original.until_printed(running, "started")
        snapshot = snapkernel.checkpoint(original.pid, store=store)
        client = original.kill()
        with Kernel.restore(snapshot, store, tmp_path / "copy", client) as copy:
            assert copy.result(running) == "42"
