"""Who listens where a connection file says that a kernel does.

The shell port stands for all five. With Jupyter's transport ``ipc`` a port is the end of a path:
the socket is ``IP-PORT``.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from snapkernel import procfs

ConnectionInfo = dict[str, str | int]
"""A connection file's entries."""

_TCP_LISTEN = "0A"
"""State of a listening socket in ``/proc/net/tcp`` (proc(5); TCP_LISTEN in the kernel)."""
_ACCEPTS = 1 << 16
"""Flag of a listening socket in ``/proc/net/unix`` (__SO_ACCEPTCON in the kernel)."""


def listeners(info: ConnectionInfo) -> list[int]:
    """Processes that hold the listening socket."""
    inode = _socket(info, "/proc/net")
    return [pid for pid in processes() if _holds(pid, inode)] if inode else []


def listens(pid: int, info: ConnectionInfo) -> bool | None:
    """Whether a process or a descendant of it holds the listening socket; ``None`` when there is
    no such socket in its network namespace."""
    inode = _socket(info, f"/proc/{pid}/net")
    if inode is None:
        return None
    return any(_holds(one, inode) for one in (pid, *procfs.descendants(pid)))


def processes() -> Iterator[int]:
    """All pids."""
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _socket(info: ConnectionInfo, folder: str) -> str | None:
    """The inode of the listening socket, in the network namespace of ``folder``."""
    ip, port = str(info.get("ip", "127.0.0.1")), int(info["shell_port"])
    if info.get("transport", "tcp") != "tcp":
        return _of_path(f"{ip}-{port}", Path(folder, "unix"))
    return _of_port(ip, port, Path(folder, "tcp")) or _of_port(ip, port, Path(folder, "tcp6"))


def _of_path(path: str, table: Path) -> str | None:
    for line in _lines(table):
        fields = line.split(None, 7)
        if fields[7:] == [path] and int(fields[3], 16) & _ACCEPTS:
            return fields[6]
    return None


def _of_port(ip: str, port: int, table: Path) -> str | None:
    for line in _lines(table):
        _, local, _, state, *_ = fields = line.split()
        address, _, number = local.partition(":")
        if state == _TCP_LISTEN and int(number, 16) == port and _is_at(address, ip):
            return fields[9]
    return None


def _lines(table: Path) -> list[str]:
    """Of a table of ``/proc/net``, without the headline."""
    with contextlib.suppress(OSError):
        return os.fsdecode(table.read_bytes()).splitlines()[1:]
    return []


def _is_at(address: str, ip: str) -> bool:
    """Whether ``address``, as words in the machine's byte order, answers at ``ip``."""
    words = [int(address[i : i + 8], 16) for i in range(0, len(address), 8)]
    listener = ipaddress.ip_address(struct.pack(f"={len(words)}I", *words))
    try:
        wanted = ipaddress.ip_address(ip)
    except ValueError:  # A host name.
        return True
    return listener == wanted or listener.is_unspecified or wanted.is_unspecified


def _holds(pid: int, inode: str) -> bool:
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as descriptors:
        for entry in descriptors:
            with contextlib.suppress(OSError):
                if os.readlink(entry.path) == f"socket:[{inode}]":
                    return True
    return False
