"""Who is whose child, sessions, process groups (credentials(7)), and children that have ended.

On rebuild every process is forked by its parent, with the pid it had (clone3(2), set_tid). A child
is born into its parent's session and group: who left a session by setsid(2) after it had children
in the old one has these before it does so again. A terminal that controls a session is taken
before there are others in it, who inherit it. Groups are joined when all are there.

A session or group outlives its leader, and nobody can make one with another's number. So a
placeholder is forked with the leader's pid, leads, and ends when all others have joined. Who is in
a session that its parent never was in (its own parent has ended, and the new one is a subreaper) is
born by that session's leader, as its parent's child (CLONE_PARENT).

An orphan is given to pid 1 of its namespace, or to a subreaper (prctl(2)). One whose session is led
by a process of the tree belongs to the tree. A placeholder in that session has it as a child, and
ends: so it becomes an orphan again.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

from snapkernel import procfs
from snapkernel.constants import CLONE_PARENT, WALL
from snapkernel.freeze.batch import Batch, Words
from snapkernel.model import SIGCHLD, Manifest, Process, Zombie
from snapkernel.resources import terminal
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.process import Identity

ORPHAN = 1
"""The parent of who has lost his own."""
_MOST_SIGACTION = 64  # bytes, at least those of struct kernel_sigaction anywhere

Made = Process | Zombie
Member = Made | Identity


@dataclass(frozen=True)
class Fork:
    """The birth of a child; it is stopped before its first instruction."""

    child: Made
    batch: Batch


@dataclass(frozen=True)
class End:
    """The end of a process that is to be a zombie."""

    zombie: Zombie


def check(capture: Capture, members: Sequence[Member]) -> None:
    """Refuse what could not be made again."""
    first, *others = members
    by_pid = {member.pid: member for member in members}
    for member in others:
        subject = f"process {member.pid}"
        parent = by_pid.get(member.ppid)
        if member.ppid == ORPHAN and _leads(by_pid.get(member.sid)):
            continue
        if parent is None:
            capture.refuse(subject, "its parent is not in the snapshot", "end it")
            continue
        if not _can_be_born(by_pid, first, member, parent):
            capture.refuse(subject, "has left the family that its session is in", "end it")
        if member.pgid in (0, first.ppid) and member.pgid not in (first.pgid, first.sid):
            capture.refuse(subject, "is in a process group of others", "end it")


def _leads(member: Member | None) -> bool:
    """It is the leader of its session."""
    return member is not None and member.sid == member.pid


def _can_be_born(
    by_pid: Mapping[int, Member], first: Member, member: Member, parent: Member
) -> bool:
    """Into its session: its own, one of an ancestor, or one of a brother or a placeholder."""
    if member.sid in (member.pid, parent.sid):
        return True
    ancestor = parent
    while ancestor is not first and ancestor.ppid != ORPHAN:
        ancestor = by_pid[ancestor.ppid]
        if member.sid == ancestor.sid:
            return True
    leader = by_pid.get(member.sid)
    if leader is not None:
        return (leader.ppid, leader.exit_signal) == (member.ppid, member.exit_signal)
    if member.sid in (0, first.ppid, first.pgid):
        return False
    session = [other for other in by_pid.values() if other.sid == member.sid]
    strangers = [other for other in session if by_pid.get(other.ppid, first).sid != other.sid]
    return len({(other.ppid, other.exit_signal) for other in strangers}) == 1


def orphans(pids: Sequence[int]) -> list[int]:
    """Who is in a session that is led by one of these, and no descendant of them any more.

    Their own descendants are not among them. All ids are as this host sees them.
    """
    others = {pid: stat for pid, stat in _others(pids) if int(stat[3]) in pids}
    family = {*others, *pids}  # a child of one of these may just have been born
    namespaces = _namespaces(pids[0])
    ours = _ancestors(os.getpid())
    return sorted(
        pid
        for pid, stat in others.items()
        if int(stat[1]) not in family and pid not in ours and _namespaces(pid) == namespaces
    )


def _others(pids: Collection[int]) -> Iterator[tuple[int, list[str]]]:
    """All other living processes, with ``/proc/PID/stat`` from field 3 on."""
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        if pid not in pids:
            try:
                stat = procfs.stat(pid)
            except OSError:
                continue  # it has ended meanwhile
            if stat[0] != "Z":
                yield pid, stat


def _namespaces(pid: int) -> tuple[str, ...]:
    """The pid namespaces of a process and of its children; nothing when they cannot be seen."""
    try:
        return tuple(os.readlink(f"/proc/{pid}/ns/{name}") for name in ("pid", "pid_for_children"))
    except OSError:
        return ()


def _ancestors(pid: int) -> set[int]:
    """A process, its parent, and so on."""
    found = set()
    while pid:
        found.add(pid)
        pid = int(procfs.stat(pid)[1])
    return found


def tell_left_out(capture: Capture, pids: Collection[int]) -> None:
    """Report other processes of these ones' sessions and groups: they are no descendants, since
    their parents have ended.

    ``pids`` are those of the tree, on this host.
    """
    for pid, stat in _others(pids):
        if {int(stat[2]), int(stat[3])} & set(pids):
            with contextlib.suppress(OSError):
                name = procfs.text(f"/proc/{pid}/comm").strip()
                reason = "is no descendant any more, since its parent has ended, and is not saved"
                capture.report(f"process {pid} ({name})", "left out", reason)


def strangers(manifest: Manifest) -> set[int]:
    """Pids of those who are in a session that their parent was never in, and not in their own."""
    by_pid = {process.pid: process for process in manifest.processes}
    first = manifest.processes[0]
    found = set()
    members: list[Made] = [*manifest.processes[1:], *manifest.zombies]
    for member in members:
        if member.ppid == ORPHAN:
            continue
        parent = by_pid[member.ppid]
        lines = {member.pid, first.sid, parent.sid}
        while parent is not first and parent.ppid != ORPHAN:
            parent = by_pid[parent.ppid]
            lines.add(parent.sid)
        if member.sid not in lines:
            found.add(member.pid)
    return found


def steps(
    builds: Sequence[Build], heirs: Container[int] = ()
) -> Iterator[tuple[int, Fork | Batch | End]]:
    """Births, sessions, groups and ends, each with the pid of the process that it is for; the
    first process comes first, and is there.

    ``heirs`` are born after their brothers: their parent's memory has been filled by then.
    """
    return _Family(builds, heirs).steps()


class _Family:
    """Members while they are made.

    Attributes:
        builds: of the processes.
        members: of the snapshot, the first process first.
        groups: the process group that each is in.
        placeholders: of leaders that have ended.
    """

    def __init__(self, builds: Sequence[Build], heirs: Container[int]) -> None:
        manifest = builds[0].manifest
        self.builds = builds
        self.members: list[Made] = [*manifest.processes, *manifest.zombies]
        self.members.sort(key=lambda member: member.pid in heirs)
        self.zombies = manifest.zombies
        self.first = manifest.processes[0]
        self.pids = {member.pid for member in self.members}
        self.groups = {self.first.pid: self.first.pgid}
        self.placeholders: list[Zombie] = []

    def steps(self) -> Iterator[tuple[int, Fork | Batch | End]]:
        """In this order."""
        if self.first.sid == self.first.pid:
            yield self.first.pid, terminal.take(self.builds[0])
        yield from self._descendants(self.first, self.first.sid)
        yield from self._lead_groups()
        # Leaders first: nobody can join a group that is not there.
        for member in sorted(self.members[1:], key=lambda member: member.pgid != member.pid):
            if self.groups[member.pid] != member.pgid:
                yield self._join(member.pid, member.pgid)
        for build in self.builds:
            yield build.process.pid, terminal.give_up(build)
            yield build.process.pid, terminal.give_foreground(build)
        for ended in (*self.placeholders, *self.zombies):
            yield ended.pid, End(ended)
        parents = {ended.ppid for ended in (*self.placeholders, *self.zombies)}
        for parent in sorted(parents - {zombie.pid for zombie in self.zombies}):
            batch = Batch("forget the signals of these ends")
            # What is ignored by default is not left pending (signal(7)); the old action comes
            # later.
            batch.call("rt_sigaction", SIGCHLD, bytes(_MOST_SIGACTION), 0, 8)
            for placeholder in self.placeholders:
                if placeholder.ppid == parent:
                    note = f"placeholder {placeholder.pid}"
                    batch.call("wait4", placeholder.pid, 0, WALL, 0, note=note)
            yield parent, batch

    def _descendants(self, parent: Made, session: int) -> Iterator[tuple[int, Fork | Batch]]:
        """All of a process that is in a session, and its own new session."""
        children = [member for member in self.members[1:] if member.ppid == parent.pid]
        leads = parent.sid == parent.pid != session
        early = [child for child in children if leads and child.sid == session]
        for child in early:
            yield from self._birth(parent.pid, child, session)
        if leads:
            yield self._lead(parent.pid)
            taking = (build for build in self.builds if build.process is parent)
            yield from ((parent.pid, terminal.take(build)) for build in taking)
        late = [child for child in children if child not in early]
        strangers = [child for child in late if child.sid not in (child.pid, parent.sid)]
        for child in late:
            if child not in strangers:
                yield from self._birth(parent.pid, child, parent.sid)
        for stranger in strangers:
            if stranger.sid not in self.groups:
                yield self._placeholder(parent.pid, stranger.sid, stranger.exit_signal)
                yield self._lead(stranger.sid)
            yield from self._birth(stranger.sid, stranger, stranger.sid)
        if parent.sid == parent.pid:
            yield from self._orphans(parent.pid)

    def _orphans(self, leader: int) -> Iterator[tuple[int, Fork | Batch]]:
        """Those in a session, children of a placeholder that will end."""
        found = [m for m in self.members[1:] if m.ppid == ORPHAN and m.sid == leader]
        if found:
            pid = self._free_pid()
            yield self._placeholder(leader, pid, 0)
            for orphan in found:
                yield from self._birth(pid, orphan, leader)

    def _free_pid(self) -> int:
        """One that nobody has, or had."""
        used = {member.pid for member in (*self.members, *self.placeholders)}
        used |= {thread.tid for build in self.builds for thread in build.process.threads}
        for member in self.members:
            used |= {member.ppid, member.pgid, member.sid}
        return next(pid for pid in range(max(used) - 1, 300, -1) if pid not in used)

    def _birth(self, maker: int, child: Made, session: int) -> Iterator[tuple[int, Fork | Batch]]:
        """By its parent, or by a child of its parent; of an orphan by a placeholder."""
        yield self._fork(maker, child, brother=maker != child.ppid != ORPHAN)
        yield from self._descendants(child, session)

    def _fork(self, maker: int, child: Made, *, brother: bool = False) -> tuple[int, Fork]:
        batch = Batch("fork a child")
        pid = struct.pack("=i", child.pid)
        flags, exit_signal = (CLONE_PARENT, 0) if brother else (0, child.exit_signal)
        arguments = Words((flags, 0, 0, 0, exit_signal, 0, 0, 0, pid, 1, 0))
        batch.call("clone3", arguments, 11 * 8, note=f"process {child.pid}")
        self.groups[child.pid] = self.groups[maker]
        return maker, Fork(child, batch)

    def _placeholder(self, parent: int, pid: int, exit_signal: int) -> tuple[int, Fork]:
        made = Zombie(pid=pid, ppid=parent, pgid=pid, sid=pid, status=0, exit_signal=exit_signal)
        self.placeholders.append(made)
        return self._fork(parent, made)

    def _lead(self, pid: int) -> tuple[int, Batch]:
        batch = Batch("lead a session")
        batch.call("setsid", note=f"session {pid}")
        self.groups[pid] = pid
        return pid, batch

    def _join(self, pid: int, group: int) -> tuple[int, Batch]:
        batch = Batch("join the process group")
        batch.call("setpgid", 0, group, note=f"process group {group}")
        self.groups[pid] = group
        return pid, batch

    def _lead_groups(self) -> Iterator[tuple[int, Fork | Batch]]:
        """Placeholders for leaders of groups that have ended; a member is in the right session."""
        # Who is to end leaves a placeholder to pid 1, which waits for it.
        for member in sorted(self.members[1:], key=lambda member: isinstance(member, Zombie)):
            group = member.pgid
            if group not in {*self.groups, self.first.pgid, self.first.sid}:
                yield self._placeholder(member.pid, group, 0)
                yield self._join(group, group)
