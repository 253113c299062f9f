"""What every store does, whatever keeps its objects."""

from __future__ import annotations

import gc
import random
import struct
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import BASE, PAGE, Bytes, fetched, make_manifest, memory, new_id, save

from snapkernel.errors import InvalidName, SnapkernelError, SnapshotNotFound, StoreError
from snapkernel.model import Content, Manifest
from snapkernel.store import SnapshotWriter, Store, check_name
from snapkernel.store.writer import WINDOW

MIB = 1 << 20


def numbers(count: int) -> bytes:
    return struct.pack(f"<{count}d", *(0.25 * number for number in range(count)))


def test_what_was_stored_comes_back(store: Store) -> None:
    data = random.Random(1).randbytes(3 * MIB) + numbers(MIB // 2) + b"word " * MIB
    data += random.Random(2).randbytes(-len(data) % PAGE)
    saved = save(store, data, name="first", memory_bytes=len(data))
    loaded = store.load(saved.id)
    assert loaded == saved
    assert fetched(store, loaded, len(data)) == data
    assert b"".join(part for _, part in store.read(loaded, memory(loaded))) == data
    assert store.verify() == []


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kinds=st.lists(st.sampled_from("-0abr"), min_size=1, max_size=300),
    offset=st.integers(0, 100),
    tail=st.integers(0, PAGE - 1),
)
def test_any_runs(store: Store, kinds: list[str], offset: int, tail: int) -> None:
    """Pages that are not there, zeros, equal pages and random ones, with any end."""
    start = offset * PAGE
    data = bytearray(start)
    runs = []
    for number, kind in enumerate(kinds):
        page = random.Random(number).randbytes(PAGE) if kind == "r" else kind.encode() * PAGE
        data += bytes(PAGE) if kind in "-0" else page
        if kind != "-":
            runs.append((BASE + start + number * PAGE, PAGE))
    if runs and kinds[-1] != "-":
        runs[-1] = (runs[-1][0], PAGE - tail)
        data[len(data) - tail :] = bytes(tail)
    saved = save(store, data, runs or [(BASE, 0)][:0] or [(BASE + start, PAGE)])
    content = memory(saved)
    assert fetched(store, saved, len(data)) == data
    assert content.length == sum(
        length for address, length in runs if any(data[address - BASE :][:length])
    )
    covered = [(a, n) for a, n in content.iter_runs()]
    assert all(a + n < b for (a, n), (b, _) in pairwise(covered))
    read = list(store.read(saved, content))
    assert [address for address, _ in read] == sorted(address for address, _ in read)
    assert all(data[a - BASE : a - BASE + len(part)] == part for a, part in read)


def test_zero_pages_are_not_stored(store: Store) -> None:
    data = bytearray(64 * MIB)
    data[5 * MIB] = 1
    saved = save(store, data)
    assert list(memory(saved).iter_runs()) == [(BASE + 5 * MIB, PAGE)]
    assert saved.stored_bytes < PAGE
    empty = save(store, bytes(MIB))
    assert memory(empty) == Content()
    assert empty.stored_bytes == 0
    assert fetched(store, empty, MIB) == bytes(MIB)


def test_equal_content_is_stored_once(store: Store) -> None:
    data = random.Random(3).randbytes(4 * MIB)
    first = save(store, data)
    assert first.stored_bytes > len(data)
    again = save(store, data)
    assert again.stored_bytes == 0
    assert fetched(store, again, len(data)) == data
    repeated = save(store, data[:WINDOW] * 40)
    assert repeated.stored_bytes == 0
    assert fetched(store, repeated, WINDOW * 40) == data[:WINDOW] * 40


