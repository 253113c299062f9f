"""A store in this process's memory, for tests and experiments: ``memory://`` or ``memory://NAME``.

A named one is the same for everybody in the process who opens it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

from snapkernel.store.backend import Buffer, Entry, ExistingObject, MissingObject

_named: dict[str, MemoryBackend] = {}


class MemoryBackend:
    """Objects in a dictionary."""

    def __init__(self, url: str = "memory://") -> None:
        self.url = url
        self.near = False
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.lock = threading.Lock()

    @classmethod
    def named(cls, name: str) -> MemoryBackend:
        """The backend of that name; a new one each time for the empty name."""
        if not name:
            return cls()
        return _named.setdefault(name, cls(f"memory://{name}"))

    def upload(self, *, large: bool = False) -> MemoryUpload:
        return MemoryUpload(self)

    def open(self, name: str) -> MemoryObject:
        return MemoryObject(self._find(name)[0])

    def list(self, folder: str) -> Iterator[Entry]:
        for name, (data, modified) in sorted(self.objects.items()):
            if name.startswith(folder + "/"):
                yield Entry(name, len(data), modified)

    def touch(self, name: str) -> None:
        with self.lock:
            self.objects[name] = (self._find(name)[0], time.time())

    def delete(self, name: str) -> None:
        with self.lock:
            self.objects.pop(name, None)

    def unfinished(self) -> Iterator[Entry]:
        return iter(())

    def discard(self, entry: Entry) -> None:
        pass

    def _find(self, name: str) -> tuple[bytes, float]:
        try:
            return self.objects[name]
        except KeyError:
            raise MissingObject(f"{name} in {self.url}", "there is no such object") from None


class MemoryObject:
    """An object's bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def read(self, offset: int, length: int, buffer: memoryview) -> memoryview:
        return self._data[offset : offset + length]


class MemoryUpload:
    """Collects parts until they become an object."""

    def __init__(self, backend: MemoryBackend) -> None:
        self._backend = backend
        self._data = bytearray()

    def write(self, parts: Sequence[Buffer]) -> None:
        for part in parts:
            self._data += part

    def finish(self, name: str, *, exclusive: bool = False) -> None:
        with self._backend.lock:
            if exclusive and name in self._backend.objects:
                raise ExistingObject(f"{name} in {self._backend.url}", "it exists already")
            self._backend.objects[name] = (bytes(self._data), time.time())
        self._data = bytearray()

    def abort(self) -> None:
        self._data = bytearray()
