"""Stores that are damaged, full or out of reach: one clear error, nothing half-written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from blake3 import blake3
from support.conformance import Compiler, Conversation, start
from support.faults import files, refused

import snapkernel
from snapkernel.errors import CannotRestore, DamagedSnapshot, SnapshotNotFound, StoreError
from snapkernel.store import Store
from snapkernel.store.manifest import HEADER

pytestmark = pytest.mark.usefixtures("leaves_nothing")


def packs(folder: Path) -> list[Path]:
    found = [path for path in (folder / "packs").rglob("*") if path.is_file()]
    assert found
    return found


def only_manifest(folder: Path) -> Path:
    (found,) = (path for path in (folder / "manifests").rglob("*") if path.is_file())
    return found


def flip(path: Path) -> None:
    """Change one byte in the middle."""
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.chmod(0o600)
    os.truncate(path, path.stat().st_size // 2)


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest as somebody might who knows the format: all checksums are right."""
    data = path.read_bytes()
    magic, version, flags, length, stored, _ = HEADER.unpack_from(data)
    summary = msgspec.msgpack.decode(data[HEADER.size : HEADER.size + length])
    start = HEADER.size + length + 32
    body = zstandard.ZstdDecompressor().decompress(data[start : start + stored])
    manifest = msgspec.msgpack.decode(body)
    change(manifest)
    summary |= {name: manifest[name] for name in ("schema",) if name in manifest}
    if isinstance(manifest.get("host"), dict):
        summary["architecture"] = manifest["host"]["architecture"]
    plain, text = msgspec.msgpack.encode(manifest), msgspec.msgpack.encode(summary)
    body = zstandard.ZstdCompressor().compress(plain)
    head = HEADER.pack(magic, version, flags, len(text), len(body), len(plain)) + text
    head += blake3(head).digest()
    path.chmod(0o600)
    path.write_bytes(head + body + blake3(head + body).digest())


def restore(store: str) -> object:
    return snapkernel.restore("good", store=store)


@pytest.mark.parametrize("damage", [flip, truncate, os.unlink], ids=["changed", "cut", "gone"])
def test_damaged_pack(damage: Callable[[Path], None], folder: Path, store: str) -> None:
    for path in packs(folder):
        damage(path)
    error = refused(lambda: restore(store), DamagedSnapshot)
    assert "pack" in str(error) or "chunk" in str(error), error


@pytest.mark.parametrize("damage", [flip, truncate], ids=["changed", "cut"])
def test_damaged_manifest(damage: Callable[[Path], None], folder: Path, store: str) -> None:
    snapshot = only_manifest(folder).name
    damage(only_manifest(folder))
    refused(lambda: snapkernel.restore(snapshot, store=store), DamagedSnapshot)


def wrong_type(manifest: dict[str, Any]) -> None:
    manifest["processes"][0]["threads"][0]["tid"] = "four"


def unknown_field(manifest: dict[str, Any]) -> None:
    manifest["processes"][0]["surprise"] = 1


def missing_field(manifest: dict[str, Any]) -> None:
    del manifest["processes"][0]["executable"]


def impossible_pid(manifest: dict[str, Any]) -> None:
    manifest["processes"][0]["pid"] = -5


def dangling_description(manifest: dict[str, Any]) -> None:
    manifest["processes"][0]["descriptors"][0]["description"] = 9999


def dangling_file(manifest: dict[str, Any]) -> None:
    manifest["processes"][0]["file"] = 9999


def no_process(manifest: dict[str, Any]) -> None:
    manifest["processes"] = []


def short_registers(manifest: dict[str, Any]) -> None:
    manifest["processes"][0]["threads"][0]["registers"] = b"\0" * 8


def overlapping_mappings(manifest: dict[str, Any]) -> None:
    mappings = manifest["processes"][0]["memory"]["mappings"]
    mappings[1] = dict(mappings[0])


def dangling_object(manifest: dict[str, Any]) -> None:
    manifest["processes"][0]["memory"]["mappings"][0]["object"] = 9999


def dangling_pipe(manifest: dict[str, Any]) -> None:
    manifest["pipes"] = []
    manifest["descriptions"][0] = {"kind": "pipe", "pipe": 0, "writable": False}


def vdso_elsewhere(manifest: dict[str, Any]) -> None:
    manifest["processes"][0]["memory"]["vdso"]["text_start"] = 0x1000


