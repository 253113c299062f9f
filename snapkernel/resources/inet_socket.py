"""TCP (tcp(7)): listeners come back listening, connections come back closed.

A listener takes its old port, or a new one where the old is taken on this host; the port map tells.
A closed connection is a new socket: reading and writing fail at once, which is what programs such
as ZeroMQ expect of a lost peer, and they connect again. TCP_INFO of a listener holds how many wait
to be accepted (``tcpi_unacked``) and its backlog (``tcpi_sacked``).
"""

from __future__ import annotations

import os
import socket
import struct

from snapkernel.constants import F_SETFL
from snapkernel.freeze.batch import Batch, Call, Cell
from snapkernel.model import ClosedSocket, TcpListener
from snapkernel.resources import socket_options
from snapkernel.resources.bound_socket import is_idle_tcp
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table

RECORDS = (TcpListener, ClosedSocket)


def recognises(file: OpenFile) -> bool:
    """A TCP socket of either family."""
    return (
        file.family in (socket.AF_INET, socket.AF_INET6)
        and file.socket.type & 15 == socket.SOCK_STREAM
        and file.socket.proto in (0, socket.IPPROTO_TCP)
    )


def capture(capture: Capture, file: OpenFile, table: Table) -> TcpListener | ClosedSocket:
    """A listener whole; of a connection only that there was one."""
    end = file.socket
    address, port = end.getsockname()[:2]
    options = socket_options.capture(end)
    if end.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        capture.saved(f"{file.subject}, listening on {address} port {port}")
        # struct tcp_info: 8 bytes, then rto, ato, snd_mss, rcv_mss, unacked, sacked
        information = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        waiting, backlog = struct.unpack_from("=II", information, 24)
        if waiting:
            reason = f"{waiting} connections that were not accepted yet are lost"
            capture.report(f"{file.subject}, port {port}", "closed", reason)
        return TcpListener(
            flags=file.flags,
            family=file.family,
            address=address,
            port=port,
            backlog=backlog,
            options=options,
        )
    try:
        was = "TCP connection to {} port {}".format(*end.getpeername()[:2])
    except OSError:
        was = "unconnected TCP socket"
        if not is_idle_tcp(end):
            was = "TCP socket whose connection is being made or has just ended"
            capture.report(file.subject, "closed", "connections come back closed")
    else:
        capture.report(f"{file.subject}, {was}", "closed", "connections come back closed")
    return ClosedSocket(
        flags=file.flags,
        family=file.family,
        type=end.type & 15,
        protocol=end.proto,
        was=was,
        options=options,
    )


# --- rebuild -----------------------------------------------------------------------------------


def create(build: Build, batch: Batch, record: TcpListener | ClosedSocket, index: int) -> None:
    """A new socket; a listener is bound in a step of its own, where its port may turn out taken."""
    fresh = Cell("fresh")
    note = f"port {record.port}" if isinstance(record, TcpListener) else record.was
    protocol = 0 if isinstance(record, TcpListener) else record.protocol
    kind = socket.SOCK_STREAM if isinstance(record, TcpListener) else record.type
    batch.call("socket", record.family, kind, protocol, store=fresh, note=note)
    socket_options.rebuild(batch, fresh, record.options, note)
    number = build.keep(batch, fresh, index)
    batch.call("fcntl", number, F_SETFL, record.flags & ~os.O_ACCMODE, note=note)


def bind(build: Build, batch: Batch, index: int, record: TcpListener, port: int) -> Call:
    """Ask for an address. The result is for the caller: -EADDRINUSE asks for another try with
    port 0, -EADDRNOTAVAIL means that this host does not have the address."""
    if record.family == socket.AF_INET:
        packed = struct.pack("=H", record.family) + struct.pack(">H", port)
        packed += socket.inet_pton(record.family, record.address) + bytes(8)
    else:
        packed = struct.pack("=H", record.family) + struct.pack(">HI", port, 0)
        packed += socket.inet_pton(record.family, record.address.partition("%")[0]) + bytes(4)
    note = f"port {record.port}"
    return batch.call("bind", build.numbers[index], packed, len(packed), check=False, note=note)


def listen(build: Build, batch: Batch, index: int, record: TcpListener) -> Call:
    """Start listening."""
    cell = build.numbers[index]
    return batch.call("listen", cell, record.backlog, check=False, note=f"port {record.port}")
