"""Looking at what a failed operation says and leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from snapkernel.errors import SnapkernelError


def files(folder: Path) -> dict[str, int]:
    """Names and sizes of everything in a store."""
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refused(fault: Callable[[], object], kind: type[SnapkernelError]) -> SnapkernelError:
    """The error that `fault` gives: of this kind, with an object and a reason, in one line."""
    with pytest.raises(kind) as caught:
        fault()
    error = caught.value
    assert error.object, "the error names no object"
    assert error.reason, "the error gives no reason"
    assert "\n" not in str(error)
    return error
