"""The namespaces of a restored process: what a host may forbid of them, and what an administrator
can set.

The kernel-init makes them in the order of :data:`PARTS`, and says at which step it failed. There is
no way around them for a user: process ids can be chosen with CAP_CHECKPOINT_RESTORE only (clone(2),
set_tid), monotonic clocks with CAP_SYS_ADMIN only (time_namespaces(7)).

Sources: user_namespaces(7), kernel/user_namespace.c (a chroot; the limit), fs/namespace.c
(mount_too_revealing), the default seccomp profiles of Docker and Podman, Debian's
``unprivileged_userns_clone``, Ubuntu's ``apparmor_restrict_unprivileged_userns``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from snapkernel import procfs, seccomp
from snapkernel.errors import UnsupportedHost
from snapkernel.freeze.agent import LIBEXEC


@dataclass(frozen=True)
class Part:
    """Something that the kernel-init makes.

    Attributes:
        name: of it.
        steps: what the kernel-init calls its steps; none for whatever comes after.
        causes: what on this host may forbid it, each with a remedy.
        remedy: when none of the causes holds.
    """

    name: str
    steps: tuple[str, ...]
    causes: Callable[[], Iterator[tuple[str, str]]]
    remedy: str

    def because(self, failure: str) -> tuple[str, str]:
        """Reason and remedy when it could not be had."""
        causes = list(self.causes())
        if not causes:
            return failure, self.remedy
        reasons = ", and ".join(reason for reason, _ in causes)
        return f"{failure} ({reasons})", "; ".join(remedy for _, remedy in causes)


def user_namespace_causes() -> Iterator[tuple[str, str]]:
    """Settings and confinements that keep users from making user namespaces."""
    if _setting("user/max_user_namespaces") == "0":
        yield "user.max_user_namespaces is 0", "sysctl user.max_user_namespaces=10000"
    if _setting("kernel/unprivileged_userns_clone") == "0":
        yield (
            "kernel.unprivileged_userns_clone is 0",
            "sysctl kernel.unprivileged_userns_clone=1",
        )
    yield from _apparmor_causes()
    yield from _filter_causes()
    if not any(mount.place == "/" for mount in procfs.mounts(os.getpid())):
        yield "this is a chroot, in which Linux lets nobody make one", "run outside of the chroot"


def _capability_causes() -> Iterator[tuple[str, str]]:
    """A user namespace could be made, and gives no rights."""
    yield from _apparmor_causes()
    yield from _filter_causes()


def _apparmor_causes() -> Iterator[tuple[str, str]]:
    if _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        yield (
            "kernel.apparmor_restrict_unprivileged_userns is 1",
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile with "
            f"the rule `userns,` for {LIBEXEC / 'kernel-init'}",
        )


def _filter_causes() -> Iterator[tuple[str, str]]:
    if seccomp.is_filtered():
        yield (
            "a seccomp filter is in force, as in containers",
            "run the container with a seccomp profile that allows unshare, clone, clone3 and mount "
            "(Podman's does; docker run --security-opt seccomp=FILE, or seccomp=unconfined)",
        )


def _no_causes() -> Iterator[tuple[str, str]]:
    return iter(())


PROC = Part(
    "mount of /proc",
    ("mount /proc",),
    _no_causes,
    "let the container see all of /proc (Podman: --security-opt unmask=ALL, Docker: "
    "--security-opt systempaths=unconfined), or run outside of it",
)
PARTS = (
    Part(
        "user namespace",
        ("new user namespace", "/proc/self/setgroups", "/proc/self/uid_map", "/proc/self/gid_map"),
        user_namespace_causes,
        "let users make them (sysctl user.max_user_namespaces), or restore as root",
    ),
    Part(
        "pid and mount namespaces",
        (
            "new pid and mount namespaces",
            "fork",
            "setsid",
            "keep mounts to ourselves",
            "mount /dev/pts",
        ),
        _capability_causes,
        "allow them (CAP_SYS_ADMIN in a container), or run outside of the container",
    ),
    Part(
        "time namespace",
        ("new time namespace", "/proc/self/timens_offsets"),
        _filter_causes,
        "use a kernel with CONFIG_TIME_NS",
    ),
    PROC,
    Part(
        "chosen process ids",
        (),
        _filter_causes,
        "allow clone3 with set_tid, or run outside of the container",
    ),
)


def part_of(failure: str) -> Part:
    """What a message of the kernel-init, ``STEP: REASON``, is about."""
    step = failure.rpartition(": ")[0]
    return next((part for part in PARTS if step in part.steps), PARTS[-1])


def forbidden(failure: str) -> UnsupportedHost:
    """The error of a restore whose kernel-init failed."""
    part = part_of(failure)
    return UnsupportedHost(f"{part.name} for the restored process", *part.because(failure))


def _setting(name: str) -> str | None:
    with contextlib.suppress(OSError):
        return Path("/proc/sys", name).read_text().strip()
    return None
