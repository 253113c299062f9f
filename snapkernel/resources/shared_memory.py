"""Objects without a path: shared anonymous memory, memfds (memfd_create(2)), deleted files, and
System V segments (``system_v``).

They show in ``/proc/PID/maps`` as ``NAME (deleted)`` with a device and an inode, by which several
mappings and descriptors are found to be of the same object. Their content is read while the
process is frozen: a forked copy shares them with the original.

A new shared anonymous object is given more than one mapping by ``mremap`` with an old size of 0,
which duplicates a shared mapping (mremap(2)). A memfd or file is opened again, with flags of its
own, through ``/proc/self/fd``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from snapkernel import procfs
from snapkernel.constants import (
    F_ADD_SEALS,
    F_DUPFD_CLOEXEC,
    F_GET_SEALS,
    MAP_ANONYMOUS,
    MAP_FIXED_NOREPLACE,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MFD_ALLOW_SEALING,
    MFD_CLOEXEC,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
)
from snapkernel.errors import Finding
from snapkernel.freeze.agent import PAGE
from snapkernel.freeze.batch import AT_FDCWD, Batch, Cell
from snapkernel.model import Content, Mapping, Note, Segment, SharedMemory
from snapkernel.resources import system_v
from snapkernel.resources.context import Build, Capture, Fill
from snapkernel.resources.mapped_view import MappedSource, View, look
from snapkernel.resources.system_v import is_segment

SEAL_SEAL = 1
_LONGEST_NAME = 249  # memfd_create(2)
WAYS_TO_OPEN = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_NOFOLLOW | os.O_TMPFILE


@dataclass
class SharedObject:
    """An object while it is looked at.

    Attributes:
        index: into ``Manifest.shared_memory``.
        areas: mappings of it.
        link: where to open it, if the process has it open.
        id: of a System V segment, with ``size`` and ``segment`` once they are known.
    """

    index: int
    kind: str
    name: str
    areas: list[procfs.Area] = field(default_factory=list)
    link: str = ""
    id: int = 0
    size: int = 0
    segment: Segment | None = None

    @property
    def extent(self) -> int:
        """The bytes of it that are mapped, from its beginning."""
        return max((a.offset + a.end - a.start for a in self.areas), default=0)

    @property
    def subject(self) -> str:
        """How to name it to the user."""
        if self.kind == "anonymous":
            area = self.areas[0]
            return f"shared memory {area.start:#x}-{area.end:#x}"
        if self.kind == system_v.KIND:
            return f"System V shared memory {self.id}"
        return f"{self.kind.replace('-', ' ')} {self.name}"


def kind_of(device: str, path: str) -> tuple[str, str]:
    """Kind and name of an object from how /proc names it."""
    if path == "/dev/zero":
        return "anonymous", ""
    if path.startswith("/memfd:"):
        return "memfd", path.removeprefix("/memfd:")
    if is_segment(device, path):
        return system_v.KIND, path
    return "deleted-file", path


def find(capture: Capture, device: str, inode: int, path: str) -> SharedObject:
    """The object of a mapping or descriptor, made known when it is new."""
    key = _key(device, inode, path)
    known = capture.objects.get(key)
    if known is None:
        known = SharedObject(len(capture.objects), *kind_of(device, path), id=inode)
        capture.objects[key] = known
    return known


def _key(device: str, inode: int, path: str) -> tuple[str, int]:
    """Ids of segments are another kind of number than inodes, on the same device."""
    return (system_v.KIND if is_segment(device, path) else device), inode


def is_object(capture: Capture, area: procfs.Area) -> bool:
    """An area maps something that has no path. A file may also be *called* ``x (deleted)``."""
    if is_segment(area.device, area.path):
        return True
    if not area.inode or not area.name.endswith(" (deleted)"):
        return False
    if (area.device, area.inode) in capture.objects:
        return True
    try:
        return os.stat(f"/proc/{capture.pid}/root{area.name}").st_ino != area.inode
    except OSError:
        return True


def named_in_utf8(capture: Capture, name: str) -> bool:
    """A name can be written into the manifest, which is text; it is refused if not."""
    try:
        name.encode()
    except UnicodeEncodeError:
        readable = os.fsencode(name).decode("utf-8", "backslashreplace")
        refusal = Finding(f"file {readable}", "refused", "its name is not UTF-8", "rename it")
        if refusal not in capture.findings:
            capture.findings.append(refusal)
        return False
    return True


def register(capture: Capture, areas: Sequence[procfs.Area]) -> None:
    """Make the objects of all mappings known."""
    for area in areas:
        if is_object(capture, area) and named_in_utf8(capture, area.name):
            find(capture, area.device, area.inode, area.path).areas.append(area)


def object_of(capture: Capture, area: procfs.Area) -> int | None:
    """Index of the object that an area maps."""
    known = find(capture, area.device, area.inode, area.path)
    if capture.target is not None and known.index >= len(capture.shared_memory):
        capture.refuse(known.subject, "was deleted while the snapshot was taken", "try again")
        return None
    return known.index


class FileSource:
    """Bytes of an open file, by offset."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def read_into(self, runs: Sequence[tuple[int, int]], buffer: memoryview) -> None:
        """Fill the buffer; a file that ends early leaves zeros, as a mapping of it would."""
        at = 0
        for offset, length in runs:
            done = 0
            while done < length:
                part = buffer[at + done : at + length]
                got = os.preadv(self.descriptor, [part], offset + done)
                if not got:
                    part[:] = bytes(len(part))
                    got = len(part)
                done += got
            at += length


