"""Socket options that a program may have set: socket(7), tcp(7), ip(7), ipv6(7).

Numbers that Python does not name are those of <asm-generic/socket.h> and <linux/in.h>. Options are
kept where they differ from those of a new socket; one that this host does not grant is noted.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import cache

from snapkernel import procfs
from snapkernel._native import ffi, lib
from snapkernel.freeze.batch import Batch, Cell
from snapkernel.resources.context import Capture
from snapkernel.resources.open_file import OpenFile

Option = tuple[int, int, bytes]

_SOCKET, _TCP, _IP, _IPV6 = (
    socket.SOL_SOCKET,
    socket.IPPROTO_TCP,
    socket.IPPROTO_IP,
    socket.IPPROTO_IPV6,
)
SO_REUSEPORT = 15
_GENERIC = {
    (_SOCKET, socket.SO_REUSEADDR): "SO_REUSEADDR",
    (_SOCKET, SO_REUSEPORT): "SO_REUSEPORT",
    (_SOCKET, socket.SO_KEEPALIVE): "SO_KEEPALIVE",
    (_SOCKET, socket.SO_BROADCAST): "SO_BROADCAST",
    (_SOCKET, socket.SO_DONTROUTE): "SO_DONTROUTE",
    (_SOCKET, socket.SO_OOBINLINE): "SO_OOBINLINE",
    (_SOCKET, socket.SO_LINGER): "SO_LINGER",
    (_SOCKET, socket.SO_RCVLOWAT): "SO_RCVLOWAT",
    (_SOCKET, socket.SO_RCVTIMEO): "SO_RCVTIMEO",
    (_SOCKET, socket.SO_SNDTIMEO): "SO_SNDTIMEO",
    (_SOCKET, 16): "SO_PASSCRED",
    (_SOCKET, 25): "SO_BINDTODEVICE",
    (_SOCKET, 29): "SO_TIMESTAMP",
    (_SOCKET, 34): "SO_PASSSEC",
    (_SOCKET, 35): "SO_TIMESTAMPNS",
    (_SOCKET, 36): "SO_MARK",
    (_SOCKET, 37): "SO_TIMESTAMPING",
    (_SOCKET, 40): "SO_RXQ_OVFL",
    (_SOCKET, 42): "SO_PEEK_OFF",  # Linux 3.4
    (_SOCKET, 46): "SO_BUSY_POLL",  # Linux 3.11
    (_SOCKET, 47): "SO_MAX_PACING_RATE",  # Linux 3.13
    (_SOCKET, 60): "SO_ZEROCOPY",  # Linux 4.14
    (_SOCKET, 63): "SO_TIMESTAMP_NEW",  # Linux 5.1, as the next two
    (_SOCKET, 64): "SO_TIMESTAMPNS_NEW",
    (_SOCKET, 65): "SO_TIMESTAMPING_NEW",
    (_SOCKET, 76): "SO_PASSPIDFD",  # Linux 6.5
    (_SOCKET, 83): "SO_PASSRIGHTS",  # Linux 6.16
}
_OF_IP = {
    (_IP, socket.IP_TOS): "IP_TOS",
    (_IP, socket.IP_TTL): "IP_TTL",
    (_IP, 8): "IP_PKTINFO",
    (_IP, 10): "IP_MTU_DISCOVER",
    (_IP, 11): "IP_RECVERR",
    (_IP, 12): "IP_RECVTTL",
    (_IP, 13): "IP_RECVTOS",
    (_IP, 15): "IP_FREEBIND",
    (_IP, 19): "IP_TRANSPARENT",
    (_IP, 20): "IP_RECVORIGDSTADDR",
    (_IP, 21): "IP_MINTTL",
    (_IP, 24): "IP_BIND_ADDRESS_NO_PORT",
    (_IP, 50): "IP_UNICAST_IF",
    (_IP, 51): "IP_LOCAL_PORT_RANGE",  # Linux 6.3
}
_OF_IPV6 = {
    (_IPV6, socket.IPV6_V6ONLY): "IPV6_V6ONLY",
    (_IPV6, socket.IPV6_UNICAST_HOPS): "IPV6_UNICAST_HOPS",
    (_IPV6, 23): "IPV6_MTU_DISCOVER",
    (_IPV6, 25): "IPV6_RECVERR",
    (_IPV6, 49): "IPV6_RECVPKTINFO",
    (_IPV6, 51): "IPV6_RECVHOPLIMIT",
    (_IPV6, 62): "IPV6_DONTFRAG",
    (_IPV6, 66): "IPV6_RECVTCLASS",
    (_IPV6, 67): "IPV6_TCLASS",
    (_IPV6, 78): "IPV6_FREEBIND",
}
_OF_DATAGRAMS = {
    (_IP, socket.IP_MULTICAST_IF): "IP_MULTICAST_IF",
    (_IP, socket.IP_MULTICAST_TTL): "IP_MULTICAST_TTL",
    (_IP, socket.IP_MULTICAST_LOOP): "IP_MULTICAST_LOOP",
    (_IP, 49): "IP_MULTICAST_ALL",
    (_IPV6, socket.IPV6_MULTICAST_IF): "IPV6_MULTICAST_IF",
    (_IPV6, socket.IPV6_MULTICAST_HOPS): "IPV6_MULTICAST_HOPS",
    (_IPV6, socket.IPV6_MULTICAST_LOOP): "IPV6_MULTICAST_LOOP",
    (_IPV6, 29): "IPV6_MULTICAST_ALL",
}
_OF_TCP = {
    (_TCP, socket.TCP_NODELAY): "TCP_NODELAY",
    (_TCP, socket.TCP_CORK): "TCP_CORK",
    (_TCP, socket.TCP_KEEPIDLE): "TCP_KEEPIDLE",
    (_TCP, socket.TCP_KEEPINTVL): "TCP_KEEPINTVL",
    (_TCP, socket.TCP_KEEPCNT): "TCP_KEEPCNT",
    (_TCP, socket.TCP_SYNCNT): "TCP_SYNCNT",
    (_TCP, socket.TCP_LINGER2): "TCP_LINGER2",
    (_TCP, socket.TCP_DEFER_ACCEPT): "TCP_DEFER_ACCEPT",
    (_TCP, 13): "TCP_CONGESTION",
    (_TCP, socket.TCP_USER_TIMEOUT): "TCP_USER_TIMEOUT",
    (_TCP, 23): "TCP_FASTOPEN",
    (_TCP, 25): "TCP_NOTSENT_LOWAT",
    (_TCP, 30): "TCP_FASTOPEN_CONNECT",
}
_OF_TCP_WITHOUT_PEER = {
    # Of a connection they say what was agreed upon.
    (_TCP, socket.TCP_MAXSEG): "TCP_MAXSEG",
    (_TCP, socket.TCP_WINDOW_CLAMP): "TCP_WINDOW_CLAMP",
}
_LAST = {(_SOCKET, socket.SO_PRIORITY): "SO_PRIORITY"}  # IP_TOS changes it
_NAMES = {
    **_GENERIC,
    **_OF_TCP,
    **_OF_TCP_WITHOUT_PEER,
    **_OF_IP,
    **_OF_IPV6,
    **_OF_DATAGRAMS,
    **_LAST,
    (_SOCKET, socket.SO_SNDBUF): "SO_SNDBUF",
    (_SOCKET, socket.SO_RCVBUF): "SO_RCVBUF",
}
LONGEST = 16
"""Bytes of a value."""
_BUFFERS = ((1, socket.SO_SNDBUF), (2, socket.SO_RCVBUF))
_BY_FORCE = {socket.SO_SNDBUF: (32, "wmem_max"), socket.SO_RCVBUF: (33, "rmem_max")}
SO_BUF_LOCK = 72  # Linux 5.15: which buffer sizes were set by the program
_SO_GET_FILTER = 26


def _wanted(end: socket.socket) -> Iterator[tuple[int, int]]:
    yield from _GENERIC
    inet = end.family in (socket.AF_INET, socket.AF_INET6)
    if inet and end.type & 15 == socket.SOCK_STREAM:
        yield from _OF_TCP
        yield from _OF_TCP_WITHOUT_PEER
    elif inet:
        yield from _OF_DATAGRAMS
    if inet:
        yield from _OF_IP
    if end.family == socket.AF_INET6:
        yield from _OF_IPV6
    yield from _LAST


def _has_peer(end: socket.socket) -> bool:
    try:
        end.getpeername()
    except OSError:
        return False
    return True


@cache
def _defaults(family: int, kind: int, protocol: int) -> dict[tuple[int, int], bytes]:
    """The options that a new socket has, in the order of setting them."""
    found = {}
    with socket.socket(family, kind, protocol) as fresh:
        for level, option in _wanted(fresh):
            # Some are of other kinds of sockets, or of a newer kernel.
            with suppress(OSError):
                found[level, option] = fresh.getsockopt(level, option, LONGEST)
    return found


def capture(end: socket.socket) -> tuple[Option, ...]:
    """The options that differ from those of a new socket."""
    found = [*_buffers(end)]
    has_peer = _has_peer(end)
    for key, default in _defaults(int(end.family), int(end.type) & 15, end.proto).items():
        if has_peer and key in _OF_TCP_WITHOUT_PEER:
            continue
        with suppress(OSError):  # not in the state that it is in
            value = end.getsockopt(*key, LONGEST)
            if value != default:
                found.append((*key, value))
    return tuple(found)


def _buffers(end: socket.socket) -> Iterator[Option]:
    """Buffer sizes that the program has set; the kernel tells twice of what it was given."""
    try:
        locked = end.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK)
    except OSError:
        return
    for bit, option in _BUFFERS:
        if locked & bit:
            size = end.getsockopt(socket.SOL_SOCKET, option) // 2
            yield socket.SOL_SOCKET, option, struct.pack("=i", size)


def is_known(level: int, option: int) -> bool:
    """One that ``capture`` may have found; of others nobody knows whom they concern."""
    return (level, option) in _NAMES


def refuse_filter(capture: Capture, file: OpenFile) -> None:
    """A program that the kernel runs on what arrives (SO_ATTACH_FILTER, SO_ATTACH_BPF) would be
    lost. The option's length counts instructions; 0 asks for their number, and EACCES means that
    it is one of eBPF (filter.c, sk_get_filter)."""
    length = ffi.new("uint32_t *", 0)
    result = lib.sk_getsockopt(file.descriptor, _SOCKET, _SO_GET_FILTER, ffi.NULL, length)
    if length[0] or result == -13:
        capture.refuse(
            file.subject, "has a socket filter, which cannot be saved yet", "detach or close it"
        )


def flag(options: tuple[Option, ...], option: int) -> bool:
    """Whether a boolean option of level SOL_SOCKET is set."""
    return any(o[:2] == (_SOCKET, option) and any(o[2]) for o in options)


# --- rebuild -----------------------------------------------------------------------------------


def rebuild(batch: Batch, cell: Cell | int, options: tuple[Option, ...], note: str) -> None:
    """Set them again."""
    for level, option, value in options:
        what = f"{note}: {_NAMES.get((level, option), f'option {level}, {option}')}"
        setting = ("setsockopt", cell, level, option, value, len(value))
        batch.call(*setting, optional=what, note=note)
        if level == _SOCKET and option in _BY_FORCE:
            _exceed(batch, cell, option, value, what)


def _exceed(batch: Batch, cell: Cell | int, option: int, value: bytes, what: str) -> None:
    """A buffer beyond the host's limit, which is clipped without a word, needs CAP_NET_ADMIN."""
    force, limit = _BY_FORCE[option]
    if int.from_bytes(value, "little") > int(procfs.text(f"/proc/sys/net/core/{limit}")):
        optional = f"{what} beyond this host's net.core.{limit}"
        batch.call("setsockopt", cell, _SOCKET, force, value, len(value), optional=optional)
