"""What snapkernel needs of a host, tried one by one as this user.

Sources: ptrace(2) and the kernel's Documentation/admin-guide/LSM/Yama.rst, pidfd_getfd(2) (Linux
5.6), kcmp(2), proc(5), namespaces(7), clone(2) on set_tid (Linux 5.5),
PAGEMAP_SCAN (Linux 6.7, Documentation/admin-guide/mm/pagemap.rst), userfaultfd(2).
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from snapkernel import arch, procfs, seccomp
from snapkernel._native import lib
from snapkernel.errors import SnapkernelError
from snapkernel.freeze import tracing
from snapkernel.freeze.agent import LIBEXEC
from snapkernel.freeze.target import Memory
from snapkernel.thaw.namespaces import PARTS, PROC, part_of
from snapkernel.yama import REMEDIES, forbids

OLDEST_LINUX = (5, 15)
PAGEMAP_SCAN_LINUX = (6, 7)
CAP_SYS_PTRACE, CAP_SYS_ADMIN = 19, 21
PATIENCE = 20.0
"""Seconds to wait for a helper process."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        status: ``ok``, ``limited`` (not needed, but something is slower or left out without it)
            or ``missing``.
        detail: what was found.
        remedy: what to do about it.
    """

    name: str
    status: str
    detail: str = ""
    remedy: str = ""


def host_checks() -> Iterator[Check]:
    """All checks but those of the store and the canary."""
    yield linux()
    yield architecture()
    with _helper() as pid:
        yield attaching(pid)
        yield yama()
        yield descriptors(pid)
        yield comparing(pid)
        yield memory(pid)
    yield page_scanner()
    yield from namespaces()
    yield overcommit()
    yield page_faults()


def linux() -> Check:
    """The kernel's version."""
    version = _version()
    wanted = ".".join(map(str, OLDEST_LINUX))
    return _needed(
        "Linux", version >= OLDEST_LINUX, platform.release(), f"use Linux {wanted} or newer"
    )


def architecture() -> Check:
    """The processor."""
    name = f"processor {platform.machine()}"
    try:
        arch.native()
    except KeyError:
        return Check(name, "missing", "not supported by this build", "use another machine")
    return Check(name, "ok")


def attaching(pid: int) -> Check:
    """ptrace(2) of a child."""
    name, remedy = "ptrace", _remedy(pid, "let the user trace his own processes")
    try:
        tracing.request(tracing.SEIZE, pid)
        tracing.request(tracing.INTERRUPT, pid)
        tracing.wait(pid)
        tracing.request(tracing.DETACH, pid)
    except SnapkernelError as error:
        return Check(name, "missing", error.reason, remedy)
    return Check(name, "ok", "a child was stopped and resumed")


def yama() -> Check:
    """Which other processes may be attached to."""
    name, setting = "ptrace of other processes", "/proc/sys/kernel/yama/ptrace_scope"
    text = _read(setting)
    if text in (None, "0"):
        return Check(name, "ok", "any process of the same user")
    if text == "3":
        return Check(name, "missing", "ptrace_scope 3: nobody may", REMEDIES[3])
    if _capable(CAP_SYS_PTRACE):
        return Check(name, "ok", f"ptrace_scope {text}, and this user may nevertheless")
    if text == "1":
        return Check(name, "limited", "ptrace_scope 1: only one's own descendants", REMEDIES[1])
    return Check(name, "missing", f"ptrace_scope {text}: only with CAP_SYS_PTRACE", REMEDIES[2])


def descriptors(pid: int) -> Check:
    """pidfd_getfd(2)."""
    pidfd = os.pidfd_open(pid)
    try:
        result = lib.sk_pidfd_getfd(pidfd, 0)
    finally:
        os.close(pidfd)
    if result >= 0:
        os.close(result)
    return _call("pidfd_getfd", result, _remedy(pid, "use Linux 5.6 or newer"))


def comparing(pid: int) -> Check:
    """kcmp(2)."""
    return _call(
        "kcmp", lib.sk_kcmp_file(pid, 0, pid, 0), _remedy(pid, "use a kernel with CONFIG_KCMP")
    )


def memory(pid: int) -> Check:
    """/proc/PID/mem (proc(5)): the beginning of the child's program."""
    name = "memory of other processes"
    remedy = _remedy(pid, "let the container see all of /proc")
    try:
        start = procfs.areas(procfs.text(f"/proc/{pid}/maps"))[0].start
        with contextlib.closing(Memory(pid)) as source:
            found = source.read(start, 4)
    except (OSError, SnapkernelError) as error:
        return Check(name, "missing", str(error), remedy)
    return _needed(name, len(found) == 4, "", remedy)


