"""Looking at what a failed operation says and leaves."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from snapkernel.errors import SnapkernelError
from support.conformance import PATIENCE


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


@contextmanager
def outlived_by_helpers(pid: int) -> Iterator[None]:
    """A process that is killed in the block: wait until the children that it leaves have ended."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    helpers = []
    for child in children:
        with suppress(ProcessLookupError):
            helpers.append(os.pidfd_open(int(child)))
    yield
    for helper in helpers:
        assert select.select([helper], [], [], PATIENCE)[0], "a helper lives on"
        os.close(helper)
