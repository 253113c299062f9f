"""Memory that is kept from being swapped: mlock2(2) (Linux 4.4) and mlockall(2).

What is locked shows in VmFlags: ``lo``, and ``lf`` if pages are locked when they are touched
(MLOCK_ONFAULT). That memory yet to be mapped will be locked (MCL_FUTURE) shows nowhere; a page that
the process maps tells: MADV_DONTNEED is refused for locked memory (madvise(2), EINVAL), and the
page is there at once unless it is locked on fault.
"""

from __future__ import annotations

import errno

from snapkernel.constants import (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FIXED_NOREPLACE,
    MAP_PRIVATE,
    MCL_FUTURE,
    MCL_ONFAULT,
    MLOCK_ONFAULT,
    PROT_READ,
    PROT_WRITE,
)
from snapkernel.freeze.agent import PAGE, Agent
from snapkernel.freeze.batch import Batch, Space
from snapkernel.freeze.layout import SIZE
from snapkernel.model import FutureLocks, Mapping
from snapkernel.resources.context import Build

FLAGS = frozenset(["lo", "lf"])


class Question:
    """Whether memory will be locked that the process has yet to map."""

    def __init__(self, batch: Batch, agent: Agent) -> None:
        """Add the calls to a batch. There is room for a page behind the agent."""
        page = agent.base + SIZE
        self._present = Space(bytes(1))
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
        batch.call("mmap", page, PAGE, PROT_READ | PROT_WRITE, flags, -1, 0, note="locked memory")
        batch.call("mincore", page, PAGE, self._present, note="locked memory")
        self._dropped = batch.call("madvise", page, PAGE, MADV_DONTNEED, check=False)
        batch.call("munmap", page, PAGE, note="locked memory")

    def answer(self) -> FutureLocks:
        """After the run."""
        if self._dropped.result != -errno.EINVAL:
            return "no"
        return "at once" if self._present.data[0] & 1 else "on fault"


# --- rebuild -----------------------------------------------------------------------------------


def rebuild(batch: Batch, mapping: Mapping, note: str) -> None:
    """Lock a mapping as it was."""
    if "lo" not in mapping.flags:
        return
    length = mapping.end - mapping.start
    if "lf" in mapping.flags:
        batch.call("mlock2", mapping.start, length, MLOCK_ONFAULT, note=note)
    else:
        batch.call("mlock", mapping.start, length, note=note)


def rebuild_future(build: Build) -> Batch:
    """When nothing more is mapped."""
    batch = Batch("lock future memory")
    kind = build.process.locks_future_memory
    if kind != "no":
        flags = MCL_FUTURE | (MCL_ONFAULT if kind == "on fault" else 0)
        batch.call("mlockall", flags, note="mlockall")
    return batch
