"""Names of unix(7) sockets: what they are bound to, and how they are bound again.

A path leads to a socket through a file, which bind(2) makes. Whether that file still leads to the
socket its inode tells (sock_diag(7)); on overlayfs and btrfs its device would not.

Binding again, a file that nobody is bound to is replaced: it was left behind by a process that has
ended. That somebody is bound to it connect(2) tells, and a datagram socket may ask without being
noticed: EPROTOTYPE when it is a stream socket, ECONNREFUSED when nobody is there. What somebody
else has is left to him, and the socket gets another name, like ``NAME-2``.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import struct
from collections.abc import Iterator

from snapkernel.errors import BatchFailed
from snapkernel.freeze.agent import Agent
from snapkernel.freeze.batch import AT_FDCWD, Batch, Cell
from snapkernel.model import Note, UnixName
from snapkernel.resources import private_folder
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile
from snapkernel.resources.socket_diag import UnixState

LONGEST = 108
_MOST_TRIES = 10_000
_AT_SYMLINK_NOFOLLOW = 0x100
_NUMBERED = re.compile(rb"(.*-)(\d{1,6})", re.DOTALL)


def raw(name: str | bytes | None) -> bytes:
    """A name as ``getsockname`` and ``recvmsg`` give it, as bytes."""
    return os.fsencode(name) if name else b""


def text(name: bytes) -> str:
    """A name for the user: abstract ones begin with @, as in ss(8)."""
    shown = b"@" + name[1:] if name.startswith(b"\0") else name
    return shown.decode("utf-8", "backslashreplace").replace("\0", "\\0")


def own(file: OpenFile) -> bytes:
    """What a socket is bound to; empty when it has no name."""
    return raw(file.socket.getsockname())


def peer(file: OpenFile) -> bytes:
    """The name of whatever a socket is connected to; empty when it has none."""
    try:
        return raw(file.socket.getpeername())
    except OSError:
        return b""


def capture(capture: Capture, file: OpenFile, state: UnixState) -> UnixName | None:
    """The name, and the file that leads to it."""
    name = own(file)
    if not name:
        return None
    if name.startswith(b"\0"):
        return UnixName(name=name)
    pid = capture.pid if file.pid == os.getpid() else file.pid  # ours: it is on its way
    directory = "" if name.startswith(b"/") else os.readlink(f"/proc/{pid}/cwd")
    if directory:
        capture.refuse_unless_text(f"{file.subject}: directory", directory)
    there = _look(f"/proc/{pid}/{'cwd/' if directory else 'root'}{os.fsdecode(name)}")
    if there is None or there.st_ino & 0xFFFFFFFF != state.file:
        return UnixName(name=name, directory=directory)
    return UnixName(
        name=name,
        file=True,
        mode=stat.S_IMODE(there.st_mode),
        owner=(there.st_uid, there.st_gid),
        directory=directory,
        private=private_folder.is_temporary(pid, os.path.join(directory, os.fsdecode(name))),
    )


def _look(path: str) -> os.stat_result | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status if stat.S_ISSOCK(status.st_mode) else None


# --- rebuild -----------------------------------------------------------------------------------


def address(name: bytes) -> bytes:
    """``struct sockaddr_un``, as long as it must be for this name."""
    end = b"" if name.startswith(b"\0") or len(name) == LONGEST else b"\0"
    return struct.pack("=H", socket.AF_UNIX) + name + end


def alternatives(name: bytes) -> Iterator[bytes]:
    """Names for a copy: the next numbers of one that ends with a number, else ``NAME-2``."""
    match = _NUMBERED.fullmatch(name)
    stem, first = (match[1], int(match[2])) if match else (name + b"-", 1)
    for number in range(first + 1, first + _MOST_TRIES):
        end = b"%d" % number
        yield stem[: LONGEST - 1 - len(end)] + end


def take(build: Build, agent: Agent, index: int, wanted: UnixName) -> None:
    """Bind description ``index`` to its name, or to another where somebody has that.

    Raises:
        BatchFailed: it can be bound to neither.
    """
    what = f"unix socket {text(wanted.name)}"
    name = wanted.name
    result = _bind(build, agent, index, wanted, name)
    if result == -errno.EADDRINUSE and _is_left_behind(agent, wanted):
        result = _bind(build, agent, index, wanted, name, replace=True)
    for name in alternatives(wanted.name) if result == -errno.EADDRINUSE else ():
        result = _bind(build, agent, index, wanted, name)
        if result != -errno.EADDRINUSE:
            reason = f"the name is taken; it is bound to {text(name)} instead"
            build.notes.append(Note(object=what, status="replaced", reason=reason))
            break
    if result < 0:
        remedy = "make its directory" if result == -errno.ENOENT else ""
        raise BatchFailed(what, f"bind: {os.strerror(-result)}", -result, remedy)
    build.names[index] = address(name)
    _note_port(build, wanted.name, name)


def lines(wanted: UnixName) -> Iterator[str]:
    """The step in words."""
    yield f"-- bind to {text(wanted.name)}, or to another name if it is taken"


def _enter(batch: Batch, wanted: UnixName) -> None:
    if wanted.directory:
        note = f"directory {wanted.directory}"
        batch.call("chdir", os.fsencode(wanted.directory) + b"\0", note=note)


def _bind(
    build: Build,
    agent: Agent,
    index: int,
    wanted: UnixName,
    name: bytes,
    *,
    replace: bool = False,
) -> int:
    """One try; the kernel's answer."""
    batch = Batch(f"bind a unix socket to {text(name)}")
    _enter(batch, wanted)
    note = f"unix socket {text(name)}"
    path = name + b"\0"
    if replace:
        batch.call("unlinkat", AT_FDCWD, path, 0, note=note)
    packed = address(name)
    file = os.path.join(wanted.directory, os.fsdecode(name))
    if not name.startswith(b"\0") and not os.path.lexists(file):
        build.begin_file(file)
    call = batch.call("bind", build.numbers[index], packed, len(packed), check=False, note=note)
    agent.run(batch)
    assert call.result is not None
    if call.result == 0 and not name.startswith(b"\0"):
        after = Batch(f"set up the file {text(name)}")
        if wanted.file:
            after.call("fchmodat", AT_FDCWD, path, wanted.mode, note=note)
            if wanted.owner != (os.geteuid(), os.getegid()):
                owner = (*wanted.owner, _AT_SYMLINK_NOFOLLOW)
                after.call("fchownat", AT_FDCWD, path, *owner, check=False)
        else:
            after.call("unlinkat", AT_FDCWD, path, 0, note=note)
        agent.run(after)
        _note_owner(build, after, wanted, name)
    return call.result


