"""checkpoint(): a running process becomes a snapshot.

1. Look at it from outside; refuse what cannot be saved, before anything is touched.
2. Freeze it, look at what only a frozen process shows, fork a hidden copy, let it go on.
3. Store the copy's memory while the process works; commit the manifest last.

With ``stop``, and where no copy can be had, the process stays frozen until its memory is stored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gc
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

import snapkernel
from snapkernel import arch, procfs
from snapkernel.errors import SnapkernelError, TargetError
from snapkernel.freeze import capture as looking
from snapkernel.freeze import live
from snapkernel.freeze.agent import PAGE, Agent
from snapkernel.freeze.pages import scan_pages
from snapkernel.freeze.target import Memory, freeze
from snapkernel.jupyter.connection import find_connection_file, read_connection
from snapkernel.model import RUN, SCHEMA, Content, Host, Manifest, Note, Process
from snapkernel.resources import memory, memory_policy, threads
from snapkernel.resources.context import Capture
from snapkernel.store import SnapshotWriter, Source, Store, check_name

Progress = Callable[[str, int, int], None]
"""Told what is done: a title, bytes so far, bytes in all."""

_MOST_UNFORKED = 64 << 20


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that was taken or found.

    Attributes:
        manifest: all of it.
        pause_s: seconds that the process was stopped.
        safe_s: seconds from the call until the snapshot was safe in the store.
        pid: of the process, on the host that took the snapshot.
        timings: seconds from the call to the end of each step.
    """

    manifest: Manifest
    pause_s: float
    safe_s: float
    pid: int
    timings: dict[str, float]

    @property
    def id(self) -> str:
        """32 hexadecimal digits."""
        return self.manifest.id

    @property
    def name(self) -> str:
        """What the user called it; may be empty."""
        return self.manifest.name

    @property
    def mode(self) -> str:
        """``live`` or ``stop``."""
        return self.manifest.mode

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that it holds."""
        return self.manifest.memory_bytes

    @property
    def stored_bytes(self) -> int:
        """Bytes that it added to the store."""
        return self.manifest.stored_bytes

    @property
    def notes(self) -> tuple[str, ...]:
        """What does not come back as it was, one text each."""
        return tuple(f"{n.object}: {n.status}: {n.reason}" for n in self.manifest.notes)


def checkpoint(
    pid: int,
    *,
    store: Store | str | None = None,
    name: str = "",
    stop: bool = False,
    progress: Progress | None = None,
) -> Snapshot:
    """Save a process. It goes on running, unless ``stop``.

    The work is done by a small process of its own (``freezer``): a process that waits for its
    children, handles signals or is killed, as a server may be, cannot come between the freezer and
    its target.

    Args:
        pid: on this host.
        store: where to; see ``Store.open``. It is made when it does not exist.
        name: a name for the snapshot.
        stop: end the process once the snapshot is safe.
        progress: is told how far it is.

    Raises:
        CannotCheckpoint: the process holds something that cannot be saved.
        TargetError: it does not exist, or may not be traced.
        StoreError: the store cannot be written. The process is unharmed.
        InvalidName: the name cannot be used.
    """
    from snapkernel.freeze import freezer

    began = time.perf_counter()
    if name:
        check_name(name)
    if pid == os.getpid():
        raise TargetError(f"process {pid}", "cannot freeze itself", "call from another process")
    url = store.url if isinstance(store, Store) else store
    if (url or "").startswith("memory:") or _only_ancestors_may_trace():
        return checkpoint_here(pid, store=store, name=name, stop=stop, progress=progress)
    snapshot = freezer.run(pid, url, name, stop, progress)
    return dataclasses.replace(snapshot, safe_s=time.perf_counter() - began)


def _only_ancestors_may_trace() -> bool:
    """Yama's ptrace_scope 1: our child could not trace what we can."""
    try:
        return (
            os.geteuid() != 0 and procfs.text("/proc/sys/kernel/yama/ptrace_scope").strip() != "0"
        )
    except OSError:
        return False


