"""What the verbs print: results on standard output, messages on standard error."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import click


def print_json(value: object) -> None:
    """Print one JSON value, on one line."""
    click.echo(json.dumps(value))


def message(text: str) -> None:
    """Tell the user something that is not the result."""
    click.echo(printable(text), err=True)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns, aligned. The last one is as wide as it is."""
    lines = [header, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def printable(text: str) -> str:
    """``text`` without control characters: names come from processes and stores, and must not
    steer the user's terminal."""
    return "".join(character if character.isprintable() else "\N{MIDDLE DOT}" for character in text)


def format_size(size: int) -> str:
    """Bytes for people."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"


def format_seconds(seconds: float) -> str:
    """Seconds for people."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
