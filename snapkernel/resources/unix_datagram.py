"""unix(7) datagram sockets: bound, connected, with messages of others in them.

Being connected is one-sided: many may send to one. A message is sent again by the socket that has
its sender's name, where that is in the snapshot. A connection to a socket outside that has a name,
such as /dev/log, is made again, unless the name is relative to a directory that nobody knows. A
connected socket takes messages of its peer alone, so what others had sent before comes first
(af_unix.c, unix_may_send).
"""

from __future__ import annotations

import os
import socket

from snapkernel.constants import F_SETFL
from snapkernel.freeze.batch import AddressOf, Batch, Cell
from snapkernel.model import ClosedSocket, UnixDatagram, UnixMessage
from snapkernel.resources import socket_diag, socket_options, unix_name, unix_queue
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table

RECORDS = (UnixDatagram,)
PREFIX = "socket:["


def recognises(file: OpenFile) -> bool:
    """By its family and type."""
    return file.family == socket.AF_UNIX and file.socket.type & 15 == socket.SOCK_DGRAM


def _names(table: Table) -> set[bytes]:
    return {unix_name.own(file) for file in table.files if recognises(file)}


def capture(capture: Capture, file: OpenFile, table: Table) -> UnixDatagram | ClosedSocket | None:
    """A socket with its messages; one whose only peer is a nameless socket outside is closed."""
    state = socket_diag.unix(file.status.st_ino)
    inside = table.by_inode(state.peer, PREFIX) if state.peer else []
    peer_name = unix_name.peer(file)
    name = unix_name.capture(capture, file, state)
    options = socket_options.capture(file.socket)
    if state.peer and not inside and not peer_name:
        capture.report(file.subject, "closed", "its peer is outside")
        return ClosedSocket(
            flags=file.flags,
            family=socket.AF_UNIX,
            type=socket.SOCK_DGRAM,
            was="unix socket to another process",
            options=options,
        )
    if inside and not peer_name and _peer_of(inside[0]) != file.status.st_ino:
        capture.refuse(
            file.subject,
            f"is connected to {inside[0].subject}, which has no name and another peer",
            "close it before the snapshot",
        )
        return None
    if not inside and peer_name and peer_name[:1] not in (b"/", b"\0"):
        reason = f"its peer is outside, and bound to the relative path {unix_name.text(peer_name)}"
        capture.report(file.subject, "closed", reason)
        peer_name = b""
    queue = unix_queue.describe(capture, file)
    senders = {m.sender for m in queue if isinstance(m, UnixMessage) and m.sender}
    for strange in sorted(senders - _names(table)) if senders else ():
        shown = unix_name.text(strange)
        reason = f"a message in it from {shown} loses its sender's name, as that socket is outside"
        capture.report(file.subject, "replaced", reason)
    capture.saved(file.subject)
    return UnixDatagram(
        flags=file.flags,
        connected=bool(inside or peer_name) or state.peer == 0,
        peer=inside[0].index if inside else None,
        peer_name=peer_name if state.peer and not inside else b"",
        name=name,
        queue=queue,
        shutdown=state.shutdown,
        options=options,
    )


def _peer_of(file: OpenFile) -> int | None:
    return socket_diag.unix(file.status.st_ino).peer


# --- rebuild -----------------------------------------------------------------------------------


def _record(build: Build, index: int | None) -> UnixDatagram | None:
    record = build.manifest.descriptions[index] if index is not None else None
    return record if isinstance(record, UnixDatagram) else None


def _is_pair(build: Build, record: UnixDatagram, index: int) -> bool:
    """Of two that are each other's peers, one has no name: that is what socketpair(2) makes."""
    peer = _record(build, record.peer)
    return peer is not None and peer.peer == index and (peer.name is None or record.name is None)


