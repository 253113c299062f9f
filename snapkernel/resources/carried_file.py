"""Files that travel with a snapshot: found and stored; ``file_arrival`` writes them again.

Which ones is in ``file_choice``. They are opened while the processes are frozen, and read
afterwards, so that the pause is no longer for them: of a file that somebody only appends to, the
snapshot has what was there at the freeze, and every file that was changed before it was stored is
reported. (A change is one of the size or of the time of modification, which the kernel tells to
some milliseconds. What is written through a mapping cannot be noticed; that is reported as well.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from snapkernel import procfs
from snapkernel._native import ffi, lib
from snapkernel.model import CarriedFile, Note
from snapkernel.resources import file_choice, posix_queue, private_folder, stream
from snapkernel.resources.context import Capture, Saver
from snapkernel.resources.file_content import FileSource, data_runs
from snapkernel.resources.open_file import OpenFile, Table

_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_RIGHTS = 0o777
_PREFIX = "user."
_ACCESS_LIST = "system.posix_acl_access"


@dataclass
class Found:
    """A file that travels.

    Attributes:
        path: as the process sees it.
        status: at the freeze; of a file that nobody has open, when it was found.
        common: as in ``CarriedFile``.
        named: a pattern has asked for it.
        mapped: it is mapped for writing.
        descriptor: our own, once it is open.
        borrowed: it leads to the description of a process, whose position must not move.
    """

    path: str
    status: os.stat_result
    common: bool = False
    named: bool = False
    mapped: bool = False
    descriptor: int = -1
    borrowed: bool = False

    @property
    def bytes(self) -> int:
        """What it takes, without its holes."""
        return min(self.status.st_size, self.status.st_blocks * 512)


@dataclass
class Places:
    """What a process sees of the file system.

    Attributes:
        root: prepended to a path, leads to the file.
        working: the working directories.
        temporary: folders for temporary files.
    """

    root: str
    working: list[str]
    temporary: list[str]

    @property
    def own(self) -> list[str]:
        """All of them."""
        return [*self.working, *self.temporary]

    def is_own(self, path: str) -> bool:
        """Below one of them."""
        return any(file_choice.is_below(path, directory) for directory in self.own)


def places(pids: Sequence[int], root: str = "") -> Places:
    """Of processes with a common view of the file system."""
    working, temporary = [], list(file_choice.TEMPORARY)
    for pid in pids:
        working.append(os.readlink(f"/proc/{pid}/cwd"))
        variables = procfs.read(f"/proc/{pid}/environ").split(b"\0")
        named = [v[7:] for v in variables if v.startswith(b"TMPDIR=/")]
        temporary += [os.path.normpath(os.fsdecode(name)) for name in named]
    return Places(root or f"/proc/{pids[0]}/root", working, temporary)


# --- what is open ------------------------------------------------------------------------------


def capture(capture: Capture, table: Table, areas: Sequence[procfs.Area]) -> list[Found]:
    """The files that are open or mapped, and travel. Those of frozen processes are opened.

    ``areas`` are the mappings of all processes.
    """
    if not capture.choice:
        return []
    here = places(table.pids)
    expressions = [e for _, _, e in capture.choice.expressions(here.working[0])]
    logs = _logs_of_parent(table)
    found: dict[str, Found] = {}
    opened: dict[tuple[int, int], list[OpenFile]] = {}
    for file in table.files:
        if not _has_path(capture, file, table):
            continue
        opened.setdefault(_key(file.status), []).append(file)
        named = any(e.fullmatch(file.link) for e in expressions)
        if named or (capture.choice.open and (file.writable or here.is_own(file.link))):
            hidden = file_choice.is_hidden(file.link, here.own)
            log = file.writable and (min(file.numbers) <= 2 or _key(file.status) in logs)
            common = hidden or log
            one = found.setdefault(file.link, Found(file.link, file.status, common, named))
            one.common = one.common and common
        elif capture.choice.open and capture.target is None and file.link not in found:
            reason = "is only read, elsewhere than in a working or temporary directory"
            capture.report(f"file {file.link}", "shared", reason)
    programs = {(area.device, area.inode) for area in areas if "x" in area.permissions}
    for area in areas:
        if area.inode and area.name.startswith("/") and (area.device, area.inode) not in programs:
            _mapped_file(capture, area, found, here, expressions)
    kept = _affordable(capture, list(found.values()), [])
    if capture.target is None:
        for one in kept:
            capture.travels(f"file {one.path}", one.bytes, one.common)
        return kept
    return [one for one in kept if _open(capture, one, opened.get(_key(one.status), []))]


def _key(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _has_path(capture: Capture, file: OpenFile, table: Table) -> bool:
    """A regular file that will be opened again by its path."""
    if not file.is_regular or not file.status.st_nlink or file.only_path:
        return False
    if (private_folder.device(file.status), file.status.st_ino) in capture.objects:
        return False  # it is in a folder of the processes' own, and comes with that
    if posix_queue.recognises(file):
        return False
    return not file_choice.is_of_kernel(file.link) and not stream.is_stream(capture, file, table)


def _logs_of_parent(table: Table) -> list[tuple[int, int]]:
    """What the parent of all processes prints to: the log of a server, which its kernels share."""
    parent = procfs.stat(table.pids[0])[1]
    found = []
    for number in (1, 2):
        with contextlib.suppress(OSError):
            found.append(_key(os.stat(f"/proc/{parent}/fd/{number}")))
    return found


def _mapped_file(
    capture: Capture,
    area: procfs.Area,
    found: dict[str, Found],
    here: Places,
    expressions: Sequence[re.Pattern[str]],
) -> None:
    """A file that is mapped, and need not be open any more; no program or library."""
    changes = area.shared and "w" in area.permissions
    named = any(e.fullmatch(area.name) for e in expressions)
    wanted = capture.choice.open and (changes or here.is_own(area.name))
    if not (wanted or named) or file_choice.is_of_kernel(area.name):
        return
    if (area.device, area.inode) in capture.objects:
        return
    try:
        status = os.stat(here.root + area.name, follow_symlinks=False)
    except OSError:
        return
    if status.st_ino != area.inode or not stat.S_ISREG(status.st_mode):
        return
    common = file_choice.is_hidden(area.name, here.own)
    one = found.setdefault(area.name, Found(area.name, status, common, named))
    one.mapped = one.mapped or changes


def _affordable(capture: Capture, found: Sequence[Found], before: Sequence[Found]) -> list[Found]:
    """The smallest first, until they are, with those before, too many bytes; what is left is
    reported."""
    left = file_choice.MOST - sum(one.bytes for one in before if not one.named)
    kept = []
    for one in sorted(found, key=lambda one: (not one.named, one.bytes)):
        if not one.named:
            if one.bytes > left:
                reason = (
                    f"does not travel: with its {one.bytes} bytes there would be more than "
                    f"{file_choice.MOST} of files that nobody has asked for by a pattern"
                )
                capture.report(f"file {one.path}", "left", reason)
                continue
            left -= one.bytes
        kept.append(one)
    return kept


def _open(capture: Capture, one: Found, files: Sequence[OpenFile]) -> bool:
    """A descriptor to read it by, of our own; if there can be none, that is reported. ``files`` are
    the descriptions of it that the processes have."""
    leased = [f for f in files if any("LEASE" in line for _, line in f.locks)]
    try:
        if leased:
            # Opening it would break the lease; so would our descriptor keep it from ending.
            readable = [f for f in files if f.readable]
            if not readable:
                raise OSError(errno.EACCES, "it has a lease, and is open for writing only")
            one.descriptor, one.borrowed = os.dup(readable[0].descriptor), True
        elif files:
            one.descriptor = os.open(f"/proc/self/fd/{files[0].descriptor}", _OPEN)
        else:
            root = f"/proc/{capture.pid}/root"
            one.descriptor = os.open(root + one.path, _OPEN | os.O_NOFOLLOW)
            if not os.path.samestat(os.fstat(one.descriptor), one.status):
                raise OSError(errno.ESTALE, "another file stands at its path now")
    except OSError as error:
        _leave(capture, one.path, error)
        return False
    return True


def _leave(capture: Capture, path: str, error: OSError) -> None:
    capture.report(f"file {path}", "left", f"does not travel: {error.strerror}")


# --- what is not open --------------------------------------------------------------------------


def search(capture: Capture, here: Places, began: float, open_now: Sequence[Found]) -> list[Found]:
    """The files that nobody has open, and which were asked for.

    ``began`` is when the first process began, in seconds since 1970. Of a change it counts when it
    was made (the time of the last change of status, which programs cannot set), so that what was
    unpacked or downloaded with its old times is found.
    """
    choice, directory = capture.choice, here.working[0]
    paths = {one.path for one in open_now}
    found: dict[str, Found] = {}
    for pattern, start, expression in choice.expressions(directory):
        fits = any(expression.fullmatch(path) for path in paths)
        listed = file_choice.walk(here.root, start) if os.path.isdir(here.root + start) else ()
        for path, status in listed:
            if expression.fullmatch(path):
                fits = True
                if path not in paths:
                    found[path] = Found(path, status, named=True)
        if not fits:
            capture.report(f"files {pattern}", "left", "there is none")
    for start in dict.fromkeys(here.working) if choice.written else ():
        if start == "/":
            reason = "the working directory is the root directory: ask for files by patterns"
            capture.report("files written", "left", reason)
            continue
        for path, status in file_choice.walk(here.root, start):
            if file_choice.is_hidden(path, [start]) or "/__pycache__/" in path:
                continue
            if status.st_ctime >= began and path not in found and path not in paths:
                found[path] = Found(path, status)
    if len(found) > file_choice.MOST_FILES:
        reason = f"{len(found)} files are more than the {file_choice.MOST_FILES} that can travel"
        capture.report("files", "left", reason)
        return []
    kinds = [one for one in found.values() if _is_kind(capture, one)]
    return _affordable(capture, kinds, open_now)


def _is_kind(capture: Capture, one: Found) -> bool:
    """Regular files and symbolic links travel; if others were asked for, that is reported."""
    if stat.S_ISREG(one.status.st_mode) or stat.S_ISLNK(one.status.st_mode):
        return True
    if one.named:
        capture.report(f"file {one.path}", "left", "is no regular file and no symbolic link")
    return False


def began(pid: int) -> float:
    """When a process was started, in seconds since 1970, to a tick (proc_pid_stat(5))."""
    tick = os.sysconf("SC_CLK_TCK")
    since_boot = (int(procfs.stat(pid)[22 - 3]) - 1) / tick
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot


# --- storing -----------------------------------------------------------------------------------


@dataclass
class Stored:
    """What has become of the files.

    Attributes:
        records: of those that travel.
        notes: what has changed meanwhile.
    """

    records: list[CarriedFile] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    def note(self, path: str, reason: str, status: str = "changed") -> None:
        """Tell the user."""
        self.notes.append(Note(object=f"file {path}", status=status, reason=reason))


def store(found: Sequence[Found], root: str, save: Saver, froze_ns: int, runs_on: bool) -> Stored:
    """Store the contents; ``root`` leads to the files that are not open.

    Args:
        found: the files; their descriptors are closed.
        root: prepended to a path, leads to the file.
        save: into the store.
        froze_ns: when the processes stood still, in nanoseconds since 1970.
        runs_on: they do no more.
    """
    stored = Stored()
    links: dict[tuple[int, int], str] = {}
    symbolic = {one.path for one in found if stat.S_ISLNK(one.status.st_mode)}
    for one in found:
        try:
            if not _is_text(stored, one.path):
                continue
            was_open = one.descriptor >= 0
            if one.path in symbolic:
                target = os.readlink(root + one.path)
                if _is_text(stored, one.path, target):
                    stored.records.append(_link(one, target))
                continue
            if any(file_choice.is_below(one.path, link) for link in symbolic):
                stored.note(one.path, "does not travel: it is reached by a link that does", "left")
                continue
            if was_open or _open_later(stored, one, root, froze_ns):
                stored.records.append(_record(stored, one, save, runs_on, froze_ns, was_open))
            else:
                continue
            first = links.setdefault(_key(one.status), one.path)
            if first != one.path:
                reason = f"is the same file as {first}; a restore that has to makes two of them"
                stored.note(one.path, reason)
        except OSError as error:
            stored.note(one.path, f"does not travel: {error.strerror}", "left")
        finally:
            close(one)
    return stored


def close(one: Found) -> None:
    """Let go of it."""
    if one.descriptor >= 0:
        os.close(one.descriptor)
        one.descriptor = -1


def _is_text(stored: Stored, path: str, target: str = "") -> bool:
    try:
        (path + target).encode()
    except UnicodeEncodeError:
        readable = os.fsencode(path).decode("utf-8", "backslashreplace")
        stored.note(readable, "does not travel: its name or target is not UTF-8", "left")
        return False
    return True


def _open_later(stored: Stored, one: Found, root: str, froze_ns: int) -> bool:
    """Open what nobody had open; not if it did not exist at the freeze."""
    one.descriptor = os.open(root + one.path, _OPEN | os.O_NOFOLLOW)
    one.status = os.fstat(one.descriptor)
    if not stat.S_ISREG(one.status.st_mode):
        raise OSError(errno.ESTALE, "something else stands at its path now")
    return _born(one.descriptor) <= froze_ns


def _record(
    stored: Stored, one: Found, save: Saver, runs_on: bool, froze_ns: int, was_open: bool
) -> CarriedFile:
    descriptor, before = one.descriptor, one.status
    source = _Reading(descriptor)
    if one.borrowed:
        runs = [(0, before.st_size)] if before.st_size else []
    else:
        runs = data_runs(descriptor, before.st_size)
    content = save(source, runs)
    if source.error is not None:
        raise source.error
    after = os.fstat(descriptor)
    if after.st_size != before.st_size or after.st_mtime_ns != before.st_mtime_ns:
        reason = f"was written to while it was stored: what was appended to its {before.st_size} "
        reason += "bytes is not in the snapshot, what was changed in them may be"
        stored.note(one.path, reason)
    elif not was_open and before.st_mtime_ns > froze_ns:
        stored.note(one.path, "was written to between the freeze and its being stored")
    elif one.mapped and runs_on:
        reason = "is mapped for writing: what was written to it while it was stored may be in it"
        stored.note(one.path, reason)
    mode = stat.S_IMODE(before.st_mode)
    if mode & ~_RIGHTS:
        stored.note(one.path, f"of its mode {mode:o} only the last three digits travel")
    return CarriedFile(
        path=one.path,
        size=before.st_size,
        mode=mode & _RIGHTS,
        owner=(before.st_uid, before.st_gid),
        mtime_ns=before.st_mtime_ns,
        device=before.st_dev,
        inode=before.st_ino,
        born_ns=_born(descriptor),
        attributes=_attributes(stored, one),
        common=one.common,
        content=content,
    )


class _Reading(FileSource):
    """A file that perhaps cannot be read, which must not be the end of the snapshot."""

    error: OSError | None = None

    def read_into(self, runs: Sequence[tuple[int, int]], buffer: memoryview) -> None:
        """Fill the buffer, with zeros where that fails."""
        try:
            super().read_into(runs, buffer)
        except OSError as error:
            self.error = error
            buffer[:] = bytes(len(buffer))


def _link(one: Found, target: str) -> CarriedFile:
    status = one.status
    return CarriedFile(
        path=one.path,
        size=0,
        mode=_RIGHTS,
        owner=(status.st_uid, status.st_gid),
        mtime_ns=status.st_mtime_ns,
        target=target,
    )


def _attributes(stored: Stored, one: Found) -> dict[str, bytes]:
    """Those of the user. Access lists are of users that another host may not have."""
    found: dict[str, bytes] = {}
    try:
        names = os.listxattr(one.descriptor)
        if _ACCESS_LIST in names:
            stored.note(one.path, "its access control list (acl(5)) does not travel")
        for name in sorted(names):
            if name.startswith(_PREFIX) and _is_utf8(name):
                found[name] = os.getxattr(one.descriptor, name)
    except OSError:
        return {}  # the file system has none
    size = sum(len(name.encode()) + len(value) for name, value in found.items())
    if size > file_choice.MOST_ATTRIBUTES:
        stored.note(one.path, f"its attributes, of {size} bytes, do not travel")
        return {}
    return found


def _is_utf8(name: str) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in name)


def _born(descriptor: int) -> int:
    """When the file was made, in nanoseconds since 1970; 0 when that is not known."""
    answer = ffi.new("int64_t *")
    return int(answer[0]) if lib.sk_born(descriptor, answer) == 0 and answer[0] > 0 else 0


def is_same(record: CarriedFile, descriptor: int) -> bool:
    """Whether an open file of the host of the snapshot is this very one, whatever it holds now."""
    status = os.fstat(descriptor)
    place = (status.st_dev, status.st_ino, _born(descriptor))
    return place == (record.device, record.inode, record.born_ns)
