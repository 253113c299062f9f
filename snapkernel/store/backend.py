"""What a store asks of the place that keeps its objects.

A backend is dumb: it puts, gets ranges, lists, touches and deletes objects by name. It knows
nothing of packs or manifests, so that a folder and a bucket are the same to the rest. Objects
are written once and never modified. Names are relative paths with ``/``; none of them comes from
outside unchecked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from snapkernel.errors import StoreError

Buffer = bytes | bytearray | memoryview


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


class Backend(Protocol):
    """A place that keeps objects. All methods may be called from several threads.

    Every method raises StoreError when the place cannot be read or written.
    """

    url: str
    near: bool
    """Reading costs less than decompressing: it is a disk or memory, not a network."""

    def upload(self, *, large: bool = False) -> Upload:
        """Begin a new object. ``large``: it belongs to more than a cache should hold."""

    def read(self, name: str, offset: int, parts: Sequence[memoryview]) -> int:
        """Fill the parts, one after the other, with the bytes from ``offset`` on.

        Returns the number of bytes read: fewer than asked for at the end of the object.
        Raises MissingObject.
        """

    def view(self, name: str) -> memoryview | None:
        """The bytes of an object without reading them first, where that can be had."""

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
    while len(found) < limit:
        part = bytearray(min(step, limit - len(found)))
        count = backend.read(name, offset + len(found), [memoryview(part)])
        found += part[:count]
        if count < len(part):
            break
        step = min(step * 4, 1 << 24)
    return bytes(found)
