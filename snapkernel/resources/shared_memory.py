"""Objects in memory: shared anonymous memory, memfds (memfd_create(2)), deleted files, System V
segments (``system_v``), and files in ``/dev/shm`` (``dev_shm``).

They show in ``/proc/PID/maps`` as ``NAME (deleted)`` with a device and an inode, by which several
mappings and descriptors are found to be of the same object. A forked copy shares them with the
original, so their content is read before the freeze, and what has changed since during it.

A new shared anonymous object is given more than one mapping by ``mremap`` with an old size of 0,
which duplicates a shared mapping (mremap(2)). A memfd or file is opened again, with flags of its
own, through ``/proc/self/fd``.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

from snapkernel import procfs
from snapkernel.constants import (
    F_ADD_SEALS,
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
from snapkernel.errors import Finding, TargetError
from snapkernel.freeze.agent import PAGE
from snapkernel.freeze.batch import AT_FDCWD, Batch, Cell
from snapkernel.freeze.target import Memory
from snapkernel.model import Content, Manifest, Mapping, Note, Process, Segment, SharedMemory
from snapkernel.resources import dev_shm, private_folder, system_v, unnamed_file
from snapkernel.resources.context import Build, Capture, Fill
from snapkernel.resources.file_content import FileSource, data_runs
from snapkernel.resources.mapped_view import MappedSource, View, look, offsets, present
from snapkernel.resources.system_v import is_segment
from snapkernel.store.early import Early

SEAL_SEAL = 1
NAMED_ANONYMOUS = "[anon_shmem:"
"""How /proc names shared anonymous memory that prctl(2), PR_SET_VMA, gave a name (Linux 6.2)."""
_LONGEST_NAME = 249  # memfd_create(2)
WAYS_TO_OPEN = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_NOFOLLOW | os.O_TMPFILE


@dataclass
class SharedObject:
    """An object while it is looked at.

    Attributes:
        index: into ``Manifest.shared_memory``.
        holder: the first process that maps it.
        areas: mappings of it, in that process.
        link: where to open it, if the process has it open.
        linkable: made with O_TMPFILE.
        id: of a System V segment, with ``size`` and ``segment`` once they are known.
    """

    index: int
    kind: str
    name: str
    holder: Capture | None = None
    areas: list[procfs.Area] = field(default_factory=list)
    link: str = ""
    linkable: bool = False
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
        if self.kind == dev_shm.KIND:
            return f"shared memory {self.name}"
        return f"{self.kind.replace('-', ' ')} {self.name}"


_REFUSED = {
    "/[aio]": ("asynchronous I/O contexts cannot be saved", "end it (io_destroy)"),
    "/secretmem": ("secret memory (memfd_secret) cannot be saved", "release it"),
    "anon_inode:": ("is shared with the kernel, which cannot be saved", "unmap it"),
}


def refusal(path: str) -> tuple[str, str] | None:
    """Reason and remedy, when /proc names a kind of memory that cannot be saved."""
    return next((why for name, why in _REFUSED.items() if path.startswith(name)), None)


def kind_of(device: str, path: str) -> tuple[str, str] | None:
    """Kind and name of an object from how /proc names it; ``None`` for a kind that is refused."""
    if path == "/dev/zero" or path.startswith(NAMED_ANONYMOUS):
        return "anonymous", ""
    if path.startswith("/memfd:"):
        return "memfd", path.removeprefix("/memfd:")
    if is_segment(device, path):
        return system_v.KIND, path
    if refusal(path) is not None:
        return None
    return "deleted-file", path


def find(
    capture: Capture, device: str, inode: int, path: str, *, named: bool = False
) -> SharedObject | None:
    """The object of a mapping or descriptor, made known when it is new.

    ``named``: it is a file in ``/dev/shm``.
    """
    key = _key(device, inode, path)
    known = capture.objects.get(key)
    if known is None:
        kind = (dev_shm.KIND, path) if named else kind_of(device, path)
        if kind is None:
            return None
        known = SharedObject(len(capture.objects), *kind, id=inode)
        if named:
            known.link = private_folder.path(capture, path)
            dev_shm.tell(capture, path)
        known.linkable = not named and unnamed_file.is_unnamed(path, inode)
        capture.objects[key] = known
    return known


def _key(device: str, inode: int, path: str) -> tuple[str, int]:
    """Ids of segments are another kind of number than inodes, on the same device."""
    return (system_v.KIND if is_segment(device, path) else device), inode


def is_object(capture: Capture, area: procfs.Area) -> bool:
    """An area maps something that is nowhere but in memory. A file may also be *called*
    ``x (deleted)``."""
    if is_segment(area.device, area.path) or _name_of(capture, area) is not None:
        return True
    if area.inode and area.name.startswith(NAMED_ANONYMOUS):
        return True
    if not area.inode or not area.name.endswith(" (deleted)"):
        return False
    if (area.device, area.inode) in capture.objects:
        return True
    try:
        return os.stat(f"/proc/{capture.pid}/root{area.name}").st_ino != area.inode
    except OSError:
        return True


def _name_of(capture: Capture, area: procfs.Area) -> str | None:
    return dev_shm.name_of(capture, area.device, area.inode, area.name)


def find_mapped(capture: Capture, area: procfs.Area) -> SharedObject | None:
    """The object that an area maps."""
    name = _name_of(capture, area)
    path = area.path if name is None else name
    return find(capture, area.device, area.inode, path, named=name is not None)


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
            known = find_mapped(capture, area)
            if known is not None:
                known.holder = known.holder or capture
                if known.holder is capture:
                    known.areas.append(area)


def object_of(capture: Capture, area: procfs.Area) -> int | None:
    """Index of the object that an area maps."""
    known = find_mapped(capture, area)
    if known is None:
        return None  # refused by its name
    if capture.target is not None and known.index >= len(capture.shared_memory):
        capture.refuse(known.subject, "was deleted while the snapshot was taken", "try again")
        return None
    return known.index


class _Changing:
    """A source that is read while it changes. What cannot be read any more becomes zeros: it is
    looked at again."""

    def __init__(self, source: FileSource | MappedSource) -> None:
        self.source = source

    def read_into(self, runs: Sequence[tuple[int, int]], buffer: memoryview) -> None:
        """Fill the buffer."""
        try:
            self.source.read_into(runs, buffer)
        except (OSError, TargetError):
            buffer[:] = bytes(len(buffer))


def save_early(capture: Capture) -> dict[tuple[str, int], Early]:
    """Store what the objects of running processes hold now, by ``capture.save``.

    Returns what spares the time of doing it again for what has not changed when they stand still.
    """
    return {key: _save_early(capture, known) for key, known in capture.objects.items()}


def _save_early(capture: Capture, known: SharedObject) -> Early:
    assert capture.save is not None
    holder = known.holder or capture
    early = Early()
    with ExitStack() as stack:
        try:
            opened = _open(holder, known)
            if opened is not None:
                stack.callback(os.close, opened)
                size = os.fstat(opened).st_size
                if known.kind == "anonymous" and size:  # nobody can make it shorter
                    early.view = memoryview(mmap.mmap(opened, size, prot=mmap.PROT_READ))
                source: FileSource | MappedSource = FileSource(opened)
                runs = data_runs(opened, size)
            else:
                memory = stack.enter_context(closing(Memory(holder.pid)))
                pieces = present(holder.pid, known.areas)
                source, runs = MappedSource(memory, pieces), offsets(pieces)
        except (OSError, TargetError):
            return early  # it has gone meanwhile, or can only be read in the freeze
        capture.save(_Changing(source), runs, early)
    return early


def save(capture: Capture) -> None:
    """Read the contents of all objects; their descriptors are open now."""
    found = sorted(capture.objects.values(), key=lambda known: known.index)
    keys = {known.index: key for key, known in capture.objects.items()}
    capture.shared_memory += [
        _record(known.holder or capture, known, capture.early.get(keys[known.index]))
        for known in found
    ]


def _record(capture: Capture, known: SharedObject, early: Early | None) -> SharedMemory:
    opened = _open(capture, known)
    if opened is None and known.link and not known.areas:
        capture.refuse(
            known.subject,
            "cannot be opened for reading",
            "close it, or take the snapshot as a user who may read it",
        )
    try:
        content = Content()
        size, seals, mode, owner = known.extent, 0, 0, (0, 0)
        if opened is not None or known.link:
            status = os.stat(known.link) if opened is None else os.fstat(opened)
            size, mode = status.st_size, status.st_mode & 0o7777
            if known.kind == dev_shm.KIND:
                owner = private_folder.owner(capture, status)
                if status.st_nlink > 1:
                    capture.report(known.subject, "replaced", "other names of it are lost")
        if opened is not None:
            if known.kind == "memfd":
                seals = fcntl.fcntl(opened, F_GET_SEALS)
            if capture.save is not None:
                content = capture.save(FileSource(opened), data_runs(opened, size), early)
        elif known.areas and capture.save is not None:
            view = look(capture, known)
            if known.kind != "anonymous" and not known.link:
                size = view.end
            _tell_unseen(capture, known, view, size)
            assert capture.target is not None
            source = MappedSource(capture.target.memory, view.pieces)
            content = capture.save(source, view.runs(), early)
        if known.segment is not None:
            size, mode = known.size, known.segment.permissions.mode
        return SharedMemory(
            kind=known.kind,
            name=known.name,
            size=size,
            seals=seals,
            mode=mode,
            owner=owner,
            linkable=known.linkable,
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
            known.subject,
            "cannot be opened for reading",
            "close it, or take the snapshot as a user who may read it",
        )
    return None


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


def stage(build: Build, start: int) -> None:
    """Choose where objects without a descriptor are mapped until every process has mapped them."""
    for index, record in enumerate(build.manifest.shared_memory):
        if record.kind in ("anonymous", system_v.KIND):
            build.staging[index] = start
            start += staged_size(build.manifest, index)


def staged_size(manifest: Manifest, index: int) -> int:
    """Bytes that an object takes of the address space for its filling."""
    size = max(manifest.shared_memory[index].size, PAGE)
    extents = [m.offset + m.end - m.start for m in _mappings_of(manifest.processes, index)]
    return -(-max([size, *extents]) // PAGE) * PAGE


def _mappings_of(processes: Iterable[Process], index: int) -> Iterator[Mapping]:
    return (m for process in processes for m in process.memory.mappings if m.object == index)


def rebuild_objects(build: Build) -> Iterator[Batch | Fill]:
    """Make every object and fill it through a temporary mapping."""
    for index, record in enumerate(build.manifest.shared_memory):
        length = staged_size(build.manifest, index)
        if record.kind == "anonymous":
            flags = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
            if any("nr" in m.flags for m in _mappings_of(build.manifest.processes, index)):
                flags |= MAP_NORESERVE  # the commit limit may be far below a sparse area's size
            make = Batch("make shared anonymous memory")
            at = build.staging[index]
            make.call("mmap", at, length, PROT_READ | PROT_WRITE, flags, -1, 0)
            yield make
            yield Fill("shared anonymous memory", record.content, at)
        elif record.kind == system_v.KIND:
            yield from system_v.rebuild_segment(build, record, build.staging[index])
        else:
            yield from _with_descriptor(build, index, record, length)


def _with_descriptor(
    build: Build, index: int, record: SharedMemory, length: int
) -> Iterator[Batch | Fill]:
    note = f"{record.kind} {record.name}"
    fresh, held = Cell("fresh"), build.held_object(index)
    make = Batch(f"make {note}")
    if record.kind == "memfd":
        flags = MFD_CLOEXEC | (0 if record.seals == SEAL_SEAL else MFD_ALLOW_SEALING)
        make.call("memfd_create", record.name.encode() + b"\0", flags, store=fresh, note=note)
    elif record.kind == dev_shm.KIND:
        dev_shm.make(make, record, fresh, note)
    elif not os.access(os.path.dirname(record.name), os.W_OK | os.X_OK):
        reason = "nothing can be made in its directory; its content is in a memfd"
        build.notes.append(Note(object=note, status="replaced", reason=reason))
        name = os.fsencode(record.name)[-_LONGEST_NAME:] + b"\0"
        make.call("memfd_create", name, MFD_CLOEXEC, store=fresh, note=note)
    elif unnamed_file.can_be_had(build, record, note):
        unnamed_file.make(make, record, fresh, note)
    else:
        path = _free_name(build, record.name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        make.call("openat", AT_FDCWD, path, flags, 0o600, store=fresh, note=note)
        make.call("unlinkat", AT_FDCWD, path, 0, note=note)
    make.call("dup3", fresh, held, os.O_CLOEXEC)
    make.call("close", fresh)
    make.call("ftruncate", held, record.size, note=note)
    make.call("fchmod", held, record.mode or 0o600, note=note)
    shared = MAP_SHARED | MAP_FIXED_NOREPLACE
    make.call("mmap", build.hole, length, PROT_READ | PROT_WRITE, shared, held, 0, note=note)
    yield make
    yield Fill(note, record.content, build.hole)
    unmap = Batch(f"unmap {note}")
    unmap.call("munmap", build.hole, length)
    yield unmap


def rebuild_mappings(build: Build) -> Batch:
    """Map the objects where this process had them."""
    batch = Batch("map shared memory")
    for index, record in enumerate(build.manifest.shared_memory):
        mappings = list(_mappings_of([build.process], index))
        if record.kind == "anonymous":
            _map_anonymous(build, batch, index, mappings)
            continue
        if record.segment is not None:
            system_v.rebuild_mappings(build, batch, record.segment, build.staging[index], mappings)
            continue
        note, held = f"{record.kind} {record.name}", build.held_object(index)
        readers = [m for m in mappings if m.shared and "mw" not in m.flags]
        for mapping in mappings:
            if mapping not in readers:
                _map(batch, mapping, held, note)
        if readers:
            reader = reopen(build, batch, held, os.O_RDONLY, note)
            for mapping in readers:
                _map(batch, mapping, reader, note)
            batch.call("close", reader)
    return batch


def _map_anonymous(build: Build, batch: Batch, index: int, mappings: Sequence[Mapping]) -> None:
    at = build.staging[index]
    for mapping in mappings:
        size = mapping.end - mapping.start
        flags = MREMAP_MAYMOVE | MREMAP_FIXED
        note = f"memory {mapping.start:#x}-{mapping.end:#x}"
        batch.call("mremap", at + mapping.offset, 0, size, flags, mapping.start, note=note)
        if mapping.protection != PROT_READ | PROT_WRITE:
            batch.call("mprotect", mapping.start, size, mapping.protection, note=note)


def staged(build: Build) -> list[tuple[int, int]]:
    """Where objects without a descriptor are mapped meanwhile: start and length."""
    return [(at, staged_size(build.manifest, index)) for index, at in build.staging.items()]


def rebuild_unstaged(build: Build) -> Batch:
    """When the process and all its children have mapped them."""
    batch = Batch("unmap what was only mapped meanwhile")
    for at, length in staged(build):
        batch.call("munmap", at, length)
    return batch


def rebuild_seals(build: Build) -> Batch:
    """When every process has mapped what it may write."""
    batch = Batch("seal memfds")
    for index, record in enumerate(build.manifest.shared_memory):
        if record.kind == "memfd" and record.seals & ~SEAL_SEAL:
            held, note = build.held_object(index), f"{record.kind} {record.name}"
            batch.call("fcntl", held, F_ADD_SEALS, record.seals, note=note)
    return batch


def _map(batch: Batch, mapping: Mapping, descriptor: int | Cell, note: str) -> None:
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


def reopen(build: Build, batch: Batch, descriptor: int | Cell, flags: int, note: str) -> Cell:
    """A new description of an object, through a number that is known when the batch is made."""
    number = build.high - 1
    fresh = Cell("reopened")
    batch.call("dup3", descriptor, number, os.O_CLOEXEC, note=note)
    path = f"/proc/self/fd/{number}\0".encode()
    batch.call("openat", AT_FDCWD, path, flags & ~WAYS_TO_OPEN, store=fresh, note=note)
    batch.call("close", number)
    return fresh


def _free_name(build: Build, path: str) -> bytes:
    """The deleted file's own path if nothing stands there now, else one beside it."""
    taken = {r.name for r in build.manifest.shared_memory if r.kind == dev_shm.KIND}
    if path in taken or os.path.lexists(path):
        path += f".{secrets.token_hex(8)}"
    return os.fsencode(path) + b"\0"
