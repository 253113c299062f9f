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

snapshot_argument = click.argument("snapshot")
"""An id, an unambiguous prefix of one, or a name (the newest of that name)."""

process_argument = click.argument("target", metavar="PID")
"""A pid, a Jupyter connection file or a kernel id."""
