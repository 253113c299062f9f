"""Folders of which a restored process has its own: tmpfs mounts of its mount namespace.

Two processes cannot both have a file at one path. Where a copy beside its living original must not
share what is there, the kernel-init (``native/kernel_init.c``) mounts a file system in memory over
the folder and binds the host's files into it, as they are when the restore begins, but for those
that will be the copy's own. Where nobody has the names any more, it is not needed. Such folders are

- ``/dev/shm``, where processes share memory by names (``dev_shm``);
- temporary folders, as mkdtemp(3) makes them, that have sockets of the snapshot in them, like those
  of Python's multiprocessing: nobody but the tree is meant to find these by their names.

What is saved of them, and is not sockets, is objects of ``shared_memory``: of ``/dev/shm`` what is
in use, and what has the pid of a process of the snapshot in its name, as files on their way from
one to another have it (PyTorch's tensors, joblib's arrays); of folders that are a restored
process's own already, everything, used or not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
from collections.abc import Iterator

from snapkernel import procfs
from snapkernel.freeze.batch import AT_FDCWD, Batch
from snapkernel.model import (
    Manifest,
    SharedFolder,
    UnixDatagram,
    UnixListener,
    UnixName,
    UnixSocket,
)
from snapkernel.resources import credentials
from snapkernel.resources.context import Build, Capture

SHM = "/dev/shm"
_SOURCE = "snapkernel"
"""What these mounts are made of, says ``/proc/PID/mountinfo``."""


def is_own(mount: procfs.Mount) -> bool:
    """A mount was made for a restored process."""
    return mount.kind == "tmpfs" and mount.source == _SOURCE


def is_strange(mount: procfs.Mount, mounts: list[procfs.Mount]) -> bool:
    """A mount is not one of these, or bound into one."""
    places = [other.place for other in mounts if is_own(other)]
    return not any(is_below(mount.place, place) for place in (SHM, *places))


def is_below(path: str, place: str) -> bool:
    """A path is a place, or in it."""
    return path == place or path.startswith(f"{place}/")


def is_temporary(pid: int, name: str) -> bool:
    """A file is in a temporary folder of its user alone.

    mkdtemp(3) gives it a mode; that it is where temporary files are the sticky bit tells, or the
    environment that the process began with.
    """
    folder = os.path.dirname(name)
    above = os.path.dirname(folder)
    try:
        own, outer = (os.lstat(f"/proc/{pid}/root{one}") for one in (folder, above))
    except OSError:
        return False
    if not stat.S_ISDIR(own.st_mode) or own.st_mode & 0o077:
        return False
    return bool(outer.st_mode & stat.S_ISVTX) or above in _named_by_environment(pid)


def _named_by_environment(pid: int) -> set[str]:
    variables = (word.partition(b"=") for word in procfs.read(f"/proc/{pid}/environ").split(b"\0"))
    return {
        os.path.normpath(os.fsdecode(value))
        for name, _, value in variables
        if name in (b"TMPDIR", b"TEMP", b"TMP") and value.startswith(b"/")
    }


def device(status: os.stat_result) -> str:
    """``major:minor`` as in ``/proc/PID/maps``."""
    return f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"


def path(capture: Capture, name: str) -> str:
    """Where we find what the process finds at ``name``."""
    return f"/proc/{capture.pid}/root{name}"


def owner(capture: Capture, status: os.stat_result) -> tuple[int, int]:
    """User and group of a file, as the process sees them."""
    uid = credentials.inside(capture.pid, "uid_map", str(status.st_uid))[0]
    gid = credentials.inside(capture.pid, "gid_map", str(status.st_gid))[0]
    return uid, gid


def own_places(pid: int) -> list[str]:
    """Where a process has folders of its own."""
    return [mount.place for mount in procfs.mounts(pid) if is_own(mount)]


def capture(capture: Capture, pids: set[int]) -> None:
    """When all that is in use is known: the rest of what is the processes' own, and all folders.

    ``pids`` are as they see themselves.
    """
    places = set(own_places(capture.pid))
    for place in sorted(places):
        _capture_everything(capture, place)
    if SHM not in places:
        _capture_by_pid(capture, pids)
    places |= {place for place in map(_place_of_socket, capture.descriptions) if place}
    names = [known.name for known in capture.objects.values() if known.kind == "dev-shm"]
    if any(is_below(name, SHM) for name in (*names, *capture.private_folders)):
        places.add(SHM)
    for name in names:
        capture.private_folders.update(_folders_above(name, places))
    for name in sorted(capture.private_folders | places):
        status = os.lstat(path(capture, name))
        mode, owners = stat.S_IMODE(status.st_mode), owner(capture, status)
        folder = SharedFolder(path=name, place=name in places, mode=mode, owner=owners)
        capture.shared_folders.append(folder)


def _place_of_socket(record: object) -> str:
    name = name_of_socket(record)
    return os.path.dirname(_whole(name)) if name is not None and name.private else ""


def name_of_socket(record: object) -> UnixName | None:
    """The name of a description, where it is a socket that has one."""
    return record.name if isinstance(record, UnixSocket | UnixListener | UnixDatagram) else None


def _whole(name: UnixName) -> str:
    return os.path.normpath(os.path.join(name.directory, os.fsdecode(name.name)))


def _folders_above(name: str, places: set[str]) -> Iterator[str]:
    while (name := os.path.dirname(name)) not in places and name != "/":
        yield name


def _capture_everything(capture: Capture, place: str) -> None:
    """What is in a folder of the process's own, used or not."""
    own = os.stat(path(capture, place)).st_dev
    for name, status in _everything(capture, place, own):
        _capture_one(capture, name, status)