def save(capture: Capture) -> None:
    """Read the contents of all objects; their descriptors are open now."""
    found = sorted(capture.objects.values(), key=lambda known: known.index)
    capture.shared_memory = tuple(_record(capture, known) for known in found)


def _record(capture: Capture, known: SharedObject) -> SharedMemory:
    opened = _open(capture, known)
    try:
        content = Content()
        size, seals, mode = known.extent, 0, 0
        if opened is not None or known.link:
            status = os.stat(known.link) if opened is None else os.fstat(opened)
            size, mode = status.st_size, status.st_mode & 0o7777
        if opened is not None:
            if known.kind == "memfd":
                seals = fcntl.fcntl(opened, F_GET_SEALS)
            if capture.save is not None:
                content = capture.save(FileSource(opened), _data_runs(opened, size))
        elif known.areas and capture.save is not None:
            view = look(capture, known)
            if known.kind != "anonymous" and not known.link:
                size = view.end
            _tell_unseen(capture, known, view, size)
            content = capture.save(MappedSource(capture, view.pieces), view.runs())
        if known.segment is not None:
            size, mode = known.size, known.segment.permissions.mode
        return SharedMemory(
            kind=known.kind,
            name=known.name,
            size=size,
            seals=seals,
            mode=mode,
            content=content,
            segment=known.segment,
        )
    finally:
        if opened is not None:
            os.close(opened)


