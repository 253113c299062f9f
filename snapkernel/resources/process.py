"""What belongs to the process as a whole: identity, directories, limits, prctl(2) settings."""

from __future__ import annotations

import os
import resource
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from snapkernel import procfs, seccomp
from snapkernel.constants import (
    PR_GET_CHILD_SUBREAPER,
    PR_GET_DUMPABLE,
    PR_GET_THP_DISABLE,
    PR_SET_CHILD_SUBREAPER,
    PR_SET_DUMPABLE,
    PR_SET_MM,
    PR_SET_MM_MAP,
    PR_SET_THP_DISABLE,
)
from snapkernel.freeze.agent import Agent
from snapkernel.freeze.batch import AT_FDCWD, Batch, Cell, Space, Words
from snapkernel.model import Attributes, FutureLocks, MemoryLayout, Note, Zombie
from snapkernel.resources import attributes, memory_locks, private_folder, system_v
from snapkernel.resources.context import Build, Capture

_UNLIMITED = (1 << 64) - 1
_THP_EXCEPT_ADVISED = 2  # prctl(2), Linux 6.18
RLIMIT_NICE, RLIMIT_RTPRIO = 13, 14


@dataclass(frozen=True)
class Identity:
    """Ids as the process itself sees them, and where it stands in the file system."""

    pid: int
    ppid: int
    pgid: int
    sid: int
    exit_signal: int
    executable: str
    file: int
    arguments: tuple[str, ...]
    working_directory: str
    umask: int
    oom_score_adj: int


def capture_identity(capture: Capture) -> Identity:
    """Everything that /proc tells; what cannot be had again is refused."""
    pid = capture.pid
    status = capture.status
    executable = os.readlink(f"/proc/{pid}/exe")
    if executable.endswith(" (deleted)"):
        capture.refuse(
            f"executable {executable.removesuffix(' (deleted)')}",
            "was deleted or replaced while the process runs",
            "restart the kernel with the new version, or put the old one back",
        )
        file = -1
    else:
        file = capture.file(executable, os.stat(f"/proc/{pid}/exe").st_ino)
    directory = os.readlink(f"/proc/{pid}/cwd")
    if directory.endswith(" (deleted)"):
        capture.refuse(f"working directory {directory}", "was deleted", "change to one that exists")
    for what, path in (("executable", executable), ("working directory", directory)):
        capture.refuse_unless_text(what, path)
    if os.readlink(f"/proc/{pid}/root") != "/":
        capture.refuse("root directory", "was changed by chroot", "run without chroot")
    _refuse_strange(capture, status)
    raw = procfs.read(f"/proc/{pid}/cmdline").split(b"\0")
    return Identity(
        pid=procfs.innermost(status["NSpid"]),
        ppid=1 if pid in capture.orphans else _parent(status),
        pgid=procfs.innermost(status["NSpgid"]),
        sid=procfs.innermost(status["NSsid"]),
        exit_signal=max(int(procfs.stat(pid)[38 - 3]), 0),
        executable=executable,
        file=max(file, 0),
        arguments=tuple(word.decode(errors="replace") for word in raw[:-1]),
        working_directory=directory,
        umask=int(status.get("Umask", "022"), 8),
        oom_score_adj=int(procfs.text(f"/proc/{pid}/oom_score_adj")),
    )


def capture_zombie(pid: int) -> Zombie:
    """A child that has ended; its status is in ``/proc/PID/stat`` (Linux 3.5) for who may trace
    its parent."""
    status, stat = procfs.status(pid), procfs.stat(pid)
    return Zombie(
        pid=procfs.innermost(status["NSpid"]),
        ppid=_parent(status),
        pgid=procfs.innermost(status["NSpgid"]),
        sid=procfs.innermost(status["NSsid"]),
        status=int(stat[52 - 3]),
        exit_signal=max(int(stat[38 - 3]), 0),
        name=status["Name"],
    )