def test_a_hundredth_changed_adds_three_hundredths_at_most(store: Store) -> None:
    data = bytearray(random.Random(4).randbytes(64 * MIB))
    first = save(store, data)
    change = len(data) // 100
    data[20 * MIB + 777 : 20 * MIB + 777 + change] = random.Random(5).randbytes(change)
    second = save(store, data)
    assert 0 < second.stored_bytes <= 0.03 * first.stored_bytes
    assert fetched(store, second, len(data)) == data


@pytest.mark.parametrize(
    ("data", "ratio"),
    [
        (numbers(MIB // 4), 20),
        (struct.pack(f"<{MIB // 4}q", *range(MIB // 4)), 50),
        (struct.pack(f"<{MIB}H", *(n % 997 for n in range(MIB))), 20),
        (" ".join(map(str, range(300_000))).encode()[: 2 * MIB], 2.5),
    ],
    ids=["doubles", "integers", "short integers", "text"],
)
def test_structure_is_found(store: Store, data: bytes, ratio: float) -> None:
    data = data[: len(data) & -PAGE]
    saved = save(store, data)
    assert len(data) > ratio * saved.stored_bytes
    assert fetched(store, saved, len(data)) == data


def test_random_bytes_are_stored_as_they_are(store: Store) -> None:
    saved = save(store, random.Random(6).randbytes(2 * MIB))
    assert {codec for *_, codec in memory(saved).iter_chunks()} == {0}


def test_chunks_do_not_move_with_what_is_around_them(store: Store) -> None:
    data = random.Random(7).randbytes(8 * WINDOW)
    save(store, data)
    part = save(store, data, [(BASE + 3 * WINDOW, 2 * WINDOW)])
    assert part.stored_bytes == 0


def test_several_contents_in_one_snapshot(store: Store) -> None:
    with SnapshotWriter(store.backend, threads=1) as writer:
        contents = [
            writer.store(Bytes(bytes([n]) * size, 0), [(0, size)], page_size=PAGE)
            for n, size in ((1, 10), (2, 5 * MIB + 3), (3, PAGE))
        ]
        saved = writer.commit(make_manifest())
    assert len(saved.packs) == 1
    for content, (n, size) in zip(contents, ((1, 10), (2, 5 * MIB + 3), (3, PAGE)), strict=True):
        assert b"".join(part for _, part in store.read(saved, content)) == bytes([n]) * size


def test_larger_pages(store: Store) -> None:
    page = 65536
    data = bytearray(8 * page)
    data[3 * page + 5] = data[7 * page] = 1
    with store.writer() as writer:
        content = writer.store(Bytes(data), [(BASE, len(data))], page_size=page)
        saved = writer.commit(make_manifest(content))
    assert list(content.iter_runs()) == [(BASE + 3 * page, page), (BASE + 7 * page, page)]
    assert fetched(store, saved, len(data)) == data


@pytest.mark.parametrize(
    "runs",
    [
        [(BASE + 1, PAGE)],
        [(BASE, 0)],
        [(BASE, 10), (BASE + PAGE, PAGE)],
        [(BASE + PAGE, PAGE), (BASE, PAGE)],
        [(BASE, 2 * PAGE), (BASE + PAGE, PAGE)],
    ],
)
def test_runs_must_be_in_order(store: Store, runs: list[tuple[int, int]]) -> None:
    with store.writer() as writer, pytest.raises(ValueError, match="run"):
        writer.store(Bytes(bytes(4 * PAGE)), runs, page_size=PAGE)
    assert store.list() == []


def test_progress_adds_up(store: Store) -> None:
    seen: list[int] = []
    with store.writer() as writer:
        source = Bytes(random.Random(8).randbytes(9 * MIB))
        writer.store(source, [(BASE, 9 * MIB)], page_size=PAGE, progress=seen.append)
    assert sum(seen) == 9 * MIB


class Broken(Bytes):
    """Memory that goes away half-way."""

    def read_into(self, runs: object, buffer: memoryview) -> None:
        if runs[0][0] >= BASE + 8 * MIB:  # type: ignore[index]
            raise SnapkernelError("process 7", "it ended")
        super().read_into(runs, buffer)  # type: ignore[arg-type]


def test_a_source_that_fails(store: Store) -> None:
    data = random.Random(9).randbytes(40 * MIB)
    with pytest.raises(SnapkernelError, match="it ended"), store.writer() as writer:
        writer.store(Broken(data), [(BASE, len(data))], page_size=PAGE)
    assert list(store.backend.list("packs")) == []
    assert list(store.backend.unfinished()) == []


def test_a_failed_writer_cannot_commit(store: Store) -> None:
    data = random.Random(9).randbytes(40 * MIB)
    with store.writer() as writer:
        with pytest.raises(SnapkernelError):
            writer.store(Broken(data), [(BASE, len(data))], page_size=PAGE)
        with pytest.raises(StoreError):
            writer.commit(make_manifest())
    assert store.list() == []


def test_a_writer_without_commit_leaves_nothing(store: Store) -> None:
    data = random.Random(10).randbytes(40 * MIB)
    with store.writer() as writer:
        writer.store(Bytes(data), [(BASE, len(data))], page_size=PAGE)
    assert [e for f in ("packs", "index", "manifests") for e in store.backend.list(f)] == []
    assert list(store.backend.unfinished()) == []


def test_delivery_begins_late_and_stays_in_bounds(store: Store) -> None:
    data = random.Random(11).randbytes(24 * MIB)
    saved = save(store, data)
    assert fetched(store, saved, len(data), threads=3, memory_limit=4 * MIB) == data


def test_an_error_of_the_receiver_is_raised(store: Store) -> None:
    saved = save(store, random.Random(12).randbytes(24 * MIB))

    def write(runs: object, data: object) -> None:
        raise SnapkernelError("process 7", "cannot be written")

    with (
        store.fetch(saved, memory(saved)) as fetch,
        pytest.raises(SnapkernelError, match="cannot be written"),
    ):
        fetch.deliver(write)


def test_a_fetch_can_be_left_undelivered(store: Store) -> None:
    saved = save(store, random.Random(12).randbytes(24 * MIB))
    with store.fetch(saved, memory(saved), memory_limit=4 * MIB):
        pass  # leaving it must not hang


# --- names and lists -----------------------------------------------------------------------------


def named(store: Store, name: str, day: int) -> Manifest:
    return save(store, b"x" * PAGE, name=name, created=f"2026-01-{day:02}T00:00:00Z")


def test_snapshots_are_found_by_id_prefix_and_name(store: Store) -> None:
    old, other, new = (
        named(store, "clean", 1),
        named(store, "more data", 2),
        named(store, "clean", 3),
    )
    assert [s.id for s in store.list()] == [new.id, other.id, old.id]
    assert store.load("clean") == new
    assert store.load("more data") == other
    assert store.load(old.id) == store.load(old.id[:12]) == store.load(old.id.upper()) == old
    summary = store.list()[-1]
    assert (summary.name, summary.host, summary.mode) == ("clean", "here", "live")
    assert summary.stored_bytes == old.stored_bytes
    for unknown in ("nothing", "0" * 32, old.id[:3], ""):
        with pytest.raises(SnapshotNotFound):
            store.load(unknown)


def test_an_ambiguous_prefix_is_refused(store: Store) -> None:
    first = save(store, b"x" * PAGE, id="abcd" + "0" * 28)
    save(store, b"x" * PAGE, id="abcd" + "1" * 28)
    with pytest.raises(SnapshotNotFound, match="2 snapshots"):
        store.load("abcd")
    assert store.load("abcd0") == first


def test_removed_snapshots_free_their_space(store: Store) -> None:
    data = random.Random(13).randbytes(4 * MIB)
    first, second = save(store, data[: 3 * MIB]), save(store, data)
    assert store.gc(grace=-1) == 0
    store.remove([first.id])
    assert store.gc(grace=-1) == 0  # the second needs all of it
    assert store.verify() == []
    with pytest.raises(SnapshotNotFound):
        store.remove([second.id, first.id])
    assert len(store.list()) == 1
    store.remove([second.id])
    assert store.gc() == 0  # too young
    assert store.gc(grace=-1) > 4 * MIB
    assert [e for f in ("packs", "index", "manifests") for e in store.backend.list(f)] == []


def test_gc_spares_what_a_writer_relies_on(store: Store) -> None:
    data = random.Random(14).randbytes(MIB)
    store.remove([save(store, data).id])
    with store.writer() as writer:
        content = writer.store(Bytes(data), [(BASE, MIB)], page_size=PAGE)
        store.gc(grace=60)
        saved = writer.commit(make_manifest(content))
    assert fetched(store, saved, MIB) == data


def test_a_pack_collected_meanwhile_stops_the_commit(store: Store) -> None:
    data = random.Random(14).randbytes(MIB)
    store.remove([save(store, data).id])
    with store.writer() as writer:
        content = writer.store(Bytes(data), [(BASE, MIB)], page_size=PAGE)
        store.gc(grace=-1)
        with pytest.raises(StoreError, match="take the snapshot again"):
            writer.commit(make_manifest(content))
    assert store.list() == []


def test_an_index_entry_of_a_missing_pack_is_not_used(store: Store) -> None:
    data = random.Random(15).randbytes(MIB)
    save(store, data)
    for entry in list(store.backend.list("packs")):
        store.backend.delete(entry.name)
    saved = save(store, data)
    assert fetched(store, saved, MIB) == data


def test_gc_writes_a_lost_index_again(store: Store) -> None:
    data = random.Random(16).randbytes(MIB)
    save(store, data)
    for entry in list(store.backend.list("index")):
        store.backend.delete(entry.name)
    store.gc()
    assert save(store, data).stored_bytes == 0


@pytest.mark.parametrize(
    "name", ["a", "after-cleaning", "v1.2 b_c+d@e", "Größe", "x" * 128, "beef"]
)
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "x" * 129, "a/b", "..", ".hidden", "-x", "_x", "a ", " a"),
        *("a\nb", "a\0b", "a\u202eb", "a\u0308", "ab" * 16, "AB" * 16),
    ],
)
def test_names_that_are_refused(store: Store, name: str) -> None:
    with pytest.raises(InvalidName):
        check_name(name)
    if name:
        with store.writer() as writer, pytest.raises(ValueError, match="name"):
            writer.commit(make_manifest(name=name))


def test_an_id_is_written_once(store: Store) -> None:
    first = save(store, b"x" * PAGE)
    with pytest.raises(StoreError, match="exists already"):
        save(store, b"y" * PAGE, id=first.id)
    assert store.load(first.id) == first
    assert store.verify() == []


def test_stores_are_the_same_for_all_who_open_them(store: Store) -> None:
    saved = save(store, b"x" * PAGE)
    again = Store.open(store.url)
    assert again.config == store.config
    assert again.load(saved.id) == saved


@pytest.mark.parametrize("url", ["s3://bucket/x", "https://host/x", "file://host/x"])
def test_other_places_are_refused(url: str) -> None:
    with pytest.raises(StoreError, match="give file:///path"):
        Store.open(url, create=True)


def test_there_must_be_a_store_to_open() -> None:
    with pytest.raises(StoreError, match="no store"):
        Store.open(f"memory://{new_id()}")


def test_a_writer_leaves_nothing_to_the_garbage_collector(store: Store) -> None:
    """Memory that is exported crashes CPython 3.11 when the collector takes it apart."""
    gc.collect()
    gc.disable()
    try:
        save(store, bytes(range(256)) * 4096)
        workers = [found for found in gc.get_objects() if type(found).__name__ == "_Worker"]
    finally:
        gc.enable()
    assert not workers
