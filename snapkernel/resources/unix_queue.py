"""What waits in unix(7) sockets: looked at without taking it, and sent again.

MSG_PEEK with SO_PEEK_OFF (socket(7), Linux 3.4) goes from message to message. A stream glues
together what was sent in pieces, but a read does not go beyond a piece that has descriptors with
it, and they come with its first byte (af_unix.c, unix_stream_read_generic).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import select
import socket
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from snapkernel.freeze.batch import Batch, Cell, Words
from snapkernel.model import UnixMessage, UnixQueue
from snapkernel.resources import in_flight, unix_name
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table

SO_PEEK_OFF = 42
SO_SNDBUFFORCE = 32
MSG_CMSG_CLOEXEC = 0x40000000
SCM_RIGHTS, SCM_CREDENTIALS, SCM_PIDFD = 1, 2, 4
LONGEST = 1 << 20
"""Bytes that one call of the agent can send."""

_ENDED = select.POLLERR | select.POLLHUP | select.POLLRDHUP
_AT_ONCE = 1 << 22
_ANCILLARY = 8192


def collect(capture: Capture, table: Table, saves: Callable[[OpenFile, Table], bool]) -> None:
    """Look at the queues of all unix sockets that ``saves`` is true of, and add the descriptions
    that are on their way in them to the table: these may be sockets again.

    A process that runs is not looked at: a message of no bytes that was looked at before is passed
    over with SO_PEEK_OFF.
    """
    if capture.target is None:
        return
    seen: set[int] = set()
    while True:
        found = [
            file
            for file in table.files
            if file.index not in seen and file.family == socket.AF_UNIX and saves(file, table)
        ]
        if not found:
            return
        for file in found:
            seen.add(file.index)
            capture.queues[file.index] = _Look(capture, table, file).messages()


def describe(capture: Capture, file: OpenFile) -> UnixQueue:
    """The messages in a socket, as far as they can be looked at."""
    carried = int(file.field("scm_fds") or 0)  # Linux 5.10
    if capture.target is None and carried:
        capture.saved(f"{file.subject}: {carried} descriptors on their way in it")
    return capture.queues.get(file.index, ())


class _Look:
    """Reading one queue without taking anything."""

    def __init__(self, capture: Capture, table: Table, file: OpenFile) -> None:
        self.capture = capture
        self.table = table
        self.file = file
        self.end = file.socket
        self.stream = self.end.type & 15 == socket.SOCK_STREAM
        self.strangers = False

    def messages(self) -> UnixQueue:
        """Everything that waits."""
        events = _poll(self.end)
        if events & select.POLLPRI:
            self.capture.refuse(
                self.file.subject, "has out-of-band data in it, which cannot be saved", "receive it"
            )
        before = self.end.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF)
        try:
            found = self._stream() if self.stream else self._packets(self._limit(events))
        finally:
            self.end.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, before)
        if self.strangers:
            self.capture.report(
                self.file.subject,
                "replaced",
                "messages in it that others have sent come back as its own (SCM_CREDENTIALS)",
            )
        return found

    def _limit(self, events: int) -> int | None:
        """Bytes after which a seqpacket socket is at its end. To look beyond it would take an error
        that waits for the process, or go on for ever: the end reads like a message of no bytes."""
        if self.end.type & 15 == socket.SOCK_SEQPACKET and events & _ENDED:
            return _waiting(self.end)
        return None

    def _stream(self) -> UnixQueue:
        total = _waiting(self.end)
        at = 0
        plain = bytearray()
        found: list[bytes | UnixMessage] = []
        while at < total:
            peeked = self._peek(min(total - at, _AT_ONCE), at)
            if peeked is None or not peeked[0]:
                break
            data, rights, _ = peeked
            if rights:
                start = self._start(at, len(data))
                plain += data[:start]
                if plain:
                    found.append(bytes(plain))
                    plain.clear()
                found.append(UnixMessage(data=data[start:], rights=rights))
            else:
                plain += data
            at += len(data)
        if plain:
            found.append(bytes(plain))
        if at < total:
            self.capture.refuse(
                self.file.subject,
                f"only {at} of the {total} bytes in it can be seen",
                "receive them",
            )
        return tuple(found)

    def _start(self, at: int, length: int) -> int:
        """Where the piece with descriptors begins, among ``length`` bytes whose last it has.

        Peeking tells of descriptors beyond what was asked for. But a piece is copied whole or not
        at all: into memory that ends a byte too early only those before it are copied.
        """
        if length == 1:
            return 0
        self.end.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, at)
        flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
        with _missing_memory() as missing:
            try:
                return self.end.recvmsg_into([bytearray(length - 1), missing], 0, flags)[0]
            except OSError as error:
                if error.errno != errno.EFAULT:
                    raise
                return 0

    def _packets(self, limit: int | None) -> UnixQueue:
        found: list[bytes | UnixMessage] = []
        size = 0
        self.end.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        while limit is None or size < limit:
            peeked = self._peek(_AT_ONCE)
            if peeked is None:
                break
            data, rights, sender = peeked
            size += len(data)
            if len(data) > LONGEST:
                self.capture.refuse(
                    self.file.subject, f"has a message of {len(data)} bytes in it", "receive it"
                )
            plain = not rights and not sender
            found.append(data if plain else UnixMessage(data=data, rights=rights, sender=sender))
        return tuple(found)

    def _peek(
        self, length: int, at: int | None = None
    ) -> tuple[bytes, tuple[int, ...], bytes] | None:
        """Data, descriptions and sender of what a read would get; ``None`` when it would wait."""
        if at is not None:
            self.end.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, at)
        flags = socket.MSG_PEEK | socket.MSG_DONTWAIT | MSG_CMSG_CLOEXEC
        try:
            data, ancillary, answer, sender = self.end.recvmsg(length, _ANCILLARY, flags)
        except (BlockingIOError, ConnectionError):
            return None
        rights: list[int] = []
        for level, kind, content in ancillary:
            if level != socket.SOL_SOCKET:
                continue
            if kind == SCM_RIGHTS:
                for descriptor in _descriptors(content):
                    rights.append(in_flight.adopt(self.capture, self.table, descriptor, self.file))
            elif kind == SCM_PIDFD:
                for descriptor in _descriptors(content):
                    os.close(descriptor)
            elif kind == SCM_CREDENTIALS:
                self.strangers |= struct.unpack("=iII", content)[0] != self.capture.pid
        if answer & socket.MSG_CTRUNC:
            self.capture.refuse(
                self.file.subject,
                "has more descriptors on their way in it than snapkernel may open",
                "raise the limit on open files (ulimit -n)",
            )
        return data, tuple(rights), unix_name.raw(sender)


def _descriptors(content: bytes) -> tuple[int, ...]:
    return struct.unpack(f"={len(content) // 4}i", content)


@contextmanager
def _missing_memory() -> Iterator[memoryview]:
    """A page that cannot be written, as the file that it maps has no end any more."""
    size = mmap.PAGESIZE
    descriptor = os.memfd_create("missing", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, size)
        with mmap.mmap(descriptor, size) as mapped, memoryview(mapped) as view:
            os.ftruncate(descriptor, 0)
            yield view
    finally:
        os.close(descriptor)


def _poll(end: socket.socket) -> int:
    poll = select.poll()
    poll.register(end, select.POLLPRI | select.POLLRDHUP)
    return dict(poll.poll(0)).get(end.fileno(), 0)


def has_error(end: socket.socket) -> bool:
    """An error waits to be told by the next call (poll(2), POLLERR)."""
    return bool(_poll(end) & select.POLLERR)


def _waiting(end: socket.socket) -> int:
    """SIOCINQ: bytes in the queue; of a datagram socket, in its first message."""
    answer = fcntl.ioctl(end.fileno(), termios.FIONREAD, bytes(4))
    return int(struct.unpack("=i", answer)[0])


def unread_by_peer(end: socket.socket) -> int:
    """SIOCOUTQ (unix(7)): memory of what was sent and not read."""
    answer = fcntl.ioctl(end.fileno(), termios.TIOCOUTQ, bytes(4))
    return int(struct.unpack("=i", answer)[0])


# --- rebuild -----------------------------------------------------------------------------------


def size(queue: UnixQueue) -> int:
    """Bytes of all messages."""
    return sum(len(m.data if isinstance(m, UnixMessage) else m) for m in queue)


def make_room(batch: Batch, sender: Cell | int, queue: UnixQueue) -> None:
    """Let a socket that is ours for a while send all that: its owner may have set more than the
    default, and only the privileged may exceed the host's limit."""
    wanted = struct.pack("=i", 2 * size(queue) + 65536)
    for option in (socket.SO_SNDBUF, SO_SNDBUFFORCE):
        batch.call("setsockopt", sender, socket.SOL_SOCKET, option, wanted, 4, check=False)


