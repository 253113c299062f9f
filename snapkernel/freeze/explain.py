"""explain(): what would become of every object of a process in a snapshot."""

from __future__ import annotations

import os

from snapkernel import procfs
from snapkernel.errors import Finding
from snapkernel.freeze.capture import survey
from snapkernel.freeze.target import why_not


def explain(pid: int) -> list[Finding]:
    """Look at a running process from outside, without stopping it.

    Raises:
        TargetError: it does not exist or may not be examined.
        UnsupportedHost: it cannot be frozen on this host at all.
    """
    findings = survey(pid).findings
    if int(procfs.status(pid).get("TracerPid", "0")) not in (0, os.getpid()):
        error = why_not(pid, 0)
        findings.append(Finding(error.object, "refused", error.reason, error.remedy))
    order = {"refused": 0, "closed": 1, "shared": 2, "replaced": 3, "saved": 4}
    return sorted(findings, key=lambda finding: order.get(finding.status, 0))
