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
import signal
import subprocess
import sys
import threading
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

    with open("/dev/null", "r+b") as nothing:
        streams = (nothing.fileno(),) * 3
        restored = snapkernel.restore(identifier, store=store, lazy=False, stdio=streams)
    yield {
        "pid": restored.pid,
        "connection_file": str(restored.connection_file or ""),
        "timings": dict(restored.timings),
        "notes": [str(note) for note in restored.notes],
    }
    restored.kill()
    restored.wait()
    if restored.connection_file is not None:
        restored.connection_file.unlink(missing_ok=True)


@contextlib.contextmanager
def checkpoint_criu(images: str, *command: str) -> Iterator[dict[str, Any]]:
    peak = _run(command)
    for path in Path(images).iterdir():  # CRIU leaves the images to the page cache
        with path.open("rb") as file:
            os.fsync(file.fileno())
    yield {"peak": peak}


@contextlib.contextmanager
def restore_criu(images: str, *command: str) -> Iterator[dict[str, Any]]:
    # The restored process becomes a child of this one, which can reap it at once.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    pidfile = Path(images) / "restored.pid"
    pidfile.unlink(missing_ok=True)
    peak = _run((*command, "--pidfile", str(pidfile)))
    pid = int(pidfile.read_text())
    yield {"pid": pid, "peak": peak}
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _run(command: tuple[str, ...]) -> int:
    """Run CRIU, and return its peak memory in bytes, looked at until it ends."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    peak = 0

    def look() -> None:
        nonlocal peak
        while value := peak_memory(process.pid):
            peak = value
            time.sleep(0.005)

    looking = threading.Thread(target=look)
    looking.start()
    _, message = process.communicate()
    looking.join()
    if process.returncode:
        raise RuntimeError(f"CRIU failed: {message.decode().strip()}")
    return peak


def peak_memory(pid: int | str = "self") -> int:
    """Bytes that were resident at most in a process, 0 when it has ended (proc(5), VmHWM)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    match = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


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
