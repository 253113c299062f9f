"""The agent in a stopped process: where it lies, how it runs a batch, how it leaves.

The agent is put there by single system calls at an existing system call instruction of the process
(two ``PTRACE_SYSCALL`` stops each), so no byte of its code is changed. Its mapping has one
executable page, which is never writable, and behind it a stack, cells, elements and data. A thread
that runs it has all signals blocked but the one by which the agent says that it is done.

In a process that is to live on, one thread at a time *holds* the agent: from then on it is on its
way back (``way_back``), also between two batches. Another one that is to run a batch takes it over,
and the first gets back its registers and its mask.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from snapkernel import _native, arch, faults, procfs
from snapkernel._native import ffi, lib
from snapkernel.arch import Architecture
from snapkernel.constants import WCLONE
from snapkernel.errors import BatchFailed, TargetError
from snapkernel.freeze import tracing
from snapkernel.freeze.batch import Batch, Cell
from snapkernel.freeze.layout import (
    CELLS,
    ELEMENTS,
    SIZE,
    UNIT,
    Laid,
    Place,
)
from snapkernel.freeze.target import Memory, Target
from snapkernel.freeze.way_back import Code, NoRoom, WayBack, quiet_signal

LIBEXEC = Path(_native.__file__).parent / "libexec"
PAGE = os.sysconf("SC_PAGESIZE")

_MOST_CODE = 8 << 20
_WORD = (1 << 64) - 1

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_FIXED_NOREPLACE = 2, 0x10, 0x20, 0x100000


@cache
def _code() -> bytes:
    return (LIBEXEC / "agent.bin").read_bytes()


def find_hole(areas: Sequence[tuple[int, int]], size: int, limit: int) -> int:
    """An address where ``size`` bytes are free in all of ``(start, end)``, with room around.

    Raises:
        TargetError: there is none.
    """
    room = 16 * UNIT
    low = 1 << 32 if limit > 1 << 32 else 16 * UNIT
    for start, end in [*sorted(areas), (limit, limit)]:
        if start - low >= size + 2 * room:
            return (low + room + UNIT - 1) // UNIT * UNIT
        low = max(low, end)
    raise TargetError("address space", f"has no free range of {size} bytes for the agent")


class Agent:
    """The agent in one process.

    Attributes:
        base: where it is mapped.
        born: threads and processes that batches made, as this host sees them; they are stopped.
        system_calls: how many were made.
        signal: by which it says that it is done.
    """

    def __init__(
        self,
        target: Target,
        base: int,
        *,
        live: bool,
        code: Code | None = None,
        stacks: Sequence[tuple[int, int]] = (),
        signal: int = signal.SIGTRAP,
    ) -> None:
        """
        Args:
            live: the process is to live on: its threads get back registers and masks.
            code: instructions for the way back; without them it is not protected.
            stacks: its mappings that may be stacks.
            signal: by which the agent says that it is done; in a living process another one, if
                there is one that nobody notices.
        """
        self.target = target
        self.architecture: Architecture = arch.native()
        self.base = base
        self.live = live
        self.born: list[int] = []
        self.system_calls = 0
        self.signal: int = signal
        # The frame that it returns through; its stack is below.
        size = self.architecture.frame_size(b"")
        self._frame = self.architecture.frame_place(base + CELLS, size)
        self._code = code
        self._stacks = stacks
        self._place = Place(target.memory, base, self.architecture.system_calls)
        self._site = 0
        self._ways: dict[int, WayBack | None] = {}
        self._holder = self._helper = 0
        self._blocking: set[int] = set()

    # --- coming and going ------------------------------------------------------------------------

    def install(self, site: int) -> None:
        """Map the agent, by means of the system call instruction at ``site``, or of ``code``."""
        self._site = site
        leader = self.target.leader
        if self.live and self._code is not None:
            quiet = quiet_signal(self.target.status, self.target.masks[leader])
            if quiet is not None:
                self.signal = quiet
                self._ways[leader] = self._lay_way(leader)
        self._holder = leader
        flags = MAP_PRIVATE | MAP_ANONYMOUS
        self._map(self.base, SIZE, PROT_READ | PROT_WRITE, flags | MAP_FIXED_NOREPLACE)
        try:
            self._map(self.base, UNIT, PROT_READ | PROT_EXEC, flags | MAP_FIXED)
            self.target.memory.write(self.base, _code())
            self._lead_back(leader)
            faults.reached("the agent is there")
        except BaseException:
            self.remove()
            raise

    def _map(self, address: int, length: int, protection: int, flags: int) -> None:
        result = self.raw("mmap", address, length, protection, flags, -1, 0)
        if result != address:
            if result >= 0:
                self.raw("munmap", result, length)
                result = -errno.EEXIST
            raise BatchFailed(
                f"process {self.target.pid}",
                f"cannot map the agent: {os.strerror(-result)}",
                -result,
            )

    def remove(self, site: int | None = None) -> None:
        """Unmap the agent. In a living process all threads have their own registers again."""
        self._site = site or self._site
        leader = self.target.leader
        self._hold(leader)
        if self._helper:  # something went wrong before it could be waited for
            self.raw("wait4", self._helper, 0, WCLONE, 0)
            self.buried()
        result = self.raw("munmap", self.base, SIZE, last=True)
        if result < 0:
            raise BatchFailed(f"process {self.target.pid}", "cannot unmap the agent", -result)
        if self._ways.get(leader) is not None:
            self._give_back(leader)
            self._erase(leader)  # last: the way led over these bytes

    def raw(self, name: str, *arguments: int, last: bool = False) -> int:
        """One system call of the leader, watched from entry to exit; ``last``: the agent is not
        mapped after it."""
        tid = self.target.leader
        way = self._ways.get(tid)
        if way is None:
            registers = self.for_call(name, *arguments)
        else:
            masked = tuple(argument & _WORD for argument in arguments)
            number = self.architecture.system_calls[name]
            registers = way.call(number, masked, self.target.registers[tid], last)
        after = self._execute(tid, registers, name, system_call=True)
        self.system_calls += 1
        return self.architecture.call_result(after)

    def for_call(self, name: str, *arguments: int) -> bytes:
        """Registers with which a thread that ends with us makes a system call at the site."""
        masked = tuple(argument & _WORD for argument in arguments)
        number = self.architecture.system_calls[name]
        registers = self.target.registers[self.target.leader]
        return self.architecture.for_call(registers, self._site, number, masked)

    # --- who holds it ----------------------------------------------------------------------------

    def _lay_way(self, tid: int) -> WayBack | None:
        """The way back of a thread; ``None`` where it cannot have one."""
        assert self._code is not None
        try:
            agent = self.base, SIZE
            maps = tid == self.target.leader
            return WayBack(self.target, tid, self._code, self._stacks, agent, maps=maps)
        except NoRoom:
            return None

    def _lead_back(self, tid: int) -> None:
        """Have the agent return to a thread's way back."""
        way = self._ways.get(tid)
        if way is not None:
            self.target.memory.write(self._frame, way.first_frame(self._frame))

    def _hold(self, tid: int) -> None:
        """Make a thread the one that takes the agent away when we die.

        For a moment there are two. That does no harm: neither needs the agent's pages for it, and
        to unmap what is not mapped is no error (munmap(2)).
        """
        before = self._ways.get(self._holder)
        if tid == self._holder or before is None:
            return
        faults.reached("another thread takes the agent over")
        tracing.set_registers(self._holder, before.parked)
        way = self._ways.get(tid) or self._lay_way(tid)
        if way is None:
            return
        self._ways[tid] = way
        faults.reached("a way back is laid")
        tracing.set_registers(tid, way.parked)
        faults.reached("two threads are on their way back")
        self._block(tid)
        faults.reached("both have their signals blocked")
        self._give_back(self._holder)
        if self._holder != self.target.leader:  # it is needed again
            self._erase(self._holder)
        self._lead_back(tid)
        self._holder = tid
        faults.reached("the agent was taken over")

    def _block(self, tid: int) -> None:
        tracing.set_signal_mask(tid, self._mask)
        self._blocking.add(tid)

    @property
    def _mask(self) -> int:
        return _WORD & ~(1 << self.signal - 1)

    def _give_back(self, tid: int) -> None:
        """Put a thread back where it was: its mask first, while its registers lead to both."""
        tracing.set_signal_mask(tid, self.target.masks[tid])
        self._blocking.discard(tid)
        faults.reached("a thread has its mask again")
        tracing.set_registers(tid, self.target.registers[tid])
        faults.reached("a thread has its registers again")

    def vector_regset(self, tid: int) -> bytes:
        """Of a thread that has run a batch just now."""
        way = self._ways.get(tid)
        return self.architecture.vector_regset(tid) if way is None else way.vector

    def erase_in(self, copy: Memory) -> None:
        """In a forked copy of the process, put back what the leader's way back has overwritten."""
        way = self._ways.get(self.target.leader)
        if way is not None:
            way.erase(copy)

    def _erase(self, tid: int) -> None:
        way = self._ways.pop(tid)
        assert way is not None
        way.erase()

    def end(self, status: int) -> None:
        """Have the process, which has one thread, end with a status as of waitpid(2)."""
        tid = self.target.leader
        if os.WIFSIGNALED(status):
            tracing.set_signal_mask(tid, 0)
            os.kill(self.target.pid, os.WTERMSIG(status))
        else:
            call = self.architecture.system_calls["exit_group"]
            words = (os.WEXITSTATUS(status), 0, 0, 0, 0, 0)
            registers = self.target.registers[tid]
            site = self.base + _code().index(self.architecture.system_call_instruction)
            registers = self.architecture.for_call(registers, site, call, words)
            tracing.set_registers(tid, registers)
        tracing.request(tracing.CONT, tid)
        found = ffi.new("int *")
        while lib.sk_wait(tid, 0, found) >= 0 and os.WIFSTOPPED(found[0]):
            signalled = 0 if found[0] >> 16 else os.WSTOPSIG(found[0])
            tracing.request(tracing.CONT, tid, 0, signalled)
        self.target.memory.close()

    def _execute(
        self,
        tid: int,
        registers: bytes | None,
        what: str,
        *,
        system_call: bool = False,
        until_birth: bool = False,
        room: int = 1,
    ) -> bytes:
        """Let a thread run with these registers, or from where it is, until it has done its errand;
        the registers that it had then. At most ``room`` children may be born."""
        target = self.target
        before, protected = target.registers[tid], self._ways.get(tid) is not None
        blocks = self.live and tid not in self._blocking
        count = 3 + blocks + 2 * system_call
        # Who is on an errand already is waited for.
        instant = faults.instants(what, count, may_fail=registers is not None)
        after = ffi.new("uint8_t[]", len(before))
        born = ffi.new("int[]", room)
        run_from, before_from = ffi.from_buffer(registers or before), ffi.from_buffer(before)
        execution = ffi.new(
            "struct sk_execution *",
            {
                "system_call": system_call,
                "end": self.signal,
                "until_birth": until_birth,
                "go_on": registers is None,
                "blocks": blocks,
                "put_back": self.live and not protected,
                "fault": instant,
                "block": self._mask,
                "mask": target.masks.get(tid, 0),
                "run": ffi.cast("uint8_t *", run_from),
                "before": ffi.cast("uint8_t *", before_from),
                "size": len(before),
                "after": after,
                "born": born,
                "room": room,
            },
        )
        if protected:
            self._blocking.add(tid)
        result = lib.sk_execute(tid, execution)
        self.born += ffi.unpack(born, execution.births)
        if execution.stopped:
            target.stop_again = True
        if result == -errno.EPROTO:
            raise TargetError(
                f"thread {tid}",
                f"stopped unexpectedly (status {execution.status:#x}) inside the agent",
            )
        tracing.check(result, tid, "running the agent")
        return bytes(ffi.buffer(after))

    # --- batches ---------------------------------------------------------------------------------

    def run(self, batch: Batch, tid: int | None = None) -> None:
        """Make the calls of a batch in one thread (the leader by default).

        Raises:
            BatchFailed: a checked call failed; it names the call's note and the kernel's answer.
        """
        calls = batch.calls
        tid = self.target.leader if tid is None else tid
        self._hold(tid)
        while calls:
            laid = Laid(self._place, calls)
            if not laid.calls:
                reason = "has a call with more data than the agent holds"
                raise TargetError(f"batch {batch.title!r}", reason)
            laid.write(self.signal)
            self._run_agent(tid, laid, batch.title)
            self.system_calls += laid.collect(batch.title)
            calls = calls[len(laid.calls) :]

    def bear(self, batch: Batch) -> tuple[int, int]:
        """Run the first call of a batch in the leader, which makes a helper in the same address
        space; the rest is what the leader does by itself when we die.

        Returns:
            The helper's pid on this host, and as the process sees it. Until :meth:`buried` it is
            waited for on the way back.

        Raises:
            BatchFailed: no helper could be had.
        """
        tid = self.target.leader
        self._hold(tid)
        laid = Laid(self._place, batch.calls)
        laid.write(self.signal)
        self.born.clear()
        self._execute(tid, self._agent_registers(tid), batch.title, until_birth=True)
        if not self.born:
            laid.ended()
            laid.collect(batch.title)
            raise TargetError(f"process {self.target.pid}", "the new child was not reported")
        helper = self.born.pop()
        faults.reached("the helper is born", may_fail=False)
        tracing.request(tracing.SYSCALL, tid)
        if os.WSTOPSIG(status := tracing.wait(tid)) != tracing.SYSTEM_CALL:
            raise TargetError(f"thread {tid}", f"stopped unexpectedly (status {status:#x})")
        inner = self.architecture.call_result(tracing.get_registers(tid))
        self._helper = inner
        way = self._ways.get(tid)
        if way is None:
            tracing.set_signal_mask(tid, self.target.masks[tid])
            tracing.set_registers(tid, self.target.registers[tid])
        else:
            number = self.architecture.system_calls["wait4"]
            way.first_of_all(number, (inner, 0, WCLONE, 0), self.target.registers[tid])
            tracing.set_registers(tid, way.parked)
            self._lead_back(tid)
        return helper, inner

    def buried(self) -> None:
        """There is no helper any more."""
        self._helper = 0
        leader = self.target.leader
        way = self._ways.get(leader)
        if way is not None:
            way.nothing_else(self.target.registers[leader])
            self._lead_back(leader)

    def value(self, cell: Cell) -> int:
        """What a cell holds."""
        return int.from_bytes(self.target.memory.read(self._place.cell(cell), 4), sys.byteorder)

    def _agent_registers(self, tid: int) -> bytes:
        own, way = self.target.registers[tid], self._ways.get(tid)
        back = None if way is None else way.through(self._frame)
        stack, batch = self._frame & -64, self.base + ELEMENTS
        return self.architecture.for_agent(own, self.base, stack, batch, back)

    def _run_agent(self, tid: int, laid: Laid, title: str) -> None:
        """Let a thread run until the agent says that it is done."""
        registers: bytes | None = self._agent_registers(tid)
        while True:
            after = self._execute(tid, registers, title, room=len(laid.calls))
            at = self.architecture.program_counter(after)
            if not self.base < at <= self.base + len(_code()):
                raise TargetError(f"thread {tid}", f"stopped at {at:#x}, outside the agent")
            if laid.ended():
                return
            registers = None  # somebody else has sent the signal, which nobody notices


def call_site(memory: Memory, areas: Sequence[procfs.Area]) -> int:
    """The address of a system call instruction: in the vdso, or in any other code of the process.

    Raises:
        TargetError: there is none.
    """
    instruction = arch.native().system_call_instruction
    code = [area for area in areas if area.protection & PROT_EXEC and area.name != "[vsyscall]"]
    for area in sorted(code, key=lambda area: (area.name != "[vdso]", area.end - area.start)):
        text = memory.read(area.start, min(area.end - area.start, _MOST_CODE))
        at = text.find(instruction)
        if at >= 0:
            return area.start + at
    raise TargetError(f"process {memory.pid}", "has no system call instruction to borrow")
