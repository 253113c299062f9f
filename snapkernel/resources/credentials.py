"""Users, groups and capabilities, as the process itself sees them.

In a user namespace (user_namespaces(7)) the process's ids differ from those that /proc shows us;
``/proc/PID/uid_map`` translates back. Set last: afterwards the process may do no more than before.
"""

from __future__ import annotations

import struct

from snapkernel import procfs
from snapkernel.constants import (
    CAPABILITY_VERSION_3,
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAP_AMBIENT_RAISE,
    PR_SET_NO_NEW_PRIVS,
)
from snapkernel.freeze.batch import Batch
from snapkernel.model import Credentials
from snapkernel.resources.context import Build, Capture

_KEEP = (1 << 32) - 1  # setresuid(2): leave as it is


def capture(capture: Capture) -> Credentials:
    """Credentials of the leader; threads of a Python program do not differ."""
    status = capture.status
    uids = inside(capture.pid, "uid_map", status["Uid"])
    gids = inside(capture.pid, "gid_map", status["Gid"])
    groups = inside(capture.pid, "gid_map", status["Groups"])
    sets = (status[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb"))
    return Credentials(
        uids=uids,  # type: ignore[arg-type]
        gids=gids,  # type: ignore[arg-type]
        groups=groups,
        capabilities=tuple(int(word, 16) for word in sets),  # type: ignore[arg-type]
        no_new_privileges=status.get("NoNewPrivs") == "1",
    )


def inside(pid: int, name: str, ids: str) -> tuple[int, ...]:
    """Translate ids that /proc shows into those of the process's user namespace."""
    with procfs.understood(f"{name} of process {pid}"):
        return _translated(procfs.text(f"/proc/{pid}/{name}"), ids)


def _translated(id_map: str, ids: str) -> tuple[int, ...]:
    ranges = [tuple(map(int, line.split())) for line in id_map.splitlines()]
    found = []
    for word in ids.split():
        outside = int(word)
        inside = next(
            (outside - base + first for first, base, n in ranges if base <= outside < base + n),
            outside,
        )
        found.append(inside)
    return tuple(found)


def rebuild(build: Build, *, own_namespace: bool, identity: bool) -> Batch:
    """Set ids and drop capabilities, in the thread that runs it.

    ``own_namespace``: there is a user namespace, in which the ids are mapped already and the
    groups cannot be set. ``identity``: the ids of the stub are not the image's.
    """
    batch = Batch("set credentials")
    wanted = build.process.credentials
    if not own_namespace and identity:
        groups = struct.pack(f"={len(wanted.groups)}I", *wanted.groups)
        batch.call("setgroups", len(wanted.groups), groups, note="groups")
        batch.call("setresgid", *wanted.gids[:3], note="group ids")
        batch.call("setresuid", *wanted.uids[:3], note="user ids")
    inheritable, permitted, effective, _, ambient = wanted.capabilities
    if own_namespace:
        batch.call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        inheritable = permitted = effective = ambient = 0
    words = [
        half >> shift & 0xFFFFFFFF
        for shift in (0, 32)
        for half in (effective, permitted, inheritable)
    ]
    header = struct.pack("=II", CAPABILITY_VERSION_3, 0)
    batch.call("capset", header, struct.pack("=6I", *words), check=False, note="capabilities")
    for capability in range(64):
        if ambient >> capability & 1:
            raising = (PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0)
            batch.call("prctl", *raising, check=False, note="ambient capability")
    if wanted.no_new_privileges:
        batch.call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, note="no_new_privs")
    return batch
