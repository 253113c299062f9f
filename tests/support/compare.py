"""Dump, restore, dump again: two manifests of one process, compared bit by bit.

The restored threads are held stopped, so nothing has run between the two.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from itertools import zip_longest
from signal import SIGALRM
from typing import Any

import msgspec

from snapkernel import procfs
from snapkernel.freeze import capture as looking
from snapkernel.freeze.target import Target
from snapkernel.model import (
    ClosedSocket,
    Content,
    Epoll,
    Manifest,
    PosixTimer,
    Process,
    RegularFile,
    SharedMemory,
    Stream,
    TcpListener,
    TimerDescriptor,
)
from snapkernel.resources import memory, memory_policy, threads
from snapkernel.resources.context import Capture
from snapkernel.store import Store
from snapkernel.thaw.restore import Held


@dataclass
class Dump:
    """What a manifest would hold of a process that stands still."""

    processes: list[Process]
    capture: Capture


def dump(held: Held) -> Dump:
    """Look at a restored process that has not run yet."""
    parts = []
    with contextlib.ExitStack() as agents:
        for target in held.targets.values():
            areas = procfs.areas(procfs.text(f"/proc/{target.pid}/maps"))
            threads.leave_sequences(target, looking.arch.native())
            agent = looking.install_agent(target, areas)
            agents.callback(agent.remove)
            parts.append(looking.Frozen(target, agent, areas))
        flags = [memory.read_flags(part.target.pid) for part in parts]
        capture, _, _ = looking.capture(parts, (), {}, None)
        processes = [
            looking.mappings(part, own, memory_policy.of_areas(part.target.pid, part.areas))
            for part, own in zip(parts, flags, strict=True)
        ]
    return Dump(processes, capture)


def differences(manifest: Manifest, held: Held, store: Store) -> list[str]:
    """Everything in which the second dump differs from the first."""
    second = dump(held)
    found: list[str] = []
    for process, again in zip(manifest.processes, second.processes, strict=True):
        found += _differences(manifest, process, held.targets[process.pid], second, again, store)
    if list(manifest.shared_folders) != second.capture.shared_folders:
        found.append(f"folders: {manifest.shared_folders} != {second.capture.shared_folders}")
    if manifest.ipc != second.capture.ipc:
        found.append(f"IPC namespace: {_short(manifest.ipc)} != {_short(second.capture.ipc)}")
    for one, other in zip_longest(manifest.shared_memory, second.capture.shared_memory):
        if one is None or other is None or _object(one, one.kind) != _object(other, one.kind):
            found.append(f"shared memory: {_short(one)} != {_short(other)}")
    return found


def _object(record: SharedMemory, kind: str) -> SharedMemory | int:
    """What must be the same. A deleted file may come back as a memfd."""
    if kind == "deleted-file":
        return record.size
    return msgspec.structs.replace(record, content=Content())


def _differences(
    manifest: Manifest, first: Process, target: Target, second: Dump, again: Process, store: Store
) -> list[str]:
    found: list[str] = []

    def compare(what: str, one: Any, other: Any) -> None:
        if one != other:
            found.append(f"process {first.pid}: {what}: {_short(one)} != {_short(other)}")

    for name in Process.__struct_fields__:
        if name in ("memory", "threads", "stopped", "credentials"):
            continue
        if name == "pending":
            # A timer may have rung since.
            rung = [p for p in again.pending if p.signal == SIGALRM]
            late = [] if SIGALRM in {p.signal for p in first.pending} else rung
            queued = tuple(p for p in again.pending if p not in late)
            compare(name, first.pending, queued)
        elif name == "interval_timers":
            # Time goes on, but the interval is the same.
            for one, other in zip(first.interval_timers, again.interval_timers, strict=True):
                compare("interval of a timer", one[:16], other[:16])
        elif name == "timers":
            compare(
                name,
                list(map(_standing, first.timers)),
                list(map(_standing, again.timers)),
            )
        else:
            compare(name, getattr(first, name), getattr(again, name))
    compare("user ids", first.credentials.uids, again.credentials.uids)
    compare("group ids", first.credentials.gids, again.credentials.gids)
    for one, other in zip(first.threads, again.threads, strict=True):
        for name in one.__struct_fields__:
            if name == "system_call":
                continue  # of a call that will be made again, the number alone
            compare(f"thread {one.tid} {name}", getattr(one, name), getattr(other, name))
    compare("layout", first.memory.layout, again.memory.layout)
    compare("auxv", first.memory.auxv, again.memory.auxv)
    compare("vdso", first.memory.vdso, again.memory.vdso)
    _compare_mappings(first, again, compare)
    _compare_files(manifest, first, second, again, compare)
    _compare_memory(manifest, first, target, again, store, compare)
    return found


def _compare_mappings(first: Process, second: Process, compare: Any) -> None:
    ours = {(m.start, m.end): m for m in first.memory.mappings}
    theirs = {(m.start, m.end): m for m in second.memory.mappings}
    for key in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(key), theirs.get(key)
        if one is not None and other is not None:
            one = msgspec.structs.replace(one, file=None)
            other = msgspec.structs.replace(other, file=None)
        compare(f"mapping {key[0]:#x}-{key[1]:#x}", one, other)


def _compare_files(
    manifest: Manifest, first: Process, second: Dump, again: Process, compare: Any
) -> None:
    ours = {
        d.number: (d.close_on_exec, manifest.descriptions[d.description]) for d in first.descriptors
    }
    theirs = {
        d.number: (d.close_on_exec, second.capture.descriptions[d.description])
        for d in again.descriptors
    }
    for number in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(number), theirs.get(number)
        if one and isinstance(one[1], Stream):
            continue  # a new stream, by definition
        if one and other:
            one, other = (one[0], _comparable(one[1])), (other[0], _comparable(other[1]))
        compare(f"fd {number}", one, other)
    shared = [d.description for d in first.descriptors]
    others = [d.description for d in again.descriptors]
    compare(
        "shared descriptions", [shared.index(n) for n in shared], [others.index(n) for n in others]
    )
    compare("terminals", manifest.terminals, tuple(second.capture.terminals))
    compare(
        "pipes",
        [(p.size, p.data) for p in manifest.pipes],
        [(p.size, p.data) for p in second.capture.pipes],
    )


def _comparable(description: Any) -> Any:
    if isinstance(description, ClosedSocket):
        return msgspec.structs.replace(description, was="")
    if isinstance(description, RegularFile):
        return description.flags, description.position, description.file.path
    if isinstance(description, TcpListener):
        return description.family, description.address, description.backlog, description.options
    if isinstance(description, Epoll):
        # EPOLLERR and EPOLLHUP are always reported; only a used-up EPOLLONESHOT lacks them.
        targets = [msgspec.structs.replace(t, events=t.events | 0x18) for t in description.targets]
        return description.flags, targets
    if isinstance(description, TimerDescriptor):
        # Between its expiry and the next read, a periodic timer shows no time left.
        is_set = bool(description.value or (description.ticks and description.interval))
        return msgspec.structs.replace(description, value=is_set)
    return description


def _standing(timer: PosixTimer) -> PosixTimer:
    """A timer without the time that it has left."""
    return msgspec.structs.replace(timer, setting=timer.setting[:16])


def _compare_memory(
    manifest: Manifest, first: Process, target: Target, again: Process, store: Store, compare: Any
) -> None:
    content: Content = first.memory.content
    rseq = [t.rseq.address for t in first.threads if t.rseq]
    for address, data in store.read(manifest, content):
        there = target.memory.read(address, len(data))
        if there != data:
            # The kernel writes the processor's number into the rseq areas (rseq(2)).
            at = [address + i for i in range(len(data)) if data[i] != there[i]]
            strange = [a for a in at if not any(r <= a < r + 32 for r in rseq)]
            compare(
                f"memory at {strange[:1]}",
                b"" if not strange else data[:16],
                b"" if not strange else there[:16],
            )
    runs = {a for start, length in content.iter_runs() for a in range(start, start + length, 4096)}
    for start, length in looking.private_runs(target.pid, again.memory.mappings):
        for page in range(start, start + length, 4096):
            if page not in runs and any(target.memory.read(page, 4096)):
                compare(f"page {page:#x}", "not there", "there")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 400 else text[:400] + "..."
