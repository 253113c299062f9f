"""Freeze a real Jupyter kernel, kill it, thaw it, and find every object as it was.

    python notebooks/demo.py [--gib 2] [--keep]

A kernel is started as every Jupyter front end starts one, and cells make the things that no
pickle can hold. It is checkpointed live: while the snapshot is written it goes on answering
cells. Then it is killed, restored from the snapshot, and asked for everything. The snapshot is
kept in a store of its own, which is removed, or with ``--keep`` in the default store.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jupyter_client import BlockingKernelClient, KernelManager
from jupyter_core.paths import jupyter_data_dir
from rich.console import Console
from rich.table import Table

import snapkernel
from snapkernel.commands.output import format_seconds, format_size
from snapkernel.commands.progress import progress
from snapkernel.errors import SnapkernelError

GIB = 1 << 30
console = Console(highlight=False, soft_wrap=True)

# The cells: a title and the code. `size` is the number of bytes for arrays.
CELLS = {
    "imports": """
        import asyncio, itertools, os, sqlite3, threading, time
        import numpy as np, pandas as pd
    """,
    "arrays, half of them measurements, half of them noise": """
        rng = np.random.default_rng(7)
        arrays = []
        for part in np.array_split(np.arange(size // 16), max(1, size >> 28)):
            arrays.append(np.round(15 + 10 * np.sin(part / 5e4) + rng.normal(0, .05, len(part)), 2))
            arrays.append(rng.integers(0, 1 << 64, len(part), dtype=np.uint64))
        del part

        def fingerprint():
            return sum(int(array.view(np.uint64).sum()) for array in arrays) % (1 << 64)
    """,
    "a pandas frame": """
        frame = pd.DataFrame({
            "time": pd.date_range("2026-01-01", periods=200_000, freq="s"),
            "city": pd.Categorical(rng.choice(["Lima", "Oslo", "Pune"], 200_000)),
            "price": np.round(rng.lognormal(3, 1, 200_000), 2),
        })
    """,
    "a generator, 1000 primes into its work": """
        def primes():
            found = []
            for number in itertools.count(2):
                if all(number % prime for prime in found if prime * prime <= number):
                    found.append(number)
                    yield number

        endless = primes()
        for _ in range(1000):
            prime = next(endless)
    """,
    "a thread that counts, and notes the longest time that it could not": """
        count, longest = 0, 0.0

        def work():
            global count, longest
            before = time.perf_counter()
            while True:
                time.sleep(0.0005)
                now = time.perf_counter()
                count, longest, before = count + 1, max(longest, now - before), now

        counter = threading.Thread(target=work, name="counter", daemon=True)
        counter.start()
    """,
    "an in-memory database, in the middle of a transaction": """
        database = sqlite3.connect(":memory:")
        database.execute("create table sale (amount integer)")
        database.executemany("insert into sale values (?)", [(n,) for n in range(1000)])
        database.commit()
        database.execute("delete from sale where amount >= 10")
    """,
    "a lock that is held, and a thread that waits for it": """
        lock, got_it = threading.Lock(), threading.Event()
        lock.acquire()

        def wait():
            with lock:
                got_it.set()

        waiter = threading.Thread(target=wait, name="waiter", daemon=True)
        waiter.start()
    """,
    "an asyncio timer that rings in eight seconds": """
        rung = asyncio.Event()
        timer = asyncio.get_running_loop().call_later(8, rung.set)
    """,
}

# What is asked of the restored kernel: the object, code to run first, and what must be true.
# `was` holds what the original kernel said about itself.
CHECKS = [
    ("process", "", "os.getpid() == was['pid']", "the same pid inside"),
    ("timer", "", "not rung.is_set()", "it has not rung yet"),
    ("arrays", "", "fingerprint() == was['arrays']", "every number is the same"),
    (
        "frame",
        "",
        "int(pd.util.hash_pandas_object(frame).sum()) == was['frame']",
        "every row is the same",
    ),
    ("generator", "", "(prime, next(endless)) == (7919, 7927)", "it goes on with the next prime"),
    (
        "thread",
        "before = count; time.sleep(0.1)",
        "counter.is_alive() and count > before >= was['count']",
        "it goes on counting",
    ),
    (
        "database",
        "inside, = database.execute('select count(*) from sale').fetchone()\n"
        "database.rollback()\n"
        "outside, = database.execute('select count(*) from sale').fetchone()",
        "(inside, outside) == (10, 1000)",
        "the open transaction is rolled back",
    ),
    (
        "lock",
        "held = lock.locked() and waiter.is_alive() and not got_it.is_set()\n"
        "lock.release(); got_it.wait(20); waiter.join(20)",
        "held and got_it.is_set() and not waiter.is_alive()",
        "released, and the waiting thread takes it",
    ),
    ("timer", "await asyncio.wait_for(rung.wait(), 60)", "rung.is_set()", "it rings"),
]


class DemoError(Exception):
    """Something in the demonstration is not as it should be."""


class Notebook:
    """Runs cells in a kernel and evaluates expressions there."""

    def __init__(self, connection_file: str) -> None:
        self.client = BlockingKernelClient(connection_file=connection_file)
        self.client.load_connection_file()
        self.client.start_channels(iopub=False, stdin=False, hb=False, control=False)

    def run(self, code: str, **expressions: str) -> dict[str, Any]:
        """Run a cell, then evaluate the expressions, whose values must be JSON."""
        as_json = {name: f"__import__('json').dumps({e})" for name, e in expressions.items()}
        try:
            reply = self.client.execute(code, user_expressions=as_json, reply=True, timeout=120)
        except TimeoutError:
            raise DemoError(f"the kernel does not answer: {code or expressions}") from None
        content = reply["content"]
        results = content.get("user_expressions", {})
        for result in (content, *results.values()):
            if result["status"] != "ok":
                raise DemoError(f"{code or expressions}: {result['ename']}: {result['evalue']}")
        return {
            name: json.loads(result["data"]["text/plain"].strip("'"))
            for name, result in results.items()
        }

    def close(self) -> None:
        self.client.stop_channels()


def gibibytes_that_fit(wanted: float) -> float:
    """As much as is wanted, or as memory and disk have room for."""
    with open("/proc/meminfo") as file:
        fields = dict(line.split(":") for line in file)
    available = int(fields["MemAvailable"].split()[0]) * 1024
    folder = Path(jupyter_data_dir())
    while not folder.exists():
        folder = folder.parent
    room = min(available, shutil.disk_usage(folder).free) - GIB
    fitting = max(0.125, int(room / GIB / 1.5 * 8) / 8)
    if fitting < wanted:
        console.print(f"Only {fitting:g} GiB of arrays, because memory or disk is short.")
    return min(wanted, fitting)


def dedent(code: str) -> str:
    """The code of a cell without the margin that it has in this file."""
    return "\n".join(line[8:] for line in code.strip("\n").split("\n"))


def make_objects(notebook: Notebook, size: int) -> dict[str, Any]:
    """Run the cells, and have the kernel say what it holds."""
    notebook.run(f"size = {size}")
    for title, code in CELLS.items():
        console.print(f"  cell: {title}")
        notebook.run(dedent(code))
    return notebook.run(
        "longest = 0.0",
        pid="os.getpid()",
        arrays="fingerprint()",
        frame="int(pd.util.hash_pandas_object(frame).sum())",
        count="count",
    )


def checkpoint_live(notebook: Notebook, pid: int, store: str | None) -> snapkernel.Snapshot:
    """Take the snapshot, and run cells in the kernel while it is written."""
    notebook.run("timer.cancel(); timer = asyncio.get_running_loop().call_later(8, rung.set)")
    before = notebook.run("longest = 0.0", count="count")["count"]
    answered = 0
    with ThreadPoolExecutor(1) as executor, progress() as report:
        saving = executor.submit(
            snapkernel.checkpoint, pid, store=store, name="demo", progress=report
        )
        while not saving.done():
            notebook.run("1 + 1")
            answered += 1
            time.sleep(0.01)
        snapshot = saving.result()
    seen = notebook.run("", count="count", longest="longest")
    console.print(
        f"  It stood still for [bold]{format_seconds(snapshot.pause_s)}[/] "
        f"(the longest that its thread could not run: {format_seconds(seen['longest'])})."
    )
    console.print(
        f"  While the snapshot was written, it answered {answered} cells, "
        f"and its thread counted from {before} to {seen['count']}."
    )
    return snapshot


def check_objects(notebook: Notebook, was: dict[str, Any]) -> bool:
    """Ask the restored kernel for every object. Whether all of them are as they were."""
    table = Table(title="In the restored kernel")
    table.add_column("object")
    table.add_column("what must be true")
    table.add_column("")
    all_well = True
    notebook.run(f"was = {was!r}")
    for name, code, expression, meaning in CHECKS:
        try:
            well = notebook.run(code, well=expression)["well"]
            reason = "" if well else f"not true: {expression}"
        except DemoError as error:
            well, reason = False, str(error)
        all_well = all_well and well
        table.add_row(name, meaning, "[green]yes[/]" if well else f"[red]NO[/] {reason}")
    console.print(table)
    return all_well


@contextmanager
def local_store(keep: bool) -> Iterator[str | None]:
    """The default store, or one beside it that is gone afterwards."""
    if keep:
        yield None
        return
    data = Path(jupyter_data_dir())
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data, prefix="snapkernel-demo-") as folder:
        yield Path(folder).as_uri()


def show_notes(notes: Iterable[str]) -> None:
    for note in notes:
        console.print(f"  note: {note}", markup=False)


def show_numbers(
    snapshot: snapkernel.Snapshot, restored: snapkernel.RestoredProcess, first_cell: float
) -> None:
    table = Table(title="What it took")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("bytes in memory", format_size(snapshot.memory_bytes))
    table.add_row("bytes stored", format_size(snapshot.stored_bytes))
    table.add_row("pause", format_seconds(snapshot.pause_s))
    table.add_row("time until the snapshot is safe", format_seconds(snapshot.safe_s))
    table.add_row("time to process running", format_seconds(restored.running_s))
    table.add_row("time to first cell", format_seconds(first_cell))
    console.print(table)


def demonstrate(gib: float, store: str | None) -> bool:
    """The whole story. Whether every object came back."""
    size = int(gibibytes_that_fit(gib) * GIB)
    console.print(f"[bold]A kernel is started[/] and filled with {format_size(size)} of arrays.")
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    restored = None
    try:
        original = Notebook(manager.connection_file)
        was = make_objects(original, size)
        key = original.client.session.key

        console.print("[bold]It is checkpointed live.[/]")
        snapshot = checkpoint_live(original, was["pid"], store)
        show_notes(snapshot.notes)

        console.print("[bold]It is killed.[/]")
        original.close()
        manager.shutdown_kernel(now=True)

        console.print(f"[bold]The snapshot is restored:[/] snapkernel restore {snapshot.id}")
        start = time.perf_counter()
        with progress() as report, open("/dev/null") as nothing:
            restored = snapkernel.restore(
                snapshot, store=store, stdio=(nothing.fileno(), 1, 2), progress=report
            )
        thawed = Notebook(str(restored.connection_file))
        thawed.run("1 + 1")
        first_cell = time.perf_counter() - start
        show_notes(note for note in restored.notes if note not in snapshot.notes)
        if thawed.client.session.key != key:
            raise DemoError("the restored kernel has another session key")
        console.print(
            f"  It runs as process {restored.pid} and answered a cell signed with the same key, "
            f"{format_seconds(first_cell)} after the call."
        )
        all_well = check_objects(thawed, was)
        thawed.close()
        show_numbers(snapshot, restored, first_cell)
        return all_well
    finally:
        if manager.has_kernel:
            manager.shutdown_kernel(now=True)
        if restored is not None:
            restored.kill()
            restored.wait()
            if restored.connection_file is not None:
                restored.connection_file.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--gib", type=float, default=2, help="gibibytes of arrays (2)")
    parser.add_argument(
        "--keep", action="store_true", help="keep the snapshot, in the default store"
    )
    chosen = parser.parse_args()
    try:
        with local_store(chosen.keep) as store:
            all_well = demonstrate(chosen.gib, store)
    except (SnapkernelError, DemoError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console.print(
        "[bold green]Every object is there.[/]" if all_well else "[bold red]Not all well.[/]"
    )
    return 0 if all_well else 1


if __name__ == "__main__":
    sys.exit(main())
