"""The canary: a small process is really saved, killed and restored, and must not notice."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snapkernel.errors import SnapkernelError

PROGRAM = Path(__file__).with_name("canary_program.py")
PATIENCE = 30.0
"""Seconds after which a silent canary is dead."""


class CanaryError(SnapkernelError):
    """The canary does not answer, or answers wrongly."""

    def __init__(self, reason: str) -> None:
        super().__init__("canary", reason, "please report this, with the output of uname -a")


class _Talk:
    """Questions and answers over two pipes, one line each."""

    def __init__(self, questions: int, answers: int, who: str) -> None:
        self._questions = questions
        self._answers = answers
        self._who = who

    def hear(self) -> str:
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self._answers], [], [], PATIENCE)[0]:
                raise CanaryError(f"{self._who} has not answered for {PATIENCE:.0f} seconds")
            part = os.read(self._answers, 4096)
            if not part:
                raise CanaryError(f"{self._who} ended unexpectedly")
            line += part
        return line.decode()

    def ask(self) -> dict[str, object]:
        """What it holds; everything it holds moves on."""
        try:
            os.write(self._questions, b"\n")
        except BrokenPipeError:
            raise CanaryError(f"{self._who} ended unexpectedly") from None
        answer: dict[str, object] = json.loads(self.hear())
        return answer


def fly() -> str:
    """Checkpoint a process live, kill it, restore it, and compare how both go on.

    Returns:
        What was measured, for people.

    Raises:
        SnapkernelError: it did not work.
    """
    import snapkernel

    with tempfile.TemporaryDirectory(prefix="snapkernel-canary-") as folder:
        store = Path(folder, "store").as_uri()
        file = Path(folder, "file")
        file.write_bytes(bytes(range(256)))
        with _original(file) as (pid, talk):
            first = talk.ask()
            snapshot = snapkernel.checkpoint(pid, store=store, name="canary")
            expected = [talk.ask(), talk.ask()]
        if not first["timer"] or expected[0]["generator"] != 2:
            raise CanaryError(f"the original is not what it should be: {first}, {expected}")
        with _restored(snapshot.id, store) as (talk, running_s):
            found = [talk.ask(), talk.ask()]
    _compare(expected, found)
    return (
        f"paused for {snapshot.pause_s * 1000:.1f} ms, "
        f"restored in {running_s * 1000:.0f} ms, unchanged"
    )


@contextmanager
def _original(file: Path) -> Iterator[tuple[int, _Talk]]:
    with subprocess.Popen(
        [sys.executable, "-I", PROGRAM, file],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin
        assert process.stdout
        talk = _Talk(process.stdin.fileno(), process.stdout.fileno(), "the canary")
        try:
            talk.hear()
            yield process.pid, talk
        finally:
            process.kill()


@contextmanager
def _restored(snapshot: str, store: str) -> Iterator[tuple[_Talk, float]]:
    import snapkernel

    their_questions, questions = os.pipe()
    answers, their_answers = os.pipe()
    with open(os.devnull, "wb") as nowhere:
        try:
            stdio = (their_questions, their_answers, nowhere.fileno())
            process = snapkernel.restore(snapshot, store=store, stdio=stdio)
        except BaseException:
            os.close(questions)
            os.close(answers)
            raise
        finally:
            os.close(their_questions)
            os.close(their_answers)
    try:
        yield _Talk(questions, answers, "the restored canary"), process.running_s
    finally:
        os.close(questions)
        os.close(answers)
        process.kill()
        process.wait()


def _compare(expected: list[dict[str, object]], found: list[dict[str, object]]) -> None:
    for wanted, got in zip(expected, found, strict=True):
        if changed := [name for name in wanted if wanted[name] != got.get(name)]:
            name = changed[0]
            raise CanaryError(
                f"the restored one differs in {', '.join(changed)}: "
                f"{name} is {got.get(name)}, should be {wanted[name]}"
            )
