"""Processes that cannot be checkpointed: one clear error each, and they live on unharmed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.conformance import PATIENCE, Compiler, Conversation, start
from support.faults import files, refused
from support.unprivileged import as_nobody

import snapkernel
from snapkernel.errors import CannotCheckpoint, CannotRestore, InvalidName, TargetError
from snapkernel.store import Store

pytestmark = pytest.mark.usefixtures("leaves_nothing")

PROGRAM = Path(__file__).parent / "programs" / "holds.py"


@pytest.fixture
def empty(store: str) -> Iterator[Path]:
    """The folder of a store that must stay without snapshots."""
    folder = Path(store.removeprefix("file://"))
    yield folder
    assert not {name for name in files(folder) if name != "config"}, files(folder)


def holding(what: str, folder: Path) -> Conversation:
    return start([sys.executable, str(PROGRAM), what], folder)


def test_no_such_process(store: str, empty: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    error = refused(lambda: snapkernel.checkpoint(gone.pid, store=store), TargetError)
    assert str(gone.pid) in error.object


@pytest.mark.parametrize("pid", [0, -1, 1 << 30])
def test_impossible_pid(pid: int, store: str, empty: Path) -> None:
    refused(lambda: snapkernel.checkpoint(pid, store=store), TargetError)


def test_zombie(store: str, empty: Path) -> None:
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    try:
        error = refused(lambda: snapkernel.checkpoint(ended.pid, store=store), TargetError)
    finally:
        assert ended.wait() == 0
    assert str(ended.pid) in error.object


def test_kernel_thread(store: str, empty: Path) -> None:
    try:
        name = Path("/proc/2/comm").read_text()
    except OSError:
        name = ""
    if name != "kthreadd\n":
        pytest.skip("no kernel thread is visible in this pid namespace")
    error = refused(lambda: snapkernel.checkpoint(2, store=store), TargetError)
    assert "2" in error.object


def test_itself(store: str, empty: Path) -> None:
    """A process cannot stop itself and go on."""
    code = (
        "import os, sys, snapkernel\n"
        "from snapkernel.errors import TargetError\n"
        "try: snapkernel.checkpoint(os.getpid(), store=sys.argv[1])\n"
        "except TargetError as error: print('refused:', error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, store], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stdout.startswith("refused: "), done.stdout + done.stderr


def test_under_a_debugger(
    target: Conversation, compiler: Compiler, store: str, empty: Path
) -> None:
    source = Path(__file__).parent / "programs" / "tracer.c"
    with start([str(compiler.executable(source)), str(target.process.pid)], Path("/")):
        error = refused(lambda: snapkernel.checkpoint(target.process.pid, store=store), TargetError)
    assert "trace" in error.reason or "debug" in error.reason, error
    assert str(target.process.pid) in error.object


def test_of_another_user(target: Conversation, tmp_path: Path) -> None:
    """Our target for a user without privilege; for such a user, a process of root."""
    code = (
        "import sys, snapkernel\n"
        "try: snapkernel.checkpoint(int(sys.argv[1]), store=sys.argv[2])\n"
        "except snapkernel.errors.SnapkernelError as error:\n"
        "    print(type(error).__name__, error.object, error.reason, error.remedy, sep='|')"
    )
    folder = f"/var/tmp/snapkernel-never-made-{os.getpid()}"
    pid = target.process.pid if os.geteuid() == 0 else 1
    if os.stat(f"/proc/{pid}").st_uid != 0:
        pytest.skip("process 1 is of the same user, as in a container")
    command = [sys.executable, "-c", code, str(pid), folder]
    if os.geteuid() == 0:
        command = as_nobody(command, tmp_path)
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.count("|") == 3, done.stdout + done.stderr
    kind, named, reason, remedy = done.stdout.rstrip("\n").split("|")
    assert kind == "TargetError", done.stdout
    assert str(pid) in named
    assert reason
    assert remedy, "the user could run it as the owner of the process"
    assert not os.path.exists(folder)


@pytest.mark.parametrize("what", ["io_uring", "name_that_is_no_text"])
def test_objects_that_are_refused(what: str, tmp_path: Path, store: str, empty: Path) -> None:
    """Named by ``explain`` and by ``checkpoint``, before anything is touched."""
    with holding(what, tmp_path) as process:
        pid = process.process.pid
        findings = [f for f in snapkernel.explain(pid) if f.status == "refused"]
        assert findings, "explain sees nothing in the way"
        error = refused(lambda: snapkernel.checkpoint(pid, store=store), CannotCheckpoint)
        assert isinstance(error, CannotCheckpoint)
        assert {f.object for f in error.findings} == {f.object for f in findings}
        assert any(what.split("_")[0] in f"{f.object} {f.reason}" for f in findings), findings
        assert all(f.reason for f in findings)
        assert process.verdict() == "ok"


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("io_uring_mapped", "anon_inode:[io_uring]"),
        ("fanotify", "fanotify instances"),
        ("userfaultfd", "userfaultfd descriptors"),
        ("perf_event", "performance counters"),
        ("bpf", "BPF objects"),
        ("asynchronous_input", "asynchronous I/O contexts"),
        ("secret_memory", "memfd_secret"),
        ("events_that_wait", "events wait"),
        ("watch_that_leads_nowhere", "watch 1"),
        ("directory_that_was_deleted", "directory was deleted"),
        ("pipe_that_was_deleted", "FIFO was deleted"),
        ("signals_to_another", "sends signals to process"),
        ("process_of_another", "belongs to process"),
        ("thread_of_ours", "belongs to thread"),
    ],
)
def test_objects_that_are_refused_by_name(
    what: str, name: str, tmp_path: Path, store: str, empty: Path
) -> None:
    """The same, each by the name of what it is, and with what can be done about it."""
    with holding(what, tmp_path) as process:
        pid = process.process.pid
        findings = [f for f in snapkernel.explain(pid) if f.status == "refused"]
        error = refused(lambda: snapkernel.checkpoint(pid, store=store), CannotCheckpoint)
        assert isinstance(error, CannotCheckpoint)
        for found in (findings, error.findings):
            assert any(name in f"{f.object}: {f.reason}" for f in found), found
            assert all(f.reason and f.remedy for f in found), found
        assert process.verdict() == "ok"


def test_fifo_that_is_not_there_any_more(tmp_path: Path, store: str) -> None:
    """It is named before anything is made; once it is there, the restore works."""
    with holding("fifo", tmp_path) as process:
        snapshot = snapkernel.checkpoint(process.process.pid, store=store, stop=True)
        process.process.wait(timeout=PATIENCE)
    (tmp_path / "named").unlink()
    error = refused(lambda: snapkernel.restore(snapshot, store=store), CannotRestore)
    assert f"FIFO {tmp_path}/named" in f"{error.object}: {error.reason}"
    assert "mkfifo" in error.remedy
    os.mkfifo(tmp_path / "named")
    with Conversation() as copy:
        copy.hand_over(snapkernel.restore(snapshot, store=store, stdio=copy.theirs))
        assert copy.verdict() == "ok"


def test_fifo_that_is_open_elsewhere(tmp_path: Path, store: str) -> None:
    """What waits in it is not written a second time while the original lives, and that is said."""
    with holding("fifo", tmp_path) as process:
        snapshot = snapkernel.checkpoint(process.process.pid, store=store)
        with Conversation() as copy:
            restored = snapkernel.restore(snapshot, store=store, stdio=copy.theirs)
            copy.hand_over(restored)
            assert any(f"FIFO {tmp_path}/named: shared" in note for note in restored.notes)
        assert process.verdict() == "ok"


@pytest.mark.parametrize(
    "what",
    [
        "descriptor_in_flight",
        "fifo",
        "file_lock",
        "huge_page",
        "inotify",
        "lease",
        "namespace_of_its_own",
        "netlink",
        "path_only",
        "pid_descriptor",
        "record_lock",
        "terminal",
        "udp_bound",
        "unix_listener",
    ],
)
def test_objects_are_kept_or_refused(what: str, tmp_path: Path, store: str) -> None:
    """Whatever it is, it is never lost in silence."""
    with holding(what, tmp_path) as process:
        pid = process.process.pid
        refusals = [f for f in snapkernel.explain(pid) if f.status == "refused"]
        if refusals:
            error = refused(lambda: snapkernel.checkpoint(pid, store=store), CannotCheckpoint)
            assert isinstance(error, CannotCheckpoint)
            assert {f.object for f in error.findings} == {f.object for f in refusals}
            assert process.verdict() == "ok"
            return
        snapshot = snapkernel.checkpoint(pid, store=store, stop=True)
        process.process.wait(timeout=PATIENCE)
        with Conversation() as copy:
            copy.hand_over(snapkernel.restore(snapshot, store=store, stdio=copy.theirs))
            assert copy.verdict() == "ok"


@pytest.mark.parametrize(
    "name", ["../escape", "a/b", "two\nlines", "nul\0", " ", "-option", "x" * 300, "a" * 32]
)
def test_invalid_name(name: str, target: Conversation, store: str, empty: Path) -> None:
    pid = target.process.pid
    refused(lambda: snapkernel.checkpoint(pid, store=store, name=name), InvalidName)


@pytest.mark.skipif(os.geteuid() == 0, reason="root has no limit; test_unprivileged runs it")
def test_no_room_for_a_child(tmp_path: Path, store: str) -> None:
    """Where the copy-on-write child cannot be had, the process stands still, and it is said."""
    with holding("no_processes_left", tmp_path) as process:
        snapshot = snapkernel.checkpoint(process.process.pid, store=store)
        assert any("RLIMIT_NPROC" in note or "child" in note for note in snapshot.notes), (
            snapshot.notes
        )
        with Conversation() as copy:
            copy.hand_over(snapkernel.restore(snapshot, store=store, stdio=copy.theirs))
            assert copy.verdict() == "ok"
        assert process.verdict() == "ok"


def test_process_that_ends_meanwhile(compiler: Compiler, tmp_path: Path, store: str) -> None:
    """It was there when the checkpoint was asked for, and is gone before it is safe: either the
    snapshot was complete by then, or the error names the process."""
    with start(compiler.command("memory.private_anonymous"), tmp_path) as process:

        def progress(step: str, done: int, total: int) -> None:
            process.process.kill()

        pid = process.process.pid
        named = str(pid)
        try:
            snapshot = snapkernel.checkpoint(pid, store=store, stop=True, progress=progress)
        except TargetError as error:
            named = error.object
        else:
            assert Store.open(store).verify(snapshot.id) == []
        assert str(pid) in named
        process.process.wait(timeout=PATIENCE)
