"""The order in which sockets get their names and connections, once all are made.

First what somebody else may have meanwhile: names, each in a step of its own, where the kernel's
answer decides what comes next. Then, in one batch, what goes by these names: listening,
connections, and what is queued, which may hold descriptors of anything.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass

from snapkernel.freeze.agent import Agent
from snapkernel.freeze.batch import Batch
from snapkernel.model import InetSocket, UnixDatagram, UnixListener, UnixName, UnixSocket
from snapkernel.resources import (
    bound_socket,
    socket_options,
    unix_datagram,
    unix_listener,
    unix_name,
    unix_queue,
    unix_socket,
)
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table


def collect(capture: Capture, table: Table) -> None:
    """Before anything is described: what is on its way in sockets belongs to the table."""
    for file in table.files:
        if stat.S_ISSOCK(file.status.st_mode):
            socket_options.refuse_filter(capture, file)
    unix_queue.collect(capture, table, _is_saved)


def _is_saved(file: OpenFile, table: Table) -> bool:
    return unix_datagram.recognises(file) or unix_socket.is_saved(file, table)


# --- rebuild -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class BindUnix:
    """A unix socket takes its name or, where that is taken, another."""

    index: int
    name: UnixName

    def run(self, build: Build, agent: Agent) -> None:
        """Raises BatchFailed."""
        unix_name.take(build, agent, self.index, self.name)

    def lines(self) -> Iterator[str]:
        """The step in words."""
        return unix_name.lines(self.name)


@dataclass(frozen=True)
class BindInet:
    """A UDP or TCP socket takes its port or, where that is taken, another."""

    index: int
    record: InetSocket

    def run(self, build: Build, agent: Agent) -> None:
        """Raises BatchFailed."""
        bound_socket.take(build, agent, self.index, self.record)

    def lines(self) -> Iterator[str]:
        """The step in words."""
        return bound_socket.lines(self.record)


@dataclass(frozen=True)
class Connect:
    """Everything that goes by the names that were taken."""

    build: Build

    def run(self, build: Build, agent: Agent) -> None:
        """Raises BatchFailed."""
        batch = _connections(build)
        agent.run(batch)
        build.note_lost(batch)

    def lines(self) -> Iterator[str]:
        """The calls, were all names free."""
        for step in names(self.build):
            self.build.names.setdefault(step.index, unix_name.address(step.name.name))
        batch = _connections(self.build)
        yield f"-- {batch.title}"
        yield from batch.lines()


Step = BindUnix | BindInet | Connect


def prepare(build: Build) -> None:
    """Before anything is made: what connects through a listener."""
    build.routes = unix_socket.routes(build.manifest)


def steps(build: Build) -> Iterator[Step]:
    """After all descriptions were made."""
    yield from names(build)
    for index, record in enumerate(build.manifest.descriptions):
        if isinstance(record, InetSocket) and record.port:
            yield BindInet(index, record)
    yield Connect(build)


def names(build: Build) -> list[BindUnix]:
    """Names to be bound; those that no file leads to first, as another may have the same."""
    found = []
    for index, record in enumerate(build.manifest.descriptions):
        match record:
            case UnixSocket(name=UnixName() as name) if unix_socket.has_own_name(
                build, record, index
            ):
                found.append(BindUnix(index, name))
            case UnixListener(name=name) | UnixDatagram(name=UnixName() as name):
                found.append(BindUnix(index, name))
    return sorted(found, key=lambda step: step.name.file)


def _connections(build: Build) -> Batch:
    batch = Batch("connect sockets")
    records = list(enumerate(build.manifest.descriptions))
    for index, record in records:
        if isinstance(record, UnixListener):
            unix_listener.listen(build, batch, record, index)
    waiting = [i for _, r in records if isinstance(r, UnixListener) for i in r.pending]
    for index, record in records:
        if isinstance(record, UnixSocket) and index not in waiting:
            unix_socket.reconnect(build, batch, record, index)
    for index in waiting:
        record = build.manifest.descriptions[index]
        if isinstance(record, UnixSocket):
            unix_socket.reconnect(build, batch, record, index)
    for index, record in records:
        if isinstance(record, UnixSocket | UnixDatagram):
            note = "unix socket"
            socket_options.rebuild(batch, build.numbers[index], record.options, note)
    for index, record in records:
        if isinstance(record, UnixSocket):
            unix_socket.fill(build, batch, record, index)
        elif isinstance(record, UnixDatagram):
            unix_datagram.fill(build, batch, record, index)
    for index, record in records:
        if isinstance(record, UnixSocket):
            unix_socket.finish(build, batch, record, index)
        elif isinstance(record, UnixDatagram):
            unix_datagram.finish(build, batch, record, index)
        elif isinstance(record, UnixListener):
            unix_listener.finish(build, batch, record, index)
        elif isinstance(record, InetSocket):
            bound_socket.finish(build, batch, record, index)
    return batch
