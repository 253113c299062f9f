"""Stream and seqpacket unix(7) sockets that are connected, were, or can be.

Which two are connected only sock_diag(7) tells. A pair whose names came from accept(2) is made
again by connecting to the listener, where that is in the snapshot; else by socketpair(2), with the
names bound afterwards. Sockets whose peer is outside come back unconnected.
"""

from __future__ import annotations

import os
import socket

from snapkernel.constants import F_SETFL
from snapkernel.freeze.batch import AddressOf, Batch, Cell
from snapkernel.model import (
    AnyDescription,
    ClosedSocket,
    Manifest,
    UnixListener,
    UnixSocket,
)
from snapkernel.resources import (
    socket_diag,
    socket_options,
    unix_listener,
    unix_name,
    unix_queue,
)
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table
from snapkernel.resources.socket_diag import UnixState

RECORDS = (UnixSocket,)
PREFIX = "socket:["
_BOTH_WAYS = 3


def recognises(file: OpenFile) -> bool:
    """A unix socket that keeps the order of what is sent, and does not listen."""
    return file.family == socket.AF_UNIX and file.socket.type & 15 != socket.SOCK_DGRAM


def _peer(table: Table, state: UnixState) -> OpenFile | None:
    """The other end, when it is of the snapshot as well."""
    inside = table.by_inode(state.peer, PREFIX) if state.peer else []
    return inside[0] if inside else None


def _is_closed(state: UnixState) -> bool:
    """The peer is gone: then both ways are shut (af_unix.c, unix_release_sock)."""
    return state.peer == 0 and state.shutdown == _BOTH_WAYS


def is_saved(file: OpenFile, table: Table) -> bool:
    """Comes back with what is queued in it."""
    if unix_listener.recognises(file):
        return False
    state = socket_diag.unix(file.status.st_ino)
    return _is_closed(state) or _peer(table, state) is not None


def capture(capture: Capture, file: OpenFile, table: Table) -> UnixSocket | ClosedSocket | None:
    """An end of a connection inside the snapshot, or one whose peer is gone or outside."""
    state = socket_diag.unix(file.status.st_ino)
    peer = _peer(table, state)
    closed = _is_closed(state)
    waits = not closed and state.peer == 0
    if (state.peer and peer is None) or (waits and not _is_expected(file, table)):
        return _leads_outside(capture, file)
    capture.saved(file.subject)
    name = unix_name.capture(capture, file, state)
    return UnixSocket(
        flags=file.flags,
        type=file.socket.type & 15,
        connected=state.state == socket_diag.ESTABLISHED,
        peer=peer.index if peer else None,
        name=name,
        accepted=name is not None and name.name in _names_of_listeners(table),
        peer_name=unix_name.peer(file) if closed else b"",
        reset=closed and unix_queue.has_error(file.socket),
        queue=unix_queue.describe(capture, file),
        shutdown=state.shutdown,
        options=socket_options.capture(file.socket),
    )


def _is_expected(file: OpenFile, table: Table) -> bool:
    """Waits to be accepted by a listener of the snapshot."""
    inode = file.status.st_ino
    listeners = filter(unix_listener.recognises, table.files)
    return any(inode in socket_diag.unix(other.status.st_ino).waiting for other in listeners)


def _names_of_listeners(table: Table) -> set[bytes]:
    return {unix_name.own(other) for other in table.files if unix_listener.recognises(other)}


def _leads_outside(capture: Capture, file: OpenFile) -> ClosedSocket:
    there = unix_name.text(unix_name.peer(file))
    where = f" ({there})" if there else ""
    capture.report(file.subject, "closed", f"its peer is outside{where}")
    return ClosedSocket(
        flags=file.flags,
        family=socket.AF_UNIX,
        type=file.socket.type & 15,
        was=f"unix socket to {there or 'another process'}",
        options=socket_options.capture(file.socket),
    )


# --- rebuild -----------------------------------------------------------------------------------


def routes(manifest: Manifest) -> dict[int, int]:
    """The listener that each socket connects to, or was accepted by."""
    listeners = {
        description.name.name: index
        for index, description in enumerate(manifest.descriptions)
        if isinstance(description, UnixListener)
    }
    found: dict[int, int] = {}
    for index, description in enumerate(manifest.descriptions):
        if isinstance(description, UnixListener):
            found.update(dict.fromkeys(description.pending, index))
        elif isinstance(description, UnixSocket):
            server = _server_name(manifest.descriptions, description)
            if server in listeners:
                found[index] = listeners[server]
    return found


