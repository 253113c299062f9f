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


def run_as_nobody(home: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """Run some of our tests as a user without a name, capabilities or groups."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XDG_", "JUPYTER"))
    }
    environment |= {"HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [*PYTHON, f"--basetemp={home}/tests", *(f"{TESTS}/{test}" for test in tests)],
        cwd=home,
        env=environment,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
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
    readable = subprocess.run(
        [sys.executable, "-c", "import snapkernel"], cwd=home, user=NOBODY, capture_output=True
    )
    if readable.returncode:
        pytest.skip(f"an unprivileged user cannot read {sys.prefix} or {TESTS}")
    done = run_as_nobody(home, *tests)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(tests)} passed" in done.stdout, done.stdout