def create(build: Build, batch: Batch, record: UnixDatagram, index: int) -> None:
    """A new socket, or two that nothing else connects."""
    if index in build.numbers:
        return
    note = "unix datagram socket"
    kind = socket.SOCK_DGRAM | os.O_CLOEXEC
    lonely = record.connected and record.peer is None and not record.peer_name
    if not lonely and not (_is_pair(build, record, index) and record.peer != index):
        fresh = Cell("fresh")
        batch.call("socket", socket.AF_UNIX, kind, 0, store=fresh, note=note)
        build.keep(batch, fresh, index)
        return
    mine, other = Cell("mine"), Cell("other")
    batch.call("socketpair", socket.AF_UNIX, kind, 0, AddressOf((mine, other)), note=note)
    away = [build.move(batch, fresh) for fresh in (mine, other)]
    build.place(batch, away[0], index)
    if record.peer is None:
        build.far_ends[index] = away[1]
    else:
        build.place(batch, away[1], record.peer)


def fill(build: Build, batch: Batch, record: UnixDatagram, index: int) -> None:
    """What was sent before it was connected, the connection, and the rest."""
    by_name = {
        other.name.name: at
        for at, other in enumerate(build.manifest.descriptions)
        if isinstance(other, UnixDatagram) and other.name is not None
    }
    senders = [_sender(build, record, message, by_name) for message in record.queue]
    foreign = [at for at, sender in enumerate(senders) if sender is None or sender != record.peer]
    together = index in build.far_ends or _is_pair(build, record, index)
    before = 0 if together else foreign[-1] + 1 if foreign else 0
    for sender, message in zip(senders[:before], record.queue[:before], strict=True):
        _send(build, batch, index, sender, message)
    if not together:
        _connect(build, batch, record, index)
    for sender, message in zip(senders[before:], record.queue[before:], strict=True):
        _send(build, batch, index, record.peer if together else sender, message)


def _sender(
    build: Build, record: UnixDatagram, message: bytes | UnixMessage, by_name: dict[bytes, int]
) -> int | None:
    """The description that a message came from; ``None`` when it is not there."""
    name = message.sender if isinstance(message, UnixMessage) else b""
    if name:
        return by_name.get(name)
    peer = _record(build, record.peer)
    return record.peer if peer is not None and peer.name is None else None


def _send(
    build: Build, batch: Batch, index: int, sender: int | None, message: bytes | UnixMessage
) -> None:
    note = "message in a unix datagram socket"
    if sender is not None:
        to = build.names.get(index, b"")
        unix_queue.send(build, batch, build.numbers[sender], message, note, to)
    elif index in build.far_ends:
        unix_queue.make_room(batch, build.far_ends[index], (message,))
        unix_queue.send(build, batch, build.far_ends[index], message, note)
    else:
        stranger = Cell("stranger")
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
        batch.call("socket", socket.AF_UNIX, kind, 0, store=stranger, note=note)
        unix_queue.make_room(batch, stranger, (message,))
        unix_queue.send(build, batch, stranger, message, note, build.names.get(index, b""))
        batch.call("close", stranger)


def _connect(build: Build, batch: Batch, record: UnixDatagram, index: int) -> None:
    number = build.numbers[index]
    if record.peer is not None:
        name = build.names[record.peer]
        batch.call("connect", number, name, len(name), note="unix datagram socket")
    elif record.peer_name:
        name = unix_name.address(record.peer_name)
        what = f"connection of a unix datagram socket to {unix_name.text(record.peer_name)}"
        batch.call("connect", number, name, len(name), optional=what, note=what)


def finish(build: Build, batch: Batch, record: UnixDatagram, index: int) -> None:
    """Shut what was shut."""
    number = build.numbers[index]
    if index in build.far_ends:
        batch.call("close", build.far_ends.pop(index))
    if record.shutdown:
        call = ("shutdown", number, record.shutdown - 1)
        batch.call(*call, check=False, note="unix datagram socket")
    batch.call("fcntl", number, F_SETFL, record.flags & ~os.O_ACCMODE, note="unix datagram socket")
