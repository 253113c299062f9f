"""What the tests of faults share: a process that must stay unharmed, and a store to look into."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.conformance import Compiler, Conversation, start

import snapkernel


@pytest.fixture
def target(compiler: Compiler, tmp_path: Path) -> Iterator[Conversation]:
    """A process with a thread, timers and data, which must verify its state at the end."""
    with start(compiler.command("runtime.periodic_thread"), tmp_path) as conversation:
        yield conversation
        assert conversation.verdict() == "ok", "the target was harmed"


@pytest.fixture
def folder(store: str, target: Conversation) -> Path:
    """The folder of a store that has one snapshot."""
    snapkernel.checkpoint(target.process.pid, store=store, name="good")
    return Path(store.removeprefix("file://"))
