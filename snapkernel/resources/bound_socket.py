"""UDP sockets, and TCP sockets that are bound and neither listen nor are connected.

Each takes its port again or, where somebody has that, another. Datagrams that wait are lost, as
networks lose them. Which multicast groups a socket has joined nothing lists, but it can be asked
for each group that the host has joined (MCAST_MSFILTER, <linux/in.h>).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import select
import socket
import struct
from collections.abc import Iterator

from snapkernel import procfs
from snapkernel._native import ffi, lib
from snapkernel.constants import F_SETFL
from snapkernel.errors import BatchFailed
from snapkernel.freeze.agent import Agent
from snapkernel.freeze.batch import Batch, Cell, Space
from snapkernel.model import InetSocket, Note
from snapkernel.resources import socket_options
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table

RECORDS = (InetSocket,)
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_TCP_CLOSE = 7
_LEVELS = {socket.AF_INET: socket.IPPROTO_IP, socket.AF_INET6: socket.IPPROTO_IPV6}
_MCAST_JOIN_GROUP, _MCAST_MSFILTER = 42, 48
_GROUP = struct.Struct("@I4x128s")  # struct group_req: interface, address
_FILTER = struct.Struct("@I4x128sII")  # struct group_filter: the same, mode, number of sources
_MCAST_EXCLUDE = 0
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL)


def recognises(file: OpenFile) -> bool:
    """A UDP socket, or an idle TCP socket with a port."""
    if file.family not in _FAMILIES:
        return False
    if is_udp(file.socket):
        return True
    return is_idle_tcp(file.socket) and file.socket.getsockname()[1] != 0


def is_udp(end: socket.socket) -> bool:
    """By type and protocol."""
    return end.type & 15 == socket.SOCK_DGRAM and end.proto in (0, socket.IPPROTO_UDP)


def is_idle_tcp(end: socket.socket) -> bool:
    """Neither listening nor connected, nor about to be: ``tcpi_state`` is the first byte."""
    if end.type & 15 != socket.SOCK_STREAM or end.proto not in (0, socket.IPPROTO_TCP):
        return False
    return end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE


def capture(capture: Capture, file: OpenFile, table: Table) -> InetSocket:
    """Addresses, groups and options."""
    end = file.socket
    address, port = end.getsockname()[:2]
    peer = None
    with contextlib.suppress(OSError):
        peer = end.getpeername()[:2]
    if is_udp(end) and select.select([end], [], [], 0)[0]:
        capture.report(file.subject, "replaced", "datagrams that wait in it are lost")
    capture.saved(f"{file.subject}, port {port}" if port else file.subject)
    return InetSocket(
        flags=file.flags,
        family=file.family,
        type=end.type & 15,
        address=address,
        port=port,
        peer=peer,
        memberships=tuple(_memberships(capture, file)) if is_udp(end) else (),
        options=socket_options.capture(end),
    )


def _memberships(capture: Capture, file: OpenFile) -> Iterator[tuple[str, str]]:
    for family, group, interface in _groups_of_host():
        if family != file.family:
            continue
        with contextlib.suppress(OSError):
            index = socket.if_nametoindex(interface)
            wanted = _FILTER.pack(index, _socket_address(family, group, 0), 0, 0)
            value = ffi.new("char[]", wanted)
            length = ffi.new("uint32_t *", len(wanted))
            level = _LEVELS[socket.AddressFamily(family)]
            if lib.sk_getsockopt(file.descriptor, level, _MCAST_MSFILTER, value, length):
                continue  # EADDRNOTAVAIL: not a member
            _, _, mode, sources = _FILTER.unpack(ffi.buffer(value, len(wanted)))
            if mode != _MCAST_EXCLUDE or sources:
                reason = f"it chooses among the sources of {group}, which cannot be saved yet"
                capture.refuse(file.subject, reason, "leave the group")
            yield group, interface


def _groups_of_host() -> Iterator[tuple[int, str, str]]:
    """Family, group and interface: ``/proc/net/igmp`` has a line for each interface and below it
    the groups as words of the machine, ``igmp6`` one line for each group."""
    interface = ""
    for line in _lines("/proc/net/igmp"):
        words = line.split()
        if not line[:1].isspace():
            interface = words[1].rstrip(":") if len(words) > 1 else ""
        else:
            packed = struct.pack("=I", int(words[0], 16))
            yield socket.AF_INET, socket.inet_ntop(socket.AF_INET, packed), interface
    for line in _lines("/proc/net/igmp6"):
        _, interface, digits, *_ = line.split()
        group = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
        yield socket.AF_INET6, group, interface


def _lines(path: str) -> list[str]:
    try:
        return [line for line in procfs.text(path).splitlines() if line.strip()]
    except OSError:
        return []


# --- rebuild -----------------------------------------------------------------------------------


def _socket_address(family: int, address: str, port: int) -> bytes:
    """``struct sockaddr_in`` or ``sockaddr_in6``."""
    plain, _, scope = address.partition("%")
    packed = struct.pack("=H", family) + struct.pack(">H", port)
    if family == socket.AF_INET:
        return packed + socket.inet_pton(family, plain) + bytes(8)
    index = socket.if_nametoindex(scope) if scope else 0
    return packed + bytes(4) + socket.inet_pton(family, plain) + struct.pack("=I", index)


def create(build: Build, batch: Batch, record: InetSocket, index: int) -> None:
    """A new socket, with what must be set before it is bound."""
    fresh = Cell("fresh")
    kind = record.type | os.O_CLOEXEC
    batch.call("socket", record.family, kind, 0, store=fresh, note=_name(record))
    socket_options.rebuild(batch, fresh, record.options, _name(record))
    number = build.keep(batch, fresh, index)
    batch.call("fcntl", number, F_SETFL, record.flags & ~os.O_ACCMODE, note=_name(record))


def _name(record: InetSocket) -> str:
    protocol = "UDP" if record.type == socket.SOCK_DGRAM else "TCP"
    return f"{protocol} socket at {record.address} port {record.port}"


def take(build: Build, agent: Agent, index: int, record: InetSocket) -> None:
    """Bind to the old port or, where somebody else has it, to another.

    Raises:
        BatchFailed: it can be bound to neither.
    """
    result = 0
    for port in _ports(build, agent, index, record):
        result = _bind(build, agent, index, record, record.address, port)
        if result != -errno.EADDRINUSE:
            break
    if result == -errno.EADDRNOTAVAIL and record.peer is not None:
        # Its own address is that of the way to the peer, which may be another one here.
        result = _bind(build, agent, index, record, _any(record), record.port)
    if result < 0:
        remedy = "give this host that address" if result == -errno.EADDRNOTAVAIL else ""
        raise BatchFailed(_name(record), f"bind: {os.strerror(-result)}", -result, remedy)


def lines(record: InetSocket) -> Iterator[str]:
    """The step in words."""
    yield f"-- bind the {_name(record)}, or at another port if it is taken"


def _any(record: InetSocket) -> str:
    return "0.0.0.0" if record.family == socket.AF_INET else "::"


def _ports(build: Build, agent: Agent, index: int, record: InetSocket) -> Iterator[int]:
    """What to try: the port that another socket of the snapshot with the same port has got; the old
    one, unless it would be shared with strangers; any."""
    for other, name in build.names.items():
        twin = build.manifest.descriptions[other]
        if (
            isinstance(twin, InetSocket)
            and twin.type == record.type
            and twin.port == record.port
            and other != index
        ):
            yield int(struct.unpack_from(">H", name, 2)[0])
            return
    if not _is_shared(agent, record):
        yield record.port
    yield 0


def _is_shared(agent: Agent, record: InetSocket) -> bool:
    """SO_REUSEPORT, and SO_REUSEADDR of UDP, let several have one port: each gets a part of what
    comes in, or the last gets all. A copy beside its original must not take that away; only of
    multicast and broadcast do all get all."""
    options = record.options
    udp = record.type == socket.SOCK_DGRAM
    shares = socket_options.flag(options, socket_options.SO_REUSEPORT) or (
        udp and socket_options.flag(options, socket.SO_REUSEADDR)
    )
    if not shares or record.memberships or socket_options.flag(options, socket.SO_BROADCAST):
        return False
    plain = ipaddress.ip_address(record.address.partition("%")[0])
    if plain.is_multicast:
        return False
    batch = Batch(f"ask whether the port of the {_name(record)} is free")
    asking = Cell("asking")
    batch.call("socket", record.family, record.type | os.O_CLOEXEC, 0, store=asking)
    if not udp:
        yes = struct.pack("=i", 1)
        batch.call("setsockopt", asking, socket.SOL_SOCKET, socket.SO_REUSEADDR, yes, 4)
    if record.family == socket.AF_INET6:
        only = [o for o in options if o[:2] == (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)]
        socket_options.rebuild(batch, asking, tuple(only), _name(record))
    packed = _socket_address(record.family, record.address, record.port)
    call = batch.call("bind", asking, packed, len(packed), check=False)
    batch.call("close", asking)
    agent.run(batch)
    return call.result == -errno.EADDRINUSE


def _bind(
    build: Build, agent: Agent, index: int, record: InetSocket, address: str, port: int
) -> int:
    """One try; the kernel's answer."""
    batch = Batch(f"bind the {_name(record)}")
    packed = _socket_address(record.family, address, port)
    number = build.numbers[index]
    call = batch.call("bind", number, packed, len(packed), check=False, note=_name(record))
    name, length = Space(bytes(len(packed))), Space(struct.pack("=I", len(packed)))
    batch.call("getsockname", number, name, length, note=_name(record))
    agent.run(batch)
    assert call.result is not None
    if call.result == 0:
        (got,) = struct.unpack_from(">H", name.data, 2)
        build.names[index] = _socket_address(record.family, address, got)
        if got != record.port:
            reason = f"the port is taken; it is bound to port {got} instead"
            build.notes.append(Note(object=_name(record), status="replaced", reason=reason))
    return call.result


