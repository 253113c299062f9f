"""Memory that a forked child has in common with its parent, until one of them writes to it.

Which pages two processes share cannot be seen without privilege, but what has the same content at
the same place may as well be shared. On rebuild the parent's memory is filled before such a child
is forked; the child keeps what is as the parent has it, and is given the rest.

An area may be kept when it lies in one of the parent's that is made the same way. It is never put
together from a part that is the parent's and one that is new: the kernel would not merge the two
(is_mergeable_anon_vma in mm/vma.c), and mremap(2) refuses to move what is not one area. Only the
heap, which brk(2) has, is never moved.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from msgspec import structs

from snapkernel import procfs
from snapkernel.constants import MADV_DONTNEED
from snapkernel.freeze.batch import Batch
from snapkernel.model import RUN, AddressSpace, Content, Mapping
from snapkernel.resources import memory
from snapkernel.resources.context import Build
from snapkernel.runs import Run, common, extend, joined, without
from snapkernel.store.fetch import Part, parts

_NOT_MUCH = 8 << 20
"""Bytes that may be compared in vain."""
LOWEST = 0x10000
"""Nothing is mapped below: vm.mmap_min_addr."""
_NOT_INHERITED = frozenset(["dc", "wf", "dp"])
"""VmFlags of areas that a child does not get, or gets empty: MADV_DONTFORK, MADV_WIPEONFORK,
MAP_DROPPABLE."""


def capture(parent: Sequence[procfs.Area], child: Sequence[procfs.Area]) -> bytes:
    """What a child may have from its parent, as packed ``RUN`` entries."""
    starts = [area.start for area in parent]
    found: list[Run] = []
    for area in child:
        at = bisect.bisect_right(starts, area.start) - 1
        other = parent[max(at, 0)]
        if at < 0 or area.shared or area.start >= other.end or memory.is_special(area):
            continue
        if not _same_kind(area, other):
            continue
        if area.end <= other.end or area.name == "[heap]":
            extend(found, area.start, min(area.end, other.end) - area.start)
    return b"".join(RUN.pack(*run) for run in found)


def _same_kind(one: procfs.Area, other: procfs.Area) -> bool:
    if (one.permissions, one.device, one.inode, one.name) != (
        other.permissions,
        other.device,
        other.inode,
        other.name,
    ):
        return False
    return not one.inode or one.offset - one.start == other.offset - other.start


# --- rebuild -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inheritance:
    """What a child keeps of the memory that it was born with.

    Attributes:
        kept: ranges that stay mapped.
        there: the parent's pages in them.
        dropped: those of these that the child does not have.
        rest: the content that it is given. It is stored by windows, so some of its pages may be
            there.
    """

    kept: list[Run]
    there: list[Run]
    dropped: list[Run]
    rest: Content


def inherit(parent: AddressSpace, child: AddressSpace) -> Inheritance:
    """Compare two processes."""
    known = {(part.id, tuple(part.runs)) for part in parts(parent.content)}
    theirs, own = list(parent.content.iter_runs()), list(child.content.iter_runs())
    possible = list(_alike(parent, child))
    pieces = parts(child.content)
    same = [part for part in pieces if (part.id, tuple(part.runs)) in known]
    shared = joined(run for part in same for run in part.runs)
    kept = [run for run in possible if _worth_it(run, theirs, shared)]
    rest = [part for part in pieces if not _is_there(part, known, kept)]
    there = list(common(theirs, kept))
    return Inheritance(kept, there, without(there, own), _content(rest))


def _alike(parent: AddressSpace, child: AddressSpace) -> Iterator[Run]:
    """What is mapped alike, within what the snapshot says was inherited."""
    starts = [mapping.start for mapping in parent.mappings]
    allowed = list(RUN.iter_unpack(child.inherited))
    for mapping in child.mappings:
        for start, length in common([(mapping.start, mapping.end - mapping.start)], allowed):
            at = bisect.bisect_right(starts, start) - 1
            other = parent.mappings[max(at, 0)]
            inside = at >= 0 and start + length <= other.end
            if inside and _same_making(mapping, other):
                yield start, length


def _same_making(one: Mapping, other: Mapping) -> bool:
    if one.shared or one.object is not None or _NOT_INHERITED.intersection(one.flags):
        return False
    if one.file is not None and one.offset - one.start != other.offset - other.start:
        return False
    return one == structs.replace(other, start=one.start, end=one.end, offset=one.offset)


def _worth_it(run: Run, theirs: Sequence[Run], shared: Sequence[Run]) -> bool:
    """The parent has not much there, or something of it is what the child has: a large area without
    anything in common is of two processes that got it at the same address one by one."""
    size = sum(length for _, length in common([run], theirs))
    return size <= _NOT_MUCH or any(common([run], shared))


def _is_there(part: Part, known: set[tuple[bytes, tuple[Run, ...]]], kept: Sequence[Run]) -> bool:
    if (part.id, tuple(part.runs)) not in known:
        return False
    return not without(part.runs, _near(part, kept))


def _near(part: Part, kept: Sequence[Run]) -> Sequence[Run]:
    """Those of the ascending ranges that may hold something of a part."""
    first = bisect.bisect_right(kept, (part.runs[0][0], 1 << 64)) - 1
    last = bisect.bisect_right(kept, (part.runs[-1][0], 1 << 64))
    return kept[max(first, 0) : last]


def _content(pieces: Sequence[Part]) -> Content:
    runs = joined(run for part in pieces for run in part.runs)
    return Content(
        runs=b"".join(RUN.pack(*run) for run in runs),
        chunks=b"".join(part.packed() for part in pieces),
    )


def rebuild(build: Build, dropped: Sequence[Run], held: Sequence[Run]) -> Batch:
    """Unmap all but what is kept, and ``held``: the agent and what else is still needed."""
    batch = Batch("keep what is as the parent has it")
    everything = [(LOWEST, build.architecture.task_size - LOWEST)]
    for start, length in without(everything, joined(sorted([*build.kept, *held]))):
        batch.call("munmap", start, length)
    for start, length in dropped:
        batch.call("madvise", start, length, MADV_DONTNEED, note=f"memory at {start:#x}")
    return batch
