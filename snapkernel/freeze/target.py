"""A stopped process: seize, look, touch, and put everything back.

:func:`freeze` stops every thread and, whatever happens, gives the process its life back::

    with freeze(pid) as target:
        registers = target.registers[target.leader]

Facts relied on: ``PTRACE_SEIZE`` does not stop; ``PTRACE_INTERRUPT`` does, with
``PTRACE_EVENT_STOP`` (ptrace(2), Linux 3.4). A thread may show another stop first, and must get
its signal. A process that was stopped by a signal goes back to that stop when it is detached.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property

from snapkernel import arch, faults, procfs, seccomp, yama
from snapkernel._native import ffi, lib
from snapkernel.errors import SnapkernelError, TargetError
from snapkernel.freeze import tracing

O_LIVE = tracing.O_TRACESYSGOOD | tracing.O_TRACEFORK | tracing.O_TRACECLONE


class Memory:
    """The memory of a process that stands still; a source of runs for the store."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go of the memory."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, address: int, length: int) -> bytes:
        """Bytes, readable to the process itself or not.

        Raises:
            OSError: nothing is mapped there.
        """
        return os.pread(self._fd, length, address)

    def write(self, address: int, data: bytes) -> None:
        """Write, writable to the process itself or not."""
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], address + done)

    def read_into(self, runs: Sequence[tuple[int, int]], buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes of ``(address, length)`` runs.

        Raises:
            TargetError: a page cannot be read; never are zeros given instead.
        """
        words, failed = _words(runs), ffi.new("uint64_t *")
        data = ffi.from_buffer("uint8_t[]", buffer)
        result = lib.sk_read_runs(self._fd, words, len(runs), data, failed)
        self._check(result, failed[0], "read")

    def write_runs(self, runs: Sequence[tuple[int, int]], buffer: memoryview) -> None:
        """The reverse."""
        words, failed = _words(runs), ffi.new("uint64_t *")
        data = ffi.from_buffer("uint8_t[]", buffer)
        result = lib.sk_write_runs(self.pid, self._fd, words, len(runs), data, failed)
        self._check(result, failed[0], "written")

    def write_changed(self, runs: Sequence[tuple[int, int]], buffer: memoryview) -> None:
        """The same, for those pages only that differ: the others stay shared with relatives."""
        words, failed = _words(runs), ffi.new("uint64_t *")
        data = ffi.from_buffer("uint8_t[]", buffer)
        result = lib.sk_write_changed(self.pid, self._fd, words, len(runs), data, failed)
        self._check(result, failed[0], "written")

    def _check(self, result: int, address: int, verb: str) -> None:
        if result < 0:
            raise TargetError(
                f"memory at {address:#x} of process {self.pid}",
                f"cannot be {verb}: {os.strerror(-result)}",
            )


def _words(runs: Sequence[tuple[int, int]]) -> object:
    words: object = ffi.new("uint64_t[]", [word for run in runs for word in run])
    return words


class Target:
    """A process whose threads are all stopped by us.

    Attributes:
        pid: on this host.
        tids: of all threads on this host, the leader first.
        registers: of each thread, exactly as it was stopped.
        masks: signal mask of each thread.
        stopped: signal of the group stop that it was in, or 0.
        memory: its memory.
    """

    def __init__(self, pid: int, tids: list[int], stopped: int = 0) -> None:
        self.pid = pid
        self.tids = tids
        self.stopped = stopped
        self.registers = {tid: _unnoticed(tid) for tid in tids}
        self.masks = {tid: tracing.get_signal_mask(tid) for tid in tids}
        self.memory = Memory(pid)
        self.stop_again = False

    @cached_property
    def status(self) -> Mapping[str, str]:
        """``/proc/PID/status`` as it was when it was first asked for."""
        return procfs.status(self.pid)

    @property
    def leader(self) -> int:
        """Thread id of the main thread."""
        return self.pid

    def put_back(self, tid: int) -> None:
        """Give a thread its registers and signal mask again."""
        tracing.set_registers(tid, self.registers[tid])
        tracing.set_signal_mask(tid, self.masks[tid])

    def release(self) -> None:
        """Let all threads go on. Those that ended meanwhile are no error."""
        if self.stop_again and not self._will_continue():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGSTOP)
        _let_go(self.tids)
        self.memory.close()
        faults.reached("a process goes on", may_fail=False)

    def _will_continue(self) -> bool:
        """A SIGCONT has come after the SIGSTOP that was held back."""
        with suppress(TargetError, KeyError):
            pending = int(procfs.status(self.pid)["ShdPnd"], 16)
            return bool(pending >> signal.SIGCONT - 1 & 1)
        return False

    def begin_to_kill(self) -> None:
        """End the process."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        faults.reached("a process is killed", may_fail=False)

    def kill(self) -> None:
        """End the process and wait until it is gone."""
        self.begin_to_kill()
        for tid in [*self.tids[1:], self.pid]:
            status = ffi.new("int *")
            while lib.sk_wait(tid, 0, status) >= 0 and os.WIFSTOPPED(status[0]):
                pass
        self.memory.close()


def _unnoticed(tid: int) -> bytes:
    """The registers of a thread, corrected for system calls that notice a mere stop."""
    stopped = tracing.get_registers(tid)
    registers = arch.native().unnoticed(stopped)
    if registers != stopped:
        tracing.set_registers(tid, registers)
    return registers


@contextmanager
def freeze(pid: int) -> Iterator[Target]:
    """Stop every thread of a process for the time of the block.

    Raises:
        TargetError: it does not exist, is traced by another process, or may not be traced.
    """
    tids, stopped = _seize_all(pid)
    try:
        faults.reached("all threads stand still")
        target = Target(pid, tids, stopped)
        faults.reached("interrupted system calls are to be made again")
    except BaseException:
        _let_go(tids)
        raise
    try:
        yield target
    finally:
        target.release()


def _seize_all(pid: int) -> tuple[list[int], int]:
    """Seize and stop threads until no new one appears: a running thread may start others."""
    seized: list[int] = []
    gone: set[int] = set()
    stopped = 0
    try:
        while new := [t for t in procfs.tids(pid) if t not in seized and t not in gone]:
            began = []
            for tid in new:
                if _seize(tid, pid):
                    seized.append(tid)  # before anything else: from now on it must be let go
                    began.append(tid)
                    faults.reached("a thread is seized")
            for tid in began:
                stop = _await_stop(tid)
                if stop is None:
                    seized.remove(tid)
                    gone.add(tid)
                else:
                    stopped = stopped or stop
                    faults.reached("a thread stands still")
        if pid not in seized:
            raise TargetError(f"process {pid}", "its main thread has ended")
        for tid in seized:
            # Not when seizing: a thread that is born traced could not be told from a new one.
            tracing.request(tracing.SETOPTIONS, tid, 0, O_LIVE)
    except BaseException as error:
        _let_go(seized)
        if isinstance(error, FileNotFoundError):
            raise TargetError(f"process {pid}", "there is no such process") from None
        raise
    return sorted(seized, key=lambda tid: (tid != pid, tid)), stopped


def _let_go(tids: Sequence[int]) -> None:
    """Detach threads. Those that have ended, or are about to, are waited for: they would stay
    zombies as long as we live, and their process with them."""
    not_stopped = []
    for tid in tids:
        faults.reached("a thread is let go", may_fail=False)
        try:
            tracing.request(tracing.DETACH, tid)
        except TargetError:
            not_stopped.append(tid)
    for tid in reversed(not_stopped):  # the main thread's end is told when all others have ended
        _let_go_later(tid)


def _let_go_later(tid: int) -> None:
    """Wait for the end of a thread, or for its next stop if it runs, and detach it then."""
    lib.sk_ptrace(tracing.INTERRUPT, tid, 0, 0)
    status = ffi.new("int *")
    while lib.sk_wait(tid, 0, status) >= 0 and os.WIFSTOPPED(status[0]):
        event = status[0] >> 16
        if lib.sk_ptrace(tracing.DETACH, tid, 0, 0 if event else os.WSTOPSIG(status[0])) >= 0:
            return


def _seize(tid: int, pid: int) -> bool:
    """Start tracing a thread; false when it ended before."""
    result = lib.sk_ptrace(tracing.SEIZE, tid, 0, tracing.O_TRACESYSGOOD)
    if result == -errno.ESRCH and tid != pid:
        return False
    if result < 0:
        raise why_not(pid, -result)
    return True


def _await_stop(tid: int) -> int | None:
    """Have a thread stop; the signal of a group stop that it is in, else 0, or ``None`` when it
    ended. A stop for another reason may swallow the request, so it is made again.

    The status of another stop is only looked at: a signal whose delivery was reported, and asked
    for, would be lost if we were killed before we could pass it on.
    """
    try:
        while True:
            tracing.request(tracing.INTERRUPT, tid)
            status = tracing.look(tid)
            stop_signal = os.WSTOPSIG(status)
            event = status >> 16
            if event == tracing.EVENT_STOP:
                tracing.wait(tid)
                return stop_signal if stop_signal != signal.SIGTRAP else 0
            faults.reached("a thread is about to get a signal")
            tracing.request(tracing.CONT, tid, 0, 0 if event else stop_signal)
    except tracing.Died:
        return None


def why_not(pid: int, number: int) -> SnapkernelError:
    """The error that explains why a process cannot be traced."""
    subject = f"process {pid}"
    try:
        status = procfs.status(pid)
    except TargetError as error:
        return error
    tracer = int(status.get("TracerPid", "0"))
    if tracer:
        return TargetError(
            subject,
            f"is traced by process {tracer}",
            "detach that debugger or tracer, then try again",
        )
    if status["State"].startswith("Z"):
        return TargetError(subject, "has ended; its parent has not yet asked for its status")
    if "VmSize" not in status:
        return TargetError(subject, "is a thread of the kernel, not a process")
    uid = int(status["Uid"].split()[0])
    if os.geteuid() not in (0, uid):
        return TargetError(
            subject, f"belongs to user {uid}", "take the snapshot as that user, or as root"
        )
    if scope := yama.forbids(pid):
        reason = f"may not be traced: kernel.yama.ptrace_scope is {scope}"
        return TargetError(subject, reason, yama.REMEDIES.get(scope, ""))
    remedy = seccomp.REMEDY if seccomp.is_filtered() else ""
    return TargetError(subject, f"cannot be traced: {os.strerror(number)}", remedy)