def _open(capture: Capture, known: SharedObject) -> int | None:
    """A description of our own, whose file offset is nobody else's: by one that the process has,
    or by a mapping (which needs CAP_CHECKPOINT_RESTORE in the initial user namespace)."""
    links = [known.link] if known.link else []
    for area in known.areas[:1]:
        links.append(f"/proc/{capture.pid}/map_files/{area.start:x}-{area.end:x}")
    for link in links:
        try:
            return os.open(link, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
    if known.link and not known.areas:
        capture.refuse(
            f"deleted file {known.name}",
            "cannot be opened for reading",
            "close it, or take the snapshot as a user who may read it",
        )
    return None


def _data_runs(descriptor: int, size: int) -> list[tuple[int, int]]:
    """The parts of a file that are not holes (lseek(2), SEEK_DATA)."""
    runs = []
    at = 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            start = at
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        runs.append((start, end - start))
        at = end
    return runs


def _tell_unseen(capture: Capture, known: SharedObject, view: View, size: int) -> None:
    """What could not be seen becomes zeros, and never in silence."""
    unseen = view.unseen(size)
    if not unseen:
        return
    if known.link:
        capture.refuse(
            known.subject,
            "cannot be opened for reading, and no mapping shows all of it",
            "close it, or take the snapshot as a user who may read it",
        )
        return
    reason = f"{unseen} bytes of it that no mapping shows now are zeros in a restored copy"
    capture.report(known.subject, "replaced", reason)


# --- rebuild -----------------------------------------------------------------------------------


def rebuild(build: Build) -> list[Batch | Fill]:
    """Make every object, fill it through a temporary mapping, and map it where it was mapped."""
    steps: list[Batch | Fill] = []
    for index, record in enumerate(build.manifest.shared_memory):
        mappings = [m for m in build.process.memory.mappings if m.object == index]
        length = max(-(-record.size // PAGE) * PAGE, PAGE)
        if record.kind == "anonymous":
            length = max([length, *(m.offset + m.end - m.start for m in mappings)])
            steps += _anonymous(build, record, mappings, length)
        elif record.kind == system_v.KIND:
            steps += system_v.rebuild_segment(build, record, mappings, length)
        else:
            steps += _with_descriptor(build, index, record, mappings, length)
    return steps


def _anonymous(
    build: Build, record: SharedMemory, mappings: list[Mapping], length: int
) -> list[Batch | Fill]:
    make = Batch("make shared anonymous memory")
    flags = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
    if any("nr" in mapping.flags for mapping in mappings):
        flags |= MAP_NORESERVE  # the commit limit may be far below the size of a sparse area
    make.call("mmap", build.hole, length, PROT_READ | PROT_WRITE, flags, -1, 0)
    place = Batch("map shared anonymous memory")
    for mapping in mappings:
        size = mapping.end - mapping.start
        note = f"memory {mapping.start:#x}-{mapping.end:#x}"
        place.call(
            "mremap",
            build.hole + mapping.offset,
            0,
            size,
            MREMAP_MAYMOVE | MREMAP_FIXED,
            mapping.start,
            note=note,
        )
        if mapping.protection != PROT_READ | PROT_WRITE:
            place.call("mprotect", mapping.start, size, mapping.protection, note=note)
    place.call("munmap", build.hole, length)
    return [make, Fill("shared anonymous memory", record.content, build.hole), place]


def _with_descriptor(
    build: Build, index: int, record: SharedMemory, mappings: list[Mapping], length: int
) -> list[Batch | Fill]:
    note = f"{record.kind} {record.name}"
    fresh, cell = Cell("fresh"), Cell(f"object{index}")
    build.object_cells[index] = cell
    make = Batch(f"make {note}")
    if record.kind == "memfd":
        flags = MFD_CLOEXEC | (0 if record.seals == SEAL_SEAL else MFD_ALLOW_SEALING)
        make.call("memfd_create", record.name.encode() + b"\0", flags, store=fresh, note=note)
    elif not os.access(os.path.dirname(record.name), os.W_OK | os.X_OK):
        reason = "nothing can be made in its directory; its content is in a memfd"
        build.notes.append(Note(object=note, status="replaced", reason=reason))
        name = os.fsencode(record.name)[-_LONGEST_NAME:] + b"\0"
        make.call("memfd_create", name, MFD_CLOEXEC, store=fresh, note=note)
    else:
        path = _free_name(record.name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        make.call("openat", AT_FDCWD, path, flags, 0o600, store=fresh, note=note)
        make.call("unlinkat", AT_FDCWD, path, 0, note=note)
    make.call("fcntl", fresh, F_DUPFD_CLOEXEC, build.high, store=cell)
    make.call("close", fresh)
    make.call("ftruncate", cell, record.size, note=note)
    make.call("fchmod", cell, record.mode or 0o600, note=note)
    shared = MAP_SHARED | MAP_FIXED_NOREPLACE
    make.call("mmap", build.hole, length, PROT_READ | PROT_WRITE, shared, cell, 0, note=note)
    place = Batch(f"map {note}")
    place.call("munmap", build.hole, length)
    for mapping in mappings:
        if not mapping.shared or "mw" in mapping.flags:
            _map(place, mapping, cell, note)
    if record.kind == "memfd" and record.seals & ~SEAL_SEAL:
        place.call("fcntl", cell, F_ADD_SEALS, record.seals, note=note)
    readers = [m for m in mappings if m.shared and "mw" not in m.flags]
    if readers:
        reader = reopen(build, place, cell, os.O_RDONLY, note)
        for mapping in readers:
            _map(place, mapping, reader, note)
        place.call("close", reader)
    return [make, Fill(note, record.content, build.hole), place]


def _map(batch: Batch, mapping: Mapping, descriptor: Cell, note: str) -> None:
    protection = mapping.protection
    if not mapping.shared and "ac" in mapping.flags:
        protection |= PROT_WRITE
    flags = MAP_FIXED_NOREPLACE | (MAP_SHARED if mapping.shared else MAP_PRIVATE)
    if "nr" in mapping.flags:
        flags |= MAP_NORESERVE
    batch.call(
        "mmap",
        mapping.start,
        mapping.end - mapping.start,
        protection,
        flags,
        descriptor,
        mapping.offset,
        note=f"{note} at {mapping.start:#x}",
    )


def reopen(build: Build, batch: Batch, cell: Cell, flags: int, note: str) -> Cell:
    """A new description of an object, through a number that is known when the batch is made."""
    number = build.high - 1
    fresh = Cell("reopened")
    batch.call("dup3", cell, number, os.O_CLOEXEC, note=note)
    path = f"/proc/self/fd/{number}\0".encode()
    batch.call("openat", AT_FDCWD, path, flags & ~WAYS_TO_OPEN, store=fresh, note=note)
    batch.call("close", number)
    return fresh


def _free_name(path: str) -> bytes:
    """The deleted file's own path if nothing stands there now, else one beside it."""
    if os.path.lexists(path):
        path += f".{secrets.token_hex(8)}"
    return os.fsencode(path) + b"\0"
