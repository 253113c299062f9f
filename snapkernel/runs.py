"""Arithmetic of runs, ``(start, length)``, ascending and disjoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

Run = tuple[int, int]
"""Address, or offset in a file, and length, in bytes."""


def without(runs: Iterable[Run], holes: Sequence[Run]) -> list[Run]:
    """The parts of runs that are in no hole."""
    left = []
    at = 0
    for start, length in runs:
        end = start + length
        while at < len(holes) and sum(holes[at]) <= start:
            at += 1
        behind = at
        while behind < len(holes) and holes[behind][0] < end:
            if start < holes[behind][0]:
                left.append((start, holes[behind][0] - start))
            start = sum(holes[behind])
            behind += 1
        if start < end:
            left.append((start, end - start))
    return left


def common(runs: Iterable[Run], others: Sequence[Run]) -> Iterator[Run]:
    """The parts of runs that are in one of the others as well."""
    at = 0
    for start, length in runs:
        end = start + length
        while at < len(others) and sum(others[at]) <= start:
            at += 1
        behind = at
        while behind < len(others) and others[behind][0] < end:
            low, high = max(start, others[behind][0]), min(end, sum(others[behind]))
            yield low, high - low
            behind += 1


def extend(runs: list[Run], start: int, length: int) -> None:
    """Append a run, joined with the one before where they touch."""
    if runs and sum(runs[-1]) == start:
        runs[-1] = (runs[-1][0], runs[-1][1] + length)
    else:
        runs.append((start, length))


def joined(runs: Iterable[Run]) -> list[Run]:
    """The same without seams."""
    found: list[Run] = []
    for run in runs:
        extend(found, *run)
    return found
