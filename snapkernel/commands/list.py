"""``snapkernel list``: what is in a store."""

from __future__ import annotations

import click

from snapkernel.commands.options import json_option, store_option
from snapkernel.commands.output import format_size, message, print_json, print_table


@click.command("list")
@store_option
@json_option
def command(store: str | None, as_json: bool) -> None:
    """List the snapshots in a store, the newest first."""
    import msgspec

    from snapkernel.store import Store

    summaries = Store.open(store).list()
    if as_json:
        print_json(msgspec.to_builtins(summaries))
        return
    print_table(
        ("ID", "NAME", "CREATED", "HOST", "MEMORY", "FILES", "STORED"),
        (
            (
                summary.id[:12],
                summary.name,
                summary.created,
                summary.host,
                format_size(summary.memory_bytes),
                format_size(summary.file_bytes),
                format_size(summary.stored_bytes),
            )
            for summary in summaries
        ),
    )
    for summary in summaries:
        if summary.problem:
            message(f"note: snapshot {summary.id} cannot be read: {summary.problem}")
