"""explain(): what would become of every object of a process in a snapshot."""

from __future__ import annotations

import os
from collections.abc import Sequence

from snapkernel import procfs
from snapkernel.errors import Finding
from snapkernel.freeze.capture import survey
from snapkernel.freeze.target import why_not
from snapkernel.resources.file_choice import Choice


def explain(pid: int, files: str | Sequence[str] = "open") -> list[Finding]:
    """Look at a running process from outside, without stopping it.

    Args:
        pid: on this host.
        files: which files would travel; as of ``checkpoint``.

    Raises:
        InvalidName: a pattern of files that fits no path.
        TargetError: it does not exist or may not be examined.
        UnsupportedHost: it cannot be frozen on this host at all.
    """
    findings = survey(pid, Choice.of(files)).findings
    if int(procfs.status(pid).get("TracerPid", "0")) not in (0, os.getpid()):
        error = why_not(pid, 0)
        findings.append(Finding(error.object, "refused", error.reason, error.remedy))
    order = {"refused": 0, "closed": 1, "left": 2, "shared": 3, "replaced": 4, "saved": 5}
    return sorted(findings, key=lambda finding: order.get(finding.status, 0))
