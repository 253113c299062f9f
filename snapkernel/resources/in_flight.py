"""Descriptors on their way: sent through a unix(7) socket (SCM_RIGHTS) and not received yet.

Whoever looks at such a message gets descriptors of his own to the same descriptions, so these are
described like any other. The process may have no number for one.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass

from snapkernel import procfs
from snapkernel.resources.context import Capture
from snapkernel.resources.open_file import OpenFile, Table, find_same

_CANNOT = {"anon_inode:[eventpoll]": "an epoll on its way to be received cannot be saved"}

_REMEDY = "receive it before the snapshot"


@dataclass
class InFlight(OpenFile):
    """A description that is on its way; its number and process are our own.

    Attributes:
        carrier: names the socket that it is in.
    """

    carrier: str = ""

    @property
    def subject(self) -> str:
        """How to name it to the user."""
        link = self.link.encode(errors="backslashreplace").decode()
        return f"descriptor on its way in {self.carrier} ({link})"


def adopt(capture: Capture, table: Table, descriptor: int, carrier: OpenFile) -> int:
    """Index of the description that a descriptor of ours refers to; the table owns the descriptor
    from now on."""
    pid = os.getpid()
    link = os.readlink(f"/proc/self/fd/{descriptor}")
    info = procfs.text(f"/proc/self/fdinfo/{descriptor}")
    flags = int(info.partition("flags:")[2].split(None, 1)[0], 8)
    status = os.fstat(descriptor)
    similar = table.similar.setdefault((link, status.st_ino, flags & ~os.O_CLOEXEC), [])
    position, same = find_same(pid, similar, descriptor)
    if same is not None:
        os.close(descriptor)
        return same.index
    fresh = InFlight(
        len(table.files), pid, [descriptor], link, info, status, descriptor, carrier=carrier.subject
    )
    table.files.append(fresh)
    similar.insert(position, fresh)
    if link in _CANNOT:
        capture.refuse(fresh.subject, _CANNOT[link], _REMEDY)
    elif "lock:" in info:
        capture.refuse(fresh.subject, "is locked, which cannot be saved", _REMEDY)
    elif fcntl.fcntl(descriptor, fcntl.F_GETOWN):
        capture.refuse(fresh.subject, "sends signals (F_SETOWN), which cannot be saved", _REMEDY)
    return fresh.index
