"""What a store asks of the place that keeps its objects.

A backend is dumb: it puts, gets ranges, lists, touches and deletes objects by name. It knows
nothing of packs or manifests, so that a folder and a bucket are the same to the rest. Objects
are written once and never modified. Names are relative paths with ``/``; none of them comes from
outside unchecked.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from snapkernel.errors import StoreError

Buffer = bytes | bytearray | memoryview

ALIGNMENT = 4096  # a multiple of any block of a disk
MARGIN = 2 * ALIGNMENT


class Entry(NamedTuple):
    """An object: its name, size in bytes and time of modification (seconds since the epoch)."""

    name: str
    size: int
    modified: float


class MissingObject(StoreError):
    """There is no object of that name."""


class ExistingObject(StoreError):
    """There is an object of that name already."""


class Upload(Protocol):
    """An object on its way. Nobody sees it before ``finish``; ``abort`` leaves nothing behind."""

    def write(self, parts: Sequence[Buffer]) -> None:
        """Append the parts. They may be changed after the call. Raises StoreError."""

    def finish(self, name: str, *, exclusive: bool = False) -> None:
        """Make the object durable and visible under ``name``, at once and whole.

        Raises StoreError; with ``exclusive``, ExistingObject when the name is taken.
        """

    def abort(self) -> None:
        """Throw away what was written. Harmless after ``finish``."""


class StoredObject(Protocol):
    """An object that one thread reads from."""

    def read(self, offset: int, length: int, buffer: memoryview) -> memoryview:
        """Return the bytes from ``offset`` on: in the buffer, or where they lie already.

        Fewer than asked for at the end of the object. ``buffer`` is one of ``new_buffer(length)``
        or larger. Raises StoreError.
        """


class Backend(Protocol):
    """A place that keeps objects. All methods may be called from several threads.

    Every method raises StoreError when the place cannot be read or written.
    """

    url: str
    near: bool
    """Reading costs less than decompressing: it is a disk or memory, not a network."""

    def upload(self, *, large: bool = False) -> Upload:
        """Begin a new object. ``large``: it belongs to more than a cache should hold."""

    def open(self, name: str) -> StoredObject:
        """Begin to read an object. Raises MissingObject."""

    def list(self, folder: str) -> Iterator[Entry]:
        """Yield every object whose name begins with ``folder`` and a slash."""

    def touch(self, name: str) -> None:
        """Set the time of modification to now. Raises MissingObject."""

    def delete(self, name: str) -> None:
        """Remove the object, if it is there."""

    def unfinished(self) -> Iterator[Entry]:
        """Yield uploads that were begun and neither finished nor aborted."""

    def discard(self, entry: Entry) -> None:
        """Remove an unfinished upload."""


def put(backend: Backend, name: str, parts: Sequence[Buffer], *, exclusive: bool = False) -> None:
    """Write a whole object. Raises StoreError, ExistingObject."""
    upload = backend.upload()
    try:
        upload.write(parts)
        upload.finish(name, exclusive=exclusive)
    except BaseException:
        upload.abort()
        raise


def get(backend: Backend, name: str, *, offset: int = 0, limit: int) -> bytes:
    """Read up to ``limit`` bytes of an object. Raises StoreError, MissingObject."""
    found = bytearray()
    step = 1 << 16
    stored = backend.open(name)
    while len(found) < limit:
        wanted = min(step, limit - len(found))
        part = stored.read(offset + len(found), wanted, new_buffer(wanted))
        found += part
        if len(part) < wanted:
            break
        step = min(step * 4, 1 << 24)
    return bytes(found)


def new_buffer(length: int) -> memoryview:
    """A buffer to read ``length`` bytes into: it begins with a page, and has room for whole blocks
    of a disk before and behind them."""
    return memoryview(mmap.mmap(-1, length + MARGIN))
