"""What ``/proc/PID`` tells about a process (proc(5)), parsed."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

from snapkernel.errors import TargetError

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4


def read(path: str) -> bytes:
    """The whole of a file of /proc; one ``read`` suffices for most.

    Raises:
        OSError: as open(2) and read(2) do.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 1 << 20):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def text(path: str) -> str:
    """The same, decoded as file names are."""
    return os.fsdecode(read(path))


@contextmanager
def understood(object: str) -> Iterator[None]:
    """What is parsed in the block says what this version knows.

    Raises:
        TargetError: it does not; ``object`` names what it was about.
    """
    try:
        yield
    except (ValueError, LookupError, OverflowError, struct.error) as error:
        reason = f"the kernel describes it in an unknown way ({type(error).__name__}: {error})"
        raise TargetError(object, reason, "upgrade snapkernel") from error


def available_memory() -> int:
    """Bytes that can be had without swapping, MemAvailable of ``/proc/meminfo`` (Linux 3.14)."""
    return int(text("/proc/meminfo").partition("MemAvailable:")[2].split()[0]) << 10


def free_swap() -> int:
    """Bytes of swap that are free, SwapFree of ``/proc/meminfo``."""
    return int(text("/proc/meminfo").partition("SwapFree:")[2].split()[0]) << 10


def boot_id() -> str:
    """Of this host until it is booted again; empty where it may not be read."""
    try:
        return text("/proc/sys/kernel/random/boot_id").strip()
    except OSError:
        return ""


def status(pid: int, tid: int | None = None) -> dict[str, str]:
    """``/proc/PID/status``, or that of a thread, by field.

    Raises:
        TargetError: there is no such process.
    """
    path = f"/proc/{pid}/status" if tid is None else f"/proc/{pid}/task/{tid}/status"
    try:
        lines = text(path).split("\n")
    except (FileNotFoundError, ProcessLookupError):
        raise TargetError(f"process {pid}", "there is no such process") from None
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def stat(pid: int) -> list[str]:
    """``/proc/PID/stat`` from field 3 (state) on, so that index ``n - 3`` is proc(5)'s field n."""
    return text(f"/proc/{pid}/stat").rpartition(")")[2].split()


def tids(pid: int) -> list[int]:
    """All threads, the leader first."""
    return sorted(
        (int(name) for name in os.listdir(f"/proc/{pid}/task")), key=lambda t: (t != pid, t)
    )


def innermost(ids: str) -> int:
    """The last id of a line such as ``NSpid: 4711 17``: the process's own view."""
    return int(ids.split()[-1])


def inner_tid(pid: int, tid: int) -> int:
    """The id of a thread as it sees it itself (pid_namespaces(7))."""
    status = read(f"/proc/{pid}/task/{tid}/status")
    with understood(f"thread {tid}"):
        return int(status.partition(b"\nNSpid:")[2].split(b"\n", 1)[0].split()[-1])


def descendants(pid: int) -> list[int]:
    """Children, and theirs, and so on; every parent before its children."""
    found = [pid]
    for one in found:
        try:
            found += [child for child in children(one) if child not in found]
        except OSError:
            continue  # it has ended meanwhile
    return found[1:]


def children(pid: int) -> list[int]:
    """Processes whose parent is ``pid``, zombies included.

    ``/proc/PID/task/TID/children`` needs CONFIG_PROC_CHILDREN; without it all of /proc is read.
    """
    try:
        return [
            int(child)
            for tid in tids(pid)
            for child in text(f"/proc/{pid}/task/{tid}/children").split()
        ]
    except FileNotFoundError:
        pass
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if int(stat(int(name))[1]) == pid:
                found.append(int(name))
        except OSError:
            continue
    return found


class Area(NamedTuple):
    """A line of ``/proc/PID/maps``."""

    start: int
    end: int
    permissions: str
    offset: int
    device: str
    inode: int
    name: str

    @property
    def protection(self) -> int:
        """``PROT_*`` bits."""
        return sum(
            bit
            for bit, letter in ((PROT_READ, "r"), (PROT_WRITE, "w"), (PROT_EXEC, "x"))
            if letter in self.permissions
        )

    @property
    def shared(self) -> bool:
        """``MAP_SHARED``."""
        return self.permissions[3] == "s"

    @property
    def path(self) -> str:
        """The name without the mark of deletion."""
        return self.name.removesuffix(" (deleted)")


_AREA = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-][sp]) ([0-9a-f]+) ([0-9a-f:]+) ([0-9]+) *(.*)"
)


def _area(match: re.Match[str] | None, line: str) -> Area:
    if match is None:
        raise ValueError(f"{line[:80]!a} is no mapping")
    start, end, permissions, offset, device, inode, name = match.groups()
    name = name.replace("\\012", "\n")
    return Area(
        int(start, 16), int(end, 16), permissions, int(offset, 16), device, int(inode), name
    )


