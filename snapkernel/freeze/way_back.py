"""The way back: what a borrowed thread does by itself when its tracer dies.

ptrace(2) lets threads go when their tracer ends, for whatever reason, and they run on with the
registers that they have at this moment. So at every moment these must lead back to where the thread
was stopped, and take the agent's pages away. A thread that makes system calls for us does so with a
*signal frame* on its own stack, below what belongs to its functions, where the kernel would put one
to run a signal handler; and the system call instruction that it borrows is followed by a return.
The return leads to the C library's call of rt_sigreturn(2), and that to the registers, the signal
mask and the vector state of the frame::

    agent (in its page)  --return-->  frame 1: munmap(agent), return  -->  frame 2: where it was

Frame 2 is on the thread's stack; the frame 1 that the agent returns to is in its own mapping, and
another one, for the calls that map the agent, on the stack of the main thread. While the agent is
not running, its thread is somewhere on that way. Whoever puts the thread back in the orderly manner
also puts back the bytes that the frames have overwritten.

On the way back a system call that the stop has interrupted is made again. It begins anew, with its
whole timeout, since rt_sigreturn makes the kernel forget how far it was.

A thread without room on its stack, and a process without these instructions, are not protected.
"""

from __future__ import annotations

import signal
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from snapkernel import arch, procfs
from snapkernel.constants import PROT_EXEC
from snapkernel.freeze.target import Memory, Target

_MOST_CODE = 8 << 20
_LIBRARIES = ("/libc.", "/libc-", "/ld-musl-")
# Signals that nobody notices who has no handler for them (signal(7)).
_QUIET = (signal.SIGURG, signal.SIGWINCH, signal.SIGCHLD)
_NEVER = {
    signal.SIGKILL,
    signal.SIGSTOP,
    signal.SIGCONT,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
}


@dataclass(frozen=True)
class Code:
    """Instructions that a process has, by their addresses.

    Attributes:
        call: makes a system call, and returns.
        signal_return: makes rt_sigreturn(2).
    """

    call: int
    signal_return: int


def find_code(memory: Memory, areas: Sequence[procfs.Area]) -> Code | None:
    """Look for the instructions in the code of a process, first in its C library."""
    architecture = arch.native()
    call = back = 0
    code = [area for area in areas if area.protection & PROT_EXEC and area.name != "[vsyscall]"]
    code.sort(key=lambda area: not any(name in area.name for name in _LIBRARIES))
    for area in code:
        text = memory.read(area.start, min(area.end - area.start, _MOST_CODE))
        if not call and (at := text.find(architecture.call_and_return)) >= 0:
            call = area.start + at
        for instructions in architecture.signal_return:
            if not back and (at := text.find(instructions)) >= 0:
                back = area.start + at
        if call and back:
            return Code(call, back)
    return None


def is_there(memory: Memory, code: Code) -> bool:
    """Whether the instructions are still where they were found."""
    architecture = arch.native()
    there = architecture.signal_return
    try:
        return _read(
            memory, code.call, architecture.call_and_return
        ) == architecture.call_and_return and any(
            _read(memory, code.signal_return, known) == known for known in there
        )
    except OSError:
        return False


def writable(areas: Sequence[procfs.Area]) -> list[tuple[int, int]]:
    """``(start, end)`` of the mappings that may be a stack, ascending."""
    rights = ("rw-p", "rwxp")
    return [(area.start, area.end) for area in areas if area.permissions in rights]


def _read(memory: Memory, address: int, like: bytes) -> bytes:
    return memory.read(address, len(like))


def quiet_signal(status: Mapping[str, str], mask: int) -> int | None:
    """A signal that a thread may send itself, with or without a tracer, and nothing happens.

    Args:
        status: of the process (``/proc/PID/status``).
        mask: of the main thread: what it blocks could be kept for it.
    """
    caught, ignored = int(status["SigCgt"], 16), int(status["SigIgn"], 16)
    taken = caught | mask | int(status["ShdPnd"], 16) | int(status["SigPnd"], 16)
    some = [number for number in range(1, 32) if ignored >> number - 1 & 1 and number not in _NEVER]
    for number in (*_QUIET, *some):
        if not taken >> number - 1 & 1:
            return number
    return None


class WayBack:
    """The frames of one thread.

    Attributes:
        address: of the first of them.
        original: of the last one, which gives the thread what it had.
        vector: the thread's vector regset.
        former: the bytes that the frames have overwritten.
        parked: registers with which the thread is on its way back.
    """

    def __init__(
        self,
        target: Target,
        tid: int,
        code: Code,
        stacks: Sequence[tuple[int, int]],
        agent: tuple[int, int],
        *,
        maps: bool,
    ) -> None:
        """Lay the frames down; the thread's registers are not touched.

        Args:
            stacks: what :func:`writable` has found.
            agent: start and length of its mapping.
            maps: the thread is to map the agent.

        Raises:
            NoRoom: the thread's stack ends too early.
        """
        architecture = self._architecture = arch.native()
        self._code, self._tid, self._memory = code, tid, target.memory
        own, mask = target.registers[tid], target.masks[tid]
        state = self.vector = architecture.vector_regset(tid)
        top = architecture.free_stack(own)
        self.original = architecture.frame_place(top, architecture.frame_size(state))
        self.address = self.original
        if maps:
            self.address = architecture.frame_place(self.original, architecture.frame_size(b""))
        at = bisect_right(stacks, (self.address, top))
        if not at or stacks[at - 1][1] < top:
            raise NoRoom
        back = architecture.resumed(own, target.memory.read)
        self._agent = agent
        self.nothing_else(own)
        frames = b""
        if maps:
            first = self.first_frame(self.address)
            frames = first.ljust(self.original - self.address, b"\0")
        frames += architecture.signal_frame(back, mask, state, self.original, code.signal_return)
        try:
            self.former = target.memory.read(self.address, len(frames))
            target.memory.write(self.address, frames)
        except OSError:  # a guard page (madvise(2), MADV_GUARD_INSTALL)
            raise NoRoom from None

    def nothing_else(self, own: bytes) -> None:
        """The way begins with the agent's removal, for a thread with these registers."""
        number = self._architecture.system_calls["munmap"]
        back = self.original, self._code.signal_return
        self.parked = self._architecture.for_call(own, self._code.call, number, self._agent, back)

    def first_of_all(self, number: int, arguments: tuple[int, ...], own: bytes) -> None:
        """The way begins with another system call; only that of the thread that maps the agent."""
        self.parked = self.call(number, arguments, own, last=False)

    def first_frame(self, address: int) -> bytes:
        """The frame through which the agent returns, to be put at ``address``. All signals stay
        blocked on the way."""
        every = (1 << 64) - 1
        return self._architecture.signal_frame(
            self.parked, every, b"", address, self._code.signal_return
        )

    def call(self, number: int, arguments: tuple[int, ...], registers: bytes, last: bool) -> bytes:
        """Registers that make a system call, and then lead back; ``last``: the agent is not mapped
        after it."""
        frame = self.original if last else self.address
        back = frame, self._code.signal_return
        return self._architecture.for_call(registers, self._code.call, number, arguments, back)

    def through(self, frame: int) -> arch.Back:
        """How to return through a frame that was made by :meth:`first_frame`."""
        return frame, self._code.signal_return

    def erase(self, memory: Memory | None = None) -> None:
        """Put back what was there before, in the process or in a copy of it."""
        (memory or self._memory).write(self.address, self.former)


class NoRoom(Exception):
    """A thread's stack has no room for a signal frame."""
