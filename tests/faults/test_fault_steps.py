"""A checkpoint or a restore fails, or is killed, at any step: nobody comes to harm, and nothing is
left behind.

The steps are found by ``SNAPKERNEL_FAULT=checkpoint:list``. A process that is saved must go on as
if nothing had been: it verifies itself, and is looked at from outside. ``SNAPKERNEL_FAULTS=200``
(`make faults`) has every step of a Jupyter kernel's checkpoint and restore, and 200 kills at random
instants; without it there is a sample of both.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import leaks
from support.conformance import (
    COMPILE,
    PATIENCE,
    Compiler,
    Conversation,
    program_names,
    start,
)
from support.kernel import Kernel
from support.surgeon import DONE, FAILED, KILLED, Outcome, Surgeon, body, healed, points

import snapkernel
from snapkernel.faults import VARIABLE
from snapkernel.store import Store

PROGRAMS = Path(__file__).parent / "programs"
KILLS = int(os.environ.get("SNAPKERNEL_FAULTS", "0"))
SOME, FEW = (1, 1) if KILLS else (4, 16)
"""Of how many steps one is tried, where not all are: there are hundreds."""
SEED = 20


@pytest.fixture(scope="module")
def surgeon() -> Iterator[Surgeon]:
    with Surgeon() as found:
        yield found


@pytest.fixture(scope="module")
def witness(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of a process that notices when something was done to it."""
    made = tmp_path_factory.mktemp("witness") / "witness"
    source = str(PROGRAMS / "witness.c")
    subprocess.run(["cc", *COMPILE, "-o", str(made), source, "-lm"], check=True)
    return [str(made)]


def pid_of(talk: Conversation) -> int:
    assert talk.process is not None
    return talk.process.pid


def check(talk: Conversation) -> None:
    """The process verifies itself, and goes on."""
    os.write(talk.input, b"check\n")
    assert talk.line() == "ok", talk.seen


def in_order(store: str) -> int:
    """Nothing in the store is half there; the number of its snapshots."""
    where = Store.open(store)
    assert where.verify() == []
    return len(where.list())


def clean(store: str) -> None:
    """When the snapshots are removed, collection leaves nothing."""
    where = Store.open(store)
    where.remove([summary.id for summary in where.list()])
    where.gc(grace=-1)
    folder = Path(store.removeprefix("file://"))
    left = [path.name for path in folder.rglob("*") if path.is_file()]
    assert left == ["config"]


@pytest.mark.parametrize("action", ["fail", "kill"])
def test_checkpoint_goes_on(
    action: str, surgeon: Surgeon, witness: list[str], tmp_path: Path, store: str
) -> None:
    """One process, all steps one after the other."""
    with start(witness, tmp_path) as talk:
        pid = pid_of(talk)
        surgeon.checkpoint(pid, store)
        found = points(surgeon.checkpoint(pid, store, fault="checkpoint:list"))
        before = body(pid)
        for number, what in enumerate(found, 1):
            done = surgeon.checkpoint(pid, store, fault=f"checkpoint:{number}:{action}")
            said = f"step {number} of {len(found)} ({what}): {done}"
            # How many steps there are differs by some; a copy that fails is done without.
            assert done.status in ((DONE, FAILED) if action == "fail" else (DONE, KILLED)), said
            assert healed(pid, before) == before, said
            check(talk)
        in_order(store)
        clean(store)
        assert talk.verdict() == "ok"


@pytest.mark.parametrize("action", ["fail", "kill"])
def test_checkpoint_that_stops(
    action: str, surgeon: Surgeon, witness: list[str], tmp_path: Path, store: str
) -> None:
    """It goes on as long as its snapshot is not there; then it may have ended."""
    with start(witness, tmp_path) as talk:
        listed = surgeon.checkpoint(pid_of(talk), store, stop=True, fault="checkpoint:list")
        found = points(listed)
    talk = start(witness, tmp_path)
    try:
        before, snapshots = body(pid_of(talk)), in_order(store)
        for number, what in enumerate(found, 1):
            fault = f"checkpoint:{number}:{action}"
            pid = pid_of(talk)
            done = surgeon.checkpoint(pid, store, stop=True, fault=fault)
            said = f"step {number} of {len(found)} ({what}): {done}"
            assert done.status in ((DONE, FAILED) if action == "fail" else (DONE, KILLED)), said
            is_there = in_order(store) > snapshots
            if is_there:
                snapshots += 1
                talk.__exit__(None, None, None)
                talk = start(witness, tmp_path)
                before = body(pid_of(talk))
            else:
                assert done.status != DONE, said
                assert healed(pid, before) == before, said
                check(talk)
        clean(store)
        assert talk.verdict() == "ok"
    finally:
        talk.__exit__(None, None, None)


