"""snapkernel itself is killed: the target lives on unharmed, and nothing half-built stays."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.conformance import PATIENCE, Conversation
from support.faults import files, outlived_by_helpers

import snapkernel
from snapkernel.store import Store

pytestmark = pytest.mark.usefixtures("leaves_nothing")

CHECKPOINT = """
import sys, snapkernel
snapkernel.checkpoint(int(sys.argv[2]), store=sys.argv[1], stop=sys.argv[3] == "stop")
"""
RESTORE = """
import sys, snapkernel
print(snapkernel.restore("good", store=sys.argv[1]).pid, flush=True)
sys.stdin.read()
"""
PREPARE = """
import snapkernel, sys, os
import snapkernel.freeze.freezer
print("loaded", flush=True)
"""


def kill_after(code: str, delay: float, *arguments: str) -> str:
    """Run code, kill it with SIGKILL `delay` seconds after it began, return what it printed."""
    process = subprocess.Popen(
        [sys.executable, "-c", PREPARE + code, *arguments],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
    )
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == b"loaded\n"
        time.sleep(delay)  # anywhere in between: there is no event to wait for
        with outlived_by_helpers(process.pid) if CHECKPOINT in code else contextlib.nullcontext():
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=PATIENCE)
        return process.stdout.read().decode()


@pytest.mark.parametrize("milliseconds", [1, 8, 30, 60, 90, 120, 150, 180, 210, 240, 300])
def test_checkpoint_killed(milliseconds: int, target: Conversation, store: str) -> None:
    """The target verifies itself afterwards; a later checkpoint of it works."""
    pid = str(target.process.pid)
    kill_after(CHECKPOINT, milliseconds / 1000, store, pid, "live")
    state = Path(f"/proc/{pid}/status").read_text()
    assert "\nTracerPid:\t0\n" in state
    snapshot = snapkernel.checkpoint(int(pid), store=store)
    assert Store.open(store).verify() == []
    assert snapshot.id in [summary.id for summary in Store.open(store).list()]


@pytest.mark.parametrize("milliseconds", [5, 15, 25, 35, 50, 70, 100])
def test_restore_killed(milliseconds: int, folder: Path, store: str) -> None:
    """Nothing half-built stays, and the store is untouched."""
    before = files(folder)
    running = kill_after(RESTORE, milliseconds / 1000, store)
    if running:  # the restore was complete: a process lives on that is not ours to judge
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(running), signal.SIGKILL)
    assert files(folder) == before
