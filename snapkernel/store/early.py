"""What was stored of a source that may still change.

Memory that processes share cannot be kept by a fork. It is stored once while they run, and again
while they stand still: then every piece is only compared with the fingerprint that it had, which
goes as fast as memory can be read, and what differs is stored anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

from xxhash import xxh3_128, xxh3_128_digest

from snapkernel.runs import Run
from snapkernel.store.pack import Place


class Stored(NamedTuple):
    """What became of a piece: the runs without zero pages, and a place for each window's rest."""

    runs: list[Run]
    places: list[Place]


@final
class Early:
    """The pieces of one source, with their fingerprints (XXH3, 128 bits: nobody gains by making up
    a collision in his own memory).

    Attributes:
        view: the source's bytes, where they can be looked at without a copy.
    """

    def __init__(self, view: memoryview | None = None) -> None:
        self.view = view
        self._known: dict[tuple[Run, ...], tuple[bytes, Stored]] = {}

    def find(self, runs: Sequence[Run], data: memoryview | None = None) -> Stored | None:
        """What became of a piece, if its bytes are what they were: ``data``, or what the view
        shows."""
        known = self._known.get(tuple(runs))
        if known is None:
            return None
        if data is not None:
            mark = self.mark(data)
        elif self.view is not None:
            mark = self._look(runs, self.view)
        else:
            return None
        return known[1] if known[0] == mark else None

    def mark(self, data: memoryview) -> bytes:
        """The fingerprint of a piece."""
        return xxh3_128_digest(data)

    def _look(self, runs: Sequence[Run], view: memoryview) -> bytes:
        fingerprint = xxh3_128()
        for offset, length in runs:
            fingerprint.update(view[offset : offset + length])
        return fingerprint.digest()

    def keep(self, runs: Sequence[Run], mark: bytes, stored: Stored) -> None:
        """Remember a piece."""
        self._known[tuple(runs)] = mark, stored
        if self.view is not None:
            self._look(runs, self.view)  # so that its pages are mapped when it counts
