"""Kernels that are not ipykernel, nor Python: C++ with threads, V8, R.

Each is filled, saved and restored, beside itself and instead of itself, by the same code as any
other process; a client of Jupyter's protocol looks at what has come back.
"""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path

import pytest
from support.kernel import CellFailed, Kernel
from support.languages import LANGUAGES, Language

import snapkernel

_command = cache(lambda language: language.command())


@pytest.fixture(params=LANGUAGES, ids=lambda language: language.name)
def language(request: pytest.FixtureRequest) -> Language:
    """Each of them, where it is installed."""
    found: Language = request.param
    if isinstance(why_not := _command(found), str):
        pytest.skip(why_not)
    return found


def start(language: Language, folder: Path) -> Kernel:
    """A new kernel."""
    folder.mkdir()
    if language.modules is not None:
        (folder / "node_modules").symlink_to(language.modules)
    return Kernel.start(folder, command=_command(language), answers=language.answers)


def restore(
    language: Language,
    snapshot: snapkernel.Snapshot,
    store: str,
    folder: Path,
) -> Kernel:
    """A copy, with a client of its own."""
    return Kernel.restore(snapshot, store, folder, answers=language.answers)


def ports(kernel: Kernel) -> set[int]:
    """What its connection file says."""
    entries = json.loads(kernel.connection_file.read_text())
    return {value for name, value in entries.items() if name.endswith("_port")}


def test_live_and_again(language: Language, tmp_path: Path, store: str) -> None:
    """A copy beside its original, and a copy of the copy beside both."""
    with start(language, tmp_path / "original") as original:
        original.execute(language.prepare)
        snapshot = snapkernel.checkpoint(original.pid, store=store)
        with restore(language, snapshot, store, tmp_path / "second") as second:
            again = snapkernel.checkpoint(second.pid, store=store)
            with restore(language, again, store, tmp_path / "third") as third:
                kernels = (original, second, third)
                assert len(set.union(*map(ports, kernels))) == 15
                for number, kernel in enumerate(kernels):
                    for _ in range(number):
                        kernel.execute(language.once)
                for number, kernel in enumerate(kernels):
                    assert kernel.execute(language.once).strip() == str(number + 1)
                    assert kernel.execute(language.verify).strip() == "all there"


def test_stopped(language: Language, tmp_path: Path, store: str) -> None:
    """The kernel ends, and comes back on its old ports.

    Its old client is not asked: ZeroMQ turns away who comes back before his old connection is
    known to be closed, unless the kernel asks for ZMQ_ROUTER_HANDOVER, as ipykernel does.
    """
    with start(language, tmp_path / "original") as original:
        original.execute(language.prepare)
        before = ports(original)
        snapshot = snapkernel.checkpoint(original.pid, store=store, stop=True)
    with restore(language, snapshot, store, tmp_path / "copy") as copy:
        assert ports(copy) == before
        assert copy.execute(language.verify).strip() == "all there"


def test_running_cell(language: Language, tmp_path: Path, store: str) -> None:
    """A cell in the middle of its work ends as it would have, in the original and in a copy."""
    with start(language, tmp_path / "original") as original:
        original.execute(language.prepare)
        running = original.send(language.busy)
        original.until_printed(running, "started")
        snapshot = snapkernel.checkpoint(original.pid, store=store)
        with restore(language, snapshot, store, tmp_path / "copy") as copy:
            original.result(running)
            assert original.execute(language.found).strip() == "True"
            assert copy.execute(language.found).strip() == "True"


def test_interrupt(language: Language, tmp_path: Path, store: str) -> None:
    """The interrupt button ends a cell of a restored kernel, and no more than that."""
    with start(language, tmp_path / "original") as original:
        original.execute(language.prepare)
        snapshot = snapkernel.checkpoint(original.pid, store=store, stop=True)
    with restore(language, snapshot, store, tmp_path / "copy") as copy:
        running = copy.send(language.endless)
        copy.until_printed(running, "started")
        copy.interrupt()
        with pytest.raises(CellFailed):
            copy.result(running)
        time.sleep(language.recovers_s)  # nothing tells when it is over
        assert copy.execute(language.verify).strip() == "all there"
