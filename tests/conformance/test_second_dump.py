"""Dump, restore, dump again: nothing may differ, bit by bit, before a thread has run.

What behaves alike may still be different: this finds what no program notices.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.compare import differences
from support.conformance import Compiler, program_names, start

import snapkernel
from snapkernel.store import Store
from snapkernel.thaw.restore import hold

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.mark.parametrize("name", list(program_names()))
def test_second_dump(name: str, compiler: Compiler, tmp_path: Path, store: str) -> None:
    """The restored process, held before its first instruction, is the one that was saved."""
    with start(compiler.command(name), tmp_path) as original:
        assert original.process is not None
        snapshot = snapkernel.checkpoint(original.process.pid, store=store, stop=True)
        opened = Store.open(store)
        held = hold(snapshot, store=opened)
        try:
            assert differences(snapshot.manifest, held, opened) == []
        finally:
            held.destroy()
