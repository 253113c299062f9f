"""Pairs of unix(7) sockets without names (socketpair(2)), with the messages in them.

Which sockets are a pair only sock_diag(7) tells (UDIAG_SHOW_PEER). Messages are looked at with
MSG_PEEK and SO_PEEK_OFF (socket(7), Linux 3.4), which keeps their boundaries.
"""

from __future__ import annotations

import os
import socket
import struct

from snapkernel.constants import F_SETFL
from snapkernel.freeze.batch import AddressOf, Batch, Cell
from snapkernel.model import ClosedSocket, UnixSocket
from snapkernel.resources import socket_options
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table

RECORDS = (UnixSocket,)
PREFIX = "socket:["
SO_PEEK_OFF = 42
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20
UDIAG_SHOW_PEER, UNIX_DIAG_PEER, UNIX_DIAG_SHUTDOWN = 4, 2, 6
_RIGHTS_SPACE = socket.CMSG_SPACE(1024)
_TCP_ESTABLISHED, _TCP_LISTEN = 1, 10


def recognises(file: OpenFile) -> bool:
    """A socket of the unix family."""
    return file.family == socket.AF_UNIX


def capture(capture: Capture, file: OpenFile, table: Table) -> UnixSocket | ClosedSocket | None:
    """An end of a pair inside the process, or one whose peer is gone or elsewhere."""
    end = file.socket
    if end.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        capture.refuse(file.subject, "unix listening sockets cannot be saved yet", "close it")
        return None
    name = end.getsockname()
    peer, shutdown = _diagnose(file.status.st_ino)
    inside = table.by_inode(peer, PREFIX) if peer else []
    options = socket_options.capture(end)
    if not inside and (peer or name):
        peer_name = _peer_name(end)
        where = f" ({peer_name})" if peer_name else ""
        capture.report(file.subject, "closed", f"its peer is outside{where}")
        return ClosedSocket(
            flags=file.flags,
            family=socket.AF_UNIX,
            type=end.type & 15,
            was=f"unix socket to {peer_name or 'another process'}",
            options=options,
        )
    queue = _queued(capture, file, end)
    capture.saved(file.subject)
    return UnixSocket(
        flags=file.flags,
        type=end.type & 15,
        peer=inside[0].index if inside else None,
        queue=queue,
        shutdown=shutdown,
        options=options,
    )


def _peer_name(end: socket.socket) -> str:
    try:
        name = end.getpeername()
    except OSError:
        return ""
    return os.fsdecode(name)


def _diagnose(inode: int) -> tuple[int, int]:
    """Inode of the peer (0: none) and shutdown bits of a unix socket of this network namespace."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
        # struct unix_diag_req: family, protocol, pad, states, inode, show, cookie
        request = struct.pack(
            "=BBHIIIII", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, inode, UDIAG_SHOW_PEER, *[0xFFFFFFFF] * 2
        )
        header = struct.pack("=IHHII", 16 + len(request), SOCK_DIAG_BY_FAMILY, 1, 1, 0)
        netlink.send(header + request)
        answer = netlink.recv(65536)
    _, kind, *_ = struct.unpack_from("=IHHII", answer)
    peer = shutdown = 0
    if kind == SOCK_DIAG_BY_FAMILY:
        at = 16 + 16
        while at + 4 <= len(answer):
            length, attribute = struct.unpack_from("=HH", answer, at)
            if length < 4:
                break
            if attribute == UNIX_DIAG_PEER:
                (peer,) = struct.unpack_from("=I", answer, at + 4)
            elif attribute == UNIX_DIAG_SHUTDOWN:
                shutdown = answer[at + 4]
            at += (length + 3) & ~3
    return peer, shutdown


def _queued(capture: Capture, file: OpenFile, end: socket.socket) -> tuple[bytes, ...]:
    """The messages that wait, without taking them. Not looked at while the process runs: a message
    of no bytes that was looked at before is passed over with SO_PEEK_OFF."""
    if capture.target is None:
        if int(file.field("scm_fds") or 0):  # Linux 5.10
            _refuse_descriptors(capture, file)
        return ()
    messages: list[bytes] = []
    before = end.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF)
    end.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
    try:
        while True:
            try:
                flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
                data, ancillary, _, _ = end.recvmsg(1 << 22, _RIGHTS_SPACE, flags)
            except (BlockingIOError, ConnectionError):
                break
            for level, kind, rights in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    for descriptor in struct.unpack(f"={len(rights) // 4}i", rights):
                        os.close(descriptor)
                    _refuse_descriptors(capture, file)
            if not data and end.type & 15 == socket.SOCK_STREAM:
                break
            messages.append(data)
    finally:
        end.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, before)
    if end.type & 15 == socket.SOCK_STREAM:
        return (b"".join(messages),) if messages else ()
    return tuple(messages)


def _refuse_descriptors(capture: Capture, file: OpenFile) -> None:
    capture.refuse(file.subject, "has descriptors on their way in it", "receive them first")


# --- rebuild -----------------------------------------------------------------------------------


def create(build: Build, batch: Batch, record: UnixSocket, index: int) -> None:
    """The pair at once: each end's messages are sent from the other; an end nobody had is closed
    again."""
    if index in build.numbers:
        return
    note = "unix socket pair"
    mine, other = Cell("mine"), Cell("other")
    kind = record.type | os.O_CLOEXEC
    batch.call("socketpair", socket.AF_UNIX, kind, 0, AddressOf((mine, other)), note=note)
    peer = None
    if record.peer is not None:
        candidate = build.manifest.descriptions[record.peer]
        peer = candidate if isinstance(candidate, UnixSocket) else None
    ends = [(mine, record, index)]
    if peer is not None and record.peer is not None and record.peer != index:
        ends.append((other, peer, record.peer))
    for fresh, end, _ in ends:
        socket_options.rebuild(batch, fresh, end.options, note)
    _send(batch, other, record.queue, note)
    if peer is not None:
        _send(batch, mine, peer.queue, note)
    away = [build.move(batch, fresh) for fresh in (mine, other)]
    for fresh, (_, end, number) in zip(away, ends, strict=False):
        placed = build.place(batch, fresh, number)
        batch.call("fcntl", placed, F_SETFL, end.flags & ~os.O_ACCMODE, note=note)
    if len(ends) == 1:
        batch.call("close", away[1])
    for _, end, number in ends:
        if end.shutdown and (peer is not None):
            batch.call("shutdown", build.numbers[number], end.shutdown - 1, check=False, note=note)


def _send(batch: Batch, sender: Cell, messages: tuple[bytes, ...], note: str) -> None:
    for message in messages:
        call = ("sendto", sender, message, len(message), socket.MSG_DONTWAIT, 0, 0)
        batch.call(*call, expect=len(message), note=note)
