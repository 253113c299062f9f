"""What /proc and sock_diag tell may be of a newer kernel, and parts of it are chosen by processes:
names, paths, mount points. Every parser gives a value, or the error that says what it was about.

The samples are of this kernel, of a process that has one of everything.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mutations import mutated, tried
from support.conformance import Conversation, start

import snapkernel
from snapkernel import procfs
from snapkernel.errors import SnapkernelError, TargetError
from snapkernel.resources import credentials, descriptors, timers
from snapkernel.resources.context import Capture
from snapkernel.resources.open_file import OpenFile, Table, note_locks

SELF = Path("/proc/self")


def given_text(text: bytes) -> Any:
    """Every file of /proc has this text."""
    return mock.patch.object(procfs, "read", return_value=text)


@tried(250)
@given(mutated((SELF / "maps").read_bytes()))
def test_maps(data: bytes) -> None:
    text = os.fsdecode(data)
    try:
        areas = procfs.areas(text)
    except TargetError:
        return
    assert len(areas) == sum(bool(line) for line in text.split("\n"))
    for area in areas:
        assert area.start >= 0
        assert 0 <= area.protection <= 7
        assert area.shared in (True, False)


def as_line(area: procfs.Area) -> str:
    head = f"{area.start:x}-{area.end:x} {area.permissions} {area.offset:x} {area.device} "
    return f"{head}{area.inode} ".ljust(73) + area.name.replace("\n", "\\012")


def test_maps_go_around() -> None:
    areas = procfs.areas((SELF / "maps").read_text())
    assert len(areas) > 20
    assert procfs.areas("\n".join(map(as_line, areas))) == areas


@tried(100)
@given(mutated((SELF / "smaps").read_bytes()[:20_000]))
def test_smaps(data: bytes) -> None:
    with suppress(TargetError):
        for area, flags in procfs.areas_with_flags(os.fsdecode(data)):
            assert area.end
            assert all(flags)


@tried(150)
@given(mutated((SELF / "status").read_bytes()))
def test_status(data: bytes) -> None:
    with given_text(data), suppress(TargetError):
        assert isinstance(procfs.status(1), dict)
        assert procfs.inner_tid(1, 1) is not None


@tried(150)
@given(mutated((SELF / "limits").read_bytes()))
def test_limits(data: bytes) -> None:
    with given_text(data), suppress(TargetError):
        found = procfs.limits(1)
        assert set(found) <= set(range(16))


@tried(150)
@given(mutated((SELF / "mountinfo").read_bytes()))
@example(
    "36 35 98:0 / /mnt/a\u2028b\x0bc\u3000d\x1ce rw shared:1 - tmpfs none rw\n".encode(),
)
def test_mounts(data: bytes) -> None:
    with given_text(data), suppress(TargetError):
        for mount in procfs.mounts(1):
            assert ":" in mount.device


def test_a_mount_point_with_strange_blanks() -> None:
    """str.split and str.splitlines take more for blanks and ends than the kernel escapes."""
    place = "/mnt/a\u2028b\x0bc\u3000d\x1ce\x85"
    with given_text(f"36 35 98:0 /r {place} rw shared:1 - tmpfs none rw\n".encode()):
        assert procfs.mounts(1) == [procfs.Mount("62:00", "/r", place, "tmpfs", "none")]


TIMERS = b"""ID: 0
signal: 10/0000000000000000
notify: signal/pid.4711
ClockID: 1
ID: 7
signal: 34/00007fffdeadbeef
notify: signal/tid.4712
ClockID: -3
"""


@tried(150)
@given(mutated(TIMERS))
def test_timers(data: bytes) -> None:
    with suppress(TargetError):
        for timer in timers.parse(os.fsdecode(data)):
            assert isinstance(timer.id, int)


def test_timers_of_this_form_are_understood() -> None:
    first, second = timers.parse(TIMERS.decode())
    assert (first.id, first.signal, first.thread) == (0, 10, 0)
    assert (second.value, second.thread, second.notify) == (0x7FFFDEADBEEF, 4712, 4)


@tried(100)
@given(
    mutated(b"         0       1000          1\n         1     100000      65536\n"),
    st.just("0 1 2"),
)
def test_id_maps(data: bytes, ids: str) -> None:
    with given_text(data), suppress(TargetError):
        assert all(isinstance(found, int) for found in credentials.inside(1, "uid_map", ids))


# --- ELF files -----------------------------------------------------------------------------------


ELF = Path(os.path.realpath("/proc/self/exe")).read_bytes()[:8192]


def test_a_build_id(tmp_path: Path) -> None:
    """The parser agrees with the bytes."""
    notes = struct.pack("<3I", 4, 20, 3) + b"GNU\0" + bytes(range(20))
    header = b"\x7fELF\2\1\1".ljust(32, b"\0") + struct.pack(
        "<QQIHHHHHH", 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    program = struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(notes), len(notes), 4)
    (tmp_path / "x").write_bytes(header + program + notes)
    assert procfs.build_id(str(tmp_path / "x")) == bytes(range(20)).hex()
    for length in range(120):
        (tmp_path / "x").write_bytes((header + program + notes)[:length])
        assert procfs.build_id(str(tmp_path / "x")) == ""


@tried(250)
@given(mutated(ELF, ELF[:120], b"\x7fELF\2\1" + b"\xff" * 58, b"\x7fELF\1\2" + b"\xff" * 58))
def test_build_ids(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "elf"
    path.write_bytes(data)
    found = procfs.build_id(str(path))
    assert len(found) <= 2 * 4096


def test_a_build_id_of_a_pipe(tmp_path: Path) -> None:
    """It is not waited for."""
    os.mkfifo(tmp_path / "pipe")
    assert procfs.build_id(str(tmp_path / "pipe")) == ""


# --- descriptors ---------------------------------------------------------------------------------


ANONYMOUS = {
    "anon_inode:[eventfd]": b"pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t57\neventfd-count:\t2a\n",
    "anon_inode:[eventpoll]": b"pos:\t0\nflags:\t02\nmnt_id:\t15\n"
    b"tfd:        5 events:       1d data: ffffffffffffffff  pos:0 ino:1 sdev:5\n",
    "anon_inode:[timerfd]": b"pos:\t0\nflags:\t02\nclockid: 1\nticks: 0\nsettime flags: 01\n"
    b"it_value: (0, 49406829)\nit_interval: (1, 0)\n",
    "anon_inode:[signalfd]": b"pos:\t0\nflags:\t02\nsigmask:\t0000000000000006\n",
}
LOCKED = (
    b"pos:\t12\nflags:\t0100002\nmnt_id:\t29\nino:\t9\n"
    b"lock:\t1: POSIX  ADVISORY  WRITE 4711 fe:00:1234 0 EOF\n"
    b"lock:\t2: OFDLCK ADVISORY  READ -1 fe:00:1234 5 9\n"
)


def described(link: str, info: str, mode: int = 0) -> None:
    """Have a descriptor of ours described as if it were of that kind."""
    inode = os.stat(__file__).st_ino if link == __file__ else 99
    status = SimpleNamespace(st_mode=mode, st_ino=inode, st_dev=1, st_nlink=1, st_rdev=0, st_size=9)
    status.st_mtime_ns = 1
    capture = Capture(os.getpid())
    with open(os.devnull) as opened:
        descriptor = opened.fileno()
        file = OpenFile(0, os.getpid(), [3], link, info, status, descriptor)  # type: ignore[arg-type]
        note_locks(file, os.getpid(), info)
        found = descriptors.capture(capture, Table([file], {os.getpid(): [(3, 0, False)]}))
    assert len(found[os.getpid()]) == 1
    assert capture.descriptions or capture.findings


@tried(300)
@given(st.data())
def test_descriptor_information(data: st.DataObject) -> None:
    link = data.draw(st.sampled_from(sorted(ANONYMOUS)))
    info = os.fsdecode(data.draw(mutated(*ANONYMOUS.values(), ANONYMOUS[link])))
    with suppress(SnapkernelError), mock.patch.object(Table, "by_number", return_value=None):
        described(link, info)


@tried(200)
@given(mutated(LOCKED))
def test_locks(data: bytes) -> None:
    with suppress(SnapkernelError):
        described(__file__, os.fsdecode(data), stat.S_IFREG)


@pytest.mark.parametrize("link", sorted(ANONYMOUS))
def test_descriptor_information_of_this_form_is_understood(link: str) -> None:
    with mock.patch.object(Table, "by_number", return_value=None):
        described(link, ANONYMOUS[link].decode())
    described(__file__, LOCKED.decode(), stat.S_IFREG)


# --- the answers of sock_diag(7) -----------------------------------------------------------------


def asked_about_a_pair() -> tuple[bytes, int, int]:
    """A real answer, the inode that was asked for, and that of its peer."""
    answers: list[bytes] = []
    real = socket.socket.recv

    class Listening(socket.socket):
        def recv(self, *arguments: Any) -> bytes:
            answers.append(real(self, *arguments))
            return answers[-1]

    from snapkernel.resources import socket_diag

    one, other = socket.socketpair()
    with one, other, mock.patch.object(socket_diag.socket, "socket", Listening):
        inode, peer = (os.fstat(end.fileno()).st_ino for end in (one, other))
        assert socket_diag.unix(inode).peer == peer
    return answers[0], inode, peer


ANSWER, INODE, PEER = asked_about_a_pair()


@tried(200)
@given(mutated(ANSWER))
def test_socket_answers(data: bytes) -> None:
    from snapkernel.resources import socket_diag

    class Answering(socket.socket):
        def recv(self, *arguments: Any) -> bytes:
            return data

    patched = mock.patch.object(socket_diag.socket, "socket", Answering)
    with patched, suppress(TargetError), procfs.understood("socket"):  # as for any descriptor
        state = socket_diag.unix(INODE)
        assert (state.peer or 0) >= 0
        assert 0 <= state.shutdown <= 255


# --- names that a process gives itself -----------------------------------------------------------


STRANGE = {
    "line": "a\nVmFlags: um",
    "status": ") R 1 1 1 (",
    "blanks": "\x0b\u2028\x85 x",
    "stack": "[stack]",
    "deleted": "x (deleted)",
    "octal": "x\\012y",
    "colon": "NSpid: 1 2",
}

PROGRAM = """
import ctypes, mmap, os, sys
name = sys.argv[1]
ctypes.CDLL(None).prctl(15, name.encode()[:15], 0, 0, 0)
os.makedirs(name + ".d", exist_ok=True)
file = open(name, "w+b")
file.write(b"x" * 5000)
file.flush()
mapped = mmap.mmap(file.fileno(), 5000, prot=mmap.PROT_READ)
os.chdir(name + ".d")
print("ready", flush=True)
sys.stdin.readline()
assert mapped[4999:] == b"x"
assert file.tell() == 5000
assert os.path.samefile(os.getcwd(), "../" + name + ".d")
print("ok", flush=True)
"""


@pytest.mark.parametrize("what", sorted(STRANGE))
def test_a_process_that_chooses_its_names(what: str, tmp_path: Path, store: str) -> None:
    """Whatever a process calls itself and its files, it is saved and comes back, or it is refused
    with a reason."""
    name = STRANGE[what]
    command = [sys.executable, "-c", PROGRAM, name]
    with start(command, tmp_path) as original:
        pid = original.process.pid
        refused = [found for found in snapkernel.explain(pid) if found.status == "refused"]
        assert all(found.reason for found in refused)
        if refused:
            with pytest.raises(snapkernel.CannotCheckpoint):
                snapkernel.checkpoint(pid, store=store)
            assert original.verdict() == "ok"
            return
        snapshot = snapkernel.checkpoint(pid, store=store)
        with Conversation() as copy:
            copy.hand_over(snapkernel.restore(snapshot, store=store, stdio=copy.theirs))
            assert copy.verdict() == "ok"
        assert original.verdict() == "ok"
