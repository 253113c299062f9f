"""Confinements in which people run notebooks: containers, and hosts with strict settings.

All are made by root, of namespaces(7) and mounts, and end with the command. The user in them is
nobody, without capabilities.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from support.seccomp import DOCKER, DOCKER_TRACING
from support.unprivileged import as_nobody

_MASKED = "kcore keys timer_list latency_stats sched_debug interrupts"
_READ_ONLY = "sys sysrq-trigger irq bus fs"


@dataclass(frozen=True)
class Sandbox:
    """A confinement.

    Attributes:
        name: of it.
        settings: shell commands that root runs inside, before it gives up its rights.
        forbidden: system calls that a seccomp filter forbids, separated by commas.
        before: words before the command, which are run as the user.
    """

    name: str
    settings: str = ""
    forbidden: str = ""
    before: tuple[str, ...] = ()

    def command(self, command: list[str], folder: Path) -> list[str]:
        """The command line that root gives to run a command in it. `folder` is the only one that
        can be written, where the root file system is read-only."""
        filtered = []
        if self.forbidden:
            program = Path(__file__).with_name("seccomp.py")
            filtered = [sys.executable, str(program), self.forbidden]
        # A shell is pid 1, which is given all orphans, and has the filter that all have from it.
        command = [*filtered, *self.before, "sh", "-c", '"$@"; exit $?', "sh", *command]
        own = "mount -t proc proc /proc"
        settings = "\n".join(["set -e", own, self.settings.format(folder=folder), 'exec "$@"'])
        confined = as_nobody(command, folder)
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts"]
        return [*namespaces, "sh", "-c", settings, "sh", *confined]


CONTAINER = f"""
for name in {_MASKED}; do
  if [ -e /proc/$name ]; then mount --bind /dev/null /proc/$name; fi
done
for name in acpi scsi; do
  if [ -d /proc/$name ]; then mount -t tmpfs -o ro none /proc/$name; fi
done
for name in {_READ_ONLY}; do
  if [ -e /proc/$name ]; then
    mount --bind /proc/$name /proc/$name && mount -o remount,bind,ro /proc/$name
  fi
done
"""
"""/proc as the OCI runtimes show it (runtime-spec, maskedPaths and readonlyPaths)."""

READ_ONLY_ROOT = """
mount --bind {folder} {folder}
mount -o remount,bind,ro /
"""

PLAIN_DOCKER = Sandbox("docker", CONTAINER, DOCKER)
DOCKER_WITH_PTRACE = Sandbox("docker with CAP_SYS_PTRACE", CONTAINER, DOCKER_TRACING)
PODMAN_WITH_PTRACE = Sandbox(
    "podman with CAP_SYS_PTRACE", CONTAINER + READ_ONLY_ROOT, "userfaultfd"
)
NO_PTRACE = Sandbox("no ptrace", forbidden="ptrace")
NO_USER_NAMESPACES = Sandbox(
    "no user namespaces",
    before=(
        *("unshare", "--user", "--map-current-user", "--keep-caps", "sh", "-c"),
        "echo 0 > /proc/sys/user/max_user_namespaces && "
        'exec setpriv --ambient-caps=-all --inh-caps=-all "$@"',
        "sh",
    ),
)
"""By a limit, which everybody may set for a user namespace of his own."""
