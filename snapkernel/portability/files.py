"""What becomes of the files that travel with a snapshot, on the host of a restore.

Where the very file of the snapshot is, it is shared, as it is with the living original. Where there
is an equal one, it is used. Where there is none, it is written. Where there is another one, that is
never changed in silence: it is refused, unless the user has said what to do. A file that others use
as well (``CarriedFile.common``) may be another one; then it is used, and that is reported.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from snapkernel import procfs
from snapkernel.errors import CannotRestore, Finding
from snapkernel.model import CarriedFile, Manifest, Note, RegularFile
from snapkernel.resources import carried_file, file_choice, file_content
from snapkernel.resources.file_arrival import Order

MODES = ("refuse", "keep", "overwrite", "beside", "none")
"""What to do where another file stands; ``none`` is to write nothing at all."""

_JOURNALS = ("-journal", "-wal", "-shm")
"""What SQLite appends to the name of a database (https://www.sqlite.org/tempfiles.html)."""
_REMEDY = (
    "restore with --files keep (use what is here), beside (the copy gets its own), "
    "overwrite (replace what is here) or none (as if no file had travelled)"
)


@dataclass
class Arrivals:
    """What is to be done.

    Attributes:
        orders: what is to be written.
        findings: why the restore is refused.
        notes: what is not as it was.
        paths: of files that get another path, the new by the old one.
    """

    orders: list[Order] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict)

    def brings(self, path: str) -> bool:
        """There will be such a file, or such a folder, as the snapshot needs."""
        return path in self.paths or any(
            order.path == path or file_choice.is_below(order.path, path) for order in self.orders
        )

    def lines(self) -> Iterator[str]:
        """What is to be written, for the reader of a plan."""
        for order in self.orders:
            what = "replace" if order.replace else "write"
            yield f"{what} file {order.path}: {order.record.size} bytes"

    def note(self, path: str, status: str, reason: str) -> None:
        """Tell the user."""
        self.notes.append(Note(object=f"file {path}", status=status, reason=reason))

    def refuse(self, path: str, reason: str, remedy: str = _REMEDY) -> None:
        """This file stands in the way."""
        self.findings.append(Finding(f"file {path}", "refused", reason, remedy))


def decide(manifest: Manifest, mode: str = "refuse") -> Arrivals:
    """Look at the host; nothing is changed.

    Args:
        manifest: of the snapshot.
        mode: one of ``MODES``.

    Raises:
        CannotRestore: there is no such mode.
    """
    if mode not in MODES:
        raise CannotRestore(f"files {mode!r}", "is not known", f"choose from {', '.join(MODES)}")
    arrivals = Arrivals()
    if mode != "none":
        host = _Host(manifest)
        for record in manifest.carried:
            _decide(arrivals, host, record, mode)
        _refuse_stray_journals(arrivals, manifest)
        _refuse_without_room(arrivals)
    _note_short(manifest, arrivals)
    return arrivals


class _Host:
    """What is needed to judge the files of a snapshot."""

    def __init__(self, manifest: Manifest) -> None:
        self.is_same = manifest.host.boot_id == procfs.boot_id() != ""
        self.own = [process.working_directory for process in manifest.processes]
        self.own += file_choice.TEMPORARY
        self.opened = {d.file.path for d in manifest.descriptions if isinstance(d, RegularFile)} | {
            manifest.files[mapping.file].path
            for process in manifest.processes
            for mapping in process.memory.mappings
            if mapping.file is not None and mapping.shared
        }

    def may_be_made(self, path: str) -> bool:
        """Without being asked for: what was open, or is below a folder of the process and not
        hidden there."""
        if path in self.opened:
            return True
        own = any(file_choice.is_below(path, directory) for directory in self.own)
        return own and not file_choice.is_hidden(path, self.own)


def _decide(arrivals: Arrivals, host: _Host, record: CarriedFile, mode: str) -> None:
    path = record.path
    try:
        there = os.lstat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            arrivals.refuse(path, f"cannot be looked at: {error.strerror}")
        elif not host.may_be_made(path) and mode == "refuse":
            reason = "is missing here, was not open, and is outside of the directories of the "
            arrivals.refuse(path, reason + "process", "allow it with --files keep")
        else:
            _write(arrivals, record, path)
            if not arrivals.findings or arrivals.findings[-1].object != f"file {path}":
                arrivals.note(path, "written", f"was not here: {record.size} bytes were written")
        return
    reason = _difference(host, record, there)
    if not reason:
        return
    if record.common:
        arrivals.note(path, "shared", f"{reason}; the one that is here is used")
    elif mode == "refuse":
        arrivals.refuse(path, reason)
    elif mode == "keep":
        arrivals.note(path, "kept", f"{reason}; the one that is here is used")
    elif mode == "beside":
        other = _free(path, {order.path for order in arrivals.orders})
        _write(arrivals, record, other)
        arrivals.paths[path] = other
        arrivals.note(path, "replaced", f"{reason}; the one of the snapshot is {other}")
    elif stat.S_ISREG(there.st_mode):
        _write(arrivals, record, path, replace=True)
        arrivals.note(path, "written", f"{reason}; it was replaced by the one of the snapshot")
    else:
        arrivals.refuse(path, f"{reason}, and is not replaced", "restore with --files beside")


