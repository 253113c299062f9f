"""Which path leads to a file of which only the file system and the inode are known.

fdinfo names what an inotify watches by the kernel's own numbers and by a file handle
(Documentation/filesystems/proc.rst). A handle can be opened with CAP_DAC_READ_SEARCH only. Without
it we look where a process has to do with files: its directories, open and mapped files, arguments,
environment and mounts, all that is above them, and then what is below. Whatever we find is
watched by an inotify of our own, whose numbers must be the same: some file systems show other
inodes to stat(2) than to the kernel.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from snapkernel import procfs
from snapkernel._native import lib
from snapkernel.resources.context import Capture
from snapkernel.resources.open_file import Table

IN_DELETE_SELF, IN_DONT_FOLLOW = 0x400, 0x2000000
IN_EXCL_UNLINK = 0x4000000
WATCH = re.compile(
    r"inotify wd:([0-9a-f]+) ino:([0-9a-f]+) sdev:([0-9a-f]+) mask:([0-9a-f]+)"
    r"(?:.* fhandle-type:([0-9a-f]+) f_handle:([0-9a-f]+))?"
)
_MOST_LOOKED_AT = 200_000
_MOST_WHILE_FROZEN = 2_000
_NOT_LOOKED_THROUGH = frozenset(["/proc", "/sys"])


@dataclass(frozen=True)
class Mark:
    """A file as fdinfo names it.

    Attributes:
        device: of the file system, as the kernel numbers it inside.
        inode: its number inside the kernel.
        handle: type and bytes; empty where the file system has none.
    """

    device: int
    inode: int
    handle: tuple[int, bytes] = (0, b"")


_seen: dict[Mark, str] = {}
"""Paths that were found earlier; they are asked again whether they still lead there."""


class Search:
    """Looks for watched files in what one process sees."""

    def __init__(self, capture: Capture, table: Table) -> None:
        self._root = f"/proc/{capture.pid}/root"
        self._pid = capture.pid
        self._table = table
        self._left = _MOST_LOOKED_AT if capture.target is None else _MOST_WHILE_FROZEN
        self._watcher = lib.sk_inotify()

    def close(self) -> None:
        """Let go of our own inotify."""
        if self._watcher >= 0:
            os.close(self._watcher)

    def find(self, wanted: set[Mark]) -> dict[Mark, str]:
        """The paths of those that could be found."""
        found: dict[Mark, str] = {}
        for mark in wanted:
            for path in self._likely(mark):
                if self.leads_to(path, mark):
                    found[mark] = path
                    break
        for path in self._places():
            if not wanted - found.keys():
                break
            self._compare(path, wanted, found)
        for path in self._below({mark.inode for mark in wanted}):
            if not wanted - found.keys():
                break
            self._compare(path, wanted, found)
        _seen.update(found)
        return found

    def leads_to(self, path: str, mark: Mark) -> bool:
        """A watch of ours at this path has the same numbers."""
        there = os.fsencode(self._root + path)
        number = lib.sk_inotify_add(self._watcher, there, IN_DELETE_SELF | IN_DONT_FOLLOW)
        if number < 0:
            return False
        info = procfs.text(f"/proc/self/fdinfo/{self._watcher}")
        lib.sk_inotify_remove(self._watcher, number)
        match = WATCH.search(info)
        return match is not None and (int(match[3], 16), int(match[2], 16)) == (
            mark.device,
            mark.inode,
        )

    def _compare(self, path: str, wanted: set[Mark], found: dict[Mark, str]) -> None:
        for mark in wanted - found.keys():
            if self.leads_to(path, mark):
                found[mark] = path

    def _likely(self, mark: Mark) -> Iterator[str]:
        if mark in _seen:
            yield _seen[mark]
        kind, handle = mark.handle
        if not handle:
            return
        for mount, device in self._mounts():
            if device != mark.device:
                continue
            with contextlib.suppress(OSError):
                held = os.open(self._root + mount, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                opened = lib.sk_open_by_handle(held, kind, handle, len(handle))
                os.close(held)
                if opened >= 0:
                    path = os.readlink(f"/proc/self/fd/{opened}")
                    os.close(opened)
                    yield path

    def _mounts(self) -> Iterator[tuple[str, int]]:
        for line in procfs.text(f"/proc/{self._pid}/mountinfo").splitlines():
            words = line.split()
            major, minor = map(int, words[2].split(":"))
            yield words[4].replace("\\040", " "), major << 20 | minor

    def _working_directories(self) -> list[str]:
        return [os.readlink(f"/proc/{pid}/cwd") for pid in self._table.pids]

    def _places(self) -> Iterator[str]:
        """Where the process has to do with files, and all that is above."""
        told: set[str] = set()
        for path in self._named():
            while path not in told:
                told.add(path)
                yield path
                path = os.path.dirname(path)

    def _named(self) -> Iterator[str]:
        yield from self._working_directories()
        yield from (file.link for file in self._table.files if file.link.startswith("/"))
        for pid in self._table.pids:
            cwd = os.readlink(f"/proc/{pid}/cwd")
            for word in procfs.text(f"/proc/{pid}/cmdline").split("\0"):
                yield os.path.normpath(os.path.join(cwd, word))
            for word in procfs.text(f"/proc/{pid}/environ").split("\0"):
                for part in word.partition("=")[2].split(":"):
                    if part.startswith("/"):
                        yield os.path.normpath(part)
            areas = procfs.areas(procfs.text(f"/proc/{pid}/maps"))
            yield from {area.name: None for area in areas if area.name.startswith("/")}
        yield from (mount for mount, _ in self._mounts())

    def _below(self, inodes: set[int]) -> Iterator[str]:
        """What has one of the inodes, below the working directories and then below the other
        places, the nearest first."""
        told: set[str] = set()
        folders = deque(self._working_directories())
        half = self._left // 2
        while (folders or half) and self._left > 0:
            if not folders or self._left < half:
                folders, half = deque([*self._places(), *folders]), 0
            folder = folders.popleft()
            if folder in told or folder in _NOT_LOOKED_THROUGH:
                continue
            told.add(folder)
            with contextlib.suppress(OSError), os.scandir(self._root + folder) as entries:
                for entry in entries:
                    self._left -= 1
                    path = os.path.join(folder, entry.name)
                    if entry.inode() in inodes:
                        yield path
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(path)
