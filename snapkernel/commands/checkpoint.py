"""``snapkernel checkpoint``: save a running process."""

from __future__ import annotations

import click

from snapkernel.commands.options import files_option, json_option, process_argument, store_option
from snapkernel.commands.output import format_seconds, format_size, message, print_json
from snapkernel.commands.progress import progress


@click.command("checkpoint")
@process_argument
@store_option
@click.option("--name", default="", help="A name for the snapshot; the newest of a name counts.")
@click.option("--stop", is_flag=True, help="End the process once the snapshot is safe.")
@files_option
@json_option
def command(
    target: str, store: str | None, name: str, stop: bool, files: tuple[str, ...], as_json: bool
) -> None:
    """Save a process and print the snapshot's id. It goes on running meanwhile.

    PID may also be a Jupyter connection file or a kernel id.
    """
    import snapkernel

    pid = snapkernel.resolve_target(target)
    with progress() as report:
        snapshot = snapkernel.checkpoint(
            pid, store=store, name=name, stop=stop, files=files, progress=report
        )
    for note in snapshot.notes:
        message(f"note: {note}")
    if as_json:
        print_json(
            {
                "id": snapshot.id,
                "name": snapshot.name,
                "mode": snapshot.mode,
                "pause_s": snapshot.pause_s,
                "safe_s": snapshot.safe_s,
                "memory_bytes": snapshot.memory_bytes,
                "stored_bytes": snapshot.stored_bytes,
                "files": [{"path": file.path, "size": file.size} for file in snapshot.files],
                "file_bytes": snapshot.file_bytes,
                "pid": snapshot.pid,
                "timings": dict(snapshot.timings),
                "notes": list(snapshot.notes),
            }
        )
        return
    if snapshot.files:
        message(f"{len(snapshot.files)} files of {format_size(snapshot.file_bytes)} travel with it")
    message(
        f"paused for {format_seconds(snapshot.pause_s)}, safe after "
        f"{format_seconds(snapshot.safe_s)}: {format_size(snapshot.memory_bytes)} of memory, "
        f"{format_size(snapshot.stored_bytes)} new in the store"
    )
    click.echo(snapshot.id)
