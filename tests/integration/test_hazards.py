"""What goes wrong easily while a process is frozen: each hazard by its name."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.conformance import Compiler, Conversation, start
from support.faults import outlived_by_helpers

import snapkernel
from snapkernel.errors import CannotCheckpoint
from snapkernel.freeze.checkpoint import checkpoint_here
from snapkernel.store import Store

pytestmark = [pytest.mark.usefixtures("leaves_nothing"), pytest.mark.timeout(120)]

PROGRAMS = Path(__file__).parent / "programs"
MUCH = "128"
"""MiB that take so long to store that something can happen meanwhile."""


def hazard(name: str) -> list[str]:
    return [sys.executable, str(PROGRAMS / "hazards.py"), name]


@dataclass(frozen=True)
class Look:
    """What others see of a process that nobody touches.

    Attributes:
        threads: by thread id: who traces it, what signals it blocks.
        mappings: of its memory.
        copies: processes that run the same program.
    """

    threads: dict[int, tuple[int, str]]
    mappings: list[str]
    copies: list[int]


def look(pid: int) -> Look:
    threads = {}
    for tid in map(int, os.listdir(f"/proc/{pid}/task")):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ends meanwhile
            lines = Path(f"/proc/{pid}/task/{tid}/status").read_text().splitlines()
            fields = dict(line.split(":\t", 1) for line in lines)
            threads[tid] = int(fields["TracerPid"]), fields["SigBlk"]
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return Look(threads, [line.split()[0] for line in maps], copies(pid))


def copies(pid: int) -> list[int]:
    program = os.readlink(f"/proc/{pid}/exe")
    found = []
    for other in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if os.readlink(f"/proc/{other}/exe") == program and int(other) != pid:
                found.append(int(other))
    return found


def pid_of(process: Conversation) -> int:
    assert process.process is not None
    return process.process.pid


@pytest.fixture
def working(compiler: Compiler, tmp_path: Path) -> Iterator[Conversation]:
    """A process with threads, which must be unharmed at the end."""
    with start([str(compiler.executable(PROGRAMS / "works.c"))], tmp_path) as process:
        before = look(pid_of(process))
        yield process
        assert look(pid_of(process)) == before
        assert process.verdict() == "ok"


# --- the caller does something else at the same time ---------------------------------------------


def test_caller_polls_its_child(working: Conversation, store: str) -> None:
    """``Popen.poll()`` waits for the child, and may not be told of stops that are not for it."""
    assert working.process is not None
    said: list[int | None] = []
    over = threading.Event()

    def poll() -> None:
        assert working.process is not None
        while not over.wait(0.0005):
            said.append(working.process.poll())

    poller = threading.Thread(target=poll)
    poller.start()
    try:
        for _ in range(20):
            snapkernel.checkpoint(pid_of(working), store=store)
    finally:
        over.set()
        poller.join()
    assert set(said) == {None}


INTERRUPTED = """
import os, signal, sys
import snapkernel, snapkernel.freeze.freezer

