"""System V shared memory, semaphores and message queues (sysvipc(7)).

They belong to an IPC namespace (ipc_namespaces(7)), not to a process, and outlive it. Two processes
with one id cannot both have it, and a copy that used the original's segments would corrupt them. So
a process that uses such objects is restored in an IPC namespace of its own, where its objects get
their old ids (``/proc/sys/kernel/*_next_id``, Linux 3.9; for users other than root Linux 5.16). A
process that uses none stays in the namespace of whoever restores it.

Its objects are: the segments it has attached, which ``/proc/PID/maps`` shows as ``/SYSV<key>`` with
the id for an inode; and those of which the kernel says that this process made them (segments),
changed them last (semaphores) or was the last to send or receive (queues). Of a namespace that only
processes of the same pid namespace live in, as a restored process has it, all objects are taken.

Nobody can be asked for what SEM_UNDO would do when the process ends (semop(2)); that is noted.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from snapkernel import procfs
from snapkernel.constants import MREMAP_FIXED, MREMAP_MAYMOVE, PROT_READ, PROT_WRITE
from snapkernel.freeze.agent import PAGE, Agent
from snapkernel.freeze.batch import AT_FDCWD, Batch, Cell, Space
from snapkernel.model import (
    IpcNamespace,
    Mapping,
    MessageQueue,
    Permissions,
    Segment,
    SemaphoreSet,
    SharedMemory,
)
from snapkernel.resources.context import Build, Capture, Fill

if TYPE_CHECKING:
    from snapkernel.resources.shared_memory import SharedObject

KIND = "system-v"
Used = tuple[int, int, int]
"""How many indices may be in use by segments, semaphores and queues."""
_NAME = re.compile(r"/SYSV[0-9a-f]{8}")
_IPC_CREAT, _IPC_EXCL, _IPC_NOWAIT = 0o1000, 0o2000, 0o4000
_IPC_RMID, _IPC_SET, _IPC_PRIVATE = 0, 1, 0
_SHM_RDONLY, _SHM_LOCK, _SHM_INFO, _SHM_STAT_ANY = 0o10000, 11, 14, 15  # ANY: Linux 4.17
_SEM_GETPID, _SEM_GETALL, _SEM_SETALL, _SEM_INFO, _SEM_STAT_ANY = 11, 13, 17, 19, 20
_MSG_INFO, _MSG_STAT_ANY = 12, 13
_MSG_NOERROR, _MSG_COPY = 0o10000, 0o40000  # COPY: Linux 3.8, CONFIG_CHECKPOINT_RESTORE
_SHM_DEST, _SHM_LOCKED = 0o1000, 0o2000  # in the mode
_OWNER = 0o600
_INFO = 112  # bytes, more than struct shm_info, seminfo and msginfo have


@cache
def _internal_device() -> str:
    """The kernel's own mount of tmpfs, on which segments, memfds and shared memory are."""
    descriptor = os.memfd_create("device")
    try:
        device = os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)
    return f"{os.major(device):02x}:{os.minor(device):02x}"


def is_segment(device: str, path: str) -> bool:
    """A mapping is of a segment. The id of one may be 0, and so its inode."""
    return _NAME.fullmatch(path) is not None and device == _internal_device()


def lives_apart(pid: int) -> bool:
    """The process's IPC namespace is not ours."""
    return os.readlink(f"/proc/{pid}/ns/ipc") != os.readlink("/proc/self/ns/ipc")


def is_private(pid: int) -> bool:
    """Nobody outside of the process's pid namespace, which is not ours, is in its IPC namespace."""

    def inside(of: int | str, name: str) -> str:
        try:
            return os.readlink(f"/proc/{of}/ns/{name}")
        except OSError:
            return ""

    ipc, pids = inside(pid, "ipc"), inside(pid, "pid")
    return pids != inside("self", "pid") and all(
        inside(other, "pid") == pids
        for other in filter(str.isdigit, os.listdir("/proc"))
        if inside(other, "ipc") == ipc
    )


class Question:
    """The calls that ask what there is in the namespace, as part of a batch that is run by somebody
    else."""

    def __init__(self, batch: Batch) -> None:
        self._spaces = [Space(bytes(_INFO)) for _ in range(3)]
        shared, semaphores, queues = self._spaces
        self._calls = [
            batch.call("shmctl", 0, _SHM_INFO, shared, check=False),
            batch.call("semctl", 0, 0, _SEM_INFO, semaphores, check=False),
            batch.call("msgctl", 0, _MSG_INFO, queues, check=False),
        ]

    def answer(self) -> Used:
        """After the run."""
        found = []
        for call, space, used in zip(self._calls, self._spaces, (0, 7, 0), strict=True):
            in_use = struct.unpack_from("=i", space.data, 4 * used)[0]
            highest = -1 if call.result is None or call.result < 0 or not in_use else call.result
            found.append(highest + 1)
        return found[0], found[1], found[2]


