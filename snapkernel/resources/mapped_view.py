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
from snapkernel.freeze.pages import resident_pages, scan_pages
from snapkernel.resources.context import Capture

if TYPE_CHECKING:
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
        return _joined(self.pieces)

    def unseen(self, size: int) -> int:
        """How many of the object's bytes no mapping shows."""
        seen = _joined(_disjoint([(offset, length, 0) for offset, length in self.seen]))
        return sum(length for _, length in _without([(0, size)], seen))


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
        for start, length in _without(_without(runs, [(until, area.end - until)]), own):
            pieces.append((start - shift, length, start))
        seen += [(start - shift, length) for start, length in _without([whole], own)]
        end = max(end, until - shift)
    return View(_disjoint(pieces), seen, end)


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


def _without(
    runs: Iterable[tuple[int, int]], holes: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """The parts of runs that are in no hole; both ascending."""
    left = []
    at = 0
    for start, length in runs:
        end = start + length
        while at < len(holes) and sum(holes[at]) <= start:
            at += 1
        behind = at
        while behind < len(holes) and holes[behind][0] < end:
            if start < holes[behind][0]:
                left.append((start, holes[behind][0] - start))
            start = sum(holes[behind])
            behind += 1
        if start < end:
            left.append((start, end - start))
    return left


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


def _joined(pieces: Iterable[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """The offsets of pieces, without the seams."""
    runs: list[tuple[int, int]] = []
    for offset, length, _ in pieces:
        if runs and sum(runs[-1]) == offset:
            runs[-1] = (runs[-1][0], runs[-1][1] + length)
        else:
            runs.append((offset, length))
    return runs


class MappedSource:
    """Bytes of an object through its mappings, by offset in the object.

    Attributes:
        pieces: ``(offset, length, address)``, ascending and disjoint.
    """

    def __init__(self, capture: Capture, pieces: list[tuple[int, int, int]]) -> None:
        assert capture.target is not None
        self.memory = capture.target.memory
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
