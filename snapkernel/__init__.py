"""Save, ship and resume running Jupyter kernels: the whole process, memory included.

>>> import snapkernel
>>> snapshot = snapkernel.checkpoint(pid, name="after-cleaning")   # it goes on running
>>> process = snapkernel.restore("after-cleaning")                 # a second one, side by side
"""

from typing import TYPE_CHECKING

from snapkernel.errors import (
    BatchFailed,
    CannotCheckpoint,
    CannotRestore,
    DamagedSnapshot,
    Finding,
    InvalidName,
    SnapkernelError,
    SnapshotNotFound,
    StoreError,
    TargetError,
    UnsupportedHost,
)

__version__ = "0.1.0"

if TYPE_CHECKING:
    from snapkernel.freeze.checkpoint import Snapshot, checkpoint
    from snapkernel.freeze.explain import explain
    from snapkernel.jupyter.connection import resolve_target
    from snapkernel.store import Store
    from snapkernel.thaw.restore import RestoredProcess, plan, restore
else:
    _LAZY = {
        "Snapshot": "snapkernel.freeze.checkpoint",
        "Store": "snapkernel.store",
        "checkpoint": "snapkernel.freeze.checkpoint",
        "explain": "snapkernel.freeze.explain",
        "RestoredProcess": "snapkernel.thaw.restore",
        "plan": "snapkernel.thaw.restore",
        "resolve_target": "snapkernel.jupyter.connection",
        "restore": "snapkernel.thaw.restore",
    }

    def __getattr__(name):
        """Import the rest when it is asked for (PEP 562): ``snapkernel --help`` needs none."""
        if name in _LAZY:
            import importlib

            value = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "BatchFailed",
    "CannotCheckpoint",
    "CannotRestore",
    "DamagedSnapshot",
    "Finding",
    "InvalidName",
    "RestoredProcess",
    "SnapkernelError",
    "Snapshot",
    "SnapshotNotFound",
    "Store",
    "StoreError",
    "TargetError",
    "UnsupportedHost",
    "checkpoint",
    "explain",
    "plan",
    "resolve_target",
    "restore",
]
