"""Connection files: which process is meant by one, and a new one for a restored kernel.

A connection file is a JSON object with ``transport``, ``ip``, five ports and ``key`` (Jupyter's
messaging protocol, "Connection files"). Facts used here: a kernel is told its file on the command
line (``-f`` is an alias that ipykernel gives to ``connection_file``), looks a relative one up in
its working directory, and listens on the file's ports for as long as it runs.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import struct
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from jupyter_core.paths import jupyter_runtime_dir

from snapkernel.errors import CannotRestore, TargetError

ConnectionInfo = dict[str, str | int]
"""A connection file's entries."""

PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")

_SEPARATE = re.compile(r"-f|--f|--(\w+\.)?connection_file|--connection-file")
_JOINED = re.compile(r"(?:-f|--f|--(?:\w+\.)?connection_file|--connection-file)=(?P<path>.+)")
_NAMED = re.compile(r"kernel-.+\.json")
_MOST = 1 << 20  # bytes: a connection file has some hundred
_LONGEST_PID = 7  # digits: PID_MAX_LIMIT is 4194304 (<linux/threads.h>)
_TCP_LISTEN = "0A"
"""State of a listening socket in ``/proc/net/tcp`` (proc(5); TCP_LISTEN in the kernel)."""


def find_connection_file(arguments: Sequence[str], working_directory: str | Path) -> Path | None:
    """The connection file that a kernel was started with.

    Args:
        arguments: the kernel's command line.
        working_directory: of the kernel, for a relative path.

    Returns:
        An absolute path, which need not exist any more, or ``None`` for a process that was not
        started as a kernel.
    """
    found = _named_by_option(arguments) or _named_by_file_name(arguments)
    return Path(os.path.normpath(Path(working_directory, found))) if found else None


def _named_by_option(arguments: Sequence[str]) -> str | None:
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if match := _JOINED.fullmatch(argument):
            argument, following = "-f", match["path"]
        if _SEPARATE.fullmatch(argument) and following.endswith(".json"):
            return following
    return None


def _named_by_file_name(arguments: Sequence[str]) -> str | None:
    """Kernels in other languages take the file as a plain argument: it is their last one."""
    last = arguments[-1] if arguments else ""
    return last if _NAMED.fullmatch(os.path.basename(last)) else None


def read_connection(path: str | Path) -> ConnectionInfo:
    """Read a connection file.

    Returns:
        Its texts and whole numbers, which is all that Jupyter's protocol puts there; entries of
        other types are somebody's own and left out.

    Raises:
        TargetError: it cannot be read or is no connection file.
    """
    try:
        with open(path, "rb") as file:
            entries = msgspec.json.decode(file.read(_MOST), type=dict[str, object])
    except OSError as error:
        raise TargetError(
            f"connection file {path}", error.strerror or str(error), "name an existing file"
        ) from None
    except (ValueError, RecursionError) as error:
        raise TargetError(
            f"connection file {path}", f"it is not a JSON object: {error}", "name another file"
        ) from None
    info: ConnectionInfo = {
        name: value
        for name, value in entries.items()
        if isinstance(value, str | int) and not isinstance(value, bool)
    }
    if missing := [name for name in PORTS if not isinstance(info.get(name), int)]:
        raise TargetError(
            f"connection file {path}",
            f"it has no {', '.join(missing)}",
            "name a connection file of a Jupyter kernel",
        )
    return info


def write_connection(path: str | Path, info: ConnectionInfo, ports: dict[int, int]) -> None:
    """Write a connection file, private and at once: a reader sees the old one or the new one.

    Args:
        path: where; a file that is there is replaced.
        info: entries.
        ports: new port by old port. A port that is not in it stays.

    Raises:
        CannotRestore: it cannot be written.
    """
    path = Path(path)
    renewed = {
        name: ports.get(value, value) if name in PORTS and isinstance(value, int) else value
        for name, value in info.items()
    }
    try:
        # mkstemp creates with mode 0600: the file holds the key that signs messages.
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        with open(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(renewed)))
        os.replace(temporary, path)
    except OSError as error:
        os.unlink(temporary)
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> CannotRestore:
    return CannotRestore(
        f"connection file {path}",
        f"it cannot be written: {error.strerror}",
        "name a place that can be written with --connection-file",
    )


