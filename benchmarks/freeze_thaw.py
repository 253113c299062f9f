"""Freeze and thaw kernels of several sizes, with snapkernel and with CRIU, in one run.

Every round starts the same kernel anew for each tool, takes a live checkpoint, kills the kernel,
restores it and runs a cell. Rounds are interleaved and the order of tools and sizes rotates,
because the speed of memory drifts; the first round warms up and is not counted. Both tools write
to the same folder, on a tmpfs unless another is named, and restore eagerly. Ratios inside a run
can be trusted, absolute numbers depend on the machine and the hour.

    python benchmarks/freeze_thaw.py [--quick] [--sizes 0,1,4,8] [--rounds N] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import criu
import kernel
import report
from kernel import GIB, Kernel

HERE = Path(__file__).resolve().parent
TMPFS = Path("/dev/shm")


@dataclass
class Measurement:
    """What one tool did to one kernel in one round. Times in seconds, sizes in bytes.

    Attributes:
        size: gibibytes of data that the kernel held.
        pause: how long the process stood still, by the tool's own account.
        gap: the longest that a thread of the kernel did not run, seen from inside.
        idle_gap: the same in half a second without a checkpoint: the noise in ``gap``.
        fork: a plain fork of the same process.
        safe: from the call until everything is written.
        stored: what the snapshot takes in its folder.
        running: from the call of restore until it returns.
        first_cell: from the call of restore until the reply to a cell.
        checkpoint_peak: memory of the tool; ``restore_peak`` likewise.
        resident: of the kernel before; ``huge`` the part in huge pages.
        huge_after: in huge pages after the restore.
        second: what a second snapshot added after one percent of the data was changed.
        details: the tool's own timings and notes.
    """

    size: float
    round: int
    tool: str
    pause: float
    gap: float
    idle_gap: float
    fork: float
    safe: float
    stored: int
    running: float
    first_cell: float
    checkpoint_peak: int
    restore_peak: int
    resident: int
    huge: int
    huge_after: int
    second: int | None = None
    details: dict[str, Any] = field(default_factory=dict)


class WorkerError(Exception):
    """A tool failed; its own message is on standard error."""


@contextlib.contextmanager
def worker(*arguments: str) -> Iterator[dict[str, Any]]:
    """Have ``worker.py`` do one thing; what it restored lives until the block ends."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "worker.py"), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if process.stdout.readline():
            process.stdin.write("go\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise WorkerError(f"{' '.join(arguments[:2])} failed")
        yield json.loads(line)
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


class Snapkernel:
    """snapkernel, by its Python interface, with a new store for every snapshot."""

    name = "snapkernel"

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"
        self.identifier = ""

    def checkpoint(self, running: Kernel) -> dict[str, Any]:
        with worker("checkpoint", self.name, str(running.pid), self.store.as_uri()) as done:
            self.identifier = done.pop("id")
            return done

    def checkpoint_again(self, running: Kernel) -> int:
        with worker("checkpoint", self.name, str(running.pid), self.store.as_uri()) as done:
            return int(done["added"])

    def restore(self) -> contextlib.AbstractContextManager[dict[str, Any]]:
        return worker("restore", self.name, self.store.as_uri(), self.identifier)

    def stored(self) -> int:
        return folder_size(self.store)


class Criu:
    """CRIU, by its command line; a live dump is one that leaves the process running."""

    name = "criu"

    def __init__(self, folder: Path, program: criu.Criu) -> None:
        self.images = folder / "images"
        self.images.mkdir()
        self.program = program

    def checkpoint(self, running: Kernel) -> dict[str, Any]:
        command = self.program.dump(running.pid, self.images)
        with worker("checkpoint", self.name, str(self.images), *command) as done:
            return {**done, "pause": criu.frozen_seconds(self.images)}

    def restore(self) -> contextlib.AbstractContextManager[dict[str, Any]]:
        command = self.program.restore(self.images)
        return worker("restore", self.name, str(self.images), *command)

    def stored(self) -> int:
        return folder_size(self.images)


def folder_size(folder: Path) -> int:
    """Bytes that the files of a folder occupy."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def measure(
    tool: Snapkernel | Criu, running: Kernel, size: float, round: int, change: bool
) -> Measurement:
    """Take a checkpoint of a kernel, kill it, restore it, and see that it is the same."""
    before = running.value("fingerprint()")
    fork = running.value("plain_fork()")
    memory = running.memory()
    running.run("largest_gap = 0.0")
    time.sleep(0.5)
    idle_gap = running.value("largest_gap")
    running.run("largest_gap = 0.0")
    warm(memory["resident"])
    saved = tool.checkpoint(running)
    gap = running.value("largest_gap")
    stored = tool.stored()
    second = None
    if change and isinstance(tool, Snapkernel):
        running.run("change(0.01)")
        second = tool.checkpoint_again(running)
    running.kill()
    warm(memory["resident"])
    with tool.restore() as restored:
        connection_file = Path(restored.get("connection_file") or running.connection_file)
        thawed = Kernel(restored["pid"], connection_file)
        thawed.run("1 + 1")
        first_cell = time.perf_counter() - restored["start"]
        huge_after = thawed.memory()["huge"]
        if thawed.value("fingerprint()") != before:
            raise WorkerError(f"{tool.name} restored a kernel with other data")
        thawed.disconnect()
    return Measurement(
        size=size,
        round=round,
        tool=tool.name,
        pause=saved["pause"],
        gap=gap,
        idle_gap=idle_gap,
        fork=fork,
        safe=saved["end"] - saved["start"],
        stored=stored,
        running=restored["end"] - restored["start"],
        first_cell=first_cell,
        checkpoint_peak=saved["peak"],
        restore_peak=restored["peak"],
        resident=memory["resident"],
        huge=memory["huge"],
        huge_after=huge_after,
        second=second,
        details={
            part: {key: source[key] for key in ("timings", "notes", "mode") if key in source}
            for part, source in (("checkpoint", saved), ("restore", restored))
        },
    )


def warm(length: int) -> None:
    """Touch as much memory as a tool may need, and free it.

    A virtual machine gives memory that lay idle back to its host, and gets it again at a tenth of
    the speed of memory: without this, that is what would be measured, for every tool.
    """
    text = Path("/proc/meminfo").read_text()
    available = int(text.partition("MemAvailable:")[2].split()[0]) << 10
    with mmap.mmap(-1, min(length, available * 3 // 4)) as memory:
        for start in range(0, len(memory), 4096):
            memory[start] = 1


def structured_ratio(folder: Path) -> float | None:
    """How much smaller one gibibyte of structured data is in the store than in memory.

    A kernel without data is stored first, and what it takes is subtracted. None when it failed.
    """
    stored = []
    for structured in (0, GIB):
        part = folder / f"structured-{structured}"
        running = kernel.start(part, structured, 0)
        try:
            tool = Snapkernel(part)
            tool.checkpoint(running)
            stored.append(tool.stored())
        except WorkerError as error:
            print(f"failed: structured data: {error}", flush=True)
            return None
        finally:
            running.kill()
            shutil.rmtree(part)
    return GIB / max(1, stored[1] - stored[0])


def fits(size: float, folder: Path) -> bool:
    """Whether a kernel and its uncompressed snapshot have room at the same time."""
    text = Path("/proc/meminfo").read_text()
    match = re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)
    assert match is not None
    memory = int(match[1]) * 1024
    needed = size * GIB * 1.05 + GIB / 2
    in_memory = 2 * needed if folder.is_relative_to(TMPFS) else needed
    return in_memory < memory and needed < shutil.disk_usage(folder).free


def run(
    sizes: list[float], rounds: int, tools: list[str], program: criu.Criu | None, folder: Path
) -> list[Measurement]:
    """All rounds, the first of which is the warm-up and has the number 0."""
    measurements: list[Measurement] = []
    for round in range(rounds + 1):
        at = round % len(sizes)
        for size in sizes[at:] + sizes[:at]:
            turn = round % len(tools)
            for name in tools[turn:] + tools[:turn]:
                if not fits(size, folder):
                    print(f"skipped: {size:g} GiB do not fit into this machine's free memory")
                    continue
                part = Path(tempfile.mkdtemp(dir=folder))
                running = None
                try:
                    half = int(size * GIB) // 2
                    running = kernel.start(part, half, half, watches_parent=name != "criu")
                    tool = Criu(part, program) if program and name == "criu" else Snapkernel(part)
                    last = round == rounds and size > 0
                    result = measure(tool, running, size, round, change=last)
                except WorkerError as error:
                    print(f"failed: {size:g} GiB, round {round}: {error}", flush=True)
                    continue
                finally:
                    if running is not None:
                        running.kill()
                    shutil.rmtree(part)
                print(report.one_line(asdict(result)), flush=True)
                measurements.append(result)
    return measurements


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--sizes", default="0,1,4,8", help="GiB of data, with commas in between")
    parser.add_argument("--rounds", type=int, default=3, help="rounds beside the warm-up")
    parser.add_argument("--quick", action="store_true", help="0 and 1 GiB, one round")
    parser.add_argument("--tools", default="snapkernel,criu")
    parser.add_argument("--folder", type=Path, help="where snapshots are written; default: a tmpfs")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--cache", type=Path, default=HERE.parent / ".cache" / "criu")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.sizes, chosen.rounds = "0,1", 1
    return chosen


def main() -> None:
    chosen = arguments()
    tools = chosen.tools.split(",")
    sizes = [float(size) for size in chosen.sizes.split(",")]
    program = None
    if "criu" in tools:
        try:
            program = criu.prepare(chosen.cache.resolve())
        except criu.NoCriuError as error:
            print(f"CRIU is left out: {error}")
            tools.remove("criu")
    parent = chosen.folder or (TMPFS if os.access(TMPFS, os.W_OK) else Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(dir=parent, prefix="snapkernel-benchmark-") as name:
        folder = Path(name).resolve()
        measurements = run(sizes, chosen.rounds, tools, program, folder)
        ratio = structured_ratio(folder) if "snapkernel" in tools else None
    results = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": platform.machine(),
        "processors": len(os.sched_getaffinity(0)),
        "linux": platform.release(),
        "python": platform.python_version(),
        "criu": program.version if program else None,
        "folder": str(parent),
        "rounds": chosen.rounds,
        "structured_ratio": ratio,
        "measurements": [asdict(measurement) for measurement in measurements],
    }
    chosen.results.mkdir(parents=True, exist_ok=True)
    (chosen.results / "freeze_thaw.json").write_text(json.dumps(results, indent=1))
    report.show(results)
    report.plot(results, chosen.results / "freeze_thaw.png")
    print(f"written: {chosen.results}/freeze_thaw.json and .png")


if __name__ == "__main__":
    main()