def interrupt(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
print("ready", flush=True)
for line in sys.stdin:
    what = "complete"
    try:
        signal.setitimer(signal.ITIMER_REAL, float(line))
        try:
            snapkernel.checkpoint(int(sys.argv[1]), store=sys.argv[2])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        what = "interrupted"
    try:
        while os.wait():  # whoever helps it
            pass
    except ChildProcessError:
        print(what, flush=True)
"""


def test_caller_is_interrupted(working: Conversation, store: str) -> None:
    """KeyboardInterrupt at 30 moments, between the beginning and the end of a checkpoint."""
    pid = pid_of(working)
    before = look(pid)
    longest = snapkernel.checkpoint(pid, store=store).safe_s
    moments = random.Random(7)
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(pid), store],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as caller:
        assert caller.stdin is not None
        assert caller.stdout is not None
        assert caller.stdout.readline() == "ready\n"
        seen = set()
        for _ in range(30):
            print(moments.uniform(0.001, longest), file=caller.stdin, flush=True)
            seen.add(caller.stdout.readline())
            assert look(pid) == before
        caller.stdin.close()
    assert seen >= {"interrupted\n"}
    assert seen <= {"interrupted\n", "complete\n"}
    assert Store.open(store).verify() == []


KILLED = """
import sys, snapkernel

def progress(step, done, total):
    print("in the middle", flush=True)
    sys.stdin.read()

print("ready", flush=True)
snapkernel.checkpoint(
    int(sys.argv[1]), store=sys.argv[2], stop=sys.argv[3] == "stop", progress=progress
)
"""


@pytest.mark.parametrize("mode", ["live", "stop"])
def test_caller_is_killed(mode: str, compiler: Compiler, tmp_path: Path, store: str) -> None:
    """Whoever helps the caller gives up when it is gone, and gives the process its life back."""
    program = compiler.executable(PROGRAMS / "works.c")
    with start([str(program), MUCH], tmp_path) as working:
        pid = pid_of(working)
        before = look(pid)
        caller = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(pid), store, mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert caller.stdout is not None
        with caller:
            assert caller.stdout.readline() == "ready\n"
            assert caller.stdout.readline() == "in the middle\n"
            with outlived_by_helpers(caller.pid):
                caller.kill()
        assert Store.open(store).list() == []
        assert look(pid) == before
        assert snapkernel.checkpoint(pid, store=store).id
        assert working.verdict() == "ok"


# --- the process changes meanwhile ---------------------------------------------------------------


def test_threads_start_and_end_all_the_time(compiler: Compiler, tmp_path: Path, store: str) -> None:
    with start([str(compiler.executable(PROGRAMS / "starts_threads.c"))], tmp_path) as process:
        pid = pid_of(process)
        place = Store.open(store, create=True)
        for _ in range(40):
            checkpoint_here(pid, store=place)
            tracers = {tracer for tracer, _ in look(pid).threads.values()}
            assert tracers == {0}
        assert process.verdict() == "ok"


# --- what it has is lost easily ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "many_descriptors",
        "few_descriptors_allowed",
        "receive_timeout",
        "ignored_trap",
        "pipe_both_ways",
        "one_processor",
        "names_of_bytes",
        "watch_with_a_high_number",
    ],
)
def test_kept(name: str, tmp_path: Path, store: str) -> None:
    """In the original, which goes on, and in a copy beside it."""
    with start(hazard(name), tmp_path) as process:
        snapshot = snapkernel.checkpoint(pid_of(process), store=store)
        with Conversation() as copy:
            copy.hand_over(snapkernel.restore(snapshot, store=store, stdio=copy.theirs))
            assert copy.verdict() == "ok"
        assert process.verdict() == "ok"


def test_system_v_objects_are_copied(tmp_path: Path, store: str) -> None:
    """A copy has its own, in a namespace of its own, and whoever restores it is told."""
    with start(hazard("segment_and_semaphores"), tmp_path) as process:
        said = [f.object for f in snapkernel.explain(pid_of(process)) if f.status == "replaced"]
        assert any("System V IPC objects" in text for text in said), said
        snapshot = snapkernel.checkpoint(pid_of(process), store=store)
        assert sum("System V IPC objects" in note for note in snapshot.notes) == 1
        assert any("SEM_UNDO" in note for note in snapshot.notes)
        with Conversation() as copy:
            copy.hand_over(snapkernel.restore(snapshot, store=store, stdio=copy.theirs))
            theirs = os.readlink(f"/proc/{pid_of(copy)}/ns/ipc")
            assert theirs != os.readlink("/proc/self/ns/ipc")
            assert copy.verdict() == "ok"
        assert process.verdict() == "ok"


def test_ipc_namespace_is_shared_without_need(tmp_path: Path, store: str) -> None:
    """A process without such objects goes on in the namespace of its restorer."""
    with start(hazard("idle"), tmp_path) as process:
        snapshot = snapkernel.checkpoint(pid_of(process), store=store, stop=True)
    with Conversation() as copy:
        copy.hand_over(snapkernel.restore(snapshot, store=store, stdio=copy.theirs))
        theirs = os.readlink(f"/proc/{pid_of(copy)}/ns/ipc")
        assert theirs == os.readlink("/proc/self/ns/ipc")
        assert copy.verdict() == "ok"


# --- what is refused -----------------------------------------------------------------------------


def refused_by_name(pid: int, name: str, store: str) -> None:
    """``explain`` and ``checkpoint`` both name what is in the way."""
    findings = [found for found in snapkernel.explain(pid) if found.status == "refused"]
    with pytest.raises(CannotCheckpoint) as caught:
        snapkernel.checkpoint(pid, store=store)
    for found in (findings, caught.value.findings):
        assert any(name in f"{f.object}: {f.reason}" for f in found), found
    assert Store.open(store, create=True).list() == []


def test_terminal_of_another(tmp_path: Path, store: str) -> None:
    """A process outside works in a terminal whose master is in the process."""
    with start(hazard("terminal_of_another"), tmp_path) as process:
        name = process.seen[0].removeprefix("terminal ")
        slave = os.open(name, os.O_RDWR | os.O_NOCTTY)
        try:
            refused_by_name(pid_of(process), f"process {os.getpid()}", store)
        finally:
            os.close(slave)
        assert snapkernel.checkpoint(pid_of(process), store=store).id
        assert process.verdict() == "ok"


@pytest.mark.parametrize("state", ["news", "full"])
def test_terminal_that_cannot_be_copied(state: str, tmp_path: Path, store: str) -> None:
    """What waits in it could not be given back."""
    with start(hazard(f"terminal_{state}"), tmp_path) as process:
        refused_by_name(pid_of(process), "terminal", store)
        assert process.verdict() == "ok"


def unshare(*options: str) -> list[str]:
    """Needs root, or a user namespace."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *user, *options]


def test_network_namespace(tmp_path: Path, store: str) -> None:
    with start([*unshare("--net"), *hazard("idle")], tmp_path) as process:
        refused_by_name(pid_of(process), "net namespace", store)
        assert process.verdict() == "ok"


def test_ipc_namespace(tmp_path: Path, store: str) -> None:
    """One that is not only of the process, or its pid namespace, cannot be made anew."""
    with start([*unshare("--ipc"), *hazard("idle")], tmp_path) as process:
        refused_by_name(pid_of(process), "ipc namespace", store)
        assert process.verdict() == "ok"


def test_queue_with_notification(tmp_path: Path, store: str) -> None:
    with start(hazard("queue_with_notification"), tmp_path) as process:
        refused_by_name(pid_of(process), "notification", store)
        assert process.verdict() == "ok"


def test_mount_namespace(tmp_path: Path, store: str) -> None:
    """It sees other files than a restored process would."""
    mount = ["sh", "-c", 'mount -t tmpfs none "$PWD" && exec "$@"', "sh"]
    with start([*unshare("--mount"), *mount, *hazard("idle")], tmp_path) as process:
        refused_by_name(pid_of(process), "mount namespace", store)
        assert process.verdict() == "ok"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_mounted_later(tmp_path: Path) -> None:
    """What the host mounts and unmounts while a copy runs, the copy sees as well; so it can be
    saved again, and keeps nothing mounted."""
    shared = ["unshare", "--mount", "--propagation", "shared", sys.executable]
    command = [*shared, str(PROGRAMS / "mounts_later.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.stdout == "ok\n", done.stderr


def test_first_of_its_namespace(tmp_path: Path, store: str) -> None:
    """Process 1 has other rights and duties than a restored process, which is never the first."""
    with start([*unshare("--pid", "--fork", "--kill-child"), *hazard("idle")], tmp_path) as process:
        outer = pid_of(process)
        (child,) = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
        refused_by_name(int(child), "pid 1", store)
        assert process.verdict() == "ok"
