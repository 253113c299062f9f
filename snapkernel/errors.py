"""Every failure that snapkernel reports: an object, a reason and a remedy.

A caller that shows ``str(error)`` shows all three; a program reads the fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class SnapkernelError(Exception):
    """Base class of all errors of this package.

    Attributes:
        object: what the error is about (``"fd 17 (io_uring)"``, ``"store file:///x"``).
        reason: why it failed.
        remedy: what the user can do about it; empty when nothing is known.
    """

    def __init__(self, object: str, reason: str, remedy: str = "") -> None:
        super().__init__(object, reason, remedy)
        self.object = object
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.object}: {self.reason}"
        return f"{text}; {self.remedy}" if self.remedy else text


class TargetError(SnapkernelError):
    """The process cannot be attached to, or went away while it was frozen."""


class UnsupportedHost(SnapkernelError):
    """This host's kernel lacks, or forbids, something that the operation needs."""


@dataclass(frozen=True)
class Finding:
    """What becomes of one kernel object in a snapshot.

    Attributes:
        object: the object, named as the user knows it.
        status: ``"saved"``, ``"replaced"`` (something equivalent stands in its place after
            a restore, such as a standard stream), ``"closed"`` (comes back as a closed
            connection), ``"shared"`` (belongs to a file, and is not in the snapshot), ``"lost"``,
            ``"left"`` (a file that was asked for and does not travel), ``"left out"`` (a process
            that is no descendant any more) or ``"refused"``.
        reason: why the status is what it is.
        remedy: what to do about it, where something can be done.
    """

    object: str
    status: str
    reason: str = ""
    remedy: str = ""


class CannotCheckpoint(SnapkernelError):
    """The process holds objects that cannot be saved; ``findings`` lists all of them."""

    def __init__(self, object: str, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        first = self.findings[0]
        more = len(self.findings) - 1
        reason = f"{first.object} cannot be saved: {first.reason}"
        if more:
            reason += f" (and {more} more; `snapkernel explain` lists them)"
        super().__init__(object, reason, first.remedy)
        self.args = (object, self.findings)


class CannotRestore(SnapkernelError):
    """The snapshot cannot be restored here; ``findings`` lists every mismatch at once."""

    def __init__(
        self, object: str, reason: str, remedy: str = "", findings: Sequence[Finding] = ()
    ) -> None:
        self.findings = tuple(findings)
        super().__init__(object, reason, remedy)
        self.args = (object, reason, remedy, self.findings)


class BatchFailed(SnapkernelError):
    """A system call made on behalf of a frozen process failed.

    Attributes:
        errno: the error number, positive.
    """

    def __init__(self, object: str, reason: str, errno: int, remedy: str = "") -> None:
        self.errno = errno
        super().__init__(object, reason, remedy)
        self.args = (object, reason, errno, remedy)


class StoreError(SnapkernelError):
    """The store cannot be read or written."""


class SnapshotNotFound(StoreError):
    """No snapshot of that id, prefix or name (or more than one for a prefix)."""


class DamagedSnapshot(StoreError):
    """A manifest, pack or chunk is not what its name or schema says."""


class InvalidName(SnapkernelError):
    """A snapshot's name with characters that are not allowed, or a pattern that fits no path."""
