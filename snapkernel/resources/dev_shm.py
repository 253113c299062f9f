"""Files in ``/dev/shm`` (shm_overview(7), sem_overview(7)): memory that processes share by a name.

They look like files, but are in memory: another host does not have them, this one loses them when
it stops, and a copy that used those of its living original would disturb it. So what processes have
open or mapped there is an object of ``shared_memory``, and a restored process has a ``/dev/shm`` of
its own, a tmpfs of its mount namespace, in which these files are made again. Whatever else the
host has in ``/dev/shm`` is bound into it (``native/kernel_init.c``), as it is when the restore
begins, and is shared with the host.

Of a ``/dev/shm`` that is a restored process's own, everything is saved, used or not.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from snapkernel import procfs
from snapkernel.freeze.batch import AT_FDCWD, Batch, Cell
from snapkernel.model import Manifest, SharedFolder, SharedMemory
from snapkernel.resources import credentials
from snapkernel.resources.context import Build, Capture

KIND = "dev-shm"
PLACE = "/dev/shm"
_TMPFS = "tmpfs"


def _device(status: os.stat_result) -> str:
    return f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"


def name_of(capture: Capture, device: str, inode: int, shown: str) -> str | None:
    """A path in ``/dev/shm`` that leads to a file, which ``/proc/PID/maps`` or ``fd`` show by the
    name that it had when it was opened. sem_open(3) makes it under another name, then links it to
    its own, and it shows as deleted."""
    if not shown.startswith(f"{PLACE}/") or device not in _devices(capture):
        return None
    if _leads_to(capture, shown, device, inode):
        return shown
    folder = os.path.dirname(shown)
    if folder not in capture.shared_names:
        capture.shared_names[folder] = _names_in(capture, folder)
    name = capture.shared_names[folder].get(inode)
    return name if name and _leads_to(capture, name, device, inode) else None


def _leads_to(capture: Capture, name: str, device: str, inode: int) -> bool:
    try:
        there = os.lstat(path(capture, name))
    except OSError:
        return False
    return there.st_ino == inode and _device(there) == device


def _names_in(capture: Capture, folder: str) -> dict[int, str]:
    """What is in a folder, by inode."""
    try:
        with os.scandir(path(capture, folder)) as entries:
            return {entry.inode(): f"{folder}/{entry.name}" for entry in entries}
    except OSError:
        return {}


def path(capture: Capture, name: str) -> str:
    """Where we find what the process finds at ``name``."""
    return f"/proc/{capture.pid}/root{name}"


def _devices(capture: Capture) -> set[str]:
    """File systems in memory that are mounted at ``/dev/shm``, or a part of the host's in it."""
    if not capture.shared_devices:
        capture.shared_devices.update(
            mount.device for mount in procfs.mounts(capture.pid) if is_place(mount)
        )
    return capture.shared_devices


def is_place(mount: procfs.Mount) -> bool:
    """A mount is ``/dev/shm``, or bound into it."""
    return mount.kind == _TMPFS and (mount.place == PLACE or mount.place.startswith(f"{PLACE}/"))


def is_private(pid: int) -> bool:
    """A process has a ``/dev/shm`` of its own."""
    try:
        there, here = os.stat(f"/proc/{pid}/root{PLACE}"), os.stat(PLACE)
    except OSError:
        return False
    return there.st_dev != here.st_dev


def tell(capture: Capture) -> None:
    """That the copy has files of its own; once, and not again of one that has them already."""
    what = "files in /dev/shm"
    if not is_private(capture.pid) and all(f.object != what for f in capture.findings):
        reason = (
            "those in use are copies in a restored process, which no process outside shares with it"
        )
        capture.report(what, "replaced", reason)


def capture(capture: Capture) -> None:
    """What is there and in no use, where ``/dev/shm`` is the process's own; and all folders."""
    from snapkernel.resources import shared_memory

    names = [known.name for known in capture.objects.values() if known.kind == KIND]
    folders = {folder for name in names for folder in _folders_above(name)}
    if is_private(capture.pid):
        for name, status in _everything(capture, PLACE):
            if stat.S_ISDIR(status.st_mode):
                folders.add(name)
            elif stat.S_ISREG(status.st_mode):
                if shared_memory.named_in_utf8(capture, name):
                    inode = status.st_ino
                    shared_memory.find(capture, _device(status), inode, name, named=True)
            elif not stat.S_ISSOCK(status.st_mode):
                capture.report(f"file {name}", "lost", "is neither a regular file nor a folder")
    for name in sorted(folders):
        status = os.lstat(path(capture, name))
        folder = SharedFolder(
            path=name, mode=stat.S_IMODE(status.st_mode), owner=owner(capture, status)
        )
        capture.shared_folders.append(folder)


def _folders_above(name: str) -> Iterator[str]:
    while (name := os.path.dirname(name)) != PLACE:
        yield name


def _everything(capture: Capture, folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """All that is in the file system of the process's ``/dev/shm``, not what is bound into it."""
    own = os.stat(path(capture, PLACE)).st_dev
    for entry in os.scandir(path(capture, folder)):
        status = entry.stat(follow_symlinks=False)
        if status.st_dev == own:
            name = f"{folder}/{entry.name}"
            yield name, status
            if stat.S_ISDIR(status.st_mode):
                yield from _everything(capture, name)


def owner(capture: Capture, status: os.stat_result) -> tuple[int, int]:
    """User and group of a file, as the process sees them."""
    uid = credentials.inside(capture.pid, "uid_map", str(status.st_uid))[0]
    gid = credentials.inside(capture.pid, "gid_map", str(status.st_gid))[0]
    return uid, gid


# --- rebuild -----------------------------------------------------------------------------------


def own_names(manifest: Manifest) -> list[str]:
    """What is the restored process's own, below ``/dev/shm``; folders end with a slash."""
    files = [record.name for record in manifest.shared_memory if record.kind == KIND]
    names = [*files, *(f"{folder.path}/" for folder in manifest.shared_folders)]
    return [name.removeprefix(f"{PLACE}/") for name in names]


def size(manifest: Manifest) -> int:
    """Bytes that the new file system may hold: as many as the host's, or what is needed and as
    much again."""
    needed = sum(record.size for record in manifest.shared_memory if record.kind == KIND)
    host = os.statvfs(PLACE)
    return max(host.f_blocks * host.f_frsize, 2 * needed)


def make(batch: Batch, record: SharedMemory, fresh: Cell, note: str) -> None:
    """A new file, into ``fresh``. Its folder is there: the kernel-init has made it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    name = os.fsencode(record.name) + b"\0"
    batch.call("openat", AT_FDCWD, name, flags, 0o600, store=fresh, note=note)
    batch.call("fchown", fresh, *record.owner, optional=f"owner of {note}")


def rebuild_folders(build: Build) -> Batch:
    """Owners and modes, when everything is made that belongs into them."""
    batch = Batch("set up folders in /dev/shm")
    for folder in build.manifest.shared_folders:
        name, note = os.fsencode(folder.path) + b"\0", f"folder {folder.path}"
        batch.call("fchownat", AT_FDCWD, name, *folder.owner, 0, optional=f"owner of {note}")
        batch.call("fchmodat", AT_FDCWD, name, folder.mode, note=note)
    return batch
