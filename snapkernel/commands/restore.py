"""``snapkernel restore``: bring a saved process back to life."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from snapkernel.commands.foreground import Foreground
from snapkernel.commands.options import json_option, snapshot_argument, store_option
from snapkernel.commands.output import format_seconds, message, print_json
from snapkernel.commands.progress import progress

if TYPE_CHECKING:
    from snapkernel import RestoredProcess


@click.command("restore")
@snapshot_argument
@store_option
@click.option(
    "--lazy/--eager",
    default=False,
    help="Let memory arrive as it is touched, or all of it before the process runs (default).",
)
@click.option(
    "--connection-file",
    metavar="PATH",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write the connection file of a restored Jupyter kernel.",
)
@click.option("--detach", is_flag=True, help="Return when the process runs.")
@click.option(
    "--files",
    type=click.Choice(["refuse", "keep", "overwrite", "beside", "none"]),
    default="refuse",
    show_default=True,
    help="Files of the snapshot are written where they are missing. Where another file stands: "
    "refuse to restore, keep it and use it, overwrite it, or put the snapshot's beside it for the "
    "copy. With `none` no file is written at all.",
)
@click.option("--plan", is_flag=True, help="Print what would be done, call by call; do nothing.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    snapshot: str,
    store: str | None,
    lazy: bool,
    connection_file: Path | None,
    detach: bool,
    files: str,
    plan: bool,
    as_json: bool,
) -> None:
    """Bring a saved process back to life.

    SNAPSHOT is an id, the beginning of one, or a name (the newest of that name).

    The process gets this command's standard streams and its signals: Ctrl-C and Ctrl-Z do what they
    would do to the program itself. The command stops when the process stops, and ends as it ends:
    with its exit status, or by the same signal. In the background, give it an input that is no
    terminal (</dev/null). With --json its standard output goes to standard error.
    With --detach it runs on its own, and its output goes to a log file.
    """
    import snapkernel

    if plan and (detach or connection_file or lazy):
        raise click.UsageError("--plan restores nothing: leave the other options away")
    if plan:
        lines = snapkernel.plan(snapshot, store=store, files=files)
        if as_json:
            print_json({"plan": list(lines)})
        else:
            for line in lines:
                click.echo(line)
        return
    from snapkernel.thaw.restore import hold

    foreground = None if detach else Foreground()
    with progress() as report:
        held = hold(
            snapshot,
            store=store,
            lazy=lazy,
            connection_file=connection_file,
            stdio=None if detach else (0, 2 if as_json else 1, 2),
            files=files,
            report=foreground.report if foreground else None,
            progress=report,
        )
    if foreground:
        foreground.begin(held.target.pid)
    if foreground and not as_json:
        _tell(held.process(), detach, as_json)  # What it shows from now on is its own.
        process = held.release()
    else:
        process = held.release()
        _tell(process, detach, as_json)
    if foreground:
        ctx.exit(foreground.follow(process))


def _tell(process: RestoredProcess, detach: bool, as_json: bool) -> None:
    for note in process.notes:
        message(f"note: {note}")
    if as_json:
        print_json(
            {
                "pid": process.pid,
                "mode": process.mode,
                "ports": {str(old): new for old, new in process.ports.items()},
                "connection_file": (
                    str(process.connection_file) if process.connection_file else None
                ),
                "running_s": process.running_s,
                "init_pid": process.init_pid,
                "timings": dict(process.timings),
                "notes": list(process.notes),
            }
        )
        return
    message(
        f"process {process.pid} runs after {format_seconds(process.running_s)} ({process.mode})"
    )
    for old, new in process.ports.items():
        if old != new:
            message(f"port {old} is now {new}")
    if process.connection_file:
        message(f"connection file: {process.connection_file}")
    if detach:
        click.echo(process.pid)
