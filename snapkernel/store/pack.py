"""Packs: files of chunks, each with a table of its own chunks at the end.

``docs/format.md`` is the normative text. A pack is named by the BLAKE3 of its trailer, which
holds the table and a random number, so no two packs have the same name and none is overwritten.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

from blake3 import blake3

from snapkernel.errors import DamagedSnapshot
from snapkernel.store.backend import Backend, Buffer, get
from snapkernel.store.codec import MAX_CHUNK, STORED

VERSION = 1
MAGIC = b"snapkpak"
HEADER = struct.Struct("<8sHHI")
"""Magic, version, flags (none yet), zero."""
ROW = struct.Struct("<32sIIIB")
"""A chunk: BLAKE3 of its bytes, offset, stored length, length, codec."""
FOOTER = struct.Struct("<16sIHH8s")
"""Random number, rows in the table, version, flags (none yet), magic."""
HASH = 32

TARGET_SIZE = 32 << 20
"""Bytes of chunks in a pack: one is closed before it grows beyond this."""


class Row(NamedTuple):
    """One chunk in a pack's table."""

    id: bytes
    offset: int
    stored: int
    length: int
    codec: int


def is_place(offset: int, stored: int, length: int, codec: int) -> bool:
    """Whether a chunk can be there: behind the header, not too long, not of two lengths when it is
    stored as it is."""
    possible = 0 < length <= MAX_CHUNK and 0 < stored <= MAX_CHUNK and offset >= HEADER.size
    return possible and (codec != STORED or stored == length)


def object_name(pack: str) -> str:
    """Name of the object that is this pack. Spread by prefix, so that no folder grows large."""
    return f"packs/{pack[:2]}/{pack}"


def header() -> bytes:
    return HEADER.pack(MAGIC, VERSION, 0, 0)


def trailer(rows: Sequence[Row]) -> tuple[str, bytes]:
    """Return the pack's name and its trailer."""
    table = b"".join([ROW.pack(*row) for row in rows])
    table += FOOTER.pack(os.urandom(16), len(rows), VERSION, 0, MAGIC)
    digest = blake3(table).digest()
    return digest.hex(), table + digest


def check_layout(backend: Backend, pack: str, size: int, table: bytes) -> None:
    """Raise DamagedSnapshot unless chunks fill the space between header and trailer."""
    if get(backend, object_name(pack), limit=HEADER.size) != header():
        raise damaged(pack, "its header is damaged")
    position = HEADER.size
    for _, offset, stored, length, codec in ROW.iter_unpack(table):
        if offset != position:
            raise damaged(pack, "its table has gaps")
        if not is_place(offset, stored, length, codec):
            raise damaged(pack, "its table has a chunk at an impossible place")
        position += stored
    if position + len(table) + FOOTER.size + HASH != size:
        raise damaged(pack, "it has another size than its table says")


def read_table(backend: Backend, pack: str, size: int) -> bytes:
    """Read the packed rows of a pack that is ``size`` bytes long.

    Raises DamagedSnapshot when they are not what the pack's name says; StoreError.
    """
    end = FOOTER.size + HASH
    start = max(0, size - (1 << 16))
    tail = get(backend, object_name(pack), offset=start, limit=size - start)
    if len(tail) < end:
        raise damaged(pack, "it is truncated")
    _, count, version, flags, magic = FOOTER.unpack(tail[-end:-HASH])
    if magic != MAGIC:
        raise damaged(pack, "its trailer is missing or truncated")
    if version > VERSION or flags:
        raise DamagedSnapshot(f"pack {pack}", "its format is newer", "upgrade snapkernel")
    length = count * ROW.size + end
    if length + HEADER.size > size:
        raise damaged(pack, "its table is larger than the pack")
    if length > len(tail):
        tail = get(backend, object_name(pack), offset=size - length, limit=length)
    tail = tail[-length:]
    if tail[-HASH:].hex() != pack or blake3(tail[:-HASH]).digest() != tail[-HASH:]:
        raise damaged(pack, "its table does not match its name")
    return tail[:-end]


def damaged(pack: str, reason: str) -> DamagedSnapshot:
    return DamagedSnapshot(
        f"pack {pack}", reason, "run `snapkernel verify` to see which snapshots are damaged"
    )


class Pack:
    """A pack that snapshots refer to.

    Attributes:
        name: 64 hexadecimal digits; empty while it is being written.
        number: index into the manifest's packs; ``None`` while the manifest does not use it.
    """

    __slots__ = ("name", "number")

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.number: int | None = None


class Place:
    """Where a chunk is. ``pack`` is ``None`` until it has been written."""

    __slots__ = ("codec", "id", "length", "offset", "pack", "stored")

    def __init__(self, id: bytes, length: int) -> None:
        self.id = id
        self.length = length
        self.pack: Pack | None = None
        self.offset = self.stored = self.codec = 0

    def row(self) -> Row:
        return Row(self.id, self.offset, self.stored, self.length, self.codec)


class OpenPack:
    """A pack that is being written. One thread at a time."""

    def __init__(self, backend: Backend, large: bool) -> None:
        self.pack = Pack()
        self.size = HEADER.size
        self.rows: list[Row] = []
        self._upload = backend.upload(large=large)
        self._begun = False

    def append(self, batch: Sequence[tuple[Place, int, Buffer]]) -> None:
        """Write chunks, given with their codec and stored bytes, and set their places."""
        parts: list[Buffer] = [] if self._begun else [header()]
        parts += [data for _, _, data in batch]
        self._begun = True
        self._upload.write(parts)
        for place, codec, data in batch:
            place.offset, place.stored, place.codec = self.size, len(data), codec
            place.pack = self.pack
            self.rows.append(place.row())
            self.size += len(data)

    def finish(self) -> None:
        """Close the pack, make it durable and visible."""
        name, tail = trailer(self.rows)
        self._upload.write([tail])
        self._upload.finish(object_name(name))
        self.pack.name = name
        self.size += len(tail)

    def abort(self) -> None:
        self._upload.abort()
