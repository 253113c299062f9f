"""The index: which chunks the store has, so that none is stored twice.

Index files are copies of packs' tables, one file a snapshot, written before its manifest. They
are a help, not a truth: a missing or damaged one costs bytes, never a snapshot, and `gc` writes
it again from the packs. Nothing but the writer reads them.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Iterable

from blake3 import blake3

from snapkernel.store.backend import Backend, MissingObject, get, put
from snapkernel.store.pack import HASH, ROW, Pack, Place, is_place, object_name

FOLDER = "index"
VERSION = 1
MAGIC = b"snapkidx"
HEADER = struct.Struct("<8sHHI")
"""Magic, version, flags (none yet), number of packs."""
SECTION = struct.Struct("<32sII")
"""A pack: name, size of its file in bytes, rows that follow."""

_LIMIT = 1 << 30

Tables = Iterable[tuple[str, int, bytes]]
"""Name of a pack, size of its file, its packed rows."""


def write_index(backend: Backend, tables: Tables) -> int:
    """Write an index file of these packs. Returns its size in bytes. Raises StoreError."""
    sections = [
        SECTION.pack(bytes.fromhex(name), size, len(rows) // ROW.size) + rows
        for name, size, rows in tables
    ]
    data = HEADER.pack(MAGIC, VERSION, 0, len(sections)) + b"".join(sections)
    data += blake3(data).digest()
    put(backend, f"{FOLDER}/{os.urandom(16).hex()}", [data])
    return len(data)


def read_index(backend: Backend, name: str) -> list[tuple[str, int, bytes]]:
    """Return the tables in an index file; none when it is damaged or of a newer version."""
    data = memoryview(get(backend, name, limit=_LIMIT))
    if len(data) < HEADER.size + HASH or blake3(data[:-HASH]).digest() != data[-HASH:]:
        return []
    magic, version, flags, count = HEADER.unpack_from(data)
    if magic != MAGIC or version > VERSION or flags:
        return []
    tables = []
    position, behind = HEADER.size, len(data) - HASH
    for _ in range(count):
        if position + SECTION.size > behind:
            return []
        pack, size, rows = SECTION.unpack_from(data, position)
        position += SECTION.size
        end = position + rows * ROW.size
        if end > behind:
            return []
        tables.append((pack.hex(), size, bytes(data[position:end])))
        position = end
    return tables if position == behind else []


class Index:
    """All chunks of the packs that are there.

    An entry costs some 150 bytes of memory: 60 MB for 100 GB of chunks.
    """

    def __init__(self) -> None:
        self._positions: dict[bytes, int] = {}
        self._starts: list[int] = []
        self._tables: list[tuple[Pack, bytes]] = []
        self._end = 0

    @classmethod
    def load(cls, backend: Backend) -> Index:
        """Read every index file; leave out packs that are gone or have another size."""
        index = cls()
        files = [entry.name for entry in backend.list(FOLDER)]
        if not files:
            return index
        present = {entry.name: entry.size for entry in backend.list("packs")}
        for name in files:
            try:
                tables = read_index(backend, name)
            except MissingObject:  # gc removed it meanwhile
                continue
            for pack, size, rows in tables:
                if present.pop(object_name(pack), None) == size:
                    index._add(pack, rows)
        return index

    def _add(self, pack: str, rows: bytes) -> None:
        starts = range(0, len(rows), ROW.size)
        ids = [rows[start : start + 32] for start in starts]
        positions = range(self._end, self._end + len(rows), ROW.size)
        self._positions.update(zip(ids, positions, strict=True))
        self._starts.append(self._end)
        self._tables.append((Pack(pack), rows))
        self._end += len(rows)

    def find(self, id: bytes, size: int) -> Place | None:
        """Where the chunk of that id is, which has ``size`` bytes, if the store has it. A place
        that no chunk of this size can have is not used."""
        position = self._positions.get(id)
        if position is None:
            return None
        table = bisect_right(self._starts, position) - 1
        pack, rows = self._tables[table]
        _, offset, stored, length, codec = ROW.unpack_from(rows, position - self._starts[table])
        if length != size or not is_place(offset, stored, length, codec):
            return None
        place = Place(id, length)
        place.pack, place.offset, place.stored, place.codec = pack, offset, stored, codec
        return place
