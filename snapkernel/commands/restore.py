"""``snapkernel restore``: bring a saved process back to life."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from snapkernel.commands.options import json_option, snapshot_argument, store_option
from snapkernel.commands.output import format_seconds, message, print_json
from snapkernel.commands.progress import progress
from snapkernel.errors import UnsupportedHost

if TYPE_CHECKING:
    from snapkernel import RestoredProcess

FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)


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
    plan: bool,
    as_json: bool,
) -> None:
    """Bring a saved process back to life.

    SNAPSHOT is an id, the beginning of one, or a name (the newest of that name).

    The process gets this command's standard streams, signals are forwarded to it, and its exit
    status becomes that of the command. With --json its standard output goes to standard error.
    With --detach it runs on its own, and its output goes to a log file.
    """
    import snapkernel

    if plan and (detach or connection_file):
        raise click.UsageError("--plan restores nothing: leave --detach and --connection-file away")
    if lazy:
        raise UnsupportedHost(
            "--lazy", "this version of snapkernel restores eagerly only", "leave --lazy away"
        )
    if plan:
        lines = snapkernel.plan(snapshot, store=store)
        if as_json:
            print_json({"plan": list(lines)})
        else:
            for line in lines:
                click.echo(line)
        return
    with progress() as report:
        process = snapkernel.restore(
            snapshot,
            store=store,
            lazy=False,
            connection_file=connection_file,
            stdio=None if detach else (0, 2 if as_json else 1, 2),
            progress=report,
        )
    _tell(process, detach, as_json)
    if not detach:
        ctx.exit(_stay(process))


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


def _stay(process: RestoredProcess) -> int:
    """Forward signals until the process ends; return its exit status."""

    def forward(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):  # It has just ended.
            process.send_signal(number)

    for number in FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:  # As nohup(1) leaves SIGHUP.
            signal.signal(number, forward)
    return process.wait()