def page_scanner() -> Check:
    """PAGEMAP_SCAN. Its first version is all that can be known without trying it in an ioctl."""
    if _version() >= PAGEMAP_SCAN_LINUX:
        return Check("PAGEMAP_SCAN", "ok")
    return Check(
        "PAGEMAP_SCAN", "limited", "the pause of a checkpoint is longer", "use Linux 6.7 or newer"
    )


def namespaces() -> Iterator[Check]:
    """A kernel-init makes what a restored process lives in, and ends."""
    uid, gid = os.geteuid(), os.getegid()
    needs_user = not _capable(CAP_SYS_ADMIN)
    maps = ["--uid-map", f"{uid} {uid}", "--gid-map", f"{gid} {gid}"] if needs_user else []
    failure, own_proc = _start_init(maps)
    broken = PARTS.index(part_of(failure)) if failure else len(PARTS)
    for index, part in enumerate(PARTS):
        if index == 0 and not needs_user:
            continue
        if index < broken and part is PROC and not own_proc:
            yield Check(
                part.name,
                "limited",
                *part.because("a restored process sees the host's, with other process ids"),
            )
        elif index < broken:
            yield Check(part.name, "ok")
        elif index == broken:
            yield Check(part.name, "missing", *part.because(failure))
        else:
            yield Check(part.name, "missing", f"not tried without {PARTS[broken].name}")


def _start_init(maps: list[str]) -> tuple[str, bool]:
    """The step that failed and why, or nothing; and whether /proc could be mounted."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    clocks = ["--monotonic", "0 0", "--boottime", "0 0"]
    ids = ["--pid", "4242", "--ppid", "1", "--sid", "4242", "--pgid", "4242"]
    own_proc = True
    with ours, theirs, open(os.devnull, "rb") as files:
        ours.settimeout(PATIENCE)
        control = ["--control", str(theirs.fileno()), "--files", str(files.fileno())]
        with subprocess.Popen(
            [LIBEXEC / "kernel-init", *control, *ids, *maps, *clocks, LIBEXEC / "stub"],
            pass_fds=[theirs.fileno(), files.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ):
            theirs.close()
            try:
                while (text := ours.recv(256).decode()) != "stub":
                    if not text:
                        return "kernel-init: ended unexpectedly", own_proc
                    if text.startswith("error "):
                        return text.removeprefix("error "), own_proc
                    own_proc = text == "init"
            except TimeoutError:
                return f"kernel-init: silent for {PATIENCE:.0f} seconds", own_proc
            finally:
                ours.close()  # Whoever waits at the other end then ends.
    return "", own_proc


def overcommit() -> Check:
    """Whether a large process can fork."""
    if _read("/proc/sys/vm/overcommit_memory") != "2":
        return Check("memory overcommit", "ok")
    return Check(
        "memory overcommit",
        "limited",
        "a live checkpoint needs as much free memory as the process has",
        "sysctl vm.overcommit_memory=0, or checkpoint with --stop",
    )


def page_faults() -> Check:
    """userfaultfd(2): full, for faults in user mode only, or not at all."""
    name, setting = "userfaultfd", "/proc/sys/vm/unprivileged_userfaultfd"
    if (value := _read(setting)) is None:
        return Check(name, "limited", "not there: no lazy restore", "CONFIG_USERFAULTFD")
    allowed = value == "1" or _capable(CAP_SYS_PTRACE)
    if allowed or os.access("/dev/userfaultfd", os.R_OK | os.W_OK):
        return Check(name, "ok", "for all faults")
    return Check(
        name,
        "limited",
        "only for faults in user mode: no lazy restore",
        "give the user access to /dev/userfaultfd, or sysctl vm.unprivileged_userfaultfd=1",
    )


@contextmanager
def _helper() -> Iterator[int]:
    """A child that waits for its standard input to be closed."""
    program = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        yield process.pid


def _needed(name: str, is_ok: bool, detail: str, remedy: str) -> Check:
    return Check(name, "ok", detail) if is_ok else Check(name, "missing", detail, remedy)


def _remedy(pid: int, otherwise: str) -> str:
    """For a call that a container's seccomp filter or Yama may forbid."""
    if seccomp.is_filtered():
        return seccomp.REMEDY
    return REMEDIES.get(forbids(pid), otherwise)


def _call(name: str, result: int, remedy: str) -> Check:
    return _needed(name, result >= 0, os.strerror(-result) if result < 0 else "", remedy)


def _version() -> tuple[int, int]:
    major, minor = re.findall(r"\d+", platform.release())[:2]
    return int(major), int(minor)


def _capable(capability: int) -> bool:
    effective = int(procfs.status(os.getpid())["CapEff"], 16)
    return bool(effective >> capability & 1)


def _read(path: str) -> str | None:
    with contextlib.suppress(OSError):
        return Path(path).read_text().strip()
    return None
