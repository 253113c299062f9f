"""The agent in a stopped process: where it lies, how it runs a batch, how it leaves.

The agent is put there by single system calls at an existing system call instruction of the
process's vdso (two ``PTRACE_SYSCALL`` stops each), so no byte of the process is changed. Its
mapping has one executable page, which is never writable, and behind it a stack, cells, elements
and data. While a batch runs, its thread has all signals but SIGTRAP blocked; afterwards it gets
its registers and its mask back, so that the process lives on if the tracer dies between two.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from snapkernel import _native, arch, procfs
from snapkernel._native import ffi, lib
from snapkernel.arch import Architecture
from snapkernel.errors import BatchFailed, TargetError
from snapkernel.freeze import tracing
from snapkernel.freeze.batch import AddressOf, Argument, Batch, Call, Cell, Space, Words
from snapkernel.freeze.target import Memory, Target

LIBEXEC = Path(_native.__file__).parent / "libexec"
PAGE = os.sysconf("SC_PAGESIZE")

# The mapping: code, stack, cells, elements, data; each a multiple of the largest page size.
UNIT = 65536
STACK, CELLS, ELEMENTS, DATA = UNIT, 2 * UNIT, 3 * UNIT, 8 * UNIT
SIZE = 32 * UNIT

_ELEMENT = struct.Struct("=Q6QqQQ")
_WORD = (1 << 64) - 1
_STOP_ON_ERROR, _DONE, _LOAD = 1, 2, 8
_MOST_CODE = 8 << 20
_MOST_CALLS = (DATA - ELEMENTS) // _ELEMENT.size - 1

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
        ignores_trap: the process ignores SIGTRAP.
    """

    def __init__(self, target: Target, base: int, *, live: bool) -> None:
        """``live``: threads get back registers and mask after every batch."""
        self.target = target
        self.architecture: Architecture = arch.native()
        self.base = base
        self.live = live
        self.born: list[int] = []
        self.system_calls = 0
        self.ignores_trap = False
        self._cells: dict[Cell, int] = {}
        self._site = 0

    def install(self, site: int) -> None:
        """Map the agent, by means of the system call instruction at ``site``."""
        self._site = site
        ignored = int(procfs.status(self.target.pid)["SigIgn"], 16)
        self.ignores_trap = bool(ignored >> signal.SIGTRAP - 1 & 1)
        flags = MAP_PRIVATE | MAP_ANONYMOUS
        self._map(self.base, SIZE, PROT_READ | PROT_WRITE, flags | MAP_FIXED_NOREPLACE)
        try:
            self._map(self.base, UNIT, PROT_READ | PROT_EXEC, flags | MAP_FIXED)
            self.target.memory.write(self.base, _code())
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
        """Unmap the agent."""
        self._site = site or self._site
        if self.ignores_trap:
            # The agent's trap is forced, and has reset the action (signal(7)).
            self.target.memory.write(self.base + DATA, self.trap_action())
            self.raw("rt_sigaction", signal.SIGTRAP, self.base + DATA, 0, 8)
        result = self.raw("munmap", self.base, SIZE)
        if result < 0:
            raise BatchFailed(f"process {self.target.pid}", "cannot unmap the agent", -result)

    def trap_action(self) -> bytes:
        """``struct kernel_sigaction`` of an ignored signal: the handler is 1, the rest is 0."""
        size, order = self.architecture.word_size, self.architecture.byte_order
        handler = signal.SIG_IGN.to_bytes(size, order)  # type: ignore[arg-type]
        return handler.ljust(self.architecture.sigaction_size, b"\0")

    def raw(self, name: str, *arguments: int) -> int:
        """One system call of the leader at the site, watched from entry to exit."""
        registers = self.for_call(name, *arguments)
        after = self._execute(self.target.leader, registers, system_call=True)
        self.system_calls += 1
        return self.architecture.call_result(after)

    def for_call(self, name: str, *arguments: int) -> bytes:
        """Registers with which a thread makes a system call at the site."""
        masked = tuple(argument & _WORD for argument in arguments)
        number = self.architecture.system_calls[name]
        registers = self.target.registers[self.target.leader]
        return self.architecture.for_call(registers, self._site, number, masked)

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
        self, tid: int, registers: bytes, *, system_call: bool = False, room: int = 1
    ) -> bytes:
        """Let a thread run with these registers until it has done its errand; the registers that
        it had then. At most ``room`` children may be born."""
        target = self.target
        before, after = target.registers[tid], ffi.new("uint8_t[]", len(registers))
        born = ffi.new("int[]", room)
        run_from, before_from = ffi.from_buffer(registers), ffi.from_buffer(before)
        execution = ffi.new(
            "struct sk_execution *",
            {
                "system_call": system_call,
                "put_back": self.live,
                "block": tracing.BLOCK_ALL,
                "mask": target.masks.get(tid, 0),
                "run": ffi.cast("uint8_t *", run_from),
                "before": ffi.cast("uint8_t *", before_from),
                "size": len(registers),
                "after": after,
                "born": born,
                "room": room,
            },
        )
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

    def run(self, batch: Batch, tid: int | None = None) -> None:
        """Make the calls of a batch in one thread (the leader by default).

        Raises:
            BatchFailed: a checked call failed; it names the call's note and the kernel's answer.
        """
        calls = batch.calls
        while calls:
            count = self._run_some(batch.title, calls, self.target.leader if tid is None else tid)
            calls = calls[count:]

    def _run_some(self, title: str, calls: list[Call], tid: int) -> int:
        """Lay out as many calls as fit, run them, read the results back."""
        elements, data = bytearray(), bytearray()
        spaces: dict[Space, int] = {}
        count = 0
        for call in calls[:_MOST_CALLS]:
            mark, known = len(data), len(spaces)
            words, loads = self._lay_out(call, data, spaces)
            if len(data) > SIZE - DATA:
                del data[mark:]
                for space in list(spaces)[known:]:
                    del spaces[space]
                break
            flags = (_STOP_ON_ERROR if call.check else 0) | loads << _LOAD
            store = self._cell(call.store) if call.store is not None else 0
            number = self.architecture.system_calls[call.name]
            elements += _ELEMENT.pack(number, *words, 0, flags, store)
            count += 1
        if not count:
            raise TargetError(f"batch {title!r}", "has a call with more data than the agent holds")
        memory = self.target.memory
        if data:
            memory.write(self.base + DATA, bytes(data))
        memory.write(self.base + ELEMENTS, bytes(elements) + b"\xff" * 8)
        self._run_agent(tid, count)
        answer = memory.read(self.base + ELEMENTS, len(elements))
        for index, call in enumerate(calls[:count]):
            *_, result, flags, _ = _ELEMENT.unpack_from(answer, index * _ELEMENT.size)
            if not flags & _DONE:
                break
            call.result = result
            self.system_calls += 1
            if call.check and -4096 < result < 0:
                subject = call.note or call.name
                raise BatchFailed(
                    subject, f"{call.name}: {os.strerror(-result)} (while: {title})", -result
                )
            if call.expect is not None and call.expect != result:
                raise TargetError(
                    call.note or call.name,
                    f"{call.name} gave {result} instead of {call.expect} (while: {title})",
                )
        if spaces:
            written = memory.read(self.base + DATA, len(data))
            for space, offset in spaces.items():
                space.data = written[offset : offset + len(space.data)]
        return count

    def _lay_out(
        self, call: Call, data: bytearray, spaces: dict[Space, int]
    ) -> tuple[list[int], int]:
        words, loads = [], 0
        for position, argument in enumerate(call.arguments):
            if type(argument) is int:  # nearly all are, and there may be thousands of calls
                words.append(argument & _WORD)
                continue
            if isinstance(argument, Cell):
                loads |= 1 << position
            words.append(self._word(argument, data, spaces) & _WORD)
        return words + [0] * (6 - len(words)), loads

    def _word(self, argument: Argument, data: bytearray, spaces: dict[Space, int]) -> int:
        if isinstance(argument, int):
            return argument
        if isinstance(argument, Cell):
            return self._cell(argument)
        if isinstance(argument, AddressOf):
            addresses = [self._cell(cell) for cell in argument.cells]
            if addresses != list(range(addresses[0], addresses[0] + 4 * len(addresses), 4)):
                raise ValueError("cells are not consecutive")
            return addresses[0]
        if isinstance(argument, Space) and argument in spaces:
            return self.base + DATA + spaces[argument]
        if isinstance(argument, Words):
            words = (self._word(word, data, spaces) for word in argument.words)
            raw = b"".join(struct.pack("=Q", word & _WORD) for word in words)
            return self._word(raw + argument.tail, data, spaces)
        data += bytes(-len(data) % 16)
        offset = len(data)
        if isinstance(argument, Space):
            spaces[argument] = offset
            data += argument.data
        else:
            data += argument
        return self.base + DATA + offset

    def _cell(self, cell: Cell) -> int:
        if 4 * len(self._cells) >= ELEMENTS - CELLS:
            raise TargetError("descriptor table", "has more descriptors than the agent's cells")
        return self.base + CELLS + 4 * self._cells.setdefault(cell, len(self._cells))

    def value(self, cell: Cell) -> int:
        """What a cell holds."""
        return int.from_bytes(self.target.memory.read(self._cell(cell), 4), sys.byteorder)

    def _run_agent(self, tid: int, calls: int) -> None:
        """Let a thread run until the agent's trap."""
        registers = self.architecture.for_agent(
            self.target.registers[tid], self.base, self.base + CELLS, self.base + ELEMENTS
        )
        after = self._execute(tid, registers, room=calls)
        at = self.architecture.program_counter(after)
        if not self.base < at <= self.base + len(_code()):
            raise TargetError(f"thread {tid}", f"trapped at {at:#x}, outside the agent")


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
