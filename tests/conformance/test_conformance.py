"""Small programs, one behaviour each: what a program could notice of a checkpoint and a restore.

Every program of ``programs/`` is run undisturbed, checkpointed live with its restored copy beside
it, stopped and restored, and taken through three generations. Each time it verifies its own state.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from support.conformance import PATIENCE, Compiler, Conversation, program_names, start

import snapkernel

pytestmark = pytest.mark.usefixtures("leaves_nothing")
every_program = pytest.mark.parametrize("name", list(program_names()))


def restore(snapshot: snapkernel.Snapshot, store: str) -> Conversation:
    """Restore with pipes for standard streams."""
    talk = Conversation()
    try:
        talk.hand_over(snapkernel.restore(snapshot, store=store, stdio=talk.theirs))
    except BaseException:
        talk.__exit__(None, None, None)
        raise
    return talk


@every_program
def test_undisturbed(name: str, compiler: Compiler, tmp_path: Path) -> None:
    """The program itself is right."""
    with start(compiler.command(name), tmp_path) as original:
        assert original.verdict() == "ok"


@every_program
def test_live(name: str, compiler: Compiler, tmp_path: Path, store: str) -> None:
    """The original goes on, and so does a restored copy beside it."""
    with start(compiler.command(name), tmp_path) as original:
        snapshot = snapkernel.checkpoint(original.process.pid, store=store)
        with restore(snapshot, store) as copy:
            assert original.process.poll() is None
            verdicts = {"copy": copy.verdict(), "original": original.verdict()}
        assert verdicts == {"copy": "ok", "original": "ok"}


@every_program
def test_stopped(name: str, compiler: Compiler, tmp_path: Path, store: str) -> None:
    """The original ends with the checkpoint, and is restored."""
    with start(compiler.command(name), tmp_path) as original:
        snapshot = snapkernel.checkpoint(original.process.pid, store=store, stop=True)
        original.process.wait(timeout=PATIENCE)
        with restore(snapshot, store) as copy:
            assert copy.verdict() == "ok"


@every_program
def test_three_generations(name: str, compiler: Compiler, tmp_path: Path, store: str) -> None:
    """A restored process is a process like any other, live or stopped."""
    with start(compiler.command(name), tmp_path) as original:
        snapshot = snapkernel.checkpoint(original.process.pid, store=store)
    for generation in (2, 3):
        with restore(snapshot, store) as copy:
            snapshot = snapkernel.checkpoint(copy.process.pid, store=store, stop=generation == 2)
    with restore(snapshot, store) as copy:
        assert copy.verdict() == "ok"


def test_dead_time_is_not_seen(compiler: Compiler, tmp_path: Path, store: str) -> None:
    """The time between a checkpoint and a restore passes on the real clock only."""
    with start(compiler.command("clocks.dead_time"), tmp_path) as original:
        snapshot = snapkernel.checkpoint(original.process.pid, store=store, stop=True)
    stopped = time.time_ns()
    time.sleep(1.5)  # nothing to wait for but time itself
    dead = time.time_ns() - stopped
    with restore(snapshot, store) as copy:
        assert copy.verdict() == "ok"
        said = "\n".join(copy.seen)
    found = [int(number) for number in re.findall(r"not seen by clock \d+: (-?\d+)", said)]
    assert found, said
    assert min(found) >= dead, "a monotonic clock went on while the process did not exist"


def test_ends_when_told_to(compiler: Compiler, tmp_path: Path, store: str) -> None:
    """A signal sent to a restored process reaches it, and its end is reported."""
    with start(compiler.command("memory.private_anonymous"), tmp_path) as original:
        snapshot = snapkernel.checkpoint(original.process.pid, store=store)
    with restore(snapshot, store) as copy:
        copy.process.send_signal(15)
        assert copy.process.wait(timeout=PATIENCE) == 128 + 15
