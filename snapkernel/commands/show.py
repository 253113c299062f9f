"""``snapkernel show``: what is in a snapshot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from snapkernel.commands.options import json_option, snapshot_argument, store_option
from snapkernel.commands.output import format_seconds, format_size, print_json, printable

if TYPE_CHECKING:
    from snapkernel.model import Manifest, Process


@click.command("show")
@snapshot_argument
@store_option
@json_option
def command(snapshot: str, store: str | None, as_json: bool) -> None:
    """Describe a snapshot.

    SNAPSHOT is an id, the beginning of one, or a name (the newest of that name).
    """
    from snapkernel.store import Store

    manifest = Store.open(store).load(snapshot)
    if as_json:
        print_json(_summary(manifest))
        return
    for label, text in _lines(manifest):
        click.echo(f"{label:<14}{printable(text)}".rstrip())


def _summary(manifest: Manifest) -> dict[str, object]:
    return {
        "id": manifest.id,
        "name": manifest.name,
        "created": manifest.created,
        "mode": manifest.mode,
        "software": manifest.software,
        "schema": manifest.schema,
        "host": manifest.host.name,
        "architecture": manifest.host.architecture,
        "kernel": manifest.host.kernel,
        "cpu_features": list(manifest.host.cpu_features),
        "memory_bytes": manifest.memory_bytes,
        "stored_bytes": manifest.stored_bytes,
        "pause_s": manifest.pause_s,
        "packs": len(manifest.packs),
        "jupyter": manifest.jupyter is not None,
        "processes": [_process(manifest, process) for process in manifest.processes],
        "files": [
            {"path": file.path, "size": file.size, "build_id": file.build_id}
            for file in manifest.files
        ],
        "carried": [
            {"path": file.path, "size": file.size, "target": file.target, "common": file.common}
            for file in manifest.carried
        ],
        "notes": [
            {"object": note.object, "status": note.status, "reason": note.reason}
            for note in manifest.notes
        ],
    }


def _process(manifest: Manifest, process: Process) -> dict[str, object]:
    return {
        "pid": process.pid,
        "executable": process.executable,
        "arguments": list(process.arguments),
        "working_directory": process.working_directory,
        "threads": [
            {"tid": thread.tid, "name": thread.name.decode(errors="replace")}
            for thread in process.threads
        ],
        "mappings": len(process.memory.mappings),
        "mapped_bytes": _mapped_bytes(process),
        "content_bytes": process.memory.content.length,
        "descriptors": [
            {"number": number, "kind": kind} for number, kind in _descriptors(manifest, process)
        ],
    }


def _mapped_bytes(process: Process) -> int:
    return sum(mapping.end - mapping.start for mapping in process.memory.mappings)


def _descriptors(manifest: Manifest, process: Process) -> Iterator[tuple[int, str]]:
    """Number and kind of each."""
    for descriptor in process.descriptors:
        description = manifest.descriptions[descriptor.description]
        yield descriptor.number, str(description.__struct_config__.tag)


def _lines(manifest: Manifest) -> Iterator[tuple[str, str]]:
    host = manifest.host
    yield "id", manifest.id
    yield "name", manifest.name or "-"
    yield "created", f"{manifest.created} by {manifest.software}"
    yield "host", f"{host.name}, {host.architecture}, Linux {host.kernel}"
    yield "mode", f"{manifest.mode}, paused for {format_seconds(manifest.pause_s)}"
    yield "memory", format_size(manifest.memory_bytes)
    yield "stored", f"{format_size(manifest.stored_bytes)} new, in {len(manifest.packs)} packs"
    yield "jupyter", "a kernel" if manifest.jupyter is not None else "-"
    yield "files", f"{len(manifest.files)} that must be the same on restore"
    for file in manifest.carried:
        what = f"link to {file.target}" if file.target else format_size(file.size)
        yield "carried", f"{file.path} ({what})"
    for process in manifest.processes:
        yield from _process_lines(manifest, process)
    for note in manifest.notes:
        yield "note", f"{note.object}: {note.status}{note.reason and f' ({note.reason})'}"


def _process_lines(manifest: Manifest, process: Process) -> Iterator[tuple[str, str]]:
    yield "process", f"{process.pid}: {' '.join(process.arguments)}"
    yield "  executable", process.executable
    yield "  directory", process.working_directory
    threads = Counter(thread.name.decode(errors="replace") for thread in process.threads)
    yield "  threads", f"{len(process.threads)}: {_counted(threads)}"
    memory = process.memory
    yield (
        "  mappings",
        f"{len(memory.mappings)} of {format_size(_mapped_bytes(process))}, "
        f"{format_size(memory.content.length)} of content",
    )
    kinds = Counter(kind for _, kind in _descriptors(manifest, process))
    yield "  descriptors", f"{len(process.descriptors)}: {_counted(kinds)}"


def _counted(counter: Counter[str]) -> str:
    return ", ".join(
        f"{count} {name}" if count > 1 else name for name, count in counter.most_common()
    )
