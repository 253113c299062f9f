"""Which pages of a process hold something that is nowhere else.

``/proc/PID/pagemap`` tells (Documentation/admin-guide/mm/pagemap.rst): by PAGEMAP_SCAN since Linux
6.7, entry by entry before. It says nothing about pages of shared memory that no page table
holds; mincore(2) does, but only to the process itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from enum import IntEnum
from typing import TYPE_CHECKING

from snapkernel._native import ffi, lib
from snapkernel.errors import TargetError
from snapkernel.freeze.batch import Batch, Space

if TYPE_CHECKING:
    from snapkernel.freeze.agent import Agent


class Kind(IntEnum):
    """Kinds of pages: those that are nowhere else; guard pages (madvise(2), MADV_GUARD_INSTALL);
    all that the page table holds."""

    PRIVATE = 0
    GUARD = 1
    ANY = 2


_CAPACITY = 65536
_PAGE = os.sysconf("SC_PAGESIZE")
_AT_ONCE = 1 << 20
_RESIDENT = re.compile(rb"\x01+")
_LOWEST_BIT = bytes(byte & 1 for byte in range(256))


def scan_pages(
    pid: int, spans: Iterable[tuple[int, int]], *, kind: Kind = Kind.PRIVATE, plain: bool = False
) -> list[tuple[int, int]]:
    """``(address, length)`` runs of pages in ``(start, end)`` spans.

    Args:
        kind: which pages.
        plain: do without PAGEMAP_SCAN.

    Raises:
        TargetError: the page table cannot be read.
    """
    words = ffi.new("uint64_t[]", 2 * _CAPACITY)
    count = ffi.new("size_t *")
    runs: list[tuple[int, int]] = []
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        for start, end in spans:
            at = start
            while at < end:
                count[0] = 0
                at = lib.sk_scan_pages(
                    pagemap.fileno(), at, end, _PAGE, kind, plain, words, _CAPACITY, count
                )
                if at < 0:
                    raise TargetError(
                        f"memory at {start:#x} of process {pid}",
                        f"its page table cannot be read: {os.strerror(-at)}",
                    )
                numbers = ffi.unpack(words, 2 * count[0])
                runs.extend(zip(numbers[::2], numbers[1::2], strict=True))
    return runs


def resident_pages(agent: Agent, start: int, end: int) -> list[tuple[int, int]]:
    """``(address, length)`` runs of a mapping's pages that are in memory (mincore(2)).

    No page comes to life by the question. Pages in swap are not found.

    Raises:
        BatchFailed: nothing is mapped there.
    """
    runs: list[tuple[int, int]] = []
    for at in range(start, end, _AT_ONCE * _PAGE):
        length = min(end - at, _AT_ONCE * _PAGE)
        vector = Space(bytes(length // _PAGE))
        batch = Batch("find resident pages")
        batch.call("mincore", at, length, vector, note=f"memory {at:#x}-{at + length:#x}")
        agent.run(batch)
        for found in _RESIDENT.finditer(vector.data.translate(_LOWEST_BIT)):
            address, size = at + found.start() * _PAGE, len(found[0]) * _PAGE
            if runs and sum(runs[-1]) == address:
                runs[-1] = (runs[-1][0], runs[-1][1] + size)
            else:
                runs.append((address, size))
    return runs
