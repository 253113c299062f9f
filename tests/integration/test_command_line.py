"""The installed command, on real processes."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

COMMAND = shutil.which("snapkernel", path=sysconfig.get_path("scripts")) or "snapkernel"

PATIENCE = 60.0
"""Seconds after which something that has not happened never will."""

# Counts lines, reports a signal, ends when it is told to.
COUNTER = """
import os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"signal\\n"))
count = 0
print("ready", flush=True)
for line in sys.stdin:
    if line == "exit\\n":
        sys.exit(7)
    count += 1
    print(count, flush=True)
"""

# Waits without looking at its standard streams.
SLEEPER = "import signal; print('ready', flush=True); signal.pause()"

pytestmark = pytest.mark.usefixtures("leaves_nothing")


class Program:
    """A process with which we talk over its standard streams."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdin
        assert self.process.stdout
        assert self.process.stderr
        self.input, self.output, self.errors = (
            self.process.stdin,
            self.process.stdout,
            self.process.stderr,
        )
        self.pid = self.process.pid

    def ask(self, line: str) -> str:
        self.input.write(f"{line}\n".encode())
        self.input.flush()
        return self.hear()

    def hear(self) -> str:
        return self.output.readline().decode().rstrip()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def start(*arguments: str) -> Iterator[Program]:
    program = Program(*arguments)
    assert program.hear() == "ready"
    yield program
    program.end()


@pytest.fixture
def counter() -> Iterator[Program]:
    yield from start(sys.executable, "-c", COUNTER)


@pytest.fixture
def sleeper() -> Iterator[Program]:
    yield from start(sys.executable, "-c", SLEEPER)


