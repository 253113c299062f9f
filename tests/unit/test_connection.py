"""Connection files and the processes they mean."""

import json
import os
import socket
import stat
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapkernel.errors import CannotRestore, TargetError
from snapkernel.jupyter.connection import (
    connection_of,
    find_connection_file,
    read_connection,
    resolve_target,
    write_connection,
)

INFO = {
    "transport": "tcp",
    "ip": "127.0.0.1",
    "shell_port": 1,
    "iopub_port": 2,
    "stdin_port": 3,
    "control_port": 4,
    "hb_port": 5,
    "key": "secret",
    "signature_scheme": "hmac-sha256",
    "kernel_name": "python3",
}


@pytest.mark.parametrize(
    "arguments",
    [
        ["python", "-m", "ipykernel_launcher", "-f", "/run/kernel-1.json"],
        ["python", "-m", "ipykernel_launcher", "-f=/run/kernel-1.json"],
        ["python", "-m", "ipykernel_launcher", "--f=/run/kernel-1.json"],
        ["python", "-m", "ipykernel", "--IPKernelApp.connection_file=/run/kernel-1.json"],
        ["python", "-m", "ipykernel", "--IPKernelApp.connection_file", "/run/kernel-1.json"],
        ["R", "--slave", "-e", "IRkernel::main()", "--args", "/run/kernel-1.json"],
        ["python", "-m", "ipykernel_launcher", "-f", "../run/kernel-1.json", "--debug"],
    ],
)
def test_finds_the_connection_file_of_a_kernel(arguments: list[str]) -> None:
    assert find_connection_file(arguments, "/home") == Path("/run/kernel-1.json")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["python"],
        ["tail", "-f", "/var/log/messages"],
        ["python", "train.py", "-f"],
        ["editor", "/run/kernel-1.json", "--read-only"],
    ],
)
def test_other_processes_have_no_connection_file(arguments: list[str]) -> None:
    assert find_connection_file(arguments, "/home") is None


