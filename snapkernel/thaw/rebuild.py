"""The order in which a stub becomes the process of the image.

The rules behind it: the address space is empty before it is filled; memory is there before the
kernel is told of its layout; descriptors before threads, which share them; what needs a privilege
before the credentials; timers last. Every thread is stopped until all is done.

The steps are data: :func:`steps` makes them from the manifest alone, to be printed or run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from snapkernel.freeze.agent import SIZE, find_hole
from snapkernel.freeze.batch import Batch
from snapkernel.model import TcpListener, Thread
from snapkernel.resources import (
    credentials,
    descriptors,
    file_locks,
    memory,
    process,
    signals,
    system_v,
    threads,
    timers,
    vdso,
)
from snapkernel.resources.context import Build, Fill

_LOWEST = 0x10000


@dataclass(frozen=True)
class OnThread:
    """A batch that a certain thread must run."""

    thread: Thread
    batch: Batch


@dataclass(frozen=True)
class MakeThreads:
    """A batch whose calls are the births of the other threads."""

    batch: Batch


@dataclass(frozen=True)
class Listen:
    """Bind and listen, at the old port or, when it is taken, at another."""

    index: int
    listener: TcpListener


@dataclass(frozen=True)
class Write:
    """Bytes that are not in the store."""

    what: str
    address: int
    data: bytes


@dataclass(frozen=True)
class FillAll:
    """The private memory."""

    fill: Fill


Step = Batch | Fill | FillAll | OnThread | MakeThreads | Listen | Write


def occupied(build: Build) -> list[tuple[int, int]]:
    """What the image takes of the address space."""
    space = build.process.memory
    taken = [(mapping.start, mapping.end) for mapping in space.mappings]
    if space.vdso is not None:
        taken.append((space.vdso.start, space.vdso.end))
    return taken


def prepare(build: Build, agent: int) -> None:
    """Choose numbers and addresses, with the agent at ``agent``."""
    build.high = descriptors.first_high(build)
    for entry in build.process.descriptors:
        build.entries.setdefault(entry.description, []).append(entry)
    largest = max((record.size for record in build.manifest.shared_memory), default=0)
    extents = [
        m.offset + m.end - m.start for m in build.process.memory.mappings if m.object is not None
    ]
    taken = [*occupied(build), (agent, agent + SIZE)]
    size = max([largest, *extents, 0]) + SIZE
    build.hole = find_hole(taken, size, build.architecture.task_size)


def steps(
    build: Build, agent: int, *, same_vdso: bool, own_namespace: bool, identity: bool
) -> Iterator[Step]:
    """All steps between an installed agent and its removal.

    Args:
        same_vdso: this kernel's vdso is the image's.
        own_namespace: the stub is in a user namespace of its own.
        identity: its ids are not the image's.
    """
    yield _clear(build, agent)
    yield descriptors.rebuild_inherited(build)
    yield from memory.rebuild_mappings(build)
    yield from _vdso(build, same_vdso)
    yield FillAll(Fill("private memory", build.process.memory.content))
    yield process.rebuild_layout(build)
    yield memory.rebuild_protection(build)
    yield system_v.rebuild(build)
    yield process.rebuild_attributes(build)
    yield signals.rebuild_actions(build, build.architecture)
    yield descriptors.rebuild_create(build)
    for index, listener in descriptors.listeners(build):
        yield Listen(index, listener)
    yield descriptors.rebuild_connect(build)
    yield file_locks.rebuild(build)
    if len(build.process.threads) > 1:
        yield MakeThreads(threads.rebuild_threads(build))
    for thread in build.process.threads:
        yield OnThread(thread, threads.rebuild_thread(build, thread, build.architecture))
    yield from timers.rebuild_timers(build)
    yield signals.rebuild_pending(build)
    yield process.rebuild_limits(build)
    for thread in build.process.threads:
        batch = credentials.rebuild(build, own_namespace=own_namespace, identity=identity)
        yield OnThread(thread, threads.rebuild_last(batch, thread))
    yield process.rebuild_dumpable(build)
    yield timers.arm(build)


def _clear(build: Build, agent: int) -> Batch:
    """Unmap everything but the agent."""
    batch = Batch("clear the address space")
    batch.call("munmap", _LOWEST, agent - _LOWEST)
    above = agent + SIZE
    batch.call("munmap", above, build.architecture.task_size - above)
    return batch


def _vdso(build: Build, same: bool) -> Iterator[Step]:
    old = build.process.memory.vdso
    if old is None:
        return
    if same:
        yield vdso.map_fresh(build.architecture, old)
        return
    yield vdso.map_old_text(old)
    text = vdso.redirected(build.architecture, old)
    yield Write("the old vdso, redirected to system calls", old.text_start, text)


def lines(step: Step) -> Iterator[str]:
    """A step as text."""
    if isinstance(step, Batch):
        yield f"-- {step.title}"
        yield from step.lines()
    elif isinstance(step, OnThread):
        yield f"-- in thread {step.thread.tid}: {step.batch.title}"
        yield from step.batch.lines()
    elif isinstance(step, MakeThreads):
        yield from lines(step.batch)
    elif isinstance(step, FillAll):
        yield from lines(step.fill)
    elif isinstance(step, Fill):
        chunks = sum(1 for _ in step.content.iter_chunks())
        yield f"-- fill {step.what}: {step.content.length} bytes in {chunks} chunks"
    elif isinstance(step, Listen):
        where = f"{step.listener.address} port {step.listener.port}"
        yield f"-- listen on {where}, or another port if it is taken"
    else:
        yield f"-- write {len(step.data)} bytes at {step.address:#x}: {step.what}"