def no_main_thread(manifest: dict[str, Any]) -> None:
    manifest["processes"][0]["threads"][0]["tid"] += 1


@pytest.mark.parametrize(
    "change",
    [
        wrong_type,
        unknown_field,
        missing_field,
        impossible_pid,
        dangling_description,
        dangling_file,
        no_process,
        short_registers,
        overlapping_mappings,
        dangling_object,
        dangling_pipe,
        vdso_elsewhere,
        no_main_thread,
    ],
)
def test_wrong_manifest(change: Callable[[dict[str, Any]], None], folder: Path, store: str) -> None:
    rewrite(only_manifest(folder), change)
    refused(lambda: restore(store), DamagedSnapshot)


def test_newer_schema(folder: Path, store: str) -> None:
    rewrite(only_manifest(folder), lambda manifest: manifest.update(schema=99))
    error = refused(lambda: restore(store), DamagedSnapshot)
    assert "99" in error.reason
    assert error.remedy


def test_other_architecture(folder: Path, store: str) -> None:
    other = "aarch64" if os.uname().machine != "aarch64" else "x86_64"
    rewrite(only_manifest(folder), lambda m: m["host"].update(architecture=other, machine=other))
    error = refused(lambda: restore(store), CannotRestore)
    assert other in str(error)
    assert error.remedy


def test_no_such_snapshot(folder: Path, store: str) -> None:
    error = refused(lambda: snapkernel.restore("missing", store=store), SnapshotNotFound)
    assert "missing" in error.object


def test_no_store(store: str) -> None:
    refused(lambda: snapkernel.restore("anything", store=store), StoreError)
    assert not Path(store.removeprefix("file://")).exists()


@pytest.mark.parametrize("place", ["file/below", "ftp://somewhere/else", "file://host/path"])
def test_impossible_store(place: str, target: Conversation, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    url = place if "://" in place else str(tmp_path / place)
    pid = target.process.pid
    error = refused(lambda: snapkernel.checkpoint(pid, store=url), StoreError)
    assert place in str(error)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode and os.geteuid() != 0:
        pytest.skip("test_small_disks_of_a_user runs it")
    if done.returncode:
        pytest.skip(f"cannot mount a file system: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_full_disk(small_disk: Path, compiler: Compiler, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    url = (small_disk / "store").as_uri()
    code = (
        "import os, sys\n"
        "kept = os.urandom(16 << 20)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "print('ok' if len(kept) == 16 << 20 else 'failed: size', flush=True)"
    )
    with start([sys.executable, "-c", code], tmp_path / "run") as process:
        pid = process.process.pid
        error = refused(lambda: snapkernel.checkpoint(pid, store=url), StoreError)
        assert "space" in str(error), error
        assert error.remedy
        assert Store.open(url).list() == []
        assert not [name for name in files(small_disk) if "tmp/" in name], files(small_disk)
        elsewhere = (tmp_path / "elsewhere").as_uri()
        assert snapkernel.checkpoint(pid, store=elsewhere).id
        assert process.verdict() == "ok"


def test_store_that_cannot_be_written(
    small_disk: Path, target: Conversation, tmp_path: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,bind,ro", str(small_disk)], check=True)
    pid = target.process.pid
    url = (small_disk / "store").as_uri()
    error = refused(lambda: snapkernel.checkpoint(pid, store=url), StoreError)
    assert error.remedy
    assert files(small_disk) == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root mounts small disks itself")
def test_small_disks_of_a_user(tmp_path: Path) -> None:
    """Other users mount file systems in namespaces of their own."""
    tests = ["test_full_disk", "test_store_that_cannot_be_written"]
    python = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    chosen = [f"--basetemp={tmp_path / 'inside'}", *(f"{__file__}::{test}" for test in tests)]
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", *python, *chosen],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert f"{len(tests)} passed" in done.stdout, done.stdout + done.stderr


def test_failed_checkpoint_leaves_the_store_alone(
    folder: Path, target: Conversation, store: str
) -> None:
    """After a fault, the snapshot that was there before is still restored."""
    before = files(folder)
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(snapkernel.errors.SnapkernelError):
        snapkernel.checkpoint(gone.pid, store=store)
    assert files(folder) == before
    with Conversation() as copy:
        copy.hand_over(snapkernel.restore("good", store=store, stdio=copy.theirs))
        assert copy.verdict() == "ok"
