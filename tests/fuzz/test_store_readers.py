"""Whatever the bytes of a store are: a reader gives what was stored, or a StoreError."""

from __future__ import annotations

import random
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from mutations import Changed, changed, mutated, tried
from whole import BASE, ID, PAGE, empty_store, forged, manifest, summary

from snapkernel.errors import SnapkernelError, StoreError
from snapkernel.model import AddressSpace, Content, Manifest, Mapping
from snapkernel.store import Store
from snapkernel.store import index as indexes
from snapkernel.store import manifest as manifests
from snapkernel.store import pack as packs
from snapkernel.store.backend import get, put
from snapkernel.store.repository import Config
from snapkernel.thaw.restore import plan

PLAIN = manifest()
FILE = manifests.frame(summary(PLAIN), msgspec.msgpack.encode(PLAIN))
SIZE = 40 * PAGE


class Bytes:
    """A source for the writer: text, numbers and noise."""

    data = (
        b"".join(b"%d, " % (n * n) for n in range(20_000))[: 20 * PAGE]
        + b"".join(n.to_bytes(8, "little") for n in range(10 * PAGE // 8))
        + random.Random(1).randbytes(10 * PAGE)
    )

    def read_into(self, runs: Any, buffer: memoryview) -> None:
        at = 0
        for address, length in runs:
            buffer[at : at + length] = self.data[address - BASE : address - BASE + length]
            at += length


def saved(store: Store) -> Manifest:
    """A snapshot of some bytes."""
    with store.writer() as writer:
        content = writer.store(Bytes(), [(BASE, SIZE)], page_size=PAGE)
        plain = manifest()
        plain["processes"][0]["memory"]["guards"] = b""
        sample = msgspec.convert(plain, Manifest)
        (process,) = sample.processes
        space: AddressSpace = msgspec.structs.replace(
            process.memory,
            content=content,
            mappings=(Mapping(start=BASE, end=BASE + SIZE, protection=3),),
            vdso=None,
        )
        process = msgspec.structs.replace(process, memory=space)
        return writer.commit(msgspec.structs.replace(sample, processes=(process,)))


STORE = empty_store()
SAVED = saved(STORE)
OBJECTS = {
    entry.name: get(STORE.backend, entry.name, limit=1 << 24)
    for folder in ("packs", "index", "manifests")
    for entry in STORE.backend.list(folder)
}
(PACK,) = (name for name in OBJECTS if name.startswith("packs/"))
(INDEX,) = (name for name in OBJECTS if name.startswith("index/"))


def a_store(**changes: bytes) -> Store:
    """The store, with other bytes for its pack or index."""
    store = empty_store()
    for name, data in OBJECTS.items():
        put(store.backend, name, [changes.get(name.partition("/")[0], data)])
    return store


def content(loaded: Manifest) -> Content:
    return loaded.processes[0].memory.content


def everything(store: Store) -> None:
    """All that is ever done with a store, until it refuses."""
    for done in (store.list, store.verify, store.gc, lambda: store.load(SAVED.id)):
        with suppress(StoreError):
            done()


# --- manifests -----------------------------------------------------------------------------------


@tried(150)
@given(mutated(FILE))
def test_manifest_files(data: bytes) -> None:
    """Checksums do not let anything pass but the file itself."""
    store = empty_store()
    put(store.backend, manifests.object_name(ID), [data])
    try:
        assert msgspec.to_builtins(store.load(ID))["id"] == ID
        assert data == FILE
    except StoreError:
        assert data != FILE
    everything(store)


@tried(150)
@given(mutated(FILE), st.sampled_from(["head", "all"]))
def test_manifest_files_with_right_checksums(data: bytes, which: str) -> None:
    if len(data) > manifests.HEADER.size + 64:
        data = data[:-32] + blake3(data[:-32]).digest()
    if which == "head" and len(data) > 100:
        length = manifests.HEADER.unpack_from(data)[3]
        head = data[: manifests.HEADER.size + length]
        data = head + blake3(head).digest() + data[len(head) + 32 :]
        data = data[:-32] + blake3(data[:-32]).digest()
    store = empty_store()
    put(store.backend, manifests.object_name(ID), [data])
    everything(store)
    try:
        store.load(ID)
    except StoreError:
        return


@tried(200)
@given(mutated(msgspec.msgpack.encode(PLAIN)), mutated(summary(PLAIN)), st.booleans())
def test_message_pack(plain: bytes, head: bytes, honest: bool) -> None:
    store = empty_store()
    data = manifests.frame(summary(PLAIN) if honest else head, plain)
    put(store.backend, manifests.object_name(ID), [data])
    everything(store)
    try:
        loaded = store.load(ID)
    except StoreError:
        return
    again = manifests.encode(loaded)
    put(store.backend, manifests.object_name(ID), [again])
    assert store.load(ID) == loaded


@tried(500)
@given(changed(PLAIN))
def test_manifests_whose_values_are_changed(sample: Changed) -> None:
    """What passes can be written again as it is, and be planned: in bounded time, or with an error
    that says why not."""
    try:
        store = forged(sample.plain)
    except OverflowError:
        return  # MessagePack has no such number
    try:
        loaded = store.load(ID)
    except StoreError:
        return
    assert manifests._DECODER.decode(msgspec.msgpack.encode(loaded)) == loaded
    with suppress(SnapkernelError):
        assert all(isinstance(line, str) for line in plan(ID, store=store))


def test_what_a_manifest_may_cost() -> None:
    """A file of some kilobytes that says it has 16 MiB, and has: what it is unpacked to stays
    within a small multiple of that. In a process of its own, to see the highest use."""
    code = """
import resource, sys
sys.path[:0] = [{here!r}]
import msgspec
from whole import ID, empty_store, manifest, summary
from snapkernel.errors import StoreError
from snapkernel.store import manifest as manifests
from snapkernel.store.backend import put
plain = manifest()
{change}
store = empty_store()
data = manifests.frame(summary(plain), msgspec.msgpack.encode(plain))
del plain
put(store.backend, manifests.object_name(ID), [data])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    store.load(ID)
except StoreError as error:
    print(error)
print(len(data), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    bombs = {
        "arguments": 'plain["processes"][0]["arguments"] = [""] * (16 << 20)',
        "notes": 'plain["notes"] = [{"object": "", "status": ""}] * (1 << 20)',
        "processors": 'plain["processes"][0]["threads"][0]["scheduling"]["processors"] = [0] * '
        "(16 << 20)",
        "eventfds": 'plain["descriptions"] = [{"kind": "eventfd", "count": 0}] * (1 << 20)',
    }
    for name, change in bombs.items():
        script = code.format(here=str(Path(__file__).parent), change=change)
        run = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            timeout=60,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)),
        )
        assert run.returncode == 0, f"{name}: {run.stderr}"
        stored, kilobytes = map(int, run.stdout.splitlines()[-1].split())
        assert stored < 1 << 20
        assert kilobytes < 16 * 24 * 1024, f"{name}: {kilobytes} KiB"


# --- packs and chunks ----------------------------------------------------------------------------


def _read_all(store: Store) -> None:
    """Every way to read: what comes is what was stored."""
    found = bytearray(SIZE)

    def write(runs: list[tuple[int, int]], data: memoryview) -> None:
        at = 0
        for address, length in runs:
            found[address - BASE : address - BASE + length] = data[at : at + length]
            at += length

    with suppress(StoreError):
        with store.fetch(SAVED, content(SAVED), threads=1) as fetch:
            fetch.deliver(write)
        assert found == Bytes.data
    with suppress(StoreError):
        assert b"".join(data for _, data in store.read(SAVED, content(SAVED))) == Bytes.data


@tried(120)
@given(mutated(OBJECTS[PACK]))
def test_packs(data: bytes) -> None:
    store = a_store(packs=data)
    _read_all(store)
    everything(store)


@tried(150)
@given(mutated(OBJECTS[PACK][-400:]))
def test_tables_of_packs_with_right_checksums(tail: bytes) -> None:
    """A pack is named by the hash of its table, so any table has a pack that it is right in."""
    end = packs.FOOTER.size + packs.HASH
    body = OBJECTS[PACK][:-400] + tail[:-32]
    rows = 0
    if len(tail) >= end:
        _, rows, *_ = packs.FOOTER.unpack(tail[-end:-32])
    table = body[-(rows * packs.ROW.size + packs.FOOTER.size) :] if rows < 1 << 16 else body[-400:]
    digest = blake3(table).digest()
    plain = msgspec.to_builtins(SAVED, builtin_types=(bytes,))
    plain |= {"packs": [digest.hex()], "id": ID}
    store = forged(plain)
    put(store.backend, packs.object_name(digest.hex()), [body + digest])
    everything(store)
    problems = store.verify()
    assert all(isinstance(problem, str) for problem in problems)
    loaded = store.load(ID)
    try:
        data = b"".join(part for _, part in store.read(loaded, content(loaded)))
        assert data == Bytes.data
    except StoreError:
        return


# --- the index -----------------------------------------------------------------------------------


@tried(120)
@given(mutated(OBJECTS[INDEX]), st.booleans())
def test_index_files(data: bytes, right: bool) -> None:
    """Whatever an index says, what is written next can be read."""
    if right:
        data = data[:-32] + blake3(data[:-32]).digest()
    store = a_store(index=data)
    for name, size, rows in indexes.read_index(store.backend, INDEX):
        assert len(name) == 64
        assert size >= 0
        assert len(rows) % packs.ROW.size == 0
    everything(store)
    again = saved(_without_manifests(store))
    try:
        found = b"".join(part for _, part in store.read(again, content(again)))
        assert found == Bytes.data
    except StoreError:
        # An index with right checksums that lies of places: the hash tells.
        assert right


def _without_manifests(store: Store) -> Store:
    for id in manifests.ids(store.backend):
        store.backend.delete(manifests.object_name(id))
    return store


# --- the configuration ---------------------------------------------------------------------------


@tried(200)
@given(mutated(get(STORE.backend, "config", limit=1 << 16)))
def test_configurations(data: bytes) -> None:
    from snapkernel.store.repository import _read_config

    try:
        config = _read_config("memory://", data)
    except StoreError:
        return
    assert isinstance(config, Config)
    assert config.format == 1
    assert not config.features
    assert _read_config("memory://", msgspec.json.encode(config)) == config


def test_an_object_that_is_a_pipe(tmp_path: Path) -> None:
    """It is not waited for."""
    import os

    os.mkfifo(tmp_path / "config")
    with pytest.raises(StoreError, match="config"):
        Store.open(str(tmp_path), create=True)