def _difference(host: _Host, record: CarriedFile, there: os.stat_result) -> str:
    """What is different; empty when it is the same file, or an equal one."""
    path = record.path
    try:
        if record.target:
            same = stat.S_ISLNK(there.st_mode) and os.readlink(path) == record.target
            return "" if same else f"is no symbolic link to {record.target} here"
        if not stat.S_ISREG(os.stat(path).st_mode):
            return "is no regular file here"
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        return f"cannot be compared with the one here: {error.strerror}"
    try:
        size = os.fstat(descriptor).st_size
        if host.is_same and record.inode and carried_file.is_same(record, descriptor):
            return ""
        if size != record.size:
            return f"has {size} bytes here, {record.size} in the snapshot"
        same = file_content.is_equal(descriptor, size, record.content)
        return "" if same else "has another content here than in the snapshot"
    except OSError as error:
        return f"cannot be compared with the one here: {error.strerror}"
    finally:
        os.close(descriptor)


def _refuse_stray_journals(arrivals: Arrivals, manifest: Manifest) -> None:
    """SQLite keeps what is needed to undo or complete a transaction in files beside the database,
    and trusts whatever it finds there: what belongs to one content of a database destroys another.
    So they are written only beside a database that is written as well, or is equal."""
    records = {record.path: record for record in manifest.carried}
    written = {order.path for order in arrivals.orders}
    for order in arrivals.orders:
        path = order.record.path
        databases = [path.removesuffix(end) for end in _JOURNALS if path.endswith(end)]
        for database in databases:
            if not order.replace and order.path == path:
                if database in written or not os.path.lexists(database):
                    continue
                if database in records and _is_equal(records[database]):
                    continue
            if order.replace and database in written:
                continue
            reason = f"belongs to the database {database} as it was, which is another one here"
            arrivals.refuse(path, reason, "put the database of the snapshot there, or overwrite it")
    for path in arrivals.paths:
        if any(path + end in records for end in _JOURNALS):
            reason = "is a database in the middle of a transaction, which is tied to its path"
            arrivals.refuse(path, reason, "move the one that is here away, or overwrite it")


def _is_equal(record: CarriedFile) -> bool:
    try:
        descriptor = os.open(record.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != record.size:
            return False
        return file_content.is_equal(descriptor, record.size, record.content)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _write(arrivals: Arrivals, record: CarriedFile, path: str, replace: bool = False) -> None:
    """It will be written, if the folder, or the first that is there above it, lets us."""
    folder = _existing(path)
    if not os.path.isdir(folder):
        arrivals.refuse(path, f"{folder} is no directory here", "make it one")
    elif not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        reason = f"would be written, and {folder} does not let us"
        arrivals.refuse(path, reason, "put it there, or restore with --files none")
    else:
        arrivals.orders.append(Order(record, path, replace))


def _existing(path: str) -> str:
    """The nearest folder above a path that is there."""
    while not os.path.lexists(path := os.path.dirname(path)):
        pass
    return path


def _free(path: str, taken: set[str]) -> str:
    number = 2
    while os.path.lexists(f"{path}-{number}") or f"{path}-{number}" in taken:
        number += 1
    return f"{path}-{number}"


def _refuse_without_room(arrivals: Arrivals) -> None:
    """Bytes by file system, against what is free there."""
    needed: dict[int, tuple[int, str]] = {}
    for order in arrivals.orders:
        folder = _existing(order.path)
        device = os.stat(folder).st_dev
        before = needed.get(device, (0, folder))
        needed[device] = before[0] + order.record.content.length, before[1]
    for size, folder in needed.values():
        there = os.statvfs(folder)
        free = there.f_bavail * there.f_frsize
        if size > free:
            reason = f"{size} bytes of files are needed, {free} are free"
            remedy = "make room, or restore with --files none"
            arrivals.findings.append(Finding(f"file system of {folder}", "refused", reason, remedy))


def _note_short(manifest: Manifest, arrivals: Arrivals) -> None:
    """A file may be open at a place that it does not reach on this host."""
    coming = {order.path for order in arrivals.orders} | arrivals.paths.keys()
    for record in _open_files(manifest):
        path = record.file.path
        if path in coming or record.position > record.file.size:
            continue
        try:
            status = os.stat(path)
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode) and status.st_size < record.position:
            reason = f"has {status.st_size} bytes here; the process is at byte {record.position}"
            arrivals.note(path, "shorter", reason)


def _open_files(manifest: Manifest) -> Sequence[RegularFile]:
    return [
        record
        for record in manifest.descriptions
        if isinstance(record, RegularFile)
        and not record.directory
        and not file_choice.is_of_kernel(record.file.path)
    ]
