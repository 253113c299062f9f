"""Yama's ptrace_scope 1, the default of Ubuntu: who can save which process, without privilege."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.unprivileged import as_nobody

from snapkernel import yama

PROGRAM = Path(__file__).with_name("programs") / "traced.py"


def test_scope_of_descendants(home: Path) -> None:
    """Ancestors can, and whom the process has named, and who owns its user namespace."""
    if yama.scope() != 1:
        pytest.skip(f"kernel.yama.ptrace_scope is {yama.scope()} (0 is also no Yama), not 1")
    command = [sys.executable, str(PROGRAM), f"file://{home}/store"]
    done = subprocess.run(
        as_nobody(command, home) if os.geteuid() == 0 else command,
        cwd=home,
        env={**os.environ, "HOME": str(home), "TMPDIR": str(home)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    refused = told.pop("child, by a stranger")
    assert "may not be traced: kernel.yama.ptrace_scope is 1; save it from a process" in refused
    assert told == {
        "child": "live",
        "restored": "live",
        "restored, by a stranger": "saved live",
        "named anybody, by a stranger": "saved live",
        "named us, by a stranger": "saved live",
    }
