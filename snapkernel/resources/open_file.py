"""An open file description (open(2)) of the processes, held by a descriptor of our own.

pidfd_getfd(2) (Linux 5.6) gives us the same description, so it can be asked with any system call;
kcmp(2) tells which descriptors share one, be it in one process or in several. Nothing runs in the
processes for that.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from snapkernel import procfs, seccomp
from snapkernel._native import lib
from snapkernel.errors import TargetError


@dataclass
class OpenFile:
    """A description while it is looked at.

    Attributes:
        index: into ``Manifest.descriptions``.
        pid: of the first process that has it.
        numbers: descriptors of that process that refer to it.
        link: what ``/proc/PID/fd/N`` points to.
        info: ``/proc/PID/fdinfo/N``, whole.
        locks: ``lock:`` lines of fdinfo, each with the pid of the process it was read from.
        status: fstat(2).
        descriptor: our own.
    """

    index: int
    pid: int
    numbers: list[int]
    link: str
    info: str
    status: os.stat_result
    descriptor: int
    locks: list[tuple[int, str]] = field(default_factory=list)

    def close(self) -> None:
        """Let go of the description."""
        if "socket" in self.__dict__:
            self.socket.detach()
        os.close(self.descriptor)

    @property
    def subject(self) -> str:
        """How to name it to the user."""
        link = self.link.encode(errors="backslashreplace").decode()
        return f"fd {self.numbers[0]} ({link})"

    @cached_property
    def _fields(self) -> dict[str, str]:
        lines = (line.partition(":") for line in self.info.splitlines())
        return {key: value.strip() for key, _, value in lines}

    def field(self, name: str) -> str:
        """A field of fdinfo; empty when it is not there."""
        return self._fields.get(name, "")

    @cached_property
    def flags(self) -> int:
        """File status flags, without O_CLOEXEC."""
        return int(self.field("flags"), 8) & ~os.O_CLOEXEC

    @cached_property
    def socket(self) -> socket.socket:
        """Our descriptor as a socket; only while the table is open."""
        return socket.socket(fileno=self.descriptor)

    @cached_property
    def family(self) -> int:
        """Address family of a socket, -1 for anything else."""
        is_socket = stat.S_ISSOCK(self.status.st_mode) and not self.only_path
        return int(self.socket.family) if is_socket else -1

    @property
    def position(self) -> int:
        """File offset."""
        return int(self.field("pos"))

    @property
    def only_path(self) -> bool:
        """Opened with O_PATH: it can neither be read nor written, nor asked for much."""
        return bool(self.flags & os.O_PATH)

    @property
    def readable(self) -> bool:
        """Opened for reading."""
        return self.flags & (os.O_ACCMODE | os.O_PATH) in (os.O_RDONLY, os.O_RDWR)

    @property
    def writable(self) -> bool:
        """Opened for writing."""
        return self.flags & (os.O_ACCMODE | os.O_PATH) in (os.O_WRONLY, os.O_RDWR)

    @property
    def device(self) -> str:
        """``major:minor`` of its file system, as in ``/proc/PID/maps``."""
        return f"{os.major(self.status.st_dev):02x}:{os.minor(self.status.st_dev):02x}"

    @property
    def is_regular(self) -> bool:
        """A regular file, with a name or without."""
        return stat.S_ISREG(self.status.st_mode)


@dataclass
class Table:
    """The descriptor tables of processes.

    Attributes:
        files: the descriptions, by index.
        entries: of each process: ``(number, index, close-on-exec)``, ascending.
        similar: descriptions that may be the same, in kcmp's order.
    """

    files: list[OpenFile] = field(default_factory=list)
    entries: dict[int, list[tuple[int, int, bool]]] = field(default_factory=dict)
    similar: dict[tuple[str, int, int], list[OpenFile]] = field(default_factory=dict)

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes, by their pids on this host."""
        return tuple(self.entries)

    def by_number(self, pid: int, number: int) -> OpenFile | None:
        """What a descriptor of a process refers to."""
        return next((self.files[i] for n, i, _ in self.entries[pid] if n == number), None)

    def by_inode(self, inode: int, prefix: str) -> list[OpenFile]:
        """Descriptions whose link has this prefix, with this inode."""
        return [f for f in self.files if f.status.st_ino == inode and f.link.startswith(prefix)]


@contextmanager
def open_table(*pids: int) -> Iterator[Table]:
    """Look at the descriptor tables; our own descriptors are closed at the end of the block.

    Raises:
        TargetError: a process may not be examined.
    """
    table = Table()
    try:
        for pid in pids:
            _add_all(table, pid)
        yield table
    finally:
        for file in table.files:
            file.close()


def _add_all(table: Table, pid: int) -> None:
    table.entries[pid] = []
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        raise TargetError(f"process {pid}", "there is no such process") from None
    try:
        for number in sorted(map(int, os.listdir(f"/proc/{pid}/fd"))):
            _add(table, pid, handle, number)
    finally:
        os.close(handle)


def _add(table: Table, pid: int, handle: int, number: int) -> None:
    try:
        link = os.readlink(f"/proc/{pid}/fd/{number}")
        info = procfs.text(f"/proc/{pid}/fdinfo/{number}")
    except FileNotFoundError:
        return  # closed meanwhile, in a process that runs
    descriptor = lib.sk_pidfd_getfd(handle, number)
    if descriptor < 0:
        raise TargetError(
            f"fd {number} ({link}) of process {pid}",
            f"cannot be examined with pidfd_getfd: {os.strerror(-descriptor)}",
            seccomp.REMEDY if seccomp.is_filtered() else "",
        )
    flags = int(info.partition("flags:")[2].split(None, 1)[0], 8)
    status = os.fstat(descriptor)
    similar = table.similar.setdefault((link, status.st_ino, flags & ~os.O_CLOEXEC), [])
    position, same = find_same(pid, similar, number)
    if same is None:
        same = OpenFile(len(table.files), pid, [], link, info, status, descriptor)
        table.files.append(same)
        similar.insert(position, same)
    else:
        os.close(descriptor)
    if same.pid == pid:
        same.numbers.append(number)
    if "lock:" in info:
        note_locks(same, pid, info)
    table.entries[pid].append((number, same.index, bool(flags & os.O_CLOEXEC)))


def note_locks(file: OpenFile, pid: int, info: str) -> None:
    """fdinfo lists what was locked through the description, and what the process has locked."""
    seen = {line for _, line in file.locks}
    for line in info.splitlines():
        if line.startswith("lock:") and line not in seen:
            words = line.split()
            owner = int(words[5]) if len(words) > 5 and words[5].isdecimal() else pid
            file.locks.append((owner, line))


def find_same(pid: int, ordered: list[OpenFile], number: int) -> tuple[int, OpenFile | None]:
    """Where a descriptor's description is, or belongs, among similar ones: kcmp(2) answers 0 for
    the same, 1 for less and 2 for greater, in an order of its own."""
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high) // 2
        other = ordered[middle]
        order = lib.sk_kcmp_file(pid, number, other.pid, other.numbers[0])
        if order == 0:
            return middle, ordered[middle]
        if order < 0:
            reason = f"cannot be compared with kcmp: {os.strerror(-order)}"
            remedy = seccomp.REMEDY if seccomp.is_filtered() else ""
            raise TargetError(f"fd {number} of process {pid}", reason, remedy)
        low, high = (low, middle) if order == 1 else (middle + 1, high)
    return low, None
