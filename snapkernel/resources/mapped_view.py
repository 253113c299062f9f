"""What a process's mappings show of an object that cannot be opened.

An unprivileged user reads shared anonymous memory, and memfds without a descriptor, only through
the mappings that the process has of them.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from snapkernel import procfs
from snapkernel.freeze.agent import PAGE
from snapkernel.freeze.pages import Kind, resident_pages, scan_pages
from snapkernel.resources.context import Capture
from snapkernel.runs import Run, joined, without

if TYPE_CHECKING:
    from snapkernel.freeze.target import Memory
    from snapkernel.resources.shared_memory import SharedObject

_MOST_TOUCHED = 1 << 30


@dataclass
class View:
    """What the mappings of an object show of it.

    Attributes:
        pieces: what is to be read: ``(offset, length, address)``, ascending and disjoint.
        seen: runs of offsets whose content is known; outside of the pieces it is zero.
        end: of the object, as far as it is mapped.
    """

    pieces: list[tuple[int, int, int]]
    seen: list[tuple[int, int]]
    end: int

    def runs(self) -> list[tuple[int, int]]:
        """The offsets of the pieces, without the seams."""
        return offsets(self.pieces)

    def unseen(self, size: int) -> int:
        """How many of the object's bytes no mapping shows."""
        seen = offsets(_disjoint([(offset, length, 0) for offset, length in self.seen]))
        return sum(length for _, length in without([(0, size)], seen))


def look(capture: Capture, known: SharedObject) -> View:
    """All mappings together show an object: not what lies behind its end, and not where a private
    mapping has pages of its own. Pages that do not exist must not come to life by being read."""
    assert capture.agent is not None
    may_have_holes = known.kind != "deleted-file" or _on_tmpfs(capture, known)
    if may_have_holes and _swapped(capture, known):
        may_have_holes = False
        if known.extent > _MOST_TOUCHED:
            capture.refuse(
                known.subject,
                "parts of it are in swap, and which ones cannot be seen without privilege",
                "take the snapshot with CAP_CHECKPOINT_RESTORE",
            )
            return View([], [], known.extent)
    pieces, seen, end = [], [], 0
    for area in known.areas:
        whole = (area.start, area.end - area.start)
        runs = resident_pages(capture.agent, area.start, area.end) if may_have_holes else [whole]
        own = [] if area.shared else scan_pages(capture.pid, [(area.start, area.end)])
        until = area.end
        if known.kind != "anonymous":
            # mincore(2) also says of all pages that they are there when it must not tell.
            sure = [] if runs == [whole] else runs
            until = _readable_until(capture, area, max(map(sum, [*sure, *own]), default=0))
        whole = (area.start, until - area.start)
        shift = area.start - area.offset
        for start, length in without(without(runs, [(until, area.end - until)]), own):
            pieces.append((start - shift, length, start))
        seen += [(start - shift, length) for start, length in without([whole], own)]
        end = max(end, until - shift)
    return View(_disjoint(pieces), seen, end)


def present(pid: int, areas: Iterable[procfs.Area]) -> list[tuple[int, int, int]]:
    """Pieces of an object that a running process has in its page table: to read them brings no
    page to life, as long as they stay there."""
    found = []
    for area in areas:
        if area.shared:
            shift = area.start - area.offset
            runs = scan_pages(pid, [(area.start, area.end)], kind=Kind.ANY)
            found += [(start - shift, length, start) for start, length in runs]
    return _disjoint(found)


def offsets(pieces: Iterable[tuple[int, int, int]]) -> list[Run]:
    """Those of pieces, without the seams."""
    return joined((offset, length) for offset, length, _ in pieces)


def _on_tmpfs(capture: Capture, known: SharedObject) -> bool:
    """The object is of a file system whose files are nowhere but in memory (tmpfs(5))."""
    for mount in procfs.mounts(capture.pid):
        if mount.device == known.areas[0].device:
            return mount.kind in ("tmpfs", "devtmpfs", "ramfs")
    return False


def _swapped(capture: Capture, known: SharedObject) -> bool:
    """Something of it is in swap. Neither mincore(2) nor pagemap shows such pages of an object,
    only the sums of ``smaps`` do, which take their time."""
    host = dict(line.split(":", 1) for line in procfs.text("/proc/meminfo").splitlines())
    if host["SwapTotal"] == host["SwapFree"]:
        return False
    starts = {f"{area.start:x}-{area.end:x}" for area in known.areas}
    inside = False
    for line in procfs.text(f"/proc/{capture.pid}/smaps").split("\n"):
        word, _, rest = line.partition(" ")
        if not word.endswith(":"):
            inside = word in starts
        elif inside and word == "Swap:" and rest.split()[0] != "0":
            return True
    return False


def _readable_until(capture: Capture, area: procfs.Area, sure: int) -> int:
    """Where the object ends in a mapping; what is below ``sure`` belongs to it. Behind its end
    nothing can be read (mmap(2), SIGBUS)."""
    assert capture.target is not None
    low, high = max(area.start, sure), area.end
    middle = high - PAGE
    while low < high:
        try:
            capture.target.memory.read(middle, 1)
            low = middle + PAGE
        except OSError:
            high = middle
        middle = low + (high - low) // 2 // PAGE * PAGE
    return low


def _disjoint(pieces: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Each offset once."""
    found = []
    at = 0
    for offset, length, address in sorted(pieces):
        skip = max(at - offset, 0)
        if skip < length:
            found.append((offset + skip, length - skip, address + skip))
            at = offset + length
    return found


class MappedSource:
    """Bytes of an object through its mappings, by offset in the object.

    Attributes:
        pieces: ``(offset, length, address)``, ascending and disjoint.
    """

    def __init__(self, memory: Memory, pieces: list[tuple[int, int, int]]) -> None:
        self.memory = memory
        self.pieces = pieces

    def read_into(self, runs: Sequence[tuple[int, int]], buffer: memoryview) -> None:
        """Fill the buffer."""
        found = []
        for offset, length in runs:
            at = bisect.bisect_right(self.pieces, (offset, 1 << 64, 0)) - 1
            while length:
                start, size, address = self.pieces[at]
                take = min(length, start + size - offset)
                found.append((address + offset - start, take))
                offset, length, at = offset + take, length - take, at + 1
        self.memory.read_into(found, buffer)
