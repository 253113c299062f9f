"""Bytes that are nearly right: samples with bits flipped, pieces cut out, doubled, or exchanged for
those of another sample, and numbers replaced by the ones that programs stumble over.

The same cases are tried each time. ``SNAPKERNEL_FUZZ=20`` tries twenty times as many, others each
time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

TIMES = int(os.environ.get("SNAPKERNEL_FUZZ", "0"))


def tried(times: int) -> settings:
    """How often a property is tried."""
    return settings(
        max_examples=times * max(TIMES, 1),
        derandomize=not TIMES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


Mutation = Callable[[bytes], bytes]

NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1)
WORDS = (
    b"-1 0 99999999999999999999 \n \n\n \t : :: / .. %s \\012 \\x00 (deleted) EOF 0x10 1e9 nan "
    b'\xc2\xa0 \xe2\x80\xa8 \xff\xfe \x0b \x1c \x85 [] {} null true [[[[ "" ffffffffffffffffff'
).split(b" ")


@st.composite
def mutation(draw: st.DrawFn, samples: Sequence[bytes]) -> Mutation:
    """One change, to be applied to any bytes."""
    kind = draw(st.sampled_from(["flip", "cut", "drop", "double", "splice", "number", "word"]))
    at = draw(st.floats(0, 1, exclude_max=True))
    length = draw(st.integers(0, 64))
    order = draw(st.sampled_from(["little", "big"]))
    number, width = draw(st.sampled_from(NUMBERS)), draw(st.sampled_from([1, 2, 4, 8]))
    other, word = draw(st.sampled_from(samples)), draw(st.sampled_from(WORDS))
    bit = draw(st.integers(0, 7))

    def change(data: bytes) -> bytes:
        place = int(at * len(data))
        before, after = data[:place], data[place:]
        match kind:
            case "flip" if after:
                return before + bytes([after[0] ^ 1 << bit]) + after[1:]
            case "cut":
                return before
            case "drop":
                return before + after[length:]
            case "double":
                return before + after[:length] + after
            case "splice":
                return before + other[int(at * len(other)) :]
            case "number":
                raw = (number & (1 << 8 * width) - 1).to_bytes(width, order)  # type: ignore[arg-type]
                return before + raw + after[width:]
            case "word":
                return before + word + after[length % 9 :]
        return data

    return change


def mutated(*samples: bytes) -> st.SearchStrategy[bytes]:
    """A sample with up to four changes; rarely, bytes that nobody ever wrote."""

    def apply(sample: bytes, changes: list[Mutation]) -> bytes:
        for change in changes:
            sample = change(sample)
        return sample

    changes = st.lists(mutation(samples), max_size=4)
    nearly = st.builds(apply, st.sampled_from(samples), changes)
    return st.one_of(nearly, nearly, nearly, st.binary(max_size=200))


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value of nested dictionaries and lists is."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += paths(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            found += paths(inner, (*path, index))
    return found


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value in one place."""
    if not path:
        return new
    key, *rest = path
    if isinstance(value, dict):
        return {**value, key: replaced(value.get(key), tuple(rest), new)}
    return [replaced(v, tuple(rest), new) if i == key else v for i, v in enumerate(value)]


def at(value: Any, path: tuple[Any, ...]) -> Any:
    """What is in one place."""
    for key in path:
        value = value[key]
    return value


TEXTS = [
    "",
    "\0",
    "/",
    "/..",
    "/proc/self/fd/0",
    "/proc/1/root",
    "x" * 5000,
    "\x1b[2J",
    "/dev/null",
]


def _changes(value: Any) -> st.SearchStrategy[Any]:
    """Something else in place of a value: of the same kind mostly, but not what was meant."""
    anything = st.sampled_from([None, True, -1, 1 << 63, "", b"", [], {}, 1.5, [[]], {"x": 1}])
    match value:
        case bool():
            same: st.SearchStrategy[Any] = st.just(not value)
        case int():
            near = st.integers(-9, 9).map(lambda step: value + step)
            same = st.one_of(near, st.sampled_from(NUMBERS), st.integers(-(1 << 63), (1 << 64) - 1))
        case str():
            same = st.one_of(st.sampled_from(TEXTS), st.text(max_size=9).map(lambda t: value + t))
        case bytes():
            same = mutated(value)
        case list() | tuple():
            order = st.permutations(list(value)) if len(value) < 30 else st.just(value[::-1])
            twice, fewer = st.just([*value, *value]), st.integers(0, len(value))
            same = st.one_of(order, twice, fewer.map(lambda count: list(value[:count])))
        case dict():
            keys = st.sampled_from(sorted(value, key=str) or ["x"])
            less = keys.map(lambda key: {k: v for k, v in value.items() if k != key})
            same = st.one_of(less, st.just({**value, "x": 1}))
        case _:
            same = anything
    return st.one_of(same, same, same, anything)


@dataclass
class Changed:
    """A manifest as plain data, with one to three values changed.

    Attributes:
        changes: what is said of it when a test fails.
    """

    plain: dict[str, Any] = field(repr=False)
    changes: list[tuple[tuple[Any, ...], Any]] = field(default_factory=list)


@st.composite
def changed(draw: st.DrawFn, plain: dict[str, Any]) -> Changed:
    """Change it."""
    result = Changed(plain)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(paths(result.plain)))
        new = draw(_changes(at(result.plain, path)))
        result.plain = replaced(result.plain, path, new)
        result.changes.append((path, new))
    return result
