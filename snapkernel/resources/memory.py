"""Private memory: what is mapped, and the pages that are nowhere else.

VmFlags (Documentation/filesystems/proc.rst) say how an area was made. Two things they show are
easy to lose: ``ac``, accounted memory, which an area has when it was once writable - so it is
mapped writable, filled, and protected afterwards; and two neighbours that are alike, which the
kernel may or may not have merged - so they are recorded as one.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterable, Iterator, Sequence

from msgspec import structs

from snapkernel import procfs
from snapkernel.constants import (
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_GUARD_INSTALL,
    MADV_HUGEPAGE,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MADV_POPULATE_WRITE,
    MADV_RANDOM,
    MADV_SEQUENTIAL,
    MADV_WIPEONFORK,
    MAP_ANONYMOUS,
    MAP_DROPPABLE,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    PR_SET_VMA,
    PR_SET_VMA_ANON_NAME,
    PROT_WRITE,
)
from snapkernel.errors import Finding
from snapkernel.freeze.agent import PAGE
from snapkernel.freeze.batch import AT_FDCWD, Batch, Cell
from snapkernel.freeze.pages import Kind, scan_pages
from snapkernel.model import RUN, Mapping, MemoryPolicy
from snapkernel.resources import memory_locks, memory_policy, shared_memory, system_v, vdso
from snapkernel.resources.context import Build, Capture
from snapkernel.runs import Run, without

# Follow from protection, kind and use of the area.
DERIVED = frozenset(["rd", "wr", "ex", "sh", "mr", "mw", "me", "ms", "sd", "gu", "??"])
ADVICE = {
    "hg": MADV_HUGEPAGE,
    "nh": MADV_NOHUGEPAGE,
    "dc": MADV_DONTFORK,
    "dd": MADV_DONTDUMP,
    "wf": MADV_WIPEONFORK,
    "mg": MADV_MERGEABLE,
    "rr": MADV_RANDOM,
    "sr": MADV_SEQUENTIAL,
}
KEPT = frozenset(["ac", "nr", "gd", "dp", *memory_locks.FLAGS, *ADVICE])
REFUSED = {
    "pf": "maps memory of a device",
    "io": "maps memory of a device",
    "mm": "maps memory of a device",
    "ht": "uses hugetlbfs pages",
    "um": "is served by a userfaultfd",
    "uw": "is write-protected by a userfaultfd",
    "ui": "is served by a userfaultfd",
    "ss": "is a shadow stack",
    "sl": "is sealed by mseal",
}

_NAMED_SHARED = shared_memory.NAMED_ANONYMOUS

Flags = dict[tuple[int, int, str, int, str], tuple[str, ...]]


def key(area: procfs.Area) -> tuple[int, int, str, int, str]:
    """What makes an area of ``maps`` the same as one of an earlier ``smaps``."""
    return area.start, area.end, area.permissions, area.offset, area.name


def read_flags(pid: int) -> Flags:
    """VmFlags of all areas. Reading ``smaps`` walks all page tables: not for the freeze."""
    smaps = procfs.text(f"/proc/{pid}/smaps")
    return {key(area): flags for area, flags in procfs.areas_with_flags(smaps)}


def is_special(area: procfs.Area) -> bool:
    """One of the kernel's own mappings."""
    return area.name in vdso.NAMES or area.name in vdso.OTHER


def capture(
    capture: Capture,
    areas: Sequence[procfs.Area],
    flags: Flags,
    policies: memory_policy.Policies | None = None,
) -> tuple[Mapping, ...]:
    """The mappings as records; what cannot be had again is refused."""
    bound = {} if policies is None else policies
    found: list[Mapping] = []
    for area in areas:
        if is_special(area):
            continue
        mapping = _mapping(capture, area, flags.get(key(area), ()), bound.get(area.start))
        if found and _alike(found[-1], mapping):
            found[-1] = Mapping(
                **{
                    name: getattr(mapping, name)
                    for name in Mapping.__struct_fields__
                    if name != "start"
                },
                start=found[-1].start,
            )
        else:
            found.append(mapping)
    return tuple(found)