def _parent(status: Mapping[str, str]) -> int:
    """The parent's pid in the same pid namespace; 0 when it is not in it."""
    ppid = int(status["PPid"])
    if not ppid:
        return 0
    ids = procfs.status(ppid)["NSpid"].split()
    return int(ids[-1]) if len(ids) == len(status["NSpid"].split()) else 0


# pid, user and time namespaces are made anew on restore.
_SHARED_NAMESPACES = ("net", "ipc", "uts")


def _refuse_namespaces(capture: Capture) -> None:
    """The process must see what the restorer will see."""
    remedy = "run snapkernel inside the same container or namespace"
    for name in _SHARED_NAMESPACES:
        theirs, ours = (os.readlink(f"/proc/{pid}/ns/{name}") for pid in (capture.pid, "self"))
        if theirs != ours and not (name == "ipc" and system_v.is_private(capture.pid)):
            capture.refuse(f"{name} namespace", "is not the one of snapkernel", remedy)
    if os.readlink(f"/proc/{capture.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"):
        strange = _mounts(capture.pid) ^ _mounts(os.getpid())
        if strange:
            capture.refuse(
                "mount namespace",
                f"has other mounts than snapkernel's ({sorted(strange)[0][1]})",
                remedy,
            )


def _mounts(pid: int) -> set[tuple[str, str]]:
    """Device and place of every mount, without those that a restored process has for itself."""
    mounts = procfs.mounts(pid)
    return {
        (f"{mount.device} {mount.root}", mount.place)
        for mount in mounts
        if mount.place not in ("/proc", "/dev/pts")
        and not mount.place.startswith("/proc/")
        and private_folder.is_strange(mount, mounts)
    }


def _refuse_strange(capture: Capture, status: Mapping[str, str]) -> None:
    if capture.target is None:
        _refuse_namespaces(capture)
    if procfs.innermost(status["NSpid"]) == 1:
        capture.refuse(
            "pid 1",
            "the first process of a pid namespace cannot be saved",
            "start it below an init, such as `tini` or `docker run --init`",
        )
    if status.get("Seccomp", "0") != "0" and not seccomp.is_everybodys(capture.pid):
        capture.refuse(
            "seccomp filter",
            "a filtered process cannot be examined from inside",
            "start the process without seccomp, or run snapkernel inside the same container",
        )
    elif status.get("Seccomp", "0") != "0":
        reason = "is the container's: the copy has that of the container where it is restored"
        capture.report("seccomp filter", "replaced", reason)
    if status.get("x86_Thread_features", "").strip():
        capture.refuse(
            "shadow stack",
            f"is enabled ({status['x86_Thread_features'].strip()}) and cannot be rebuilt",
            "start the process with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off",
        )


@dataclass(frozen=True)
class Settings:
    """prctl(2) settings that only the process itself can be asked for."""

    dumpable: int
    child_subreaper: bool
    thp_disabled: bool
    thp_except_advised: bool
    attributes: Attributes
    ipc_used: system_v.Used
    locks_future_memory: FutureLocks


class Question:
    """Asks for the settings."""

    def __init__(self, batch: Batch, agent: Agent) -> None:
        """Add the calls to a batch."""
        self._dumpable = batch.call("prctl", PR_GET_DUMPABLE)
        self._subreaper = Space(bytes(4))
        batch.call("prctl", PR_GET_CHILD_SUBREAPER, self._subreaper)
        self._huge = batch.call("prctl", PR_GET_THP_DISABLE, 0, 0, 0, 0, check=False)
        self._further, self._ipc = attributes.Question(batch), system_v.Question(batch)
        self._locks = memory_locks.Question(batch, agent)

    def answer(self) -> Settings:
        """The settings, after the batch has run."""
        state = max(self._huge.result or 0, 0)
        return Settings(
            dumpable=self._dumpable.result or 0,
            child_subreaper=any(self._subreaper.data),
            thp_disabled=state > 0,
            thp_except_advised=bool(state & _THP_EXCEPT_ADVISED),
            attributes=self._further.answer(),
            ipc_used=self._ipc.answer(),
            locks_future_memory=self._locks.answer(),
        )


