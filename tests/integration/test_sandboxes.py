"""Containers and strict hosts: what works there, and what is said of what does not.

Each is made of namespaces, mounts and a seccomp filter; see ``support/sandbox.py``.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import sandbox
from support.sandbox import Sandbox
from support.seccomp import NUMBERS
from support.unprivileged import TESTS

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make these sandboxes"),
    pytest.mark.skipif(
        platform.machine() not in NUMBERS, reason="the filter knows no numbers of this processor"
    ),
]
COMMAND = [sys.executable, "-c", "from snapkernel.commands import main; main()"]
PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rs"]
NEEDED = {"user namespace", "pid and mount namespaces", "time namespace", "chosen process ids"}


def run(box: Sandbox, home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a sandbox."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XDG_", "JUPYTER", "PYTEST"))
    }
    environment |= {"HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        box.command(list(command), home),
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )


def doctor(box: Sandbox, home: Path) -> dict[str, dict[str, str]]:
    """What the doctor says there, by check."""
    done = run(box, home, *COMMAND, "doctor", "--json", "--store", f"file://{home}/store")
    told = json.loads(done.stdout)
    assert done.returncode == (0 if told["ok"] else 1), done.stderr
    return {check["name"]: check for check in told["checks"]}


def missing(checks: dict[str, dict[str, str]]) -> set[str]:
    """What the doctor says is missing; each with a remedy, or with what it hangs on."""
    found = {name for name, check in checks.items() if check["status"] == "missing"}
    for name in found:
        assert checks[name]["remedy"] or checks[name]["detail"].startswith("not tried"), name
    return found


def attempt(box: Sandbox, home: Path) -> dict[str, Any]:
    """What becomes of a process that somebody tries to save and restore there."""
    program = Path(__file__).with_name("programs") / "confined.py"
    done = run(box, home, sys.executable, str(program), f"file://{home}/store")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["alive"], "the process was harmed"
    return told


def test_container_that_allows_namespaces(home: Path) -> None:
    """As Podman's: everything works; the container's /proc stands for a restored process's own."""
    box = sandbox.PODMAN_WITH_PTRACE
    checks = doctor(box, home)
    assert missing(checks) == set()
    assert checks["mount of /proc"]["status"] == "limited"
    assert "unmask=ALL" in checks["mount of /proc"]["remedy"]
    told = attempt(box, home)
    assert told["findings"]["seccomp filter"] == "replaced"
    assert any(note.startswith("/proc: replaced: ") for note in told["restored"]), told


def test_kernels_and_programs_in_a_container(home: Path) -> None:
    """With a seccomp filter, a masked /proc and a read-only root file system."""
    names = (
        *("memory.private_anonymous", "memory.memory_file", "channels.pair_seqpacket"),
        *("network.listening", "threads.held_locks", "identity.subprocesses", "timer_posix"),
    )
    tests = [
        "integration/test_kernel_restore.py::test_every_object_is_there",
        "integration/test_kernel_restore.py::test_three_generations",
        *(f"conformance/test_conformance.py::test_three_generations[{name}]" for name in names),
    ]
    paths = [f"{TESTS}/{test}" for test in tests]
    done = run(sandbox.PODMAN_WITH_PTRACE, home, *PYTEST, f"--basetemp={home}/tests", *paths)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(tests)} passed" in done.stdout, done.stdout


def test_container_that_forbids_namespaces(home: Path) -> None:
    """As Docker's: processes are saved, live, and cannot be restored."""
    checks = doctor(sandbox.DOCKER_WITH_PTRACE, home)
    assert missing(checks) == {*NEEDED, "mount of /proc", "canary"}
    assert "seccomp filter" in checks["user namespace"]["detail"]
    assert "--security-opt seccomp" in checks["user namespace"]["remedy"]
    told = attempt(sandbox.DOCKER_WITH_PTRACE, home)
    assert told["mode"] == "live"
    assert not any("plain freeze" in note for note in told["notes"]), told
    kind, object, reason, remedy = told["error"]
    assert (kind, object) == ("UnsupportedHost", "user namespace for the restored process")
    assert "a seccomp filter is in force" in reason
    assert "--security-opt seccomp" in remedy


@pytest.mark.parametrize(
    ("box", "calls"),
    [(sandbox.PLAIN_DOCKER, {"kcmp", "pidfd_getfd"}), (sandbox.NO_PTRACE, {"ptrace"})],
    ids=lambda value: getattr(value, "name", None),
)
def test_container_that_forbids_to_look(box: Sandbox, calls: set[str], home: Path) -> None:
    """Nothing is touched; it is said what the container must be given."""
    checks = doctor(box, home)
    assert calls <= missing(checks)
    for call in calls:
        assert "--cap-add SYS_PTRACE" in checks[call]["remedy"]
    told = attempt(box, home)
    assert told["error"][0] == "TargetError"
    assert "Operation not permitted" in told["error"][2]
    assert "--cap-add SYS_PTRACE" in told["error"][3]


def test_no_more_user_namespaces(home: Path) -> None:
    """A sysctl that administrators set: processes are saved, and cannot be restored."""
    checks = doctor(sandbox.NO_USER_NAMESPACES, home)
    assert missing(checks) == {*NEEDED, "mount of /proc", "canary"}
    assert "user.max_user_namespaces is 0" in checks["user namespace"]["detail"]
    told = attempt(sandbox.NO_USER_NAMESPACES, home)
    assert told["mode"] == "live"
    assert told["error"][3] == "sysctl user.max_user_namespaces=10000"


def test_filter_of_its_own(home: Path) -> None:
    """A filter that not everybody here has might do worse than make a call fail."""
    program = TESTS / "support" / "seccomp.py"
    with subprocess.Popen(
        [sys.executable, str(program), "userfaultfd", "sh", "-c", "echo ready; sleep 1000"],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        done = subprocess.run(
            [*COMMAND, "explain", str(process.pid)], capture_output=True, text=True
        )
        process.kill()
    assert done.returncode == 1
    assert "seccomp filter" in done.stdout
    assert "refused" in done.stdout
