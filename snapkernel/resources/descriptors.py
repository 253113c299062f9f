"""The descriptor table: which module owns which kind, and how the table is put together.

Every kind is a module with ``RECORDS`` (its record types), ``recognises``, ``capture``, ``create``
and, where it refers to other descriptions, ``connect``. What no module recognises is refused.

On rebuild each description is made at whatever number is free and held at one above all final
numbers; every process puts what it had from there to its own numbers; then the registrations of
epolls are made.
"""

from __future__ import annotations

import os
from types import ModuleType

from snapkernel import procfs
from snapkernel.constants import F_DUPFD_CLOEXEC
from snapkernel.freeze.batch import Batch, Cell
from snapkernel.model import AnyDescription, Descriptor, Epoll, Process, TcpListener
from snapkernel.resources import (
    bound_socket,
    device,
    epoll,
    eventfd,
    fifo,
    file_owner,
    inet_socket,
    inotify,
    path_descriptor,
    pid_descriptor,
    pipe,
    posix_queue,
    refused_socket,
    regular_file,
    signalfd,
    sockets,
    stream,
    terminal,
    timerfd,
    unix_datagram,
    unix_listener,
    unix_socket,
)
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table

KINDS: tuple[ModuleType, ...] = (
    path_descriptor,
    posix_queue,
    regular_file,
    device,
    pipe,
    fifo,
    pid_descriptor,
    terminal,
    eventfd,
    epoll,
    timerfd,
    signalfd,
    inotify,
    unix_listener,
    unix_datagram,
    unix_socket,
    bound_socket,
    inet_socket,
    refused_socket,
)
OWNER = {record: kind for kind in (*KINDS, stream) for record in kind.RECORDS}

# Kinds that exist and cannot be saved, by how /proc names them.
KNOWN_BY_NAME = {
    "anon_inode:[io_uring]": "io_uring instances cannot be saved",
    "anon_inode:[fanotify]": "fanotify instances cannot be saved",
    "anon_inode:[userfaultfd]": "userfaultfd descriptors cannot be saved",
    "anon_inode:[perf_event]": "performance counters cannot be saved",
    "anon_inode:bpf": "BPF objects cannot be saved",
    "/dev/nvidia": "GPU memory cannot be saved yet",
    "/": "this kind of file cannot be saved yet",
}


def capture(capture: Capture, table: Table) -> dict[int, tuple[Descriptor, ...]]:
    """All descriptions (into the capture) and the tables of the processes."""
    sockets.collect(capture, table)
    for file in table.files:
        record = _describe(capture, file, table)
        if record is not None:
            capture.descriptions.append(record)
    parts = stream.parts(capture, table)
    return {
        pid: tuple(
            Descriptor(
                number=number,
                description=parts.get((index, number), index),
                close_on_exec=close,
            )
            for number, index, close in entries
        )
        for pid, entries in table.entries.items()
    }


def _describe(capture: Capture, file: OpenFile, table: Table) -> AnyDescription | None:
    with procfs.understood(file.subject):
        return _describe_by_kind(capture, file, table)


def _describe_by_kind(capture: Capture, file: OpenFile, table: Table) -> AnyDescription | None:
    if stream.is_stream(capture, file, table):
        return file_owner.capture(capture, file, table, stream.capture(capture, file, table))
    for kind in KINDS:
        if kind.recognises(file):
            record: AnyDescription | None = kind.capture(capture, file, table)
            if file.field("lock") and record is not None and not hasattr(record, "locks"):
                capture.refuse(file.subject, "is locked, which cannot be saved", "unlock it")
            return None if record is None else file_owner.capture(capture, file, table, record)
    reasons = (reason for name, reason in KNOWN_BY_NAME.items() if file.link.startswith(name))
    reason = next(reasons, "this kind of descriptor is unknown")
    capture.refuse(file.subject, reason, "close it before the snapshot")
    return None


# --- rebuild -----------------------------------------------------------------------------------


def first_high(build: Build) -> int:
    """A number above everything that the process has, or had when it registered it."""
    numbers = [e.number for process in build.manifest.processes for e in process.descriptors]
    for description in build.manifest.descriptions:
        if isinstance(description, Epoll):
            numbers += [target.descriptor for target in description.targets]
    return max(numbers, default=2) + 2


def rebuild_inherited(build: Build) -> Batch:
    """Move the streams that the stub was given up, and close all else."""
    batch = Batch("take over standard streams")
    for number, inherited in build.streams.items():
        cell = build.stream_cells[number] = Cell(f"stream{number}")
        batch.call("fcntl", inherited, F_DUPFD_CLOEXEC, build.above, store=cell, note="stream")
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
        inet_socket.create(build, batch, record, index)
    inet_socket.bind(build, batch, index, record, port)
    inet_socket.listen(build, batch, index, record)


def rebuild_place(build: Build) -> Batch:
    """Put everything where this process had it."""
    batch = Batch("put descriptors in their places")
    for entry in build.process.descriptors:
        flags = os.O_CLOEXEC if entry.close_on_exec else 0
        held = build.held(entry.description)
        batch.call("dup3", held, entry.number, flags, note=f"fd {entry.number}")
    return batch


def rebuild_connect(build: Build) -> Batch:
    """What refers to other descriptors, by the first process that has it; then nothing is needed
    above the final numbers."""
    batch = Batch("connect descriptors")
    for index, description in enumerate(build.manifest.descriptions):
        connect = getattr(OWNER[type(description)], "connect", None)
        if connect is not None and _first_holder(build, index) is build.process:
            connect(build, batch, description, index)
    batch.call("close_range", build.high - 1, 0xFFFFFFFF, 0)
    return batch


def _first_holder(build: Build, index: int) -> Process | None:
    for process in build.manifest.processes:
        if any(entry.description == index for entry in process.descriptors):
            return process
    return None
