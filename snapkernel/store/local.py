"""A store in a folder: ``file:///path``.

An object is written to ``tmp/``, made durable with fsync(2) and renamed to its name, whose folder
is then synced as well, so that after a power failure an object is there whole or not at all.
Folders are created 0700 and files 0600: a snapshot holds every secret of a process.

What is too large to be kept in the page cache goes around it where the file system can do that
(``O_DIRECT``, open(2)): it costs no memory, pushes nothing out, and leaves little for fsync.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from snapkernel import faults
from snapkernel._native import ffi, lib
from snapkernel.errors import StoreError
from snapkernel.store.backend import ALIGNMENT, Buffer, Entry, ExistingObject, MissingObject

_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another store with --store",
    errno.EDQUOT: "free some of your quota, or choose another store with --store",
    errno.EACCES: "choose a folder that you may read and write",
    errno.EPERM: "choose a folder that you may read and write",
    errno.EROFS: "choose a folder on a file system that can be written",
    errno.ENOENT: "choose a folder that can be made",
    errno.ENOTDIR: "choose a folder, not a file",
    errno.EIO: "check the disk",
}
_PARTS = 512  # fewer than IOV_MAX, readv(2)
_LARGE = 8 << 20  # what is smaller is read through the page cache in any case
_BLOCK = 2 << 20  # bytes written at once around the page cache: a multiple of any block of a disk


class LocalBackend:
    """Objects as files below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = root.as_uri()
        self.near = True

    def path(self, name: str) -> Path:
        """Where the object of that name is."""
        return self.root / name

    def upload(self, *, large: bool = False) -> LocalUpload:
        return LocalUpload(self, large)

    def open(self, name: str) -> LocalObject:
        with self.errors(name, "read"):
            # A pipe in place of an object would let us wait for ever.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = os.open(self.path(name), flags)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise OSError(errno.EINVAL, "it is not a regular file")
            return LocalObject(self, name, descriptor)

    def list(self, folder: str) -> Iterator[Entry]:
        with self.errors(folder, "list"):
            try:
                found = sorted(os.scandir(self.path(folder)), key=lambda entry: entry.name)
            except FileNotFoundError:
                return
            for entry in found:
                name = f"{folder}/{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    yield from self.list(name)
                else:
                    with suppress(FileNotFoundError):  # removed meanwhile
                        status = entry.stat(follow_symlinks=False)
                        yield Entry(name, status.st_size, status.st_mtime)

    def touch(self, name: str) -> None:
        with self.errors(name, "touch"):
            os.utime(self.path(name))

    def delete(self, name: str) -> None:
        with self.errors(name, "delete"), suppress(FileNotFoundError):
            os.unlink(self.path(name))

    def unfinished(self) -> Iterator[Entry]:
        return self.list("tmp")

    def discard(self, entry: Entry) -> None:
        self.delete(entry.name)

    def make_folder(self, folder: Path) -> None:
        """Create a folder and those above it, durably."""
        if folder.is_dir():
            return
        if folder.parent != folder:
            self.make_folder(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            faults.reached("a folder is made")
            sync_folder(folder.parent)

    @contextmanager
    def errors(self, name: str, action: str) -> Iterator[None]:
        """Turn an OSError into a StoreError that says what was being done and what helps."""
        try:
            yield
        except OSError as error:
            if error.errno == errno.ENOENT and action in ("read", "touch"):
                object = f"{name} in {self.url}"
                raise MissingObject(object, "there is no such object") from None
            reason = f"cannot {action} {name}: {error.strerror}"
            remedy = _REMEDIES.get(error.errno or 0, "")
            raise StoreError(f"store {self.url}", reason, remedy) from error


class LocalObject:
    """An object's file. What the page cache holds is mapped: it was written once, and does not
    change under the mapping."""

    def __init__(self, backend: LocalBackend, name: str, descriptor: int) -> None:
        self._backend = backend
        self._name = name
        self._descriptor = descriptor
        self._map = self._mapped(os.fstat(descriptor).st_size)
        if self._map is None:
            with suppress(OSError):  # this file system does not do it
                _set_direct(descriptor, True)

    def __del__(self) -> None:
        os.close(self._descriptor)

    def _mapped(self, size: int) -> memoryview | None:
        if size == 0:
            return memoryview(b"")
        try:
            found = mmap.mmap(self._descriptor, size, prot=mmap.PROT_READ)
        except OSError:
            return None
        if size < _LARGE:
            found.madvise(mmap.MADV_WILLNEED)
        elif lib.sk_resident_pages(ffi.from_buffer(found), size) < size // mmap.PAGESIZE // 2:
            return None
        return memoryview(found)

    def read(self, offset: int, length: int, buffer: memoryview) -> memoryview:
        if self._map is not None:
            return self._map[offset : offset + length]
        before = offset % ALIGNMENT
        aligned = buffer[: -(-(before + length) // ALIGNMENT) * ALIGNMENT]
        with self._backend.errors(self._name, "read"):
            try:
                count = _read(self._descriptor, offset - before, aligned)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                _set_direct(self._descriptor, False)
                count = _read(self._descriptor, offset - before, aligned)
        return aligned[before : max(before, min(before + length, count))]


class LocalUpload:
    """A file in ``tmp/`` that becomes an object by its renaming."""

    def __init__(self, backend: LocalBackend, large: bool) -> None:
        self._backend = backend
        self._block = memoryview(mmap.mmap(-1, _BLOCK)) if large else None
        self._used = 0
        self._path = backend.path(f"tmp/{secrets.token_hex(16)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with backend.errors("tmp", "write"):
            backend.make_folder(self._path.parent)
            self._descriptor = os.open(self._path, flags, 0o600)
        faults.reached("a file of the store is begun")

    def write(self, parts: Sequence[Buffer]) -> None:
        with self._backend.errors("tmp", "write"):
            if self._block is None:
                for start in range(0, len(parts), _PARTS):
                    _write(self._descriptor, parts[start : start + _PARTS])
            else:
                for part in parts:
                    self._collect(self._block, memoryview(part))
        faults.reached("something is written to the store")

    def _collect(self, block: memoryview, part: memoryview) -> None:
        while len(part):
            count = min(len(part), _BLOCK - self._used)
            block[self._used : self._used + count] = part[:count]
            self._used += count
            part = part[count:]
            if self._used == _BLOCK:
                self._write_around(block)
                self._used = 0

    def _write_around(self, blocks: memoryview) -> None:
        done = 0
        with suppress(OSError):  # this file system does not do it, or it is full: that is said now
            _set_direct(self._descriptor, True)
            done = os.write(self._descriptor, blocks)
        if done < len(blocks):
            _set_direct(self._descriptor, False)
            _write(self._descriptor, [blocks[done:]])

    def finish(self, name: str, *, exclusive: bool = False) -> None:
        target = self._backend.path(name)
        with self._backend.errors(name, "write"):
            if self._block is not None:
                whole = self._used & -ALIGNMENT
                self._write_around(self._block[:whole])
                _set_direct(self._descriptor, False)
                _write(self._descriptor, [self._block[whole : self._used]])
            os.fsync(self._descriptor)
            faults.reached("a file of the store is durable")
            self._backend.make_folder(target.parent)
            if exclusive:
                try:
                    os.link(self._path, target)
                except FileExistsError:
                    object = f"{name} in {self._backend.url}"
                    raise ExistingObject(object, "it exists already") from None
                faults.reached("a file of the store has two names")
                os.unlink(self._path)
            else:
                os.rename(self._path, target)
            faults.reached("a file of the store has its name")
            sync_folder(target.parent)
        self._close()

    def abort(self) -> None:
        self._close()
        with suppress(OSError):
            os.unlink(self._path)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._block = None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable (fsync(2): not done by syncing the file)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _set_direct(descriptor: int, direct: bool) -> None:
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT * direct)


def _read(descriptor: int, offset: int, buffer: memoryview) -> int:
    """Read up to the end of the file, which a count of bytes that is not aligned tells."""
    done = 0
    while done < len(buffer) and done % ALIGNMENT == 0:
        count = os.preadv(descriptor, [buffer[done:]], offset + done)
        if not count:
            break
        done += count
    return done


def _write(descriptor: int, parts: Sequence[Buffer]) -> None:
    left = [memoryview(part) for part in parts if len(part)]
    while left:
        left = _skip(left, os.writev(descriptor, left))


def _skip(parts: list[memoryview], count: int) -> list[memoryview]:
    for number, part in enumerate(parts):
        if count < len(part):
            return [part[count:], *parts[number + 1 :]]
        count -= len(part)
    return []