@dataclass
class Attached:
    """Segments that are attached only to be read, and their addresses."""

    addresses: list[int] = field(default_factory=list)

    def detach(self, agent: Agent) -> None:
        """Let go of them."""
        if self.addresses:
            batch = Batch("detach System V shared memory")
            for address in self.addresses:
                batch.call("shmdt", address, check=False)
            agent.run(batch)
            self.addresses.clear()


def explain(capture: Capture) -> None:
    """What a look from outside tells."""
    refuse_several(capture)
    for known in _segments(capture):
        capture.saved(known.subject)
    if any(_segments(capture)):
        tell(capture)


def tell(capture: Capture) -> None:
    """That the copy has objects of its own; once, and not again of one that has them already."""
    what = "System V IPC objects and POSIX message queues"
    if not lives_apart(capture.pid) and all(f.object != what for f in capture.findings):
        reason = "are copies in a restored process, which no process outside shares with it"
        capture.report(what, "replaced", reason)


def _segments(capture: Capture) -> list[SharedObject]:
    return [known for known in capture.objects.values() if known.kind == KIND]


def refuse_several(capture: Capture) -> None:
    """Refuse processes of which some are in another IPC namespace than the first."""
    first = os.readlink(f"/proc/{capture.pid}/ns/ipc")
    for pid in capture.members:
        if os.readlink(f"/proc/{pid}/ns/ipc") != first:
            reason = "is in another IPC namespace than the first process of the snapshot"
            capture.refuse(f"process {pid}", reason, "end it")


def capture(capture: Capture, used: Used, pids: set[int]) -> Attached:
    """Find the objects of processes; ``pids`` are as they see themselves. What none of them has
    attached is attached in the first of them meanwhile, to be read with all shared memory.
    """
    attached = Attached()
    refuse_several(capture)
    if not any(used) and not any(_segments(capture)):
        return attached
    assert capture.agent is not None
    found = _Found(capture, capture.agent, pids, lives_apart(capture.pid))
    found.look(used)
    found.segments(attached)
    found.semaphores()
    found.queues()
    if any(_segments(capture)) or capture.semaphores or capture.message_queues:
        tell(capture)
    return attached


