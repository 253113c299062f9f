"""ptrace(2), as much of it as a freezer needs.

All calls about a tracee must come from the thread that seized it. Numbers are those of
<linux/ptrace.h>, equal on all architectures.
"""

from __future__ import annotations

import os
import signal

from snapkernel._native import ffi, lib
from snapkernel.errors import TargetError
from snapkernel.model import PendingSignal, RestartableSequence

CONT, KILL, DETACH, SYSCALL = 7, 8, 17, 24
SETOPTIONS, SEIZE, INTERRUPT = 0x4200, 0x4206, 0x4207
NT_PRSTATUS = 1

O_TRACESYSGOOD, O_TRACEFORK, O_TRACECLONE, O_TRACEEXEC = 1, 2, 8, 16
O_EXITKILL = 1 << 20
EVENT_FORK, EVENT_VFORK, EVENT_CLONE, EVENT_EXEC, EVENT_STOP = 1, 2, 3, 4, 128

SYSTEM_CALL = signal.SIGTRAP | 0x80
"""The signal of a stop at a system call, with O_TRACESYSGOOD."""
BLOCK_ALL = (1 << 64) - 1 & ~(1 << signal.SIGTRAP - 1)
"""All signals but SIGTRAP, by which the agent in a stub says that it is done."""

SIGINFO_SIZE = 128


class Died(TargetError):
    """A thread ended while it was traced."""


def check(result: int, tid: int, what: str) -> int:
    """The result of a native call.

    Raises:
        Died: the thread is gone, or is not stopped any more.
        TargetError: anything else.
    """
    if result >= 0:
        return result
    kind = Died if result == -3 else TargetError  # ESRCH
    raise kind(f"thread {tid}", f"{what} failed: {os.strerror(-result)}")


def request(what: int, tid: int, address: int = 0, data: int = 0) -> int:
    """One ptrace request without a result of its own."""
    return check(lib.sk_ptrace(what, tid, address, data), tid, f"ptrace request {what:#x}")


def wait(tid: int) -> int:
    """The status of the next stop of a thread, as of waitpid(2).

    Raises:
        Died: it ended instead.
    """
    status = ffi.new("int *")
    result = lib.sk_wait(tid, 0, status)
    if result < 0:
        raise Died(f"thread {tid}", f"cannot be waited for: {os.strerror(-result)}")
    if not os.WIFSTOPPED(status[0]):
        raise Died(f"thread {tid}", "ended while it was frozen")
    return int(status[0])


def look(tid: int) -> int:
    """The same, and the next :func:`wait` tells it again: as long as nobody has asked for it, the
    kernel delivers a signal that was stopped at when the tracer dies (kernel/signal.c,
    ptrace_signal)."""
    status = ffi.new("int *")
    result = lib.sk_look(tid, status)
    if result < 0:
        raise Died(f"thread {tid}", f"cannot be waited for: {os.strerror(-result)}")
    return int(status[0]) if result > 0 else wait(tid)


def event_message(tid: int) -> int:
    """What a thread's last event was about: the pid of a new child, on this host."""
    message = ffi.new("uint64_t *")
    check(lib.sk_event_message(tid, message), tid, "reading the message of an event")
    return int(message[0])


def get_registers(tid: int) -> bytes:
    """The general registers."""
    area = ffi.new("uint8_t[]", 1024)
    length = check(lib.sk_get_regset(tid, NT_PRSTATUS, area, 1024), tid, "reading registers")
    return bytes(ffi.buffer(area, length))


def set_registers(tid: int, registers: bytes) -> None:
    """Replace the general registers."""
    result = lib.sk_set_regset(tid, NT_PRSTATUS, registers, len(registers))
    check(result, tid, "setting registers")


def get_signal_mask(tid: int) -> int:
    """The blocked signals."""
    mask = ffi.new("uint64_t *")
    check(lib.sk_get_signal_mask(tid, mask), tid, "reading the signal mask")
    return int(mask[0])


def set_signal_mask(tid: int, mask: int) -> None:
    """Replace the blocked signals."""
    check(lib.sk_set_signal_mask(tid, mask), tid, "setting the signal mask")


def pending_signals(tid: int, *, shared: bool) -> tuple[PendingSignal, ...]:
    """The queue of the thread, or of its process."""
    found: list[PendingSignal] = []
    infos = ffi.new("uint8_t[]", 64 * SIGINFO_SIZE)
    while True:
        count = lib.sk_peek_signals(tid, int(shared), len(found), infos, 64)
        check(count, tid, "reading pending signals")
        raw = bytes(ffi.buffer(infos, count * SIGINFO_SIZE))
        for at in range(0, len(raw), SIGINFO_SIZE):
            info = raw[at : at + SIGINFO_SIZE]
            number = int(ffi.cast("int *", ffi.from_buffer(info))[0])
            found.append(PendingSignal(signal=number, info=info))
        if count < 64:
            return tuple(found)


def rseq(tid: int) -> RestartableSequence | None:
    """The thread's rseq registration (Linux 5.13; none where the kernel has no rseq)."""
    words = ffi.new("uint64_t[4]")
    result = lib.sk_get_rseq(tid, words)
    if result == -5:  # EIO: an older kernel, or one without CONFIG_RSEQ
        return None
    check(result, tid, "reading the rseq registration")
    address, size, signature, flags = (int(word) for word in words)
    if not address:
        return None
    return RestartableSequence(address=address, size=size, signature=signature, flags=flags)


def robust_list(tid: int) -> tuple[int, int]:
    """Head and length of the robust futex list (get_robust_list(2))."""
    words = ffi.new("uint64_t[2]")
    check(lib.sk_robust_list(tid, words), tid, "reading the robust futex list")
    return int(words[0]), int(words[1])
