"""What only sock_diag(7) tells about a unix socket of this network namespace.

``struct unix_diag_msg`` and its attributes are in <linux/unix_diag.h> (Linux 3.3).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass

from snapkernel import procfs
from snapkernel.errors import TargetError

ESTABLISHED, CLOSE, LISTEN = 1, 7, 10
"""States, named as those of TCP (<net/tcp_states.h>)."""

_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _NLMSG_ERROR = 4, 20, 2
_SHOW = 2 | 4 | 8 | 16  # UDIAG_SHOW_VFS, _PEER, _ICONS, _RQLEN
_VFS, _PEER, _ICONS, _RQLEN, _SHUTDOWN = 1, 2, 3, 4, 6
_REQUEST = struct.Struct("=BBHIIIII")  # family, protocol, pad, states, inode, show, cookie
_HEADER = struct.Struct("=IHHII")
_MESSAGE = struct.Struct("=BBBBIII")  # family, type, state, pad, inode, cookie


@dataclass(frozen=True)
class UnixState:
    """A unix socket as the kernel sees it.

    Attributes:
        state: ``ESTABLISHED``, ``CLOSE`` or ``LISTEN``.
        peer: inode of the peer; 0 for one that is closed or was not accepted yet; ``None``: none.
        file: inode of the socket file, its lower 32 bits; ``None``: none.
        waiting: of a listener: inodes of the sockets that wait to be accepted, in order.
        backlog: of a listener.
        shutdown: bit 0 no more reading, bit 1 no more writing.
    """

    state: int = CLOSE
    peer: int | None = None
    file: int | None = None
    waiting: tuple[int, ...] = ()
    backlog: int = 0
    shutdown: int = 0


def unix(inode: int) -> UnixState:
    """Ask for one socket.

    Raises:
        TargetError: the kernel does not answer (CONFIG_UNIX_DIAG), or there is no such socket.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        request = _REQUEST.pack(socket.AF_UNIX, 0, 0, 0xFFFFFFFF, inode, _SHOW, *[0xFFFFFFFF] * 2)
        length = _HEADER.size + len(request)
        netlink.send(_HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, 1, 1, 0) + request)
        answer = netlink.recv(1 << 18)
    with procfs.understood(f"unix socket {inode}"):
        return _parse(inode, answer)


def _parse(inode: int, answer: bytes) -> UnixState:
    _, kind, *_ = _HEADER.unpack_from(answer)
    if kind != _SOCK_DIAG_BY_FAMILY:
        (number,) = struct.unpack_from("=i", answer, _HEADER.size)
        reason = os.strerror(-number if kind == _NLMSG_ERROR else errno.EPROTO)
        raise TargetError(
            f"unix socket {inode}",
            f"the kernel does not describe it: {reason}",
            "use a kernel with CONFIG_UNIX_DIAG",
        )
    _, _, state, *_ = _MESSAGE.unpack_from(answer, _HEADER.size)
    found: dict[int, bytes] = {}
    at = _HEADER.size + _MESSAGE.size
    while at + 4 <= len(answer):
        length, attribute = struct.unpack_from("=HH", answer, at)
        if length < 4:
            break
        found[attribute] = answer[at + 4 : at + length]
        at += (length + 3) & ~3
    waiting = found.get(_ICONS, b"")
    return UnixState(
        state=state,
        peer=_word(found.get(_PEER)),
        file=_word(found.get(_VFS)),
        waiting=struct.unpack(f"={len(waiting) // 4}I", waiting),
        backlog=struct.unpack("=II", found[_RQLEN])[1] if state == LISTEN else 0,
        shutdown=found.get(_SHUTDOWN, b"\0")[0],
    )


def _word(data: bytes | None) -> int | None:
    return None if data is None else int(struct.unpack_from("=I", data)[0])