def _server_name(descriptions: tuple[AnyDescription, ...], record: UnixSocket) -> bytes:
    """Of a connection that was accepted: the listener's name."""
    peer = descriptions[record.peer] if record.peer is not None else None
    for end in (record, peer):
        if isinstance(end, UnixSocket) and end.accepted and end.name is not None:
            return end.name.name
    return record.peer_name


def create(build: Build, batch: Batch, record: UnixSocket, index: int) -> None:
    """A pair, unless it is connected through a listener; that needs the listener's name first."""
    if index in build.numbers:
        return
    note = "unix socket"
    routed = index in build.routes
    if routed and record.accepted:
        return
    if routed or not record.connected:
        fresh = Cell("fresh")
        batch.call("socket", socket.AF_UNIX, record.type | os.O_CLOEXEC, 0, store=fresh, note=note)
        build.keep(batch, fresh, index)
        return
    mine, other = Cell("mine"), Cell("other")
    kind = record.type | os.O_CLOEXEC
    batch.call("socketpair", socket.AF_UNIX, kind, 0, AddressOf((mine, other)), note=note)
    away = [build.move(batch, fresh) for fresh in (mine, other)]
    build.place(batch, away[0], index)
    if record.peer is None:
        build.far_ends[index] = away[1]
    else:
        build.place(batch, away[1], record.peer)


def has_own_name(build: Build, record: UnixSocket, index: int) -> bool:
    """Must be bound by itself."""
    return record.name is not None and not (record.accepted and index in build.routes)


def reconnect(build: Build, batch: Batch, record: UnixSocket, index: int) -> None:
    """Connect to the listener again; have the connection accepted, unless it waits for that."""
    listener = build.routes.get(index)
    if listener is None or (record.accepted and record.peer is not None):
        return  # the peer does it
    note = f"connection to {_name_of(build, listener)}"
    client: Cell | int
    if record.accepted:
        fresh = Cell("fresh")
        batch.call("socket", socket.AF_UNIX, record.type | os.O_CLOEXEC, 0, store=fresh, note=note)
        client = build.far_ends[index] = build.move(batch, fresh)
    else:
        client = build.numbers[index]
    name = build.names[listener]
    batch.call("connect", client, name, len(name), note=note)
    listening = build.manifest.descriptions[listener]
    if isinstance(listening, UnixListener) and index in listening.pending:
        return
    server = Cell("server")
    call = ("accept4", build.numbers[listener], 0, 0, socket.SOCK_CLOEXEC)
    batch.call(*call, store=server, note=note)
    if record.accepted:
        build.keep(batch, server, index)
    elif record.peer is not None:
        build.keep(batch, server, record.peer)
    else:
        build.far_ends[index] = build.move(batch, server)


def _name_of(build: Build, listener: int) -> str:
    record = build.manifest.descriptions[listener]
    return unix_name.text(record.name.name) if isinstance(record, UnixListener) else ""


def fill(build: Build, batch: Batch, record: UnixSocket, index: int) -> None:
    """Send what was queued, from the other end."""
    if not record.queue:
        return
    sender: Cell | int
    if record.peer is None:
        sender = build.far_ends[index]
        unix_queue.make_room(batch, sender, record.queue)
    else:
        sender = build.numbers[record.peer]
    for message in record.queue:
        unix_queue.send(build, batch, sender, message, "unix socket")


def finish(build: Build, batch: Batch, record: UnixSocket, index: int) -> None:
    """Shut what was shut."""
    number = build.numbers[index]
    note = "unix socket"
    if index in build.far_ends:
        other = build.far_ends.pop(index)
        if record.reset:
            # A socket that is closed with something unread resets the connection.
            batch.call("sendto", number, b"x", 1, socket.MSG_DONTWAIT, 0, 0, check=False, note=note)
        batch.call("close", other)
    elif record.shutdown:
        batch.call("shutdown", number, record.shutdown - 1, check=False, note=note)
    batch.call("fcntl", number, F_SETFL, record.flags & ~os.O_ACCMODE, note=note)
