"""checkpoint(): a running process becomes a snapshot.

1. Look at it from outside; refuse what cannot be saved, before anything is touched.
2. Freeze it, look at what only a frozen process shows, fork a hidden copy, let it go on.
3. Store the copy's memory while the process works; commit the manifest last.

With ``stop``, and where no copy can be had, the process stays frozen until its memory is stored.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import os
import secrets
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
from snapkernel.freeze.target import Target, freeze
from snapkernel.jupyter.connection import find_connection_file, read_connection
from snapkernel.model import RUN, SCHEMA, Content, Host, Manifest, Mapping, Note, Process
from snapkernel.resources import memory, threads
from snapkernel.resources.context import Capture
from snapkernel.store import SnapshotWriter, Source, Store, check_name

Progress = Callable[[str, int, int], None]
"""Told what is done: a title, bytes so far, bytes in all."""


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
    began = time.perf_counter()
    if name:
        check_name(name)
    if pid == os.getpid():
        raise TargetError(f"process {pid}", "cannot freeze itself", "call from another process")
    timings: dict[str, float] = {}

    def mark(step: str) -> None:
        timings[step] = time.perf_counter() - began

    survey = looking.survey(pid)
    looking.refuse(pid, survey.findings)
    connection = _connection(pid)
    where = store if isinstance(store, Store) else Store.open(store, create=True)
    mark("survey")
    with where.writer() as writer:
        shot = _Shot(pid, writer, survey, stop, progress, mark)
        shot.take()
        manifest = writer.commit(shot.manifest(name, connection))
        mark("commit")
        safe = time.perf_counter() - began
        shot.finish()
    return Snapshot(manifest, shot.pause, safe, pid, timings)


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
        self._after = contextlib.ExitStack()

    def take(self) -> None:
        """Freeze, look, and store."""
        start = time.perf_counter()
        copy: live.Copy | None = None
        frozen = contextlib.ExitStack()
        with frozen, _no_garbage_collection():
            target = frozen.enter_context(freeze(self.pid))
            self.mark("frozen")
            copy = self._look(target)
            if copy is None:
                self._store_memory(target.memory, self.pid, ())
                if self.stop:
                    # Ended by finish(), after the commit; an error before that lets it live.
                    self._after = frozen.pop_all()
                    self._after.callback(lambda: None)
                    self._target = target
        self.pause = time.perf_counter() - start
        self.mark("released")
        with live.ended(copy):
            if copy is not None:
                self._store_memory(copy.target.memory, copy.pid, self._unforked)
        self.mark("stored")

    def _look(self, target: Target) -> live.Copy | None:
        architecture = arch.native()
        threads.leave_sequences(target, architecture)
        areas = procfs.areas(procfs.text(f"/proc/{self.pid}/maps"))
        flags = self.survey.flags
        if any(memory.key(area) not in flags for area in areas):
            flags = memory.read_flags(self.pid)
        agent = looking.install_agent(target, areas)
        self.mark("agent")
        try:
            self.process, self.capture, self.clocks = looking.capture(
                target, agent, areas, flags, self.survey.files, self._save
            )
            self.mark("captured")
            return None if self.stop else self._fork(target, agent)
        finally:
            agent.remove()

    def _fork(self, target: Target, agent: Agent) -> live.Copy | None:
        """The hidden copy; what it does not get is stored at once."""
        if self.process.child_subreaper:
            self._plain("the process is a child subreaper, and would see the copy")
            return None
        mappings = self.process.memory.mappings
        unforked = [m for m in mappings if memory.holds_private_pages(m) and "dc" in m.flags]
        self._unforked = self._save_runs(target, unforked)
        try:
            copy = live.fork(target, agent)
        except SnapkernelError as error:
            self._plain(f"no copy-on-write child could be had ({error.reason})")
            return None
        self.mark("forked")
        return copy

    def _plain(self, reason: str) -> None:
        self.notes.append(
            Note(object="live checkpoint", status="plain freeze", reason=reason)
        )

    def _save(self, source: object, runs: Sequence[tuple[int, int]]) -> Content:
        return self.writer.store(source, runs, page_size=PAGE) if runs else Content()  # type: ignore[arg-type]

    def _save_runs(
        self, target: Target, mappings: list[Mapping]
    ) -> tuple[tuple[tuple[int, int], bytes], ...]:
        """Copies of runs that a forked child does not have (MADV_DONTFORK)."""
        runs = memory.scan(target.pid, mappings) if mappings else []
        return tuple((run, target.memory.read(*run)) for run in runs)

    def _store_memory(
        self,
        source: Source,
        pid: int,
        extra: Sequence[tuple[tuple[int, int], bytes]],
    ) -> None:
        """Store private pages; ``extra`` are those that were copied during the freeze."""
        mappings = self.process.memory.mappings
        runs = looking.private_runs(pid, mappings)
        guards = memory.scan(pid, mappings, guards=True)
        if extra:
            source = _Overlay(source, extra)
            runs = sorted([*runs, *(run for run, _ in extra)])
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
            self._target.kill()
            self._after.pop_all()

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
                page_size=PAGE,
                cpu_features=architecture.cpu_features(),
            ),
            clocks=self.clocks,
            processes=(process,),
            descriptions=tuple(capture.descriptions),
            pipes=tuple(capture.pipes),
            shared_memory=capture.shared_memory,
            files=tuple(capture.files),
            memory_bytes=process.memory.content.length + shared,
            pause_s=self.pause,
            jupyter=connection,
            notes=(*capture.notes, *self.notes),
        )


class _Overlay:
    """A source some of whose runs were copied before."""

    def __init__(
        self, source: Source, extra: Sequence[tuple[tuple[int, int], bytes]]
    ) -> None:
        self.source = source
        self.extra = extra

    def read_into(self, runs: Sequence[tuple[int, int]], buffer: memoryview) -> None:
        """Fill the buffer from the copy where there is one."""
        at = 0
        for address, length in runs:
            part = buffer[at : at + length]
            for (start, size), data in self.extra:
                if start <= address < start + size:
                    part[:] = data[address - start : address - start + length]
                    break
            else:
                self.source.read_into([(address, length)], part)
            at += length