def _mapping(
    capture: Capture, area: procfs.Area, flags: tuple[str, ...], policy: MemoryPolicy | None
) -> Mapping:
    named = shared_memory.named_in_utf8(capture, area.name)
    label = (area.name if named else "") or "anonymous"
    subject = f"memory {area.start:#x}-{area.end:#x} ({label})"
    without_path = area.name != area.path or area.name.startswith("anon_inode:")
    refusal = shared_memory.refusal(area.path) if without_path else None
    if refusal is not None:
        capture.refuse(subject, *refusal)
    for flag in flags if refusal is None else ():
        if flag in REFUSED:
            capture.refuse(subject, REFUSED[flag], "release it before the snapshot")
        elif flag not in KEPT and flag not in DERIVED:
            capture.refuse(subject, f"has the unknown VmFlag {flag!r}", "upgrade snapkernel")
    if "wf" in flags:
        capture.report(subject, "replaced", "is wiped in a restored copy, as in a forked child")
    file = backing = None
    segment = system_v.is_segment(area.device, area.path)
    if (area.inode or segment) and named and refusal is None:
        if shared_memory.is_object(capture, area):
            backing = shared_memory.object_of(capture, area)
        else:
            file = capture.file(area.name, area.inode)
            if area.shared and "mw" in flags:
                _tell_shared(capture, area.name)
    unnamed = not (area.inode or segment) or area.name.startswith(_NAMED_SHARED)
    return Mapping(
        start=area.start,
        end=area.end,
        protection=area.protection,
        shared=area.shared,
        offset=area.offset if area.inode or segment else 0,
        flags=tuple(
            sorted(
                KEPT.intersection(flags) | ({"mw"}.intersection(flags) if area.shared else set())
            )
        ),
        file=file,
        object=backing,
        name=area.name if unnamed else "",
        policy=policy,
    )


def _tell_shared(capture: Capture, path: str) -> None:
    """What a process writes into a file through a mapping is the file's, like what it writes
    with write(2)."""
    said = Finding(
        f"file {path}", "shared", "its content is the file's, and is not in the snapshot"
    )
    if said not in capture.findings:
        capture.findings.append(said)


def _alike(left: Mapping, right: Mapping) -> bool:
    """Two neighbours that the kernel could merge: private and anonymous, equal but for place."""
    return (
        left.end == right.start
        and left.file is None
        and left.object is None
        and not left.shared
        and (left.protection, left.flags, left.name, left.policy)
        == (right.protection, right.flags, right.name, right.policy)
        and not right.shared
        and right.file is None
        and right.object is None
    )


def holds_private_pages(mapping: Mapping) -> bool:
    """Pages of this mapping may have content that is nowhere else, and that must be saved."""
    return not mapping.shared and not {"dp", "wf"} & set(mapping.flags)


def not_zero(mappings: Iterable[Mapping]) -> list[tuple[int, int]]:
    """Where a page of zeros is not what would be there anyway: private mappings of something."""
    found = [m for m in mappings if m.file is not None or m.object is not None]
    return _spans(mapping for mapping in found if not mapping.shared)


def scan(pid: int, mappings: Iterable[Mapping], *, guards: bool = False) -> list[tuple[int, int]]:
    """Runs of private pages (or of guard pages) in the mappings."""
    kind = Kind.GUARD if guards else Kind.PRIVATE
    return scan_pages(pid, _spans(mappings), kind=kind)


def _spans(mappings: Iterable[Mapping]) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for mapping in mappings:
        if spans and spans[-1][1] == mapping.start:
            spans[-1] = (spans[-1][0], mapping.end)
        else:
            spans.append((mapping.start, mapping.end))
    return spans


# --- rebuild -----------------------------------------------------------------------------------


def rebuild_mappings(build: Build) -> Batch:
    """Map everything, writable where it will be filled; shared memory is mapped already, and so is
    what a child keeps of its parent's memory."""
    batch = Batch("map memory")
    memory = build.process.memory
    opened: dict[tuple[int, bool], Cell] = {}
    for mapping in memory.mappings:
        for part in _new_parts(mapping, build.kept):
            if mapping.object is None:
                _map(build, batch, part, opened)
            _advise(batch, part)
    for cell in opened.values():
        batch.call("close", cell)
    memory_policy.rebuild_of_areas(build, batch)
    return batch


