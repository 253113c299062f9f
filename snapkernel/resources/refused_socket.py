"""Sockets that cannot be saved, each by its own name (socket(2), <linux/socket.h>)."""

from __future__ import annotations

import socket
import stat

from snapkernel.resources.context import Capture
from snapkernel.resources.open_file import OpenFile, Table

RECORDS = ()

_FAMILIES = {
    16: "netlink sockets",
    17: "packet sockets",
    21: "RDS sockets",
    29: "CAN sockets",
    30: "TIPC sockets",
    31: "Bluetooth sockets",
    38: "sockets of the kernel's cryptography (AF_ALG)",
    40: "sockets to virtual machines (AF_VSOCK)",
    42: "Qualcomm IPC router sockets",
    43: "SMC sockets",
    44: "XDP sockets",
}
_PROTOCOLS = {
    (socket.SOCK_DGRAM, socket.IPPROTO_ICMP): "ping sockets",
    (socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6): "ping sockets",
    (socket.SOCK_DGRAM, 136): "UDP-Lite sockets",
    (socket.SOCK_STREAM, 132): "SCTP sockets",
    (socket.SOCK_SEQPACKET, 132): "SCTP sockets",
    (socket.SOCK_STREAM, 262): "multipath TCP sockets",
}


def recognises(file: OpenFile) -> bool:
    """Any socket that no module before has recognised."""
    return stat.S_ISSOCK(file.status.st_mode)


def capture(capture: Capture, file: OpenFile, table: Table) -> None:
    """Say what it is."""
    kind, protocol = file.socket.type & 15, file.socket.proto
    if file.family in (socket.AF_INET, socket.AF_INET6):
        plain = "raw sockets" if kind == socket.SOCK_RAW else f"sockets of protocol {protocol}"
        what = _PROTOCOLS.get((socket.SocketKind(kind), protocol), plain)
    else:
        what = _FAMILIES.get(file.family, f"sockets of address family {file.family}")
    capture.refuse(file.subject, f"{what} cannot be saved", "close it before the snapshot")
