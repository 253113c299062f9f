"""Which files travel with a snapshot.

A file that a process has open is a part of its state: at the place of a restore it must be there,
with what the process has read or written of it. So the default, ``open``, takes

- regular files that are open, or mapped, for writing, wherever they are;
- those that are only read, and are no programs or libraries, when they are below a working
  directory or a folder for temporary files. Elsewhere they belong to what is installed on the host,
  or are data that all hosts share.

Files that nobody has open are found by name, by anybody, and may be any number: they travel when
they are asked for, by ``written`` (changed below a working directory since the process began) or by
a pattern. What nobody has asked for by a pattern is at most ``MOST`` bytes in all.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from snapkernel.errors import InvalidName

MOST = 1 << 30
"""Bytes of the files that travel without having been asked for by a pattern."""
MOST_FILES = 1 << 18
MOST_ATTRIBUTES = 1 << 16
"""Bytes of the attributes of a file, with their names (XATTR_SIZE_MAX, xattr(7))."""
TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")
"""Folders for temporary files on every Linux (hier(7), shm_overview(7))."""
_OF_KERNEL = ("/proc/", "/sys/", "/dev/")
_OF_STORE = {"config", "packs", "index", "manifests", "tmp"}
_LONGEST = 4096


@dataclass(frozen=True)
class Choice:
    """What the user wants to travel.

    Attributes:
        open: files that are open.
        written: files below the working directories that have changed since the process began.
        patterns: of paths, as of glob(7), with ``**`` for any number of folders; relative ones are
            relative to the working directory. ``*``, ``?`` and ``**`` match no name that begins
            with a dot.
    """

    open: bool = False
    written: bool = False
    patterns: tuple[str, ...] = ()

    @classmethod
    def of(cls, words: str | Sequence[str]) -> Choice:
        """From ``open``, ``written``, ``none`` and patterns; ``open`` is meant unless ``none`` is
        among them.

        Raises:
            InvalidName: a pattern that no path can fit.
        """
        words = [words] if isinstance(words, str) else list(words)
        patterns = [word for word in words if word not in ("open", "written", "none")]
        for pattern in patterns:
            if not pattern or "\0" in pattern or len(pattern) > _LONGEST:
                raise InvalidName(f"files {pattern[:80]!r}", "is no pattern of paths")
            if ".." in pattern.split("/"):
                raise InvalidName(f"files {pattern!r}", "leads upwards", "give the path itself")
            try:
                re.compile(_expression(["", *pattern.split("/")]))
            except re.error as error:
                raise InvalidName(f"files {pattern!r}", f"is no pattern: {error}") from None
        return cls("none" not in words, "written" in words, tuple(patterns))

    def __bool__(self) -> bool:
        return self.open or self.written or bool(self.patterns)

    def expressions(self, directory: str) -> list[tuple[str, str, re.Pattern[str]]]:
        """Of each pattern: itself, the folder that all it matches is in, and what the whole path
        must match."""
        found = []
        for pattern in self.patterns:
            path = os.path.normpath(os.path.join(directory, pattern))
            names = path.split("/")
            plain = next((n for n, name in enumerate(names) if set(name) & set("*?[")), len(names))
            folder = "/".join(names[: min(plain, len(names) - 1)]) or "/"
            found.append((pattern, folder, re.compile(_expression(names), re.S)))
        return found


NOTHING = Choice()
"""No file travels."""


def _expression(names: Sequence[str]) -> str:
    """A regular expression for the components of an absolute path (glob(7))."""
    text = ""
    for number, name in enumerate(names[1:], 2):
        last = number == len(names)
        if name == "**":
            text += r"(?:/(?!\.)[^/]+)" + ("+" if last else "*")
        elif name:
            text += "/" + _component(name)
    return text


def _component(name: str) -> str:
    text = r"(?!\.)" if name[0] in "*?[" else ""
    at = 0
    while at < len(name):
        character = name[at]
        at += 1
        if character == "*":
            text += "[^/]*"
        elif character == "?":
            text += "[^/]"
        elif character == "[" and (end := name.find("]", at + 1 + (name[at : at + 1] == "!"))) > 0:
            inner = re.sub(r"[\\\[^&~|]", r"\\\g<0>", name[at:end])
            text += f"[^/{inner[1:]}]" if inner[0] == "!" else f"[{inner}]"
            at = end + 1
        else:
            text += re.escape(character)
    return text


def is_of_kernel(path: str) -> bool:
    """The kernel makes these files up (proc(5), sysfs(5)), or they are devices."""
    return path.startswith(_OF_KERNEL) and not is_below(path, "/dev/shm")


def is_below(path: str, directory: str) -> bool:
    """The path leads into the directory. Everything is below the root directory, which says
    nothing, and does not count."""
    return directory != "/" and path.startswith(directory + "/")


def is_hidden(path: str, directories: Sequence[str]) -> bool:
    """Below a folder whose name begins with a dot, or itself of such a name: settings and histories
    that a user's programs share. Inside one of the directories only the rest of the path counts."""
    inside = [directory for directory in directories if is_below(path, directory)]
    rest = path[max(map(len, inside), default=0) :]
    return "/." in rest


def _is_store(folder: str) -> bool:
    """By the beginning of its configuration (docs/format.md); the first snapshot is written into a
    store that has nothing else."""
    try:
        with open(f"{folder}/config", "rb", opener=_open_plain) as file:
            return file.read(10) == b'{"format":'
    except OSError:
        return False


def _open_plain(path: str, flags: int) -> int:
    """A pipe of that name must not let us wait."""
    return os.open(path, flags | os.O_NONBLOCK)


def walk(root: str, folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """All that is below a folder and is no folder itself, with its status; nothing is followed.

    ``root`` is prepended to paths to reach what a process sees. What vanishes meanwhile, or may not
    be looked at, is left out, and so are stores of snapshots.
    """
    waiting = [folder.rstrip("/")]
    while waiting:
        folder = waiting.pop()
        if is_of_kernel(folder + "/"):
            continue
        try:
            with os.scandir(f"{root}{folder}/") as listed:
                entries = {entry.name: entry for entry in listed}
        except OSError:
            continue
        if "config" in entries and entries.keys() <= _OF_STORE and _is_store(root + folder):
            continue
        for name, entry in entries.items():
            path = f"{folder}/{name}"
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                else:
                    yield path, entry.stat(follow_symlinks=False)
