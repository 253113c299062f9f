"""A program that was started by hand in a terminal, restored in another one or in none."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.terminal import PATIENCE, PROMPT, Terminal, exit_status, interactive_shell

import snapkernel

COMMAND = shutil.which("snapkernel", path=sysconfig.get_path("scripts")) or "snapkernel"
OTHER_SIZE = (30, 100)
BY_KEYS = termios.ICANON | termios.ECHO

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@contextmanager
def python() -> Iterator[Terminal]:
    """Python at its prompt, with something to remember."""
    terminal = Terminal(sys.executable, "-q", "-i")
    try:
        terminal.until(">>> ")
        terminal.type("x = 'remembered'\n")
        terminal.until(">>> ")
        yield terminal
    finally:
        terminal.end()


@pytest.fixture
def saved(store: str) -> str:
    """Command line of a restore of Python, which has begun to edit a line."""
    with python() as terminal:
        terminal.type("print('begun', x")
        terminal.until("begun', x")
        findings = snapkernel.explain(terminal.pid)
        streams = [f.reason for f in findings if f.object.startswith("fd 0 ")]
        assert len(streams) == 1
        assert "standard input of the restorer, with these settings" in streams[0]
        assert any(f.object == "controlling terminal" for f in findings)
        snapkernel.checkpoint(terminal.pid, name="python", store=store, stop=True)
    return f"{COMMAND} restore python --store {store}"


def local_modes(terminal: Terminal) -> int:
    modes: int = termios.tcgetattr(terminal.master)[3]
    return modes


def test_the_prompt_answers(saved: str) -> None:
    """The line that was begun shows in the new terminal, is edited as before, and is read."""
    with interactive_shell(OTHER_SIZE) as shell:
        shell.type(f"{saved}\n")
        shell.until("process .* runs")
        shell.until(r">>> print\('begun', x")
        assert not local_modes(shell) & BY_KEYS
        shell.type("z\x7f)\n")
        shell.until("begun remembered\r\n")
        shell.until(">>> ")
        shell.type("\x03")
        shell.until("KeyboardInterrupt")
        shell.until(">>> ")
        shell.type("raise SystemExit(7)\n")
        assert exit_status(shell) == 7
        assert local_modes(shell) & BY_KEYS == BY_KEYS


def test_suspend_at_the_prompt(saved: str) -> None:
    """As Python does itself, it comes back to a terminal with the shell's settings."""
    with interactive_shell(OTHER_SIZE) as shell:
        shell.type(f"{saved}\n")
        shell.until(r">>> print\('begun', x")
        shell.type("\x1a")
        shell.until("Stopped")
        shell.until(PROMPT)
        assert local_modes(shell) & BY_KEYS == BY_KEYS
        shell.type("fg\n")
        shell.until("restore python")
        shell.type(")\n")
        shell.until("begun remembered\r\n")


def test_killed_at_the_prompt(saved: str) -> None:
    """The shell sees by what it died, and mends the terminal."""
    with interactive_shell(OTHER_SIZE) as shell:
        shell.type(f"{saved}\n")
        pid = int(shell.until(r"process (\d+) runs")[1])
        shell.until(r">>> print\('begun', x")
        os.kill(pid, signal.SIGKILL)
        assert exit_status(shell) == 128 + signal.SIGKILL
        assert local_modes(shell) & BY_KEYS == BY_KEYS


def test_in_the_background(saved: str) -> None:
    """The terminal belongs to the shell, and keeps its settings."""
    with interactive_shell(OTHER_SIZE) as shell:
        shell.type(f"{saved} </dev/null &\n")
        shell.until("its settings are those of who is in the foreground")
        shell.until("process .* runs")
        assert local_modes(shell) & BY_KEYS == BY_KEYS
        shell.type("echo in the shell\n")
        shell.until(r"\nin the shell")


def test_in_no_terminal(saved: str, tmp_path: Path) -> None:
    """Its one terminal comes back as three streams, which lead to three places."""
    error = tmp_path / "error"
    with error.open("wb") as file:
        done = subprocess.run(
            saved.split(),
            input=b"[:4])\nimport sys; print(1, file=sys.stderr); exit(5)\n",
            stdout=subprocess.PIPE,
            stderr=file,
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == 5
    assert "begun reme\n" in done.stdout.decode()
    assert error.read_text().endswith("1\n")


def test_detached(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Input ends at once, and what is printed is in the log."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    terminal = Terminal("/bin/bash", "-c", "echo ready; read line; echo got $line; echo and >&0")
    try:
        terminal.until("ready")
        snapshot = snapkernel.checkpoint(terminal.pid, store=store, stop=True)
    finally:
        terminal.end()
    process = snapkernel.restore(snapshot, store=store)
    assert process.wait(PATIENCE) == 0
    (log,) = (tmp_path / "data" / "snapkernel-logs").iterdir()
    assert log.read_text() == "got\n"


def test_line_by_line(store: str) -> None:
    """A program that reads lines, restored in a terminal that a dead program has left raw."""
    program = "print('name?', flush=True); print('hello', input())"
    terminal = Terminal(sys.executable, "-c", program)
    try:
        terminal.until(r"name\?\r\n")
        snapkernel.checkpoint(terminal.pid, name="asks", store=store, stop=True)
    finally:
        terminal.end()
    with interactive_shell(OTHER_SIZE) as shell:
        shell.type(f"stty raw -echo; {COMMAND} restore asks --store {store}\n")
        shell.until("process .* runs")
        shell.type("gopher\n")
        shell.until("gopher\r\nhello gopher\r\n")
        shell.until(PROMPT)


def test_speed_belongs_to_the_line(saved: str) -> None:
    with interactive_shell(OTHER_SIZE) as shell:
        shell.type(f"stty 38400; {saved}\n")
        shell.until(r">>> print\('begun', x")
        assert termios.tcgetattr(shell.master)[4:6] == [termios.B38400] * 2
