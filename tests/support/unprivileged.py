"""Running Python as a user without privilege, wherever it is installed."""

from __future__ import annotations

import sys
from pathlib import Path

NOBODY = 65534
TESTS = Path(__file__).parent.parent


def as_nobody(command: list[str], folder: Path) -> list[str]:
    """The command line that root gives to run a command as a user without a name, capabilities or
    groups.

    Where Python or the tests are in a folder that is root's alone, the user sees what is needed of
    it in a mount namespace, which ends with the command. `folder` gets folders to mount on.
    """
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    dropped = [*user, "--bounding-set=-all", "--inh-caps=-all", *command]
    return ["unshare", "--mount", "sh", "-c", _opened(_hidden_folders(), folder), "sh", *dropped]


def _hidden_folders() -> dict[Path, set[str]]:
    """Folders closed to other users above what is needed, and what is needed of each."""
    found: dict[Path, set[str]] = {}
    for needed in (Path(sys.prefix), Path(sys.base_prefix), TESTS):
        for folder in reversed(needed.parents):
            if not folder.stat().st_mode & 0o001:
                found.setdefault(folder, set()).add(needed.relative_to(folder).parts[0])
                break
    return found


def _opened(hidden: dict[Path, set[str]], beside: Path) -> str:
    """Shell commands that show what is needed of the hidden folders, in a mount namespace."""
    lines = ["set -e"]
    for number, (folder, names) in enumerate(hidden.items()):
        aside = beside / f"aside-{number}"
        lines += [
            f"mkdir -p {aside} && mount --bind {folder} {aside}",
            f"mount -t tmpfs -o mode=755 none {folder}",
        ]
        for name in sorted(names):
            lines.append(f"mkdir {folder}/{name} && mount --bind {aside}/{name} {folder}/{name}")
    return "\n".join([*lines, 'exec "$@"'])
