"""Yama, which keeps users from tracing their processes (Documentation/admin-guide/LSM/Yama.rst).

With ``kernel.yama.ptrace_scope`` 1 a process may trace its descendants, those that have named it or
an ancestor of it by ``prctl(PR_SET_PTRACER)``, and those in a user namespace that its user owns, as
restored ones are. With 2 it needs CAP_SYS_PTRACE, with 3 nobody may trace.
"""

from __future__ import annotations

import contextlib
import os

from snapkernel import procfs

REMEDIES = {
    1: "save it from a process that it descends from, have it call prctl(PR_SET_PTRACER), save it "
    "as root, or let users trace their processes with sysctl kernel.yama.ptrace_scope=0",
    2: "save it as root, or let users trace their processes with sysctl kernel.yama.ptrace_scope=0",
    3: "restart the host with a kernel.yama.ptrace_scope below 3, which cannot be set back",
}
"""What to do, by scope."""


def scope() -> int:
    """``kernel.yama.ptrace_scope``; 0 in a kernel without Yama."""
    with contextlib.suppress(OSError, ValueError):
        return int(procfs.text("/proc/sys/kernel/yama/ptrace_scope"))
    return 0


def forbids(pid: int) -> int:
    """The scope, if it may be what keeps us from tracing a process of our user; otherwise 0."""
    found = scope()
    if os.geteuid() == 0 and found < 3:
        return 0
    return found if found != 1 or pid not in procfs.descendants(os.getpid()) else 0


def only_we_may_trace(pid: int) -> bool:
    """We may trace a process for being its ancestor, and a child of ours could not."""
    if os.geteuid() == 0 or not scope():
        return False
    with contextlib.suppress(OSError):
        if os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user"):
            return False
    return pid in procfs.descendants(os.getpid())