def test_writes_a_private_file_with_the_new_ports(tmp_path: Path) -> None:
    path = tmp_path / "kernel-new.json"
    path.write_text("{}")
    path.chmod(0o644)
    write_connection(path, INFO, {1: 2, 2: 9001})
    assert read_connection(path) == {**INFO, "shell_port": 2, "iopub_port": 9001}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == [path.name]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "kernel.json"
    with pytest.raises(CannotRestore) as failure:
        write_connection(path, INFO, {})
    assert str(path) in failure.value.object
    assert failure.value.remedy


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "kernel.json").mkdir()
    with pytest.raises(CannotRestore):
        write_connection(tmp_path / "kernel.json", INFO, {})
    assert os.listdir(tmp_path) == ["kernel.json"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "No such file"),
        ("not JSON", "not a JSON object"),
        ("[1, 2]", "not a JSON object"),
        (json.dumps({**INFO, "hb_port": "5"}), "hb_port"),
        (json.dumps({**INFO, "hb_port": True}), "hb_port"),
    ],
)
def test_bad_connection_files_are_refused(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "kernel.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TargetError, match=reason):
        read_connection(path)


def test_entries_of_other_types_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "kernel.json"
    path.write_text(json.dumps({**INFO, "metadata": {"a": 1}, "nothing": None}))
    assert read_connection(path) == INFO


def test_a_number_is_a_pid() -> None:
    assert resolve_target("4194000") == 4194000


WAIT = "import sys; print('ready', flush=True); sys.stdin.read()"
LISTEN = """
import json, os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
if os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
sys.stdin.read()
os.wait()
"""


@contextmanager
def started(*arguments: str, directory: Path) -> Iterator[tuple[int, str]]:
    """A process that runs until its standard input is closed: its pid, its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=directory,
        text=True,
    )
    assert process.stdout
    try:
        yield process.pid, process.stdout.readline().strip()
    finally:
        process.communicate()


@pytest.fixture
def kernel_id() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def kernel(tmp_path: Path, kernel_id: str) -> Iterator[int]:
    """A process that looks like a kernel with an id and a relative connection file."""
    path = tmp_path / f"kernel-{kernel_id}.json"
    write_connection(path, {**INFO, "transport": "ipc"}, {})
    with started(WAIT, "-f", path.name, directory=tmp_path) as (pid, _):
        yield pid


def test_a_connection_file_means_the_process_started_with_it(
    kernel: int, kernel_id: str, tmp_path: Path
) -> None:
    assert resolve_target(str(tmp_path / f"kernel-{kernel_id}.json")) == kernel


def test_a_kernel_id_or_a_part_of_it_means_its_process(kernel: int, kernel_id: str) -> None:
    assert resolve_target(kernel_id) == kernel
    assert resolve_target(kernel_id[:13]) == kernel


def test_a_kernel_id_is_looked_up_in_the_runtime_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    with started(LISTEN, directory=tmp_path) as (pid, port):
        write_connection(tmp_path / "kernel-abc.json", INFO, {1: int(port)})
        assert resolve_target("abc") == pid


def test_several_processes_of_one_id_are_listed(
    kernel: int, kernel_id: str, tmp_path: Path
) -> None:
    with (
        started(WAIT, f"--f=kernel-{kernel_id}.json", directory=tmp_path) as (other, _),
        pytest.raises(TargetError) as failure,
    ):
        resolve_target(kernel_id)
    assert str(kernel) in failure.value.reason
    assert str(other) in failure.value.reason


def test_a_connection_file_means_who_listens_on_its_ports(tmp_path: Path) -> None:
    """As for a restored kernel, whose command line names another file; its child is not meant."""
    path = tmp_path / "restored.json"
    with started(LISTEN, directory=tmp_path) as (pid, port):
        write_connection(path, INFO, {1: int(port)})
        assert resolve_target(str(path)) == pid
        write_connection(path, {**INFO, "ip": "127.0.0.7"}, {1: int(port)})
        with pytest.raises(TargetError, match="no running kernel"):
            resolve_target(str(path))


@pytest.mark.parametrize("place", ["option", "argument"])
def test_any_argument_may_be_the_connection_file(place: str, tmp_path: Path) -> None:
    """Options of kernels in other languages differ; who listens on its ports is the kernel."""
    path = tmp_path / "some.json"
    words = ["--config-path", path.name] if place == "option" else [path.name, "--protocol=5.1"]
    with started(LISTEN, *words, directory=tmp_path) as (pid, port):
        write_connection(path, INFO, {1: int(port)})
        assert connection_of(pid) == {**INFO, "shell_port": int(port)}
        write_connection(path, INFO, {})
        assert connection_of(pid) is None


def test_a_connection_file_on_whose_ports_another_listens_is_not_meant(tmp_path: Path) -> None:
    path = tmp_path / "kernel-1.json"
    with (
        socket.create_server(("127.0.0.1", 0)) as another,
        started(WAIT, "-f", path.name, directory=tmp_path) as (pid, _),
    ):
        write_connection(path, INFO, {1: another.getsockname()[1]})
        assert connection_of(pid) is None
        another.close()
        assert connection_of(pid) is not None


def test_a_kernel_with_ipc_is_found_by_its_socket(tmp_path: Path) -> None:
    """Jupyter's other transport: a port is the end of a path."""
    path = tmp_path / "restored.json"
    write_connection(path, {**INFO, "transport": "ipc", "ip": str(tmp_path / "a b")}, {})
    listen = f"""
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind({str(tmp_path / "a b-1")!r})
listener.listen()
print(flush=True)
sys.stdin.read()
"""
    with started(listen, directory=tmp_path) as (pid, _):
        assert resolve_target(str(path)) == pid


def test_a_kernel_that_has_ended_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "kernel-gone.json"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    write_connection(path, INFO, {1: port})
    with pytest.raises(TargetError, match="no running kernel"):
        resolve_target(str(path))


def test_an_unknown_id_is_reported(kernel_id: str) -> None:
    with pytest.raises(TargetError, match=kernel_id):
        resolve_target(kernel_id)