def _new_parts(mapping: Mapping, kept: Sequence[Run]) -> Iterator[Mapping]:
    """What must be mapped of a mapping."""
    if not kept:
        yield mapping
        return
    for start, length in without([(mapping.start, mapping.end - mapping.start)], kept):
        offset = mapping.offset + (start - mapping.start if mapping.file is not None else 0)
        yield structs.replace(mapping, start=start, end=start + length, offset=offset)


def _map(
    build: Build, batch: Batch, mapping: Mapping, opened: dict[tuple[int, bool], Cell]
) -> None:
    flags = MAP_FIXED_NOREPLACE | (MAP_SHARED if mapping.shared else MAP_PRIVATE)
    if "dp" in mapping.flags:
        flags = MAP_FIXED_NOREPLACE | MAP_DROPPABLE
    if "nr" in mapping.flags:
        flags |= MAP_NORESERVE
    if "gd" in mapping.flags:
        flags |= MAP_GROWSDOWN
    descriptor: Cell | int = -1
    note = f"memory {mapping.start:#x}-{mapping.end:#x}"
    if mapping.file is None:
        flags |= MAP_ANONYMOUS
    else:
        path = build.manifest.files[mapping.file].path
        path = build.paths.get(path, path)
        note += f" ({path})"
        writable = mapping.shared and "mw" in mapping.flags
        if (mapping.file, writable) not in opened:
            cell = opened[mapping.file, writable] = Cell(f"file{mapping.file}{'w' * writable}")
            mode = os.O_RDWR if writable else os.O_RDONLY
            batch.call("openat", AT_FDCWD, os.fsencode(path) + b"\0", mode, store=cell, note=path)
        descriptor = opened[mapping.file, writable]
    batch.call(
        "mmap",
        mapping.start,
        mapping.end - mapping.start,
        _while_filling(mapping),
        flags,
        descriptor,
        mapping.offset,
        note=note,
    )


def _advise(batch: Batch, mapping: Mapping) -> None:
    note, length = f"memory {mapping.start:#x}-{mapping.end:#x}", mapping.end - mapping.start
    for flag, advice in ADVICE.items():
        if flag in mapping.flags:
            batch.call("madvise", mapping.start, length, advice, check=False, note=note)
    if mapping.name.startswith(("[anon:", _NAMED_SHARED)):
        label = mapping.name.partition(":")[2][:-1].encode() + b"\0"
        words = (PR_SET_VMA, PR_SET_VMA_ANON_NAME, mapping.start, length)
        batch.call("prctl", *words, label, optional=f"name of {note}", note=note)


def _while_filling(mapping: Mapping) -> int:
    """Protection until the pages are there: accounted memory was writable once."""
    if not mapping.shared and "ac" in mapping.flags:
        return mapping.protection | PROT_WRITE
    return mapping.protection


def _holds_any(mapping: Mapping, runs: list[tuple[int, int]]) -> bool:
    """Some page of the mapping is in one of the runs, which are ascending."""
    at = bisect.bisect_left(runs, (mapping.start, 0))
    begins_in_it = at < len(runs) and runs[at][0] < mapping.end
    reaches_into_it = at > 0 and sum(runs[at - 1]) > mapping.start
    return begins_in_it or reaches_into_it


def rebuild_protection(build: Build) -> Batch:
    """After the fill: final protections, guard pages, locks."""
    batch = Batch("protect memory")
    runs = list(build.process.memory.content.iter_runs())
    for mapping in build.process.memory.mappings:
        length = mapping.end - mapping.start
        note = f"memory {mapping.start:#x}-{mapping.end:#x}"
        if _while_filling(mapping) != mapping.protection:
            if mapping.file is None and not _holds_any(mapping, runs):
                # An area that never had a page would not stay accounted (mm/mprotect.c).
                for advice in (MADV_POPULATE_WRITE, MADV_DONTNEED):
                    batch.call("madvise", mapping.start, PAGE, advice, check=False, note=note)
            batch.call("mprotect", mapping.start, length, mapping.protection, note=note)
        memory_locks.rebuild(batch, mapping, note)
    for address, length in RUN.iter_unpack(build.process.memory.guards):
        batch.call("madvise", address, length, MADV_GUARD_INSTALL, note=f"guard {address:#x}")
    return batch
