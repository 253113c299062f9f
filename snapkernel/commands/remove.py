"""``snapkernel remove``: forget snapshots."""

from __future__ import annotations

import click

from snapkernel.commands.options import json_option, store_option
from snapkernel.commands.output import message, print_json


@click.command("remove")
@click.argument("snapshots", metavar="SNAPSHOT...", nargs=-1, required=True)
@store_option
@json_option
def command(snapshots: tuple[str, ...], store: str | None, as_json: bool) -> None:
    """Remove snapshots. The space they took is free again after `snapkernel gc`.

    SNAPSHOT is an id, the beginning of one, or a name (the newest of that name). All of them are
    looked up first: when one is not there, nothing is removed.
    """
    from snapkernel.store import Store

    Store.open(store).remove(snapshots)
    if as_json:
        print_json({"removed": list(snapshots)})
    else:
        message("run `snapkernel gc` to free the space")
