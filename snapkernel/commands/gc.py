"""``snapkernel gc``: free the space that no snapshot needs."""

from __future__ import annotations

import click

from snapkernel.commands.options import json_option, store_option
from snapkernel.commands.output import format_size, message, print_json


@click.command("gc")
@store_option
@click.option(
    "--grace",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=3600.0,
    show_default=True,
    help="Leave files alone that were written or used more recently: a checkpoint that is still "
    "being written may need them.",
)
@json_option
def command(store: str | None, grace: float, as_json: bool) -> None:
    """Free the space that no snapshot needs."""
    from snapkernel.store import Store

    freed = Store.open(store).gc(grace=grace)
    if as_json:
        print_json({"freed_bytes": freed})
    else:
        message(f"{format_size(freed)} freed")