def resolve_target(text: str) -> int:
    """The pid that a user means.

    Args:
        text: a pid, a Jupyter connection file, or a kernel id (or an unambiguous part of one).

    Raises:
        TargetError: no running process, or more than one, is meant.
    """
    if text.isascii() and text.isdecimal():
        if len(text.lstrip("0")) > _LONGEST_PID:
            raise TargetError(f"process {text[:20]}", "there is no such process", "give a pid")
        return int(text)
    path = Path(text)
    if "/" in text or text.endswith(".json") or path.is_file():
        return _kernel_of_file(path.absolute())
    file = Path(jupyter_runtime_dir(), f"kernel-{text}.json")
    return _kernel_of_file(file) if file.is_file() else _kernel_of_id(text)


def _kernel_of_file(path: Path) -> int:
    info = read_connection(path)
    # Who listens there is the kernel, whatever its command line says: that of a restored kernel
    # names the file it was first started with.
    pids = _listening(info) or [pid for pid, file in _kernels() if _same_file(file, path)]
    if not pids:
        raise TargetError(
            f"connection file {path}",
            "no running kernel that you may look at belongs to it",
            "give the pid of the kernel, and run snapkernel as the kernel's user",
        )
    return _only(f"connection file {path}", _without_descendants(pids))


def _kernel_of_id(text: str) -> int:
    if not text:
        raise TargetError("kernel ''", "an empty name means no kernel", "give a pid")
    found = {pid: file for pid, file in _kernels() if text in file.stem.removeprefix("kernel-")}
    if not found:
        raise TargetError(
            f"kernel {text!r}",
            "it is no pid, no connection file, and no running kernel that you may look at has "
            "that id",
            "give the pid of the kernel, and run snapkernel as the kernel's user",
        )
    files = set(found.values())
    if len(files) == 1 and (file := files.pop()).is_file():
        return _kernel_of_file(file)
    return _only(f"kernel {text!r}", _without_descendants(list(found)))


def _only(object: str, pids: Sequence[int]) -> int:
    if len(pids) > 1:
        raise TargetError(
            object, f"it means several processes: {', '.join(map(str, pids))}", "give one pid"
        )
    return pids[0]


def _same_file(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _kernels() -> Iterator[tuple[int, Path]]:
    """Processes that were started with a connection file, and the file."""
    for pid in _processes():
        # Gone meanwhile, or another user's.
        with contextlib.suppress(OSError):
            arguments = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")[:-1]
            file = find_connection_file(arguments, os.readlink(f"/proc/{pid}/cwd"))
            if file is not None and pid != os.getpid():
                yield pid, file


def _listening(info: ConnectionInfo) -> list[int]:
    """Processes that hold the socket that listens on the shell port."""
    if info.get("transport", "tcp") != "tcp":
        return []
    inode = _listener(str(info.get("ip", "127.0.0.1")), int(info["shell_port"]))
    return [pid for pid in _processes() if _holds(pid, f"socket:[{inode}]")] if inode else []


def _listener(ip: str, port: int) -> str | None:
    """The inode of the socket that listens on an address of this host."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(table).read_text().splitlines()[1:]:
                _, local, _, state, *_ = fields = line.split()
                address, _, number = local.partition(":")
                if state == _TCP_LISTEN and int(number, 16) == port and _is_at(address, ip):
                    return fields[9]
    return None


def _is_at(address: str, ip: str) -> bool:
    """Whether ``address``, as words in the machine's byte order, answers at ``ip``."""
    words = [int(address[i : i + 8], 16) for i in range(0, len(address), 8)]
    listener = ipaddress.ip_address(struct.pack(f"={len(words)}I", *words))
    try:
        wanted = ipaddress.ip_address(ip)
    except ValueError:  # A host name.
        return True
    return listener == wanted or listener.is_unspecified or wanted.is_unspecified


def _holds(pid: int, link: str) -> bool:
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as descriptors:
        for entry in descriptors:
            with contextlib.suppress(OSError):
                if os.readlink(entry.path) == link:
                    return True
    return False


def _without_descendants(pids: list[int]) -> list[int]:
    """A kernel's forked children hold its sockets and have its command line."""
    return [pid for pid in pids if _parent(pid) not in pids] or pids


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        return int(stat.rpartition(")")[2].split()[1])
    return 0
