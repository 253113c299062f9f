"""`snapkernel restore` in a terminal: job control, signals and the end are those of the process."""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.terminal import PATIENCE, PROMPT, Terminal, exit_status, interactive_shell

import snapkernel

COMMAND = shutil.which("snapkernel", path=sysconfig.get_path("scripts")) or "snapkernel"

# Says what it hears, and does what it is told.
PARROT = """
import os, signal, subprocess, sys, threading

def window(*_):
    print("window", *os.get_terminal_size(1), flush=True)

def suspend(*_):
    print("asked to stop", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    print("continued", flush=True)

for number, action in ((signal.SIGWINCH, window), (signal.SIGINT, signal.SIG_DFL)):
    signal.signal(number, action)
print("ready", flush=True)
for line in sys.stdin:
    word, _, argument = line.strip().partition(" ")
    if word == "exit":
        sys.exit(int(argument))
    elif word == "die":
        if int(argument) != signal.SIGKILL:
            signal.signal(int(argument), signal.SIG_DFL)
        os.kill(os.getpid(), int(argument))
    elif word == "handle":
        signal.signal(signal.SIGTSTP, suspend)
    elif word == "ignore":
        signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    elif word == "child":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = "import signal as s; s.signal(2, s.SIG_DFL); print('child runs', flush=1); s.pause()"
        child = subprocess.Popen([sys.executable, "-c", code])
        print("child ended with", child.wait(), flush=True)
    print("heard", word, flush=True)
"""

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture
def parrot(store: str) -> str:
    """Command line of a restore."""
    with subprocess.Popen(
        [sys.executable, "-c", PARROT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        snapkernel.checkpoint(process.pid, name="parrot", store=store, stop=True)
    return f"{COMMAND} restore parrot --store {store}"


@pytest.fixture
def shell() -> Iterator[Terminal]:
    """An interactive shell."""
    with interactive_shell() as terminal:
        yield terminal


def begin(terminal: Terminal, command: str) -> int:
    """Restore, and have it say something; its pid."""
    terminal.type(f"{command}\n")
    pid = int(terminal.until(r"process (\d+) runs")[1])
    say(terminal, "something")
    return pid


def say(terminal: Terminal, word: str) -> None:
    terminal.type(f"{word}\n")
    terminal.until(f"heard {word}\r\n")


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_stop_and_continue(shell: Terminal, parrot: str) -> None:
    """Ctrl-Z stops the process, and the shell prompts; fg lets it go on, as often as one likes."""
    pid = begin(shell, parrot)
    for _ in range(2):
        shell.type("\x1a")
        shell.until(r"Stopped")
        shell.until(PROMPT)
        assert state(pid) == "T"
        shell.type("echo in the shell\n")
        shell.until(r"\nin the shell")
        shell.until(PROMPT)
        shell.type("fg\n")
        shell.until("restore parrot")
        say(shell, "again")
        assert state(pid) in "SR"
    shell.type("exit 7\n")
    assert exit_status(shell) == 7


def test_stop_that_is_handled(shell: Terminal, parrot: str) -> None:
    """A program that does something before it stops, and after."""
    begin(shell, parrot)
    say(shell, "handle")
    shell.type("\x1a")
    shell.until("asked to stop")
    shell.until("Stopped")
    shell.until(PROMPT)
    shell.type("fg\n")
    shell.until("continued")
    say(shell, "again")


def test_stop_that_is_ignored(shell: Terminal, parrot: str) -> None:
    pid = begin(shell, parrot)
    say(shell, "ignore")
    shell.type("\x1a")
    say(shell, "unmoved")
    assert state(pid) in "SR"


def test_stopped_by_somebody_else(shell: Terminal, parrot: str) -> None:
    pid = begin(shell, parrot)
    os.kill(pid, signal.SIGSTOP)
    shell.until("Stopped")
    shell.until(PROMPT)
    shell.type("fg\n")
    shell.until("restore parrot")
    say(shell, "again")


def test_stop_without_a_shell(parrot: str) -> None:
    """Where nobody could continue it, Ctrl-Z stops nothing (a process group that is orphaned)."""
    terminal = Terminal(*parrot.split())
    try:
        terminal.until("process")
        say(terminal, "something")
        terminal.type("\x1a")
        say(terminal, "unmoved")
        terminal.type("exit 3\n")
        assert os.waitstatus_to_exitcode(terminal.wait()) == 3
    finally:
        terminal.end()


def test_interrupt(shell: Terminal, parrot: str) -> None:
    """Ctrl-C ends a process that does not handle it, and the shell sees by what."""
    begin(shell, parrot)
    shell.type("\x03")
    assert exit_status(shell) == 128 + signal.SIGINT


def test_interrupt_reaches_children(shell: Terminal, parrot: str) -> None:
    """Ctrl-C is for the whole foreground: for what the process has started as well."""
    begin(shell, parrot)
    shell.type("child\n")
    shell.until("child runs")
    shell.type("\x03")
    shell.until("child ended with -2")
    say(shell, "unmoved")


def test_background(shell: Terminal, parrot: str) -> None:
    """With & the shell prompts at once, and can wait for the status."""
    shell.type(f"{parrot} </dev/null &\n")
    shell.until("process")
    shell.type("\n")
    shell.until(PROMPT)
    shell.type("wait $!; echo status $?\n")
    assert shell.until(r"status (\d+)\r\n")[1] == "0"


def test_window(shell: Terminal, parrot: str) -> None:
    """The process is told when the window changes, and sees its size."""
    begin(shell, parrot)
    fcntl.ioctl(shell.master, termios.TIOCSWINSZ, struct.pack("4H", 33, 99, 0, 0))
    shell.until("window 99 33")


@pytest.mark.parametrize(
    "number",
    [signal.SIGSEGV, signal.SIGKILL, signal.SIGTERM, signal.SIGRTMIN],
    ids=lambda number: signal.Signals(number).name,
)
def test_death(number: int, parrot: str) -> None:
    """The command dies of what the process dies of; two cores would be one too many."""
    terminal = Terminal(*parrot.split())
    try:
        terminal.until("process")
        say(terminal, "something")
        terminal.type(f"die {int(number)}\n")
        status = terminal.wait()
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == number
        assert not os.WCOREDUMP(status)
    finally:
        terminal.end()


def test_hang_up(shell: Terminal, parrot: str) -> None:
    """When the terminal goes away, so does the process."""
    pid = begin(shell, parrot)
    with open(os.pidfd_open(pid), "rb", buffering=0) as ended:
        shell.hang_up()
        assert select.select([ended], [], [], PATIENCE)[0]