def test_vector_registers(surgeon: Surgeon, compiler: Compiler, tmp_path: Path, store: str) -> None:
    """Registers that a system call leaves alone are left alone at every step."""
    if "control_words" not in program_names():
        pytest.skip("there is no program for this architecture that fills them")
    with start(compiler.command("control_words"), tmp_path) as talk:
        pid = pid_of(talk)
        before = body(pid)
        found = points(surgeon.checkpoint(pid, store, fault="checkpoint:list"))
        for number, what in enumerate(found, 1):
            surgeon.checkpoint(pid, store, fault=f"checkpoint:{number}:kill")
            assert healed(pid, before) == before, f"step {number} ({what})"
        assert talk.verdict() == "ok"


def test_the_freezer_is_killed(witness: list[str], tmp_path: Path, store: str) -> None:
    """The variable reaches the process that does the work."""
    code = (
        "import sys, snapkernel\n"
        "try: snapkernel.checkpoint(int(sys.argv[1]), store=sys.argv[2])\n"
        "except snapkernel.SnapkernelError as error: sys.exit(f'{type(error).__name__}: {error}')"
    )
    with start(witness, tmp_path) as talk:
        pid = pid_of(talk)
        before = body(pid)
        for action, reason in (("kill", "(status -9)"), ("fail", "InjectedFault: step 20 of")):
            done = subprocess.run(
                [sys.executable, "-c", code, str(pid), store],
                env={**os.environ, VARIABLE: f"checkpoint:20:{action}"},
                capture_output=True,
                text=True,
            )
            assert reason in done.stderr, done
            assert healed(pid, before) == before
            check(talk)
        assert talk.verdict() == "ok"


def test_nonsense_is_refused(witness: list[str], tmp_path: Path, store: str) -> None:
    with start(witness, tmp_path) as talk, pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "checkpoint:soon")
        with pytest.raises(snapkernel.SnapkernelError, match="checkpoint:soon"):
            snapkernel.checkpoint(pid_of(talk), store=store)
        assert talk.verdict() == "ok"


BUSY = """
import subprocess, sys, threading, time, numpy

class Worker(threading.Thread):
    def run(self):
        self.rounds = self.wrong = 0
        x = numpy.linspace(0.1, 0.9, 1000)
        first = (numpy.sin(x) * numpy.exp(x)).tobytes()
        while True:
            self.wrong += (numpy.sin(x) * numpy.exp(x)).tobytes() != first
            self.rounds += 1
            time.sleep(0.001)

workers = [Worker(daemon=True) for _ in range(2)]
for worker in workers: worker.start()
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
"""
ASK = """
before = [worker.rounds for worker in workers]
while any(worker.rounds < old + 2 for worker, old in zip(workers, before)): time.sleep(0.0001)
child.stdin.write(b"x\\n"), child.stdin.flush()
print(sum(worker.wrong for worker in workers), child.stdout.readline(), child.poll())
"""
ANSWER = "0 b'x\\n' None\n"


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    """A kernel that computes all the time, with a child."""
    with Kernel.start(tmp_path / "kernel") as found:
        found.execute(BUSY)
        assert found.execute(ASK) == ANSWER
        yield found