def capture_layout(pid: int, heap_end: int) -> MemoryLayout:
    """``/proc/PID/stat`` has all of ``struct prctl_mm_map`` but the end of the heap, which is
    that of its mapping, or its start where there is none (``heap_end`` 0)."""
    stat = procfs.stat(pid)

    def field(number: int) -> int:
        return int(stat[number - 3])

    return MemoryLayout(
        start_code=field(26),
        end_code=field(27),
        start_stack=field(28),
        start_data=field(45),
        end_data=field(46),
        start_brk=field(47),
        brk=heap_end or field(47),
        arg_start=field(48),
        arg_end=field(49),
        env_start=field(50),
        env_end=field(51),
    )


# --- rebuild -----------------------------------------------------------------------------------


def rebuild_layout(build: Build) -> Batch:
    """PR_SET_MM_MAP: where heap, stack and arguments are, auxv, and which file was executed. The
    stub's own executable must not be mapped any more (prctl(2), EBUSY)."""
    batch = Batch("tell the kernel the memory layout")
    number = build.high - 1
    executable, note = Cell("executable"), build.process.executable
    path = os.fsencode(note) + b"\0"
    batch.call("openat", AT_FDCWD, path, os.O_RDONLY, store=executable, note=note)
    batch.call("dup3", executable, number, os.O_CLOEXEC)
    batch.call("close", executable)
    layout, auxv = build.process.memory.layout, build.process.memory.auxv
    words = tuple(getattr(layout, name) for name in layout.__struct_fields__)
    structure = Words((*words, auxv), struct.pack("=II", len(auxv), number))
    batch.call("prctl", PR_SET_MM, PR_SET_MM_MAP, structure, 13 * 8, 0, note="memory layout")
    batch.call("close", number)
    return batch


def rebuild_attributes(build: Build) -> Batch:
    """Directory, umask and settings."""
    process = build.process
    batch = Batch("set process attributes")
    directory = process.working_directory
    batch.call("chdir", os.fsencode(directory) + b"\0", note=f"directory {directory}")
    batch.call("umask", process.umask)
    if process.child_subreaper:
        batch.call("prctl", PR_SET_CHILD_SUBREAPER, 1)
    if process.thp_disabled:
        flags = _THP_EXCEPT_ADVISED if process.thp_except_advised else 0
        batch.call("prctl", PR_SET_THP_DISABLE, 1, flags, 0, 0, optional="PR_SET_THP_DISABLE")
    attributes.rebuild(batch, process.attributes)
    return batch


def rebuild_dumpable(build: Build) -> Batch:
    """After the credentials, which reset it."""
    batch = Batch("set dumpable")
    if build.process.dumpable in (0, 1):
        batch.call("prctl", PR_SET_DUMPABLE, build.process.dumpable)
    return batch


def rebuild_limits(build: Build) -> Batch:
    """Limits; one that is higher than this host allows is lowered to that, and noted."""
    batch = Batch("set resource limits")
    for number, (soft, hard) in build.process.limits.items():
        _, highest = resource.getrlimit(number)
        if highest != -1 and (hard == -1 or hard > highest):
            build.notes.append(
                Note(
                    object=f"resource limit {number}",
                    status="replaced",
                    reason=f"{highest} instead of {hard}: the limit of the restoring process",
                )
            )
            hard = highest
            soft = highest if soft == -1 or soft > highest else soft
        pair = struct.pack("=QQ", soft & _UNLIMITED, hard & _UNLIMITED)
        batch.call("prlimit64", 0, number, pair, 0, note=f"resource limit {number}")
    return batch
