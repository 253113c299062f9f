"""Dump, restore, dump again: two manifests of one process, compared bit by bit.

The restored threads are held stopped, so nothing has run between the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from signal import SIGALRM
from typing import Any

import msgspec

from snapkernel import procfs
from snapkernel.freeze import capture as looking
from snapkernel.model import (
    ClosedSocket,
    Content,
    Epoll,
    Manifest,
    PosixTimer,
    Process,
    RegularFile,
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

    process: Process
    capture: Capture


def dump(held: Held) -> Dump:
    """Look at a restored process that has not run yet."""
    target = held.target
    areas = procfs.areas(procfs.text(f"/proc/{target.pid}/maps"))
    threads.leave_sequences(target, looking.arch.native())
    agent = looking.install_agent(target, areas)
    try:
        flags = memory.read_flags(target.pid)
        process, capture, _ = looking.capture(target, agent, areas, {}, None)
        capture.policies = memory_policy.of_areas(target.pid, areas)
        process = looking.mappings(capture, process, areas, flags)
    finally:
        agent.remove()
    return Dump(process, capture)


def differences(manifest: Manifest, held: Held, store: Store) -> list[str]:
    """Everything in which the second dump differs from the first."""
    second = dump(held)
    first = manifest.processes[0]
    found: list[str] = []

    def compare(what: str, one: Any, other: Any) -> None:
        if one != other:
            found.append(f"{what}: {_short(one)} != {_short(other)}")

    for name in Process.__struct_fields__:
        if name in ("memory", "threads", "stopped", "credentials"):
            continue
        if name == "pending":
            # A timer may have rung since.
            rung = [p for p in second.process.pending if p.signal == SIGALRM]
            late = [] if SIGALRM in {p.signal for p in first.pending} else rung
            queued = tuple(p for p in second.process.pending if p not in late)
            compare(name, first.pending, queued)
        elif name == "interval_timers":
            # Time goes on, but the interval is the same.
            for one, other in zip(
                first.interval_timers, second.process.interval_timers, strict=True
            ):
                compare("interval of a timer", one[:16], other[:16])
        elif name == "timers":
            compare(
                name,
                list(map(_standing, first.timers)),
                list(map(_standing, second.process.timers)),
            )
        else:
            compare(name, getattr(first, name), getattr(second.process, name))
    compare("user ids", first.credentials.uids, second.process.credentials.uids)
    compare("group ids", first.credentials.gids, second.process.credentials.gids)
    for one, other in zip(first.threads, second.process.threads, strict=True):
        for name in one.__struct_fields__:
            if name == "system_call":
                continue  # of a call that will be made again, the number alone
            compare(f"thread {one.tid} {name}", getattr(one, name), getattr(other, name))
    compare("layout", first.memory.layout, second.process.memory.layout)
    compare("auxv", first.memory.auxv, second.process.memory.auxv)
    compare("vdso", first.memory.vdso, second.process.memory.vdso)
    _compare_mappings(first, second.process, compare)
    _compare_files(manifest, second, compare)
    compare("IPC namespace", manifest.ipc, second.capture.ipc)
    compare(
        "shared memory",
        [msgspec.structs.replace(record, content=Content()) for record in manifest.shared_memory],
        [
            msgspec.structs.replace(record, content=Content())
            for record in second.capture.shared_memory
        ],
    )
    _compare_memory(manifest, held, second, store, compare)
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


def _compare_files(manifest: Manifest, second: Dump, compare: Any) -> None:
    ours = {
        d.number: (d.close_on_exec, manifest.descriptions[d.description])
        for d in manifest.processes[0].descriptors
    }
    theirs = {
        d.number: (d.close_on_exec, second.capture.descriptions[d.description])
        for d in second.process.descriptors
    }
    for number in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(number), theirs.get(number)
        if one and isinstance(one[1], Stream):
            continue  # a new stream, by definition
        if one and other:
            one, other = (one[0], _comparable(one[1])), (other[0], _comparable(other[1]))
        compare(f"fd {number}", one, other)
    shared = [d.description for d in manifest.processes[0].descriptors]
    again = [d.description for d in second.process.descriptors]
    compare(
        "shared descriptions", [shared.index(n) for n in shared], [again.index(n) for n in again]
    )
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
    manifest: Manifest, held: Held, second: Dump, store: Store, compare: Any
) -> None:
    content: Content = manifest.processes[0].memory.content
    rseq = [t.rseq.address for t in manifest.processes[0].threads if t.rseq]
    for address, data in store.read(manifest, content):
        there = held.target.memory.read(address, len(data))
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
    for start, length in looking.private_runs(held.target.pid, second.process.memory.mappings):
        for page in range(start, start + length, 4096):
            if page not in runs and any(held.target.memory.read(page, 4096)):
                compare(f"page {page:#x}", "not there", "there")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 400 else text[:400] + "..."
