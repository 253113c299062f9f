"""Signal actions and queues.

``struct kernel_sigaction`` is kept as the kernel's bytes. A queued signal is put back with its
``siginfo_t`` by the process itself: only to itself may a process queue signals that look like the
kernel's (rt_sigqueueinfo(2)). What is blocked then stays pending.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

from snapkernel.arch import Architecture
from snapkernel.freeze import tracing
from snapkernel.freeze.batch import Batch, Space
from snapkernel.model import PendingSignal
from snapkernel.resources.context import Build, Capture

MASK_SIZE = 8
LAST = 64
_FIXED = (signal.SIGKILL, signal.SIGSTOP)


class Actions:
    """The question for the action of every signal that has one; the flags of one that has none
    matter for SIGCHLD only (SA_NOCLDWAIT, SA_NOCLDSTOP)."""

    def __init__(self, batch: Batch, capture: Capture, architecture: Architecture) -> None:
        """Add the calls to a batch."""
        status = capture.status
        wanted = int(status["SigCgt"], 16) | int(status["SigIgn"], 16) | 1 << signal.SIGCHLD - 1
        self._spaces = {}
        for number in range(1, LAST + 1):
            if number not in _FIXED and wanted >> number - 1 & 1:
                space = self._spaces[number] = Space(bytes(architecture.sigaction_size))
                batch.call("rt_sigaction", number, 0, space, MASK_SIZE)

    def answer(self) -> dict[int, bytes]:
        """``struct kernel_sigaction`` by signal, after the batch has run."""
        return {number: space.data for number, space in self._spaces.items() if any(space.data)}


def capture_pending(capture: Capture) -> tuple[PendingSignal, ...]:
    """Signals queued to the process."""
    assert capture.target is not None
    return tracing.pending_signals(capture.target.leader, shared=True)


def refuse_pending_trap(capture: Capture) -> None:
    """A signal on its way cannot be told from the one by which the agent ends: SIGTRAP in a stub,
    and another one here."""
    target, agent = capture.target, capture.agent
    assert target is not None
    assert agent is not None
    queues = [tracing.pending_signals(target.leader, shared=True)]
    queues += [tracing.pending_signals(tid, shared=False) for tid in target.tids]
    for number in {signal.SIGTRAP, signal.Signals(agent.signal)}:
        if any(entry.signal == number for queue in queues for entry in queue):
            what = f"pending signal {number.name}"
            capture.refuse(what, "is used by the freezer itself", "try again")


# --- rebuild -----------------------------------------------------------------------------------


def rebuild_actions(build: Build, architecture: Architecture) -> Batch:
    """All actions, the default ones too: the stub may have inherited ignored signals."""
    batch = Batch("set signal actions")
    default = bytes(architecture.sigaction_size)
    for number in range(1, LAST + 1):
        if number not in _FIXED:
            action = build.process.actions.get(number, default)
            batch.call("rt_sigaction", number, action, 0, MASK_SIZE, note=f"signal {number}")
    return batch


def queue(batch: Batch, pid: int, tid: int, pending: Sequence[PendingSignal]) -> None:
    """Queue a thread's own signals."""
    for entry in pending:
        note = f"pending signal {entry.signal}"
        batch.call("rt_tgsigqueueinfo", pid, tid, entry.signal, entry.info, note=note)


def rebuild_pending(build: Build) -> Batch:
    """Queue the signals of the process."""
    batch = Batch("queue pending signals")
    for entry in build.process.pending:
        note = f"pending signal {entry.signal}"
        batch.call("rt_sigqueueinfo", build.process.pid, entry.signal, entry.info, note=note)
    return batch
