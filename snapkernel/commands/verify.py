"""``snapkernel verify``: is everything there, bit by bit?"""

from __future__ import annotations

import click

from snapkernel.commands.options import json_option, store_option
from snapkernel.commands.output import message, print_json, printable
from snapkernel.errors import DamagedSnapshot


@click.command("verify")
@click.argument("snapshot", required=False)
@store_option
@json_option
def command(snapshot: str | None, store: str | None, as_json: bool) -> None:
    """Check every byte of a snapshot, or of all.

    SNAPSHOT is an id, the beginning of one, or a name (the newest of that name). What is wrong is
    printed line by line, and the exit status is then 1.
    """
    from snapkernel.store import Store

    opened = Store.open(store)
    problems = opened.verify(snapshot)
    if as_json:
        print_json({"ok": not problems, "problems": problems})
    else:
        for problem in problems:
            click.echo(printable(problem))
    if problems:
        raise DamagedSnapshot(
            f"store {opened.url}",
            f"{len(problems)} problems were found",
            "remove the damaged snapshots, or bring the files back from a copy of the store",
        )
    message("everything is in order")
