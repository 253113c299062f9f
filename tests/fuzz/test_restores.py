"""Real restores of manifests that somebody changed: they succeed, or are refused with a reason, and
leave nothing behind. What they make never runs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import changed, tried
from support import leaks
from support.conformance import start

import snapkernel
from snapkernel.store import Store
from snapkernel.store import manifest as manifests
from snapkernel.store.backend import put
from snapkernel.thaw.restore import hold

BUSY = Path(__file__).parent.parent / "soak" / "busy.py"


@pytest.fixture(scope="module")
def snapshot(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Store, snapkernel.Snapshot]]:
    """A process with threads, timers, pipes and sockets, in a store."""
    folder = tmp_path_factory.mktemp("fuzzed")
    store = Store.open(str(folder / "store"), create=True)
    with start([sys.executable, str(BUSY)], folder) as original:
        taken = snapkernel.checkpoint(original.process.pid, store=store.url, stop=True)
    yield store, taken
    shutil.rmtree(folder, ignore_errors=True)


@tried(60)
@given(st.data())
def test_changed_manifests_of_a_real_process(
    snapshot: tuple[Store, snapkernel.Snapshot], temporary_folder: Path, data: st.DataObject
) -> None:
    store, taken = snapshot
    before = leaks.look()
    plain: dict[str, Any] = msgspec.to_builtins(taken.manifest, builtin_types=(bytes,))
    sample = data.draw(changed(plain))
    id = sample.plain.get("id")
    if not isinstance(id, str) or not manifests.is_id(id):
        return
    head = msgspec.to_builtins(manifests._summarise(taken.manifest))
    head |= {name: sample.plain[name] for name in head if name in sample.plain}
    try:
        file = manifests.frame(msgspec.msgpack.encode(head), msgspec.msgpack.encode(sample.plain))
    except OverflowError:
        return  # MessagePack has no such number
    store.backend.delete(manifests.object_name(id))
    put(store.backend, manifests.object_name(id), [file])
    with suppress(snapkernel.SnapkernelError):
        hold(id, store=store, stdio=(0, 1, 2)).destroy()
    assert leaks.left_behind(before) == []
