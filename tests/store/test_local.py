"""The store in a folder: crashes, other writers, full disks, permissions."""

from __future__ import annotations

import errno
import mmap
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from samples import BASE, PAGE, fetched, save

from snapkernel._native import ffi, lib
from snapkernel.errors import SnapshotNotFound, StoreError
from snapkernel.store import Store

MIB = 1 << 20

WRITER = f"""
import random, sys
from samples import BASE, PAGE, Bytes, make_manifest
from snapkernel.store import Store
data = random.Random(1).randbytes(40 << 20)
with Store.open(sys.argv[1], create=True).writer() as writer:
    content = writer.store(Bytes(data), [({BASE}, len(data))], page_size={PAGE})
    print("stored", flush=True)
    sys.stdin.readline()
    print(writer.commit(make_manifest(content)).id)
"""

FILLER = """
import random, sys
from samples import fetched, save
from snapkernel.errors import StoreError
from snapkernel.store import Store
store = Store.open(sys.argv[1], create=True)
small = save(store, random.Random(1).randbytes(1 << 20))
try:
    save(store, random.Random(2).randbytes(40 << 20))
except StoreError as error:
    print(error)
assert list(store.backend.unfinished()) == []
assert [summary.id for summary in store.list()] == [small.id]
assert store.verify() == []
assert len(list(store.backend.list("packs"))) == 1
"""

READER = f"""
import subprocess, sys
from samples import BASE, PAGE, fetched, save
from snapkernel.errors import StoreError
from snapkernel.store import Store
saved = save(Store.open(sys.argv[1], create=True), b"x" * {PAGE})
subprocess.run(["mount", "-o", "remount,bind,ro", sys.argv[1]], check=True)
store = Store.open(sys.argv[1], create=True)
assert fetched(store, store.load(saved.id), {PAGE}) == b"x" * {PAGE}
try:
    save(store, b"y" * {PAGE})
except StoreError as error:
    print(error)
assert [summary.id for summary in store.list()] == [saved.id]
"""


def start(script: str, *arguments: str, wrapper: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*wrapper, sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )


def on_a_small_disk(script: str, folder: Path) -> str:
    """Run a script with a file system of 16 MiB at ``folder``, which only the script sees."""
    folder.mkdir()
    mount = 'mount -t tmpfs -o size=16m small "$0" && exec "$@"'
    unshare = ["unshare", "-m"] if os.getuid() == 0 else ["unshare", "-rm"]
    wrapper = (*unshare, "sh", "-c", mount, str(folder))
    if subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this host allows no mount, not even in a namespace of one's own")
    process = start(script, str(folder), wrapper=wrapper)
    output, _ = process.communicate()
    assert process.returncode == 0
    return output


def test_a_full_disk(folder: Path) -> None:
    output = on_a_small_disk(FILLER, folder)
    assert "No space left" in output
    assert "another store" in output


def test_a_store_that_can_only_be_read(folder: Path) -> None:
    output = on_a_small_disk(READER, folder)
    assert "Read-only file system" in output
    assert "can be written" in output


def test_two_writers_of_the_same_content(folder: Path) -> None:
    writers = [start(WRITER, str(folder)) for _ in range(2)]
    for writer in writers:  # both have stored everything before either commits
        assert writer.stdout is not None
        assert writer.stdout.readline() == "stored\n"
    ids = {writer.communicate("\n")[0].strip() for writer in writers}
    assert [writer.returncode for writer in writers] == [0, 0]
    store = Store.open(str(folder))
    assert {summary.id for summary in store.list()} == ids
    assert len(ids) == 2
    assert store.verify() == []
    third = start(WRITER, str(folder))
    assert store.load(third.communicate("\n")[0].split()[-1]).stored_bytes == 0
    for id in ids:  # what one has written does not go with the other
        store.remove([id])
        store.gc(grace=-1)
        assert store.verify() == []


def test_a_killed_writer_leaves_nothing_that_is_seen(folder: Path) -> None:
    writer = start(WRITER, str(folder))
    assert writer.stdout is not None
    assert writer.stdout.readline() == "stored\n"
    writer.kill()
    writer.communicate()
    store = Store.open(str(folder))
    assert store.list() == []
    assert store.verify() == []
    with pytest.raises(SnapshotNotFound):
        store.load("abcd")
    assert list(store.backend.unfinished())
    assert store.gc() == 0  # it could be alive, for all we know
    assert store.gc(grace=-1) >= 40 * MIB
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["config"]


