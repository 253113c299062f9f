"""Programs in terminals, as a user would work with them."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

PATIENCE = 60.0
PROMPT = "next> "


class Terminal:
    """A program in a terminal of its own, whose session it leads."""

    def __init__(self, *command: str, size: tuple[int, int] = (24, 80)) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            with suppress(BaseException):
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("4H", *size, 0, 0))
                os.closerange(3, 4096)
                os.environ |= {"PS1": PROMPT, "TERM": "dumb", "PROMPT_COMMAND": ""}
                os.execv(command[0], command)
            os._exit(126)
        self.text = ""
        self.status: int | None = None

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def until(self, pattern: str) -> re.Match[str]:
        """Wait until this is printed, and forget all up to it."""
        deadline = time.monotonic() + PATIENCE
        while not (match := re.search(pattern, self.text)):
            rest = deadline - time.monotonic()
            if rest <= 0 or not select.select([self.master], [], [], rest)[0]:
                pytest.fail(f"no {pattern!r} in {self.text!r}")
            try:
                self.text += os.read(self.master, 65536).decode(errors="replace")
            except OSError:  # Everybody has closed the other side.
                pytest.fail(f"no {pattern!r} in {self.text!r} until the end")
        self.text = self.text[match.end() :]
        return match

    def hang_up(self) -> None:
        if self.master >= 0:
            os.close(self.master)
            self.master = -1

    def end(self) -> None:
        self.hang_up()
        if self.status is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def wait(self) -> int:
        self.status = os.waitpid(self.pid, 0)[1]
        return self.status


@contextmanager
def interactive_shell(size: tuple[int, int] = (24, 80)) -> Iterator[Terminal]:
    """bash, at its prompt; lines and columns of its window."""
    command = ("/bin/bash", "--norc", "--noprofile", "--noediting", "-i")
    terminal = Terminal(*command, size=size)
    terminal.until(PROMPT)
    try:
        yield terminal
    finally:
        terminal.end()


def exit_status(shell: Terminal) -> int:
    """Of what has just ended in a shell."""
    shell.until(PROMPT)
    shell.type("echo status $?\n")
    return int(shell.until(r"status (\d+)\r\n")[1])
