"""The hidden copy: a forked child of the frozen process, from which its memory is read while the
process itself goes on.

The application must not notice it. The process clones a helper that shares its memory (so page
tables are copied once), the helper forks the copy and ends, and the process waits for the helper.
Both are made with exit signal 0: no SIGCHLD, and invisible to a wait(2) that does not ask for
such children by ``__WCLONE`` (clone(2)). The copy belongs to whoever reaps orphans.

The copy never runs a program: it stays stopped, its descriptors are closed at once, so that no
peer is kept waiting for an end of file and no port stays bound, and it dies with its tracer. So
does the helper; before its tracer could tell the kernel so, it ends by itself. On its way back
(``way_back``) the process waits for it.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from snapkernel import faults
from snapkernel._native import ffi, lib
from snapkernel.constants import CLONE_FILES, CLONE_FS, CLONE_VM, WCLONE
from snapkernel.errors import BatchFailed, SnapkernelError
from snapkernel.freeze import tracing
from snapkernel.freeze.agent import Agent
from snapkernel.freeze.batch import Argument, Batch, Cell, Words
from snapkernel.freeze.layout import SIZE, STACK, UNIT
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


class Fork:
    """A copy in the making: the kernel copies page tables while the caller does something else.

    Either :meth:`finish` or :meth:`abandon` must be called, once.
    """

    def __init__(self, target: Target, agent: Agent) -> None:
        """Begin.

        Raises:
            SnapkernelError: the kernel does not give us a child (limits on processes or memory).
                The process is as it was.
        """
        self._target, self._agent = target, agent
        self._helper, self._inner, self._call = _helper(agent)
        try:
            faults.reached("the helper is waited for")
            tracing.wait(self._helper)
            tracing.request(tracing.SETOPTIONS, self._helper, 0, _OPTIONS)
            faults.reached("the helper dies with us")
            self._begin()
            faults.reached("the helper makes the copy")
        except BaseException:
            self._end_helper()
            raise

    def _begin(self) -> None:
        """Send the helper into its clone3(2), or clone(2)."""
        arguments = self._agent.base + SIZE - _CLONE_ARGS_SIZE
        self._target.memory.write(arguments, bytes(_CLONE_ARGS_SIZE))
        words = (arguments, _CLONE_ARGS_SIZE) if self._call == "clone3" else (0, 0, 0, 0, 0)
        registers = self._agent.for_call(self._call, *words)
        tracing.set_registers(self._helper, registers)
        self._go_on()  # to the entry of the call
        tracing.request(tracing.SYSCALL, self._helper)

    def _go_on(self) -> int:
        """Until the next stop that is of the system call: 0, or the event of a birth."""
        while True:
            tracing.request(tracing.SYSCALL, self._helper)
            event = self._stop()
            if event is not None:
                return event

    def _stop(self) -> int | None:
        status = tracing.wait(self._helper)
        event = status >> 16
        if event in (tracing.EVENT_FORK, tracing.EVENT_CLONE):
            return event
        return 0 if os.WSTOPSIG(status) == tracing.SYSTEM_CALL else None

    def finish(self) -> Copy:
        """Wait for the copy.

        Raises:
            SnapkernelError: there is none. The process is as it was.
        """
        try:
            event = self._stop()
            while event is None:
                event = self._go_on()
            if event == 0:
                registers = tracing.get_registers(self._helper)
                number = -self._agent.architecture.call_result(registers)
                object = f"process {self._target.pid}"
                raise BatchFailed(object, f"{self._call}: {os.strerror(number)}", number)
            copy = tracing.event_message(self._helper)
            faults.reached("the copy is born", may_fail=False)
            tracing.wait(copy)
        finally:
            self._end_helper()
        try:
            faults.reached("the copy stands still")
            # Killed rather than the user's kernel when memory runs short.
            with suppress(OSError), open(f"/proc/{copy}/oom_score_adj", "w") as file:
                file.write("1000")
            result = Target(copy, [copy])
            close = Batch("close the copy's descriptors")
            close.call("close_range", 0, 0xFFFFFFFF, 0)
            result.registers[copy] = self._target.registers[self._target.leader]
            Agent(result, self._agent.base, live=False, signal=self._agent.signal).run(close)
            self._agent.erase_in(result.memory)
            faults.reached("the copy is as the process was")
        except BaseException:
            _kill(copy)
            raise
        return Copy(result)

    def abandon(self) -> None:
        """End it, as far as it has come."""
        with suppress(SnapkernelError):
            self.finish().end()

    def _end_helper(self) -> None:
        """End the helper and have the process take its exit status."""
        _kill(self._helper)
        faults.reached("the helper is dead", may_fail=False)
        batch = Batch("take the helper's exit status")
        batch.call("wait4", self._inner, 0, WCLONE, 0, check=False)
        self._agent.run(batch)
        if batch.calls[0].result != self._inner:
            object = f"process {self._target.pid}"
            raise SnapkernelError(object, f"its helper was not reaped: {batch.calls[0]}")
        self._agent.buried()


def _helper(agent: Agent) -> tuple[int, int, str]:
    """A child that shares the memory: its pid on this host, and as the process sees it; the system
    call that makes children here. It is traced from birth, and the options of that are inherited
    by its own child (ptrace(2)).

    It has another stack, so that both can run on if we die.
    """
    flags, stack = CLONE_VM | CLONE_FS | CLONE_FILES, agent.base + STACK
    words = Words((flags, 0, 0, 0, 0, stack, UNIT // 2, 0, 0, 0, 0))
    try:
        return *_bear(agent, "clone3", words, _CLONE_ARGS_SIZE), "clone3"
    except BatchFailed as error:
        if error.errno != errno.ENOSYS:
            raise
    # Containers forbid clone3, whose flags a seccomp filter cannot see, and not clone.
    return *_bear(agent, "clone", flags, stack + UNIT // 2, 0, 0, 0), "clone"


def _bear(agent: Agent, call: str, *arguments: Argument) -> tuple[int, int]:
    batch = Batch("make a helper that shares the memory")
    inner = Cell("helper")
    note = "copy-on-write child"
    batch.call(call, *arguments, note=note, store=inner, child_ends=True)
    batch.call("wait4", inner, 0, WCLONE, 0)
    return agent.bear(batch)


def _kill(pid: int) -> None:
    """Kill a child that was made here, and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    status = ffi.new("int *")
    while lib.sk_wait(pid, 0, status) >= 0 and os.WIFSTOPPED(status[0]):
        pass
