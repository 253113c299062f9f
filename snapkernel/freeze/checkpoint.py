"""checkpoint(): a running process becomes a snapshot.

1. Look at it and its descendants from outside; refuse what cannot be saved, before anything is
   touched.
2. Store memory that processes share: of this, only what changes later is stored in the freeze.
3. Freeze them, look at what only frozen processes show, fork hidden copies, let them go on.
4. Store the copies' memory while the processes work; commit the manifest last.

With ``stop``, and where no copy can be had, they stay frozen until their memory is stored.
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
from dataclasses import dataclass, field

import msgspec

import snapkernel
from snapkernel import arch, faults, procfs, yama
from snapkernel._native import lib
from snapkernel.constants import PR_SET_PDEATHSIG
from snapkernel.errors import SnapkernelError, TargetError
from snapkernel.freeze import capture as looking
from snapkernel.freeze import live
from snapkernel.freeze.agent import PAGE
from snapkernel.freeze.pages import scan_pages
from snapkernel.freeze.target import Memory, Target
from snapkernel.freeze.tree import freeze_tree
from snapkernel.jupyter.connection import connection_of
from snapkernel.model import RUN, SCHEMA, CarriedFile, Content, Host, Manifest, Note, Zombie
from snapkernel.resources import (
    carried_file,
    memory,
    memory_policy,
    process,
    shared_memory,
    threads,
)
from snapkernel.resources.context import Capture
from snapkernel.resources.file_choice import NOTHING, Choice
from snapkernel.store import SnapshotWriter, Source, Store, check_name
from snapkernel.store.early import Early

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
    def files(self) -> tuple[CarriedFile, ...]:
        """The files that travel with it."""
        return self.manifest.carried

    @property
    def file_bytes(self) -> int:
        """Bytes of these."""
        return sum(file.content.length for file in self.manifest.carried)

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
    files: str | Sequence[str] = "open",
    progress: Progress | None = None,
) -> Snapshot:
    """Save a process with all its descendants. They go on running, unless ``stop``.

    The work is done by a small process of its own (``freezer``): a process that waits for its
    children, handles signals or is killed, as a server may be, cannot come between the freezer and
    its target.

    Args:
        pid: on this host.
        store: where to; see ``Store.open``. It is made when it does not exist.
        name: a name for the snapshot.
        stop: end the processes once the snapshot is safe.
        files: which files travel with the snapshot: ``open`` ones, those ``written`` below the
            working directory since the process began, ``none``, or such that fit a pattern; or
            several of these words. ``open`` is meant unless ``none`` is said. See ``file_choice``.
        progress: is told how far it is.

    Raises:
        CannotCheckpoint: a process holds something that cannot be saved.
        TargetError: it does not exist, or may not be traced.
        StoreError: the store cannot be written. The process is unharmed.
        InvalidName: the name cannot be used, or a pattern of files fits no path.
    """
    from snapkernel.freeze import freezer

    began = time.perf_counter()
    if name:
        check_name(name)
    words = [files] if isinstance(files, str) else list(files)
    Choice.of(words)
    if pid == os.getpid():
        raise TargetError(f"process {pid}", "cannot freeze itself", "call from another process")
    url = store.url if isinstance(store, Store) else store
    if (url or "").startswith("memory:") or yama.only_we_may_trace(pid):
        return checkpoint_here(
            pid, store=store, name=name, stop=stop, files=words, progress=progress
        )
    snapshot = freezer.run(pid, url, name, stop, words, progress)
    return dataclasses.replace(snapshot, safe_s=time.perf_counter() - began)


@faults.during("checkpoint")
def checkpoint_here(
    pid: int,
    *,
    store: Store | str | None = None,
    name: str = "",
    stop: bool = False,
    files: str | Sequence[str] = "open",
    progress: Progress | None = None,
) -> Snapshot:
    """The same as :func:`checkpoint`, in this process and thread, which must not wait for children
    or be interrupted meanwhile."""
    began = time.perf_counter()
    timings: dict[str, float] = {}

    def mark(step: str) -> None:
        faults.reached(step)
        timings[step] = time.perf_counter() - began

    choice = Choice.of(files)
    survey = looking.survey(pid, choice)
    looking.refuse(pid, survey.findings)
    connection = connection_of(pid)
    where = store if isinstance(store, Store) else Store.open(store, create=True)
    mark("survey")
    with (
        where.writer() as writer,
        contextlib.closing(_Shot(pid, writer, survey, stop, choice, progress, mark)) as shot,
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
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        lib.sk_prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        while os.getppid() == parent:  # it may have died before
            signal.pause()
        os._exit(0)
    try:
        with Store.open("memory://rehearsal", create=True).writer() as writer:
            survey = looking.survey(child)
            shot = _Shot(child, writer, survey, False, NOTHING, None, lambda step: None)
            with contextlib.closing(shot), live.ended(shot.freeze()):
                pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


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


@dataclass
class _Part(looking.Frozen):
    """One process of the tree, until its memory is in the store.

    Attributes:
        flags: VmFlags of its mappings.
        policies: NUMA policies of its mappings.
        may_be_unforked: some mappings may be kept from forked children.
        fork: its hidden copy in the making.
        copy: its hidden copy.
        unforked: runs that the copy does not have, with their bytes.
    """

    flags: memory.Flags = field(kw_only=True)
    policies: memory_policy.Policies = field(kw_only=True)
    may_be_unforked: bool = field(kw_only=True)
    fork: live.Fork | None = None
    copy: live.Copy | None = None
    unforked: tuple[tuple[tuple[int, int], bytes], ...] = ()

    def unforked_runs(self) -> list[tuple[int, int]]:
        """Private pages that a forked child does not get."""
        if not self.may_be_unforked:
            return []
        spans = [
            (area.start, area.end)
            for area in self.areas
            if not area.shared and "dc" in self.flags.get(memory.key(area), ())
        ]
        return scan_pages(self.target.pid, spans)

    def keep_unforked(self) -> None:
        """Copy these pages while the process stands still."""
        runs = self.unforked_runs()
        self.unforked = tuple((run, self.target.memory.read(*run)) for run in runs)

    @property
    def _memory(self) -> Memory:
        """Of the copy if there is one: it stands still."""
        return self.target.memory if self.copy is None else self.copy.target.memory

    def private_runs(self) -> list[tuple[int, int]]:
        """What must be stored of its memory."""
        runs = looking.private_runs(self._memory.pid, self.process.memory.mappings)
        return sorted([*runs, *(run for run, _ in self._overlay)])

    def guards(self) -> bytes:
        """Its guard pages, packed."""
        found = memory.scan(self._memory.pid, self.process.memory.mappings, guards=True)
        return b"".join(RUN.pack(*run) for run in found)

    @property
    def _overlay(self) -> tuple[tuple[tuple[int, int], bytes], ...]:
        return self.unforked if self.copy is not None else ()

    def source(self) -> Source:
        """Where the bytes are."""
        return _Overlay(self._memory, self._overlay) if self._overlay else self._memory


class _Shot:
    """One checkpoint, from the freeze until the memory of all processes is in the store."""

    def __init__(
        self,
        pid: int,
        writer: SnapshotWriter,
        survey: looking.Survey,
        stop: bool,
        choice: Choice,
        progress: Progress | None,
        mark: Callable[[str], None],
    ) -> None:
        self.pid = pid
        self.writer = writer
        self.survey = survey
        self.stop = stop
        self.choice = choice
        self.progress = progress
        self.mark = mark
        self.pause = 0.0
        self.notes: list[Note] = []
        self.parts: list[_Part] = []
        self.zombies: tuple[Zombie, ...] = ()
        self.carried: list[CarriedFile] = []
        self._found: list[carried_file.Found] = []
        self.early: dict[tuple[str, int], Early] = {}
        self.no_copies = False
        self._unforked = 0
        self._frozen = contextlib.ExitStack()
        self._ended = contextlib.ExitStack()
        self.capture: Capture

    def close(self) -> None:
        """Whatever happened: processes that are still frozen get their lives back."""
        self._frozen.close()
        for found in self._found:
            carried_file.close(found)
        self._ended.close()

    def take(self) -> None:
        """Freeze, look, and store."""
        self.writer.prepare()
        self.survey.capture.save = self._save
        self.early = shared_memory.save_early(self.survey.capture)
        self.mark("shared memory")
        start = time.perf_counter()
        copies = self.freeze()
        if copies:
            self.pause = time.perf_counter() - start
        with live.ended(copies):
            areas = {part.process.pid: part.areas for part in self.parts}
            for part in self.parts:
                part.capture.alive = part.copy.target.pid if part.copy is not None else 0
                parent = areas.get(part.process.ppid)
                part.process = looking.mappings(part, part.flags, part.policies, parent)
            self._store_files(runs_on=bool(copies))
            self._store_memory()
        self.mark("stored")
        faults.reached("memory is stored")
        if not self.stop:
            self._frozen.close()
        self.pause = self.pause or time.perf_counter() - start

    def freeze(self) -> list[live.Copy]:
        """Stop the processes and look at them; let them go again when there are copies of all."""
        with _no_garbage_collection():
            self.tree = self._frozen.enter_context(
                freeze_tree(self.pid, self.survey.capture.orphans)
            )
            self.mark("frozen")
            copies = self._look()
            if copies:
                self._frozen.close()
                self.mark("released")
            return copies

    def _look(self) -> list[live.Copy]:
        """All that must be seen while the processes stand still; no copies where they must go on
        standing still."""
        self.zombies = tuple(map(process.capture_zombie, self.tree.zombies))
        with contextlib.ExitStack() as agents:
            for target in self.tree.targets:
                part = self._enter(target)
                agents.callback(part.agent.remove)
                self.parts.append(part)
            self.mark("agent")
            agents.callback(self._abandon)
            self.capture, self.clocks, self._found = looking.capture(
                self.parts,
                self.zombies,
                self.survey.capture.known,
                self._save,
                self.early,
                self._begin_fork,
                self.choice,
                self.survey.capture.orphans,
            )
            if self.choice.written or self.choice.patterns:
                self._see_files()
            self.mark("captured")
            return self._copies()

    def _enter(self, target: Target) -> _Part:
        """Put the agent into a process."""
        threads.leave_sequences(target, arch.native())
        look = self.survey.looks.get(target.pid)
        if look is None:  # born since
            areas = procfs.areas(procfs.text(f"/proc/{target.pid}/maps"))
        else:
            areas = look.areas_now(target.pid)
        changed = look is None or areas is not look.areas
        flags = {} if look is None else look.flags
        policies = {} if look is None else look.policies
        if changed and any(memory.key(area) not in flags for area in areas):
            flags = memory.read_flags(target.pid)
            if look is None or policies:  # the rule is that there are none
                policies = memory_policy.of_areas(target.pid, areas)
        agent = looking.install_agent(target, areas, look)
        unforked = changed or look is None or look.unforked
        return _Part(target, agent, areas, flags=flags, policies=policies, may_be_unforked=unforked)

    def _begin_fork(self, frozen: looking.Frozen) -> None:
        """Have the kernel make a hidden copy, while other things are looked at."""
        part = next(part for part in self.parts if part is frozen)
        if self.stop or self.no_copies:
            return
        if part.process.child_subreaper:
            self._plain("a process is a child subreaper, and would see the copy")
            return
        self._unforked += sum(length for _, length in part.unforked_runs())
        if self._unforked > _MOST_UNFORKED:
            what = f"{self._unforked} bytes and more of memory are kept from forked children"
            self._plain(f"{what} (MADV_DONTFORK)")
            return
        try:
            part.keep_unforked()
            part.fork = live.Fork(part.target, part.agent)
        except SnapkernelError as error:
            self._plain(f"no copy-on-write child could be had: {error.reason}")

    def _copies(self) -> list[live.Copy]:
        """The hidden copies of all, or none."""
        copies: list[live.Copy] = []
        try:
            for part in self.parts:
                if part.fork is None:
                    break
                fork, part.fork = part.fork, None
                part.copy = fork.finish()
                copies.append(part.copy)
            else:
                self.mark("forked")
                return copies
        except SnapkernelError as error:
            self._plain(f"no copy-on-write child could be had: {error.reason}")
        with live.ended(copies):
            for part in self.parts:
                part.copy = None
        return []

    def _abandon(self) -> None:
        """End the copies that are in the making when something goes wrong."""
        for part in self.parts:
            if part.fork is not None:
                fork, part.fork = part.fork, None
                fork.abandon()

    def _plain(self, reason: str) -> None:
        self.no_copies = True
        self.notes.append(Note(object="live checkpoint", status="plain freeze", reason=reason))

    def _save(
        self, source: object, runs: Sequence[tuple[int, int]], early: Early | None = None
    ) -> Content:
        if not runs:
            return Content()
        return self.writer.store(source, runs, page_size=PAGE, early=early)  # type: ignore[arg-type]

    def _see_files(self) -> None:
        """What is needed to look for files when the processes may have ended."""
        root = os.open(f"/proc/{self.pid}/root", os.O_PATH | os.O_CLOEXEC)
        self._ended.callback(os.close, root)
        pids = [part.target.pid for part in self.parts]
        self.places = carried_file.places(pids, f"/proc/self/fd/{root}")
        self.began = carried_file.began(self.pid)

    def _store_files(self, runs_on: bool) -> None:
        """Store the files that travel: first of all, for they change while the copies do not."""
        root = ""
        if self.choice.written or self.choice.patterns:
            root = self.places.root
            self._found += carried_file.search(self.capture, self.places, self.began, self._found)
        stored = carried_file.store(self._found, root, self._save, self.clocks.realtime_ns, runs_on)
        self.carried = stored.records
        self.notes += stored.notes

    def _store_memory(self) -> None:
        """Store private pages, of the copies or of the processes."""
        runs = [part.private_runs() for part in self.parts]
        total = sum(length for own in runs for _, length in own)
        done = 0

        def tell(more: int) -> None:
            nonlocal done
            done += more
            if self.progress is not None:
                self.progress("storing memory", done, total)

        for part, own in zip(self.parts, runs, strict=True):
            content = self.writer.store(
                part.source(),
                own,
                page_size=PAGE,
                progress=tell,
                whole=memory.not_zero(part.process.memory.mappings),
            )
            space = msgspec.structs.replace(
                part.process.memory, content=content, guards=part.guards()
            )
            part.process = msgspec.structs.replace(part.process, memory=space)

    def finish(self) -> None:
        """End the processes that were to be stopped."""
        if self.stop:
            for part in self.parts:
                part.target.begin_to_kill()
            for part in reversed(self.parts):
                part.target.kill()

    def manifest(self, name: str, connection: dict[str, str | int] | None) -> Manifest:
        """Everything together."""
        architecture = arch.native()
        capture: Capture = self.capture
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
                boot_id=procfs.boot_id(),
            ),
            clocks=self.clocks,
            processes=tuple(part.process for part in self.parts),
            zombies=self.zombies,
            descriptions=tuple(capture.descriptions),
            pipes=tuple(capture.pipes),
            terminals=tuple(capture.terminals),
            shared_memory=tuple(capture.shared_memory),
            shared_folders=tuple(capture.shared_folders),
            ipc=capture.ipc,
            files=tuple(capture.files),
            carried=tuple(self.carried),
            memory_bytes=sum(part.process.memory.content.length for part in self.parts) + shared,
            pause_s=self.pause,
            jupyter=connection,
            notes=(*capture.notes, *self.notes, *self.survey.left_out),
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
