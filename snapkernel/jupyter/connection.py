"""Connection files: which process is meant by one, and a new one for a restored kernel.

A connection file is a JSON object with ``transport``, ``ip``, five ports and ``key`` (Jupyter's
messaging protocol, "Connection files"). Facts used here: a kernel is told its file on the command
line (``-f`` is an alias that ipykernel gives to ``connection_file``), looks a relative one up in
its working directory, and listens on the file's ports for as long as it runs.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from jupyter_core.paths import jupyter_runtime_dir

from snapkernel import faults, procfs
from snapkernel.errors import CannotRestore, TargetError
from snapkernel.jupyter.listeners import ConnectionInfo, listeners, listens, processes

PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")

RESTORED_WITH = "SNAPKERNEL_CONNECTION_FILE"
"""In the environment of a restored kernel's parent, a kernel-init: its connection file."""

_SEPARATE = re.compile(r"-f|--f|--(\w+\.)?connection_file|--connection-file")
_JOINED = re.compile(r"(?:-f|--f|--(?:\w+\.)?connection_file|--connection-file)=(?P<path>.+)")
_NAMED = re.compile(r"kernel-.+\.json")
_MOST = 1 << 20  # bytes: a connection file has some hundred
_LONGEST_PID = 7  # digits: PID_MAX_LIMIT is 4194304 (<linux/threads.h>)


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


def connection_of(pid: int) -> ConnectionInfo | None:
    """The entries of the connection file by which a kernel can be reached, or ``None``.

    The command line of a restored kernel names the file that the first one was started with, on
    whose ports another may listen.
    """
    try:
        arguments, folder = _command_line(pid)
    except OSError:  # It has ended, which is somebody else's to say.
        return None
    named = find_connection_file(arguments, folder)
    for path in (_restored_with(pid), named):
        if path and (info := _read_if_any(path)) and listens(pid, info) is not False:
            return info
    # Kernels in other languages have options of their own, such as tslab's --config-path.
    others = (Path(folder, word) for word in arguments[1:] if word.endswith(".json"))
    for path in others:
        if path.is_file() and (info := _read_if_any(path)) and listens(pid, info):
            return info
    return None


def restored_with(connection_file: Path | None) -> dict[str, str]:
    """Our environment for a kernel-init, by which :func:`connection_of` finds the file again."""
    found = {name: value for name, value in os.environ.items() if name != RESTORED_WITH}
    if connection_file is not None:
        found[RESTORED_WITH] = os.path.abspath(connection_file)
    return found


def _restored_with(pid: int) -> Path | None:
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{_parent(pid)}/environ").read_bytes().split(b"\0"):
            name, _, value = os.fsdecode(entry).partition("=")
            if name == RESTORED_WITH and value:
                return Path(value)
    return None


def _command_line(pid: int) -> tuple[list[str], str]:
    """The arguments and the working directory of a process."""
    words = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")[:-1]
    return words, os.readlink(f"/proc/{pid}/cwd")


def _read_if_any(path: Path) -> ConnectionInfo | None:
    with contextlib.suppress(TargetError):
        return read_connection(path)
    return None


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


def write_connection(
    path: str | Path,
    info: ConnectionInfo,
    ports: dict[int, int],
    begin: Callable[[Path], None] = lambda path: None,
) -> None:
    """Write a connection file, private and at once: a reader sees the old one or the new one.

    Args:
        path: where; a file that is there is replaced.
        info: entries.
        ports: new port by old port. A port that is not in it stays.
        begin: is told each new name before there is a file of that name.

    Raises:
        CannotRestore: it cannot be written.
    """
    path = Path(path)
    renewed = {
        name: ports.get(value, value) if name in PORTS and isinstance(value, int) else value
        for name, value in info.items()
    }
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    begin(temporary)
    if not path.exists():
        begin(path)
    try:
        # Others may not read it: the file holds the key that signs messages.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        faults.reached("the connection file is begun")
        with open(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(renewed)))
        faults.reached("the connection file is written")
        os.replace(temporary, path)
        faults.reached("the connection file has its name")
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise _unwritable(path, error) from None
        raise


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
    pids = listeners(info) or [pid for pid, file in _kernels() if _same_file(file, path)]
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


def _kernels() -> Iterator[tuple[int, Path]]:
    """Processes that were started with a connection file, and the file."""
    for pid in processes():
        # Gone meanwhile, or another user's.
        with contextlib.suppress(OSError):
            file = find_connection_file(*_command_line(pid))
            if file is not None and pid != os.getpid():
                yield pid, file


def _without_descendants(pids: list[int]) -> list[int]:
    """A kernel's forked children hold its sockets and have its command line."""
    return [pid for pid in pids if _parent(pid) not in pids] or pids


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(procfs.stat(pid)[1])
    return 0
