"""Freeze and thaw a tree of processes that share memory, with snapkernel and with CRIU, in one run.

A parent with shared memory forks children that each fill memory of their own; all of it is random,
so nothing compresses and nothing is equal. Rounds are interleaved; the first one warms up and is
not counted. Both tools write to the same folder, on a tmpfs unless another is named.

    python benchmarks/process_tree.py [--processes 32] [--own 100] [--shared 1024] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import criu
from freeze_thaw import HERE, TMPFS, Criu, Snapkernel, WorkerError, warm
from report import seconds, size

MIB = 1 << 20

PROGRAM = """
import mmap, os, random, signal, sys

processes, own, shared = map(int, sys.argv[1:])

def fill(memory, seed):
    numbers = random.Random(seed)
    for at in range(0, len(memory), 1 << 20):
        memory[at:at + (1 << 20)] = numbers.randbytes(1 << 20)

common = mmap.mmap(-1, shared << 20)
fill(common, 0)
for number in range(1, processes):
    reader, writer = os.pipe()
    if os.fork() == 0:
        mine = mmap.mmap(-1, own << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        fill(mine, number)
        os.write(writer, b"x")
        while True:
            signal.pause()
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
print("ready", flush=True)
while True:
    signal.pause()
"""


@dataclass
class Tree:
    """A tree of processes; ``pid`` is that of the first."""

    pid: int


@dataclass
class Measurement:
    """What one tool did to one tree in one round. Times in seconds, sizes in bytes."""

    round: int
    tool: str
    pause: float
    safe: float
    stored: int
    running: float
    memory: int


@contextmanager
def tree(processes: int, own: int, shared: int) -> Iterator[Tree]:
    """A tree, until the block ends."""
    command = [sys.executable, "-c", PROGRAM, str(processes), str(own), str(shared)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as started:
        try:
            assert started.stdout is not None
            started.stdout.readline()
            yield Tree(started.pid)
        finally:
            os.killpg(started.pid, signal.SIGKILL)


def measure(
    tool: Snapkernel | Criu, round: int, processes: int, own: int, shared: int
) -> Measurement:
    """Checkpoint a tree, end it, and restore it."""
    memory = (processes * own + shared) * MIB
    with tree(processes, own, shared) as running:
        warm(memory)
        saved: dict[str, Any] = tool.checkpoint(running)  # type: ignore[arg-type]
        stored = tool.stored()
    warm(memory)
    with tool.restore() as restored:
        if isinstance(tool, Criu):  # whose tree does not end with its first process
            os.killpg(restored["pid"], signal.SIGKILL)
    return Measurement(
        round=round,
        tool=tool.name,
        pause=saved["pause"],
        safe=saved["end"] - saved["start"],
        stored=stored,
        running=restored["end"] - restored["start"],
        memory=memory,
    )


def show(measurements: list[Measurement]) -> None:
    """Medians, and ratios where there are two tools."""
    tools = sorted({m.tool for m in measurements}, reverse=True)
    print(f"\n{'':22}" + "".join(f"{tool:>14}" for tool in tools) + f"{'ratio':>10}")
    for name, title, form in (
        ("pause", "pause, by the tool", seconds),
        ("safe", "time until safe", seconds),
        ("stored", "bytes stored", size),
        ("running", "time to running", seconds),
    ):
        medians = [
            statistics.median(getattr(m, name) for m in measurements if m.tool == tool)
            for tool in tools
        ]
        ratio = f"{medians[0] / medians[1]:10.2f}" if len(medians) == 2 else ""
        print(f"{title:22}" + "".join(f"{form(median):>14}" for median in medians) + ratio)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--processes", type=int, default=32)
    parser.add_argument("--own", type=int, default=100, help="MiB that each process has")
    parser.add_argument("--shared", type=int, default=1024, help="MiB that all share")
    parser.add_argument("--rounds", type=int, default=3, help="rounds beside the warm-up")
    parser.add_argument("--tools", default="snapkernel,criu")
    parser.add_argument("--folder", type=Path, help="where snapshots are written; default: a tmpfs")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--cache", type=Path, default=HERE.parent / ".cache" / "criu")
    chosen = parser.parse_args()
    tools = chosen.tools.split(",")
    program = None
    if "criu" in tools:
        try:
            program = criu.prepare(chosen.cache.resolve())
        except criu.NoCriuError as error:
            print(f"CRIU is left out: {error}")
            tools.remove("criu")
    parent = chosen.folder or (TMPFS if os.access(TMPFS, os.W_OK) else Path(tempfile.gettempdir()))
    measurements: list[Measurement] = []
    for round in range(chosen.rounds + 1):
        for name in tools[round % len(tools) :] + tools[: round % len(tools)]:
            folder = Path(tempfile.mkdtemp(dir=parent, prefix="snapkernel-benchmark-"))
            try:
                tool = Criu(folder, program) if program and name == "criu" else Snapkernel(folder)
                found = measure(tool, round, chosen.processes, chosen.own, chosen.shared)
            except WorkerError as error:
                print(f"failed: round {round}: {error}", flush=True)
                continue
            finally:
                shutil.rmtree(folder)
            print(
                f"round {round} {name:10} pause {seconds(found.pause)}  safe {seconds(found.safe)}"
                f"  stored {size(found.stored)}  running {seconds(found.running)}",
                flush=True,
            )
            if round:
                measurements.append(found)
    show(measurements)
    chosen.results.mkdir(parents=True, exist_ok=True)
    file = chosen.results / "process_tree.json"
    file.write_text(json.dumps([asdict(measurement) for measurement in measurements], indent=1))
    print(f"written: {file}")


if __name__ == "__main__":
    main()
