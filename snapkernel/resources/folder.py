"""Folders that files are written into, opened one by one from the root directory.

A symbolic link on the way is followed only when it belongs to root or to us: others may make one in
a folder like /tmp, to have us write where they cannot. Nothing is looked up twice, so that nothing
can be exchanged in between.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS = 40  # path_resolution(7)


class Folders:
    """Descriptors of folders, by path; those that are missing are made, for their owner alone."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        self._made: list[tuple[int, str]] = []

    def open(self, path: str) -> int:
        """The descriptor (O_PATH) of a folder; it belongs to us.

        Raises:
            OSError: it cannot be had: a part of the path is something else, is a link that
                somebody else has made, or may not be entered.
        """
        if path not in self._open:
            self._open[path] = self._walk(path)
        return self._open[path]

    def _walk(self, path: str) -> int:
        names = [name for name in reversed(path.split("/")) if name]
        at = os.open("/", _LOOK)
        links = 0
        try:
            while names:
                name = names.pop()
                after = self._enter(at, name)
                if stat.S_ISLNK(os.fstat(after).st_mode):
                    links += 1
                    target = _target(after, name, links)
                    names += [part for part in reversed(target.split("/")) if part]
                    if not target.startswith("/"):
                        continue
                    after = os.open("/", _LOOK)
                elif not stat.S_ISDIR(os.fstat(after).st_mode):
                    os.close(after)
                    raise NotADirectoryError(errno.ENOTDIR, f"{name} is no folder", path)
                os.close(at)
                at = after
        except BaseException:
            os.close(at)
            raise
        return at

    def _enter(self, at: int, name: str) -> int:
        """What has this name, made if nothing has."""
        try:
            return os.open(name, _LOOK, dir_fd=at)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=at)
                self._made.append((os.dup(at), name))
            return os.open(name, _LOOK, dir_fd=at)

    def remove_made(self) -> None:
        """Remove the folders that were made, unless somebody has put something into them."""
        for at, name in reversed(self._made):
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=at)

    def close(self) -> None:
        """Let go of the descriptors."""
        for descriptor in [*self._open.values(), *(at for at, _ in self._made)]:
            os.close(descriptor)
        self._open, self._made = {}, []


def _target(link: int, name: str, links: int) -> str:
    """Where a link leads, which is closed; only if it can be trusted."""
    try:
        if os.fstat(link).st_uid not in (0, os.geteuid()):
            raise PermissionError(errno.EACCES, f"{name} is a symbolic link of somebody else")
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        return os.readlink("", dir_fd=link)
    finally:
        os.close(link)