def _note_owner(build: Build, batch: Batch, wanted: UnixName, name: bytes) -> None:
    for call in batch.calls:
        if call.name == "fchownat" and call.result:
            reason = f"its user and group {wanted.owner} cannot be set: {os.strerror(-call.result)}"
            note = Note(object=f"socket file {text(name)}", status="replaced", reason=reason)
            build.notes.append(note)


def _is_left_behind(agent: Agent, wanted: UnixName) -> bool:
    """A socket file that nobody is bound to."""
    if wanted.name.startswith(b"\0"):
        return False
    batch = Batch(f"ask who is at {text(wanted.name)}")
    _enter(batch, wanted)
    asking = Cell("asking")
    packed = address(wanted.name)
    batch.call("socket", socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0, store=asking)
    call = batch.call("connect", asking, packed, len(packed), check=False)
    batch.call("close", asking)
    agent.run(batch)
    return call.result == -errno.ECONNREFUSED and _is_socket(wanted)


def _is_socket(wanted: UnixName) -> bool:
    """Connecting to a file that is no socket is refused just the same (unix_find_bsd)."""
    path = os.path.join(wanted.directory, os.fsdecode(wanted.name))
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


def _note_port(build: Build, old: bytes, new: bytes) -> None:
    """Jupyter's ipc transport: the ports are ends of names, ``IP-PORT``."""
    info = build.manifest.jupyter or {}
    stem = f"{info.get('ip')}-".encode()
    if info.get("transport") == "ipc" and old.startswith(stem) and new.startswith(stem):
        numbers = old[len(stem) :], new[len(stem) :]
        if all(number.isdigit() for number in numbers):
            build.ports[int(numbers[0])] = int(numbers[1])
