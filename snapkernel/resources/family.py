"""Who is whose child, sessions, process groups (credentials(7)), and children that have ended.

On rebuild every process is forked by its parent, with the pid it had (clone3(2), set_tid). A child
is born into its parent's session and group: who left a session by setsid(2) after it had children
in the old one has these before it does so again. Groups are joined when all are there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from snapkernel.freeze.batch import Batch, Words
from snapkernel.model import SIGCHLD, Manifest, Process, Zombie
from snapkernel.resources.context import Capture
from snapkernel.resources.process import Identity

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
    pids = {member.pid for member in members}
    parents = {member.pid: member for member in members}
    for member in others:
        subject = f"process {member.pid}"
        parent = parents.get(member.ppid)
        if parent is None:
            capture.refuse(subject, "its parent is not in the snapshot", "end it")
            continue
        lines = [parent.sid]
        while parent is not first:
            parent = parents[parent.ppid]
            lines.append(parent.sid)
        if member.sid not in (member.pid, *lines):
            capture.refuse(subject, "the leader of its session has ended", "end it")
        if member.pgid not in pids and member.pgid != first.pgid:
            capture.refuse(subject, "the leader of its process group has ended", "end it")


def steps(manifest: Manifest) -> Iterator[tuple[int, Fork | Batch | End]]:
    """Births, sessions, groups and ends, each with the pid of the process that it is for."""
    members: list[Made] = [*manifest.processes, *manifest.zombies]
    first = manifest.processes[0]
    groups = {first.pid: first.pgid}
    yield from _births(members, first, first.sid, groups)
    # Leaders first: nobody can join a group that is not there.
    for member in sorted(members[1:], key=lambda member: member.pgid != member.pid):
        if groups[member.pid] != member.pgid:
            batch = Batch("join the process group")
            batch.call("setpgid", 0, member.pgid, note=f"process group {member.pgid}")
            yield member.pid, batch
    for zombie in manifest.zombies:
        yield zombie.pid, End(zombie)
    for parent in {zombie.ppid for zombie in manifest.zombies}:
        batch = Batch("forget the signals of these ends")
        # What is ignored by default is not left pending (signal(7)); the old action comes later.
        batch.call("rt_sigaction", SIGCHLD, bytes(_MOST_SIGACTION), 0, 8)
        yield parent, batch


def _births(
    members: list[Made], parent: Made, session: int, groups: dict[int, int]
) -> Iterator[tuple[int, Fork | Batch]]:
    """All descendants of a process that is in a session, and its own new session."""
    children = [member for member in members[1:] if member.ppid == parent.pid]
    leads = parent.sid == parent.pid != session
    early = [child for child in children if leads and child.sid == session]
    for child in early:
        yield from _birth(members, parent, child, session, groups)
    if leads:
        batch = Batch("lead a session")
        batch.call("setsid", note=f"session {parent.pid}")
        groups[parent.pid] = parent.pid
        yield parent.pid, batch
    for child in children:
        if child not in early:
            yield from _birth(members, parent, child, parent.sid, groups)


def _birth(
    members: list[Made], parent: Made, child: Made, session: int, groups: dict[int, int]
) -> Iterator[tuple[int, Fork | Batch]]:
    batch = Batch("fork a child")
    pid = struct.pack("=i", child.pid)
    arguments = Words((0, 0, 0, 0, child.exit_signal, 0, 0, 0, pid, 1, 0))
    batch.call("clone3", arguments, 11 * 8, note=f"process {child.pid}")
    groups[child.pid] = groups[parent.pid]
    yield parent.pid, Fork(child, batch)
    yield from _births(members, child, session, groups)
