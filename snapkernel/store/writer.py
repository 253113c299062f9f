"""Writing a snapshot: read, drop zero pages, hash, compress and write, on all cores at once.

Each worker thread takes a piece of a megabyte or two, does all of that with it and appends the
result to the open pack. Everything heavy - reading memory, scanning, BLAKE3, zstd, write(2),
fsync(2) - releases the interpreter's lock, and nothing is queued, so the buffers of the workers
are all the memory there is.
"""

from __future__ import annotations

import bisect
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple, Protocol, final

import msgspec
from blake3 import blake3

from snapkernel import faults, procfs
from snapkernel._native import ffi, lib
from snapkernel.errors import StoreError
from snapkernel.model import CHUNK, RUN, Content, Manifest
from snapkernel.runs import Run, extend
from snapkernel.store import manifest as manifests
from snapkernel.store.backend import Backend, Buffer, ExistingObject, MissingObject, put
from snapkernel.store.codec import Encoder
from snapkernel.store.early import Early, Stored
from snapkernel.store.index import Index, write_index
from snapkernel.store.pack import ROW, TARGET_SIZE, OpenPack, Pack, Place, object_name

WINDOW = 256 << 10
"""A chunk holds what is stored of one aligned window of the address space, in bytes."""

_PIECE = 2 << 20
_PLAIN = 96 << 20
"""Bytes of a small snapshot that stay uncompressed in a store that is near: the heap of objects of
a kernel without much data. All of it must be there before a restored kernel runs, and half of the
time would go into decompressing it. Numbers are compressed, and so is everything in a snapshot of
more than twice this size, where it would matter little."""
_CACHED = 4
"""A snapshot of up to this part of the memory that is available goes through the page cache, whence
it can be restored in a moment. A larger one goes around it: it would push out all else."""
_MIN_PAGE = 4096


class Source(Protocol):
    """Where the bytes of runs come from: frozen memory, a file."""

    def read_into(self, runs: Sequence[Run], buffer: memoryview) -> None:
        """Fill the buffer with the bytes of the runs, one after the other.

        Called from several threads. Raises SnapkernelError.
        """


class _Piece(NamedTuple):
    """Work for one thread: runs, the bytes in each of their windows, the bytes in all."""

    number: int
    runs: list[Run]
    windows: list[int]
    length: int