def checkpoint_here(
    pid: int,
    *,
    store: Store | str | None = None,
    name: str = "",
    stop: bool = False,
    progress: Progress | None = None,
) -> Snapshot:
    """The same as :func:`checkpoint`, in this process and thread, which must not wait for children
    or be interrupted meanwhile."""
    began = time.perf_counter()
    timings: dict[str, float] = {}

    def mark(step: str) -> None:
        timings[step] = time.perf_counter() - began

    survey = looking.survey(pid)
    looking.refuse(pid, survey.findings)
    connection = _connection(pid)
    where = store if isinstance(store, Store) else Store.open(store, create=True)
    mark("survey")
    with (
        where.writer() as writer,
        contextlib.closing(_Shot(pid, writer, survey, stop, progress, mark)) as shot,
    ):
        shot.take()
        if progress is not None:
            progress("committing", 0, 0)
        manifest = writer.commit(shot.manifest(name, connection))
        mark("commit")
        safe = time.perf_counter() - began
        shot.finish()
    return Snapshot(manifest, shot.pause, safe, pid, timings)


def rehearse() -> None:
    """Freeze a child of our own, look at it, fork its copy, and end both.

    Code that has just run runs faster: what is practised here is not paid for by the target, which
    waits meanwhile. Only for a process without other threads.
    """
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    try:
        with Store.open("memory://rehearsal", create=True).writer() as writer:
            survey = looking.survey(child)
            shot = _Shot(child, writer, survey, False, None, lambda step: None)
            with contextlib.closing(shot), live.ended(shot.freeze()):
                pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _connection(pid: int) -> dict[str, str | int] | None:
    """The entries of the connection file, when the process is a Jupyter kernel."""
    raw = procfs.read(f"/proc/{pid}/cmdline").split(b"\0")[:-1]
    directory = os.readlink(f"/proc/{pid}/cwd")
    path = find_connection_file([os.fsdecode(word) for word in raw], directory)
    if path is None or not path.exists():
        return None
    with contextlib.suppress(TargetError):
        return read_connection(path)
    return None


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A collection in the middle of a freeze would lengthen it."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class _Shot:
    """One checkpoint, from the freeze until the memory is in the store."""

    def __init__(
        self,
        pid: int,
        writer: SnapshotWriter,
        survey: looking.Survey,
        stop: bool,
        progress: Progress | None,
        mark: Callable[[str], None],
    ) -> None:
        self.pid = pid
        self.writer = writer
        self.survey = survey
        self.stop = stop
        self.progress = progress
        self.mark = mark
        self.pause = 0.0
        self.notes: list[Note] = []
        self._unforked: tuple[tuple[tuple[int, int], bytes], ...] = ()
        self._frozen = contextlib.ExitStack()
        self.process: Process
        self.capture: Capture

    def close(self) -> None:
        """Whatever happened: a process that is still frozen gets its life back."""
        self._frozen.close()

    def take(self) -> None:
        """Freeze, look, and store."""
        self.writer.prepare()
        start = time.perf_counter()
        copy = self.freeze()
        if copy is not None:
            self.pause = time.perf_counter() - start
        with live.ended(copy):
            source = self.target.memory if copy is None else copy.target.memory
            self.process = looking.mappings(self.capture, self.process, self.areas, self.flags)
            self._store_memory(source)
        self.mark("stored")
        if not self.stop:
            self._frozen.close()
        self.pause = self.pause or time.perf_counter() - start

    def freeze(self) -> live.Copy | None:
        """Stop the process and look at it; let it go again when there is a copy of it."""
        with _no_garbage_collection():
            self.target = self._frozen.enter_context(freeze(self.pid))
            self.mark("frozen")
            copy = self._look()
            if copy is not None:
                self._frozen.close()
                self.mark("released")
            return copy

    def _look(self) -> live.Copy | None:
        """All that must be seen while the process stands still; ``None`` where there is no
        copy and it must go on standing still."""
        target = self.target
        threads.leave_sequences(target, arch.native())
        self.areas = self.survey.areas_now(self.pid)
        self.flags, self.policies = self.survey.flags, self.survey.policies
        if self.areas is not self.survey.areas and any(
            memory.key(area) not in self.flags for area in self.areas
        ):
            self.flags = memory.read_flags(self.pid)
            if self.policies:  # the rule is that there are none
                self.policies = memory_policy.of_areas(self.pid, self.areas)
        agent = looking.install_agent(target, self.areas, self.survey)
        self.mark("agent")
        try:
            self.process, self.capture, self.clocks = looking.capture(
                target, agent, self.areas, self.survey.files, self._save
            )
            self.capture.policies = self.policies
            self.mark("captured")
            return None if self.stop else self._fork(agent)
        finally:
            agent.remove()

    def _fork(self, agent: Agent) -> live.Copy | None:
        """The hidden copy, and our own copy of what it does not get."""
        if self.process.child_subreaper:
            self._plain("the process is a child subreaper, and would see the copy")
            return None
        runs = self._unforked_runs()
        size = sum(length for _, length in runs)
        if size > _MOST_UNFORKED:
            self._plain(f"{size} bytes of memory are kept from forked children (MADV_DONTFORK)")
            return None
        self._unforked = tuple((run, self.target.memory.read(*run)) for run in runs)
        try:
            copy = live.fork(self.target, agent)
        except SnapkernelError as error:
            self._plain(f"no copy-on-write child could be had: {error.reason}")
            return None
        self.mark("forked")
        return copy

    def _unforked_runs(self) -> list[tuple[int, int]]:
        """Private pages that a forked child does not get."""
        if self.areas is self.survey.areas and not self.survey.unforked:
            return []
        spans = [
            (area.start, area.end)
            for area in self.areas
            if not area.shared and "dc" in self.flags.get(memory.key(area), ())
        ]
        return scan_pages(self.pid, spans)

    def _plain(self, reason: str) -> None:
        self.notes.append(Note(object="live checkpoint", status="plain freeze", reason=reason))

    def _save(self, source: object, runs: Sequence[tuple[int, int]]) -> Content:
        return self.writer.store(source, runs, page_size=PAGE) if runs else Content()  # type: ignore[arg-type]

    def _store_memory(self, memory_of: Memory) -> None:
        """Store private pages, of the copy or of the process."""
        mappings = self.process.memory.mappings
        runs = looking.private_runs(memory_of.pid, mappings)
        guards = memory.scan(memory_of.pid, mappings, guards=True)
        source: Source = memory_of
        if self._unforked and memory_of is not self.target.memory:
            source = _Overlay(memory_of, self._unforked)
            runs = sorted([*runs, *(run for run, _ in self._unforked)])
        total = sum(length for _, length in runs)
        done = 0

        def tell(more: int) -> None:
            nonlocal done
            done += more
            if self.progress is not None:
                self.progress("storing memory", done, total)

        content = self.writer.store(source, runs, page_size=PAGE, progress=tell)
        space = msgspec.structs.replace(
            self.process.memory,
            content=content,
            guards=b"".join(RUN.pack(*run) for run in guards),
        )
        self.process = msgspec.structs.replace(self.process, memory=space)

    def finish(self) -> None:
        """End the process that was to be stopped."""
        if self.stop:
            self.target.kill()

    def manifest(self, name: str, connection: dict[str, str | int] | None) -> Manifest:
        """Everything together."""
        architecture = arch.native()
        capture: Capture = self.capture
        process: Process = self.process
        shared = sum(record.content.length for record in capture.shared_memory)
        return Manifest(
            schema=SCHEMA,
            id=secrets.token_hex(16),
            name=name,
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds"),
            mode="stop" if self.stop else "live",
            software=f"snapkernel {snapkernel.__version__}",
            host=Host(
                name=os.uname().nodename,
                architecture=architecture.name,
                machine=os.uname().machine,
                kernel=os.uname().release,
                processors=os.cpu_count() or 1,
                page_size=PAGE,
                cpu_features=architecture.cpu_features(),
            ),
            clocks=self.clocks,
            processes=(process,),
            descriptions=tuple(capture.descriptions),
            pipes=tuple(capture.pipes),
            shared_memory=capture.shared_memory,
            ipc=capture.ipc,
            files=tuple(capture.files),
            memory_bytes=process.memory.content.length + shared,
            pause_s=self.pause,
            jupyter=connection,
            notes=(*capture.notes, *self.notes),
        )


class _Overlay:
    """A source some of whose runs were copied before."""

    def __init__(self, source: Source, extra: Sequence[tuple[tuple[int, int], bytes]]) -> None:
        self.source = source
        self.extra = extra

    def read_into(self, runs: Sequence[tuple[int, int]], buffer: memoryview) -> None:
        """Fill the buffer from the copies where there are some."""
        at = 0
        for run in runs:
            for address, length, copied in self._split(*run):
                part = buffer[at : at + length]
                if copied is None:
                    self.source.read_into([(address, length)], part)
                else:
                    part[:] = copied
                at += length

    def _split(self, address: int, length: int) -> Iterator[tuple[int, int, bytes | None]]:
        """Cut a run where copies begin and end."""
        for (start, size), data in self.extra:
            if start + size <= address or address + length <= start:
                continue
            if address < start:
                yield address, start - address, None
                address, length = start, length - (start - address)
            take = min(length, start + size - address)
            yield address, take, data[address - start : address - start + take]
            address, length = address + take, length - take
        if length:
            yield address, length, None
