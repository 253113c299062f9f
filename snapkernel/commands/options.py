"""Options and arguments that several verbs share."""

from __future__ import annotations

import click

store_option = click.option(
    "--store",
    metavar="URL",
    help="Where snapshots are kept: file:///path or a path. "
    "[default: $SNAPKERNEL_STORE, else a folder under the Jupyter data directory]",
)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON: times in seconds, sizes in bytes."
)

files_option = click.option(
    "--files",
    metavar="open|written|none|PATTERN",
    multiple=True,
    default=("open",),
    show_default=True,
    help="Which files travel with a snapshot: those that are open, those written below the working "
    "directory since the process began, none, or such that fit a pattern ('results/**/*.csv'). May "
    "be given several times; open files are meant unless `none` is.",
)

snapshot_argument = click.argument("snapshot")
"""An id, an unambiguous prefix of one, or a name (the newest of that name)."""

process_argument = click.argument("target", metavar="PID")
"""A pid, a Jupyter connection file or a kernel id."""
