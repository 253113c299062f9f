"""Files in ``/dev/shm`` (shm_overview(7), sem_overview(7)): memory that processes share by a name.

They look like files, but are in memory: another host does not have them, this one loses them when
it stops, and a copy that used those of its living original would disturb it. So what processes have
open or mapped there, or in another private folder (``private_folder``) in memory, is an object of
``shared_memory``, and is made again under its name in a folder of the restored process's own.
"""

from __future__ import annotations

import os

from snapkernel import procfs
from snapkernel.freeze.batch import AT_FDCWD, Batch, Cell
from snapkernel.model import SharedMemory
from snapkernel.resources import private_folder
from snapkernel.resources.context import Capture

KIND = "dev-shm"


def name_of(capture: Capture, device: str, inode: int, shown: str) -> str | None:
    """A path that leads to a file in memory, which ``/proc/PID/maps`` or ``fd`` show by the name
    that it had when it was opened; ``None`` for any other file.

    sem_open(3) makes it under another name, then links it to its own, and it shows as deleted."""
    if device not in _devices(capture) or not _is_in_place(capture, shown):
        return None
    if _leads_to(capture, shown, device, inode):
        return shown
    folder = os.path.dirname(shown)
    if folder not in capture.names_in_memory:
        capture.names_in_memory[folder] = _names_in(capture, folder)
    name = capture.names_in_memory[folder].get(inode)
    return name if name and _leads_to(capture, name, device, inode) else None


def _devices(capture: Capture) -> dict[str, list[str]]:
    """File systems in memory, with the private folders of which they have something."""
    if not capture.devices_in_memory:
        mounts = procfs.mounts(capture.pid)
        places = [private_folder.SHM, *(m.place for m in mounts if private_folder.is_own(m))]
        for mount in mounts:
            within = [p for p in places if private_folder.is_below(mount.place, p)]
            if mount.kind == "tmpfs" and within:
                capture.devices_in_memory.setdefault(mount.device, []).extend(within)
    return capture.devices_in_memory


def _is_in_place(capture: Capture, shown: str) -> bool:
    places = {place for found in _devices(capture).values() for place in found}
    return any(shown.startswith(f"{place}/") for place in places)


def _leads_to(capture: Capture, name: str, device: str, inode: int) -> bool:
    try:
        there = os.lstat(private_folder.path(capture, name))
    except OSError:
        return False
    return there.st_ino == inode and private_folder.device(there) == device


def _names_in(capture: Capture, folder: str) -> dict[int, str]:
    """What is in a folder, by inode."""
    try:
        with os.scandir(private_folder.path(capture, folder)) as entries:
            return {entry.inode(): f"{folder}/{entry.name}" for entry in entries}
    except OSError:
        return {}


def tell(capture: Capture, name: str) -> None:
    """That the copy has files of its own; once, and not again of one that has them already."""
    what = "files in /dev/shm"
    own = private_folder.own_places(capture.pid)
    if any(private_folder.is_below(name, place) for place in own):
        return
    if all(finding.object != what for finding in capture.findings):
        reason = "those in use are copies in a restored process, which nobody outside shares"
        capture.report(what, "replaced", reason)


# --- rebuild -----------------------------------------------------------------------------------


def make(batch: Batch, record: SharedMemory, fresh: Cell, note: str) -> None:
    """A new file, into ``fresh``. Its folder is there: the kernel-init has made it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    name = os.fsencode(record.name) + b"\0"
    batch.call("openat", AT_FDCWD, name, flags, 0o600, store=fresh, note=note)
    batch.call("fchown", fresh, *record.owner, optional=f"owner of {note}")