def _capture_one(capture: Capture, name: str, status: os.stat_result) -> None:
    from snapkernel.resources import shared_memory

    if stat.S_ISDIR(status.st_mode):
        capture.private_folders.add(name)
    elif stat.S_ISREG(status.st_mode):
        if shared_memory.named_in_utf8(capture, name):
            shared_memory.find(capture, device(status), status.st_ino, name, named=True)
    elif not stat.S_ISSOCK(status.st_mode):
        capture.report(f"file {name}", "lost", "is neither a regular file nor a folder")


def _capture_by_pid(capture: Capture, pids: set[int]) -> None:
    """What the user has in the host's ``/dev/shm`` under a name with the pid of a process."""
    user = os.stat(f"/proc/{capture.pid}").st_uid
    try:
        own = os.stat(path(capture, SHM)).st_dev
        with os.scandir(path(capture, SHM)) as entries:
            found = [entry for entry in entries if pids & set(_numbers(entry.name))]
    except OSError:
        return
    for entry in found:
        name = f"{SHM}/{entry.name}"
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        if status.st_uid == user and status.st_dev == own:
            _capture_one(capture, name, status)
            if stat.S_ISDIR(status.st_mode):
                for inner, found_there in _everything(capture, name, own):
                    _capture_one(capture, inner, found_there)


def _numbers(name: str) -> list[int]:
    """Those that stand by themselves: random names have digits among their letters."""
    alone = re.findall(r"(?<![0-9A-Za-z])[0-9]{1,9}(?![0-9A-Za-z])", name)
    return [int(digits) for digits in alone]


def _everything(capture: Capture, folder: str, own: int) -> Iterator[tuple[str, os.stat_result]]:
    """All that is in a file system, not what is bound into it."""
    with os.scandir(path(capture, folder)) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            if status.st_dev == own:
                name = f"{folder}/{entry.name}"
                yield name, status
                if stat.S_ISDIR(status.st_mode):
                    yield from _everything(capture, name, own)


# --- rebuild -----------------------------------------------------------------------------------


def arguments(manifest: Manifest) -> list[str]:
    """What the kernel-init is told: which folders must be the process's own here, and what will be
    its own in them (names of folders end with a slash)."""
    names = [record.name for record in manifest.shared_memory if record.kind == "dev-shm"]
    names += [f"{folder.path}/" for folder in manifest.shared_folders if not folder.place]
    sockets = _sockets(manifest)
    words = []
    for place in manifest.shared_folders:
        if place.place and (
            any(is_below(name, place.path) for name in names)
            or any(is_below(name, place.path) and _is_taken(name) for name in sockets)
        ):
            options = f"mode={place.mode:o},size={_size(manifest)}"
            words += ["--folder", place.path, "--options", options]
    return [*words, *(word for name in (*names, *sockets) for word in ("--own", name))]


def make_missing(manifest: Manifest) -> None:
    """Make temporary folders that are gone, where the user may; a name that cannot be had then is
    told by whoever wants it."""
    for place in manifest.shared_folders:
        if place.place:
            with contextlib.suppress(OSError):
                os.mkdir(place.path, 0o700)


def _sockets(manifest: Manifest) -> list[str]:
    found = filter(None, map(name_of_socket, manifest.descriptions))
    return [_whole(name) for name in found if name.private]


def _is_taken(path: str) -> bool:
    """Somebody is bound to a path: where nobody is, connecting is refused (see ``unix_name``)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(path)
        except OSError as error:
            return error.errno == errno.EPROTOTYPE
    return True


def _size(manifest: Manifest) -> int:
    """Bytes that a new file system may hold: as many as the host's /dev/shm, or what is needed and
    as much again."""
    needed = sum(record.size for record in manifest.shared_memory if record.kind == "dev-shm")
    host = os.statvfs(SHM)
    return max(host.f_blocks * host.f_frsize, 2 * needed)


def rebuild(build: Build) -> Batch:
    """Owners and modes, when everything is made that belongs into them."""
    batch = Batch("set up private folders")
    for folder in build.manifest.shared_folders:
        if folder.place and not is_below(folder.path, SHM):
            continue  # one that is not mounted here is as it is
        name, note = os.fsencode(folder.path) + b"\0", f"folder {folder.path}"
        batch.call("fchownat", AT_FDCWD, name, *folder.owner, 0, optional=f"owner of {note}")
        batch.call("fchmodat", AT_FDCWD, name, folder.mode, note=note)
    return batch