def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [COMMAND, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == status, done.stderr
    return done


def as_json(*arguments: str, status: int = 0) -> dict[str, object]:
    value = json.loads(run(*arguments, "--json", status=status).stdout)
    assert isinstance(value, dict)
    return value


def test_a_live_checkpoint_tells_what_it_did(counter: Program, store: str) -> None:
    assert counter.ask("count") == "1"
    told = as_json("checkpoint", str(counter.pid), "--name", "counter", "--store", store)
    assert counter.ask("count") == "2"
    assert told["name"] == "counter"
    assert told["mode"] == "live"
    assert told["pid"] == counter.pid
    for key in ("pause_s", "safe_s", "memory_bytes", "stored_bytes"):
        value = told[key]
        assert isinstance(value, int | float)
        assert value > 0

    listed = json.loads(run("list", "--json", "--store", store).stdout)
    assert [entry["id"] for entry in listed] == [told["id"]]
    for key in ("name", "memory_bytes", "stored_bytes"):
        assert listed[0][key] == told[key]
    assert {"created", "host"} <= set(listed[0])

    shown = as_json("show", "counter", "--store", store)
    assert shown["id"] == told["id"]
    processes = shown["processes"]
    assert isinstance(processes, list)
    assert processes[0]["pid"] == counter.pid
    assert {"number": 0, "kind": "stream"} in processes[0]["descriptors"]

    assert as_json("verify", "--store", store) == {"ok": True, "problems": []}
    as_json("remove", "counter", "--store", store)
    assert json.loads(run("list", "--json", "--store", store).stdout) == []
    freed = as_json("gc", "--grace", "0", "--store", store)["freed_bytes"]
    assert isinstance(freed, int)
    assert freed > 0


# Has a file open in its folder.
WRITER = """
import os, signal, sys
log = open("run.log", "w")
log.write("x" * 5000)
log.flush()
with open("result", "w") as result:
    result.write("done")
print("ready", flush=True)
signal.pause()
"""


@pytest.fixture
def writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield from start(sys.executable, "-c", WRITER)


def test_files_that_travel_are_shown(writer: Program, store: str, tmp_path: Path) -> None:
    log, result = str(tmp_path / "work/run.log"), str(tmp_path / "work/result")
    explained = as_json("explain", str(writer.pid), "--files", "written")["objects"]
    assert isinstance(explained, list)
    reasons = {found["object"]: found["reason"] for found in explained}
    assert reasons[f"file {log}"] == "its 5000 bytes travel"
    assert reasons[f"file {result}"] == "its 4 bytes travel"

    told = as_json("checkpoint", str(writer.pid), "--store", store, "--name", "w")
    assert {"path": log, "size": 5000} in told["files"]  # type: ignore[operator]
    assert told["file_bytes"] == 5000
    run("checkpoint", str(writer.pid), "--store", store, "--files", "none", "--name", "none")
    listed = {
        e["name"]: e["file_bytes"]
        for e in json.loads(run("list", "--json", "--store", store).stdout)
    }
    assert listed == {"w": 5000, "none": 0}
    carried = as_json("show", "w", "--store", store)["carried"]
    assert {"path": log, "size": 5000, "target": "", "common": False} in carried  # type: ignore[operator]
    assert f"carried       {log} (4.9 KiB)" in run("show", "w", "--store", store).stdout

    os.unlink(log)
    assert (
        f"-- write file {log}: 5000 bytes" in run("restore", "w", "--plan", "--store", store).stdout
    )
    Path(log).write_text("another")
    done = run("restore", "w", "--detach", "--store", store, status=1)
    assert f"file {log}: has 7 bytes here, 5000 in the snapshot" in done.stderr
    assert "--files keep" in done.stderr
    told = as_json("restore", "w", "--detach", "--store", store, "--files", "beside")
    pid = told["pid"]
    assert isinstance(pid, int)
    with open(os.pidfd_open(pid), "rb", buffering=0) as ended:
        os.kill(pid, signal.SIGKILL)
        assert select.select([ended], [], [], PATIENCE)[0]
    assert Path(f"{log}-2").read_text() == "x" * 5000


def test_checkpoint_prints_the_id_alone(counter: Program, store: str) -> None:
    done = run("checkpoint", str(counter.pid), "--store", store)
    assert run("show", done.stdout.strip(), "--store", store).stdout.split()[1] in done.stdout
    assert "paused for" in done.stderr


def test_stop_ends_the_process(counter: Program, store: str) -> None:
    told = as_json("checkpoint", str(counter.pid), "--stop", "--store", store)
    assert told["mode"] == "stop"
    assert counter.process.wait() == -signal.SIGKILL


def test_a_restore_in_the_foreground_is_the_process(counter: Program, store: str) -> None:
    assert counter.ask("count") == "1"
    run("checkpoint", str(counter.pid), "--name", "counter", "--store", store)
    restored = Program(COMMAND, "restore", "counter", "--store", store)
    try:
        assert restored.ask("count") == "2"
        restored.process.send_signal(signal.SIGUSR1)
        assert restored.hear() == "signal"
        restored.input.write(b"exit\n")
        restored.input.flush()
        assert restored.process.wait() == 7
    finally:
        restored.end()


def test_a_signal_that_ends_the_process_ends_the_command(counter: Program, store: str) -> None:
    run("checkpoint", str(counter.pid), "--name", "counter", "--store", store)
    restored = Program(COMMAND, "restore", "counter", "--store", store)
    try:
        assert restored.ask("count") == "1"
        restored.process.send_signal(signal.SIGTERM)
        assert restored.process.wait() == -signal.SIGTERM
    finally:
        restored.end()


def test_json_of_a_restore_is_all_of_standard_output(counter: Program, store: str) -> None:
    run("checkpoint", str(counter.pid), "--name", "counter", "--store", store)
    restored = Program(COMMAND, "restore", "counter", "--json", "--store", store)
    try:
        told = json.loads(restored.hear())
        output, errors = restored.process.communicate(b"count\nexit\n")
        assert (output, errors.splitlines()[-1]) == (b"", b"1")
    finally:
        restored.end()
    assert told["mode"] == "eager"
    assert told["ports"] == {}
    assert told["connection_file"] is None
    assert told["pid"] != counter.pid
    assert told["running_s"] > 0


def test_a_detached_restore_holds_no_pipe(sleeper: Program, store: str) -> None:
    run("checkpoint", str(sleeper.pid), "--name", "sleeper", "--store", store)
    # communicate() returns when nobody holds the other ends any more.
    told = as_json("restore", "sleeper", "--detach", "--store", store)
    pid = told["pid"]
    assert isinstance(pid, int)
    assert "signal.pause" in Path(f"/proc/{pid}/cmdline").read_text()
    with open(os.pidfd_open(pid), "rb", buffering=0) as ended:
        os.kill(pid, signal.SIGKILL)
        assert select.select([ended], [], [], PATIENCE)[0]  # pidfd_open(2): readable at its end.


def test_a_plan_can_be_read_and_does_nothing(counter: Program, store: str) -> None:
    run("checkpoint", str(counter.pid), "--name", "counter", "--store", store)
    plan = run("restore", "counter", "--plan", "--store", store).stdout
    assert "mmap(" in plan
    assert "dup3(" in plan
    assert as_json("restore", "counter", "--plan", "--store", store)["plan"] == plan.splitlines()


def test_a_process_without_obstacles_is_explained(counter: Program) -> None:
    told = as_json("explain", str(counter.pid))
    assert told["ok"] is True
    objects = told["objects"]
    assert isinstance(objects, list)
    assert all(set(found) == {"object", "status", "reason", "remedy"} for found in objects)
    assert "refused" not in {found["status"] for found in objects}


def test_the_doctor_saves_and_restores_a_process() -> None:
    told = as_json("doctor")
    checks = told["checks"]
    assert isinstance(checks, list)
    assert told["ok"] is True, checks
    assert all(set(check) == {"name", "status", "detail", "remedy"} for check in checks)
    canary = checks[-1]
    assert (canary["name"], canary["status"]) == ("canary", "ok")
    assert "unchanged" in canary["detail"]


def test_no_such_process_is_one_line(store: str) -> None:
    done = run("checkpoint", "4194303", "--store", store, status=1)
    assert done.stdout == ""
    assert done.stderr.startswith("error: process 4194303")
    assert done.stderr.count("\n") == 1
