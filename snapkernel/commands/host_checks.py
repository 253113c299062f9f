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

from snapkernel import arch, procfs
from snapkernel._native import lib
from snapkernel.errors import SnapkernelError
from snapkernel.freeze import tracing
from snapkernel.freeze.agent import LIBEXEC
from snapkernel.freeze.target import Memory

OLDEST_LINUX = (5, 15)
PAGEMAP_SCAN_LINUX = (6, 7)
CAP_SYS_PTRACE, CAP_SYS_ADMIN = 19, 21
PATIENCE = 20.0
"""Seconds to wait for a helper process."""

NAMESPACE_STEPS = (
    (
        "user namespace",
        ("new user namespace", "/proc/self/setgroups", "/proc/self/uid_map", "/proc/self/gid_map"),
        "let users make them (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
        "kernel.apparmor_restrict_unprivileged_userns=0), or restore as root",
    ),
    (
        "pid and mount namespaces",
        ("new pid and mount namespaces", "fork", "setsid", "make mounts private"),
        "allow them (CAP_SYS_ADMIN in a container), or run outside of the container",
    ),
    (
        "time namespace",
        ("new time namespace", "/proc/self/timens_offsets"),
        "use a kernel with CONFIG_TIME_NS",
    ),
    (
        "mount of /proc",
        ("mount /proc",),
        "run outside of the container, or let the container see all of /proc",
    ),
    (
        "chosen process ids",
        (),  # Whatever comes after.
        "give CAP_CHECKPOINT_RESTORE in the container, or run outside of it",
    ),
)
"""What the kernel-init does, in its order: a check, the names of its steps, the remedy."""


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
    name, remedy = "ptrace", "allow ptrace in the container's seccomp profile"
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
        return Check(name, "missing", "ptrace_scope 3: nobody may", "restart with Yama set to 1")
    if _capable(CAP_SYS_PTRACE):
        return Check(name, "ok", f"ptrace_scope {text}, and this user may nevertheless")
    remedy = "sysctl kernel.yama.ptrace_scope=0, or run as root"
    if text == "1":
        return Check(name, "limited", "ptrace_scope 1: only one's own descendants", remedy)
    return Check(name, "missing", f"ptrace_scope {text}: only with CAP_SYS_PTRACE", remedy)


def descriptors(pid: int) -> Check:
    """pidfd_getfd(2)."""
    pidfd = os.pidfd_open(pid)
    try:
        result = lib.sk_pidfd_getfd(pidfd, 0)
    finally:
        os.close(pidfd)
    if result >= 0:
        os.close(result)
    return _call("pidfd_getfd", result, "allow it in the container's seccomp profile")


def comparing(pid: int) -> Check:
    """kcmp(2)."""
    return _call("kcmp", lib.sk_kcmp_file(pid, 0, pid, 0), "use a kernel with CONFIG_KCMP")


def memory(pid: int) -> Check:
    """/proc/PID/mem (proc(5)): the beginning of the child's program."""
    name, remedy = "memory of other processes", "let the container see all of /proc"
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
    failure = _start_init(maps)
    steps = NAMESPACE_STEPS if needs_user else NAMESPACE_STEPS[1:]
    if failure is None:
        for name, _, _ in steps:
            yield Check(name, "ok")
        return
    step, _, reason = failure.rpartition(": ")
    broken = next((i for i, (_, names, _) in enumerate(steps) if step in names), len(steps) - 1)
    for index, (name, _, remedy) in enumerate(steps):
        if index < broken:
            yield Check(name, "ok")
        elif index == broken:
            yield Check(name, "missing", f"{step}: {reason}", remedy)
        else:
            yield Check(name, "missing", f"not tried without {steps[broken][0]}", remedy)


def _start_init(maps: list[str]) -> str | None:
    """The step that failed and why, or ``None``."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    clocks = ["--monotonic", "0 0", "--boottime", "0 0"]
    ids = ["--pid", "4242", "--ppid", "1", "--sid", "4242", "--pgid", "4242"]
    with ours, theirs:
        ours.settimeout(PATIENCE)
        control = ["--control", str(theirs.fileno())]
        with subprocess.Popen(
            [LIBEXEC / "kernel-init", *control, *ids, *maps, *clocks, LIBEXEC / "stub"],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ):
            theirs.close()
            try:
                while (text := ours.recv(256).decode()) != "stub":
                    if not text:
                        return "kernel-init: ended unexpectedly"
                    if text.startswith("error "):
                        return text.removeprefix("error ")
            except TimeoutError:
                return f"kernel-init: silent for {PATIENCE:.0f} seconds"
            finally:
                ours.close()  # Whoever waits at the other end then ends.
    return None


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
