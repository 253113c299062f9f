"""Notebooks checkpointed half-way end bit-identical with an uninterrupted run.

The notebooks are in ``notebooks/``, as lists of cells; the last one prints a digest of all results.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from support.kernel import Kernel

import snapkernel

NOTEBOOKS = Path(__file__).parent / "notebooks"
SAME = {"PYTHONHASHSEED": "0"}
TIME = 120.0
"""Seconds for one cell; the first one imports."""


def cells(notebook: str) -> list[str]:
    return re.split(r"^# %%\n", (NOTEBOOKS / f"{notebook}.py").read_text(), flags=re.M)[1:]


def run(kernel: Kernel, notebook: list[str]) -> list[str]:
    return [kernel.execute(cell, TIME) for cell in notebook]


@pytest.mark.parametrize("notebook", sorted(path.stem for path in NOTEBOOKS.glob("*.py")))
def test_half_way(notebook: str, tmp_path: Path, store: str) -> None:
    """The original and the restored copy both end as a kernel that was left alone."""
    package = notebook.partition("_")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (the extras [test,torch] bring it)")
    every = cells(notebook)
    half = len(every) * 2 // 3
    with Kernel.start(tmp_path / "uninterrupted", SAME) as kernel:
        expected = run(kernel, every)
    with Kernel.start(tmp_path / "original", SAME) as original:
        assert run(original, every[:half]) == expected[:half]
        snapshot = snapkernel.checkpoint(original.pid, store=store)
        with Kernel.restore(snapshot, store, tmp_path / "copy") as copy:
            assert run(copy, every[half:]) == expected[half:]
            assert run(original, every[half:]) == expected[half:]
