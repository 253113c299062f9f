"""A kernel with programs in pseudo-terminals, as `!command` and pexpect start them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.kernel import PATIENCE, Kernel

import snapkernel
from snapkernel import procfs

COMMAND = "echo started; while [ ! -e go ]; do sleep 0.05; done; echo ended; exit 3"
CELLS = {
    "exclamation mark": f"!{COMMAND}",
    "system": f"get_ipython().system({COMMAND!r})",
}

PEXPECT = """
import pexpect
environment = {"PS1": "next> ", "TERM": "dumb"}
shell = pexpect.spawn("bash", ["--norc", "--noprofile", "-i"], env=environment)
shell.expect_exact("next> ")
shell.sendline("cat")
shell.sendline("before")
shell.expect_exact("before\\r\\nbefore\\r\\n")
shell.setwinsize(33, 99)
"""

PEXPECT_GOES_ON = """
shell.sendline("after")
shell.expect_exact("after\\r\\nafter\\r\\n")
shell.sendintr()
shell.expect_exact("next> ")
shell.sendline("echo $?; stty size")
shell.expect_exact("130\\r\\n33 99\\r\\nnext> ")
shell.sendline("exit 7")
shell.expect(pexpect.EOF)
shell.wait()
"""


@pytest.mark.parametrize("cell", sorted(CELLS))
def test_command_that_runs(cell: str, tmp_path: Path, store: str) -> None:
    """It goes on in the original, and in a copy beside it, which has its status."""
    with Kernel.start(tmp_path / "original") as original:
        running = original.send(CELLS[cell])
        original.until_printed(running, "started")
        snapshot = snapkernel.checkpoint(original.pid, store=store)
        with Kernel.restore(snapshot, store, tmp_path / "copy") as copy:
            (tmp_path / "original" / "go").touch()
            assert original.result(running).split() == ["ended"]
            assert original.execute("_exit_code") == "3"
            assert copy.execute("_exit_code") == "3"


def test_command_in_a_kernel_that_is_stopped(tmp_path: Path, store: str) -> None:
    """The client that started it sees what it prints after the restore."""
    with Kernel.start(tmp_path / "original") as original:
        running = original.send(CELLS["system"])
        original.until_printed(running, "started")
        snapshot = snapkernel.checkpoint(original.pid, store=store, stop=True)
        original.process.wait(PATIENCE)
        with Kernel.restore(snapshot, store, tmp_path / "copy", original.client) as copy:
            (tmp_path / "original" / "go").touch()
            assert copy.result(running).split() == ["ended"]
            assert copy.execute("_exit_code") == "3"


def test_command_is_interrupted(tmp_path: Path, store: str) -> None:
    """The interrupt button ends a command that was started before."""
    with Kernel.start(tmp_path / "original") as original:
        running = original.send("!echo started; exec sleep 1000")
        original.until_printed(running, "started")
        snapshot = snapkernel.checkpoint(original.pid, store=store, stop=True)
        original.process.wait(PATIENCE)
        with Kernel.restore(snapshot, store, tmp_path / "copy", original.client) as copy:
            assert len(procfs.descendants(copy.pid)) == 1
            copy.interrupt()
            copy.result(running)
            assert copy.execute("_exit_code") == "-2"
            assert procfs.descendants(copy.pid) == []


@pytest.mark.parametrize("stop", [False, True], ids=["live", "stop"])
def test_dialogue(stop: bool, tmp_path: Path, store: str) -> None:
    """A shell that pexpect talks to, with a program in the foreground."""
    with Kernel.start(tmp_path / "original") as original:
        original.execute(PEXPECT)
        snapshot = snapkernel.checkpoint(original.pid, store=store, stop=stop)
        with Kernel.restore(snapshot, store, tmp_path / "copy") as copy:
            copy.execute(PEXPECT_GOES_ON)
            assert copy.execute("shell.exitstatus") == "7"
        if not stop:
            original.execute(PEXPECT_GOES_ON)


def test_command_that_starts_others_all_the_time(tmp_path: Path, store: str) -> None:
    """Each of them lives for milliseconds, and may end whenever it is looked at."""
    with Kernel.start(tmp_path / "original") as original:
        running = original.send(
            "!echo started; while [ ! -e go ]; do ls -l /usr/bin >/dev/null; done; exit 3"
        )
        original.until_printed(running, "started")
        for _ in range(10):
            snapshot = snapkernel.checkpoint(original.pid, store=store)
        with Kernel.restore(snapshot, store, tmp_path / "copy") as copy:
            (tmp_path / "original" / "go").touch()
            original.result(running)
            assert original.execute("_exit_code") == "3"
            assert copy.execute("_exit_code") == "3"
