"""Everything again without any privilege: checkpoint and restore as a user who is not root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NOBODY = 65534
TESTS = Path(__file__).parent.parent
PYTHON = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rs"]


@pytest.fixture
def home() -> Iterator[Path]:
    """A home folder that belongs to the user. The usual temporary folders are root's alone."""
    folder = Path(tempfile.mkdtemp(prefix="snapkernel-user-", dir="/var/tmp"))
    folder.chmod(0o755)
    os.chown(folder, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)


def hidden_folders() -> dict[Path, set[str]]:
    """Folders closed to other users above what the tests need, and what is needed of each."""
    found: dict[Path, set[str]] = {}
    for needed in (Path(sys.prefix), Path(sys.base_prefix), TESTS):
        for folder in reversed(needed.parents):
            if not folder.stat().st_mode & 0o001:
                found.setdefault(folder, set()).add(needed.relative_to(folder).parts[0])
                break
    return found


def opened(hidden: dict[Path, set[str]], beside: Path) -> str:
    """Shell commands that show what is needed of the hidden folders, in a mount namespace."""
    lines = ["set -e"]
    for number, (folder, names) in enumerate(hidden.items()):
        aside = beside / f"aside-{number}"
        lines += [
            f"mkdir {aside} && mount --bind {folder} {aside}",
            f"mount -t tmpfs -o mode=755 none {folder}",
        ]
        for name in sorted(names):
            lines.append(f"mkdir {folder}/{name} && mount --bind {aside}/{name} {folder}/{name}")
    return "\n".join([*lines, 'exec "$@"'])


def run_as_nobody(home: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """Run some of our tests as a user without a name, capabilities or groups.

    Where Python itself is in root's home folder, the user sees that part of it in a mount
    namespace, which ends with the tests.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XDG_", "JUPYTER", "PYTEST"))
    }
    environment |= {"HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    command = [*PYTHON, f"--basetemp={home}/tests", *(f"{TESTS}/{test}" for test in tests)]
    in_namespace = ["unshare", "--mount", "sh", "-c", opened(hidden_folders(), home), "sh"]
    return subprocess.run(
        [*in_namespace, *user, "--bounding-set=-all", "--inh-caps=-all", *command],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="all tests already run without privilege")
@pytest.mark.parametrize(
    "tests",
    [
        [
            "integration/test_kernel_restore.py::test_every_object_is_there",
            "integration/test_kernel_restore.py::test_two_beside_the_original",
            "integration/test_kernel_restore.py::test_three_generations",
        ],
        [
            f"conformance/test_conformance.py::test_three_generations[{name}]"
            for name in (
                "memory.private_anonymous",
                "memory.memory_file",
                "memory.shared_file",
                "files.deleted",
                "channels.pair_seqpacket",
                "events.signal_descriptor",
                "identity.numbers",
                "identity.privileges",
                "identity.subprocesses",
                "network.listening",
                "threads.identities",
                "signal_pending",
                "timer_posix",
            )
        ],
    ],
    ids=["kernels", "programs"],
)
def test_as_a_user(tests: list[str], home: Path) -> None:
    done = run_as_nobody(home, *tests)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(tests)} passed" in done.stdout, done.stdout
