"""Which pages of a process hold something that is nowhere else.

``/proc/PID/pagemap`` tells (Documentation/admin-guide/mm/pagemap.rst): by PAGEMAP_SCAN since Linux
6.7, entry by entry before.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from snapkernel._native import ffi, lib
from snapkernel.errors import TargetError

_CAPACITY = 65536
_PAGE = os.sysconf("SC_PAGESIZE")


def scan_pages(
    pid: int, spans: Iterable[tuple[int, int]], *, guards: bool = False, plain: bool = False
) -> list[tuple[int, int]]:
    """``(address, length)`` runs of private pages in ``(start, end)`` spans.

    Args:
        guards: find guard pages (madvise(2), MADV_GUARD_INSTALL) instead.
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
                    pagemap.fileno(), at, end, _PAGE, guards, plain, words, _CAPACITY, count
                )
                if at < 0:
                    raise TargetError(
                        f"memory at {start:#x} of process {pid}",
                        f"its page table cannot be read: {os.strerror(-at)}",
                    )
                numbers = ffi.unpack(words, 2 * count[0])
                runs.extend(zip(numbers[::2], numbers[1::2], strict=True))
    return runs
