"""unix(7) sockets that listen: stream and seqpacket, at a path or an abstract name.

Who waits to be accepted is told by sock_diag(7). One that is of the snapshot itself connects again;
what it has sent already lies where only accept(2) can reach it, so that is refused. One from
outside is lost.
"""

from __future__ import annotations

import os
import socket

from snapkernel.constants import F_SETFL
from snapkernel.freeze.batch import Batch, Cell
from snapkernel.model import UnixListener
from snapkernel.resources import socket_diag, socket_options, unix_name, unix_queue
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table

RECORDS = (UnixListener,)
PREFIX = "socket:["


def recognises(file: OpenFile) -> bool:
    """A unix socket that accepts connections."""
    return file.family == socket.AF_UNIX and bool(
        file.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    )


def capture(capture: Capture, file: OpenFile, table: Table) -> UnixListener | None:
    """A listener, and which sockets of the snapshot wait for it."""
    state = socket_diag.unix(file.status.st_ino)
    name = unix_name.capture(capture, file, state)
    if name is None:  # it began to listen meanwhile, in a process that runs
        capture.refuse(file.subject, "has changed while it was looked at", "try again")
        return None
    subject = f"{file.subject}, listening at {unix_name.text(name.name)}"
    capture.saved(subject)
    if not name.file and not name.name.startswith(b"\0"):
        reason = "no file leads to it from the working directory, so nobody can connect to it"
        capture.report(subject, "replaced", reason)
    pending = []
    lost = 0
    for inode in state.waiting:
        clients = table.by_inode(inode, PREFIX)
        if not clients:
            lost += 1
        elif unix_queue.unread_by_peer(clients[0].socket):
            capture.refuse(
                f"{subject}: connection of {clients[0].subject}",
                "has sent something and was not accepted yet",
                "accept it before the snapshot",
            )
        else:
            pending.append(clients[0].index)
    if lost:
        reason = f"{lost} connections from outside that were not accepted yet are lost"
        capture.report(subject, "closed", reason)
    return UnixListener(
        flags=file.flags,
        type=file.socket.type & 15,
        name=name,
        backlog=state.backlog,
        pending=tuple(pending),
        shutdown=state.shutdown,
        options=socket_options.capture(file.socket),
    )


# --- rebuild -----------------------------------------------------------------------------------


def create(build: Build, batch: Batch, record: UnixListener, index: int) -> None:
    """A new socket, which gets its name in a step of its own."""
    fresh = Cell("fresh")
    note = f"unix socket {unix_name.text(record.name.name)}"
    batch.call("socket", socket.AF_UNIX, record.type | os.O_CLOEXEC, 0, store=fresh, note=note)
    build.keep(batch, fresh, index)


def listen(build: Build, batch: Batch, record: UnixListener, index: int) -> None:
    """Let others connect."""
    note = f"unix socket {unix_name.text(record.name.name)}"
    batch.call("listen", build.numbers[index], record.backlog, note=note)


def finish(build: Build, batch: Batch, record: UnixListener, index: int) -> None:
    """What would be in the way of the connections that are made again."""
    number = build.numbers[index]
    note = f"unix socket {unix_name.text(record.name.name)}"
    socket_options.rebuild(batch, number, record.options, note)
    batch.call("fcntl", number, F_SETFL, record.flags & ~os.O_ACCMODE, note=note)
    if record.shutdown:
        batch.call("shutdown", number, record.shutdown - 1, check=False, note=note)
