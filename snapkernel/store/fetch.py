"""Reading contents back: few large reads, decoded and verified on all cores, in bounded memory.

The work begins when a ``Fetch`` is made, so that chunks are ready when the memory that they
belong in has been mapped. No byte is delivered before its chunk's hash was found to be right.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, final

from blake3 import blake3

from snapkernel.errors import DamagedSnapshot
from snapkernel.model import CHUNK, Content
from snapkernel.runs import Run, extend
from snapkernel.store import pack
from snapkernel.store.backend import MARGIN, Backend, MissingObject, StoredObject, new_buffer
from snapkernel.store.codec import MAX_CHUNK, STORED, Decoder

Write = Callable[[list[Run], memoryview], None]

_GROUP = 2 << 20
_GAP = 64 << 10  # reading so many unwanted bytes is cheaper than another read
_CHUNKS = 512


class Part(NamedTuple):
    """A chunk that is wanted, and the runs that its bytes belong in."""

    pack: int
    offset: int
    stored: int
    length: int
    codec: int
    id: bytes
    runs: list[Run]

    def packed(self) -> bytes:
        """As in ``Content.chunks``."""
        return CHUNK.pack(self.id, self.pack, self.offset, self.stored, self.length, self.codec)


class Group(NamedTuple):
    """Chunks that are read at once: near to each other in one pack."""

    pack: int
    parts: list[Part]
    length: int


def parts(content: Content) -> list[Part]:
    """The chunks of a content, each with its runs, in the order of the addresses."""
    found = []
    runs = content.iter_runs()
    address = left = 0
    for id, number, offset, stored, length, codec in content.iter_chunks():
        pieces = []
        wanted = length
        while wanted:
            if not left:
                address, left = next(runs)
            take = min(left, wanted)
            pieces.append((address, take))
            address, left, wanted = address + take, left - take, wanted - take
        found.append(Part(number, offset, stored, length, codec, id, pieces))
    return found


def groups(wanted: Sequence[Part]) -> Iterator[Group]:
    """Put neighbours together, without changing the order."""
    group: list[Part] = []
    length = span = 0
    for part in wanted:
        if group:
            before = group[-1]
            gap = part.offset - (before.offset + before.stored)
            same = part.offset == before.offset and part.stored == before.stored
            if (
                part.pack != before.pack
                or not (same or 0 <= gap <= _GAP)
                or length + part.length > _GROUP
                or span + gap + part.stored > _GROUP + MAX_CHUNK
                or len(group) == _CHUNKS
            ):
                yield Group(before.pack, group, length)
                group, length, span = [], 0, 0
            elif not same:
                span += gap
        group.append(part)
        length += part.length
        span += part.stored
    if group:
        yield Group(group[0].pack, group, length)


def joined_runs(wanted: Sequence[Part]) -> list[Run]:
    """The runs of several chunks, in their order, joined where they touch."""
    joined: list[Run] = []
    for part in wanted:
        for run in part.runs:
            extend(joined, *run)
    return joined


class Reader:
    """Reads and decodes groups. Each thread has its own."""

    def __init__(self, backend: Backend, packs: Sequence[str]) -> None:
        self._backend = backend
        self._packs = packs
        self._decoder = Decoder()
        self._scratch = new_buffer(_GROUP + 2 * MAX_CHUNK)
        self._opened: tuple[str, StoredObject] | None = None

    def read(self, group: Group, buffer: memoryview) -> memoryview:
        """Return the bytes of the group's chunks, one after the other: in the buffer, which is one
        of ``group_buffer()``, or where they lie as they are.

        Raises DamagedSnapshot, StoreError.
        """
        name = self._packs[group.pack]
        wanted = group.parts
        begin, last = wanted[0].offset, wanted[-1]
        span = last.offset + last.stored - begin
        plain = _lies_plain(wanted)
        try:
            found = self._open(name).read(begin, span, buffer if plain else self._scratch)
        except MissingObject as error:
            raise pack.damaged(name, f"it is missing, with {_where(wanted)}") from error
        if len(found) < span:
            raise pack.damaged(name, f"it is truncated, and lacks {_where(wanted)}")
        start = 0
        before: Part | None = None
        for part in wanted:
            data = found[part.offset - begin : part.offset - begin + part.stored]
            if plain:
                self._decode(name, part, data, data)
                continue
            raw = buffer[start : start + part.length]
            if before and part[:6] == before[:6]:  # all but the runs
                raw[:] = buffer[start - before.length : start]
            else:
                self._decode(name, part, data, raw)
            start += part.length
            before = part
        return found if plain else buffer[: group.length]

    def _open(self, name: str) -> StoredObject:
        """The pack. Groups come in the order of packs, so one is enough to keep."""
        if self._opened is None or self._opened[0] != name:
            self._opened = name, self._backend.open(pack.object_name(name))
        return self._opened[1]

    def _decode(self, name: str, part: Part, data: memoryview, raw: memoryview) -> None:
        reason = "its bytes do not match its hash"
        try:
            if part.codec != STORED:
                self._decoder.decode(part.codec, data, raw)
            elif raw is not data:
                raw[:] = data
            if blake3(raw).digest() == part.id:
                return
        except ValueError as error:
            reason = str(error)
        raise DamagedSnapshot(
            f"chunk {part.id.hex()} at offset {part.offset} of pack {name}",
            f"{reason}; it holds {_where([part])}",
            "restore another snapshot; `snapkernel verify` lists what is damaged",
        )


def _lies_plain(wanted: Sequence[Part]) -> bool:
    """Whether the chunks are stored as they are, one directly after the other."""
    position = wanted[0].offset
    for part in wanted:
        if part.codec != STORED or part.offset != position:
            return False
        position += part.stored
    return True


def _where(wanted: Sequence[Part]) -> str:
    runs = [run for part in wanted for run in part.runs]
    return f"the bytes at {runs[0][0]:#x}-{runs[-1][0] + runs[-1][1]:#x}"


@final
class Fetch:
    """Bytes on their way from the store. A context manager: leaving it ends its threads."""

    def __init__(
        self,
        backend: Backend,
        packs: Sequence[str],
        content: Content,
        *,
        threads: int | None = None,
        memory_limit: int = 256 << 20,
    ) -> None:
        self._backend = backend
        self._packs = packs
        self._changed = threading.Condition()
        self._groups = iter(groups(sorted(parts(content), key=lambda part: part[:3])))
        self._ready: deque[tuple[Group, memoryview, memoryview | None]] = deque()
        self._write: Write | None = None
        self._error: BaseException | None = None
        self._busy = 0
        self._stopped = False
        self._next = next(self._groups, None)
        slots = max(2, min(memory_limit, content.length + 2 * _GROUP) // _GROUP)
        self._free = _slots(slots)
        count = min(threads or len(os.sched_getaffinity(0)), slots)
        self._threads = [
            threading.Thread(target=self._work, name="snapkernel-fetch", daemon=True)
            for _ in range(count if self._next else 0)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Fetch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def deliver(self, write: Write) -> None:
        """Give all bytes away, and return when that is done. Once only.

        ``write`` is called from several threads with runs and their bytes, one after the other;
        every run once, in no particular order. It must not keep the buffer.

        Raises the first error: DamagedSnapshot, StoreError, or what ``write`` raised.
        """
        with self._changed:
            self._write = write
            self._changed.notify_all()
            while not self._finished():
                self._changed.wait()
        if self._error:
            raise self._error

    def _finished(self) -> bool:
        if self._error or self._stopped:
            return True
        return self._write is not None and not (self._next or self._ready or self._busy)

    def _work(self) -> None:
        reader = Reader(self._backend, self._packs)
        while (job := self._take()) is not None:
            group, data, slot = job
            try:
                if data is None:
                    assert slot is not None
                    data = reader.read(group, slot)
                    if data.obj is not slot.obj:
                        with self._changed:
                            self._free.append(slot)
                            slot = None
                write = self._write
                if write is not None:
                    write(joined_runs(group.parts), data)
                    if slot is None:
                        _forget(data, group)
            except BaseException as error:
                with self._changed:
                    self._error = self._error or error
                    self._changed.notify_all()
                return
            with self._changed:
                self._busy -= 1
                if write is None:
                    self._ready.append((group, data, slot))
                elif slot is not None:
                    self._free.append(slot)
                self._changed.notify_all()

    def _take(self) -> tuple[Group, memoryview | None, memoryview | None] | None:
        """Wait for something to do: deliver what is ready, else read more while there is room. A
        group, its bytes if they are there, and the buffer that they are in or may be put in."""
        with self._changed:
            while not self._finished():
                if self._write is not None and self._ready:
                    self._busy += 1
                    return self._ready.popleft()
                if self._next and self._free:
                    group, self._next = self._next, next(self._groups, None)
                    self._busy += 1
                    return group, None, self._free.pop()
                self._changed.wait()
        return None


def _forget(data: memoryview, group: Group) -> None:
    """Let go of pages of a mapped object: what was seen is not to count as ours."""
    page = mmap.PAGESIZE
    start = -(-group.parts[0].offset // page) * page
    length = (group.parts[0].offset + group.length) // page * page - start
    if isinstance(data.obj, mmap.mmap) and length > 0:
        data.obj.madvise(mmap.MADV_DONTNEED, start, length)


def group_buffer() -> memoryview:
    """A buffer that a group is read into."""
    return new_buffer(_GROUP)


def _slots(count: int) -> list[memoryview]:
    """Such buffers, one behind the other in huge pages: they cost fewer faults."""
    size = _GROUP + MARGIN
    memory = mmap.mmap(-1, count * size)
    with suppress(OSError, AttributeError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(memory)
    return [view[start : start + size] for start in range(0, len(view), size)]