class _Found:
    """The objects of the namespace, by id, with the fields of their status."""

    def __init__(self, capture: Capture, agent: Agent, pids: set[int], everything: bool) -> None:
        architecture = agent.architecture
        self.capture = capture
        self.agent = agent
        self.formats = architecture.shmid_ds, architecture.semid_ds, architecture.msqid_ds
        self.pids = pids
        self.everything = everything
        self.by_kind: list[dict[int, tuple[int, ...]]] = []

    def look(self, used: Used) -> None:
        """The status of every object there is. SEM_STAT_ANY and its like need no permission."""
        batch = Batch("look at System V objects")
        calls = []
        for name, what, layout, count in zip(
            ("shmctl", "semctl", "msgctl"),
            ((_SHM_STAT_ANY,), (0, _SEM_STAT_ANY), (_MSG_STAT_ANY,)),
            self.formats,
            used,
            strict=True,
        ):
            answers = []
            for index in range(count):
                space = Space(bytes(struct.calcsize(layout)))
                answers.append((batch.call(name, index, *what, space, check=False), space))
            calls.append(answers)
        self.agent.run(batch)
        self.by_kind = [
            {
                call.result: struct.unpack(layout, space.data)
                for call, space in answers
                if call.result is not None and call.result >= 0
            }
            for layout, answers in zip(self.formats, calls, strict=True)
        ]

    def segments(self, attached: Attached) -> None:
        """Those that are attached, and those that these processes have made."""
        from snapkernel.resources import shared_memory

        there = {known.id: known for known in _segments(self.capture)}
        for number, fields in self.by_kind[0].items():
            size, creator = fields[6:8]
            known = there.pop(number, None)
            if known is None and (self.everything or creator in self.pids):
                path = f"/SYSV{fields[0] & 0xFFFFFFFF:08x}"
                known = shared_memory.find(self.capture, _internal_device(), number, path)
                if known is not None:
                    self._attach(known, size, attached)
            if known is None:
                continue
            # A removed segment has lost its key; maps still shows it.
            key = int(known.name.removeprefix("/SYSV"), 16)
            key -= key >> 31 << 32
            mode = fields[5]
            known.size = size
            known.segment = Segment(
                id=number,
                permissions=_permissions((key, *fields[1:])),
                removed=bool(mode & _SHM_DEST),
                locked=bool(mode & _SHM_LOCKED),
            )
        for known in there.values():
            reason = "is of another IPC namespace than the process is in now"
            self.capture.refuse(known.subject, reason, "detach it (shmdt)")

    def _attach(self, known: SharedObject, size: int, attached: Attached) -> None:
        batch = Batch("attach System V shared memory to read it")
        call = batch.call("shmat", known.id, 0, _SHM_RDONLY, check=False)
        self.agent.run(batch)
        address = call.result if call.result is not None else -1
        if -4096 < address < 0:
            self.capture.refuse(known.subject, os.strerror(-address), "remove it, or allow reading")
            return
        attached.addresses.append(address)
        end = address + -(-size // PAGE) * PAGE
        known.areas.append(
            procfs.Area(address, end, "r--s", 0, _internal_device(), known.id, known.name)
        )

    def semaphores(self) -> None:
        """Values of the sets that these processes have changed last."""
        batch = Batch("ask for semaphores")
        asked = []
        for number, fields in self.by_kind[1].items():
            count = fields[6]
            owners = [
                batch.call("semctl", number, index, _SEM_GETPID, check=False)
                for index in range(0 if self.everything else count)
            ]
            values = Space(bytes(2 * count))
            answer = batch.call("semctl", number, 0, _SEM_GETALL, values, check=False)
            asked.append((number, fields, owners, values, answer))
        if asked:
            self.agent.run(batch)
        for number, fields, owners, values, answer in asked:
            if not self.everything and all(owner.result not in self.pids for owner in owners):
                continue
            subject = f"System V semaphores {number}"
            if answer.result != 0:
                reason = os.strerror(-(answer.result or 0))
                self.capture.refuse(subject, f"cannot be read: {reason}", "allow reading them")
                continue
            reason = "what SEM_UNDO would take back at the end of the process is not known"
            self.capture.report(subject, "replaced", reason)
            self.capture.semaphores.append(
                SemaphoreSet(
                    id=number,
                    permissions=_permissions(fields),
                    values=struct.unpack(f"={fields[6]}H", values.data),
                )
            )

    def queues(self) -> None:
        """Messages, copied and not taken (msgrcv(2), MSG_COPY)."""
        for number, fields in self.by_kind[2].items():
            length, count, most, sender, receiver = fields[6:]
            if not self.everything and self.pids.isdisjoint((sender, receiver)):
                continue
            batch = Batch("copy messages")
            flags = _IPC_NOWAIT | _MSG_COPY | _MSG_NOERROR
            asked = []
            for index in range(count):
                space = Space(bytes(8 + length))
                asked.append(
                    (batch.call("msgrcv", number, space, length, index, flags, check=False), space)
                )
            if asked:
                self.agent.run(batch)
            failed = [-c.result for c, _ in asked if c.result is not None and c.result < 0]
            if failed:
                self.capture.refuse(
                    f"System V message queue {number}",
                    f"its messages cannot be looked at: {os.strerror(failed[0])}",
                    "receive them first",
                )
                continue
            self.capture.message_queues.append(
                MessageQueue(
                    id=number,
                    permissions=_permissions(fields),
                    most_bytes=most,
                    messages=tuple(
                        (struct.unpack_from("=q", space.data)[0], space.data[8 : 8 + call.result])
                        for call, space in asked
                        if call.result is not None
                    ),
                )
            )


def _permissions(fields: tuple[int, ...]) -> Permissions:
    key, uid, gid, _, _, mode = fields[:6]
    return Permissions(key=key, uid=uid, gid=gid, mode=mode & 0o777)


# --- rebuild -----------------------------------------------------------------------------------


def _choose_id(batch: Batch, kind: str, number: int, subject: str) -> str:
    """The next object of this kind gets this id; returns how to name it if it gets another one.

    Where that cannot be asked for, the first objects of a new namespace may have the right ids."""
    path = f"/proc/sys/kernel/{kind}_next_id"
    file, text = Cell("next_id"), b"%d" % number
    batch.call("openat", AT_FDCWD, path.encode() + b"\0", os.O_WRONLY, store=file, check=False)
    batch.call("write", file, text, len(text), check=False)
    batch.call("close", file, check=False)
    return f"{subject} (before Linux 5.16 only root can choose ids)"


def _set(
    batch: Batch, build: Build, kind: str, number: int, permissions: Permissions, subject: str
) -> None:
    """Owner and mode; other users than the process's own are not there in a user namespace."""
    layout = getattr(build.architecture, {"shm": "shmid_ds", "sem": "semid_ds"}[kind])
    count = len(struct.unpack(layout, bytes(struct.calcsize(layout))))
    p = permissions
    words = (p.key, p.uid, p.gid, p.uid, p.gid, p.mode)
    status = struct.pack(layout, *words, *[0] * (count - len(words)))
    arguments = (number, _IPC_SET, status) if kind == "shm" else (number, 0, _IPC_SET, status)
    batch.call(f"{kind}ctl", *arguments, optional=f"owner and mode of {subject}")


def _note(segment: Segment) -> str:
    return f"System V shared memory {segment.id}"


def rebuild_segment(build: Build, record: SharedMemory, at: int) -> Iterator[Batch | Fill]:
    """Make a segment, and attach and fill it at a place from which all processes map it."""
    segment = record.segment
    assert segment is not None
    note, key = _note(segment), segment.permissions.key
    others = (o.segment for o in build.manifest.shared_memory if o.segment not in (None, segment))
    if segment.removed and any(o is not None and o.permissions.key == key for o in others):
        key = _IPC_PRIVATE  # another one has its key since
    make = Batch(f"make {note}")
    new = _choose_id(make, "shm", segment.id, note)
    flags = _IPC_CREAT | _IPC_EXCL | _OWNER | segment.permissions.mode
    make.call("shmget", key & 0xFFFFFFFF, record.size, flags, expect=segment.id, note=new)
    make.call("shmat", segment.id, at, 0, note=note)
    yield make
    yield Fill(note, record.content, at)


def rebuild_mappings(
    build: Build, batch: Batch, segment: Segment, at: int, mappings: Sequence[Mapping]
) -> None:
    """Attach a segment where a process had it."""
    note = _note(segment)
    _duplicate(batch, at, [m for m in mappings if "mw" in m.flags], note)
    if readers := [m for m in mappings if "mw" not in m.flags]:
        batch.call("shmat", segment.id, build.hole, _SHM_RDONLY, note=note)
        _duplicate(batch, build.hole, readers, note)
        batch.call("shmdt", build.hole, note=note)


def rebuild_last(build: Build) -> Batch:
    """When every process has attached them, locks, owners and modes of segments; those that were
    removed stay until nobody has them."""
    batch = Batch("finish System V shared memory")
    for record in build.manifest.shared_memory:
        segment = record.segment
        if segment is None:
            continue
        note = _note(segment)
        if segment.locked:
            batch.call("shmctl", segment.id, _SHM_LOCK, 0, optional=f"the lock of {note}")
        _set(batch, build, "shm", segment.id, segment.permissions, note)
        if segment.removed:
            batch.call("shmctl", segment.id, _IPC_RMID, 0, note=note)
    return batch


def _duplicate(batch: Batch, base: int, mappings: list[Mapping], note: str) -> None:
    """Map parts of a segment again (mremap(2), an old size of 0): they count as attachments."""
    for mapping in mappings:
        size = mapping.end - mapping.start
        where = f"{note} at {mapping.start:#x}"
        move = MREMAP_MAYMOVE | MREMAP_FIXED
        batch.call("mremap", base + mapping.offset, 0, size, move, mapping.start, note=where)
        usual = PROT_READ | PROT_WRITE if "mw" in mapping.flags else PROT_READ
        if mapping.protection != usual:
            batch.call("mprotect", mapping.start, size, mapping.protection, note=where)


def rebuild(build: Build) -> Batch:
    """Make semaphores and message queues."""
    batch = Batch("make System V semaphores and message queues")
    ipc = build.manifest.ipc or IpcNamespace()
    for record in ipc.semaphores:
        note, p = f"System V semaphores {record.id}", record.permissions
        new = _choose_id(batch, "sem", record.id, note)
        flags = _IPC_CREAT | _IPC_EXCL | _OWNER | p.mode
        count = len(record.values)
        batch.call("semget", p.key & 0xFFFFFFFF, count, flags, expect=record.id, note=new)
        values = struct.pack(f"={count}H", *record.values)
        batch.call("semctl", record.id, 0, _SEM_SETALL, values, note=note)
        _set(batch, build, "sem", record.id, p, note)
    for queue in ipc.message_queues:
        _rebuild_queue(build, batch, queue)
    return batch


def _rebuild_queue(build: Build, batch: Batch, record: MessageQueue) -> None:
    note, p = f"System V message queue {record.id}", record.permissions
    new = _choose_id(batch, "msg", record.id, note)
    flags = _IPC_CREAT | _IPC_EXCL | _OWNER | p.mode
    batch.call("msgget", p.key & 0xFFFFFFFF, flags, expect=record.id, note=new)

    def limit(mode: int) -> None:
        words = (p.key, p.uid, p.gid, p.uid, p.gid, mode, 0, 0, record.most_bytes, 0, 0)
        status = struct.pack(build.architecture.msqid_ds, *words)
        lost = f"owner, mode and size ({record.most_bytes} bytes) of {note}"
        batch.call("msgctl", record.id, _IPC_SET, status, optional=lost)

    limit(p.mode | _OWNER)
    for kind, data in record.messages:
        message = struct.pack("=q", kind) + data
        batch.call("msgsnd", record.id, message, len(data), _IPC_NOWAIT, note=note)
    if p.mode & _OWNER != _OWNER:
        limit(p.mode)
