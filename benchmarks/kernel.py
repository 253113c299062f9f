"""The kernel that is measured: a real ipykernel with numpy and pandas loaded, filled on demand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_client import BlockingKernelClient
from jupyter_client.connect import write_connection_file

GIB = 1 << 30

# Half of the memory is structured: tables as an analyst has them, of five columns of eight bytes.
# The other half is random: half random bytes, which nothing compresses, half normal floats.
# Every block has its own seed, so no two are equal and deduplication finds nothing.
FILL = """
def fill(structured, random):
    block = 256 << 20
    for seed, at in enumerate(range(0, structured, block)):
        tables.append(table(seed, min(block, structured - at) // 40))
    for seed, at in enumerate(range(0, random, block)):
        rng, rows = np.random.default_rng(1000 + seed), min(block, random - at) // 16
        noise.append(rng.integers(0, 1 << 64, rows, dtype=np.uint64))
        noise.append(rng.standard_normal(rows))

def table(seed, rows):
    rng, row = np.random.default_rng(seed), np.arange(rows) + seed * 10_000_000
    return pd.DataFrame({
        "id": row,
        "category": rng.integers(0, 40, rows),
        "price": np.round(rng.lognormal(3, 1, rows), 2),
        "temperature": np.round(15 + 10 * np.sin(row / 5e4) + rng.normal(0, 0.05, rows), 2),
        "time": pd.Timestamp("2024-01-01") + pd.to_timedelta(row * 250 + rng.integers(0, 250, rows),
                                                             unit="ms"),
    })

def change(share):
    "Write new values over one stretch of every table and array."
    rng = np.random.default_rng()
    for frame in tables:
        rows = int(len(frame) * share)
        first = rng.integers(0, len(frame) - rows)
        changed = table(rng.integers(100_000), rows)
        for column in frame.columns:
            frame[column].array._ndarray[first:first + rows] = changed[column].array._ndarray
    for array in noise:
        rows = int(len(array) * share)
        first = rng.integers(0, len(array) - rows)
        array[first:first + rows] = rng.permutation(array[first:first + rows])

def fingerprint():
    "A value that depends on every number held."
    total = sum(int(array.view(np.uint64).sum()) for array in noise)
    for frame in tables:
        total += sum(int(frame[c].array._ndarray.view(np.uint64).sum()) for c in frame.columns)
    return total % (1 << 64)
"""

# What a pause looks like from inside: a thread that looks at the clock five times a millisecond.
WATCH = """
def watch():
    global largest_gap
    before = time.perf_counter()
    while True:
        time.sleep(0.0002)
        now = time.perf_counter()
        largest_gap = max(largest_gap, now - before)
        before = now

def plain_fork():
    "Seconds that a plain fork of this process takes, the median of five."
    def once():
        start = time.perf_counter()
        child = os.fork()
        if child == 0:
            os._exit(0)
        taken = time.perf_counter() - start
        os.waitpid(child, 0)
        return taken
    return sorted(once() for _ in range(5))[2]

largest_gap = 0.0
threading.Thread(target=watch, daemon=True).start()
"""

IMPORTS = "import numpy as np, os, pandas as pd, threading, time"
PREPARE = f"{IMPORTS}\ntables, noise = [], []\n{FILL}\n{WATCH}"


class CellError(Exception):
    """A cell raised an exception in the kernel, or the kernel did not answer."""


@dataclass
class Kernel:
    """A running kernel that was started by ``start``, or restored from a snapshot of it."""

    pid: int
    connection_file: Path
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.client: BlockingKernelClient | None = None

    def connect(self) -> None:
        """Open a fresh shell channel, as a newly opened notebook does."""
        self.disconnect()
        client = BlockingKernelClient(connection_file=str(self.connection_file))
        client.load_connection_file()
        client.start_channels(shell=True, iopub=False, stdin=False, hb=False, control=False)
        self.client = client

    def disconnect(self) -> None:
        if self.client is not None:
            self.client.stop_channels()
            self.client = None

    def run(self, code: str, timeout: float = 120) -> None:
        """Execute a cell and wait for its reply."""
        self._execute(code, {}, timeout)

    def value(self, expression: str, timeout: float = 120) -> Any:
        """The value of an expression, which must be a Python literal of numbers."""
        reply = self._execute("", {"value": f"__import__('json').dumps({expression})"}, timeout)
        result = reply["user_expressions"]["value"]
        if result["status"] != "ok":
            raise CellError(f"{expression}: {result['ename']}: {result['evalue']}")
        text: str = result["data"]["text/plain"]
        return json.loads(text.strip("'"))

    def _execute(self, code: str, expressions: dict[str, str], timeout: float) -> dict[str, Any]:
        if self.client is None:
            self.connect()
        assert self.client is not None
        message = self.client.execute(code, user_expressions=expressions)
        deadline = time.monotonic() + timeout
        while True:
            left = max(0.1, deadline - time.monotonic())
            reply = self.client.get_shell_msg(timeout=left)
            if reply["parent_header"].get("msg_id") == message:
                break
        content: dict[str, Any] = reply["content"]
        if content["status"] != "ok":
            raise CellError(f"{content.get('ename')}: {content.get('evalue')}")
        return content

    def memory(self) -> dict[str, int]:
        """Resident and huge-page bytes, from ``/proc/PID/smaps_rollup``."""
        text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        return {
            name: int(re.search(rf"^{key}:\s*(\d+) kB", text, re.MULTILINE)[1]) * 1024  # type: ignore[index]
            for name, key in (("resident", "Rss"), ("huge", "AnonHugePages"))
        }

    def kill(self) -> None:
        """End a kernel that was started here, and wait until its pid is free."""
        self.disconnect()
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def start(folder: Path, structured: int, random: int, watches_parent: bool = True) -> Kernel:
    """Start a kernel and have it hold ``structured`` and ``random`` bytes.

    Args:
        folder: its working directory, where its connection file is written.
        structured: bytes of tables.
        random: bytes of noise.
        watches_parent: as Jupyter starts it: the kernel ends itself when its parent is not the
            one in ``JPY_PARENT_PID`` any more. A kernel that CRIU restores would do so.

    Standard streams are ``/dev/null``, because CRIU refuses a file that grew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"kernel-{uuid.uuid4().hex[:8]}.json"
    key = uuid.uuid4().hex.encode()
    write_connection_file(str(path), ip="127.0.0.1", key=key, kernel_name="python3")
    environment = {**os.environ, "IPYTHONDIR": str(folder / "ipython")}
    environment.pop("JPY_PARENT_PID", None)
    if watches_parent:
        environment["JPY_PARENT_PID"] = str(os.getpid())
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "ipykernel_launcher", "-f", str(path)),
            "--HistoryManager.hist_file=:memory:",
        ],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    kernel = Kernel(process.pid, path, process)
    kernel.run(PREPARE)
    kernel.run(f"fill({structured}, {random})", timeout=600)
    return kernel
