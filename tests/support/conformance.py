"""Starting the programs of ``tests/conformance/programs`` and talking to them.

A program and its restored copies speak over two pipes that stand for the standard streams (the
protocol is in ``programs/protocol.py``).
"""

from __future__ import annotations

import ast
import contextlib
import os
import platform
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import pytest

from snapkernel import procfs
from support.leftovers import started

if TYPE_CHECKING:
    from typing_extensions import Self

PATIENCE = 40.0
"""Seconds after which a program that says nothing counts as hanging."""

PROGRAMS = Path(__file__).parent.parent / "conformance" / "programs"
COMPILE = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]


class Process(Protocol):
    """What `subprocess.Popen` and `snapkernel.RestoredProcess` have in common."""

    @property
    def pid(self) -> int: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def poll(self) -> int | None: ...
    def kill(self) -> None: ...


def program_names() -> Iterator[str]:
    """All programs: ``memory.private_anonymous`` in Python, ``deep_stack`` in C."""
    for path in sorted(PROGRAMS.glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and any(
                isinstance(decorator, ast.Name) and decorator.id == "program"
                for decorator in node.decorator_list
            ):
                yield f"{path.stem}.{node.name}"
    for folder in (PROGRAMS, PROGRAMS / platform.machine()):
        yield from (path.stem for path in sorted(folder.glob("*.c")))


class Compiler:
    """Compiles a program in C the first time it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def executable(self, source: Path) -> Path:
        made = self.folder / source.stem
        if not made.exists():
            command = [os.environ.get("CC", "cc"), *COMPILE, "-o", str(made), str(source), "-lm"]
            subprocess.run(command, check=True, timeout=PATIENCE)
        return made

    def command(self, name: str) -> list[str]:
        """The command line of a conformance program."""
        module, _, function = name.partition(".")
        if function:
            return [sys.executable, str(PROGRAMS / f"{module}.py"), function]
        for folder in (PROGRAMS, PROGRAMS / platform.machine()):
            if (folder / f"{name}.c").exists():
                return [str(self.executable(folder / f"{name}.c"))]
        raise LookupError(name)


class Conversation:
    """Our ends of a program's standard streams; the program's own are in ``theirs``."""

    def __init__(self) -> None:
        their_input, self.input = os.pipe()
        self.output, their_output = os.pipe()
        self.theirs = (their_input, their_output, their_output)
        self.process: Process | None = None
        self.text = b""
        self.seen: list[str] = []
        self._open = True

    def hand_over(self, process: Process) -> None:
        """The process has its ends now."""
        self.process = process
        os.close(self.theirs[0])
        os.close(self.theirs[1])
        self._open = False

    def line(self) -> str | None:
        """The next line, or None at the end. Fail when none comes."""
        deadline = time.monotonic() + PATIENCE
        while b"\n" not in self.text:
            rest = deadline - time.monotonic()
            if rest <= 0 or not select.select([self.output], [], [], rest)[0]:
                pytest.fail(f"the program hangs after {self.seen}")
            more = os.read(self.output, 65536)
            if not more:
                return None
            self.text += more
        line, _, self.text = self.text.partition(b"\n")
        self.seen.append(line.decode(errors="replace"))
        return self.seen[-1]

    def until_ready(self) -> None:
        """Wait for ``ready``; skip the test where the program says so."""
        while (line := self.line()) != "ready":
            if line is None:
                pytest.fail("the program ended before it was ready:\n" + "\n".join(self.seen))
            if line.startswith("skip: "):
                pytest.skip(line.removeprefix("skip: "))

    def verdict(self) -> str:
        """Let the program verify its state: ``ok``, or why not."""
        assert self.process is not None
        start = len(self.seen)
        try:
            os.write(self.input, b"go\n")
        except BrokenPipeError:
            return f"has ended before, with status {self.process.wait(PATIENCE)}"
        while self.line() is not None:
            pass
        status = self.process.wait(timeout=PATIENCE)
        said = self.seen[start:]
        if said and said[-1] == "ok" and status == 0:
            return "ok"
        return "\n".join([*said, f"status {status}"])

    def end(self) -> None:
        """Kill the process with all that it has started, and wait for it."""
        assert self.process is not None
        family = procfs.descendants(self.process.pid) if self.process.poll() is None else []
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=PATIENCE)
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._open:
            os.close(self.theirs[0])
            os.close(self.theirs[1])
        if self.process is not None:
            self.end()
        os.close(self.input)
        os.close(self.output)


def start(command: Sequence[str], folder: Path) -> Conversation:
    """Start a program in a session of its own, and wait until it is ready.

    PYTHONSAFEPATH, if the tests run with it, would keep a program from its neighbours.
    """
    talk = Conversation()
    with_error = True
    try:
        process = subprocess.Popen(
            command,
            stdin=talk.theirs[0],
            stdout=talk.theirs[1],
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"},
            start_new_session=True,
        )
        talk.hand_over(process)
        started.append(process.pid)
        talk.until_ready()
        with_error = False
    finally:
        if with_error:
            talk.__exit__(None, None, None)
    return talk
