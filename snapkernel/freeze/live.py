"""The hidden copy: a forked child of the frozen process, from which its memory is read while the
process itself goes on.

The application must not notice it. The process clones a helper that shares its memory (so page
tables are copied once), the helper forks the copy and ends, and the process waits for the helper.
Both are made with exit signal 0: no SIGCHLD, and invisible to a wait(2) that does not ask for
such children by ``__WCLONE`` (clone(2)). The copy belongs to whoever reaps orphans.

The copy never runs a program: it stays stopped, its descriptors are closed at once, so that no
peer is kept waiting for an end of file and no port stays bound, and it dies with its tracer. Helper
and copy end by themselves when their tracer dies before it could tell the kernel so.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from snapkernel import faults
from snapkernel._native import ffi, lib
from snapkernel.constants import CLONE_FILES, CLONE_FS, CLONE_VFORK, CLONE_VM, WCLONE
from snapkernel.errors import SnapkernelError, TargetError
from snapkernel.freeze import tracing
from snapkernel.freeze.agent import Agent
from snapkernel.freeze.batch import Batch, Call, Cell, Words
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
    batch = Batch("make a hidden copy of the process")
    inner = Cell("helper")
    # The process stands still until the helper has ended (CLONE_VFORK): both have the same stack.
    helping = _clone(batch, CLONE_VM | CLONE_VFORK | CLONE_FS | CLONE_FILES, store=inner)
    wait = batch.call("wait4", inner, 0, WCLONE, 0, note="the helper")
    inside = Batch("fork the copy")
    _clone(inside, 0)
    inside.call("exit_group", 0)
    copies: list[int] = []
    try:
        with agent.helped(batch, inside) as (helper, registers):
            _drive(helper, registers, copies)
        if wait.result != helping.result:
            raise SnapkernelError(f"process {target.pid}", f"its helper was not reaped: {wait}")
        if not copies:
            raise TargetError(f"process {target.pid}", "the new child was not reported")
        copy = copies[0]
        # Killed rather than the user's kernel when memory runs short.
        with suppress(OSError), open(f"/proc/{copy}/oom_score_adj", "w") as file:
            file.write("1000")
        result = Target(copy, [copy])
        close = Batch("close the copy's descriptors")
        close.call("close_range", 0, 0xFFFFFFFF, 0)
        result.registers[copy] = target.registers[target.leader]
        Agent(result, agent.base, live=False, signal=agent.signal).run(close)
        agent.erase_in(result.memory)
        faults.reached("the copy is as the process was")
    except BaseException:
        for copy in copies:
            _kill(copy)
        raise
    return Copy(result)


def _clone(batch: Batch, flags: int, store: Cell | None = None) -> Call:
    """A child without exit signal, which ends by itself where nobody traces it."""
    words = Words((flags, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
    note = "copy-on-write child"
    return batch.call("clone3", words, _CLONE_ARGS_SIZE, note=note, store=store, child_ends=True)


def _drive(helper: int, registers: bytes, copies: list[int]) -> None:
    """Have the helper make the copy, and end; adds the copy, which is stopped, to ``copies``.

    It inherits the options of its tracing, and so dies with us from its first moment on.
    """
    try:
        faults.reached("the helper is born")
        tracing.wait(helper)
        tracing.request(tracing.SETOPTIONS, helper, 0, _OPTIONS)
        faults.reached("the helper dies with us")
        tracing.set_registers(helper, registers)
        faults.reached("the helper knows what to do")
        tracing.request(tracing.CONT, helper)
        event = tracing.wait(helper) >> 16
        if event != tracing.EVENT_CLONE:
            raise TargetError("the helper", f"stopped unexpectedly (event {event})")
        copy = tracing.event_message(helper)
        copies.append(copy)
        faults.reached("the copy is born")
        tracing.wait(copy)
        tracing.request(tracing.CONT, helper)
        faults.reached("the helper ends")
        _reap(helper)
    except tracing.Died:
        return  # it could not make one; the call says why
    except BaseException:
        _kill(helper)
        raise


def _kill(pid: int) -> None:
    """Kill a child that was made here, and wait until it is gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _reap(pid)


def _reap(pid: int) -> None:
    """Wait until it is gone."""
    status = ffi.new("int *")
    while lib.sk_wait(pid, 0, status) >= 0 and os.WIFSTOPPED(status[0]):
        pass
