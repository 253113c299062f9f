"""The hidden copy: a forked child of the frozen process, from which its memory is read while the
process itself goes on.

The application must not notice it. The process clones a helper that shares its memory (so page
tables are copied once), the helper forks the copy and ends, and the process waits for the helper.
Both are made with exit signal 0: no SIGCHLD, and invisible to a wait(2) that does not ask for
such children by ``__WCLONE`` (clone(2)). The copy belongs to whoever reaps orphans.

The copy never runs a program: it stays stopped, its descriptors are closed at once, so that no
peer is kept waiting for an end of file and no port stays bound, and it dies with its tracer.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from snapkernel._native import ffi, lib
from snapkernel.constants import CLONE_FILES, CLONE_FS, CLONE_VM, WCLONE
from snapkernel.errors import SnapkernelError, TargetError
from snapkernel.freeze import tracing
from snapkernel.freeze.agent import Agent
from snapkernel.freeze.batch import Batch, Words
from snapkernel.freeze.target import Target

_CLONE_ARGS_SIZE = 11 * 8
_OPTIONS = tracing.O_TRACESYSGOOD | tracing.O_TRACEFORK | tracing.O_TRACECLONE | tracing.O_EXITKILL


class Copy:
    """A stopped copy-on-write child of the process."""

    def __init__(self, target: Target) -> None:
        self.target = target

    @property
    def pid(self) -> int:
        """On this host."""
        return self.target.pid

    def end(self) -> None:
        """Kill it."""
        self.target.kill()


@contextmanager
def ended(copies: Sequence[Copy]) -> Iterator[None]:
    """End the copies, whatever happens in the block."""
    try:
        yield
    finally:
        for copy in copies:
            copy.end()


def fork(target: Target, agent: Agent) -> Copy:
    """Make the copy.

    Raises:
        SnapkernelError: the kernel does not give us a child (limits on processes or memory). The
            process is as it was.
    """
    helper, inner = _clone(target, agent, target.leader, CLONE_VM | CLONE_FS | CLONE_FILES)
    copy = None
    try:
        target.registers[helper] = target.registers[target.leader]
        target.masks[helper] = tracing.BLOCK_ALL
        copy, _ = _clone(target, agent, helper, 0)
    finally:
        _end_helper(target, agent, helper, inner)
    try:
        # Killed rather than the user's kernel when memory runs short.
        with suppress(OSError), open(f"/proc/{copy}/oom_score_adj", "w") as file:
            file.write("1000")
        result = Target(copy, [copy])
        close = Batch("close the copy's descriptors")
        close.call("close_range", 0, 0xFFFFFFFF, 0)
        result.registers[copy] = target.registers[target.leader]
        Agent(result, agent.base, live=False).run(close)
    except BaseException:
        _kill(copy)
        raise
    return Copy(result)


def _clone(target: Target, agent: Agent, tid: int, flags: int) -> tuple[int, int]:
    """Let a thread clone; the stopped child's pid on this host, and as the process sees it."""
    batch = Batch("make a hidden copy of the process")
    words = Words((flags, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
    call = batch.call("clone3", words, _CLONE_ARGS_SIZE, note="copy-on-write child")
    agent.born.clear()
    agent.run(batch, tid)
    if not agent.born or call.result is None:
        raise TargetError(f"process {target.pid}", "the new child was not reported")
    child = agent.born.pop()
    tracing.wait(child)
    tracing.request(tracing.SETOPTIONS, child, 0, _OPTIONS)
    return child, call.result


def _kill(pid: int) -> None:
    """Kill a child that was made here, and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    status = ffi.new("int *")
    while lib.sk_wait(pid, 0, status) >= 0 and os.WIFSTOPPED(status[0]):
        pass


def _end_helper(target: Target, agent: Agent, helper: int, inner: int) -> None:
    """End the helper and have the process take its exit status."""
    target.registers.pop(helper, None)
    target.masks.pop(helper, None)
    _kill(helper)
    batch = Batch("take the helper's exit status")
    batch.call("wait4", inner, 0, WCLONE, 0, check=False)
    agent.run(batch)
    if batch.calls[0].result != inner:
        raise SnapkernelError(
            f"process {target.pid}", f"its helper was not reaped: {batch.calls[0]}"
        )