def finish(build: Build, batch: Batch, record: InetSocket, index: int) -> None:
    """Join groups again, and connect to the peer."""
    number = build.numbers[index]
    for group, interface in record.memberships:
        what = f"{_name(record)}: membership of {group} at {interface}"
        try:
            at = socket.if_nametoindex(interface)
        except OSError:
            note = Note(object=what, status="lost", reason="this host has no such interface")
            build.notes.append(note)
            continue
        wanted = _GROUP.pack(at, _socket_address(record.family, group, 0))
        level = _LEVELS[socket.AddressFamily(record.family)]
        call = ("setsockopt", number, level, _MCAST_JOIN_GROUP, wanted, len(wanted))
        batch.call(*call, optional=what)
    if record.peer is not None:
        address, port = record.peer
        what = f"{_name(record)}: connection to {address} port {port}"
        packed = _socket_address(record.family, address, _port_now(build, record, port))
        batch.call("connect", number, packed, len(packed), optional=what)


def _port_now(build: Build, record: InetSocket, port: int) -> int:
    """The port of a peer; one that is of the snapshot may have got another."""
    assert record.peer is not None
    for index, name in build.names.items():
        other = build.manifest.descriptions[index]
        if isinstance(other, InetSocket) and other.port == port and other.type == record.type:
            own = ipaddress.ip_address(other.address.partition("%")[0])
            if own.is_unspecified or other.address == record.peer[0]:
                return int(struct.unpack_from(">H", name, 2)[0])
    return port