def test_files_are_private(folder: Path) -> None:
    before = os.umask(0)
    try:
        save(Store.open(str(folder), create=True), b"x" * PAGE)
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}
    assert len(modes) == 10
    for path, mode in modes.items():
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_places_where_no_store_can_be(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "below", Path("/proc/nothing/here")):
        with pytest.raises(StoreError) as caught:
            Store.open(str(path), create=True)
        assert caught.value.remedy, path


def test_the_default_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: Store, folder: Path
) -> None:
    monkeypatch.setenv("SNAPKERNEL_STORE", str(folder))
    assert Store.open().config == local.config
    monkeypatch.delenv("SNAPKERNEL_STORE")
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter data"))
    store = Store.open(create=True)
    assert (tmp_path / "jupyter data" / "snapkernel" / "config").is_file()
    saved = save(store, b"x" * PAGE)
    assert fetched(Store.open(store.url), saved, PAGE) == b"x" * PAGE
    assert "%20" in store.url
    assert next(saved.processes[0].memory.content.iter_runs())[0] == BASE


def test_a_heap_of_objects_stays_plain(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where reading is quick, what a kernel waits for is not compressed, up to a limit; numbers
    are."""
    monkeypatch.setattr("snapkernel.store.writer._PLAIN", MIB)
    text = " ".join(map(str, range(400_000))).encode()[: 2 * MIB]
    saved = save(local, text)
    assert fetched(local, saved, len(text)) == text
    assert MIB < saved.stored_bytes < 2 * MIB
    numbers = b"".join(number.to_bytes(8, "little") for number in range(MIB // 8))
    assert save(local, numbers).stored_bytes < MIB // 4


@pytest.mark.parametrize("length", [48 * MIB, 48 * MIB + 3 * PAGE])
def test_around_the_page_cache(
    local: Store, folder: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """A snapshot that is large for this host leaves nothing in the page cache, on its way in or
    out, where the file system can do that."""
    monkeypatch.setattr("snapkernel.procfs.available_memory", lambda: 4 * length - 4)
    data = random.Random(length).randbytes(length)
    saved = save(local, data)
    for _ in range(2):
        assert fetched(local, saved, length) == data
        packs = list((folder / "packs").rglob("*/*"))
        assert sum(pack.stat().st_size for pack in packs) > length
        if goes_around(folder):
            assert sum(map(resident, packs)) < length // 8
    assert local.verify() == []


def test_no_way_around_the_page_cache(
    local: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems take the flag, and refuse the transfer."""

    def refuse(descriptor: int, direct: bool) -> None:
        refused[descriptor] = direct

    def check(descriptor: int) -> None:
        if refused.get(descriptor):
            raise OSError(errno.EINVAL, "Invalid argument")

    def write(descriptor: int, data: memoryview) -> int:
        check(descriptor)
        return really_write(descriptor, data)

    def preadv(descriptor: int, parts: list[memoryview], offset: int) -> int:
        check(descriptor)
        return really_read(descriptor, parts, offset)

    refused: dict[int, bool] = {}
    really_write, really_read = os.write, os.preadv
    monkeypatch.setattr("snapkernel.procfs.available_memory", lambda: 0)
    monkeypatch.setattr("snapkernel.store.local._set_direct", refuse)
    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "preadv", preadv)
    data = random.Random(3).randbytes(20 * MIB)
    saved = save(local, data)
    for pack in (folder / "packs").rglob("*/*"):
        with open(pack, "rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert fetched(local, saved, len(data)) == data
    assert set(refused.values()) == {False}


def goes_around(folder: Path) -> bool:
    """Whether O_DIRECT works, as it does not on a tmpfs."""
    file = folder / "probe"
    with mmap.mmap(-1, 1 << 20) as block:
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
        except OSError:
            return False
        try:
            os.write(descriptor, block)
            return resident(file) == 0
        finally:
            os.close(descriptor)
            file.unlink()


def resident(file: Path) -> int:
    """Bytes of a file that the page cache holds."""
    with open(file, "rb") as opened:
        view = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
    return int(lib.sk_resident_pages(ffi.from_buffer(view), len(view))) * mmap.PAGESIZE