def unharmed(kernel: Kernel, before: object, said: str) -> None:
    assert healed(kernel.pid, before, grows=True) == before, said  # type: ignore[arg-type]
    assert kernel.execute(ASK) == ANSWER, said


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("action", ["fail", "kill"])
def test_checkpoint_of_a_kernel(action: str, surgeon: Surgeon, kernel: Kernel, store: str) -> None:
    """With threads and a child; it answers after every step."""
    surgeon.checkpoint(kernel.pid, store)
    found = points(surgeon.checkpoint(kernel.pid, store, fault="checkpoint:list"))
    before = body(kernel.pid, grows=True)
    for number in range(1, len(found) + 1, FEW):
        done = surgeon.checkpoint(kernel.pid, store, fault=f"checkpoint:{number}:{action}")
        said = f"step {number} of {len(found)} ({found[number - 1]}): {done}"
        assert done.status in ((DONE, FAILED) if action == "fail" else (DONE, KILLED)), said
        unharmed(kernel, before, said)
    in_order(store)
    clean(store)


@pytest.mark.timeout(3000)
def test_kills_at_random_instants(surgeon: Surgeon, kernel: Kernel, store: str) -> None:
    surgeon.checkpoint(kernel.pid, store)
    usual = surgeon.checkpoint(kernel.pid, store)
    assert usual.status == DONE, usual.text
    before = body(kernel.pid, grows=True)
    chance = random.Random(SEED)
    killed = 0
    for number in range(KILLS or 40):
        delay = chance.uniform(0, usual.seconds)
        done: Outcome = surgeon.checkpoint(kernel.pid, store, delay=delay)
        killed += done.status == KILLED
        unharmed(kernel, before, f"kill {number}, after {delay:.6f} s")
    assert killed > (KILLS or 40) // 2
    in_order(store)
    clean(store)


@pytest.mark.parametrize("action", ["fail", "kill"])
def test_restore(
    action: str, surgeon: Surgeon, witness: list[str], tmp_path: Path, store: str
) -> None:
    """Nothing is left of a process that never ran."""
    with start(witness, tmp_path) as talk:
        snapkernel.checkpoint(pid_of(talk), store=store, name="good")
        assert talk.verdict() == "ok"
    nothing_left(surgeon, store, tmp_path, action, SOME)


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("action", ["fail", "kill"])
def test_restore_of_a_kernel(action: str, surgeon: Surgeon, tmp_path: Path, store: str) -> None:
    """Its connection file goes as well."""
    with Kernel.start(tmp_path / "kernel") as kernel:
        snapkernel.checkpoint(kernel.pid, store=store, name="good")
    nothing_left(surgeon, store, tmp_path, action, FEW)


def nothing_left(surgeon: Surgeon, store: str, folder: Path, action: str, step: int) -> None:
    """Until the last thread is let go; from then on the process runs."""
    file = folder / "made" / "connection.json"
    file.parent.mkdir()
    found = points(surgeon.restore(store, file, fault="restore:list"))
    last = len(found) - 1 - found[::-1].index("a thread is let go")
    file.unlink(missing_ok=True)
    before = leaks.look()
    numbers = {*range(1, last + 2, step), *range(max(1, last - 20), last + 2)}
    for number in sorted(numbers):
        done = surgeon.restore(store, file, fault=f"restore:{number}:{action}")
        said = f"step {number} of {len(found)} ({found[number - 1]}): {done}"
        if done.status == DONE:  # nothing fails on the way out
            assert action == "fail", said
            file.unlink(missing_ok=True)
        else:
            assert done.status == (FAILED if action == "fail" else KILLED), said
        left = leaks.left_behind(before)
        assert not left, f"{said}: left behind: {'; '.join(left)}"
        assert list(file.parent.iterdir()) == [], said


def test_a_process_that_ends_as_soon_as_it_runs(
    witness: list[str], tmp_path: Path, store: str
) -> None:
    """Its main thread ends all others while these are still being let go."""
    with start(witness, tmp_path) as talk:
        snapshot = snapkernel.checkpoint(pid_of(talk), store=store)
        assert talk.verdict() == "ok"
    with open(os.devnull, "r+b") as nothing:
        for _ in range(10):
            process = snapkernel.restore(snapshot, store=store, stdio=(nothing.fileno(),) * 3)
            assert process.wait(timeout=PATIENCE) == 1
