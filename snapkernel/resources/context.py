"""What capture and rebuild modules share: the manifest in the making, the plan in the making."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from snapkernel import procfs
from snapkernel.arch import Architecture
from snapkernel.constants import F_DUPFD_CLOEXEC
from snapkernel.errors import Finding
from snapkernel.freeze.batch import Batch, Cell
from snapkernel.model import (
    AnyDescription,
    Content,
    FileIdentity,
    IpcNamespace,
    Manifest,
    MessageQueue,
    Note,
    Pipe,
    PosixQueue,
    Process,
    SemaphoreSet,
    SharedFolder,
    SharedMemory,
    Terminal,
    UnixQueue,
)
from snapkernel.resources.file_choice import NOTHING, Choice

if TYPE_CHECKING:
    from snapkernel.freeze.agent import Agent
    from snapkernel.freeze.target import Target
    from snapkernel.resources.shared_memory import SharedObject
    from snapkernel.resources.terminal import TerminalEnds
    from snapkernel.store.early import Early


class Saver(Protocol):
    """Puts bytes of the frozen process into the store at once (they may change afterwards)."""

    def __call__(
        self, source: object, runs: Sequence[tuple[int, int]], early: Early | None = None
    ) -> Content: ...


class Capture:
    """The manifest's tables while processes are looked at, and one of these.

    Without ``target`` the process is running and only looked at from outside, to explain what a
    snapshot would hold; contents are not read then.

    Attributes:
        pid: on this host.
        target: the process when it is frozen.
        agent: the agent in it.
        save: for contents that must be read while the process is frozen.
        early: what was stored of objects before, by device and inode.
        known: identities of files by path and inode, found out earlier.
        choice: which files travel.
        alive: pid of a copy of the process, which itself may have ended; 0 for none.
        findings: every object that is not simply saved.
        members: the captures of all processes, by pid.
        orphans: pids of those that belong to the tree and have lost their parents.
    """

    def __init__(
        self,
        pid: int,
        target: Target | None = None,
        agent: Agent | None = None,
        save: Saver | None = None,
        known: dict[tuple[str, int], FileIdentity] | None = None,
        choice: Choice = NOTHING,
    ) -> None:
        self.pid = pid
        self.target = target
        self.agent = agent
        self.save = save
        self.alive = 0
        self.known = {} if known is None else known
        self.choice = choice
        self.findings: list[Finding] = []
        self.descriptions: list[AnyDescription] = []
        self.pipes: list[Pipe] = []
        self.pipe_index: dict[str, int] = {}
        self.terminals: list[Terminal] = []
        self.terminal_ends: list[TerminalEnds] = []
        self.queues: dict[int, UnixQueue] = {}
        self.objects: dict[tuple[str, int], SharedObject] = {}
        self.early: dict[tuple[str, int], Early] = {}
        self.shared_memory: list[SharedMemory] = []
        self.shared_folders: list[SharedFolder] = []
        self.private_folders: set[str] = set()
        self.devices_in_memory: dict[str, list[str]] = {}
        self.names_in_memory: dict[str, dict[int, str]] = {}
        self.semaphores: list[SemaphoreSet] = []
        self.message_queues: list[MessageQueue] = []
        self.posix_queues: list[PosixQueue] = []
        self.queue_index: dict[str, int] = {}
        self.files: list[FileIdentity] = []
        self.members: dict[int, Capture] = {pid: self}
        self.orphans: frozenset[int] = frozenset()
        self._file_index: dict[str, int] = {}

    def sibling(
        self, pid: int, target: Target | None = None, agent: Agent | None = None
    ) -> Capture:
        """A capture of another process, with the same tables."""
        other = copy.copy(self)
        other.pid, other.target, other.agent = pid, target, agent
        self.members[pid] = other
        return other

    @property
    def ipc(self) -> IpcNamespace | None:
        """The IPC namespace that restored processes need, if they need one of their own."""
        segments = any(record.segment is not None for record in self.shared_memory)
        if not (segments or self.semaphores or self.message_queues or self.posix_queues):
            return None
        return IpcNamespace(
            semaphores=tuple(self.semaphores),
            message_queues=tuple(self.message_queues),
            posix_queues=tuple(self.posix_queues),
        )

    @property
    def status(self) -> Mapping[str, str]:
        """``/proc/PID/status``; that of a process that stands still is read once."""
        return procfs.status(self.pid) if self.target is None else self.target.status

    def refuse(self, object: str, reason: str, remedy: str = "") -> None:
        """This object cannot be saved."""
        self.findings.append(Finding(object, "refused", reason, remedy))

    def refuse_unless_text(self, object: str, path: str) -> None:
        """Refuse a path that is not UTF-8: a manifest holds text."""
        try:
            path.encode()
        except UnicodeEncodeError:
            self.refuse(f"{object} {path!a}", "its name is not UTF-8", "rename it")

    def report(self, object: str, status: str, reason: str) -> None:
        """This object comes back otherwise than it was."""
        self.findings.append(Finding(object, status, reason))

    def saved(self, object: str) -> None:
        """This object is saved whole; only said where somebody asks for an explanation."""
        if self.target is None:
            self.findings.append(Finding(object, "saved"))

    def travels(self, object: str, size: int, common: bool = False) -> None:
        """This file goes with the snapshot; where a host has a common one, that is used."""
        reason = f"its {size} bytes travel"
        reason += ", and are used where a host has no such file" if common else ""
        self.findings.append(Finding(object, "saved", reason))

    @property
    def notes(self) -> tuple[Note, ...]:
        """The findings that a user of the snapshot should know."""
        return tuple(
            Note(object=f.object, status=f.status, reason=f.reason)
            for f in self.findings
            if f.status not in ("saved", "refused")
        )

    def file(self, path: str, inode: int) -> int:
        """Index of a file that must be there on restore.

        A path that leads to another inode than the process has open is refused.
        """
        if path in self._file_index:
            return self._file_index[path]
        identity = self.known.get((path, inode)) or self._identify(path, inode)
        self.known[path, inode] = identity
        self.files.append(identity)
        self._file_index[path] = len(self.files) - 1
        return len(self.files) - 1

    def _identify(self, path: str, inode: int) -> FileIdentity:
        there = f"/proc/{self.alive or self.pid}/root{path}"
        try:
            status = os.stat(there)
        except OSError as error:
            self.refuse(f"file {path}", f"cannot be looked at: {error.strerror}")
            return FileIdentity(path=path, size=0, mtime_ns=0)
        if status.st_ino != inode:
            self.refuse(
                f"file {path}",
                "another file stands at that path now",
                "restart the process, or put the original file back",
            )
        return FileIdentity(
            path=path,
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            build_id=procfs.build_id(there),
        )


@dataclass(frozen=True)
class Fill:
    """A step of a restore: bytes out of the store into the process.

    Attributes:
        what: for the reader of a plan.
        content: the bytes.
        shift: added to the addresses of the content.
    """

    what: str
    content: Content
    shift: int = 0


@dataclass
class Build:
    """A restore in the making: what the modules' ``rebuild`` functions read and add to.

    The first process makes every description and object, at a number that no process uses; the
    others are forked from it, and so have them as well. Each then puts them where it had them, and
    closes the rest.

    Attributes:
        manifest: what is restored.
        process: the process that is built.
        architecture: of all.
        streams: descriptors that the stub has inherited, by standard stream.
        hole: a range that is free in all processes, for temporary mappings.
        high: first descriptor number that no process uses.
        numbers: where each description is held that is there already.
        stream_cells: descriptor of each inherited stream.
        staging: where each shared anonymous object is mapped meanwhile.
        kept: ranges that this process has from its parent: start and length.
        ports: old to new TCP ports.
        names: ``struct sockaddr`` that each bound socket has got.
        routes: the listener that each unix socket connects to, by description.
        paths: where files are on this host that are not at their old places.
        far_ends: the other ends of unix sockets whose peer is gone, until all is sent from them.
        notes: what the user should know.
        begin_file: is told of a file that is of use only if the process comes to run, before it is
            made.
    """

    manifest: Manifest
    process: Process
    architecture: Architecture
    streams: dict[int, int]
    hole: int = 0
    high: int = 0
    numbers: dict[int, int] = field(default_factory=dict)
    stream_cells: dict[int, Cell] = field(default_factory=dict)
    staging: dict[int, int] = field(default_factory=dict)
    kept: Sequence[tuple[int, int]] = ()
    ports: dict[int, int] = field(default_factory=dict)
    names: dict[int, bytes] = field(default_factory=dict)
    routes: dict[int, int] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    far_ends: dict[int, Cell] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    begin_file: Callable[[str], None] = lambda path: None

    def sibling(self, process: Process) -> Build:
        """The build of another process, with the same tables."""
        return replace(self, process=process)

    def held(self, index: int) -> int:
        """Number of a description until it is placed."""
        return self.high + index

    def held_object(self, index: int) -> int:
        """Number of a memfd or deleted file of ``Manifest.shared_memory``."""
        return self.high + len(self.manifest.descriptions) + index

    @property
    def above(self) -> int:
        """First number above all these, for what is needed for a while."""
        return self.held_object(len(self.manifest.shared_memory))

    def note_lost(self, batch: Batch) -> None:
        """Note what of a batch's optional calls has failed."""
        for call in batch.calls:
            if call.optional and call.result is not None and -4096 < call.result < 0:
                reason = os.strerror(-call.result)
                self.notes.append(Note(object=call.optional, status="lost", reason=reason))

    def keep(self, batch: Batch, fresh: Cell, index: int) -> int:
        """Hold a new descriptor as description ``index``; its number."""
        number = self.numbers[index] = self.held(index)
        batch.call("dup3", fresh, number, os.O_CLOEXEC)
        batch.call("close", fresh)
        return number

    def move(self, batch: Batch, fresh: Cell) -> Cell:
        """Move a new descriptor out of the way."""
        away = Cell(f"{fresh.name}'")
        batch.call("fcntl", fresh, F_DUPFD_CLOEXEC, self.above, store=away)
        batch.call("close", fresh)
        return away

    def number_of(self, index: int) -> int | None:
        """A descriptor of description ``index`` in the first process that has it; ``None`` in all
        other processes. For what is done once, when all descriptors are at their numbers."""
        for process in self.manifest.processes:
            for entry in process.descriptors:
                if entry.description == index:
                    return entry.number if process is self.process else None
        return None

    def place(self, batch: Batch, away: Cell, index: int) -> int:
        """The same as ``keep``, for a descriptor that was moved away."""
        return self.keep(batch, away, index)
