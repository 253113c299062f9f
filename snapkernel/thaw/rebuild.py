"""The order in which a stub becomes the processes of the image.

The rules behind it: the address space is empty before it is filled; what processes share is made
in the first, before the others are forked from it; a child that has memory in common with its
parent is forked when that is filled; memory is there before the kernel is told of its layout;
descriptors before threads, which share them; what needs a privilege before the credentials; timers
last. Every thread is stopped until all is done.

The steps are data: :func:`steps` makes them from the manifest alone, to be printed or run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from snapkernel.freeze.agent import PAGE, find_hole
from snapkernel.freeze.batch import Batch
from snapkernel.freeze.layout import SIZE
from snapkernel.model import Manifest, TcpListener, Thread
from snapkernel.resources import (
    credentials,
    descriptors,
    family,
    file_locks,
    file_owner,
    inheritance,
    inotify,
    memory,
    memory_locks,
    private_folder,
    proc_file,
    process,
    shared_memory,
    signals,
    sockets,
    system_v,
    terminal,
    threads,
    timers,
    vdso,
)
from snapkernel.resources.context import Build, Fill
from snapkernel.resources.inheritance import LOWEST
from snapkernel.runs import Run


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
    """The private memory.

    Attributes:
        there: where pages of the parent are there already, of which the same are to stay.
    """

    fill: Fill
    there: Sequence[Run] = ()


Step = (
    Batch
    | Fill
    | FillAll
    | OnThread
    | MakeThreads
    | Listen
    | sockets.Step
    | terminal.Fill
    | Write
    | family.Fork
    | family.End
)


def occupied(manifest: Manifest) -> list[tuple[int, int]]:
    """What the image takes of the address space, in any process."""
    spaces = [process.memory for process in manifest.processes]
    taken = [(mapping.start, mapping.end) for space in spaces for mapping in space.mappings]
    return taken + [(s.vdso.start, s.vdso.end) for s in spaces if s.vdso is not None]


def prepare(build: Build, agent: int) -> None:
    """Choose numbers and addresses, with the agent at ``agent``."""
    build.high = descriptors.first_high(build)
    sockets.prepare(build)
    sizes = [
        shared_memory.staged_size(build.manifest, index)
        for index in range(len(build.manifest.shared_memory))
    ]
    room = max(sizes, default=0) + PAGE
    taken = [*occupied(build.manifest), (agent, agent + SIZE)]
    build.hole = find_hole(taken, room + sum(sizes) + SIZE, build.architecture.task_size)
    shared_memory.stage(build, build.hole + room)


def steps(
    builds: Sequence[Build],
    agent: int,
    *,
    same_vdso: Sequence[bool],
    own_namespace: bool,
    identity: bool,
) -> Iterator[tuple[int, Step]]:
    """All steps between an installed agent and its removal, each with the pid of the process that
    it is for.

    Args:
        builds: of all processes, the first process first.
        same_vdso: this kernel's vdso is the image's, for each process.
        own_namespace: the stub is in a user namespace of its own.
        identity: its ids are not the image's.
    """
    first = builds[0]
    pid = first.process.pid
    yield pid, _clear(first, agent)
    yield pid, descriptors.rebuild_inherited(first)
    yield from ((pid, step) for step in shared_memory.rebuild_objects(first))
    yield pid, system_v.rebuild(first)
    yield pid, descriptors.rebuild_create(first)
    for index, listener in descriptors.listeners(first):
        yield pid, Listen(index, listener)
    yield from ((pid, step) for step in sockets.steps(first))
    yield from ((pid, step) for step in terminal.steps(first))
    spaces = _Spaces(builds, same_vdso, agent)
    for parent, birth in family.steps(builds, spaces.heirs):
        if isinstance(birth, family.Fork) and birth.child.pid in spaces.heirs:
            yield from spaces.filled(parent)
        spaces.born(birth, parent)
        yield parent, birth
    for build in builds:
        yield from spaces.filled(build.process.pid)
    yield pid, shared_memory.rebuild_seals(first)
    yield pid, system_v.rebuild_last(first)
    yield pid, private_folder.rebuild(first)
    for build in builds:
        for step in _rest(build, own_namespace, identity):
            yield build.process.pid, step


class _Spaces:
    """The address spaces. Each is filled before a child is born that keeps some of it, and
    otherwise when all are born: what is small is quickly forked.

    Attributes:
        heirs: pids of the children that inherit something.
    """

    def __init__(self, builds: Sequence[Build], same_vdso: Sequence[bool], agent: int) -> None:
        self._builds = {build.process.pid: build for build in builds}
        self._same_vdso = dict(zip(self._builds, same_vdso, strict=True))
        self._agent = agent
        self._filled: set[int] = set()
        self._born_filled: set[int] = set()
        self._inheritances = {
            pid: inheritance.inherit(
                self._builds[build.process.ppid].process.memory, build.process.memory
            )
            for pid, build in list(self._builds.items())[1:]
            if build.process.memory.inherited
        }
        strangers = family.strangers(builds[0].manifest)
        self.heirs = {pid for pid, found in self._inheritances.items() if found.kept} - strangers

    def born(self, birth: family.Fork | family.End | Batch, parent: int) -> None:
        """Remember that a child has its parent's memory, be it that of the parent's parent."""
        if isinstance(birth, family.Fork) and parent in self._filled | self._born_filled:
            self._born_filled.add(birth.child.pid)

    def filled(self, pid: int) -> Iterator[tuple[int, Step]]:
        """Make and fill the address space of a process, if that is not done yet."""
        if pid in self._filled:
            return
        self._filled.add(pid)
        build = self._builds[pid]
        content = build.process.memory.content
        there: Sequence[Run] = ()
        if pid in self._born_filled:
            dropped: Sequence[Run] = ()
            if pid in self.heirs:
                found = self._inheritances[pid]
                build.kept, dropped, content = found.kept, found.dropped, found.rest
                there = found.there
            held = [(self._agent, SIZE), *shared_memory.staged(build)]
            yield pid, inheritance.rebuild(build, dropped, held)
        yield pid, shared_memory.rebuild_mappings(build)
        yield pid, memory.rebuild_mappings(build)
        for step in _vdso(build, self._same_vdso[pid]):
            yield pid, step
        yield pid, FillAll(Fill("private memory", content), there)


def _rest(build: Build, own_namespace: bool, identity: bool) -> Iterator[Step]:
    yield shared_memory.rebuild_unstaged(build)
    yield process.rebuild_layout(build)
    yield memory.rebuild_protection(build)
    yield process.rebuild_attributes(build)
    yield signals.rebuild_actions(build, build.architecture)
    yield descriptors.rebuild_place(build)
    yield descriptors.rebuild_connect(build)
    yield file_locks.rebuild(build)
    if len(build.process.threads) > 1:
        yield MakeThreads(threads.rebuild_threads(build))
    for thread in build.process.threads:
        yield OnThread(thread, threads.rebuild_thread(build, thread, build.architecture))
    yield inotify.rebuild(build)
    yield file_owner.rebuild(build)
    yield proc_file.rebuild(build)
    yield from timers.rebuild_timers(build)
    yield signals.rebuild_pending(build)
    yield memory_locks.rebuild_future(build)
    yield process.rebuild_limits(build)
    for thread in build.process.threads:
        batch = credentials.rebuild(build, own_namespace=own_namespace, identity=identity)
        yield OnThread(thread, threads.rebuild_last(batch, thread))
    yield process.rebuild_dumpable(build)
    yield timers.arm(build)


def _clear(build: Build, agent: int) -> Batch:
    """Unmap everything but the agent."""
    batch = Batch("clear the address space")
    batch.call("munmap", LOWEST, agent - LOWEST)
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
        if step.calls:
            yield f"-- {step.title}"
            yield from step.lines()
    elif isinstance(step, family.Fork):
        yield from lines(step.batch)
    elif isinstance(step, family.End):
        yield f"-- end with status {step.zombie.status:#x}"
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
    elif isinstance(step, sockets.Step | terminal.Fill):
        yield from step.lines()
    else:
        yield f"-- write {len(step.data)} bytes at {step.address:#x}: {step.what}"
