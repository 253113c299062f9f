"""What is damaged, or was made to look like a snapshot, is found before anything uses it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from samples import BASE, PAGE, fetched, make_manifest, memory, new_id, save

from snapkernel import model
from snapkernel.errors import DamagedSnapshot, StoreError
from snapkernel.model import CHUNK, RUN, SCHEMA, Content, Manifest
from snapkernel.store import Store
from snapkernel.store import manifest as manifests
from snapkernel.store.backend import get, put
from snapkernel.store.writer import WINDOW

MIB = 1 << 20


def overwrite(store: Store, name: str, data: bytes) -> None:
    store.backend.delete(name)
    put(store.backend, name, [data])


def flipped(data: bytes, position: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1 << position % 8
    return bytes(changed)


@pytest.fixture
def saved(store: Store) -> Manifest:
    """A snapshot with chunks of every kind, in one pack."""
    values = b"".join(n.to_bytes(8, "little") for n in range(WINDOW // 8))
    text = b"".join(b"%d, " % (n * n) for n in range(WINDOW))[:WINDOW]
    data = random.Random(1).randbytes(WINDOW) + values + text
    return save(store, data, name="sample")


def pack_name(store: Store) -> str:
    (entry,) = store.backend.list("packs")
    return entry.name


def test_a_flipped_bit_anywhere_in_a_pack_is_found(store: Store, saved: Manifest) -> None:
    name = pack_name(store)
    data = get(store.backend, name, limit=MIB)
    assert {codec for *_, codec in memory(saved).iter_chunks()} == {0, 1, 2}
    places = [*range(20), *range(len(data) - 300, len(data))]
    places += random.Random(2).sample(range(20, len(data) - 300), 40)
    for position in places:
        overwrite(store, name, flipped(data, position))
        (problem,) = store.verify()
        assert saved.packs[0] in problem
        assert saved.id in problem
    overwrite(store, name, data)
    assert store.verify() == []


def test_a_damaged_chunk_is_never_delivered(store: Store, saved: Manifest) -> None:
    name = pack_name(store)
    data = get(store.backend, name, limit=MIB)
    for id, _, offset, stored, _, _ in memory(saved).iter_chunks():
        overwrite(store, name, flipped(data, offset + stored // 2))
        with pytest.raises(DamagedSnapshot) as caught:
            fetched(store, saved, 3 * WINDOW)
        assert id.hex() in caught.value.object
        assert saved.packs[0] in caught.value.object
        assert f"{BASE:x}"[:6] in caught.value.reason
        assert caught.value.remedy
        with pytest.raises(DamagedSnapshot):
            list(store.read(saved, memory(saved)))


@pytest.mark.parametrize("left", [0, 10, 1000, WINDOW, WINDOW + 1000])
def test_a_truncated_pack(store: Store, saved: Manifest, left: int) -> None:
    name = pack_name(store)
    overwrite(store, name, get(store.backend, name, limit=left))
    with pytest.raises(DamagedSnapshot, match="truncated") as caught:
        list(store.read(saved, memory(saved)))
    assert saved.packs[0] in str(caught.value)
    for data in (True, False):
        (problem,) = store.verify("sample", data=data)
        assert saved.packs[0] in problem


def test_a_missing_pack(store: Store, saved: Manifest) -> None:
    store.backend.delete(pack_name(store))
    with pytest.raises(DamagedSnapshot, match=r"missing.*0x7f0000000000"):
        fetched(store, saved, 3 * WINDOW)
    (problem,) = store.verify(data=False)
    assert "missing" in problem


def test_a_truncated_pack_is_not_used_again(store: Store, saved: Manifest) -> None:
    name = pack_name(store)
    overwrite(store, name, get(store.backend, name, limit=WINDOW))
    data = random.Random(1).randbytes(WINDOW)
    assert fetched(store, save(store, data), WINDOW) == data


def test_a_flipped_bit_anywhere_in_a_manifest_is_found(store: Store, saved: Manifest) -> None:
    name = manifests.object_name(saved.id)
    data = get(store.backend, name, limit=MIB)
    summary = len(data) - 32
    for position in range(len(data)):
        overwrite(store, name, flipped(data, position))
        with pytest.raises(DamagedSnapshot):
            store.load(saved.id)
    for position in range(0, summary, 97):
        overwrite(store, name, data[:position])
        with pytest.raises(DamagedSnapshot):
            store.load(saved.id)
    overwrite(store, name, data + b"x")
    with pytest.raises(DamagedSnapshot):
        store.load(saved.id)


def test_a_damaged_manifest_is_listed_and_stops_gc(store: Store, saved: Manifest) -> None:
    other = save(store, b"y" * PAGE, name="other")
    overwrite(store, manifests.object_name(saved.id), b"rubbish")
    by_id = {summary.id: summary for summary in store.list()}
    assert "damaged" in by_id[saved.id].problem
    assert by_id[other.id].problem == ""
    assert store.load("other") == other
    assert any(saved.id in problem for problem in store.verify())
    with pytest.raises(DamagedSnapshot, match=saved.id):
        store.gc(grace=-1)
    store.remove([saved.id])
    assert store.gc(grace=-1) > 0
    assert fetched(store, other, PAGE) == b"y" * PAGE


def test_a_manifest_under_another_id(store: Store, saved: Manifest) -> None:
    data = get(store.backend, manifests.object_name(saved.id), limit=MIB)
    other = new_id()
    put(store.backend, manifests.object_name(other), [data])
    with pytest.raises(DamagedSnapshot):
        store.load(other)
    assert next(s for s in store.list() if s.id == other).problem


# --- manifests that somebody made ----------------------------------------------------------------


def forge(store: Store, manifest: Manifest, plain: Any, **summary: Any) -> str:
    """Write a manifest whose checksums are right, whatever it says."""
    original = msgspec.to_builtins(manifests._summarise(manifest))
    head = msgspec.msgpack.encode({**original, **summary})
    data = manifests.frame(head, msgspec.msgpack.encode(plain))
    overwrite(store, manifests.object_name(manifest.id), data)
    return manifest.id


@pytest.mark.parametrize(
    "change",
    [
        {"processes": 3},
        {"processes": None},
        {"memory_bytes": -1},
        {"memory_bytes": "many"},
        {"id": 5},
        {"packs": ["../../etc/passwd"]},
        {"packs": ["AB" * 32]},
        {"unknown": 1},
        {"name": "../x"},
        {"descriptions": [{"kind": "magic"}]},
        {"created": None},
    ],
    ids=str,
)
def test_wrong_types(store: Store, saved: Manifest, change: dict[str, Any]) -> None:
    plain = {**msgspec.msgpack.decode(msgspec.msgpack.encode(saved)), **change}
    forge(store, saved, plain)
    with pytest.raises(DamagedSnapshot) as caught:
        store.load(saved.id)
    assert saved.id in caught.value.object


def test_not_even_a_record(store: Store, saved: Manifest) -> None:
    for plain in (None, [], "text", 7):
        forge(store, saved, plain)
        with pytest.raises(DamagedSnapshot):
            store.load(saved.id)


def test_a_newer_schema_says_to_upgrade(store: Store, saved: Manifest) -> None:
    plain = msgspec.msgpack.decode(msgspec.msgpack.encode(saved))
    plain |= {"schema": SCHEMA + 1, "novelty": True}
    forge(store, saved, plain, schema=SCHEMA + 1)
    with pytest.raises(DamagedSnapshot, match="upgrade snapkernel"):
        store.load("sample")
    assert [s.name for s in store.list()] == ["sample"]
    assert store.gc(grace=-1) == 0  # what it needs is known all the same


ROW = (bytes(32), 0, 16, 100, PAGE, 1)


@pytest.mark.parametrize(
    ("runs", "rows", "reason"),
    [
        ([(BASE, PAGE)], [], "do not fill"),
        ([(BASE, PAGE)], [ROW, ROW], "do not fill"),
        ([(BASE, PAGE), (BASE, PAGE)], [ROW, ROW], "overlaps"),
        ([(BASE, 0)], [], "empty"),
        ([((1 << 64) - PAGE, 2 * PAGE)], [ROW, ROW], "address space"),
        ([(BASE, PAGE)], [(*ROW[:1], 1, *ROW[2:])], "pack 1 of 1"),
        ([(BASE, PAGE)], [(*ROW[:2], 3, *ROW[3:])], "impossible"),
        ([(BASE, PAGE)], [(*ROW[:3], 1 << 30, *ROW[4:])], "impossible"),
        ([(BASE, 1 << 30)], [(*ROW[:4], 1 << 30, 1)], "impossible"),
        ([(BASE, PAGE)], [(*ROW[:5], 77)], "codec 77"),
        ([(BASE, PAGE)], [(*ROW[:5], 0)], "two lengths"),
    ],
)
def test_tables_that_make_no_sense(
    store: Store,
    runs: list[tuple[int, int]],
    rows: list[tuple[bytes, int, int, int, int, int]],
    reason: str,
) -> None:
    content = Content(
        runs=b"".join(RUN.pack(*run) for run in runs),
        chunks=b"".join(CHUNK.pack(*row) for row in rows),
    )
    manifest = make_manifest(content, packs=("ab" * 32,))
    forge(store, manifest, manifest)
    with pytest.raises(DamagedSnapshot, match=reason):
        store.load(manifest.id)


def test_a_frame_that_unpacks_to_more_than_it_says(store: Store) -> None:
    manifest = make_manifest()
    plain = msgspec.msgpack.encode(manifest)
    honest = manifests.frame(msgspec.msgpack.encode(manifests._summarise(manifest)), plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifests, "MAX_MANIFEST", len(plain) - 1)
        overwrite(store, manifests.object_name(manifest.id), honest)
        with pytest.raises(DamagedSnapshot, match="too large"):
            store.load(manifest.id)
    assert store.load(manifest.id) == manifest


def test_every_content_of_the_model_is_known() -> None:
    """`contents` must be told of a record that holds one."""
    holders = {
        name
        for name, kind in vars(model).items()
        if isinstance(kind, type)
        and issubclass(kind, msgspec.Struct)
        and any("Content" in str(field.type) for field in msgspec.structs.fields(kind))
    }
    assert holders == {"AddressSpace", "CarriedFile", "SharedMemory"}


# --- the store itself ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        ('{"format": 2, "id": "%s"}', "upgrade"),
        ('{"format": 1, "id": "%s", "features": ["encryption"]}', "upgrade"),
        ('{"format": "one", "id": "%s"}', "another store"),
        ("{%s", "another store"),
        ("", "another store"),
    ],
)
def test_a_configuration_that_is_not_ours(folder: Path, config: str, remedy: str) -> None:
    folder.mkdir()
    (folder / "config").write_text(config % new_id() if "%" in config else config)
    with pytest.raises(StoreError, match=remedy):
        Store.open(str(folder), create=True)


def test_damaged_index_files_do_no_harm(store: Store, saved: Manifest) -> None:
    (entry,) = store.backend.list("index")
    data = get(store.backend, entry.name, limit=MIB)
    for rubbish in (b"", data[:50], flipped(data, 70), b"x" * 100):
        overwrite(store, entry.name, rubbish)
        text = random.Random(1).randbytes(WINDOW)
        assert fetched(store, save(store, text), WINDOW) == text
    assert store.verify() == []
