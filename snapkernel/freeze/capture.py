"""The order in which a process is looked at.

:func:`survey` looks at a running process from outside: it explains what a snapshot would hold, it
refuses early, and it finds out what takes long (VmFlags, build ids), so that the freeze need not.
:func:`capture` looks at a stopped one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from snapkernel import arch, procfs
from snapkernel.arch import Architecture
from snapkernel.errors import CannotCheckpoint, Finding, TargetError, UnsupportedHost
from snapkernel.freeze.agent import Agent, call_site, find_hole
from snapkernel.freeze.batch import Batch
from snapkernel.freeze.layout import SIZE
from snapkernel.freeze.target import Memory, Target, why_not
from snapkernel.freeze.way_back import Code, find_code, is_there, writable
from snapkernel.model import AddressSpace, Clocks, FileIdentity, Mapping, Note, Process, Zombie
from snapkernel.resources import (
    carried_file,
    credentials,
    descriptors,
    family,
    inheritance,
    memory,
    memory_policy,
    private_folder,
    process,
    shared_memory,
    signals,
    system_v,
    terminal,
    threads,
    timers,
    vdso,
)
from snapkernel.resources.carried_file import Found
from snapkernel.resources.context import Capture, Saver
from snapkernel.resources.file_choice import NOTHING, Choice
from snapkernel.resources.open_file import open_table
from snapkernel.store.early import Early


@dataclass
class Look:
    """What was found out about one process before the freeze.

    Attributes:
        flags: VmFlags of the mappings.
        maps: the text of ``/proc/PID/maps``.
        areas: the same, parsed.
        hole: where the agent fits.
        site: a system call instruction to borrow.
        code: instructions for the way back of its threads, if it has them.
        stacks: mappings that may be stacks.
        unforked: some mappings are kept from forked children (madvise(2), MADV_DONTFORK).
        policies: NUMA policies of areas, by address.
    """

    flags: memory.Flags
    maps: str
    areas: list[procfs.Area]
    hole: int
    site: int
    code: Code | None
    stacks: list[tuple[int, int]]
    unforked: bool
    policies: memory_policy.Policies

    def areas_now(self, pid: int) -> list[procfs.Area]:
        """The mappings of the frozen process; parsed again only if they have changed."""
        maps = procfs.text(f"/proc/{pid}/maps")
        return self.areas if maps == self.maps else procfs.areas(maps)


@dataclass
class Survey:
    """What was found out before the freeze.

    Attributes:
        capture: what was found: findings, objects that processes share, identities of files.
        looks: of each process, by its pid on this host.
    """

    capture: Capture
    looks: dict[int, Look]

    @property
    def left_out(self) -> tuple[Note, ...]:
        """What belongs to the tree and is not part of it."""
        return tuple(
            Note(object=f.object, status=f.status, reason=f.reason)
            for f in self.findings
            if f.status == "left out"
        )

    @property
    def findings(self) -> list[Finding]:
        """What becomes of every object."""
        return self.capture.findings


_LOOKS, _ENDS = 3, 20


class _EndedError(Exception):
    """A descendant has ended while it was looked at, or something that it had open. Its cause is
    what another descendant could not be looked at for, perhaps since its parent has ended."""


def survey(pid: int, choice: Choice = NOTHING) -> Survey:
    """Look at a running process and its descendants, without touching them. ``choice`` is of the
    files that are to travel.

    What they have may change while it is looked at; only what is refused three times is refused. A
    descendant may end: then all are looked at again, since what it had is mixed with what others
    have.

    Raises:
        TargetError: it does not exist or may not be examined.
        UnsupportedHost: its architecture is not supported here.
    """
    architecture_of(pid)
    looks = ends = failures = 0
    while True:
        try:
            found = _look_from_outside(pid, choice)
        except _EndedError as ended:
            ends += 1
            failures += ended.__cause__ is not None
            if failures == _LOOKS and ended.__cause__ is not None:
                raise ended.__cause__ from None
            if ends == _ENDS:
                reason = "what it has ends faster than it can be looked at"
                raise TargetError(f"process {pid}", reason, "try again") from None
            continue
        looks += 1
        if looks == _LOOKS or all(finding.status != "refused" for finding in found.findings):
            return found


def _is_ending(pid: int) -> bool:
    """It has given up its memory, is a zombie, or gone."""
    try:
        return "VmSize" not in procfs.status(pid)
    except TargetError:
        return True


def _look_from_outside(pid: int, choice: Choice) -> Survey:
    capture = Capture(pid, choice=choice)
    looks: dict[int, Look] = {}
    members: list[family.Member] = []
    for one in _everyone(capture):
        try:
            if one != pid and procfs.stat(one)[0] == "Z":
                members.append(process.capture_zombie(one))
                continue
            architecture_of(one)
            looks[one], identity = _look_at(capture if one == pid else capture.sibling(one))
            members.append(identity)
        except (TargetError, OSError) as error:
            if one == pid:
                raise
            if not _is_ending(one):  # its parent may be
                raise _EndedError from error
            looks.pop(one, None)
    family.check(capture, members)
    family.tell_left_out(capture, capture.members)
    try:
        system_v.explain(capture)
        with open_table(*looks) as table:
            descriptors.capture(capture, table)
            for one in looks:
                terminal.capture_controlling(capture, one, looks)
            areas = [area for look in looks.values() for area in look.areas]
            files = carried_file.capture(capture, table, areas)
        _search(capture, list(looks), files)
    except (TargetError, OSError) as error:
        vanished = isinstance(error, FileNotFoundError) and not _is_ending(pid)
        if vanished or any(one != pid and _is_ending(one) for one in looks):
            raise _EndedError from None
        if isinstance(error, (PermissionError, FileNotFoundError, ProcessLookupError)):
            raise why_not(pid, error.errno or 0) from None
        raise
    return Survey(capture, looks)


def _everyone(capture: Capture) -> Iterator[int]:
    """A process, its descendants, its orphans and theirs."""
    tree = [capture.pid, *procfs.descendants(capture.pid)]
    yield from tree
    capture.orphans = frozenset(family.orphans(tree))
    for orphan in sorted(capture.orphans):
        yield from (orphan, *procfs.descendants(orphan))


def _search(capture: Capture, pids: list[int], found: list[Found]) -> None:
    """Tell of the files that nobody has open and that travel."""
    choice = capture.choice
    if choice.written or choice.patterns:
        here = carried_file.places(pids)
        began = carried_file.began(capture.pid)
        for one in carried_file.search(capture, here, began, found):
            capture.travels(f"file {one.path}", one.bytes)


def _look_at(capture: Capture) -> tuple[Look, process.Identity]:
    pid = capture.pid
    try:
        identity = process.capture_identity(capture)
        flags = memory.read_flags(pid)
        maps = procfs.text(f"/proc/{pid}/maps")
        areas = procfs.areas(maps)
        policies = memory_policy.of_areas(pid, areas)
        memory.capture(capture, areas, flags)
        shared_memory.register(capture, areas)
        capture.saved(f"process {identity.pid} ({os.path.basename(identity.executable)})")
        capture.saved(f"{len(procfs.tids(pid))} threads")
        capture.saved(f"{len(areas)} memory mappings")
        unforked = any("dc" in words for words in flags.values())
        hole = _hole(areas)
        with contextlib.closing(Memory(pid)) as held:
            site, code = call_site(held, areas), find_code(held, areas)
    except (PermissionError, FileNotFoundError, ProcessLookupError) as error:
        raise why_not(pid, error.errno or 0) from None
    stacks = writable(areas)
    return Look(flags, maps, areas, hole, site, code, stacks, unforked, policies), identity


def architecture_of(pid: int) -> Architecture:
    """The architecture, when the process is of the same as we are.

    Raises:
        UnsupportedHost: snapkernel does not know this machine, or the process is of another kind.
        TargetError: the process cannot be looked at.
    """
    try:
        architecture = arch.native()
    except KeyError:
        raise UnsupportedHost(
            f"architecture {os.uname().machine}",
            "is not supported",
            f"supported are {', '.join(sorted(arch.MACHINES))}",
        ) from None
    try:
        with open(f"/proc/{pid}/exe", "rb") as file:
            head = file.read(20)
        with open("/proc/self/exe", "rb") as file:
            own = file.read(20)
    except OSError as error:
        raise why_not(pid, error.errno or 0) from None
    if (head[4], head[18:20]) != (own[4], own[18:20]):
        raise UnsupportedHost(
            f"process {pid}", "is of another architecture than this host's native one"
        )
    return architecture


def refuse(pid: int, findings: list[Finding]) -> None:
    """Raise what must not be dropped silently.

    Raises:
        CannotCheckpoint: something is refused.
    """
    refused = [finding for finding in findings if finding.status == "refused"]
    if refused:
        raise CannotCheckpoint(f"process {pid}", refused)


def _hole(areas: list[procfs.Area]) -> int:
    return find_hole([(a.start, a.end) for a in areas], SIZE, arch.native().task_size)


def install_agent(target: Target, areas: list[procfs.Area], look: Look | None = None) -> Agent:
    """Put the agent into a stopped process; where to is known if nothing has changed since the
    look from outside."""
    if look is not None and areas is look.areas:
        hole, site, stacks = look.hole, look.site, look.stacks
    else:
        hole, site, stacks = _hole(areas), call_site(target.memory, areas), writable(areas)
    code = None if look is None else look.code
    if look is None or (code is not None and not is_there(target.memory, code)):
        code = find_code(target.memory, areas)
    agent = Agent(target, hole, live=True, code=code, stacks=stacks)
    agent.install(site)
    return agent


def clocks(pid: int) -> Clocks:
    """The clocks as the process sees them: ours, plus the difference of the time namespaces'
    offsets (time_namespaces(7), Linux 5.6)."""
    theirs, ours = _offsets(pid), _offsets(os.getpid())

    def now(clock: int, name: str) -> int:
        return time.clock_gettime_ns(clock) + theirs.get(name, 0) - ours.get(name, 0)

    return Clocks(
        monotonic_ns=now(time.CLOCK_MONOTONIC, "monotonic"),
        boottime_ns=now(time.CLOCK_BOOTTIME, "boottime"),
        realtime_ns=time.time_ns(),
    )


def _offsets(pid: int) -> dict[str, int]:
    try:
        lines = procfs.text(f"/proc/{pid}/timens_offsets").splitlines()
    except OSError:
        return {}
    return {
        name: int(seconds) * 1_000_000_000 + int(nanoseconds)
        for name, seconds, nanoseconds in map(str.split, lines)
    }


@dataclass
class Frozen:
    """A stopped process with what is needed to look at it, and what was found.

    Attributes:
        target: the process.
        agent: in it.
        areas: its mappings.
        capture: of it; shares its tables with those of the other processes.
        process: its record, without the mappings and the private memory.
        ipc_used: what may be in its IPC namespace.
    """

    target: Target
    agent: Agent
    areas: list[procfs.Area]
    capture: Capture = field(init=False)
    process: Process = field(init=False)
    ipc_used: system_v.Used = field(init=False)


def capture(
    parts: Sequence[Frozen],
    zombies: Sequence[Zombie],
    files: dict[tuple[str, int], FileIdentity],
    save: Saver | None,
    early: dict[tuple[str, int], Early] | None = None,
    each: Callable[[Frozen], None] = lambda frozen: None,
    choice: Choice = NOTHING,
    orphans: frozenset[int] = frozenset(),
) -> tuple[Capture, Clocks, list[Found]]:
    """Look at stopped processes; the first is an ancestor of all others, but for ``orphans``.

    ``each`` is told when a process has been looked at by itself, without what it shares. The shared
    objects they have are read at once, by ``save``, with what was stored of them early. The records
    of their mappings are left for :func:`mappings`, their private memory for :func:`private_runs`:
    both can be had later, and so can the contents of the files that travel, which are open now.

    Raises:
        CannotCheckpoint: one has come to hold something that cannot be saved.
    """
    first = parts[0]
    root = Capture(first.target.pid, first.target, first.agent, save, files, choice)
    root.early, root.orphans = early or {}, orphans
    at = clocks(root.pid)
    for part in parts:
        part.capture = root
        if part is not first:
            part.capture = root.sibling(part.target.pid, part.target, part.agent)
        part.process = _capture_one(part)
        each(part)
        shared_memory.register(part.capture, part.areas)
    members: list[family.Made] = [*(part.process for part in parts), *zombies]
    family.check(root, members)
    inner = {member.pid for member in members}
    pids = [part.target.pid for part in parts]
    attached = system_v.capture(root, first.ipc_used, inner)
    try:
        with open_table(*pids) as table:
            tables = descriptors.capture(root, table)
            controlling = {pid: terminal.capture_controlling(root, pid, pids) for pid in pids}
            private_folder.capture(root, inner)
            refuse(root.pid, root.findings)
            if root.objects:
                shared_memory.save(root)
            terminal.save(root)
            carried = carried_file.capture(root, table, [a for part in parts for a in part.areas])
    finally:
        attached.detach(first.agent)
    for part in parts:
        pid = part.target.pid
        part.process = msgspec.structs.replace(
            part.process, descriptors=tables[pid], terminal=controlling[pid]
        )
    return root, at, carried


def _capture_one(part: Frozen) -> Process:
    """All that is of one process alone."""
    architecture = arch.native()
    target, agent, areas, capture = part.target, part.agent, part.areas, part.capture
    pid = target.pid
    signals.refuse_pending_trap(capture)
    pending = signals.capture_pending(capture)
    batch = Batch("ask the process")
    leader = threads.Question(batch, architecture)
    asked = process.Question(batch, agent)
    actions = signals.Actions(batch, capture, architecture)
    interval_timers, posix_timers = timers.IntervalTimers(batch), timers.PosixTimers(batch, pid)
    agent.run(batch)
    main_thread, settings = leader.answer(capture, target.leader), asked.answer()
    part.ipc_used = settings.ipc_used
    identity = process.capture_identity(capture)
    heap = max((area.end for area in areas if area.name == "[heap]"), default=0)
    layout = process.capture_layout(target.pid, heap)
    return Process(
        pid=identity.pid,
        ppid=identity.ppid,
        pgid=identity.pgid,
        sid=identity.sid,
        exit_signal=identity.exit_signal,
        executable=identity.executable,
        file=identity.file,
        arguments=identity.arguments,
        working_directory=identity.working_directory,
        umask=identity.umask,
        memory=AddressSpace(
            mappings=(),
            layout=layout,
            auxv=procfs.read(f"/proc/{target.pid}/auxv"),
            vdso=vdso.capture(target.memory, areas),
        ),
        threads=(main_thread, *threads.capture_others(capture, architecture)),
        descriptors=(),
        credentials=credentials.capture(capture),
        actions=actions.answer(),
        pending=pending,
        interval_timers=interval_timers.answer(),
        timers=posix_timers.answer(),
        limits=procfs.limits(target.pid),
        dumpable=settings.dumpable,
        child_subreaper=settings.child_subreaper,
        thp_disabled=settings.thp_disabled,
        thp_except_advised=settings.thp_except_advised,
        attributes=settings.attributes,
        timer_slack_ns=main_thread.scheduling.timer_slack_ns or 0,
        locks_future_memory=settings.locks_future_memory,
        oom_score_adj=identity.oom_score_adj,
        stopped=target.stopped,
    )


def mappings(
    part: Frozen,
    flags: memory.Flags,
    policies: memory_policy.Policies,
    parent: Sequence[procfs.Area] | None = None,
) -> Process:
    """The process with the records of its mappings, made from what was read in the freeze, and with
    what it may have from its parent, whose mappings are given.

    Raises:
        CannotCheckpoint: one of them cannot be had again.
    """
    found = memory.capture(part.capture, part.areas, flags, policies)
    refuse(part.target.pid, part.capture.findings)
    inherited = b"" if parent is None else inheritance.capture(parent, part.areas)
    space = msgspec.structs.replace(part.process.memory, mappings=found, inherited=inherited)
    return msgspec.structs.replace(part.process, memory=space)


def private_runs(pid: int, mappings: tuple[Mapping, ...]) -> list[tuple[int, int]]:
    """Runs of the private pages of a process that stands still."""
    return memory.scan(pid, filter(memory.holds_private_pages, mappings))
