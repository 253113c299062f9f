"""Connection files, targets on the command line, and the freezer's answers."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import mutated, tried

from snapkernel.errors import CannotRestore, SnapkernelError, TargetError
from snapkernel.freeze import freezer
from snapkernel.jupyter.connection import (
    PORTS,
    find_connection_file,
    read_connection,
    resolve_target,
    write_connection,
)
from snapkernel.resources import vdso

INFO = {"transport": "tcp", "ip": "127.0.0.1", "key": "secret", **dict.fromkeys(PORTS, 5000)}
FILE = json.dumps(INFO, indent=1).encode()


@tried(250)
@given(mutated(FILE, b'{"a": ' + b"[" * 3000, b'{"\xff": 1}'))
def test_connection_files(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "connection.json"
    path.write_bytes(data)
    try:
        info = read_connection(path)
    except TargetError as error:
        assert str(path) in error.object  # noqa: PT017
        return
    assert all(isinstance(info[name], int) for name in PORTS)
    write_connection(path, info, {})
    assert read_connection(path) == info


def test_deep_nesting_and_wrong_text_in_a_connection_file(tmp_path: Path) -> None:
    path = tmp_path / "connection.json"
    for data in (b'{"a": ' + b"[" * 100_000, b'{"\xff": 1}', b'{"a": 1' + b"0" * 9999 + b"}"):
        path.write_bytes(data)
        with pytest.raises(TargetError, match="connection"):
            read_connection(path)


def test_an_endless_connection_file() -> None:
    with pytest.raises(TargetError):
        read_connection("/dev/zero")


@tried(150)
@given(
    st.one_of(
        st.text(max_size=40),
        st.integers().map(str),
        mutated(b"kernel-a.json", b"4711").map(
            lambda data: data.decode("utf-8", "surrogateescape")
        ),
    )
)
def test_targets(text: str) -> None:
    with contextlib.suppress(TargetError):
        assert resolve_target(text) >= 0


def test_a_pid_of_many_digits() -> None:
    with pytest.raises(TargetError, match="no such process"):
        resolve_target("9" * 5000)


@tried(150)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(["-f", "--f", "-f=x", "kernel-.json", "kernel-a.json"]),
            st.text(max_size=20),
        )
    )
)
def test_command_lines(arguments: list[str]) -> None:
    found = find_connection_file(arguments, "/somewhere")
    assert found is None or found.is_absolute()


# --- the freezer ---------------------------------------------------------------------------------


ANSWERS = [
    pickle.dumps(("progress", "storing", 1, 2)),
    pickle.dumps(("error", CannotRestore("object", "reason", "remedy"))),
]


@tried(250)
@given(mutated(*ANSWERS))
def test_answers_of_the_freezer(data: bytes) -> None:
    """What a freezer sends that was killed while it wrote, or on whose pipe somebody else wrote."""
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    with open(reading, "rb") as pipe, contextlib.suppress(SnapkernelError, EOFError):
        kind, *_ = freezer._answer(pipe)
        assert kind in ("progress", "error", "snapshot")


def test_an_answer_that_somebody_else_wrote() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"hello from a library\n")
    os.close(writing)
    with open(reading, "rb") as pipe, pytest.raises(SnapkernelError, match="understood"):
        freezer._answer(pipe)


# --- the vdso of a manifest ----------------------------------------------------------------------


def own_vdso() -> bytes:
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("[vdso]"):
            start, end = (int(word, 16) for word in line.split()[0].split("-"))
            with open("/proc/self/mem", "rb", buffering=0) as memory:
                memory.seek(start)
                return memory.read(end - start)
    pytest.skip("this host has no vdso")


VDSO = own_vdso()


@tried(250)
@given(mutated(VDSO, VDSO[:64]))
def test_symbols_of_a_vdso(data: bytes) -> None:
    with contextlib.suppress(CannotRestore):
        for name, offset in vdso.symbols(data).items():
            assert isinstance(name, str)
            assert offset >= 0


def test_symbols_of_this_vdso() -> None:
    assert "__vdso_clock_gettime" in vdso.symbols(VDSO)
