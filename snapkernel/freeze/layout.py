"""Batches in the agent's memory: how calls, and what they read and write, are laid out there.

The structures are those of ``native/agent.h``.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence

from snapkernel.errors import BatchFailed, TargetError
from snapkernel.freeze.batch import AddressOf, Argument, Call, Cell, Space, Words
from snapkernel.freeze.target import Memory

# The mapping: code, stack, cells, elements, data; each a multiple of the largest page size.
UNIT = 65536
STACK, CELLS, ELEMENTS, DATA = UNIT, 2 * UNIT, 3 * UNIT, 8 * UNIT
SIZE = 32 * UNIT
_HEADER = struct.Struct("=QQ")
_ELEMENT = struct.Struct("=Q6QqQQ")
_END = b"\xff" * 8
_WORD = (1 << 64) - 1
_STOP_ON_ERROR, _DONE, _CHILD_ENDS, _LOAD = 1, 2, 4, 8
_MOST_CALLS = (DATA - ELEMENTS - _HEADER.size) // _ELEMENT.size - 1


class Place:
    """The agent's mapping, with the cells that were given out in it.

    Attributes:
        memory: of the process.
        base: where it begins.
        system_calls: numbers by name.
    """

    def __init__(self, memory: Memory, base: int, system_calls: Mapping[str, int]) -> None:
        self.memory = memory
        self.base = base
        self.system_calls = system_calls
        self._cells: dict[Cell, int] = {}

    def cell(self, cell: Cell) -> int:
        """The address of a cell."""
        if 4 * len(self._cells) >= ELEMENTS - CELLS:
            raise TargetError("descriptor table", "has more descriptors than the agent's cells")
        return self.base + CELLS + 4 * self._cells.setdefault(cell, len(self._cells))


class Laid:
    """Calls that were laid out.

    Attributes:
        calls: as many as there is room for.
    """

    def __init__(self, place: Place, calls: Sequence[Call]) -> None:
        self.calls: list[Call] = []
        self._place = place
        self._data = bytearray()
        self._spaces: dict[Space, int] = {}
        self._elements = bytearray()
        for call in calls[:_MOST_CALLS]:
            if not self._add(call):
                break

    def _add(self, call: Call) -> bool:
        """One more; false when there is no room for what it needs."""
        mark, known = len(self._data), len(self._spaces)
        words, loads = self._lay_out(call)
        if len(self._data) > SIZE - DATA:
            del self._data[mark:]
            for space in list(self._spaces)[known:]:
                del self._spaces[space]
            return False
        flags = _STOP_ON_ERROR * call.check | _CHILD_ENDS * call.child_ends | loads << _LOAD
        store = self._place.cell(call.store) if call.store is not None else 0
        number = self._place.system_calls[call.name]
        self._elements += _ELEMENT.pack(number, *words, 0, flags, store)
        self.calls.append(call)
        return True

    def write(self, signal: int) -> None:
        """Put everything into the process; the agent ends with a signal."""
        memory, base = self._place.memory, self._place.base
        if self._data:
            memory.write(base + DATA, bytes(self._data))
        memory.write(base + ELEMENTS, _HEADER.pack(signal, 0) + bytes(self._elements) + _END)

    def ended(self) -> bool:
        """Whether the agent has come to the end; reads what it has left."""
        length = _HEADER.size + len(self._elements)
        answer = self._place.memory.read(self._place.base + ELEMENTS, length)
        self._elements[:] = answer[_HEADER.size :]
        return bool(_HEADER.unpack_from(answer)[1])

    def collect(self, title: str) -> int:
        """Give the calls their results, after :meth:`ended`, and spaces what was written there.
        Returns how many calls were made.

        Raises:
            BatchFailed: a checked call failed.
            TargetError: a call had another result than it must have.
        """
        made = 0
        for call in self.calls:
            *_, result, flags, _ = _ELEMENT.unpack_from(self._elements, made * _ELEMENT.size)
            if not flags & _DONE:
                break
            call.result = result
            made += 1
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
        if self._spaces:
            written = self._place.memory.read(self._place.base + DATA, len(self._data))
            for space, offset in self._spaces.items():
                space.data = written[offset : offset + len(space.data)]
        return made

    def _lay_out(self, call: Call) -> tuple[list[int], int]:
        words, loads = [], 0
        for position, argument in enumerate(call.arguments):
            if type(argument) is int:  # nearly all are, and there may be thousands of calls
                words.append(argument & _WORD)
                continue
            if isinstance(argument, Cell):
                loads |= 1 << position
            words.append(self._word(argument) & _WORD)
        return words + [0] * (6 - len(words)), loads

    def _word(self, argument: Argument) -> int:
        if isinstance(argument, int):
            return argument
        if isinstance(argument, Cell):
            return self._place.cell(argument)
        if isinstance(argument, AddressOf):
            addresses = [self._place.cell(cell) for cell in argument.cells]
            if addresses != list(range(addresses[0], addresses[0] + 4 * len(addresses), 4)):
                raise ValueError("cells are not consecutive")
            return addresses[0]
        if isinstance(argument, Space) and argument in self._spaces:
            return self._place.base + DATA + self._spaces[argument]
        if isinstance(argument, Words):
            words = (self._word(word) for word in argument.words)
            raw = b"".join(struct.pack("=Q", word & _WORD) for word in words)
            return self._word(raw + argument.tail)
        data = self._data
        data += bytes(-len(data) % 16)
        offset = len(data)
        if isinstance(argument, Space):
            self._spaces[argument] = offset
            data += argument.data
        else:
            data += argument
        return self._place.base + DATA + offset
