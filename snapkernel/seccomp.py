"""Filters of system calls (seccomp(2)): who has them from whom.

A filter is inherited and cannot be taken away. Where the first process of a pid namespace has one,
as in a container, everybody there has it, and so has whoever is restored there. Any other is the
process's own: nothing tells what it does to whom it catches.
"""

from __future__ import annotations

import os

from snapkernel import procfs
from snapkernel.errors import TargetError

REMEDY = (
    "give the container CAP_SYS_PTRACE (--cap-add SYS_PTRACE in Docker and Podman), upon which "
    "their seccomp profiles allow it, or run it with --security-opt seccomp=unconfined"
)
"""For the calls of a checkpoint: ptrace, kcmp, pidfd_getfd and process_vm_readv."""


def filters(pid: int) -> int:
    """How many filters a process has (proc(5), Seccomp_filters, Linux 5.9); 0 when that is hidden
    from us."""
    try:
        status = procfs.status(pid)
    except (TargetError, OSError):
        return 0
    if status.get("Seccomp", "0") == "0":
        return 0
    return int(status.get("Seccomp_filters", "-1"))


def is_everybodys(pid: int) -> bool:
    """The filters of a process are those that we have as well, from the first process here."""
    return filters(pid) == filters(os.getpid()) == filters(1) > 0


def is_filtered() -> bool:
    """We have a filter."""
    return filters(os.getpid()) != 0
