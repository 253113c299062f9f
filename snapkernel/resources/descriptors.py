"""The descriptor table: which module owns which kind, and how the table is put together.

Every kind is a module with ``RECORDS`` (its record types), ``recognises``, ``capture``, ``create``
and, where it refers to other descriptions, ``connect``. What no module recognises is refused.

On rebuild each description is made at whatever number is free, moved above all final numbers, and
from there to its own; then the registrations of epolls are made.
"""

from __future__ import annotations

from types import ModuleType

from snapkernel.constants import F_DUPFD_CLOEXEC
from snapkernel.freeze.batch import Batch, Cell
from snapkernel.model import AnyDescription, Descriptor, Epoll, TcpListener
from snapkernel.resources import (
    device,
    epoll,
    eventfd,
    inet_socket,
    pipe,
    posix_queue,
    regular_file,
    signalfd,
    stream,
    timerfd,
    unix_socket,
)
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table

KINDS: tuple[ModuleType, ...] = (
    posix_queue,
    regular_file,
    device,
    pipe,
    eventfd,
    epoll,
    timerfd,
    signalfd,
    unix_socket,
    inet_socket,
)
OWNER = {record: kind for kind in (*KINDS, stream) for record in kind.RECORDS}

# Kinds that exist and cannot be saved, by how /proc names them.
KNOWN_BY_NAME = {
    "anon_inode:[io_uring]": "io_uring instances cannot be saved",
    "anon_inode:inotify": "inotify instances cannot be saved yet",
    "inotify": "inotify instances cannot be saved yet",
    "anon_inode:[fanotify]": "fanotify instances cannot be saved",
    "anon_inode:[userfaultfd]": "userfaultfd descriptors cannot be saved",
    "anon_inode:[pidfd]": "pidfds cannot be saved yet",
    "anon_inode:[perf_event]": "performance counters cannot be saved",
    "anon_inode:bpf": "BPF objects cannot be saved",
    "anon_inode:[aio]": "asynchronous I/O contexts cannot be saved",
    "socket": "sockets of this family or type cannot be saved yet",
    "/dev/nvidia": "GPU memory cannot be saved yet",
    "/dev/ptmx": "pseudo-terminals cannot be saved yet",
    "/dev/pts/": "pseudo-terminals cannot be saved yet",
    "/": "this kind of file cannot be saved yet",
}


def capture(capture: Capture, table: Table) -> tuple[Descriptor, ...]:
    """All descriptions (into the capture) and the table of this process."""
    for file in table.files:
        record = _describe(capture, file, table)
        if record is not None:
            capture.descriptions.append(record)
    return tuple(
        Descriptor(number=number, description=index, close_on_exec=close)
        for number, index, close in table.entries
    )


def _describe(capture: Capture, file: OpenFile, table: Table) -> AnyDescription | None:
    if stream.is_stream(capture, file, table):
        return stream.capture(capture, file, table)
    for kind in KINDS:
        if kind.recognises(file):
            record: AnyDescription | None = kind.capture(capture, file, table)
            if file.field("lock") and record is not None and not hasattr(record, "locks"):
                capture.refuse(file.subject, "is locked, which cannot be saved", "unlock it")
            return record
    reasons = (reason for name, reason in KNOWN_BY_NAME.items() if file.link.startswith(name))
    reason = next(reasons, "this kind of descriptor is unknown")
    capture.refuse(file.subject, reason, "close it before the snapshot")
    return None


# --- rebuild -----------------------------------------------------------------------------------


def first_high(build: Build) -> int:
    """A number above everything that the process has, or had when it registered it."""
    numbers = [entry.number for entry in build.process.descriptors]
    for description in build.manifest.descriptions:
        if isinstance(description, Epoll):
            numbers += [target.descriptor for target in description.targets]
    return max(numbers, default=2) + 2


def rebuild_inherited(build: Build) -> Batch:
    """Move the streams that the stub was given up, and close all else."""
    batch = Batch("take over standard streams")
    for number, inherited in build.streams.items():
        cell = build.stream_cells[number] = Cell(f"stream{number}")
        batch.call("fcntl", inherited, F_DUPFD_CLOEXEC, build.high, store=cell, note="stream")
    batch.call("close_range", 0, build.high - 1, 0)
    return batch


def rebuild_create(build: Build) -> Batch:
    """Make every description."""
    batch = Batch("open files, pipes and sockets")
    for index, description in enumerate(build.manifest.descriptions):
        OWNER[type(description)].create(build, batch, description, index)
    return batch


def listeners(build: Build) -> list[tuple[int, TcpListener]]:
    """Descriptions that want a port."""
    return [
        (index, description)
        for index, description in enumerate(build.manifest.descriptions)
        if isinstance(description, TcpListener)
    ]


def bind(build: Build, batch: Batch, index: int, record: TcpListener, port: int) -> None:
    """One listener's bind and listen; another port than its own needs another socket, as the
    first one is bound by now."""
    if port != record.port:
        for entry in build.entries[index]:
            batch.call("close", entry.number)
        inet_socket.create(build, batch, record, index)
    inet_socket.bind(build, batch, index, record, port)
    inet_socket.listen(build, batch, index, record)


def rebuild_connect(build: Build) -> Batch:
    """What refers to other descriptors; then nothing is needed above the final numbers."""
    batch = Batch("connect descriptors")
    for index, description in enumerate(build.manifest.descriptions):
        connect = getattr(OWNER[type(description)], "connect", None)
        if connect is not None:
            connect(build, batch, description, index)
    batch.call("close_range", build.high - 1, 0xFFFFFFFF, 0)
    return batch
