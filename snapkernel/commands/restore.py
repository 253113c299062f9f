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

if TYPE_CHECKING:
    from snapkernel import RestoredProcess

ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
TELLING = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)


class Forwarder:
    """Hands the signals that this command gets on to the restored process.

    Before there is one, a signal that means to end something ends the restore; others wait.
    """

    def __init__(self) -> None:
        self._process: RestoredProcess | None = None
        self._waiting: list[int] = []
        for number in (*ENDING, *TELLING):
            if signal.getsignal(number) is not signal.SIG_IGN:  # As nohup(1) leaves SIGHUP.
                signal.signal(number, self._handle)

    def to(self, process: RestoredProcess) -> None:
        """Hand signals on to this process from now on."""
        self._process = process
        for number in self._waiting:
            self._send(process, number)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._process is not None:
            self._send(self._process, number)
        elif number in ENDING:
            raise SystemExit(128 + number)
        else:
            self._waiting.append(number)

    def _send(self, process: RestoredProcess, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # It has just ended.
            process.send_signal(number)


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

    The process gets this command's standard streams, signals are forwarded to it, and its exit
    status becomes that of the command. With --json its standard output goes to standard error.
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
    forward = None if detach else Forwarder()
    with progress() as report:
        process = snapkernel.restore(
            snapshot,
            store=store,
            lazy=lazy,
            connection_file=connection_file,
            stdio=None if detach else (0, 2 if as_json else 1, 2),
            files=files,
            progress=report,
        )
    if forward:
        forward.to(process)
    _tell(process, detach, as_json)
    if forward:
        ctx.exit(process.wait())


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