@final
class SnapshotWriter:
    """Adds one snapshot to a store. A context manager: what is not committed is taken back.

    Attributes:
        new_bytes: bytes that this snapshot added to the store so far.
    """

    def __init__(self, backend: Backend, *, threads: int | None = None) -> None:
        self._backend = backend
        # One more than processors: there is something to compress while another one writes.
        self._threads = threads or len(os.sched_getaffinity(0)) + 1
        self._pool = ThreadPoolExecutor(self._threads, "snapkernel-store")
        self._closers = ThreadPoolExecutor(2, "snapkernel-sync")
        self._closing: list[Future[None]] = []
        self._index: Future[Index] = self._closers.submit(Index.load, backend)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._known: dict[bytes, Place] = {}
        self._packs: list[Pack] = []
        self._reused: list[Pack] = []
        self._gone: set[str] = set()
        self._written: list[OpenPack] = []
        self._open: list[OpenPack] = []
        self._plain = _PLAIN if backend.near else 0
        self._large = False
        self._failed = False
        self._committed = False
        self._doubtful = ""  # a manifest that could not be written, but may be there
        self.new_bytes = 0

    def __enter__(self) -> SnapshotWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown()
        self._closers.shutdown()
        # Workers and writer refer to each other. If the garbage collector of CPython 3.11 took them
        # apart, it could clear a memoryview that is still exported, and crash in its end.
        self._idle.clear()
        if not self._committed:
            self._take_back()

    def stay_plain(self, length: int) -> bool:
        """Whether a chunk of this length that zstd would make smaller is to be stored as it is."""
        with self._lock:
            if self._plain < length:
                return False
            self._plain -= length
            return True

    def prepare(self) -> None:
        """Wait until the writer is ready, so that nothing of it runs beside what comes next.

        Raises StoreError, DamagedSnapshot: what is known of the store cannot be read.
        """
        self._index.result()

    # --- contents --------------------------------------------------------------------------------

    def store(
        self,
        source: Source,
        runs: Iterable[Run],
        *,
        page_size: int,
        progress: Callable[[int], None] | None = None,
        early: Early | None = None,
        whole: Sequence[tuple[int, int]] = (),
    ) -> Content:
        """Store the bytes of the runs, except for pages of zeros.

        Args:
            source: gives the bytes.
            runs: ascending and disjoint; addresses are multiples of ``page_size`` and so are
                lengths, except that of the last run.
            page_size: bytes, a power of two of at least 4096.
            progress: called with the number of bytes just dealt with, from one thread at a time.
            early: what is known from storing the same source before, and what is found out now.
            whole: ``(start, end)``, ascending and disjoint, where pages of zeros are stored too,
                because without them something else would be there: the content of a file.

        Raises:
            StoreError: the store cannot be written. What the source raises is passed on.
            ValueError: runs that are not as described.
        """
        if self._failed or self._committed:
            raise StoreError(f"store {self._backend.url}", "this snapshot's writer has ended")
        if not _MIN_PAGE <= page_size <= WINDOW or page_size & (page_size - 1):
            raise ValueError(f"page size {page_size}")
        results: dict[int, Stored] = {}
        runs = list(runs)
        total = sum(length for _, length in runs)
        if total > 2 * _PLAIN:
            self._plain = 0
        self._large = total > procfs.available_memory() // _CACHED
        pieces = _pieces(runs, page_size, aligned=early is not None)
        kept = _Ranges(whole)
        taking = threading.Lock()

        def take() -> _Piece | None:
            with taking:
                return None if self._failed else next(pieces, None)

        def work(piece: _Piece | None) -> None:
            try:
                with self._lock:
                    worker = self._idle.pop() if self._idle else _Worker(self)
                while piece:
                    results[piece.number] = worker.process(source, piece, page_size, early, kept)
                    if progress:
                        with taking:
                            progress(piece.length)
                    piece = take()
                self._idle.append(worker)
            except BaseException:
                self._failed = True
                raise

        first = take()
        second = take()
        if second is None:  # not worth a thread
            work(first)
        else:
            helpers = [self._pool.submit(work, piece) for piece in (first, second)]
            helpers += [self._pool.submit(work, take()) for _ in range(self._threads - 2)]
            self._wait(helpers)
        faults.reached("a content is stored")
        return self._content([results[number] for number in range(len(results))])

    def _wait(self, helpers: Sequence[Future[None]]) -> None:
        try:
            for helper in helpers:
                helper.result()
        except BaseException:
            self._failed = True  # the others end with their piece
            for helper in helpers:
                helper.exception()
            raise

    def _content(self, results: Sequence[Stored]) -> Content:
        runs: list[Run] = []
        for result in results:
            for address, length in result.runs:
                extend(runs, address, length)
        rows = []
        for result in results:
            for place in result.places:
                assert place.pack is not None
                number = self._number(place.pack)
                rows.append(
                    CHUNK.pack(
                        place.id, number, place.offset, place.stored, place.length, place.codec
                    )
                )
        return Content(runs=b"".join([RUN.pack(*run) for run in runs]), chunks=b"".join(rows))

    def _number(self, pack: Pack) -> int:
        if pack.number is None:
            pack.number = len(self._packs)
            self._packs.append(pack)
        return pack.number

    def find(self, raw: memoryview) -> tuple[Place, bool]:
        """Return the chunk's place, and whether it is new, for the caller to store."""
        id = blake3(raw).digest()
        place = self._known.get(id)
        if place is not None:
            return place, False
        found = self._index.result().find(id, len(raw))
        if found is not None and self._reuse(found):
            return self._known.setdefault(id, found), False
        mine = Place(id, len(raw))
        place = self._known.setdefault(id, mine)
        return place, place is mine

    def _reuse(self, place: Place) -> bool:
        """Whether the pack is still there. Garbage collection spares what was touched lately."""
        pack = place.pack
        assert pack is not None
        with self._lock:
            if pack in self._reused or pack.name in self._gone:
                return pack.name not in self._gone
            try:
                self._backend.touch(object_name(pack.name))
            except MissingObject:
                self._gone.add(pack.name)
                return False
            self._reused.append(pack)
            return True

    def append(self, batch: Sequence[tuple[Place, int, Buffer]]) -> None:
        """Write new chunks into an open pack that no other worker writes to at the moment."""
        size = sum(len(data) for _, _, data in batch)
        with self._lock:
            pack = self._open.pop() if self._open else None
            if pack and pack.size + size > TARGET_SIZE:
                self._close(pack)
                pack = None
            if pack is None:
                pack = OpenPack(self._backend, self._large)
                self._written.append(pack)
        pack.append(batch)
        with self._lock:
            self._open.append(pack)

    def _close(self, pack: OpenPack) -> None:
        self._closing.append(self._closers.submit(pack.finish))
        for closing in self._closing:
            if closing.done():
                closing.result()  # raises what went wrong

    # --- the end ---------------------------------------------------------------------------------

    def commit(self, manifest: Manifest) -> Manifest:
        """Write the manifest, with its packs and the bytes added, and return it so.

        Before that, everything it refers to is durable. Once this returns, the snapshot is safe.
        ``stored_bytes`` counts packs and their index, ``new_bytes`` the manifest as well.

        Raises:
            StoreError: the store cannot be written; there is no such snapshot then.
            ValueError: the manifest is not a valid one.
        """
        if self._failed or self._committed:
            raise StoreError(f"store {self._backend.url}", "this snapshot's writer has ended")
        self._failed = True  # until the end is reached
        while self._open:
            self._close(self._open.pop())
        for closing in self._closing:
            closing.result()
        self._keep_reused()
        self.new_bytes = sum(written.size for written in self._written)
        if self._written:
            tables = [
                (written.pack.name, written.size, b"".join([ROW.pack(*r) for r in written.rows]))
                for written in self._written
            ]
            self.new_bytes += write_index(self._backend, tables)
        manifest = msgspec.structs.replace(
            manifest, packs=tuple(pack.name for pack in self._packs), stored_bytes=self.new_bytes
        )
        data = manifests.encode(manifest)
        name = manifests.object_name(manifest.id)
        try:
            put(self._backend, name, [data], exclusive=True)
        except ExistingObject:
            raise
        except BaseException:
            self._doubtful = name
            raise
        self.new_bytes += len(data)
        self._committed = True
        return manifest

    def _keep_reused(self) -> None:
        """Make sure that no pack that was relied on has been collected meanwhile."""
        for pack in self._reused:
            try:
                self._backend.touch(object_name(pack.name))
            except MissingObject as error:
                reason = f"pack {pack.name} was removed while the snapshot was written"
                remedy = "take the snapshot again"
                raise StoreError(f"store {self._backend.url}", reason, remedy) from error

    def _take_back(self) -> None:
        """Remove the packs written, after the manifest: then nothing refers to them."""
        if self._doubtful:
            try:
                self._backend.delete(self._doubtful)
            except StoreError:
                return  # it may be there, and needs them
        for written in self._written:
            try:
                written.abort()
                if written.pack.name:
                    self._backend.delete(object_name(written.pack.name))
            except StoreError:
                pass  # an error is on its way already; `gc` removes what is left


