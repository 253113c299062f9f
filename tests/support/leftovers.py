"""What outlives a conformance program that is stopped: objects that have a key or a name.

The programs of ``programs/ipc.py`` make both of their pid.
"""

from __future__ import annotations

import ctypes
import re
import shutil
from pathlib import Path

IPC_RMID = 0
_libc = ctypes.CDLL(None, use_errno=True)


started: list[int] = []
"""Pids of programs, until they are swept."""


def sweep_all() -> None:
    """Remove what all programs that were started have left."""
    while started:
        sweep(started.pop())


def sweep(pid: int) -> None:
    """Remove what the program with this pid has left."""
    key = 0x51000000 | pid
    for get, control in (
        (lambda: _libc.shmget(key, 0, 0), lambda number: _libc.shmctl(number, IPC_RMID, None)),
        (lambda: _libc.semget(key, 0, 0), lambda number: _libc.semctl(number, 0, IPC_RMID, 0)),
        (lambda: _libc.msgget(key, 0), lambda number: _libc.msgctl(number, IPC_RMID, None)),
    ):
        number = get()
        if number >= 0:
            control(number)
    _libc.mq_unlink(f"/snapkernel-{pid}".encode())
    Path(f"/dev/shm/snapkernel-host-{pid:x}").unlink(missing_ok=True)
    for prefix in ("snapkernel", "sem.snapkernel"):
        for path in Path("/dev/shm").glob(f"{prefix}-{pid}*"):
            if re.fullmatch(rf"{prefix}-{pid}(?!\d).*", path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
