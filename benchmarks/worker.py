"""One checkpoint or restore by one tool, in a process of its own whose memory can be measured.

``python worker.py ACTION TOOL ARGUMENTS...`` imports the tool, says that it is ready, acts when it
is given a line, and reports in one line of JSON. After a restore it stays until its standard input
ends, then ends the restored process and reaps it. Times are of the monotonic clock, which all
processes share.

    checkpoint snapkernel PID STORE          restore snapkernel STORE SNAPSHOT
    checkpoint criu IMAGES COMMAND...        restore criu IMAGES COMMAND...
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36

# What an action yields: its findings, and the work to do before the worker ends.
Action = Callable[..., AbstractContextManager[dict[str, Any]]]


@contextlib.contextmanager
def checkpoint_snapkernel(pid: str, store: str) -> Iterator[dict[str, Any]]:
    import snapkernel

    snapshot = snapkernel.checkpoint(int(pid), store=store)
    yield {
        "id": snapshot.id,
        "mode": snapshot.mode,
        "pause": snapshot.pause_s,
        "memory": snapshot.memory_bytes,
        "added": snapshot.stored_bytes,
        "timings": dict(snapshot.timings),
        "notes": [str(note) for note in snapshot.notes],
    }


@contextlib.contextmanager
def restore_snapkernel(store: str, identifier: str) -> Iterator[dict[str, Any]]:
    import snapkernel

    restored = snapkernel.restore(identifier, store=store, lazy=False)
    yield {
        "pid": restored.pid,
        "connection_file": str(restored.connection_file or ""),
        "timings": dict(restored.timings),
        "notes": [str(note) for note in restored.notes],
    }
    restored.kill()
    restored.wait()


@contextlib.contextmanager
def checkpoint_criu(images: str, *command: str) -> Iterator[dict[str, Any]]:
    _run(command)
    for path in Path(images).iterdir():  # CRIU leaves the images to the page cache
        with path.open("rb") as file:
            os.fsync(file.fileno())
    yield {}


@contextlib.contextmanager
def restore_criu(images: str, *command: str) -> Iterator[dict[str, Any]]:
    # The restored process becomes a child of this one, which can reap it at once.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    pidfile = Path(images) / "restored.pid"
    pidfile.unlink(missing_ok=True)
    _run((*command, "--pidfile", str(pidfile)))
    pid = int(pidfile.read_text())
    yield {"pid": pid}
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _run(command: tuple[str, ...]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"CRIU failed: {result.stderr.strip()}")


def peak_memory() -> int:
    """Bytes at most resident in this process, or in one that it started and that has ended."""
    status = Path("/proc/self/status").read_text()
    match = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    assert match is not None
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(int(match[1]), children) * 1024


def main() -> None:
    name, tool, *arguments = sys.argv[1:]
    action: Action = globals()[f"{name}_{tool}"]
    if tool == "snapkernel":  # which imports its parts when they are asked for
        import snapkernel

        getattr(snapkernel, name)
    print("{}", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    with action(*arguments) as findings:
        end = time.perf_counter()
        report = {"start": start, "end": end, "peak": peak_memory(), **findings}
        print(json.dumps(report), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
