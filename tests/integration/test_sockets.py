"""Sockets that others have an interest in, too: names that are taken, peers outside, what is
refused."""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.conformance import Conversation, start

import snapkernel
from snapkernel.errors import BatchFailed, CannotCheckpoint
from snapkernel.store import Store

pytestmark = [pytest.mark.usefixtures("leaves_nothing"), pytest.mark.timeout(120)]

PROGRAMS = Path(__file__).parent / "programs"


def command(name: str) -> list[str]:
    return [sys.executable, str(PROGRAMS / "sockets.py"), name]


def checkpoint(talk: Conversation, store: str, *, stop: bool = False) -> snapkernel.Snapshot:
    assert talk.process is not None
    snapshot = snapkernel.checkpoint(talk.process.pid, store=store, stop=stop)
    if stop:
        talk.process.wait(timeout=30)
    return snapshot


def restore(snapshot: snapkernel.Snapshot, store: str) -> tuple[Conversation, tuple[str, ...]]:
    talk = Conversation()
    try:
        process = snapkernel.restore(snapshot, store=store, stdio=talk.theirs)
        talk.hand_over(process)
    except BaseException:
        talk.__exit__(None, None, None)
        raise
    return talk, process.notes


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("netlink", "netlink sockets"),
        ("packet", "packet sockets"),
        ("raw", "raw sockets"),
        ("filtered", "socket filter"),
        ("pending_with_data", "was not accepted yet"),
    ],
)
def test_refused(name: str, words: str, tmp_path: Path, store: str) -> None:
    """``explain`` and ``checkpoint`` both say what it is, and the process goes on."""
    with start(command(name), tmp_path) as process:
        assert process.process is not None
        pid = process.process.pid
        findings = [found for found in snapkernel.explain(pid) if found.status == "refused"]
        with pytest.raises(CannotCheckpoint) as caught:
            snapkernel.checkpoint(pid, store=store)
        for found in (findings, caught.value.findings):
            assert any(words in f"{f.object}: {f.reason}" for f in found), found
        assert Store.open(store, create=True).list() == []
        assert process.verdict() == "ok"


@pytest.mark.parametrize(
    ("name", "words"),
    [("out_of_band", "out-of-band"), ("epoll_on_its_way", "an epoll on its way")],
)
def test_refused_when_it_stands_still(name: str, words: str, tmp_path: Path, store: str) -> None:
    """What is queued is not looked at while the process runs."""
    with start(command(name), tmp_path) as process:
        assert process.process is not None
        with pytest.raises(CannotCheckpoint, match=words):
            snapkernel.checkpoint(process.process.pid, store=store)
        assert process.verdict() == "ok"


def place(talk: Conversation) -> str:
    """Where a server says that it listens."""
    os.write(talk.input, b"go\n")
    line = talk.line()
    assert line is not None
    return line.removeprefix("at ")


def visit(folder: Path, name: str) -> bytes:
    """Connect to a socket by a path below a folder, which may be long."""
    here = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect(f"/proc/self/fd/{here}/{name}")
            return client.recv(100)
    finally:
        os.close(here)


def test_copy_beside_its_server(tmp_path: Path, store: str) -> None:
    """The original keeps its name; the copy gets another one, and its note says which."""
    with start(command("server"), tmp_path) as original:
        snapshot = checkpoint(original, store)
        first, notes = restore(snapshot, store)
        with first:
            (note,) = [note for note in notes if "unix socket server" in note]
            assert "server-2" in note
            second, notes = restore(snapshot, store)
            with second:
                places = {place(talk) for talk in (original, first, second)}
                assert places == {"server", "server-2", "server-3"}
                for name in places:
                    assert visit(tmp_path, name) == b"here I am"


def test_file_left_behind_is_replaced(tmp_path: Path, store: str) -> None:
    with start(command("server"), tmp_path) as original:
        snapshot = checkpoint(original, store, stop=True)
    assert (tmp_path / "server").is_socket()
    copy, notes = restore(snapshot, store)
    with copy:
        assert not [note for note in notes if "unix socket" in note]
        assert place(copy) == "server"
        assert visit(tmp_path, "server") == b"here I am"


def test_other_file_is_left_alone(tmp_path: Path, store: str) -> None:
    with start(command("server"), tmp_path) as original:
        snapshot = checkpoint(original, store, stop=True)
    (tmp_path / "server").unlink()
    (tmp_path / "server").write_text("somebody's work")
    copy, _ = restore(snapshot, store)
    with copy:
        assert place(copy) == "server-2"
        assert visit(tmp_path, "server-2") == b"here I am"
    assert (tmp_path / "server").read_text() == "somebody's work"


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    name = f"snapkernel log {secrets.token_hex(8)}"
    monkeypatch.setenv("LOG", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(f"\0{name}")
        end.settimeout(30)
        yield end


def test_datagrams_to_somebody_outside(log: socket.socket, tmp_path: Path, store: str) -> None:
    """Connected again by its name; where nobody is, that is noted."""
    with start(command("logger"), tmp_path) as original:
        assert log.recv(100) == b"before"
        snapshot = checkpoint(original, store, stop=True)
    copy, notes = restore(snapshot, store)
    with copy:
        assert not [note for note in notes if "connection of a unix datagram socket" in note]
        assert copy.verdict() == "ok"
        assert log.recv(100) == b"after"
    log.close()
    copy, notes = restore(snapshot, store)
    with copy:
        (note,) = [note for note in notes if "connection of a unix datagram socket" in note]
        assert re.search(r"to @snapkernel log \w+: lost: Connection refused", note), note


@pytest.mark.parametrize(
    ("name", "losses"),
    [("unread_datagrams", 1), ("unaccepted", 2)],
)
def test_lost_with_a_word(name: str, losses: int, tmp_path: Path, store: str) -> None:
    """What a copy lacks is said when the snapshot is taken; the original keeps it."""
    with start(command(name), tmp_path) as original:
        snapshot = checkpoint(original, store)
        said = [note for note in snapshot.notes if "lost" in note]
        assert len(said) == losses, snapshot.notes
        copy, _ = restore(snapshot, store)
        with copy:
            assert copy.verdict() == "ok"
        assert original.verdict() == "ok"


def test_directory_is_gone(tmp_path: Path, store: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with start(command("below"), folder) as original:
        snapshot = checkpoint(original, store, stop=True)
    (folder / "deep" / "server").unlink()
    (folder / "deep").rmdir()
    with pytest.raises(BatchFailed, match="make its directory"):
        restore(snapshot, store)