def send(
    build: Build,
    batch: Batch,
    sender: Cell | int,
    message: bytes | UnixMessage,
    note: str,
    to: bytes = b"",
) -> None:
    """Send a message; ``to`` is the address of a receiver that the sender is not connected to."""
    if isinstance(message, bytes):
        message = UnixMessage(data=message)
    data = message.data
    if message.rights:
        header = _message_header(build, message, to)
        batch.call("sendmsg", sender, header, socket.MSG_DONTWAIT, expect=len(data), note=note)
        return
    for at in range(0, max(len(data), 1), LONGEST):
        piece = data[at : at + LONGEST]
        where = (to, len(to)) if to else (0, 0)
        call = ("sendto", sender, piece, len(piece), socket.MSG_DONTWAIT, *where)
        batch.call(*call, expect=len(piece), note=note)


def _message_header(build: Build, message: UnixMessage, to: bytes) -> Words:
    """``struct msghdr``: address, vector, and the descriptors as the ancillary data."""
    numbers = [build.numbers[index] for index in message.rights]
    content = struct.pack(f"={len(numbers)}i", *numbers)
    length = socket.CMSG_LEN(len(content))
    control = struct.pack("@Nii", length, socket.SOL_SOCKET, SCM_RIGHTS) + content
    control += bytes(socket.CMSG_SPACE(len(content)) - len(control))
    vector = Words((message.data, len(message.data)))
    length_of_name = int.from_bytes(struct.pack("=I4x", len(to)), sys.byteorder)
    return Words((to or 0, length_of_name, vector, 1, control, len(control), 0))
