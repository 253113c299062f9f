"""Verification: is everything there that the manifests promise, bit by bit?"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from snapkernel.errors import DamagedSnapshot, SnapkernelError
from snapkernel.store import manifest as manifests
from snapkernel.store.backend import Backend
from snapkernel.store.fetch import Group, Part, Reader, groups, parts
from snapkernel.store.pack import ROW, Row, damaged, object_name, read_table


def verify(backend: Backend, ids: Sequence[str], *, data: bool) -> list[str]:
    """Return what is wrong with these snapshots, one line each. Raises StoreError."""
    sizes = {entry.name: entry.size for entry in backend.list("packs")}
    problems: list[str] = []
    wanted: dict[str, dict[Row, tuple[str, Part]]] = {}
    for id in ids:
        try:
            manifest = manifests.read(backend, id)
        except DamagedSnapshot as error:
            problems.append(str(error))
            continue
        for what, content in manifests.contents(manifest):
            for part in parts(content):
                row = Row(part.id, part.offset, part.stored, part.length, part.codec)
                where = f"snapshot {id}, {what}"
                wanted.setdefault(manifest.packs[part.pack], {}).setdefault(row, (where, part))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        checks = (
            pool.submit(_check_pack, backend, pack, sizes, rows, data)
            for pack, rows in sorted(wanted.items())
        )
        while batch := list(islice(checks, 64)):
            for check in batch:
                problems += check.result()
    return problems


def _check_pack(
    backend: Backend,
    pack: str,
    sizes: dict[str, int],
    rows: dict[Row, tuple[str, Part]],
    data: bool,
) -> list[str]:
    """Compare a pack's table with what manifests say, then read the chunks."""
    needed = "needed by " + " and by ".join(sorted({where for where, _ in rows.values()}))
    try:
        if object_name(pack) not in sizes:
            raise damaged(pack, "it is missing")
        table = set(ROW.iter_unpack(read_table(backend, pack, sizes[object_name(pack)])))
    except SnapkernelError as error:
        return [f"{error.object}: {error.reason}; {needed}"]
    problems = [
        f"{where}: chunk {row.id.hex()} is not in pack {pack}"
        for row, (where, _) in rows.items()
        if row not in table
    ]
    if data:
        present = [(where, part) for row, (where, part) in rows.items() if row in table]
        problems += _check_chunks(backend, pack, present)
    return problems


def _check_chunks(backend: Backend, pack: str, wanted: Iterable[tuple[str, Part]]) -> Iterator[str]:
    where = {part.offset: text for text, part in wanted}
    reader = Reader(backend, [pack])
    chunks = sorted((part._replace(pack=0) for _, part in wanted), key=lambda part: part.offset)
    for group in groups(chunks):
        buffer = memoryview(bytearray(group.length))
        try:
            reader.read(group, buffer)
        except DamagedSnapshot:  # find out which of them
            for part in group.parts:
                try:
                    reader.read(Group(0, [part], part.length), buffer[: part.length])
                except DamagedSnapshot as error:
                    yield f"{where[part.offset]}: {error.object}: {error.reason}"
