"""What is left on the host after something was done."""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

MARK = ("SNAPKERNEL_TEST_RUN", uuid.uuid4().hex)
"""In the environment of this test run, so every descendant has it, whoever its parent is now."""


@dataclass(frozen=True)
class Host:
    """What this test run holds on the host at one moment.

    Attributes:
        processes: command lines by pid: all descendants, zombies included.
        namespaces: the namespaces that these processes are in, other than our own.
        descriptors: of this process.
        mounts: lines of our mount table.
        temporary: names in the temporary folder.
    """

    processes: frozenset[tuple[int, str]]
    namespaces: frozenset[str]
    descriptors: frozenset[int]
    mounts: frozenset[str]
    temporary: frozenset[str]


def look() -> Host:
    """Look at the host."""
    gc.collect()
    processes: set[tuple[int, str]] = set()
    namespaces: set[str] = set()
    own = _namespaces(os.getpid())
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid() and _is_ours(int(entry)):
            processes.add((int(entry), _describe(int(entry))))
            namespaces |= _namespaces(int(entry)) - own
    return Host(
        processes=frozenset(processes),
        namespaces=frozenset(namespaces),
        descriptors=frozenset(_descriptors()),
        mounts=frozenset(Path("/proc/self/mountinfo").read_text().splitlines()),
        temporary=frozenset(os.listdir(tempfile.gettempdir())),
    )


def difference(before: Host, after: Host) -> list[str]:
    """What `after` has more than `before`, in words."""
    return [
        *(f"process {pid}: {text}" for pid, text in after.processes - before.processes),
        *(f"namespace {name}" for name in after.namespaces - before.namespaces),
        *(f"descriptor {fd}" for fd in after.descriptors - before.descriptors),
        *(f"mount {line}" for line in after.mounts - before.mounts),
        *(f"temporary file {name}" for name in after.temporary - before.temporary),
    ]


def left_behind(before: Host, patience: float = 10) -> list[str]:
    """What is there that was not there before; the kernel gets a moment to clean up."""
    deadline = time.monotonic() + patience
    while (found := difference(before, look())) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def _is_ours(pid: int) -> bool:
    mark = "=".join(MARK).encode()
    try:
        if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return True
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return False
    return int(fields[1]) == os.getpid()  # a zombie has no environment, but a parent


def _describe(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "ended"
    name, state = status.split("(", 1)[1].rsplit(")", 1)
    return f"{text.strip() or name} ({state.split()[0]})"


def _namespaces(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/ns"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/{pid}/ns/{name}"))
    return found


def _descriptors() -> set[int]:
    folder = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
    try:
        return {int(name) for name in os.listdir(folder)} - {folder}
    finally:
        os.close(folder)
