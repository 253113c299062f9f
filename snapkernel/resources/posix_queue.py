"""POSIX message queues (mq_overview(7)): files of a file system of their own, one for each IPC
namespace, which is not mounted where the kernel keeps it.

Messages cannot be looked at, only taken. So the process takes all of them and puts them back, in
one batch while it is frozen: they come out by priority and age, and go in again in that order. That
another process sees it is possible (a receiver outside may take one in between, mq_notify(3) would
tell it); where somebody has asked to be notified, the queue is refused.

A restored process has the queues in an IPC namespace of its own, as it has System V objects.
"""

from __future__ import annotations

import os

from snapkernel._native import ffi, lib
from snapkernel.errors import BatchFailed
from snapkernel.freeze.batch import AT_FDCWD, AddressOf, Batch, Cell, Space, Words
from snapkernel.freeze.layout import DATA, SIZE
from snapkernel.model import PosixMessageQueue, PosixQueue
from snapkernel.resources import credentials, shared_memory, system_v
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table

RECORDS = (PosixMessageQueue,)
_STATUS_SIZE = 80  # of every such file (ipc/mqueue.c, FILENT_SIZE)
_MOST_BYTES = (SIZE - DATA) * 3 // 4  # of messages that fit into one batch


def recognises(file: OpenFile) -> bool:
    """A queue, under whatever name; mq_getattr(3) fails for any other file."""
    return file.is_regular and file.status.st_size == _STATUS_SIZE and bool(_attributes(file))


def _attributes(file: OpenFile) -> tuple[int, int, int] | None:
    """Most messages, bytes of the longest message, messages now; ``None`` for another file."""
    words = ffi.new("int64_t[3]")
    if lib.sk_queue_attributes(file.descriptor, words) < 0:
        return None
    return int(words[0]), int(words[1]), int(words[2])


def capture(capture: Capture, file: OpenFile, table: Table) -> PosixMessageQueue | None:
    """A description; the queue itself with the first description of it that is seen."""
    if not shared_memory.named_in_utf8(capture, file.link):
        return None
    key = f"mqueue {file.status.st_dev} {file.status.st_ino}"
    if key not in capture.queue_index:
        queue = _queue(capture, file)
        if queue is None:
            return None
        capture.queue_index[key] = len(capture.posix_queues)
        capture.posix_queues.append(queue)
        capture.saved(file.subject)
        system_v.tell(capture)
    return PosixMessageQueue(flags=file.flags, queue=capture.queue_index[key])


def _queue(capture: Capture, file: OpenFile) -> PosixQueue | None:
    most, size, count = _attributes(file) or (0, 0, 0)
    try:
        reader = os.open(f"/proc/self/fd/{file.descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        reason = f"cannot be looked at: {error.strerror}"
        capture.refuse(file.subject, reason, "let its owner read and write it")
        return None
    try:
        text = os.pread(reader, 200, 0).decode()
    finally:
        os.close(reader)
    if text.partition("NOTIFY_PID:")[2].strip() not in ("", "0"):
        reason = "somebody waits for a notification (mq_notify), which cannot be saved"
        capture.refuse(file.subject, reason, "take the registration back")
        return None
    if count * size > _MOST_BYTES:
        capture.refuse(file.subject, "has more in it than can be looked at", "receive some of it")
        return None
    messages: tuple[tuple[int, bytes], ...] = ()
    if capture.agent is not None and count:
        found = _messages(capture, file, size, count)
        if found is None:
            return None
        messages = found
    return PosixQueue(
        name=file.link.removesuffix(" (deleted)").removeprefix("/"),
        unlinked=file.status.st_nlink == 0,
        mode=file.status.st_mode & 0o7777,
        uid=credentials.inside(capture.pid, "uid_map", str(file.status.st_uid))[0],
        gid=credentials.inside(capture.pid, "gid_map", str(file.status.st_gid))[0],
        most_messages=most,
        message_size=size,
        messages=messages,
    )


def _messages(
    capture: Capture, file: OpenFile, size: int, count: int
) -> tuple[tuple[int, bytes], ...] | None:
    """Take all and put them back, through a description that may do both and never waits."""
    agent = capture.members[file.pid].agent
    assert agent is not None
    batch = Batch("look at messages")
    opened = Cell("queue")
    path = f"/proc/self/fd/{file.numbers[0]}\0".encode()
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
    batch.call("openat", AT_FDCWD, path, flags, store=opened, note=file.subject)
    slots = [(Space(bytes(size)), Cell("length"), Cell("priority")) for _ in range(count)]
    taken = []
    for space, length, priority in slots:
        arguments = (opened, space, size, AddressOf((priority,)), 0)
        taken.append(batch.call("mq_timedreceive", *arguments, store=length, check=False))
    given = []
    for space, length, priority in slots:
        given.append(batch.call("mq_timedsend", opened, space, length, priority, 0, check=False))
    batch.call("close", opened)
    try:
        agent.run(batch)
    except BatchFailed as error:
        capture.refuse(file.subject, error.reason, "let its owner read and write it")
        return None
    found = []
    for (space, _, priority), take, give in zip(slots, taken, given, strict=True):
        if take.result is None or take.result < 0 or give.result != 0:
            capture.refuse(file.subject, "changed while it was looked at", "try again")
            return None
        found.append((agent.value(priority), space.data[: take.result]))
    return tuple(found)


# --- rebuild -----------------------------------------------------------------------------------


def create(build: Build, batch: Batch, record: PosixMessageQueue, index: int) -> None:
    """The queue with all its descriptions at once, opened while it has its name."""
    if index in build.numbers or build.manifest.ipc is None:
        return
    queues = build.manifest.ipc.posix_queues
    queue, name = queues[record.queue], queues[record.queue].name
    if queue.unlinked and any(q.name == name and not q.unlinked for q in queues):
        name += f".{record.queue}"  # another one has its name since
    note = f"POSIX message queue /{queue.name}"
    path = os.fsencode(name) + b"\0"
    attributes = Words((0, queue.most_messages, queue.message_size, 0, 0, 0, 0, 0))
    fresh = Cell("queue")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC
    batch.call("mq_open", path, flags, 0o600, attributes, store=fresh, note=note)
    away = build.move(batch, fresh)
    for priority, data in queue.messages:
        batch.call("mq_timedsend", away, data, len(data), priority, 0, note=note)
    for number, end in enumerate(build.manifest.descriptions):
        if isinstance(end, PosixMessageQueue) and end.queue == record.queue:
            opened = Cell("opened")
            batch.call("mq_open", path, end.flags, 0, 0, store=opened, note=note)
            build.keep(batch, opened, number)
    batch.call("fchmod", away, queue.mode, note=note)
    batch.call("fchown", away, queue.uid, queue.gid, optional=f"owner of {note}")
    if queue.unlinked:
        batch.call("mq_unlink", path, note=note)
    batch.call("close", away)