def areas(maps: str) -> list[Area]:
    """Parse the text of ``maps``.

    Raises:
        TargetError: a line is none of ``maps``.
    """
    with understood("memory mappings"):
        return [_area(_AREA.fullmatch(line), line) for line in maps.split("\n") if line]


def areas_with_flags(smaps: str) -> Iterator[tuple[Area, tuple[str, ...]]]:
    """Parse the text of ``smaps``: areas with their VmFlags (Linux 3.8)."""
    area = None
    for line in smaps.split("\n"):
        if line.startswith("VmFlags:"):
            if area is not None:
                yield area, tuple(line.split()[1:])
        elif match := _AREA.fullmatch(line):
            area = _area(match, line)


class Mount(NamedTuple):
    """A line of ``/proc/PID/mountinfo``.

    Attributes:
        device: as in ``maps``.
        root: what of the file system is mounted.
        place: where, with blanks and the like as octal numbers.
        kind: of the file system.
        source: what it was mounted from, by a name that its mounter chose.
    """

    device: str
    root: str
    place: str
    kind: str
    source: str


def mounts(pid: int) -> list[Mount]:
    """The mounts that a process sees.

    Raises:
        TargetError: a line is none of ``mountinfo``.
    """
    with understood(f"mounts of process {pid}"):
        lines = text(f"/proc/{pid}/mountinfo").split("\n")
        return [_mount(line) for line in lines if line]


def _mount(line: str) -> Mount:
    # Places may have any other characters, also such that str.split takes for blanks or ends.
    _, _, device, root, place, *_ = line.split(" ")
    major, minor = map(int, device.split(":"))
    kind, source, *_ = line.partition(" - ")[2].split(" ")
    return Mount(f"{major:02x}:{minor:02x}", root, place, kind, source)


def descriptor_info(pid: int, fd: int) -> dict[str, str]:
    """``/proc/PID/fdinfo/FD`` by field; of repeated fields (epoll's ``tfd``) the last."""
    lines = text(f"/proc/{pid}/fdinfo/{fd}").split("\n")
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def limits(pid: int) -> dict[int, tuple[int, int]]:
    """``/proc/PID/limits``: soft and hard limit by ``RLIMIT_*`` number, -1 when unlimited.

    The file lists them in the order of <asm-generic/resource.h>'s names, not numbers.
    """
    numbers = {
        "Max cpu time": 0,
        "Max file size": 1,
        "Max data size": 2,
        "Max stack size": 3,
        "Max core file size": 4,
        "Max resident set": 5,
        "Max processes": 6,
        "Max open files": 7,
        "Max locked memory": 8,
        "Max address space": 9,
        "Max file locks": 10,
        "Max pending signals": 11,
        "Max msgqueue size": 12,
        "Max nice priority": 13,
        "Max realtime priority": 14,
        "Max realtime timeout": 15,
    }
    found = {}
    with understood(f"limits of process {pid}"):
        for line in text(f"/proc/{pid}/limits").split("\n")[1:]:
            name, values = line[:26].strip(), line[26:].split()
            if name in numbers:
                soft, hard = (-1 if word == "unlimited" else int(word) for word in values[:2])
                found[numbers[name]] = (soft, hard)
    return found


def build_id(path: str) -> str:
    """The GNU build id of an ELF file in hexadecimal, or nothing.

    Reads the notes of the program headers (elf(5)).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            return _build_id(file)
    except (OSError, OverflowError, ValueError):
        return ""


_MOST_NOTES = 4096


def _build_id(file: BinaryIO) -> str:
    header = file.read(64)
    if len(header) < 64 or header[:4] != b"\x7fELF":
        return ""
    wide, order = header[4] == 2, "<" if header[5] == 1 else ">"
    # Program headers: where they are, their size and number; of each its type, offset and size.
    (table,) = struct.unpack_from(f"{order}Q" if wide else f"{order}I", header, 32 if wide else 28)
    size, count = struct.unpack_from(f"{order}HH", header, 54 if wide else 42)
    layout = struct.Struct(f"{order}I4xQ16xQ" if wide else f"{order}II8xI")
    for number in range(count if size >= layout.size else 0):
        file.seek(table + number * size)
        entry = file.read(layout.size)
        if len(entry) < layout.size:
            return ""
        kind, at, length = layout.unpack(entry)
        if kind != _PT_NOTE:
            continue
        file.seek(at)
        found = _build_id_note(file.read(min(length, _MOST_NOTES)), order)
        if found:
            return found
    return ""


_PT_NOTE, _NT_GNU_BUILD_ID = 4, 3


def _build_id_note(notes: bytes, order: str) -> str:
    offset = 0
    while offset + 12 <= len(notes):
        names, words, kind = struct.unpack_from(f"{order}3I", notes, offset)
        start = offset + 12 + (names + 3 & ~3)
        if kind == _NT_GNU_BUILD_ID and notes[offset + 12 : offset + 16] == b"GNU\0":
            return notes[start : start + words].hex()
        offset = start + (words + 3 & ~3)
    return ""