class _Ranges:
    """Ascending and disjoint ranges of addresses."""

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._ranges = ranges
        self._ends = [end for _, end in ranges]

    def within(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of them that are between two addresses."""
        for at in range(bisect.bisect_right(self._ends, start), len(self._ranges)):
            low, high = self._ranges[at]
            if low >= end:
                break
            yield max(low, start), min(high, end)


class _Worker:
    """One thread's buffers and what it does with a piece."""

    def __init__(self, writer: SnapshotWriter) -> None:
        self._writer = writer
        self._memory = memoryview(mmap.mmap(-1, _PIECE))
        self._address = ffi.from_buffer(self._memory)
        self._map = bytearray(_PIECE // _MIN_PAGE)
        self._encoder = Encoder(writer.stay_plain)

    def process(
        self, source: Source, piece: _Piece, page: int, early: Early | None, whole: _Ranges
    ) -> Stored:
        """Read a piece, store what is new of it."""
        known = None if early is None else early.find(piece.runs)
        if known is not None:
            return known
        data = self._memory[: piece.length]
        source.read_into(piece.runs, data)
        if early is None:
            return self._store(piece, page, whole)
        known = early.find(piece.runs, data)
        if known is None:
            mark = early.mark(data)
            known = self._store(piece, page, whole)
            early.keep(piece.runs, mark, known)
        return known

    def _store(self, piece: _Piece, page: int, whole: _Ranges) -> Stored:
        runs, windows = self._drop_zeros(piece, page, whole)
        places = []
        batch: list[tuple[Place, int, Buffer]] = []
        start = 0
        for length in windows:
            raw = self._memory[start : start + length]
            start += length
            place, new = self._writer.find(raw)
            places.append(place)
            if new:
                batch.append((place, *self._encoder.encode(raw)))
        if batch:
            self._writer.append(batch)
        return Stored(runs, places)

    def _drop_zeros(self, piece: _Piece, page: int, whole: _Ranges) -> tuple[list[Run], list[int]]:
        """Move all other pages together; return their runs and the bytes left of each window."""
        pages = -(-piece.length // page)
        padding = pages * page - piece.length
        if padding:
            self._memory[piece.length : pages * page] = bytes(padding)
        found = ffi.from_buffer(self._map)
        kept = lib.sk_nonzero_pages(self._address, pages, page, found)
        if kept < pages:
            kept += self._keep(piece, page, whole)
        if kept == pages:
            return piece.runs, piece.windows
        if kept == 0:
            return [], []
        lib.sk_squeeze_pages(self._address, pages, page, found)
        windows = []
        position = 0
        for length in piece.windows:
            count = -(-length // page)
            left = self._map.count(1, position, position + count)
            position += count
            if left:
                windows.append(left * page)
        if self._map[pages - 1]:
            windows[-1] -= padding
        return list(self._runs_left(piece.runs, page)), windows

    def _keep(self, piece: _Piece, page: int, whole: _Ranges) -> int:
        """Mark the pages of zeros that are needed; how many there are."""
        count = position = 0
        for address, length in piece.runs:
            for start, end in whole.within(address, address + length):
                first = position + (start - address) // page
                last = position + -(-(end - address) // page)
                count += self._map.count(0, first, last)
                self._map[first:last] = b"\1" * (last - first)
            position += -(-length // page)
        return count

    def _runs_left(self, runs: Sequence[Run], page: int) -> Iterator[Run]:
        position = 0
        for address, length in runs:
            end = position + -(-length // page)
            first = self._map.find(1, position, end)
            while first >= 0:
                after = self._map.find(0, first, end)
                after = end if after < 0 else after
                start = (first - position) * page
                yield address + start, min((after - position) * page, length) - start
                first = self._map.find(1, after, end)
            position = end


def _pieces(runs: Iterable[Run], page_size: int, *, aligned: bool = False) -> Iterator[_Piece]:
    """Cut runs into pieces of whole windows; where pieces are to be found again when the runs have
    changed elsewhere, at multiples of their size."""
    number = size = end = 0
    window = -1
    taken: list[Run] = []
    windows: list[int] = []
    for address, length in runs:
        if address < end or length <= 0 or address % page_size or end % page_size:
            raise ValueError(f"the run at {address:#x} is empty, unaligned or not ascending")
        end = address + length
        while address < end:
            if address // WINDOW != window:
                crossed = aligned and address // _PIECE != window * WINDOW // _PIECE
                window = address // WINDOW
                if size + WINDOW > _PIECE or (crossed and size):
                    yield _Piece(number, taken, windows, size)
                    number, size, taken, windows = number + 1, 0, [], []
                windows.append(0)
            part = min(end, (window + 1) * WINDOW) - address
            windows[-1] += part
            size += part
            extend(taken, address, part)
            address += part
    if size:
        yield _Piece(number, taken, windows, size)
